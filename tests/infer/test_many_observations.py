"""More than 16 observations of one example, by the default twists, of exact denoisers and of a learned prior."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import numpyro_diffusion as nd

SIZE, COUNT, NOISE = 20, 18, 0.3
OPERATOR = np.random.default_rng(0).normal(size=(COUNT, SIZE)) / np.sqrt(SIZE)


def smc_of(prior):
    """`SMC` with its defaults, of linear observations."""

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(jnp.asarray(OPERATOR, x.dtype) @ x, NOISE).to_event(1), obs=y)

    return nd.infer.SMC(model)


def quiet(smc, y, key=0):
    """A run that gives no warning, or the warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return smc.run(jax.random.key(key), jnp.asarray(y, float))


def prior_of(denoiser):
    """With so many steps that the chain's own law hardly differs from the denoiser's."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(100))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, SIZE))


def density(y, loc, scale):
    return multivariate_normal.logpdf(y, OPERATOR @ loc, (OPERATOR * scale**2) @ OPERATOR.T + NOISE**2 * np.eye(COUNT))


def test_of_a_normal_law_the_answer_is_exact():
    """No weight changes but at the last step, where the chain stops short of the data."""
    loc, scale = np.linspace(-1, 1, SIZE), np.linspace(0.4, 1.2, SIZE)
    y = OPERATOR @ (loc + scale * np.random.default_rng(1).normal(size=SIZE))
    smc = quiet(smc_of(prior_of(nd.denoisers.Gaussian(loc, scale))), y)
    assert smc.plan.sampler.twist == nd.twists.Laplace() and smc.reliability.least_size > 500
    assert abs(smc.log_evidence - density(y, loc, scale)) < 0.02


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_of_a_mixture():
    rng = np.random.default_rng(2)
    locs, weights = rng.normal(size=(3, SIZE)), np.array([0.2, 0.5, 0.3])
    smc, found = smc_of(prior_of(nd.denoisers.GaussianMixture(locs, [0.4, 0.5, 0.6], weights))), []
    for key in range(8):
        y = OPERATOR @ (locs[key % 3] + 0.5 * rng.normal(size=SIZE)) + NOISE * rng.normal(size=COUNT)
        quiet(smc, y, key)
        each = [density(y, loc, scale * np.ones(SIZE)) for loc, scale in zip(locs, [0.4, 0.5, 0.6], strict=True)]
        found.append((smc.log_evidence - logsumexp(each, b=weights), smc.log_evidence_error))
    assert smc.plan.sampler.twist == nd.twists.MixtureMatched()
    gap, error = np.array(found).T
    assert np.all(np.abs(gap) < 4 * error + 0.02) and np.abs(gap).max() < 0.15


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_of_a_mixture_with_many_known_elements():
    """Evidence and the mean of the others, of which the known ones say which component they are of."""
    rng, known = np.random.default_rng(5), np.arange(40) % 2 == 0
    locs, scales = rng.normal(size=(5, 40)), np.array([0.4, 0.5, 0.6, 0.5, 0.4])
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(100))
    denoiser = nd.denoisers.GaussianMixture(locs, scales, np.full(5, 0.2))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, 40))

    def model(y):
        numpyro.sample("x", prior * nd.factors.Delta(y, known))

    smc = nd.infer.SMC(model)
    for key in range(3):
        which = rng.integers(5)
        y = np.where(known, locs[which] + scales[which] * rng.normal(size=40), 0.0)
        quiet(smc, y, key)
        each = norm.logpdf(y[known], locs[:, known], scales[:, None]).sum(1) + np.log(0.2)
        assert abs(smc.log_evidence - logsumexp(each)) < 4 * smc.log_evidence_error + 0.1  # the chain's own law
        share = np.exp(each - logsumexp(each))
        mean = share @ locs[:, ~known]
        sd = np.sqrt(share @ (scales[:, None] ** 2 + (locs[:, ~known] - mean) ** 2))
        x = np.asarray(smc.get_samples()["x"])[:, ~known]
        assert np.all(np.abs(x.mean(0) - mean) < 0.2 * sd)


SEEN = np.arange(64).reshape(8, 8)[2:6, 1:7]  # 24 pixels
LIKELIHOODS = {
    "normal": lambda x, y: dist.Normal(x.reshape(-1)[SEEN], 1.0).to_event(2).log_prob(y),
    "counts": lambda x, y: dist.Poisson(jnp.exp(x.reshape(-1)[SEEN])).to_event(2).log_prob(jnp.round(jnp.abs(3 * y))),
}


@functools.cache
def digits():
    """The packaged prior with a chain of 10 steps, and draws of it, by the first test that asks for them."""
    prior = nd.load("digits").with_(sampler=nd.samplers.Ancestral(10))
    return prior, np.asarray(prior.sample(jax.random.key(9), (40_000,)))


def reweighted(draws, log_r):
    """Log evidence, its error, the mean, and its errors and the posterior deviations of the pixels."""
    each = np.asarray(jax.vmap(log_r)(jnp.asarray(draws)), np.float64)
    weight = np.exp(each - each.max())
    share = weight / weight.sum()
    mean = np.tensordot(share, draws, 1)
    deviation = np.sqrt(np.tensordot(share, (draws - mean) ** 2, 1))
    error = np.sqrt(np.tensordot(share**2, (draws - mean) ** 2, 1))
    size = 1 / np.sum(share**2)
    return np.log(weight.mean()) + each.max(), 1 / np.sqrt(size), mean, error, deviation


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_of_a_learned_prior_against_its_own_draws(name):
    prior, draws = digits()
    y = jnp.asarray(nd.datasets.digits().test_images[70].reshape(-1)[SEEN])
    log_r = lambda x: LIKELIHOODS[name](x, y)
    value, value_error, mean, error, deviation = reweighted(draws, log_r)
    assert value_error < 0.1  # enough of the draws count

    def model():
        x = numpyro.sample("x", prior)
        if name == "normal":
            numpyro.sample("y", dist.Normal(x.reshape(-1)[SEEN], 1.0).to_event(2), obs=y)
        else:
            numpyro.factor("y", log_r(x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smc = nd.infer.SMC(model).run(jax.random.key(0))
    assert "Tempered(Laplace, power=0.5), chosen by rule" in str(smc.plan)
    assert abs(smc.log_evidence - value) < 4 * np.hypot(value_error, smc.log_evidence_error)
    x = np.asarray(smc.get_samples()["x"])
    # 200 of its 2,048 draws count as independent, few enough for the particles that there are on the way.
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.hypot(error, deviation / np.sqrt(200)))
    np.testing.assert_allclose(x.std(0)[deviation > 0.1] / deviation[deviation > 0.1], 1.0, atol=0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_particle_gibbs_of_few_particles_against_draws_of_the_learned_prior():
    """Fewer particles than pixels: the default is the twist without matrices."""
    prior, draws = digits()
    y = jnp.asarray(nd.datasets.digits().test_images[70].reshape(-1)[SEEN])
    _, _, mean, error, deviation = reweighted(draws, lambda x: LIKELIHOODS["normal"](x, y))

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).reshape(-1)[SEEN], 1.0).to_event(2), obs=y)

    kernel = nd.infer.ParticleGibbs(model, num_particles=16)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=100, num_samples=2_000, progress_bar=False)
    mcmc.run(jax.random.key(1))
    x = np.asarray(mcmc.get_samples()["x"])
    size = np.array([numpyro.diagnostics.effective_sample_size(each[None]) for each in x.reshape(len(x), -1).T])
    assert size.min() > 100
    own = deviation / np.sqrt(np.minimum(size, len(x)).reshape(8, 8))
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.hypot(error, own))
