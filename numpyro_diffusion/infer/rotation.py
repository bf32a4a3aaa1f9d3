"""Moves that leave a tempered posterior invariant, built from rotations that leave a normal law invariant.

Rotations of position and momentum leave a standard normal law invariant, by any angle and in any dimension. As
proposals of a Metropolis step they are the preconditioned Crank–Nicolson method (Cotter, Roberts, Stuart and White
2013), and with kicks along the gradient of what is left of the energy Hamiltonian Monte Carlo on Hilbert spaces
(Beskos, Pinski, Sanz-Serna and Stuart 2011). Every step is *exactly* invariant for the tempered posterior; the
reference law decides how often it is accepted.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Point(NamedTuple):
    """A position and what the target is there.

    Attributes:
        z: position, shape (dimensions,).
        log_base: log density of the prior, in nats, shape (); −inf where it is no number.
        log_likelihood: likewise, of what is observed.
        undefined: whether either of the two was NaN or +inf.
        features: values whose mixing counts, one vector.
        gradient: of log_base + temperature × log_likelihood by z; 0, of shape (), where moves need none.
    """

    z: Array
    log_base: Array
    log_likelihood: Array
    undefined: Array
    features: Array
    gradient: Array


class Reference(NamedTuple):
    """A normal law of independent elements, near the target: moves rotate about its mean, in units of its scale."""

    loc: Float[Array, " d"]
    scale: Float[Array, " d"]


PointAt = Callable[[Array, Array], Point]


def reference(z: Float[Array, "n d"], is_noise: Bool[Array, " d"]) -> Reference:
    """The reference from equally weighted particles.

    Noise keeps its unit scale, and its mean moves only where the particles' mean is surely not 0, beyond the universal
    threshold √(2 log D / n) of Donoho and Johnstone 1994: thousands of noisy means would be a law that is further from
    the target, and one that each particle has had a part in. Other elements take the particles' mean and standard
    deviation.

    Args:
        z: shape (n, D).
        is_noise: shape (D,).
    """
    mean, deviation = z.mean(0), z.std(0)
    count, dimensions = z.shape
    threshold = 2 * math.log(max(dimensions, 2)) / count
    shrinkage = jnp.maximum(1 - threshold / jnp.maximum(jnp.square(mean), threshold), 0.0)
    scale = jnp.where(is_noise | (deviation <= 0), 1.0, deviation)
    return Reference(jnp.where(is_noise, shrinkage * mean, mean), scale)


def move(
    key: PRNGKeyArray,
    point_at: PointAt,
    point: Point,
    temperature: Float[Array, ""],
    angle: Float[Array, ""],
    count: Int[Array, ""],
    law: Reference,
) -> tuple[Point, Float[Array, ""]]:
    r"""One Metropolis step; *exactly* invariant for exp(log_base + temperature × log_likelihood), given `law`.

    Hamiltonian Monte Carlo that splits the energy into that of the normal reference, whose flow is a rotation of
    position and momentum and is exact, and the rest, whose flow is a kick along the gradient: Beskos, Pinski,
    Sanz-Serna and Stuart 2011, "Hybrid Monte Carlo on Hilbert spaces". Where the likelihood is flat every step is
    accepted, in any dimension. Without kicks, and with one rotation, it is the preconditioned Crank-Nicolson step of
    Cotter, Roberts, Stuart and White 2013. The angle varies at random about the given one, by draw, so that no
    trajectory has the period of the target: half a period would bring it to the mirror image of where it began.

    Args:
        key: JAX random key.
        point_at: (z, temperature) → `Point`; without kicks where its gradient has shape ().
        point: where it begins.
        temperature: power of the likelihood, shape ().
        angle: of one rotation, shape ().
        count: how many rotations.
        law: the reference.

    Returns:
        The next point, and the probability with which the proposal was accepted, shape ().
    """
    first, second, third = jax.random.split(key, 3)
    turn = angle * jax.random.uniform(second, minval=0.3, maxval=1.2)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    kicks = point.gradient.ndim > 0
    force = lambda v, point: point.gradient * law.scale + v if kicks else jnp.zeros_like(v)

    def leap(_: Array, carry: tuple[Array, Array, Point]) -> tuple[Array, Array, Point]:
        v, momentum, point = carry
        momentum = momentum + turn / 2 * force(v, point)
        v, momentum = cos * v + sin * momentum, cos * momentum - sin * v
        point = point_at(law.loc + law.scale * v, temperature)
        return v, momentum + turn / 2 * force(v, point), point

    momentum = jax.random.normal(first, point.z.shape)
    v = (point.z - law.loc) / law.scale
    _, last, new = jax.lax.fori_loop(0, count, leap, (v, momentum, point))
    log_ratio = _energy(point, momentum, temperature) - _energy(new, last, temperature)
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, jnp.minimum(log_ratio, 0.0))
    accept = jnp.log(jax.random.uniform(third)) < log_ratio
    return jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, point), jnp.exp(log_ratio)


def _energy(point: Point, momentum: Array, temperature: Array) -> Array:
    return 0.5 * jnp.sum(jnp.square(momentum)) - point.log_base - temperature * point.log_likelihood
