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


def test_islands_in_different_modes_are_seen():
    denoiser = nd.denoisers.GaussianMixture([[-3.0], [3.0]], [0.3, 0.3], [0.5, 0.5])
    prior = nd.DiffusionPrior(nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(100)), denoiser, 1))

    def model():
        numpyro.sample("y", dist.Normal(jnp.abs(numpyro.sample("x", prior)), 0.3).to_event(1), obs=jnp.full(1, 3.0))

    smc = nd.infer.SMC(model, sampler=nd.samplers.TwistedSMC(512, nd.twists.Tweedie(), antithetic=False))
    with pytest.warns(nd.ReliabilityWarning, match="mean of x is .* posterior standard deviations from the others"):
        smc.run(jax.random.key(1))
    assert not nd.infer.SMC(model, num_particles=32).run(jax.random.key(0)).reliability.complaints
