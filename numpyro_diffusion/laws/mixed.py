"""Independent groups of elements, each with a law of its own family, as one law of a vector of numbers.

Each operation is the same operation, group by group. What is said of all elements at once is cut into the groups'
parts, and numbers that belong to the whole example, as log densities, add up. Slopes, rows of a covariance and
elements that are chosen one by one have no rule: what they need is a law of one family.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Real, Shaped
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.kl import kl_divergence

from .._shapes import Example
from .operations import between, event_kl, from_noise, log_ahead, log_excess, mirrored, observed, variance, weighted
from .partly_known import known

# Places of each group's elements in the event, static.
Columns: TypeAlias = tuple[tuple[int, ...], ...]


class Mixed(dist.Distribution):
    """A vector whose groups of elements are independent, each of another family.

    Draws are floating numbers, bits and classes among them as their whole numbers. `log_prob` is as *exact* as that of
    the groups' laws: a density of the real elements times a probability of the others.

    Args:
        laws: of each group's elements, one event of rank 1 each.
        columns: the places of each group's elements in the event; each place once.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("laws",)
    pytree_aux_fields = ("columns",)

    def __init__(self, laws: Sequence[dist.Distribution], columns: Columns) -> None:
        self.laws, self.columns = tuple(laws), columns
        super().__init__((), (sum(map(len, columns)),), validate_args=False)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Raise ``NotImplementedError``, as NumPyro does where shapes do not say."""
        del args, kwargs
        raise NotImplementedError(f"{cls.__name__}.infer_shapes: the event shape is the groups'; make one, and ask it")

    @property
    def support(self) -> constraints.Constraint:
        """That of each group, of its elements."""
        each = [law.support for law in self.laws]
        single = [support.base_constraint if hasattr(support, "base_constraint") else support for support in each]
        return constraints.independent(ByColumns(single, self.columns), 1)

    @property
    def mean(self) -> Float[Array, "..."]:
        """Means of the elements; of a bit or class that of its number."""
        return together([law.mean for law in self.laws], self.columns)

    @property
    def variance(self) -> Float[Array, "..."]:
        """Variances of the elements, likewise."""
        each = [jnp.broadcast_to(variance(law), jnp.shape(law.mean)) for law in self.laws]
        return together(each, self.columns)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "... d"]:
        """Draws of shape (*sample_shape, *batch, *event), floating."""
        keys = jax.random.split(key, len(self.laws))
        draws = [law.sample(own, sample_shape) for own, law in zip(keys, self.laws, strict=True)]
        return together(draws, self.columns)

    def log_prob(self, value: Shaped[ArrayLike, "... d"], intermediates: Any = None) -> Float[Array, "..."]:
        """The groups' log densities and log probabilities in nats, added up."""
        del intermediates
        return sum((law.log_prob(x) for law, x in self.cut(jnp.asarray(value))), jnp.zeros(()))

    def cut(self, *arrays: Array) -> list[tuple[Any, ...]]:
        """Each group's law, with its part of arrays that have the event as their last axis, or broadcast to it."""
        size = self.event_shape[0]
        whole = [jnp.broadcast_to(array, (*jnp.shape(array)[:-1], size)) for array in arrays]
        cuts = zip(*(apart(array, self.columns) for array in whole), strict=True) if arrays else [()] * len(self.laws)
        return [(law, *cut) for law, cut in zip(self.laws, cuts, strict=True)]

    def of(self, laws: Sequence[dist.Distribution]) -> Self:
        """The same groups with other laws."""
        return type(self)(laws, self.columns)


class ByColumns(constraints.Constraint):
    """Each group of the last axis's elements on a support of its own; a constraint of single elements.

    Args:
        supports: of one element of each group, or broadcastable to the group.
        columns: the groups' places.
    """

    def __init__(self, supports: Sequence[constraints.Constraint], columns: Columns) -> None:
        self.supports, self.columns = tuple(supports), columns

    @property
    def is_discrete(self) -> bool:
        """Whether some of the elements take a few values only, so that the vector as a whole has no slope."""
        return any(support.is_discrete for support in self.supports)

    @property
    def has_values(self) -> np.ndarray:
        """Which elements take a few values only, shape (d,)."""
        kinds = [
            np.full(len(own), support.is_discrete) for support, own in zip(self.supports, self.columns, strict=True)
        ]
        return np.concatenate(kinds)[order(self.columns)]

    def __call__(self, x: Any) -> Any:
        """Whether each element is on its support."""
        module = np if isinstance(x, np.ndarray) else jnp
        parts = [support(x[..., np.array(own)]) for support, own in zip(self.supports, self.columns, strict=True)]
        return module.concatenate(parts, -1)[..., order(self.columns)]

    def __repr__(self) -> str:
        said = (f"{support} in columns {list(own)}" for support, own in zip(self.supports, self.columns, strict=True))
        return "; ".join(said)

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        """Whether the other one is of the same columns and supports; NumPyro's ``==`` asks this too."""
        if not isinstance(other, ByColumns) or self.columns != other.columns:
            return False
        equal = [a.eq(b, static=static) for a, b in zip(self.supports, other.supports, strict=True)]
        return all(equal) if static else jnp.all(jnp.asarray(equal))

    def feasible_like(self, prototype: Any) -> Any:
        """Zeros, which every family has."""
        return jnp.zeros_like(prototype)

    def tree_flatten(self) -> Any:
        """The supports; the columns are static."""
        return (self.supports,), (("supports",), {"columns": self.columns})


def order(columns: Columns) -> np.ndarray:
    """Where each element of the event is among the groups' elements in a row."""
    return np.argsort(np.concatenate([np.array(own) for own in columns]))


def apart(x: Shaped[Array, "... d"], columns: Columns) -> list[Shaped[Array, "..."]]:
    """The groups' elements of the last axis."""
    return [x[..., np.array(own)] for own in columns]


def together(parts: Sequence[Shaped[Array, "..."]], columns: Columns) -> Float[Array, "... d"]:
    """The groups' elements, on their last axes, as one vector of floating numbers."""
    kind = jnp.result_type(float, *parts)
    return jnp.concatenate([jnp.asarray(part, kind) for part in parts], -1)[..., order(columns)]


@promote_batch_shape.register
def _promote(law: Mixed) -> Mixed:
    new = copy.copy(law)
    new.laws = tuple(promote_batch_shape(each) for each in law.laws)
    new._batch_shape = new.laws[0].batch_shape
    return new


@log_excess.register(Mixed)
def _log_excess(law: Mixed, x: Example) -> Float[Array, ""]:
    return sum((log_excess(own, part) for own, part in law.cut(x)), jnp.zeros(()))


@log_ahead.register(Mixed)
def _log_ahead(law: Mixed) -> Float[Array, ""]:
    return sum((log_ahead(own) for own in law.laws), jnp.zeros(()))


@from_noise.register(Mixed)
def _from_noise(law: Mixed, noise: Float[Array, "*event"]) -> Example:
    return together([from_noise(own, part) for own, part in law.cut(noise)], law.columns)


@mirrored.register(Mixed)
def _mirrored(law: Mixed, key: PRNGKeyArray, mirror: Bool[Array, ""]) -> Example:
    keys = jax.random.split(key, len(law.laws))
    draws = [mirrored(own, part, mirror) for part, own in zip(keys, law.laws, strict=True)]
    return together(draws, law.columns)


@between.register(Mixed)
def _between(proposal: Mixed, kernel: Mixed, share: Array) -> Mixed:
    pairs = zip(proposal.laws, kernel.laws, strict=True)
    return proposal.of([between(led, own, share) for led, own in pairs])


@known.register(Mixed)
def _known(law: Mixed, values: Example, mask: Bool[Array, "*event"]) -> tuple[Float[Array, ""], Mixed] | None:
    found = [known(*part) for part in law.cut(values, mask)]
    pairs = [pair for pair in found if pair is not None]
    return _summed(law, pairs) if len(pairs) == len(found) else None


@observed.register(Mixed)
def _observed(
    law: Mixed, loc: Real[Array, "..."], scale: Real[Array, "..."], gain: Real[Array, "..."]
) -> tuple[Float[Array, ""], Mixed] | None:
    """Of groups without a rule nothing may be seen."""
    pairs = []
    for own, *seen in law.cut(*(jnp.atleast_1d(part) for part in (loc, scale, gain))):
        unseen = jnp.where(jnp.all(jnp.isinf(seen[1])), 0.0, jnp.nan)
        pairs.append(observed(own, *seen) if observed.knows(own) else (unseen, own))
    return _summed(law, pairs)


@weighted.register(Mixed)
def _weighted(law: Mixed, log_weight: Callable[[Array], Array]) -> tuple[Float[Array, ""], Mixed]:
    """Groups of real numbers are left as they are: nothing may be said of them."""
    pairs = []
    for own, places in zip(law.laws, law.columns, strict=True):
        said = lambda value, places=places: jnp.broadcast_to(log_weight(value), law.event_shape)[np.array(places)]
        pairs.append(weighted(own, said) if weighted.knows(own) else (jnp.zeros(()), own))
    return _summed(law, pairs)


@kl_divergence.register(Mixed, Mixed)
def _kl_mixed(p: Mixed, q: Mixed) -> Array:
    """The groups' KLs in nats, added up."""
    return sum((event_kl(one, other) for one, other in zip(p.laws, q.laws, strict=True)), jnp.zeros(()))


def _summed(law: Mixed, pairs: Sequence[tuple[Array, dist.Distribution]]) -> tuple[Array, Mixed]:
    return sum((value for value, _ in pairs), jnp.zeros(())), law.of([product for _, product in pairs])
