"""The toy problems of Sohl-Dickstein et al. 2015, with their exact laws.

A bound can be judged where the truth is known. Each heartbeat has probability 1/period, *exactly*. The density of the
noisy swiss roll is an integral along its curve, by Gauss–Legendre quadrature to 1e-6 nats in float64; without noise the
roll has none, which is refused. Its scale comes in closed form from the law, and not from the points drawn, so that
draws and densities have the same units. The paper (sections 3.1.1 and 3.1.2) does not print the roll's formula, and the
usual one is taken.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from .._checks import check_count, check_key, check_scalar

_INNER, _OUTER = 1.5 * math.pi, 4.5 * math.pi  # the roll's first and last angle, in radians


def swiss_roll(key: PRNGKeyArray, num_samples: int, noise: float = 0.0) -> Float[Array, "num_samples 2"]:
    """Draw points of the two-dimensional swiss roll, scaled to unit variance.

    x = c (φ (cos φ, sin φ) + noise · ε), with φ = 1.5π (1 + 2u), u ~ U(0, 1), ε ~ N(0, I), and
    c = `swiss_roll_scale(noise)`. The mean is not removed: before scaling it is (2, 2/(3π)).

    Args:
        key: JAX key.
        num_samples: number of points.
        noise: standard deviation of the noise before scaling, at least 0.

    Raises:
        ValueError: if `num_samples` is not positive, or `noise` is negative or not finite.

    Source: Sohl-Dickstein et al. 2015, section 3.1.1, which does not print the roll's formula; this is the
    usual one.
    """
    scale = swiss_roll_scale(noise)
    angle_key, noise_key = jax.random.split(check_key("key", key))
    shape = (check_count("num_samples", num_samples),)
    angle = jax.random.uniform(angle_key, shape, minval=_INNER, maxval=_OUTER)
    points = angle[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return scale * (points + noise * jax.random.normal(noise_key, points.shape))


def swiss_roll_scale(noise: float = 0.0) -> float:
    """Return the constant by which the swiss roll is multiplied to have unit variance.

    c = (½ tr Cov)^(−½) of the unscaled law, so that the variances of the two coordinates average 1. In closed
    form ½ tr Cov = ½ (9.75π² − 4 − 4/(9π²)) + noise²: the mean of φ² over the angles is 9.75π², and the mean
    point is (2, 2/(3π)).

    Args:
        noise: standard deviation of the noise before scaling, at least 0.

    Raises:
        ValueError: if `noise` is negative or not finite.
    """
    noise = _check_noise(noise)
    return ((9.75 * math.pi**2 - 4 - 4 / (9 * math.pi**2)) / 2 + noise**2) ** -0.5


def swiss_roll_log_prob(x: ArrayLike, noise: float) -> Float[Array, "..."]:
    """Return the exact log density of the noisy swiss roll, in nats, in the scaled units of `swiss_roll`.

    log ∫₀¹ N(x; c · roll(u), (c · noise)² I) du by Gauss–Legendre quadrature, eight nodes on each stretch of
    the roll no longer than `noise`. The error is below 1e-6 nats in float64; float32 rounds in about the
    fifth digit. The work grows as 1/noise.

    Args:
        x: points, of shape (..., 2).
        noise: standard deviation of the noise before scaling; a positive Python number.

    Returns:
        Array of shape (...).

    Raises:
        ValueError: if `noise` is not positive (the law then lies on a curve and has no density) or not
            finite, or the last axis of `x` is not 2.
    """
    if _check_noise(noise) == 0:
        raise ValueError("noise: expected a positive number, since a roll without noise has no density, got 0")
    x = jnp.asarray(x, jnp.result_type(float, x))
    if x.shape[-1:] != (2,):
        raise ValueError(f"x: expected shape (..., 2), got {x.shape}")
    scale = swiss_roll_scale(noise)
    points, log_weights = _roll_quadrature(noise)
    nodes = jnp.asarray(scale * points, x.dtype)
    variance = (scale * noise) ** 2

    def log_prob(point: Float[Array, " 2"]) -> Float[Array, ""]:
        squares = jnp.sum((point - nodes) ** 2, axis=-1)
        return jax.nn.logsumexp(log_weights - squares / (2 * variance)) - math.log(2 * math.pi * variance)

    # Many points at many nodes would not fit into memory at once.
    batch_size = max(1, 2**21 // len(nodes))
    return jax.lax.map(log_prob, x.reshape(-1, 2), batch_size=batch_size).reshape(x.shape[:-1])


def heartbeat(
    key: PRNGKeyArray, num_samples: int, length: int = 20, period: int = 5
) -> Int[Array, "num_samples length"]:
    """Draw binary sequences with a one in every `period`-th bin, at a phase uniform over the period.

    The true log likelihood of each of the `period` sequences is −log(period).

    Args:
        key: JAX key.
        num_samples: number of sequences.
        length: bins in a sequence.
        period: bins between ones, at most `length`.

    Returns:
        int32 array of zeros and ones.

    Raises:
        ValueError: if a size is not positive, or `period` exceeds `length`.

    Source: Sohl-Dickstein et al. 2015, section 3.1.2 (length 20, period 5).
    """
    states = heartbeat_states(length, period)
    phases = jax.random.randint(check_key("key", key), (check_count("num_samples", num_samples),), 0, len(states))
    return states[phases]


def heartbeat_states(length: int = 20, period: int = 5) -> Int[Array, "period length"]:
    """Return every valid heartbeat; row i has its first one in bin i.

    Raises:
        ValueError: if a size is not positive, or `period` exceeds `length`.
    """
    length, period = check_count("length", length), check_count("period", period)
    if period > length:
        raise ValueError(f"period: expected at most the length, {length}, got {period}")
    bins = jnp.arange(length, dtype=jnp.int32)
    phases = jnp.arange(period, dtype=jnp.int32)
    return (bins % period == phases[:, None]).astype(jnp.int32)


def _roll_quadrature(noise: float) -> tuple[Float[np.ndarray, "nodes 2"], Float[np.ndarray, " nodes"]]:
    """Return points of the unscaled roll and the log weights of a mean over it, in float64."""
    longest = math.hypot(1, _OUTER)  # the roll's greatest length per radian
    num_panels = math.ceil((_OUTER - _INNER) * longest / noise)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    fractions = (np.arange(num_panels)[:, None] + (nodes + 1) / 2).ravel() / num_panels
    angles = _INNER + (_OUTER - _INNER) * fractions
    points = angles[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return points, np.log(np.tile(weights / (2 * num_panels), num_panels))


def _check_noise(noise: float) -> float:
    """Return `noise` as a float if it is finite and not negative."""
    check_scalar("noise", noise)
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise: expected a finite number of at least 0, got {noise!r}")
    return float(noise)
