import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

FACTOR = nd.factors.Gaussian(jnp.array([1.0, -1.0]), 0.5)


@pytest.fixture(scope="module")
def prior():
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(10, -9, 3))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (2,)))


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


def test_it_is_a_site(prior):
    posterior = nd.DiffusionPosterior(prior, FACTOR, nd.samplers.Guided())  # quick to compile; NUTS draws nothing by it

    def model():
        with numpyro.plate("n", 2):
            numpyro.sample("x", posterior)

    mcmc = MCMC(NUTS(model, max_tree_depth=2), num_warmup=3, num_samples=3, progress_bar=False)
    mcmc.run(jax.random.key(2))
    assert mcmc.get_samples()["x"].shape == (3, 2, 2)
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
