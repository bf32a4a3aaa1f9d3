"""What islands say about one another."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.samplers import Particles, reliability
from numpyro_diffusion.samplers.reliability import farthest_mean


def islands(x, log_weight=None):
    """Runs of one step with these draws, shape (islands, *batch, N, *event)."""
    shape = np.shape(x)[:2] if log_weight is None else np.shape(log_weight)
    weights = np.full(shape, -np.log(shape[-1])) if log_weight is None else log_weight
    sizes = np.full((*shape[:-1], 2), float(shape[-1]))
    return Particles(jnp.asarray(x), jnp.asarray(weights), jnp.zeros(shape[:-1]), jnp.asarray(sizes), jnp.zeros((1,)))


def test_one_island_with_mass_where_the_others_have_none():
    """Eight hundredths of its particles, 20 standard deviations away: weights and evidences do not show it."""
    x = np.random.default_rng(0).normal(size=(4, 500, 3))
    found = reliability(islands(x))
    assert found.mean_gap < 0.2 and found.complaints == []
    x[2, :40, 1] += 20
    found = reliability(islands(x))
    assert 1.3 < found.mean_gap < 1.9 and found.khat == found.gap == 0
    assert "mean of x is 1." in found.complaints[0] and len(found.complaints) == 1
    assert reliability(islands(x[:1])).mean_gap == 0


def test_few_particles_may_have_means_apart():
    x = np.random.default_rng(1).normal(size=(4, 16, 300))
    found = reliability(islands(x))
    assert found.noise_of_means == 1.25 and not found.complaints
    x[3] += 4
    assert reliability(islands(x)).complaints


def test_a_batch_known_elements_and_bits():
    rng = np.random.default_rng(2)
    weights = np.full((4, 2, 200), -np.log(200.0))
    x = np.full((4, 2, 200, 2), 1e4)
    x[..., 1] = rng.normal(size=(4, 2, 200))
    assert reliability(islands(x, weights)).mean_gap < 0.4
    x[3, 1, :, 1] += 2
    assert 1.6 < reliability(islands(x, weights)).mean_gap < 2.4
    bits = np.zeros((4, 200, 5), np.int32)
    bits[1, :2, 0] = 1  # one in a hundred, in one island
    assert reliability(islands(bits)).mean_gap < 1
    bits[1, :100, 0] = 1
    assert reliability(islands(bits)).complaints


def test_rare_values_of_many_bits():
    """Of 30,000 pixels, each black in one draw of a hundred, some are black five times in one island by chance."""
    bits = np.random.default_rng(3).random((4, 64, 30_000)) < 0.01
    assert bits.sum(1).max() >= 5 and not reliability(islands(bits.astype(np.int32))).complaints


def test_draws_of_other_unknowns():
    rng = np.random.default_rng(4)
    values = {
        "scale": rng.normal(size=(4, 256)),
        "label": (rng.random((4, 256)) < 0.02).astype(int),
        "none": np.ones((4, 256)),
    }
    assert farthest_mean(values).complaint is None
    values["ratio"] = np.full((4, 256), np.nan)
    values["scale"][1] += 1.5
    assert farthest_mean(values).complaint.startswith("an island's mean of 'scale' is 1.")
    assert farthest_mean({"one": values["scale"][:1]}).complaint is None


@pytest.mark.slow
def test_islands_in_different_modes_are_seen():
    denoiser = nd.denoisers.GaussianMixture([[-3.0], [3.0]], [0.3, 0.3], [0.5, 0.5])
    prior = nd.DiffusionPrior(nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(100)), denoiser, 1))

    def model():
        numpyro.sample("y", dist.Normal(jnp.abs(numpyro.sample("x", prior)), 0.3).to_event(1), obs=jnp.full(1, 3.0))

    smc = nd.infer.SMC(model, sampler=nd.samplers.TwistedSMC(512, nd.twists.Tweedie(), antithetic=False))
    with pytest.warns(nd.ReliabilityWarning, match="mean of x is .* posterior standard deviations from the others"):
        smc.run(jax.random.key(1))
    assert not nd.infer.SMC(model, num_particles=32).run(jax.random.key(0)).reliability.complaints


LOCS = jnp.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
SCALES, WEIGHTS, OPERATOR = jnp.array([0.5, 0.4, 0.7]), jnp.array([0.3, 0.5, 0.2]), jnp.array([[1.0, 0.5]])


def posterior(num_steps, observed):
    """Of a mixture by its exact denoiser, under one linear observation."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps), scale=2.0, loc=0.3)
    denoiser = nd.denoisers.GaussianMixture(LOCS, SCALES, WEIGHTS)
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, 2))
    factor = nd.factors.LinearGaussian(jnp.array([observed]), OPERATOR, 0.3)
    return nd.DiffusionPosterior(prior, factor, sampler=nd.samplers.TwistedSMC(512))


@pytest.mark.parametrize("observed", [1.0, 7.0])
def test_the_evidence_of_the_law_is_that_of_quadrature(observed):
    """Of one element of it: A x is a mixture on a line."""
    one = posterior(10, observed)
    scale = jnp.sqrt(jnp.square(SCALES) * jnp.sum(jnp.square(OPERATOR)) + 0.3**2)
    each = dist.Normal((LOCS @ OPERATOR.T)[:, 0], scale).log_prob(observed)
    exact = jax.scipy.special.logsumexp(jnp.log(WEIGHTS) + each)
    assert nd.twists.law_log_evidence(one.prior.process, one.factor) == pytest.approx(float(exact), abs=1e-4)


def test_a_chain_of_few_steps_far_out():
    """It answers for its own law, which is nats away from the mixture there, and says so."""
    with pytest.warns(
        nd.ReliabilityWarning, match=r"at least [23]\.\d nats above that of the law that its denoiser is"
    ):
        particles = posterior(16, 7.0).smc(jax.random.key(0), 4)
    assert not reliability(particles).complaints_of_weights


@pytest.mark.slow
@pytest.mark.parametrize(("num_steps", "observed"), [(16, 1.0), (100, 7.0)])
@pytest.mark.filterwarnings("error")
def test_a_chain_that_is_near_its_law(num_steps, observed):
    particles = posterior(num_steps, observed).smc(jax.random.key(0), 4)
    assert jnp.isfinite(particles.excess).all() and abs(reliability(particles).excess) < 0.5


def test_where_the_law_has_no_closed_form():
    """Known elements, other factors, and other denoisers."""
    process = posterior(10, 1.0).prior.process
    known = nd.factors.Delta(jnp.zeros(2), jnp.array([True, False]))
    counted = nd.factors.Factor(lambda x: dist.Poisson(jnp.exp(x[0])).log_prob(2))
    assert nd.twists.law_log_evidence(process, known) is None
    assert nd.twists.law_log_evidence(process, counted) is None
    assert nd.twists.law_log_evidence(process, nd.factors.Product(())) is None
    network = nd.ReverseProcess(process.diffusion, nd.denoisers.Network(lambda x, t: x), 2)
    assert nd.twists.law_log_evidence(network, nd.factors.Gaussian(0.0, 1.0)) is None


@pytest.mark.filterwarnings("error")
def test_a_mixture_without_any_observation_has_draws_of_its_own():
    particles = posterior(10, 1.0).prior.as_posterior().smc(jax.random.key(0), 2)
    assert particles.excess is None and jnp.abs(particles.log_evidence).max() < 1e-4


@pytest.mark.slow
def test_the_evidence_of_correlated_components_in_a_plate():
    """Each element of the plate has its own; of one component it is the normal law's."""
    covariance = jnp.array([[1.0, 0.6], [0.6, 0.5]])
    denoiser = nd.denoisers.FullGaussianMixture(jnp.zeros((1, 2)), covariance[None], jnp.ones(1))
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(50)), denoiser, 2)
    observed = jnp.array([0.5, 3.0])

    def model():
        with numpyro.plate("rows", 2):
            x = numpyro.sample("x", nd.DiffusionPrior(process))
            numpyro.sample("y", dist.Normal(x.sum(-1), 0.3), obs=observed)

    smc = nd.infer.SMC(model, num_particles=256, num_islands=4).run(jax.random.key(0))
    exact = dist.Normal(0.0, jnp.sqrt(covariance.sum() + 0.3**2)).log_prob(observed)
    assert smc.particles.excess.shape == (4, 2)
    np.testing.assert_allclose(smc.particles.log_evidence - smc.particles.excess, jnp.stack([exact] * 4), atol=1e-4)


def test_an_evidence_below_that_of_the_law_may_be_a_mode_that_was_missed():
    """More particles are tried for it; of one island a nat is left to chance, and one without mass says nothing."""
    x = np.random.default_rng(0).normal(size=(4, 500, 3))
    of = lambda *values: reliability(islands(x[: len(values)])._replace(excess=jnp.array(values)))
    assert "may have missed a mode" in of(-3.0, -3.1, -2.9, -3.0).complaints_of_weights[0]
    assert "at least 1.5 nats above" in of(2.5).complaints[0] and not of(1.9).complaints
    assert of(-np.inf, 0.0, 0.1, 0.0).excess == of(0.0, 0.0, 0.0, 0.0).excess == 0.0
