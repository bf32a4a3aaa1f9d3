"""What a prior does by default: little noise, no bias, and an error bar that is a number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.likelihoods import AbstractLikelihood


def _values(prior: Any, x: Any, seeds: int, likelihood: AbstractLikelihood | None = None) -> np.ndarray:
    """K with as many frozen keys, shape (seeds, points)."""
    estimator = prior.likelihood if likelihood is None else likelihood
    one = lambda key, x: estimator.estimate(key, prior.process, x).value
    run = jax.jit(lambda keys, x: jax.lax.map(lambda key: jax.vmap(lambda x: one(key, x))(x), keys))
    return np.asarray(run(jax.random.split(jax.random.key(7), seeds), jnp.asarray(x)), np.float64)


def _learned() -> tuple[nd.DiffusionPrior, np.ndarray]:
    """Of a correlated normal law, after a few steps."""
    factor = np.array([[1.0, 0.0], [0.9, 0.3]], np.float32)
    data = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32) @ factor.T
    prior = nd.fit_prior(jax.random.key(0), data, schedule=nd.schedules.log_snr(25), max_steps=100, progress_bar=False)
    return prior, data[:16]


def test_a_gaussian_prior_has_no_noise() -> None:
    """With the prior's own covariance the control variate is the term itself: log p of the chain, for any key."""
    loc, scale = np.array([0.5, -1.0, 0.0]), np.array([0.3, 1.0, 1.5])
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(25)), nd.denoisers.Gaussian(loc, scale), 3)
    x = loc + scale * np.random.default_rng(1).standard_normal((16, 3))
    prior = nd.DiffusionPrior(process)
    values = _values(prior, x, 8)
    assert values.std(0).max() < 2e-3
    assert abs(values.mean(0) - np.asarray(process.denoiser.data((3,)).log_prob(x))).max() < 0.05
    estimate = prior.estimate(x)
    assert np.isfinite(estimate.standard_error).all() and (np.asarray(estimate.degrees_of_freedom) == 1).all()
    assert np.isinf(estimate.widened_error).all()


@pytest.mark.slow
def test_a_learned_prior_has_little_noise_and_no_bias() -> None:
    """Less than .1 nats a dimension, a third of that of independent draws, and the same mean within 4 sigma."""
    prior, x = _learned()
    ours, plain = _values(prior, x, 64), _values(prior, x, 64, nd.KBound(4))
    assert np.sqrt(ours.var(0).mean()) / 2 < 0.1
    assert ours.mean(1).std() < plain.mean(1).std() / 3
    gap = ours.mean(1).mean() - plain.mean(1).mean()
    assert abs(gap) < 4 * np.hypot(ours.mean(1).std(), plain.mean(1).std()) / np.sqrt(64)
