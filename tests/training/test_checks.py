"""The checks of a prior's report: a test that is exact at any size, and Tweedie's covariance where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training.checks import check_prior, energy_test


def test_the_energy_statistic_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1
    mean = lambda a, b: np.mean([np.linalg.norm(p - q) for p in a for q in b])
    statistic, p_value = energy_test(x, y)
    assert statistic == pytest.approx(2 * mean(x, y) - mean(x, x) - mean(y, y), abs=1e-6)
    assert 0 < p_value <= 1


def test_p_values_are_uniform_where_the_laws_are_equal_and_small_where_they_are_not():
    rng = np.random.default_rng(1)
    p = [energy_test(rng.normal(size=(30, 2)), rng.normal(size=(20, 2)), seed)[1] for seed in range(200)]
    assert abs(np.mean(p) - 0.5) < 4 * np.sqrt(1 / 12 / 200)
    assert abs(np.mean(np.array(p) < 0.1) - 0.1) < 4 * np.sqrt(0.09 / 200)
    assert energy_test(rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 1)[1] == 0.001


def _prior(loc, scale):
    process = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(20), 1.0, 2.0), nd.denoisers.Gaussian(jnp.full(2, loc), scale), 2
    )
    return nd.DiffusionPrior(process)


def test_a_right_prior_passes_and_a_wrong_one_does_not():
    rng = np.random.default_rng(2)
    train, held_out = rng.normal(size=(400, 2)) * 1.5 + 1, rng.normal(size=(128, 2)) * 1.5 + 1
    right = check_prior(jax.random.key(0), _prior(1.0, 1.5), train, held_out, 0.0)
    assert right.p_value > 0.01
    ratios = np.array([ratio for _, ratio in right.jacobian])
    np.testing.assert_allclose(ratios, 1, atol=4 * np.sqrt(2 / (2 * 64)))  # of the mean of 64 × 2 squares
    assert right.nearest_draws == pytest.approx(right.nearest_held_out, rel=0.5)
    wrong = check_prior(jax.random.key(0), _prior(1.0, 0.5), train, held_out, 0.0)
    assert wrong.p_value < 0.01
    assert max(ratio for _, ratio in wrong.jacobian) > 2  # the denoiser is too sure of itself


def test_memorised_examples_are_seen():
    rng = np.random.default_rng(3)
    train, held_out = rng.normal(size=(30, 2)), rng.normal(size=(100, 2))
    mixture = nd.denoisers.GaussianMixture(train, np.full(30, 0.01), np.full(30, 1 / 30))
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(50, -9, 12)), mixture, 2)
    found = check_prior(jax.random.key(0), nd.DiffusionPrior(process), train, held_out, 0.0)
    assert found.nearest_draws < 0.2 * found.nearest_held_out
