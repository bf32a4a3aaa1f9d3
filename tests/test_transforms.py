"""Elements with bounds of their own: one to one, with their volume; priors of them against exact densities."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import ComposeTransform, LowerCholeskyAffine

import numpyro_diffusion as nd
from numpyro_diffusion.transforms import Bounded

INF = np.inf
LOW, HIGH = np.array([0.0, -INF, -1.0, -INF]), np.array([INF, INF, 3.0, 2.0])
LOC, ROOT = np.array([0.5, -1.0, 0.2]), np.array([[0.8, 0.0, 0.0], [0.5, 0.6, 0.0], [0.3, -0.4, 0.9]])


def _prior():
    """exp z_0, z_1 and σ(z_2) of a Gaussian z with correlations; its chain is exact in whitened coordinates."""
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(16)), nd.denoisers.Gaussian(0.0, 1.0), 3)
    own = Bounded([0.0, -INF, 0.0], [INF, INF, 1.0])
    return nd.DiffusionPrior(process, transform=ComposeTransform([LowerCholeskyAffine(LOC, ROOT), own]))


def _data(count, seed=0):
    """Draws, and their exact log densities."""
    z = LOC + np.random.default_rng(seed).normal(size=(count, 3)) @ ROOT.T
    x = np.stack([np.exp(z[:, 0]), z[:, 1], 1 / (1 + np.exp(-z[:, 2]))], 1)
    volume = z[:, 0] + np.log(x[:, 2]) + np.log1p(-x[:, 2])
    return x, np.asarray(dist.MultivariateNormal(LOC, scale_tril=ROOT).log_prob(z)) - volume


@pytest.mark.slow
def test_every_element_keeps_its_bounds():
    transform, z = Bounded(LOW, HIGH), jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.float32)
    x = transform(z)
    np.testing.assert_allclose(transform.inv(x), z, atol=1e-5)
    exact = jax.vmap(lambda z: jnp.log(jnp.diag(jax.jacobian(transform)(z))))(z)
    np.testing.assert_allclose(transform.log_abs_det_jacobian(z, x), exact, atol=1e-5)
    np.testing.assert_allclose(x[:, 1], z[:, 1])
    far = transform(jnp.array([[-1e6] * 4, [1e6] * 4, [0.0] * 4], jnp.float32))
    assert bool(jnp.all(transform.codomain(far))) and bool(jnp.all(jnp.isfinite(transform.inv(far))))
    grad = jax.grad(lambda z: jnp.sum(jnp.clip(transform(z), -10.0, 10.0)))(jnp.full(4, 500.0))
    assert bool(jnp.all(jnp.isfinite(grad)))
    assert bool(dist.biject_to(transform.codomain)(z)[0, 0] == x[0, 0])  # what HMC moves in
    assert transform == Bounded(LOW, HIGH) and transform != Bounded(LOW, HIGH + 1)
    assert not bool(transform.codomain(jnp.array([-1.0, 0.0, 0.0, 0.0]))[0])


def test_bounds_that_are_none_are_refused():
    with pytest.raises(ValueError, match="low, high: expected lower bounds below the upper ones"):
        Bounded(1.0, 0.0)
    with pytest.raises(ValueError, match="low, high: expected lower bounds below"):
        Bounded(np.nan, 0.0)
    with pytest.raises(TypeError, match="low: expected"):
        Bounded("zero", 1.0)


@pytest.mark.slow
def test_a_prior_of_bounded_elements_has_their_density_and_support(tmp_path):
    """K is exact here. Off the support the density is 0, and a file has all of it."""
    prior, (x, exact) = _prior(), _data(40)
    np.testing.assert_allclose(prior.log_prob(jnp.asarray(x, jnp.float32)), exact, atol=2e-3)
    beyond = jnp.array([[-0.1, 0.0, 0.5], [1.0, 0.0, 1.1]])
    assert bool(jnp.all(jax.jit(lambda x: prior.estimate(x).value)(beyond) == -INF))
    draws = prior.sample(jax.random.key(1), (4000,))
    assert bool(jnp.all(prior.support(draws)))
    logs = np.log(np.asarray(draws[:, 0]))
    assert abs(logs.mean() - LOC[0]) < 4 * 0.8 / np.sqrt(4000) and abs(logs.std() - 0.8) < 4 * 0.8 / np.sqrt(8000)
    prior.save(tmp_path / "prior")
    again = nd.load(tmp_path / "prior")
    np.testing.assert_array_equal(again.log_prob(x[:3]), prior.log_prob(x[:3]))
    assert repr(again.support) == repr(prior.support)


@pytest.mark.slow
def test_known_cells_are_in_closed_form():
    """The evidence of a known x is its density, ``log |dx/dz|`` counted; the others have their exact conditional."""
    prior, known = _prior(), jnp.array([True, False, False])
    value = jnp.array([2.5, 0.0, 0.0])
    posterior = nd.DiffusionPosterior(prior, nd.factors.Delta(value, known), nd.samplers.TwistedSMC(512))
    particles = posterior.smc(jax.random.key(0), 4)
    exact = dist.Normal(LOC[0], 0.8).log_prob(np.log(2.5)) - np.log(2.5)
    np.testing.assert_allclose(jax.nn.logsumexp(particles.log_evidence) - np.log(4), exact, atol=0.02)
    np.testing.assert_array_equal(particles.x[..., 0], 2.5)
    weight = jax.nn.softmax(particles.log_weight + particles.log_evidence[:, None], axis=None)
    mean = float(jnp.sum(weight * particles.x[..., 1]))
    expected = LOC[1] + 0.5 / 0.8 * (np.log(2.5) - LOC[0])  # of z_1 given z_0
    assert abs(mean - expected) < 4 * 0.6 / np.sqrt(4 * 512) + 0.01
