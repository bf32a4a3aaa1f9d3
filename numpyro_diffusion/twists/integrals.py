"""∫ N(x; m, V) r(x) dx for any r: Laplace's approximation, corrected by importance sampling.

The mode of the integrand and its curvature there are found by damped Newton steps. A few fixed draws of N(m, V) and of
the normal law at the mode, weighted as one mixture, then give the integral (Tierney and Kadane 1986; mixture weights as
in Owen and Zhou 2000): the mode sees where a sharp or far-off r has its mass, the draws of N(m, V) what has two modes
or none. Where x has many elements the integral is replaced by its largest term, r(x*) exp(−½ |x* − m|²_V), which needs
products with the curvature only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .._products import dot, vdot
from .covariance import Covariance

LARGEST_DENSE = 32  # elements of x up to which curvature is a matrix
_FARTHEST = 10.0  # standard deviations of N(m, V) an element that one step may go
_SIZES = (1.0, 0.5, 0.2, 0.05, 0.0)  # of Newton's step, tried at once
_CLOSE = 0.1  # standard deviations of N(m, V) by which a last step may still move: draws make up for it
_SOLVES = 6  # products with the curvature for each of them, where it is no matrix
_LEAST = -1e18  # log ψ where no draw finds a positive r: still a weight, so that some particle is left


class Approximation(NamedTuple):
    """∫ N(x; centre, V) r(x) dx and where the product has its mass.

    Attributes:
        log_psi: log of the integral in nats, shape ().
        mean: E[x] under the product, shape `event`.
        precision: of the product at its mode in units of V, shape (d, d); None where only its products are known.
    """

    log_psi: Float[Array, ""]
    mean: Float[Array, "*event"]
    precision: Float[Array, "d d"] | None


class _Search(NamedTuple):
    """Newton's state: where it is, the curvature one step before, how many steps are left, the last step's length."""

    z: Array
    lower: Array
    precision: Array
    left: Array
    length: Array


def white_draws(count: int, size: int) -> Float[Array, "draws d"]:
    """`count` fixed antithetic draws of white noise, shape (count, size)."""
    half = jax.random.normal(jax.random.key(0), ((count + 1) // 2, size))
    return jnp.concatenate([half, -half])[:count]


def integrate(
    log_r: Callable[[Float[Array, "*event"]], Float[Array, ""]],
    centre: Float[Array, "*event"],
    covariance: Covariance,
    noise: Float[Array, "n d"],
    num_newton: int,
) -> Approximation:
    """∫ N(x; centre, V) r(x) dx: with curvature as a matrix for few elements, its largest term for many."""
    if covariance.root.shape[-1] > LARGEST_DENSE:
        return largest_term(log_r, centre, covariance, num_newton)
    return laplace(log_r, centre, covariance, noise, num_newton)


def laplace(
    log_r: Callable[[Float[Array, "*event"]], Float[Array, ""]],
    centre: Float[Array, "*event"],
    covariance: Covariance,
    noise: Float[Array, "n d"],
    num_newton: int,
) -> Approximation:
    """Newton's mode, and importance sampling by a mixture of N(centre, V) and the normal law at the mode."""
    size = noise.shape[1]
    value = lambda z: log_r(centre + covariance.lift(z))

    def lower_at(z: Array) -> tuple[Array, Array]:
        precision = jnp.eye(size) - jax.hessian(value)(z)
        return safe_cholesky((precision + precision.T) / 2)

    def newton(state: _Search) -> _Search:
        lower, precision = lower_at(state.z)
        gradient = jax.grad(value)(state.z) - state.z
        step = cho_solve((lower, True), jnp.where(jnp.isfinite(gradient), gradient, 0.0))
        step = step * jnp.minimum(1.0, _FARTHEST * math.sqrt(size) / jnp.maximum(jnp.linalg.norm(step), 1e-30))
        tried = state.z + jnp.asarray(_SIZES)[:, None] * step
        best = jnp.argmax(_number(jax.vmap(value)(tried) - 0.5 * jnp.sum(tried**2, 1)))
        length = jnp.asarray(_SIZES)[best] * jnp.linalg.norm(step)
        return _Search(tried[best], lower, precision, state.left - 1, length)

    start = _Search(jnp.zeros(size), jnp.eye(size), jnp.eye(size), jnp.asarray(num_newton), jnp.asarray(jnp.inf))
    search = jax.lax.while_loop(lambda state: (state.left > 0) & (state.length > _CLOSE), newton, start)
    mode, lower, precision = search.z, search.lower, search.precision
    near = mode + solve_triangular(lower, noise.T, lower=True, trans=1).T
    draws = jnp.concatenate([noise, near])
    log_normal = -0.5 * jnp.sum(draws**2, 1)
    log_near = jnp.sum(jnp.log(jnp.diagonal(lower))) - 0.5 * jnp.sum(dot(draws - mode, lower) ** 2, 1)
    log_weight = jax.vmap(value)(draws) + log_normal - jnp.logaddexp(log_normal, log_near) + math.log(2.0)
    log_weight = _number(log_weight)
    log_psi = logsumexp(log_weight) - math.log(len(draws))
    found = jnp.isfinite(log_psi)
    weight = jnp.where(found, jax.nn.softmax(jnp.where(found, log_weight, 0.0)), 1 / len(draws))
    # Also an order: a decomposition of it beside the solve above could wait for the same threads for ever.
    precision = jnp.where(found, precision, jnp.eye(size))
    return Approximation(jnp.maximum(log_psi, _LEAST), centre + covariance.lift(dot(weight, draws)), precision)


def safe_cholesky(precision: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """Cholesky factor of a symmetric matrix, and the matrix; made definite where it is not, by Gershgorin's circles."""
    size = len(precision)
    precision = jnp.where(jnp.all(jnp.isfinite(precision)), precision, jnp.eye(size))
    diagonal = jnp.diagonal(precision)
    lowest = jnp.min(diagonal - jnp.sum(jnp.abs(precision), 1) + jnp.abs(diagonal))
    definite = precision + jnp.maximum(0.5 - lowest, 0.0) * jnp.eye(size)
    both = jnp.linalg.cholesky(jnp.stack([precision, definite]))
    bad = jnp.any(jnp.isnan(both[0]))
    return jnp.where(bad, both[1], both[0]), jnp.where(bad, definite, precision)


def largest_term(
    log_r: Callable[[Float[Array, "*event"]], Float[Array, ""]],
    centre: Float[Array, "*event"],
    covariance: Covariance,
    num_newton: int,
) -> Approximation:
    """max_x N(x; centre, V) r(x) up to a constant, by Newton steps whose systems conjugate gradients solve.

    V preconditions them, so that its inverse is never needed: each direction p is kept with V⁻¹ p. A step shorter than
    a tenth of a standard deviation is the last.
    """
    gradient = jax.grad(log_r)

    def newton(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, pull, left, _ = state  # pull is V⁻¹ (x − centre)
        slope = gradient(x) - pull
        curve = lambda p, q: q - jax.jvp(gradient, (x,), (p,))[1]
        p, q = _solve(curve, jnp.where(jnp.isfinite(slope), slope, 0.0), covariance)
        goal = lambda size: log_r(x + size * p) - 0.5 * vdot(x + size * p - centre, pull + size * q)
        sizes = jnp.asarray(_SIZES)
        size = sizes[jnp.argmax(_number(jax.vmap(goal)(sizes)))]
        return x + size * p, pull + size * q, left - 1, size * jnp.sqrt(jnp.maximum(vdot(p, q), 0.0))

    start = centre, jnp.zeros_like(centre), jnp.asarray(num_newton), jnp.asarray(jnp.inf, centre.dtype)
    x, pull, *_ = jax.lax.while_loop(lambda state: (state[2] > 0) & (state[3] > _CLOSE), newton, start)
    log_psi = _number(log_r(x) - 0.5 * vdot(x - centre, pull))
    return Approximation(jnp.maximum(log_psi, _LEAST), x, None)


def _solve(curve: Callable[[Array, Array], Array], target: Array, covariance: Covariance) -> tuple[Array, Array]:
    """Preconditioned conjugate gradients, stopped where the curvature is not positive (Steihaug 1983).

    Returns:
        The solution d and V⁻¹ d; V · target, steepest ascent, where not even the first curvature is positive.
    """
    first = covariance.apply(target)

    def step(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        d, e, residual, p, q, size, going = state
        image = curve(p, q)
        curvature = vdot(p, image)
        going = going & (curvature > 0) & (size > 0)
        length = jnp.where(going, size / jnp.where(going, curvature, 1.0), 0.0)
        d, e, residual = d + length * p, e + length * q, residual - length * image
        lifted = covariance.apply(residual)
        new = vdot(residual, lifted)
        ratio = jnp.where(going, new / jnp.where(size > 0, size, 1.0), 0.0)
        return d, e, residual, lifted + ratio * p, residual + ratio * q, new, going

    zero = jnp.zeros_like(target)
    start = (zero, zero, target, first, target, vdot(target, first), jnp.asarray(True))
    d, e, *_ = jax.lax.fori_loop(0, _SOLVES, step, start)
    none = ~jnp.any(d != 0)
    return jnp.where(none, first, d), jnp.where(none, target, e)


def _number(log_weight: Array) -> Array:
    return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
