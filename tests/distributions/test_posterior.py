import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import numpyro_diffusion as nd

FACTOR = nd.factors.Gaussian(jnp.array([1.0, -1.0]), 0.5)


@pytest.fixture(scope="module")
def prior():
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(10, -9, 3))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (2,)))


@pytest.mark.slow
def test_draws_and_evidence_are_those_of_the_product(prior):
    posterior = prior * FACTOR
    x = np.asarray(posterior.sample(jax.random.key(0), (500,)), dtype=np.float64)
    variance = 0.2  # 1/(1 + 1/0.25)
    assert np.abs(x.mean(0) - 0.8 * np.array([1.0, -1.0])).max() < 5 * np.sqrt(variance / 500)
    assert np.abs(x.var(0) - variance).max() < 5 * variance * np.sqrt(2 / 500)
    particles = posterior.smc(jax.random.key(1), num_islands=3)
    exact = dist.Normal(0.0, np.sqrt(1.25)).log_prob(jnp.array([1.0, -1.0])).sum()
    np.testing.assert_allclose(particles.log_evidence, exact, atol=5e-3)


def test_log_prob_is_prior_plus_log_r(prior):
    posterior, x = prior * FACTOR, jnp.array([[0.0, 0.0], [1.0, 2.0], [0.3, -0.2]])
    np.testing.assert_allclose(posterior.log_prob(x), prior.log_prob(x) + posterior.log_r(x), rtol=1e-5)
    np.testing.assert_allclose(posterior.log_r(x), [float(FACTOR.log_r(value)) for value in x], rtol=1e-5)


def test_factors_multiply(prior):
    twice = prior * FACTOR * FACTOR
    x = jnp.ones(2)
    np.testing.assert_allclose(twice.log_r(x), 2 * FACTOR.log_r(x), rtol=1e-6)


def test_priors_and_posteriors_are_asked_alike(prior):
    assert prior.prior is prior
    assert prior.factor.parts == (prior**2).factor.parts == ()
    x, posterior = jnp.ones((3, 2)), prior * FACTOR
    np.testing.assert_array_equal(prior.as_posterior().log_r(x), jnp.zeros(3))
    assert posterior.factor.parts == (FACTOR,)
    assert posterior.prior.process.event_shape == prior.process.event_shape


@pytest.mark.slow
def test_it_is_a_site(prior):
    """NUTS and an automatic guide find its posterior, given one more observation: precisions and their means add up."""
    loc, y = jnp.array([1.0, -1.0]), np.array([[2.0, 0.0], [-0.5, 1.0]])
    own = prior.with_(likelihood=nd.KBound(16))  # whose frozen noise moves the posterior's mean by less than 0.01
    posterior = nd.DiffusionPosterior(own, FACTOR, nd.samplers.Guided())  # quick to compile; nothing draws by it

    def model():
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", posterior)
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    precision = 1 + 4 + 1
    mean, sd = (4 * loc + y) / precision, np.sqrt(1 / precision)
    mcmc = MCMC(NUTS(model), num_warmup=150, num_samples=600, progress_bar=False)
    mcmc.run(jax.random.key(2))
    draws = np.asarray(mcmc.get_samples()["x"], np.float64)
    assert draws.shape == (600, 2, 2)
    size = effective_sample_size(draws[None])
    assert size.min() > 100
    assert (abs(draws.mean(0) - mean) < 4 * sd / np.sqrt(size) + 0.01).all()
    assert (abs(draws.std(0) / sd - 1) < 4 / np.sqrt(2 * size) + 0.01).all()
    guide = AutoNormal(model)
    fitted = SVI(model, guide, numpyro.optim.Adam(0.03), Trace_ELBO(4)).run(jax.random.key(3), 400, progress_bar=False)
    np.testing.assert_allclose(guide.median(fitted.params)["x"], mean, atol=0.1)
    np.testing.assert_allclose(fitted.params["x_auto_scale"], sd, atol=0.1)
    assert jax.jit(lambda d, x: d.log_prob(x))(posterior, jnp.zeros(2)).shape == ()


def test_what_does_not_fit_is_refused(prior):
    with pytest.raises(ValueError, match="loc: expected a shape that broadcasts to"):
        prior * nd.factors.Gaussian(jnp.zeros(3), 1.0)
    with pytest.raises(TypeError):
        prior * 2.0
    with pytest.raises(ValueError, match=r"prior: expected batch shape \(\), got \(3,\)"):
        prior.expand((3,)) * FACTOR
    with pytest.raises(ValueError, match="smc: expected a TwistedSMC"):
        nd.DiffusionPosterior(prior, FACTOR, nd.samplers.Guided()).smc(jax.random.key(0))


def test_the_order_of_the_product_is_free(prior):
    for left, right in ((FACTOR * prior, prior * FACTOR), (FACTOR * (prior * FACTOR), prior * FACTOR * FACTOR)):
        assert type(left) is nd.DiffusionPosterior and jax.tree.structure(left) == jax.tree.structure(right)


def test_a_posterior_with_other_parts(prior):
    """Those that are not named stay, batches too."""
    posterior = (prior * FACTOR).expand((3,))
    wider, sampler = nd.factors.Gaussian(0.0, 2.0), nd.samplers.TwistedSMC(7)
    assert posterior.with_(factor=wider).factor is not FACTOR and posterior.with_(factor=wider).batch_shape == (3,)
    changed = posterior.with_(sampler=sampler, likelihood=nd.KBound(1), key=jax.random.key(5))
    assert changed.sampler == sampler and changed.prior.likelihood == nd.KBound(1)
    assert (jax.random.key_data(changed.prior.key) == jax.random.key_data(jax.random.key(5))).all()
    assert changed.prior.sampler == prior.sampler and (changed.factor.loc == FACTOR.loc).all()
    with pytest.raises(TypeError, match="unexpected keyword argument 'twist'"):
        posterior.with_(twist=nd.twists.Flat())


@pytest.mark.slow
def test_the_only_site_needs_no_name(prior):
    """Where there is one, it is found; where there are more or none, that is said."""

    def model(y):
        weights = numpyro.sample("weights", prior)
        numpyro.sample("y", dist.Normal(weights, 0.5).to_event(1), obs=y)

    factor = nd.infer.extract_factor(model, None, jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(factor.loc, FACTOR.loc, rtol=1e-6)
    smc = nd.infer.SMC(model, None, num_particles=8, num_islands=2, twist=nd.twists.Laplace())
    assert list(smc.run(jax.random.key(0), jnp.array([1.0, -1.0])).get_samples()) == ["weights"]
    gibbs = MCMC(nd.infer.ParticleGibbs(model, None, num_particles=2), num_warmup=0, num_samples=2, progress_bar=False)
    gibbs.run(jax.random.key(0), jnp.array([1.0, -1.0]))
    assert list(gibbs.get_samples()) == ["weights"]
    with pytest.raises(ValueError, match="model: expected one latent diffusion site, got none"):
        nd.infer.SMC(lambda: numpyro.sample("x", dist.Normal()), None).run(jax.random.key(0))
