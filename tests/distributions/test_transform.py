"""A prior in coordinates of its own: densities, draws, factors and samplers are about the data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms
from scipy.stats import lognorm, multivariate_normal, poisson

import numpyro_diffusion as nd

LOC = np.array([1.0, -2.0, 0.5])
ROOT = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.4, 0.3]])
COVARIANCE = ROOT @ ROOT.T
WHITE = transforms.LowerCholeskyAffine(jnp.asarray(LOC), jnp.asarray(ROOT))


def process(size=3, num_steps=12):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps))
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), size)


@pytest.fixture(scope="module")
def correlated():
    return nd.DiffusionPrior(process(), transform=WHITE)


@pytest.fixture(scope="module")
def positive():
    """A log-normal law."""
    parts = [transforms.AffineTransform(jnp.array([0.3, -0.2]), jnp.array([0.5, 0.8])), transforms.ExpTransform()]
    return nd.DiffusionPrior(process(2), transform=transforms.ComposeTransform(parts))


def test_the_density_counts_the_jacobian(correlated, positive):
    x = LOC + np.random.default_rng(0).normal(size=(5, 3)) @ ROOT.T
    found = correlated.log_prob(x)
    np.testing.assert_allclose(found, multivariate_normal(LOC, COVARIANCE).logpdf(x), atol=1e-3)
    np.testing.assert_allclose(correlated.estimate(x).value, found, rtol=1e-6)
    np.testing.assert_allclose(correlated.estimate(x, key=jax.random.key(3)).value, found, atol=1e-3)
    values = jnp.array([[0.7, 1.3], [2.0, 0.1]])
    exact = dist.LogNormal(jnp.array([0.3, -0.2]), jnp.array([0.5, 0.8])).log_prob(values).sum(-1)
    np.testing.assert_allclose(positive.log_prob(values), exact, atol=1e-3)
    assert str(positive.support) == str(dist.LogNormal(jnp.zeros(2), 1.0).to_event(1).support)


def test_draws_are_pushed_forward(correlated, positive):
    key = jax.random.key(1)
    x = np.asarray(correlated.sample(key, (4000,)))
    assert np.abs(np.cov(x.T) - COVARIANCE).max() < 0.1
    plain = nd.DiffusionPrior(process()).sample(key, (4000,))
    np.testing.assert_allclose(x, correlated.transform(plain), rtol=1e-5, atol=1e-5)
    assert correlated.sample_trajectory(key, (2,)).shape == (2, 13, 3)
    assert (positive.sample(key, (50,)) > 0).all()
    noise = jax.random.normal(key, positive.noise_shape)
    assert (positive.from_noise(noise) > 0).all()
    other = positive.with_(key=key).expand((3,))
    assert other.transform is not None
    assert other.log_prob(jnp.ones(2)).shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["correlated", "positive"])
def test_a_file_holds_the_transform(name, request, tmp_path):
    prior = request.getfixturevalue(name)
    prior.save(tmp_path / "prior.safetensors")
    again = nd.load(tmp_path / "prior.safetensors")
    x = prior.sample(jax.random.key(0), (3,))
    np.testing.assert_array_equal(again.log_prob(x), prior.log_prob(x))
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), again.transform, prior.transform)
    assert all(jax.tree.leaves(same))


def test_what_does_not_fit_is_refused(correlated):
    with pytest.raises(TypeError, match=r"transform: expected a numpyro.distributions.transforms.Transform, got 2"):
        nd.DiffusionPrior(process(), transform=2)
    with pytest.raises(ValueError, match="transform: expected one of all real numbers"):
        nd.DiffusionPrior(process(), transform=transforms.StickBreakingTransform())
    with pytest.raises(ValueError, match="transform: expected one of all real numbers"):
        nd.DiffusionPrior(process(), transform=transforms.AffineTransform(0.0, 1.0, constraints.positive))
    bits = nd.ReverseProcess(
        nd.BinomialDiffusion(nd.schedules.erasing(4)), nd.denoisers.Enumerated([[0], [1]], [0.4, 0.6]), 1
    )
    with pytest.raises(ValueError, match="transform: expected None for a prior of bits"):
        nd.DiffusionPrior(bits, transform=WHITE)
    with pytest.raises(ValueError, match="prior: expected one without a transform"):
        nd.save_diffusers(correlated, "nowhere")
    log = nd.DiffusionPrior(process(), transform=transforms.ExpTransform())
    with pytest.raises(ValueError, match="values: expected known values on the prior's support"):
        _ = log * nd.factors.Delta(-jnp.ones(3), jnp.array([True, False, False]))


def conditioned(mask, values):
    """Mean, covariance and log density of a normal law with some elements known."""
    seen, free = np.flatnonzero(mask), np.flatnonzero(~mask)
    gain = COVARIANCE[np.ix_(free, seen)] @ np.linalg.inv(COVARIANCE[np.ix_(seen, seen)])
    mean = LOC[free] + gain @ (values - LOC)[seen]
    left = COVARIANCE[np.ix_(free, free)] - gain @ COVARIANCE[np.ix_(seen, free)]
    return mean, left, multivariate_normal(LOC[seen], COVARIANCE[np.ix_(seen, seen)]).logpdf(values[seen])


@pytest.mark.slow
def test_known_elements_through_correlations(correlated):
    mask, values = np.array([True, False, True]), np.array([1.7, 99.0, -0.2])
    mean, left, log_evidence = conditioned(mask, values)
    posterior = correlated * nd.factors.Delta(values, mask)
    particles = posterior.smc(jax.random.key(0), 2)
    np.testing.assert_array_equal(particles.x[..., mask], np.broadcast_to(values[mask], (2, 64, 2)).astype(np.float32))
    np.testing.assert_allclose(particles.log_evidence, log_evidence, atol=5e-3)
    draws = np.asarray(posterior.sample(jax.random.key(1), (1000,)))[:, 1]
    assert abs(draws.mean() - mean[0]) < 4 * np.sqrt(left[0, 0] / 1000)
    assert abs(draws.std() / np.sqrt(left[0, 0]) - 1) < 0.07


@pytest.mark.slow
def test_known_elements_of_a_positive_law(positive):
    mask = jnp.array([True, False])
    posterior = positive * nd.factors.Delta(jnp.array([0.9, -1.0]), mask)
    particles = posterior.smc(jax.random.key(0))
    np.testing.assert_allclose(particles.log_evidence[0], dist.LogNormal(0.3, 0.5).log_prob(0.9), atol=2e-3)
    np.testing.assert_allclose(particles.x[..., 0], 0.9, rtol=1e-6)
    assert (particles.x[..., 1] > 0).all()


def observed(prior, y, scale):
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x @ jnp.array([1.0, 0.5, -1.0]), scale), obs=y)


@pytest.mark.slow
def test_a_linear_observation_stays_one(correlated):
    row, y, scale = np.array([1.0, 0.5, -1.0]), 2.0, 0.3
    spread = row @ COVARIANCE @ row + scale**2
    smc = nd.infer.SMC(observed, num_particles=128).run(jax.random.key(0), correlated, y, scale)
    assert abs(smc.log_evidence - dist.Normal(LOC @ row, np.sqrt(spread)).log_prob(y)) < 5e-3
    assert smc.log_evidence_error < 5e-3
    mean = LOC + COVARIANCE @ row * (y - LOC @ row) / spread
    left = np.diag(COVARIANCE) - (COVARIANCE @ row) ** 2 / spread
    x = np.asarray(smc.get_samples()["x"])
    assert (np.abs(x.mean(0) - mean) < 4 * np.sqrt(left / 512)).all()


def counts(prior, y):
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Poisson(x).to_event(1), obs=y)


@pytest.mark.slow
def test_counts_of_a_positive_law(positive):
    """Poisson counts with log-normal rates, against quadrature."""
    y = jnp.array([3, 0])
    rate = np.exp(np.linspace(-8, 6, 4001))
    law = lognorm([0.5, 0.8], scale=np.exp([0.3, -0.2]))
    density = law.pdf(rate[:, None]) * poisson(rate[:, None]).pmf(np.asarray(y))
    evidence = np.trapezoid(density, rate, axis=0)
    mean = np.trapezoid(density * rate[:, None], rate, axis=0) / evidence
    smc = nd.infer.SMC(counts).run(jax.random.key(0), positive, y)
    assert abs(smc.log_evidence - np.log(evidence).sum()) < 4 * smc.log_evidence_error + 0.01
    x = np.asarray(smc.get_samples()["x"])
    assert (np.abs(x.mean(0) - mean) < 4 * x.std(0) / np.sqrt(512)).all()
    mcmc = numpyro.infer.MCMC(nd.infer.ParticleGibbs(counts), num_warmup=50, num_samples=500, progress_bar=False)
    mcmc.run(jax.random.key(1), positive, y)
    x = np.asarray(mcmc.get_samples()["x"])
    assert (np.abs(x.mean(0) - mean) < 4 * x.std(0) / np.sqrt(250)).all()
    run = nd.infer.TemperedSMC(counts, progress_bar=False).run(jax.random.key(2), positive, y)
    assert abs(run.log_evidence - np.log(evidence).sum()) < 4 * run.log_evidence_error + 0.02


def two(prior, y):
    with numpyro.plate("rows", 2):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[:, 0], 0.5), obs=y)
    numpyro.sample("sum", dist.Normal(x[:, 1].sum(), 0.5), obs=0.0)


@pytest.mark.slow
def test_draws_that_are_used_together(correlated):
    """A plate whose elements another site sums: six correlated numbers, three linear observations."""
    y = jnp.array([1.0, 2.5])
    rows = np.zeros((3, 6))
    rows[0, 0] = rows[1, 3] = rows[2, 1] = rows[2, 4] = 1.0
    loc, covariance = np.tile(LOC, 2), np.kron(np.eye(2), COVARIANCE)
    law = multivariate_normal(rows @ loc, rows @ covariance @ rows.T + 0.25 * np.eye(3))
    smc = nd.infer.SMC(two, num_particles=128).run(jax.random.key(0), correlated, y)
    assert abs(smc.log_evidence - law.logpdf([1.0, 2.5, 0.0])) < 4 * smc.log_evidence_error + 0.01
    assert smc.get_samples()["x"].shape == (512, 2, 3)
