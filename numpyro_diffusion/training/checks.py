"""Do a prior's draws look like the data, and does its denoiser know how wrong it is?

Three checks that the bound K does not make. The energy test (Székely and Rizzo 2013) compares draws of the chain with
held-out examples, with a p-value by permutations. Distances to the nearest training example, of draws beside held-out
examples, show whether examples were memorised: then draws lie nearer. And the covariance of x_0 given x_t that twists
take from the denoiser's Jacobian (Tweedie's formula) is compared with the squared errors of its predictions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._compiled import compiled
from ..distributions import DiffusionPrior
from ..distributions.report import PriorChecks
from ..process import ReverseProcess
from .run import dequantized, to_latent

NUM_DRAWS = 128
PERMUTATIONS = 999
MOST_TRAINING = 5_000  # examples among which the nearest one is looked for
LEVELS = (0.9, 0.7, 0.5, 0.3)  # of √ᾱ_t, at which the Jacobian is checked
PAIRS = 64


def check_prior(
    key: Array, prior: DiffusionPrior, train: np.ndarray, held_out: np.ndarray, width: float
) -> PriorChecks:
    """Compare draws of a prior with held-out examples, and its denoiser's errors with what it says of them.

    Args:
        key: JAX random key.
        prior: of examples of shape `event`.
        train: examples that it was trained on, shape (n, *event).
        held_out: others, shape (m, *event), m ≥ 2.
        width: of the uniform noise that the data were dequantised with.
    """
    draw, noise, pairs = jax.random.split(key, 3)
    draws = np.asarray(_draws(draw, prior), np.float64)
    near, first = (np.asarray(dequantized(k, jnp.asarray(x[:limit], float), width), np.float64)
                   for k, x, limit in zip(jax.random.split(noise), (held_out, train), (NUM_DRAWS, MOST_TRAINING),
                                          strict=True))  # fmt: skip
    if prior.process.diffusion.is_discrete:  # classes have no distances but those of what a network is given
        rows = prior.process.diffusion.network_input
        draws, near, first = (np.asarray(rows(x), np.float64) for x in (draws, near, first))
    scale = first.std(0) if first.ndim == 2 else first.std()
    flat = [(x / np.where(scale > 0, scale, 1.0)).reshape(len(x), -1) for x in (draws, near, first)]
    statistic, p_value = energy_test(flat[0], flat[1])
    jacobian = _jacobian(pairs, prior, near) if prior.process.diffusion.is_gaussian else ()
    return PriorChecks(statistic, p_value, _nearest(flat[0], flat[2]), _nearest(flat[1], flat[2]), jacobian)


def with_checks(prior: DiffusionPrior, train: np.ndarray, held_out: np.ndarray, width: float) -> DiffusionPrior:
    """The prior with these checks in its report; as it is where fewer than two examples are held out."""
    if len(held_out) < 2:
        return prior
    checks = check_prior(jax.random.key(0), prior, train, held_out, width)
    return prior.with_report(prior.report()._replace(checks=checks))


def energy_test(one: np.ndarray, two: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Energy distance between two samples, shapes (n, d) and (m, d), and its p-value under their exchange.

    The statistic is 2 E|X − Y| − E|X − X'| − E|Y − Y'| with means over all pairs (Székely and Rizzo 2013), and the
    p-value the share of random divisions of the pooled sample that have at least as large a one, *exact* at any size.
    """
    pooled, count = np.concatenate([one, two]), len(one)
    distance = _distances(pooled, pooled)
    rng, size = np.random.default_rng(seed), len(pooled)
    chosen = np.zeros((PERMUTATIONS + 1, size))
    chosen[0, :count] = 1
    for row in chosen[1:]:
        row[rng.permutation(size)[:count]] = 1
    other = 1 - chosen
    within, across = chosen @ distance, other @ distance
    n, m = count, size - count
    statistics = (
        2 * (within * other).sum(1) / (n * m) - (within * chosen).sum(1) / n**2 - (across * other).sum(1) / m**2
    )
    return float(statistics[0]), float(np.mean(statistics >= statistics[0] - 1e-12))


def _nearest(x: np.ndarray, among: np.ndarray) -> float:
    """The median distance to the nearest of them."""
    return float(np.median(_distances(x, among).min(1)))


def _distances(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    square = np.square(one).sum(1)[:, None] + np.square(two).sum(1) - 2 * one @ two.T
    return np.sqrt(np.maximum(square, 0.0))


def _jacobian(key: Array, prior: DiffusionPrior, x: np.ndarray) -> tuple[tuple[float, float], ...]:
    """For each of some √ᾱ_t, the mean squared error of x_0's prediction over the mean trace of its covariance."""
    z, _ = to_latent(prior.transform, jnp.asarray(x, float))
    alpha_bar = np.asarray(prior.process.diffusion.schedule.alpha_bar(jnp.arange(1, prior.process.num_steps + 1)))
    times = [1 + int(np.argmin(np.abs(np.sqrt(alpha_bar) - level))) for level in LEVELS]
    ratios = _ratios(key, prior.process, jnp.resize(z, (PAIRS, *z.shape[1:])), jnp.asarray(times, float))
    return tuple((float(np.sqrt(alpha_bar[t - 1])), float(r)) for t, r in zip(times, ratios, strict=True))


@compiled
def _draws(key: Array, prior: DiffusionPrior) -> Array:
    return prior.sample(key, (NUM_DRAWS,))


@compiled
def _ratios(key: Array, process: ReverseProcess, z: Array, times: Array) -> Array:
    diffusion: Any = process.diffusion

    def one(key: Array, x_0: Array, t: Array) -> tuple[Array, Array]:
        noise, sign = jax.random.split(key)
        x_t = diffusion.marginal(x_0, t).sample(noise)
        probe = jax.random.rademacher(sign, x_t.shape, x_t.dtype)
        mean = lambda x_t: process.denoiser.posterior(diffusion, x_t, t).mean
        predicted, turned = jax.jvp(mean, (x_t,), (probe,))
        alpha_bar = diffusion.schedule.alpha_bar(t)
        factor = (1 - alpha_bar) / jnp.sqrt(alpha_bar)  # in units of the noise law, whose scale is that of x
        weight = 1 / jnp.square(jnp.broadcast_to(diffusion.scale, x_t.shape))
        error = jnp.sum(weight * jnp.square(x_0 - predicted))
        return error, factor * jnp.sum(probe * turned)

    def level(key: Array, t: Array) -> Array:
        errors, traces = jax.vmap(one, (0, 0, None))(jax.random.split(key, len(z)), z, t)
        return jnp.sum(errors) / jnp.sum(traces)

    return jax.lax.map(lambda pair: level(*pair), (jax.random.split(key, len(times)), times))
