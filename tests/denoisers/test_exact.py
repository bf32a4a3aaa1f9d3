"""Exact denoisers against quadrature over x_0 and enumeration of bits, in numpy."""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import BinomialDiffusion, GaussianDiffusion, schedules
from numpyro_diffusion.denoisers import Enumerated, Gaussian, GaussianMixture

BETA = np.array([0.02, 0.1, 0.3, 0.15, 0.5])
T = len(BETA)
KEPT = np.concatenate([[1.0], np.cumprod(1 - BETA)])
LOC, SCALE = np.array([0.7, -3.0]), np.array([2.5, 0.3])
TIMES = np.arange(1, T + 1)


def _diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(schedules.from_beta(BETA), LOC, SCALE)


@eqx.filter_jit
def _posterior(denoiser: Any, diffusion: Any, x_t: Any, t: Any) -> tuple[jax.Array, jax.Array]:
    """Mean and variance for each pair of x_t and t."""

    def moments(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = denoiser.posterior(diffusion, x, t)
        return law.mean, law.variance

    return jax.vmap(moments)(jnp.asarray(x_t), jnp.asarray(t))


def _normal(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / scale) ** 2) / scale


def _likelihood(grid: np.ndarray, x_t: float, t: int, i: int) -> np.ndarray:
    """q(x_t | x_0) of element i on a grid of x_0, in data units and without its constant."""
    mean = LOC[i] + np.sqrt(KEPT[t]) * (grid - LOC[i])
    return _normal(x_t, mean, SCALE[i] * np.sqrt(1 - KEPT[t]))


@pytest.mark.parametrize("kind", ["scalar", "element"])
def test_gaussian_posterior_by_quadrature(kind: str, x64: None) -> None:
    """Mean and variance of x_0 given x_t, one element at a time."""
    loc, scale = (0.4, 1.3) if kind == "scalar" else (np.array([0.4, -2.5]), np.array([1.3, 0.2]))
    means, scales = np.broadcast_to(loc, 2), np.broadcast_to(scale, 2)
    x_t = np.random.default_rng(0).normal(size=(T, 2)) * SCALE + LOC
    mean, variance = _posterior(Gaussian(loc, scale), _diffusion(), x_t, TIMES)
    for t, i in itertools.product(TIMES, range(2)):
        grid = np.linspace(means[i] - 12 * scales[i], means[i] + 12 * scales[i], 20001)
        weight = _normal(grid, means[i], scales[i]) * _likelihood(grid, x_t[t - 1, i], t, i)
        weight /= weight.sum()
        np.testing.assert_allclose(mean[t - 1, i], weight @ grid, rtol=1e-8)
        np.testing.assert_allclose(variance[t - 1, i], weight @ (grid - weight @ grid) ** 2, rtol=1e-7)


@pytest.mark.parametrize("shape", ["(k,)", "(k, *event)"])
def test_mixture_posterior_by_quadrature(shape: str, x64: None) -> None:
    """Element-wise mean and variance of a posterior that couples both elements, on a grid in the plane."""
    locs, weights = np.array([[1.5, -3.2], [-1.0, -2.8], [0.3, -3.5]]), np.array([0.2, 0.5, 0.3])
    scales = np.array([0.4, 0.3, 0.6])
    scales = scales if shape == "(k,)" else scales[:, None] * np.array([1.5, 0.4])
    x_t = np.random.default_rng(1).normal(size=(T, 2)) * SCALE + LOC
    denoiser = GaussianMixture(locs, scales, weights)
    mean, variance = _posterior(denoiser, _diffusion(), x_t, TIMES)
    wide = scales[:, None] * np.ones(2) if shape == "(k,)" else scales
    axes = [np.linspace(-6.5, 6.5, 1201), np.linspace(-8, 1, 1201)]
    for t in TIMES:
        density = 0.0
        for k in range(3):
            parts = [_normal(axes[i], locs[k, i], wide[k, i]) for i in range(2)]
            density = density + weights[k] * np.outer(*parts)
        density = density * np.outer(*(_likelihood(axes[i], x_t[t - 1, i], t, i) for i in range(2)))
        density /= density.sum()
        for i in range(2):
            weight = density.sum(1 - i)
            np.testing.assert_allclose(mean[t - 1, i], weight @ axes[i], rtol=1e-7)
            np.testing.assert_allclose(variance[t - 1, i], weight @ (axes[i] - weight @ axes[i]) ** 2, rtol=1e-6)
    x = np.array([[0.2, -3.0], [1.6, -3.3]])
    terms = np.prod([_normal(x[:, None, i], locs[:, i], wide[:, i]) for i in range(2)], axis=0)
    got = jax.jit(lambda: denoiser.data().log_prob(x))()
    np.testing.assert_allclose(got, np.log(terms @ weights / (2 * np.pi)), rtol=1e-10)


def test_one_component_is_the_gaussian_one(x64: None) -> None:
    """A mixture of one, and any event shape, agree with the closed form; far tails stay finite."""
    locs, scales = np.full((1, 2), 0.4), np.full(1, 1.3)
    x_t = np.random.default_rng(2).normal(size=(T, 2)) * 100
    one = _posterior(GaussianMixture(locs, scales, np.ones(1)), _diffusion(), x_t, TIMES)
    other = _posterior(Gaussian(0.4, 1.3), _diffusion(), x_t, TIMES)
    np.testing.assert_allclose(one, other, rtol=1e-9)
    np.testing.assert_allclose(Gaussian(0.4, 1.3).data((3, 2)).mean, np.full((3, 2), 0.4))
    np.testing.assert_allclose(Gaussian(0.4, 1.3).data((3, 2)).variance, np.full((3, 2), 1.69))


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_enumerated_posterior_is_bayes(rate: float, x64: None) -> None:
    """P(x_0 = 1 | x_t) of each bit, over all states of three bits, by brute force."""
    rng = np.random.default_rng(3)
    states = np.array([[0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]])
    chances = rng.dirichlet(np.ones(4))
    everything = np.array(list(itertools.product([0, 1], repeat=3)))
    diffusion = BinomialDiffusion(schedules.from_beta(BETA), rate)
    denoiser = Enumerated(states, chances)
    for t in (1, 3, 5):
        got, _ = _posterior(denoiser, diffusion, everything.astype(float), np.full(8, t))
        ones = KEPT[t] * states + (1 - KEPT[t]) * rate
        for x_t, answer in zip(everything, np.asarray(got), strict=True):
            weight = chances * np.prod(np.where(x_t, ones, 1 - ones), axis=1)
            np.testing.assert_allclose(answer, weight @ states / weight.sum(), rtol=1e-9)
    log_prob = jax.jit(jax.vmap(denoiser.log_prob))(everything)
    listed = [chances[(states == x).all(1)].sum() for x in everything]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_prob, np.log(listed), rtol=1e-12)


def test_enumerated_answers_stay_finite_where_a_bit_is_certain() -> None:
    """A bit that is the same in all states is all but certain, with finite logits and gradients."""
    diffusion = BinomialDiffusion(schedules.from_beta(BETA), 0.3)
    denoiser = Enumerated([[1, 0], [1, 1]])
    logits = lambda p: eqx.tree_at(lambda d: d.probabilities, denoiser, p).posterior(
        diffusion, jnp.array([0.0, 1.0]), 2
    )
    law, slope = jax.jit(lambda p: (logits(p).mean, jax.jacobian(lambda p: logits(p).mean)(p)))(denoiser.probabilities)
    assert law[0] == 1 and 0.5 < law[1] < 1
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(denoiser.probabilities, [0.5, 0.5])


BITS = BinomialDiffusion(schedules.from_beta(BETA))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(np.nan, 1.0), "loc: expected finite numbers, got 1 NaN"),
        (lambda: Gaussian(0.0, -1.0), "scale: expected positive numbers, got a minimum of -1.0"),
        (
            lambda: GaussianMixture(np.zeros((2, 3)), np.ones(2), [1.0]),
            r"weights: expected shape \(2,\) .* \(1,\)",
        ),
        (
            lambda: GaussianMixture(np.zeros((2, 3)), np.ones(3), [0.5, 0.5]),
            r"scales: expected shape \(2,\) or \(2, 3\), got \(3,\)",
        ),
        (
            lambda: GaussianMixture(np.zeros((2, 3)), np.ones(2), [0.5, 0.6]),
            "weights: expected probabilities that add up to 1, .* sum 1.1",
        ),
        (
            lambda: GaussianMixture(np.zeros((2, 3)), np.ones(2), [-0.5, 1.5]),
            "weights: expected probabilities that add up to 1",
        ),
        (
            lambda: GaussianMixture(np.zeros((2, 3)), np.zeros(2), [0.5, 0.5]),
            "scales: expected positive numbers",
        ),
        (lambda: Enumerated([[0, 1.5]]), "states: expected whole numbers of at least 0, got .*1.5"),
        (lambda: Enumerated([[0, 1]], [0.5, 0.5]), r"probabilities: expected shape \(1,\), got \(2,\)"),
        (lambda: Enumerated([[0, 1]], [0.5]), "probabilities: expected probabilities that add up to 1"),
        (
            lambda: Enumerated([[0, 1]]).posterior(_diffusion(), jnp.zeros(2), 1),
            "diffusion: Enumerated is for bits or classes, got GaussianDiffusion",
        ),
        (
            lambda: Gaussian(0.0, 1.0).posterior(BITS, jnp.zeros(2), 1),
            "diffusion: Gaussian oracles are for GaussianDiffusion, got BinomialDiffusion",
        ),
    ],
)
def test_errors(build: Callable[[], Any], message: str) -> None:
    """Wrong arguments are named, with what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        build()
