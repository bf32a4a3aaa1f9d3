"""Single elements of x, observed in Gaussian noise.

r(x) = N(loc; gain · x, scale²), every element by itself: a noisy look at x, or a belief about it. Its product with
independent normal elements is normal, with precisions that add up, and its constant the density of the observation:
both *exact*. An infinite scale stands for an element that is not observed. In coordinates x = T(z) it stays of this
kind where T is affine and acts on single elements, and becomes a `LinearGaussian` where an affine T mixes them.
"""

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from .._checks import check_broadcast, checked_location, checked_scale, is_concrete
from .._numbers import check_rounding
from .._shapes import Example
from .._structure import is_affine, is_elementwise
from ..laws import observed
from .base import AbstractFactor
from .linear import LinearGaussian


class Gaussian(AbstractFactor):
    """r(x) = N(loc; gain · x, scale²): every element of x observed in independent noise, or believed to be near `loc`.

    Args:
        loc: the observation, broadcastable to one example.
        scale: standard deviation, likewise, positive; ``inf`` where an element is not observed (its factor is 1).
        gain: what x is multiplied by before it is observed, likewise.

    Example:
        >>> reading = nd.factors.Gaussian(jnp.array([1.0, 0.0]), jnp.array([0.5, jnp.inf]))  # inf: not observed
        >>> bool(reading.log_r(jnp.array([1.0, 9.0])) == reading.log_r(jnp.array([1.0, -9.0])))
        True

    Raises:
        ValueError: `loc` or `gain` not finite, `scale` not positive; numbers too large or too small to compute with;
            a `loc` that the float type rounds by more than a tenth of `scale`.
    """

    loc: Array
    scale: Array
    gain: Array

    def __init__(self, loc: ArrayLike, scale: ArrayLike, gain: ArrayLike = 1.0) -> None:
        self.loc, self.gain = checked_location("loc", loc), checked_location("gain", gain)
        self.scale = checked_scale("scale", scale, may_be_infinite=True)
        check_rounding("loc", loc, scale)

    def log_r(self, x: Shaped[Array, "..."]) -> Float[Array, ""]:
        """log N(loc; gain · x, scale²) in nats, over the observed elements."""
        noise, seen = self._noise()
        each = dist.Normal(self.gain * x, noise, validate_args=False).log_prob(self.loc)
        return jnp.sum(jnp.where(seen, each, 0.0))

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def check(self, event_shape: tuple[int, ...], support: Constraint) -> None:
        """`loc`, `scale` and `gain` must broadcast to one example, real where something is observed."""
        self.check_kind(support, False, np.isfinite(self.scale) if is_concrete(self.scale) else None)
        for name in ("loc", "scale", "gain"):
            check_broadcast(name, getattr(self, name).shape, event_shape)

    def multiply(self, law: dist.Distribution) -> tuple[Float[Array, ""], dist.Distribution] | None:
        """The product of normals, element by element."""
        return observed(law, self.loc, self.scale, self.gain) if observed.knows(law) else None

    def observation_size(self, event_shape: tuple[int, ...]) -> int:
        """That of the example, hidden elements included."""
        return math.prod(event_shape)

    def linear(self, event_shape: tuple[int, ...]) -> "LinearGaussian":
        """The same as a `LinearGaussian`, its observation that of the whole example."""
        noise, seen = (jnp.broadcast_to(part, event_shape) for part in self._noise())
        observation, gain = (jnp.broadcast_to(part, event_shape) for part in (self.loc, self.gain))
        return LinearGaussian(observation, Partial(jnp.multiply, gain), noise, mask=seen)

    def pull_back(self, transform: Transform, origin: Example) -> tuple[AbstractFactor, Float[Array, ""]]:
        """Single elements of z where an affine T acts on each element; a linear observation where T is affine."""
        if not is_affine(transform, origin):
            return super().pull_back(transform, origin)
        if not is_elementwise(transform, origin):
            return self.linear(origin.shape).pull_back(transform, origin)
        shift = transform(origin)
        gain = transform(jnp.ones_like(origin)) - shift
        return Gaussian(self.loc - self.gain * shift, self.scale, self.gain * gain), jnp.zeros(())

    def _noise(self) -> tuple[Array, Array]:
        """Standard deviations, 1 where nothing is observed, and where something is."""
        seen = jnp.isfinite(self.scale)
        return jnp.where(seen, self.scale, 1.0), seen
