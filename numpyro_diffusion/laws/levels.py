"""A normal law rounded to whole numbers: grey levels with an exact probability mass.

Level k has the probability that a normal draw is nearer to k than to any other level, the tails belonging to the levels
at the ends (Ho, Jain and Abbeel 2020, eq. 13): a probability mass, minus whose logarithm is the length of a code. The
logarithm of a difference of normal distribution functions is taken on the side where nothing cancels, and by the tail's
expansion far out, so that value and gradient are finite however far the mean is. Exact up to rounding; the tilt is that
of the normal law before rounding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from numpyro.distributions import constraints
from numpyro.util import is_prng_key

from .._checks import check_count
from .._shapes import Example
from .normal import FARTHEST
from .operations import elements, from_noise, rounded, tilt

# Where the tail's own expansion is as good as float32.
_FAR = -20.0


class DiscretisedNormal(dist.Distribution):
    """The whole number in 0 … num_levels − 1 that is nearest to a draw of N(loc, scale²); a true probability mass.

    P(k) = Φ((k + ½ − loc)/scale) − Φ((k − ½ − loc)/scale), with tails that belong to the levels at the ends
    ([DDPM 2020] eq. 13, in units of levels). `log_prob` is *exact*, its gradient finite however far `loc` is; it is
    −inf for other numbers. `sample` gives integers, and is no smooth function of the parameters.

    Args:
        loc: mean of the normal law, in levels.
        scale: its standard deviation, in levels, positive.
        num_levels: how many levels there are, at least 2.
        validate_args: NumPyro's validation switch.

    Raises:
        ValueError: `num_levels` is below 2.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("num_levels",)

    def __init__(
        self, loc: ArrayLike, scale: ArrayLike, num_levels: int = 256, *, validate_args: bool | None = None
    ) -> None:
        self.num_levels = check_count("num_levels", num_levels, 2)
        dtype = jnp.result_type(float, loc, scale)
        self.loc, self.scale = jnp.broadcast_arrays(jnp.asarray(loc, dtype), jnp.asarray(scale, dtype))
        super().__init__(self.loc.shape, (), validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of `loc` and `scale`; `num_levels`, a number, has no shape."""
        shapes = {name: kwargs[name] for name in ("loc", "scale") if name in kwargs}
        return super().infer_shapes(*args[:2], **shapes)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Whole numbers from 0 to num_levels − 1."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """Integers of shape (*sample_shape, *batch_shape)."""
        assert is_prng_key(key)
        noise = jax.random.normal(key, tuple(sample_shape) + self.batch_shape, self.loc.dtype)
        return jnp.clip(jnp.round(self.loc + self.scale * noise), 0, self.num_levels - 1).astype(int)

    def log_prob(self, value: ArrayLike) -> Array:
        """Log probability in nats, −inf off the levels."""
        value = jnp.asarray(value)
        inside = self.support(value)
        log_mass = log_interval(
            (value - self.loc) / self.scale, 1 / self.scale, value <= 0, value >= self.num_levels - 1
        )
        return jnp.where(inside, log_mass, -jnp.inf)

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """E[X] = Σ P(X ≥ k) over k = 1 … num_levels − 1."""
        return self._moments()[0]

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """E[X²] − E[X]², with E[X²] = Σ (2k − 1) P(X ≥ k)."""
        mean, square = self._moments()
        return square - jnp.square(mean)

    def _moments(self) -> tuple[Array, Array]:
        """E[X] and E[X²], level by level, so that no array of all levels exists."""

        def add(sums: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
            chance = jax.scipy.special.ndtr((self.loc - k + 0.5) / self.scale)
            return (sums[0] + chance, sums[1] + (2 * k - 1) * chance), None

        zero = jnp.zeros_like(self.loc)
        return jax.lax.scan(add, (zero, zero), jnp.arange(1, self.num_levels, dtype=self.loc.dtype))[0]


class _Interval(NamedTuple):
    """An interval turned so that its end nearer to the mean, `high`, is the one with the greater density.

    Attributes:
        high: that end.
        log_beyond: log Φ(high).
        decay: density at the other end over density at `high`, minus 1; in [−1, 0].
        log_share: log of the interval's share of the mass beyond `high`.
        turned: 1, or −1 if it was mirrored.
    """

    high: Array
    log_beyond: Array
    decay: Array
    log_share: Array
    turned: Array


@jax.custom_jvp
def log_interval(
    middle: Float[Array, "*shape"],
    width: Float[Array, "#*shape"],
    first: Bool[Array, "#*shape"],
    last: Bool[Array, "#*shape"],
) -> Float[Array, "*shape"]:
    """log(Φ(middle + width/2) − Φ(middle − width/2)), stable in both tails, with a finite gradient everywhere.

    Args:
        middle: of the interval.
        width: positive.
        first: whether the interval reaches to −∞.
        last: whether it reaches to ∞; not both.
    """
    found = _turn(middle, width, first, last)
    return found.log_beyond + found.log_share


@log_interval.defjvp
def _log_interval_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    found = _turn(*primals)
    # φ/Φ from the tail's expansion, since far out both logarithms are large and their difference is not.
    tail = jnp.minimum(found.high, _FAR)
    near = -0.5 * jnp.square(found.high) - 0.5 * jnp.log(2 * jnp.pi) - found.log_beyond
    log_hazard = jnp.where(found.high < _FAR, jnp.log(-tail) - jnp.log1p((3 / tail**2 - 1) / tail**2), near)
    rate = jnp.exp(log_hazard - found.log_share)
    change = -found.decay * found.turned * tangents[0] + (1 + 0.5 * found.decay) * tangents[1]
    return found.log_beyond + found.log_share, rate * change


def _turn(middle: Array, width: Array, first: Array, last: Array) -> _Interval:
    """Mirror the interval where it lies right of the mean, or reaches to ∞: then nothing cancels."""
    turned = jnp.where(first, 1.0, jnp.where(last | (middle > 0), -1.0, 1.0)).astype(middle.dtype)
    middle = turned * middle
    high, low = middle + width / 2, middle - width / 2
    # Far out the two logarithms agree in all their digits, and their difference has a form of its own.
    tail, log_beyond = jnp.minimum(high, _FAR), log_ndtr(high)
    gap = jnp.where(high < _FAR, -middle * width + jnp.log1p(-width / tail), log_beyond - log_ndtr(low))
    wide, narrow = jnp.maximum(gap, 0.5), jnp.minimum(gap, 0.5)
    share = jnp.where(gap > 0.5, jnp.log1p(-jnp.exp(-wide)), jnp.log(-jnp.expm1(-narrow)))
    end, decay = first | last, jnp.expm1(jnp.minimum(middle * width, 0.0))
    return _Interval(high, log_beyond, jnp.where(end, -1.0, decay), jnp.where(end, 0.0, share), turned)


def levels(loc: Float[Array, "*event"], scale: ArrayLike, num_levels: int) -> dist.Distribution:
    """Independent whole numbers 0 … num_levels − 1 with the shape of `loc` as one event; `scale` broadcasts."""
    return DiscretisedNormal(loc, scale, num_levels, validate_args=False).to_event(jnp.ndim(loc))


@rounded.register(dist.Normal)
def _rounded(law: dist.Distribution, num_levels: int) -> dist.Distribution:
    each = elements(law)
    return levels(jnp.broadcast_to(each.loc, law.event_shape), each.scale, num_levels)


@from_noise.register(DiscretisedNormal)
def _from_noise(law: dist.Distribution, noise: Float[Array, "*event"]) -> Example:
    each = elements(law)
    return jnp.clip(jnp.round(each.loc + each.scale * noise), 0, each.num_levels - 1)


@tilt.register(DiscretisedNormal)
def _tilt(law: dist.Distribution, gradient: Float[Array, "*event"]) -> dist.Distribution:
    # Of the normal law that is rounded: every level keeps some mass, so that weights can correct the rest.
    each = elements(law)
    loc = each.loc + each.scale * jnp.clip(each.scale * gradient, -FARTHEST, FARTHEST)
    return levels(loc, each.scale, each.num_levels)
