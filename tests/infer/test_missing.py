"""The textbook case of missing data: covariates with holes, a learned law for them, and a regression's own unknowns."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import LowerCholeskyAffine
from numpyro.infer import HMC, MCMC, Gibbs
from scipy.special import logsumexp
from scipy.stats import norm

import numpyro_diffusion as nd

NOISE, ROOT = 0.4, np.array([[1.0, 0.0], [0.6, 0.8]])
X = np.array([[1.2, 0.4], [-0.7, -0.9], [0.0, 1.5], [0.0, -1.1], [0.3, 0.0]])
KNOWN = np.array([[True, True], [True, True], [False, True], [False, True], [True, True]])
Y = np.array([1.0, -0.9, 1.3, -0.5, 0.2])


def model(prior, x, known, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)):
        rows = numpyro.sample("rows", jax.vmap(lambda x, known: prior * nd.factors.Delta(x, known))(x, known))
        numpyro.sample("y", dist.Normal(slope * rows[:, 0], NOISE), obs=y)


def quadrature():
    """Mean and sd of the slope, and of the first missing covariate."""
    covariance = ROOT @ ROOT.T
    b = np.linspace(-2, 4, 4001)
    gain = covariance[0, 1] / covariance[1, 1]
    left = covariance[0, 0] - gain * covariance[0, 1]
    missing = ~KNOWN[:, 0]
    mean = np.where(missing, gain * X[:, 1], X[:, 0])
    variance = np.where(missing, left, 0.0)
    total = b[:, None] ** 2 * variance + NOISE**2
    log_b = norm.logpdf(b) + norm.logpdf(Y, b[:, None] * mean, np.sqrt(total)).sum(1)
    share = np.exp(log_b - logsumexp(log_b))
    slope = share @ b
    row = np.flatnonzero(missing)[0]
    pull = b * left / total[:, row]
    each = mean[row] + pull * (Y[row] - b * mean[row])
    spread = left - pull * b * left
    first = share @ each
    return slope, np.sqrt(share @ (b - slope) ** 2), first, np.sqrt(share @ (spread + (each - first) ** 2))


@pytest.mark.slow
def test_missing_covariates_beside_the_slope():
    """Particle Gibbs for the rows, HMC for the slope, against quadrature."""
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(8)), nd.denoisers.Gaussian(0.0, 1.0), 2)
    prior = nd.DiffusionPrior(process, transform=LowerCholeskyAffine(jnp.zeros(2), jnp.asarray(ROOT)))
    kernel = Gibbs([(nd.infer.ParticleGibbs(model, "rows"), ["rows"]), (HMC(model), ["slope"])])
    mcmc = MCMC(kernel, num_warmup=200, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(0), prior, jnp.asarray(X), jnp.asarray(KNOWN), jnp.asarray(Y))
    draws = {name: np.asarray(value, np.float64) for name, value in mcmc.get_samples().items()}
    np.testing.assert_array_equal(draws["rows"][:, KNOWN], np.tile(X[KNOWN], (1500, 1)).astype(np.float32))
    slope, slope_sd, first, first_sd = quadrature()
    for found, mean, sd in ((draws["slope"], slope, slope_sd), (draws["rows"][:, 2, 0], first, first_sd)):
        size = numpyro.diagnostics.effective_sample_size(found[None])
        assert size > 100
        assert abs(found.mean() - mean) < 4 * sd / np.sqrt(size)
        assert abs(found.std() / sd - 1) < 4 / np.sqrt(2 * size)
