"""Normal laws that do not integrate to one: what powers of normal laws, multiplied together, are.

A product of powers of normal densities, Π N(x; m_i, s_i²)^{β_i}, is a normal density of precision Σ β_i/s_i² times a
constant that depends on where the m_i are. The kernels of a product of priors are of this kind, and the weights of
particles have to count the constants. All of it is exact, as long as the precision is positive. The law that is drawn
and the density that counts may differ, by the log ratio `laws.log_excess`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from .._shapes import Example
from .operations import Operation, elements, log_ahead, log_excess

_LOG_2PI = 1.8378770664093453


class UnnormalisedNormal(dist.Normal):
    """A normal law times a constant, which is drawn, moved and multiplied as another normal law if that is known.

    As a NumPyro distribution it is the law that is drawn. `laws.log_excess` is what the density that counts has more.

    Args:
        loc: mean of each element under the density that counts.
        scale: its standard deviation.
        log_mass: log of what it integrates to over the whole event, in nats, shape ().
        drawn: mean and standard deviation of the law that is drawn; `loc` and `scale` unless given.
        log_ahead: log of about what is still to be gained from here on, in nats, shape (); `log_mass` unless given.
    """

    pytree_data_fields = ("counted_loc", "counted_scale", "mass", "ahead")

    def __init__(
        self,
        loc: Float[Array, "*event"],
        scale: Float[Array, "*event"],
        log_mass: Float[Array, ""],
        drawn: tuple[Array, Array] | None = None,
        log_ahead: Float[Array, ""] | None = None,
    ) -> None:
        self.counted_loc, self.counted_scale, self.mass = loc, scale, log_mass
        self.ahead = log_mass if log_ahead is None else log_ahead
        super().__init__(*((loc, scale) if drawn is None else drawn), validate_args=False)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of `loc` and `scale`; the rest says nothing of single elements."""
        shapes = {name: kwargs[name] for name in ("loc", "scale") if name in kwargs}
        return super().infer_shapes(*args[:2], **shapes)


@log_excess.register(UnnormalisedNormal)
def _log_excess(law: dist.Distribution, x: Example) -> Float[Array, ""]:
    each = elements(law)
    counted = -0.5 * ((x - each.counted_loc) / each.counted_scale) ** 2 - jnp.log(each.counted_scale)
    drawn = -0.5 * ((x - each.loc) / each.scale) ** 2 - jnp.log(each.scale)
    return each.mass + jnp.sum(counted - drawn)


@log_ahead.register(UnnormalisedNormal)
def _log_ahead(law: dist.Distribution) -> Float[Array, ""]:
    return elements(law).ahead


def drawn_as(law: dist.Distribution, drawn: dist.Distribution, ahead: Float[Array, ""]) -> dist.Distribution:
    """The same density, drawn as another normal law; `ahead` as in `UnnormalisedNormal`."""
    other = elements(drawn)
    new = UnnormalisedNormal(*counted(law), (other.loc, other.scale), ahead)
    return new.to_event(jnp.ndim(other.loc))


class Backward(NamedTuple):
    """A step of noise x_t ~ N(slope · x_s + …, variance) at a known x_t, as a function of x_s.

    Attributes:
        slope: how much of x_s is left in x_t.
        variance: of the noise.
        residual: from a point to x_t less the mean of x_t there; shape `event` to shape `event`.
    """

    slope: ArrayLike
    variance: ArrayLike
    residual: Any


def pooled(
    laws: Sequence[dist.Distribution],
    powers: Float[Array, " laws"],
    backward: Backward | None = None,
    least: float = 0.5,
) -> dist.Distribution:
    """Π law_i^power_i times `backward` to the power 1 − Σ power_i, as an `UnnormalisedNormal`; *exact*.

    Where powers add up to more than one, noise that is narrower than the laws could leave nothing to integrate. Its
    variance is then taken to be so much larger that the product has the share `least` of the widest law's precision.

    Args:
        laws: factorised normal laws of one event, normalised or not.
        powers: positive, shape (len(laws),).
        backward: none counts unless given.
        least: in (0, 1].

    Raises:
        TypeError: laws that are not normal.
    """
    normals = [counted(law) for law in laws]
    # Everything is about the mean of the first law, near which all others are: their constants are then small.
    centre = normals[0][0]
    shape = jnp.shape(centre)
    total, linear, constant = jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(shape)
    log_mass, unlike = jnp.zeros(()), jnp.ones(())  # the latter: factors of √2π that are left over
    widest = jnp.full(shape, jnp.inf)
    # Law by law, and not stacked: XLA of JAX 0.12 has been seen to lose one of two stacked laws' terms on a CPU.
    for power, (loc, scale, mass) in zip(powers, normals, strict=True):
        precision, shift = scale**-2, loc - centre
        total, linear = total + power * precision, linear + power * precision * shift
        constant = constant + power * 0.5 * (jnp.log(precision) - precision * shift**2)
        log_mass, unlike = log_mass + power * mass, unlike - power
        widest = jnp.minimum(widest, precision)
    if backward is not None:
        left, unlike = unlike, jnp.zeros(())
        noise = jnp.broadcast_to(backward.variance, shape)
        largest = jnp.where(left < 0, (left - 1 + least) / jnp.where(left < 0, left, 1.0), jnp.inf)
        own = backward.slope**2 / noise
        noise = noise * jnp.maximum(own / (largest * widest), 1.0)
        residual = backward.residual(centre)
        total = total + left * backward.slope**2 / noise
        linear = linear + left * backward.slope * residual / noise
        constant = constant - left * 0.5 * (jnp.log(noise) + residual**2 / noise)
    log_mass = log_mass + jnp.sum(constant + 0.5 * (linear**2 / total - jnp.log(total) + unlike * _LOG_2PI))
    return UnnormalisedNormal(centre + linear / total, 1 / jnp.sqrt(total), log_mass).to_event(len(shape))


@Operation
def counted(law: dist.Distribution) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, ""]]:
    """Mean and standard deviation of each element of a normal law's density, and the log of what it integrates to."""
    raise counted.refuse(law)


@counted.register(dist.Normal)
def _of_normal(law: dist.Distribution) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, ""]]:
    each = elements(law)
    return jnp.asarray(each.loc), jnp.asarray(each.scale), jnp.zeros(())


@counted.register(UnnormalisedNormal)
def _of_unnormalised(law: dist.Distribution) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, ""]]:
    each = elements(law)
    return each.counted_loc, each.counted_scale, each.mass
