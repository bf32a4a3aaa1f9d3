"""The defaults of SMC and particle Gibbs, for likelihoods that are not linear-Gaussian and priors that were learned.

The truth is about the prior's own chain: its draws, reweighted by the likelihood.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from numpyro.infer import MCMC
from programs import programs_optimised
from scipy.stats import norm, poisson

import numpyro_diffusion as nd
from numpyro_diffusion import twists

OPERATOR = jnp.array([[1.0, 0.5], [0.0, 1.0]])
LIKELIHOODS = {
    "modulus": lambda x: dist.Normal(jnp.abs(OPERATOR @ x), 0.2).log_prob(jnp.array([1.1, 0.6])).sum(),
    "square": lambda x: dist.Normal(x.sum() ** 2, 1.0).log_prob(2.0),
    "poisson": lambda x: dist.Poisson(jnp.exp(x)).log_prob(jnp.array([3.0, 4.0])).sum(),
    "logistic": lambda x: dist.Bernoulli(logits=4 * (OPERATOR @ x)).log_prob(jnp.array([1, 0])).sum(),
    "student": lambda x: dist.StudentT(3.0, x[0] * x[1], 0.1).log_prob(1.0),
    "linear": lambda x: dist.Normal(x.sum(), 0.3).log_prob(1.0),
}
LAPLACE = twists.Tempered(twists.Laplace(), 0.5)
NUMBER = {name: jnp.asarray(i) for i, name in enumerate(LIKELIHOODS)}


def chosen(x, which):
    """The likelihood of that number: one program for all of them."""
    return jax.lax.switch(which, list(LIKELIHOODS.values()), x)


@pytest.fixture(scope="module")
def mixture():
    denoiser = nd.denoisers.GaussianMixture([[-1.5, 0.0], [1.0, 1.0], [0.0, 2.0]], [0.5, 0.4, 0.7], [0.3, 0.5, 0.2])
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(16)), denoiser, 2)
    return nd.DiffusionPrior(process)


@pytest.fixture(scope="module")
def draws(mixture):
    """Of the mixture's chain, shape (300000, 2)."""
    with programs_optimised():
        return np.asarray(mixture.sample(jax.random.key(99), (300_000,)))


@functools.partial(jax.jit, static_argnums=0)
def each_of(log_r, x, args):
    return jax.vmap(lambda x: log_r(x, *args))(x)


def reweighted(draws, log_r, *args):
    """Log evidence, its standard error, and the shares of the prior's draws."""
    each = np.asarray(each_of(log_r, np.asarray(draws, np.float32), args), np.float64)
    weight = np.exp(each - each.max())
    error = weight.std() / weight.mean() / np.sqrt(len(weight))
    return np.log(weight.mean()) + each.max(), error, weight / weight.sum()


def moments(share, x):
    mean = share @ x
    return mean, np.sqrt(share @ (x - mean) ** 2)


def smc_of(prior, log_r, **options):
    def model(*args):
        numpyro.factor("y", log_r(numpyro.sample("x", prior), *args))

    return nd.infer.SMC(model, **options)


def assert_right(smc, draws, log_r, *args, reach=np.inf, twist=LAPLACE):
    """Nothing is warned of, and all is within three standard errors and what defaults are to reach.

    `reach`: moments are those of x cut off at so many standard deviations.
    """
    value, error, share = reweighted(draws, log_r, *args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smc.run(jax.random.key(1), *args)
    gap = abs(smc.log_evidence - value)
    assert gap < 0.15 + 3 * error
    assert gap < 4 * np.hypot(smc.log_evidence_error, error) + 0.01
    assert smc.plan.sampler.twist == twist
    assert f"twist {twist.said}, chosen by rule" in str(smc.plan)
    # Of eight runs, as the noise of one run's standard deviation is as large as its bound where tails are heavy.
    found = [smc.get_samples()["x"]]
    for key in jax.random.split(jax.random.key(2), 7):
        found.append(smc.run(key, *args).get_samples()["x"])
    mean, sd = moments(share, draws)
    inside = lambda x: np.clip(np.asarray(x, np.float64), mean - reach * sd, mean + reach * sd)
    x, (mean, sd) = inside(np.concatenate(found)), moments(share, inside(draws))
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0.0, atol=0.12)
    np.testing.assert_allclose(x.std(0) / sd, 1.0, atol=0.12)


@pytest.fixture(scope="module")
def of_mixture(mixture):
    return smc_of(mixture, chosen)


@pytest.fixture(scope="module")
def of_banana(banana):
    return smc_of(banana, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "modulus", "square"])  # the learned prior has them all
def test_the_default_is_right_for_an_exact_prior(of_mixture, draws, name):
    matched = twists.Tempered(twists.MixtureMatched(), 0.5)
    assert_right(of_mixture, draws[:100_000], chosen, NUMBER[name], twist=matched)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_the_default_is_right_for_a_learned_prior(of_banana, banana_draws, name):
    # Student's t leaves 0.04% of the mass in a far corner, of which an island has now and then ten times as much.
    assert_right(of_banana, banana_draws, chosen, NUMBER[name], reach=4.0 if name == "student" else np.inf)


def in_coordinates(transform, prior, draws):
    """The law of the same process in other coordinates, and its draws."""
    if transform is None:
        return prior, draws
    return nd.DiffusionPrior(prior.process, transform=transform), np.asarray(transform(prior.transform.inv(draws)))


ROOT = jnp.array([[1.2, 0.0], [-0.7, 0.5]])
TRANSFORMS = {
    "correlated": (transforms.LowerCholeskyAffine(jnp.array([0.3, -0.2]), ROOT), LIKELIHOODS["modulus"]),
    "positive": (
        transforms.ComposeTransform([transforms.AffineTransform(0.2, 0.4), transforms.ExpTransform()]),
        lambda x: dist.Poisson(x).log_prob(jnp.array([2.0, 3.0])).sum(),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_the_default_is_right_for_a_learned_prior_in_other_coordinates(banana, banana_draws, name):
    """The truth is the transformed prior's own draws, reweighted by a likelihood that is not linear-Gaussian."""
    transform, log_r = TRANSFORMS[name]
    prior, draws = in_coordinates(transform, banana, banana_draws)
    assert_right(smc_of(prior, log_r), draws, log_r)


@pytest.mark.slow
@pytest.mark.parametrize("transform", [None, TRANSFORMS["correlated"][0]])
def test_known_elements_of_a_learned_prior(banana, banana_draws, transform):
    """The density of the first element, known, against draws in a narrow window around it."""
    learned, x = in_coordinates(transform, banana, banana_draws)
    known = nd.factors.Delta([0.5, 0.0], [True, False])

    def model():
        numpyro.sample("x", learned * known)

    smc = nd.infer.SMC(model).run(jax.random.key(0))
    near = x[abs(x[:, 0] - 0.5) < 0.05]
    density = len(near) / len(x) / 0.1
    assert abs(smc.log_evidence - np.log(density)) < 0.05
    draws = np.asarray(smc.get_samples()["x"])
    np.testing.assert_array_equal(draws[:, 0], np.float32(0.5))
    assert abs(draws[:, 1].mean() - near[:, 1].mean()) < 0.1 * near[:, 1].std()


@pytest.mark.slow
def test_particle_gibbs_mixes_between_the_modes_of_a_modulus(mixture, draws):
    log_r = LIKELIHOODS["modulus"]
    mean, sd = moments(reweighted(draws[:100_000], log_r)[2], draws[:100_000])
    kernel = nd.infer.ParticleGibbs(smc_of(mixture, log_r).model)
    mcmc = MCMC(kernel, num_warmup=50, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    x = np.asarray(mcmc.get_samples()["x"], np.float64)
    size = numpyro.diagnostics.effective_sample_size(x[None])
    assert (size > 50).all()
    assert (abs(x.mean(0) - mean) < 4 * sd / np.sqrt(size)).all()


def test_what_a_bad_twist_does_is_said(mixture):
    """Of a twist that is asked for nothing is changed; the answer comes with its numbers."""
    sharp = lambda x: dist.Normal(x, 0.01).log_prob(jnp.array([1.3, 0.7])).sum()
    with pytest.warns(nd.ReliabilityWarning, match="this posterior may be wrong: .*effective number of particles"):
        smc = smc_of(mixture, sharp, num_particles=32, twist=twists.Flat()).run(jax.random.key(0))
    assert smc.reliability.least_size < 5
    assert "as asked for" in str(smc.plan)


@pytest.mark.slow
def test_a_second_opinion_agrees(mixture, of_mixture):
    """By draws of the prior where they suffice, and by tempering where they do not."""
    found = of_mixture.run(jax.random.key(0), NUMBER["square"]).cross_check(jax.random.key(1))
    assert found.method == "prior draws"
    assert found.agrees

    def narrow():
        x = numpyro.sample("x", mixture)
        numpyro.sample("y", dist.Normal(x, 0.02).to_event(1), obs=jnp.array([1.3, 0.7]))

    found = nd.infer.SMC(narrow).run(jax.random.key(0)).cross_check(jax.random.key(1), num_draws=1000)
    assert found.method == "tempering"
    assert abs(found.difference) < 4 * found.difference_error


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [nd.samplers.Ancestral(4), nd.samplers.DDIM(4)])
def test_one_rule_says_how_many_steps_an_answer_is_about(sampler):
    """The prior's own sampler does, in SMC, in particle Gibbs and for a product."""
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(16)), nd.denoisers.Gaussian(0.0, 1.0), 2)
    product = nd.DiffusionPrior(process, sampler=sampler) * nd.factors.Gaussian(1.0, 0.5)

    def model():
        numpyro.sample("x", product)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smc = nd.infer.SMC(model, num_particles=32).run(jax.random.key(0))
        found = product.smc(jax.random.key(0))
    assert smc.particles.ancestors.shape[1] == found.ancestors.shape[1] == 4
    state = nd.infer.ParticleGibbs(model).init(jax.random.key(0), 0, None, (), {})
    assert state.path.shape == (5, 2)


@pytest.mark.slow
def test_another_row_with_other_known_elements_compiles_nothing(mixture):
    """Which elements are known is data."""
    seen = []

    def model(values, mask):
        seen.append(isinstance(values, jax.core.Tracer))
        x = numpyro.sample("x", mixture * nd.factors.Delta(values, mask))
        numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=1.0)

    smc = nd.infer.SMC(model, num_particles=256, twist=twists.MomentMatched())
    smc.run(jax.random.key(0), jnp.array([0.5, 9.0]), jnp.array([True, False]))
    assert any(seen)
    seen.clear()
    smc.run(jax.random.key(1), jnp.array([9.0, 0.3]), jnp.array([False, True]))
    assert not any(seen)
    np.testing.assert_array_equal(smc.get_samples()["x"][:, 1], np.float32(0.3))


@pytest.mark.slow
def test_a_known_element_of_an_exact_mixture_beside_a_count():
    """Against quadrature over the other element, of the mixture's own law, which a chain of 60 steps has nearly."""
    locs, scales, shares = np.array([[-1.5, 0.0], [1.0, 1.0], [0.0, 2.0]]), [0.5, 0.4, 0.7], [0.3, 0.5, 0.2]
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(60))
    denoiser = nd.denoisers.GaussianMixture(locs, scales, shares)
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, 2))

    def model(y):
        x = numpyro.sample("x", prior * nd.factors.Delta([0.4, 9.0], [True, False]))
        numpyro.sample("y", dist.Poisson(jnp.exp(x.sum())), obs=y)

    other = np.linspace(-4.0, 6.0, 4_001)
    of_each = norm.pdf(0.4, locs[:, 0], scales) * norm.pdf(other[:, None], locs[:, 1], scales)
    density = of_each @ shares * poisson.pmf(5, np.exp(0.4 + other))
    evidence = np.trapezoid(density, other)
    share = density / density.sum()
    mean = share @ other
    sd = np.sqrt(share @ (other - mean) ** 2)
    smc = nd.infer.SMC(model, num_islands=16).run(jax.random.key(3), 5.0)
    assert smc.plan.sampler.twist == twists.Tempered(twists.MixtureMatched(), 0.5) and not smc.reliability.complaints
    assert abs(smc.log_evidence - np.log(evidence)) < 4 * smc.log_evidence_error + 0.03
    x = np.asarray(smc.get_samples()["x"], np.float64)
    np.testing.assert_array_equal(x[:, 0], np.float32(0.4))
    np.testing.assert_allclose([(x[:, 1].mean() - mean) / sd, x[:, 1].std() / sd], [0.0, 1.0], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "twist"), [(0.5, None), (0.05, None), (0.05, twists.MomentMatched("exact"))])
def test_a_linear_observation_of_an_exact_mixture(mixture, draws, noise, twist):
    """As a site of the model, which twists take in closed form; proposals must not be narrower than the target."""

    def model():
        x = numpyro.sample("x", mixture)
        numpyro.sample("y", dist.Normal(x.sum(), noise), obs=1.0)

    value, error, share = reweighted(draws, lambda x: dist.Normal(x.sum(), noise).log_prob(1.0))
    mean, sd = moments(share, draws)
    smc = nd.infer.SMC(model, num_islands=30, twist=twist).run(jax.random.key(3))
    assert isinstance(smc.plan.sampler.twist, twists.MixtureMatched if twist is None else twists.MomentMatched)
    assert abs(smc.log_evidence - value) < 4 * np.hypot(smc.log_evidence_error, error)
    assert smc.log_evidence_error < 0.02
    x = np.asarray(smc.get_samples()["x"], np.float64)
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0.0, atol=0.05)
    np.testing.assert_allclose(x.std(0) / sd, 1.0, atol=0.05)
