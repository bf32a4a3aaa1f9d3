"""Laws that exact multiplication makes: a normal with a covariance lowered in a few directions, partly known values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from ..diffusions.binomial import posterior_logits

# The largest part of a direction's variance that a correction may take away: keeps densities finite where an
# approximate covariance would take more than there is.
LARGEST_SHARE = 1 - 1e-6


class LoweredNormal(dist.Distribution):
    r"""N(loc, D^{1/2} (I − W Wᵀ) D^{1/2}) for diagonal D: a diagonal normal that m observations have made narrower.

    Args:
        loc: mean, shape `event`.
        scale: square root of D, shape `event`.
        directions: W as rows, shape (m, *event); singular values above 1 are lowered to 1 − 1e-6.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("loc", "scale", "basis", "kept")

    def __init__(self, loc: Array, scale: Array, directions: Array) -> None:
        rows = directions.reshape(directions.shape[0], -1)
        share, rotation = jnp.linalg.eigh(rows @ rows.T)
        share = jnp.clip(share, 0.0)
        unit = (rotation.T @ rows) / jnp.sqrt(jnp.where(share > 1e-12, share, 1.0))[:, None]
        self.loc, self.scale = loc, scale
        self.kept = 1 - jnp.minimum(jnp.where(share > 1e-12, share, 0.0), LARGEST_SHARE)
        self.basis = unit.reshape(directions.shape)
        super().__init__((), jnp.shape(loc), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real, one event."""
        return constraints.independent(constraints.real, jnp.ndim(self.loc))

    @property
    def mean(self) -> Array:
        """The mean, shape `event`."""
        return self.loc

    @property
    def variance(self) -> Array:
        """Variance of each element, shape `event`."""
        taken = jnp.tensordot(1 - self.kept, self.basis**2, 1)
        return self.scale**2 * (1 - taken)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape (*sample_shape, *event)."""
        noise = jax.random.normal(key, (*sample_shape, *self.event_shape), dtype=jnp.result_type(self.loc))
        along = jnp.tensordot(noise, self.basis, (self._axes(noise), self._axes(self.basis)))
        return self.loc + self.scale * (noise + jnp.tensordot(along * (jnp.sqrt(self.kept) - 1), self.basis, 1))

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density in nats, exact."""
        del intermediates
        noise = (value - self.loc) / self.scale
        along = jnp.tensordot(noise, self.basis, (self._axes(noise), self._axes(self.basis)))
        square = jnp.sum(noise**2, self._axes(noise)) + jnp.sum(along**2 * (1 / self.kept - 1), -1)
        log_det = 2 * jnp.sum(jnp.log(self.scale)) + jnp.sum(jnp.log(self.kept))
        return -0.5 * (square + log_det + self.loc.size * jnp.log(2 * jnp.pi))

    def _axes(self, array: Array) -> tuple[int, ...]:
        return tuple(range(array.ndim - jnp.ndim(self.loc), array.ndim))


class PartlyKnown(dist.Distribution):
    """A factorised law with some elements known: a density over the others.

    Args:
        law: factorised law of one event (`Independent`).
        values: the known values, shape `event`; anything where `mask` is False.
        mask: which elements are known, shape `event`.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("law", "values", "mask")

    def __init__(self, law: dist.Distribution, values: Array, mask: Array) -> None:
        self.law, self.values, self.mask = law, values, mask
        super().__init__((), law.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The law's."""
        return self.law.support

    @property
    def mean(self) -> Array:
        """The known values, and the law's mean elsewhere."""
        return jnp.where(self.mask, self.values, self.law.mean)

    @property
    def variance(self) -> Array:
        """0 where known, and the law's variance elsewhere."""
        return jnp.where(self.mask, 0.0, self.law.variance)

    @property
    def logits(self) -> Array:
        """Log-odds of bits, infinite where known."""
        return jnp.where(self.mask, jnp.where(self.values > 0.5, jnp.inf, -jnp.inf), posterior_logits(self.law))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape (*sample_shape, *event), with the known values in them."""
        draws = self.law.sample(key, sample_shape)
        return jnp.where(self.mask, self.values.astype(draws.dtype), draws)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log density of the unknown elements in nats; the known ones are taken for granted."""
        del intermediates
        each = elements(self.law).log_prob(value)
        return jnp.sum(jnp.where(self.mask, 0.0, each), tuple(range(-len(self.event_shape), 0)))


def elements(law: dist.Distribution) -> dist.Distribution:
    """The law of single elements of a factorised law of one event."""
    return law.base_dist if isinstance(law, dist.Independent) else law
