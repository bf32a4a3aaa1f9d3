"""Products and powers of priors, against closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import numpyro_diffusion as nd

ISLANDS = 32


def prior(denoiser, num_steps=6, size=1, **kwargs):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9, 7))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, size), **kwargs)


def normal(loc, scale, num_steps=6, size=1):
    return prior(nd.denoisers.Gaussian(loc, scale), num_steps, size)


ONE = nd.denoisers.GaussianMixture([[-2.0], [1.5]], [0.6, 0.4], [0.4, 0.6])
OTHER = nd.denoisers.GaussianMixture([[-1.0], [2.5]], [0.5, 0.8], [0.5, 0.5])
GRID = np.linspace(-12, 12, 24_001)


def density(law):
    return np.asarray(law.log_prob(jnp.asarray(GRID)[:, None]))


def check(posterior, log_density, num_particles=128):
    """Log normalising constant, mean, square and share above 0, within 3 standard errors of quadrature."""
    particles = posterior.with_(sampler=nd.samplers.TwistedSMC(num_particles)).smc(jax.random.key(0), ISLANDS)
    x, weight = np.asarray(particles.x)[..., 0], np.exp(np.asarray(particles.log_weight))
    log_z = logsumexp(log_density) + np.log(GRID[1] - GRID[0])
    exact = np.exp(log_density - logsumexp(log_density))
    pairs = [(np.asarray(particles.log_evidence), log_z)]
    for statistic in (lambda x: x, np.square, lambda x: x > 0):
        pairs.append(((weight * statistic(x)).sum(1), exact @ statistic(GRID)))
    for found, wanted in pairs:
        error = found.std(ddof=1) / np.sqrt(ISLANDS)
        assert error < 0.05
        assert abs(found.mean() - wanted) < 3 * error + 1e-4, (found.mean(), error, wanted)
    return particles


@pytest.mark.slow
def test_log_prob_and_the_density_of_paths_are_the_powers_multiplied():
    """The chain's closed form is Π p_i(path)^β_i q(path | x_0)^{1 − Σβ_i}, with transforms and strides counted."""
    transform = dist.transforms.ExpTransform()
    one, other = (prior(denoiser, 8, transform=transform) for denoiser in (ONE, OTHER))
    both = one**0.7 * other * nd.factors.Gaussian(1.0, 0.5)
    x = jnp.array([[0.3], [1.4]])
    expected = 0.7 * one.log_prob(x) + other.log_prob(x) + dist.Normal(x[:, 0], 0.5).log_prob(1.0)
    np.testing.assert_allclose(both.log_prob(x), expected, rtol=1e-4)
    assert (prior(ONE).expand([3]) ** 0.5).batch_shape == (3,)
    path = jax.random.normal(jax.random.key(0), (9, 1))
    forward = nd.ForwardTrajectory(one.process.diffusion, path[0]).log_prob(path[1:])
    expected = 0.7 * one.trajectory.log_prob(path) + other.trajectory.log_prob(path) - 0.7 * forward
    np.testing.assert_allclose(both.prior.trajectory.log_prob(path), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "refused",
    [
        (lambda p: p * prior(ONE, 7), ValueError, "priors of one diffusion"),
        (lambda p: p * prior(nd.denoisers.Gaussian(0.0, 1.0), 6, 2), ValueError, "one event shape"),
        (lambda p: p.expand([2]) * p, ValueError, "batch shape"),
        (lambda p: p**-1.0, ValueError, "beta: expected a positive number"),
        (lambda p: p ** jnp.ones(2), ValueError, "beta: expected one number"),
        (lambda p: p.tempered("cold"), TypeError, "beta: expected a positive number"),
        (lambda p: (p * nd.factors.Gaussian(0.0, 1.0)) ** 2, ValueError, "without a factor"),
        (lambda p: p * 3, TypeError, "unsupported"),
        (lambda p: (p * p).prior.sample(jax.random.key(0)), ValueError, "weights"),
        (lambda p: p * prior(ONE, transform=dist.transforms.ExpTransform()), ValueError, "one transform"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(refused):
    make, kind, said = refused
    with pytest.raises(kind, match=said):
        make(prior(ONE))


def test_bits_are_refused():
    process = nd.ReverseProcess(
        nd.BinomialDiffusion(nd.schedules.erasing(4)), nd.denoisers.Enumerated([[0, 1], [1, 1]]), 2
    )
    with pytest.raises(ValueError, match="real numbers to multiply, got one of BinomialDiffusion"):
        nd.DiffusionPrior(process) ** 0.5


@pytest.mark.slow
def test_products_of_gaussians_have_no_noise_in_their_weights():
    """For Gaussian data the law is exact at any number of steps: N(½, 1) N(−1, ¼), and the square root of the first."""
    product = normal(0.5, 1.0, size=2) * normal(-1.0, 0.5, size=2)
    particles = product.smc(jax.random.key(0), 4)
    np.testing.assert_allclose(particles.log_evidence, 2 * dist.Normal(0.0, np.sqrt(1.25)).log_prob(1.5), atol=2e-3)
    assert particles.effective_size.min() > 63
    x = np.asarray(particles.x).reshape(-1, 2)  # of equal weights
    assert np.abs(x.mean(0) + 0.7).max() < 4 * np.sqrt(0.2 / 256)
    assert np.abs(x.var(0) - 0.2).max() < 4 * 0.2 * np.sqrt(2 / 256)


@pytest.mark.slow
def test_products_and_powers_of_mixtures_against_quadrature():
    """In chains of 150 steps, of which the gap to the exact product is below the noise."""
    one, other, y = density(ONE.data()), density(OTHER.data()), norm.logpdf(GRID, 0.5, 1.0)
    check(prior(ONE, 150) ** 1.5, 1.5 * one)
    check(prior(ONE, 150) ** 0.5 * prior(OTHER, 150) * nd.factors.Gaussian(0.5, 1.0), 0.5 * one + other + y)


@pytest.mark.slow
def test_an_unknown_power_in_a_model():
    """β by particle Gibbs and NUTS: the density counts p(x)^β as it is."""
    one, y = normal(0.0, 1.0, 4), jnp.array([2.0])

    def tempered():
        beta = numpyro.sample("beta", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", one.tempered(beta))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    blocks = [(nd.infer.ParticleGibbs(tempered), ["x"]), (numpyro.infer.NUTS(tempered), None)]
    mcmc = numpyro.infer.MCMC(nd.infer.Gibbs(blocks), num_warmup=100, num_samples=600, progress_bar=False)
    mcmc.run(jax.random.key(2))
    beta = np.asarray(mcmc.get_samples()["beta"], dtype=np.float64)
    grid, near = np.exp(np.linspace(-4, 4, 801)), GRID[::10]
    log_w = norm.logpdf(np.log(grid), 0.0, 0.5)
    log_w = log_w + np.array([logsumexp(b * norm.logpdf(near) + norm.logpdf(near, 2, 0.5)) for b in grid])
    share = np.exp(log_w - logsumexp(log_w))
    mean, sd = share @ grid, np.sqrt(share @ grid**2 - (share @ grid) ** 2)
    effective = float(numpyro.diagnostics.effective_sample_size(beta[None]))
    assert effective > 80, effective
    assert abs(beta.mean() - mean) < 3 * sd / np.sqrt(effective)
