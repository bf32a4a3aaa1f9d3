"""The demonstration's parts against closed forms; the whole of it is run in test_cli."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion import demo

LOC, SCALE, STEPS = 0.3, 0.4, 60


def gaussian_prior():
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(STEPS, -9, 5), LOC, SCALE)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(jnp.full((8, 8), LOC), SCALE), (8, 8))
    return nd.DiffusionPrior(process)


def exact(observation):
    """log p(y), and mean and standard deviation of the noise scale given y, by quadrature over the scale."""
    sigma = np.linspace(1e-4, 3.0, 20_000)[:, None]
    seen = np.asarray(observation.y)[np.asarray(observation.mask)]
    variance = SCALE**2 + sigma**2
    log_joint = (-0.5 * ((seen - LOC) ** 2 / variance + np.log(2 * np.pi * variance))).sum(1)
    log_joint += np.log(2 / (0.5 * np.sqrt(2 * np.pi))) - 0.5 * (sigma[:, 0] / 0.5) ** 2  # HalfNormal(0.5)
    log_evidence = logsumexp(log_joint) + np.log(sigma[1, 0] - sigma[0, 0])
    share = np.exp(log_joint - logsumexp(log_joint))
    mean = share @ sigma[:, 0]
    return log_evidence, mean, np.sqrt(share @ (sigma[:, 0] - mean) ** 2)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")  # most of it is computing
def test_the_evidence_over_all_noise_scales():
    prior = gaussian_prior()
    truth = prior.sample(jax.random.key(0), (2,))
    observation = demo.observe(jax.random.key(1), truth, 0.3)
    log_evidence, mean, spread = exact(observation)
    # Where the five points lie matters little, as long as they cover the posterior.
    near = jnp.asarray(mean + spread * np.random.default_rng(0).standard_normal(400))
    smc, value, error = demo.log_evidence(jax.random.key(2), prior, observation, near, num_particles=1024)
    assert abs(value - log_evidence) < 4 * error + 0.02  # 0.02: the rule's own error
    assert error < 0.1
    assert smc.get_samples()["x"].shape == (4 * 1024, 2, 8, 8)
