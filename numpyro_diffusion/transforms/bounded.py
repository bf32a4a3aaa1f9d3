"""Elements with bounds of their own: from all real numbers to where positive, bounded and free elements lie.

x is a logarithm's or a logit's inverse of z, or z itself, element by element: an increasing bijection from real numbers
to between the bounds, with the log Jacobian as a sum over elements, so that densities change by a known amount and
known elements stay known. *Exact*, but that exponents are cut at `LARGEST` and shares at the rounding of the floating
type, so that no x lies on a bound.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import biject_to
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from .._checks import check_real, is_concrete

LARGEST = 80.0  # exponents beyond which float32 has no number


class Between(Constraint[Any]):
    """Numbers between bounds of their own, the bounds included; infinite ones are none.

    Args:
        low: lower bounds.
        high: upper bounds, of the same shape.
    """

    def __init__(self, low: ArrayLike, high: ArrayLike) -> None:
        self.low, self.high = low, high

    def __call__(self, x: Any) -> Any:
        """Whether each number is."""
        return (x >= self.low) & (x <= self.high)

    def __repr__(self) -> str:
        return f"Between({self.low}, {self.high})"

    def feasible_like(self, prototype: Any) -> Any:
        """The middle, or what is 1 beyond the only bound."""
        return Bounded(self.low, self.high)(jnp.zeros(jnp.shape(prototype)))

    def tree_flatten(self) -> Any:
        """The bounds, and their names."""
        return (self.low, self.high), (("low", "high"), {})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether another one has the same bounds."""
        return isinstance(other, Between) and equal((self.low, self.high), (other.low, other.high), static)


class Bounded(Transform[Any]):
    """x = T(z), element by element: low + exp(z), high − exp(−z), low + (high − low) σ(z), or z itself.

    Which of them, the bounds say: a lower one alone, an upper one alone, both, or none, which is what infinite bounds
    are. Every element increases with its z. So a log, or a logit, of the elements that are positive, or bounded, and
    closed forms for known elements (`nd.factors.Delta`), as each x is made of its z alone.

    Args:
        low: lower bounds, shape `event` or one that broadcasts to it; −inf for none.
        high: upper bounds, likewise; inf for none.

    Raises:
        TypeError: no real numbers.
        ValueError: bounds that are NaN, or not above each other.
    """

    def __init__(self, low: ArrayLike, high: ArrayLike) -> None:
        check_real("low", low)
        check_real("high", high)
        if is_concrete(low) and is_concrete(high) and not np.all(np.asarray(low) < np.asarray(high)):
            raise ValueError(f"low, high: expected lower bounds below the upper ones, got {low!s:.80} and {high!s:.80}")
        self.low, self.high = jnp.asarray(low, float), jnp.asarray(high, float)

    @property
    def codomain(self) -> Constraint[Any]:
        """Between the bounds."""
        return Between(self.low, self.high)

    @property
    def sign(self) -> int:
        """1, as all elements increase."""
        return 1

    def __call__(self, x: Any) -> Any:
        """The element of each real number."""
        own = self._kinds()
        grown = jnp.exp(jnp.clip(jnp.where(own.above, x, jnp.where(own.below, -x, 0.0)), -LARGEST, LARGEST))
        share = jnp.clip(jax.nn.sigmoid(jnp.where(own.both, x, 0.0)), own.rounding, 1 - own.rounding)
        found = jnp.where(own.both, own.low + (own.high - own.low) * share, x)
        return jnp.where(own.above, own.low + grown, jnp.where(own.below, own.high - grown, found))

    def _inverse(self, y: Any) -> Any:
        own, least = self._kinds(), np.exp(-LARGEST)
        left = jnp.where(own.above, y - own.low, jnp.where(own.below, own.high - y, 1.0))
        log = jnp.log(jnp.maximum(left, least))
        share = jnp.where(own.both, (y - own.low) / jnp.where(own.both, own.high - own.low, 1.0), 0.5)
        share = jnp.clip(share, own.rounding, 1 - own.rounding)
        found = jnp.where(own.both, jnp.log(share) - jnp.log1p(-share), y)
        return jnp.where(own.above, log, jnp.where(own.below, -log, found))

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """log dx/dz of every element."""
        own = self._kinds()
        z = jnp.where(own.both, x, 0.0)
        span = jnp.log(jnp.where(own.both, own.high - own.low, 1.0))
        found = jnp.where(own.both, span + jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z), 0.0)
        return jnp.where(own.above, x, jnp.where(own.below, -x, found)) + jnp.zeros_like(y)

    def _kinds(self) -> "_Kinds":
        low, high = jnp.isfinite(self.low), jnp.isfinite(self.high)
        finite = jnp.where(low, self.low, 0.0), jnp.where(high, self.high, 0.0)
        return _Kinds(low & ~high, high & ~low, low & high, *finite, float(jnp.finfo(self.low.dtype).eps))

    def tree_flatten(self) -> Any:
        """The bounds, and their names."""
        return (self.low, self.high), (("low", "high"), {})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether another one has the same bounds."""
        return isinstance(other, Bounded) and equal((self.low, self.high), (other.low, other.high), static)


class _Kinds(NamedTuple):
    """Which elements have a lower bound alone, an upper one alone, both; the bounds, 0 for none."""

    above: Array
    below: Array
    both: Array
    low: Array
    high: Array
    rounding: float


def equal(one: tuple[Any, ...], other: tuple[Any, ...], static: bool) -> Any:
    """Whether all the arrays of two transforms are the same."""
    pairs = list(zip(one, other, strict=True))
    if static:
        return all(a is b or (is_concrete(a) and is_concrete(b) and np.array_equal(a, b)) for a, b in pairs)
    return jnp.all(jnp.stack([jnp.array_equal(a, b) for a, b in pairs]))


@biject_to.register(Between)
def _to_between(constraint: Between) -> Bounded:
    """What HMC and variational inference move in."""
    return Bounded(constraint.low, constraint.high)
