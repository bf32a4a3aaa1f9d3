"""The path integral: whole numbers, and the moments at its noisy end."""

import jax
import numpy as np
import pytest

import numpyro_diffusion as nd


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [nd.PathIntegral(16, 512), nd.PathIntegral(16, 128, num_products=1)])
def test_probabilities_of_whole_numbers(estimator: nd.PathIntegral) -> None:
    """log P(x) of each of four grey levels, the outermost with open bins, by the exact denoiser of the levels."""
    levels, shares = np.array([[0.0], [1.0], [2.0], [4.0]]), np.array([0.1, 0.4, 0.3, 0.2])
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(4, -9.0, 6.0), 1.5, 1.5)
    denoiser = nd.denoisers.GaussianMixture(levels, np.full(4, 1e-3), shares)
    process = nd.ReverseProcess(diffusion, denoiser, 1, last_step=nd.DiscretisedStep(5))
    run = jax.jit(jax.vmap(lambda x, key: estimator.estimate(key, process, x)))
    got = run(levels, jax.random.split(jax.random.key(0), 4))
    assert (abs(got.value - np.log(shares)) < 4 * got.widened_error + 1e-3).all()
    assert (np.asarray(got.widened_error) < 0.1).all()
    assert (abs(got.terms.decoder) < 0.02).all()  # at t = 1 the level can be read off
    np.testing.assert_allclose(
        got.terms.decoder - got.terms.integral - got.terms.kl_terminal, got.value, rtol=1e-5, atol=1e-6
    )
