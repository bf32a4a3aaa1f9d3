"""The default twist of an exact mixture, where what is seen is far from all that the mixture draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import twists

SIZE, NOISE = 16, 0.7


def problem(seed):
    """Ten unit Gaussians, one observation eight units from the mean one: locations, weights, row, y, log evidence."""
    rng = np.random.default_rng(seed)
    locs, weights = rng.uniform(-8, 8, (10, SIZE)), rng.dirichlet(np.ones(10))
    row = rng.standard_normal(SIZE)
    row *= 0.5 / np.linalg.norm(row)
    y = row @ (weights @ locs) + 8
    log_evidence = logsumexp(np.log(weights) + norm.logpdf(y, locs @ row, np.hypot(0.5, NOISE)))
    return locs, weights, row, y, log_evidence


def errors(twist):
    """Of log evidences by one run each, in nats; the chain's own steps are among them."""
    sampler = nd.samplers.TwistedSMC(512, twist, antithetic=True)

    @jax.jit
    def run(key, locs, weights, row, y):
        diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(100, -9.5, 4.5))
        denoiser = nd.denoisers.GaussianMixture(locs, jnp.ones_like(locs), weights)
        process = nd.ReverseProcess(diffusion, denoiser, SIZE)
        return sampler.run(key, process, nd.factors.LinearGaussian(y[None], row[None], NOISE)).log_evidence

    found = []
    for seed in range(8):
        *given, exact = problem(seed)
        found.append(float(run(jax.random.key(seed), *(jnp.asarray(each, float) for each in given))) - exact)
    return np.array(found)


@pytest.mark.slow
def test_the_default_finds_the_evidence_and_moment_matching_does_not():
    assert np.sqrt(np.mean(errors(None) ** 2)) < 0.15
    assert np.sqrt(np.mean(errors(twists.MomentMatched("exact")) ** 2)) > 3  # else there is no need of another default
