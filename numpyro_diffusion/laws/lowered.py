"""What exact multiplication makes of a normal law: one with a covariance that is lowered in a few directions.

An observation of m linear combinations lowers the covariance of a normal law by a matrix of rank m. Kept as a scale for
each element and m directions, the law has draws, variances and an exact density at a cost in proportion to m d, where a
full covariance costs d³. No direction loses more than the share `LARGEST_SHARE` of its variance, so that approximate
covariances, which may ask for more than there is, still have a density.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from .._products import dot, tensordot

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
    pytree_data_fields = ("loc", "scale", "basis", "remaining")

    def __init__(
        self, loc: Float[Array, "*event"], scale: Float[Array, "*event"], directions: Float[Array, " m *event"]
    ) -> None:
        rows = directions.reshape(directions.shape[0], -1)
        share, rotation = jnp.linalg.eigh(dot(rows, rows.T))
        share = jnp.clip(share, 0.0)
        unit = dot(rotation.T, rows) / jnp.sqrt(jnp.where(share > 1e-12, share, 1.0))[:, None]
        self.loc, self.scale = loc, scale
        self.remaining = 1 - jnp.minimum(jnp.where(share > 1e-12, share, 0.0), LARGEST_SHARE)
        self.basis = unit.reshape(directions.shape)
        super().__init__((), jnp.shape(loc), validate_args=False)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The whole of `loc` is the event; NumPyro's own rule is for laws of numbers."""
        return (), tuple(args[0] if args else kwargs["loc"])

    @property
    def support(self) -> constraints.Constraint:
        """Real, one event."""
        return constraints.independent(constraints.real, jnp.ndim(self.loc))

    @property
    def mean(self) -> Float[Array, "*event"]:
        """The mean, shape `event`."""
        return self.loc

    @property
    def variance(self) -> Float[Array, "*event"]:
        """Variance of each element, shape `event`."""
        taken = tensordot(1 - self.remaining, self.basis**2, 1)
        return self.scale**2 * (1 - taken)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws of shape (*sample_shape, *event)."""
        noise = jax.random.normal(key, (*sample_shape, *self.event_shape), dtype=jnp.result_type(self.loc))
        along = tensordot(noise, self.basis, (self._axes(noise), self._axes(self.basis)))
        return self.loc + self.scale * (noise + tensordot(along * (jnp.sqrt(self.remaining) - 1), self.basis, 1))

    def log_prob(self, value: Float[Array, "..."], intermediates: Any = None) -> Float[Array, "..."]:
        """Log density in nats, exact."""
        del intermediates
        noise = (value - self.loc) / self.scale
        along = tensordot(noise, self.basis, (self._axes(noise), self._axes(self.basis)))
        square = jnp.sum(noise**2, self._axes(noise)) + jnp.sum(along**2 * (1 / self.remaining - 1), -1)
        log_det = 2 * jnp.sum(jnp.log(self.scale)) + jnp.sum(jnp.log(self.remaining))
        return -0.5 * (square + log_det + self.loc.size * jnp.log(2 * jnp.pi))

    def _axes(self, array: Array) -> tuple[int, ...]:
        return tuple(range(array.ndim - jnp.ndim(self.loc), array.ndim))
