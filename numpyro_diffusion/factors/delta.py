"""Known coordinates.

Elements that are known make r a point mass, whose evidence is their marginal density, or their probability for bits and
classes: inpainting (Sohl-Dickstein et al. 2015, §2.5). A factorised law is conditioned exactly. In other coordinates
they stay known elements where T acts on single elements, with the density changed by |dz/dx|. Where an affine T mixes
elements they become a linear observation with noise of `LEAST_NOISE` standard deviations, which is *approximate*.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from .._checks import check_broadcast, check_finite, check_real, is_concrete
from .._shapes import Example
from .._structure import is_affine, is_elementwise
from ..laws import known
from .base import AbstractFactor
from .linear import LinearGaussian, PulledOperator

# Known elements that a transform mixes with others are observed with so much noise, of their own standard deviation:
# float32 knows no less, and no evidence differs by more than its square.
LEAST_NOISE = 1e-3


class Delta(AbstractFactor):
    """r(x) = δ(x − values) on the elements where `mask` is True: inpainting.

    The evidence ∫ p(x) r(x) dx is then the density (for bits and classes the probability) of the known elements.

    Args:
        values: the known values, shape `event`; anything finite where `mask` is False.
        mask: which elements are known, the same shape, boolean.

    Example:
        >>> known = nd.factors.Delta(jnp.array([1.0, 0.0]), jnp.array([True, False]))  # the first of two
        >>> known.log_r(jnp.array([1.0, 5.0])).tolist(), known.log_r(jnp.array([2.0, 5.0])).tolist()
        (0.0, -inf)

    Raises:
        ValueError: shapes that differ, a mask that is not boolean, values that are not finite, integers that the float
            type of draws does not hold.
    """

    values: Array
    mask: Array

    def __init__(self, values: Shaped[ArrayLike, "..."], mask: Shaped[ArrayLike, "..."]) -> None:
        check_finite("values", values)
        check_real("mask", mask)
        _check_whole(values, mask)
        self.values, mask = jnp.asarray(values), jnp.asarray(mask)
        if mask.dtype != bool:
            raise ValueError(f"mask: expected booleans, True where known, got {mask.dtype}")
        if mask.shape != self.values.shape:
            raise ValueError(f"mask: expected the shape of values, {self.values.shape}, got {mask.shape}")
        self.mask = mask

    def log_r(self, x: Shaped[Array, "..."]) -> Float[Array, ""]:
        """0 if the known elements have their values, else −inf."""
        return jnp.where(jnp.all((x == self.values) | ~self.mask), 0.0, -jnp.inf)

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def check(self, event_shape: tuple[int, ...], support: Constraint) -> None:
        """The values must be one example on the prior's support."""
        check_broadcast("values", self.values.shape, event_shape)
        if self.values.shape != tuple(event_shape):
            raise ValueError(f"values: expected the event shape {event_shape}, got {self.values.shape}")
        inside = support(self.values) | ~self.mask
        if is_concrete(inside) and not np.asarray(inside).all():
            raise ValueError(f"values: expected values on the prior's support, {support}, where known, got others")

    def multiply(self, law: dist.Distribution) -> tuple[Float[Array, ""], dist.Distribution] | None:
        """Exact: the law's density at the known values, and the law of the others."""
        return known(law, self.values, self.mask)

    def pull_back(self, transform: Transform, origin: Example) -> tuple[AbstractFactor, Float[Array, ""]]:
        """Known elements of z where T acts on each element; else, for an affine T, observations with little noise."""
        inside = transform.codomain(jnp.where(self.mask, self.values, transform(origin)))
        if is_concrete(inside) and not np.asarray(inside).all():
            raise ValueError(f"values: expected known values on the prior's support, {transform.codomain}, got others")
        if is_elementwise(transform, origin):
            z = jnp.where(self.mask, transform.inv(self.values), 0.0)
            slope = jnp.broadcast_to(transform.log_abs_det_jacobian(z, transform(z)), z.shape)
            return Delta(z, self.mask), -jnp.sum(jnp.where(self.mask, slope, 0.0))
        if not is_affine(transform, origin):
            kind = type(transform).__name__
            raise ValueError(f"factor: expected a transform that is affine, or acts on elements, for Delta, got {kind}")
        shift, operator = transform(origin), PulledOperator(None, transform)
        rows = jax.vmap(lambda z: operator(z.reshape(origin.shape)))(jnp.eye(origin.size))
        scale = LEAST_NOISE * jnp.sqrt(jnp.sum(jnp.square(rows), 0))
        left = jnp.where(self.mask, self.values - shift, 0.0)
        return LinearGaussian(left, operator, scale, mask=self.mask), jnp.zeros(())

    def fill(self, x: Shaped[Array, "*draws"]) -> Shaped[Array, "*draws"]:
        """The known values where `mask` is True."""
        return jnp.where(self.mask, self.values.astype(x.dtype), x)

    def observation_size(self, event_shape: tuple[int, ...]) -> int:
        """That of the example, unknown elements included."""
        return math.prod(event_shape)

    @property
    def fixes_elements(self) -> bool:
        """True."""
        return True


def _check_whole(values: ArrayLike, mask: ArrayLike) -> None:
    """Raise ``ValueError`` for known integers that would become others in draws, which are floating numbers."""
    if not is_concrete(values) or (known := np.asarray(values)).dtype.kind not in "iu":
        return
    dtype = jax.dtypes.canonicalize_dtype(float)
    counts = np.broadcast_to(mask, known.shape) if is_concrete(mask) and np.shape(mask) == known.shape else True
    bad = (known.astype(dtype).astype(np.float64) != known) & counts
    if bad.any():
        raise ValueError(f"values: expected whole numbers that {dtype} holds, got {known[bad].flat[0]} among others")
