"""A factorised law with some elements known, and what the operations make of it: what they make of the others.

Known elements leave the law of independent others as it is, and contribute the density of their values: conditioning on
a point mass, *exact*. Law, values and mask are kept apart, so that certain elements need no infinite logits and no
variance of 0, whose densities would be NaN. Operations act on the law, and the values are put back; elements that
become known a second time count once, with density 0 where the values differ.
"""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped
from numpyro.distributions import constraints

from .._shapes import Example
from .operations import (
    Operation,
    bit_logits,
    certain,
    class_logits,
    elements,
    from_noise,
    is_factorised,
    log_ahead,
    log_excess,
    mean_and_variance,
    mirrored,
    tilt,
)


class PartlyKnown(dist.Distribution):
    """A factorised law with some elements known: a density over the others.

    Args:
        law: factorised law of one event (`Independent`).
        values: the known values, shape `event`; anything where `mask` is False.
        mask: which elements are known, shape `event`.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("law", "values", "mask")

    def __init__(self, law: dist.Distribution, values: Example, mask: Bool[Array, "*event"]) -> None:
        self.law, self.values, self.mask = law, values, mask
        super().__init__((), law.event_shape, validate_args=False)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The whole of `values` is the event; NumPyro's own rule is for laws of numbers."""
        return (), tuple(args[1] if len(args) > 1 else kwargs["values"])

    @property
    def support(self) -> constraints.Constraint:
        """The law's."""
        return self.law.support

    @property
    def mean(self) -> Shaped[Array, "*event"]:
        """The known values, and the law's mean elsewhere."""
        return jnp.where(self.mask, self.values, self.law.mean)

    @property
    def variance(self) -> Shaped[Array, "*event"]:
        """0 where known, and the law's variance elsewhere."""
        return jnp.where(self.mask, 0.0, self.law.variance)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Shaped[Array, "..."]:
        """Draws of shape (*sample_shape, *event), with the known values in them."""
        draws = self.law.sample(key, sample_shape)
        return _with_known(self, draws)

    def log_prob(self, value: Shaped[Array, "..."], intermediates: Any = None) -> Float[Array, "..."]:
        """Log density of the unknown elements in nats; the known ones are taken for granted."""
        del intermediates
        each = elements(self.law).log_prob(value)
        return jnp.sum(jnp.where(self.mask, 0.0, each), tuple(range(-len(self.event_shape), 0)))


@Operation
def known(
    law: dist.Distribution, values: Example, mask: Bool[Array, "*event"]
) -> tuple[Float[Array, ""], dist.Distribution] | None:
    """Know the elements where `mask` is True: log of their density in nats, shape (), and the law of the others.

    *Exact*; None for a law whose elements are not independent. Of elements that were known before, only those count
    that were not, and the density is 0 where the values differ.
    """
    if not is_factorised(law):
        return None
    each = elements(law).log_prob(values)
    return jnp.sum(jnp.where(mask, each, 0.0)), PartlyKnown(law, values, mask)


@known.register(PartlyKnown)
def _known(
    law: PartlyKnown, values: Example, mask: Bool[Array, "*event"]
) -> tuple[Float[Array, ""], dist.Distribution] | None:
    product = known(law.law, values, mask & ~law.mask)
    if product is None:
        return None
    agree = jnp.all((values == law.values) | ~(mask & law.mask))
    both = jnp.where(law.mask, law.values, values)
    return jnp.where(agree, product[0], -jnp.inf), PartlyKnown(law.law, both, law.mask | mask)


@mean_and_variance.register(PartlyKnown)
def _mean_and_variance(law: PartlyKnown) -> tuple[Float[Array, "*event"], Float[Array, "..."]]:
    mean_and_variance(law.law)
    return law.mean, law.variance


@bit_logits.register(PartlyKnown)
def _bit_logits(law: PartlyKnown) -> Float[Array, "*event"]:
    return bit_logits(certain(law.law, law.values, law.mask))


@class_logits.register(PartlyKnown)
def _class_logits(law: PartlyKnown) -> Float[Array, "*event states"]:
    return class_logits(certain(law.law, law.values, law.mask))


@log_excess.register(PartlyKnown)
def _log_excess(law: PartlyKnown, x: Example) -> Float[Array, ""]:
    if log_excess.knows(law.law):  # a mass of the whole event: how much of it is of the others is not known
        raise log_excess.refuse(law)
    return log_excess(law.law, x)


@log_ahead.register(PartlyKnown)
def _log_ahead(law: PartlyKnown) -> Float[Array, ""]:
    if log_ahead.knows(law.law):
        raise log_ahead.refuse(law)
    return log_ahead(law.law)


@from_noise.register(PartlyKnown)
def _from_noise(law: PartlyKnown, noise: Float[Array, "*event"]) -> Example:
    return _with_known(law, from_noise(law.law, noise))


@mirrored.register(PartlyKnown)
def _mirrored(law: PartlyKnown, key: PRNGKeyArray, mirror: Bool[Array, ""]) -> Example:
    return _with_known(law, mirrored(law.law, key, mirror))


@tilt.register(PartlyKnown)
def _tilt(law: PartlyKnown, gradient: Float[Array, "*event"]) -> PartlyKnown:
    return PartlyKnown(tilt(law.law, gradient), law.values, law.mask)


def _with_known(law: PartlyKnown, draw: Array) -> Array:
    return jnp.where(law.mask, law.values.astype(draw.dtype), draw)
