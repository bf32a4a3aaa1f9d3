"""The reverse SDE keeps the data's law at every noise level; DDIM and the flow are members of the family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.samplers import DDIM, SDE, Ancestral
from numpyro_diffusion.samplers.smooth import Level, Move, State

MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[1.5, 0.9], [0.9, 1.0]])
LOCS, SCALES, WEIGHTS = np.array([[-1.5], [1.0]]), np.array([0.4, 0.6]), np.array([0.4, 0.6])
NOISES = (0.0, 0.5, 1.0, 1.5)


def gaussian(num_steps=50):
    """The exact denoiser of correlated normal data, off the noise law's location and scale."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -10, 8), 0.3, 1.2)
    mean, covariance = diffusion.standardize(MEAN), COVARIANCE / 1.2**2

    def predict(z, t):
        kept = diffusion.schedule.alpha_bar(t)
        spread = kept * covariance + (1 - kept) * jnp.eye(2)
        return mean + jnp.sqrt(kept) * covariance @ jnp.linalg.solve(spread, z - jnp.sqrt(kept) * mean)

    return nd.ReverseProcess(diffusion, nd.denoisers.Network(predict, "data"), (2,))


def mixture(num_steps=50):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9, 6), 0.2, 1.3)
    return nd.ReverseProcess(diffusion, nd.denoisers.GaussianMixture(LOCS, SCALES, WEIGHTS), (1,))


def law(sampler, process):
    """Mean and covariance of the draws, exact where the denoiser is linear: so is the map from noise to draws."""
    shape = sampler.noise_shape(process)
    count = int(np.prod(shape))
    noise = np.concatenate([np.zeros((1, count)), np.eye(count)]).reshape(-1, *shape)
    x = np.asarray(jax.jit(jax.vmap(lambda noise: sampler.from_noise(noise, process)))(noise))
    columns = (x[1:] - x[0]).reshape(count, -1)
    return x[0], columns.T @ columns


def error(sampler, process):
    mean, covariance = law(sampler, process)
    return max(np.abs(mean - MEAN).max(), np.abs(covariance - COVARIANCE).max())


@pytest.mark.parametrize("noise", NOISES)
def test_mean_and_covariance_are_kept(noise, x64):
    """At every noise level, to what the steps' errors leave: exactly computed, no draws."""
    process = gaussian()
    for method, slack in (("heun", 0.012), ("multistep", 0.025), ("exponential", 0.1), ("euler", 0.1)):
        assert error(SDE(noise, 160, method), process) < slack, method


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("exponential", 1), ("heun", 2), ("multistep", 2)])
def test_orders(method, order, x64):
    """Half the step, half or a quarter of the error; with much noise too."""
    process = gaussian()
    coarse, fine = (error(SDE(1.5, count, method), process) for count in (100, 199))
    assert order - 0.35 < np.log2(coarse / fine) < order + 0.5


def test_the_printed_drift_is_wrong(monkeypatch, x64):
    """(1 + λ)/2 with noise λ ends with variance λ in place of 1; (1 + λ²)/2 keeps it."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(50, -10, 8))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (1,))
    variance = lambda noise: law(SDE(noise, 160), process)[1].item()
    assert abs(variance(0.5) - 1) < 0.005
    monkeypatch.setattr(SDE, "pull", property(lambda self: (1 + self.noise) / 2))
    assert abs(variance(0.5) - 0.5) < 0.02
    assert abs(variance(1.0) - 1) < 0.005


def test_the_flow_keeps_quantiles_and_is_inverted(x64):
    """In one dimension the flow is the map between quantiles; encode, decode and back to 1e-3."""
    process = mixture()
    x_T = process.diffusion.unstandardize(jnp.linspace(-2.5, 2.5, 41))[:, None]
    smooth = np.sqrt(SCALES**2 + (1.3 * np.exp(-3)) ** 2)
    for method, slack in (("heun", 1e-3), ("multistep", 2e-3)):
        flow = SDE(0.0, 160, method)
        decode, encode = (jax.jit(lambda x, map=map: map(process, x)) for map in (flow.decode, flow.encode))
        x_0 = decode(x_T)
        share = (WEIGHTS * norm.cdf((x_0 - LOCS[:, 0]) / smooth)).sum(1)
        kept = process.diffusion.schedule.alpha_bar(50)
        locs, scales = 0.2 + np.sqrt(kept) * (LOCS[:, 0] - 0.2), np.sqrt(kept * SCALES**2 + (1 - kept) * 1.3**2)
        np.testing.assert_allclose(share, (WEIGHTS * norm.cdf((x_T - locs) / scales)).sum(1), atol=slack)
        np.testing.assert_allclose(encode(x_0), x_T, atol=1e-3)
        np.testing.assert_allclose(decode(encode(x_T)), x_T, atol=1e-3)  # any points will do as data


def test_ddim_is_of_the_family():
    """η = 0 is the flow and η = 1 the bridge, exactly; between them η tends to λ as steps shrink."""
    process = mixture(161)

    def gap(share, count):
        ddim = DDIM(count, share)
        sde = SDE(share, None, "exponential", tuple(Ancestral(count).times(process)))
        noise = jax.random.normal(jax.random.key(0), (64, *ddim.noise_shape(process)))
        assert ddim.noise_shape(process) == sde.noise_shape(process) == ((count + 1 if share else 2), 1)
        both = jax.jit(jax.vmap(lambda noise: jnp.stack([x.from_noise(noise, process) for x in (ddim, sde)])))
        return float(jnp.abs(jnp.diff(both(noise), axis=1)).mean())

    assert gap(0.0, 41) < 1e-5
    assert gap(1.0, 41) < 1e-5
    coarse, fine = gap(0.5, 41), gap(0.5, 161)
    assert 1e-3 < coarse
    assert fine < 0.4 * coarse


def test_both_forms_are_one_process(x64):
    """The map between the forms is exact: steps in either differ by the terms of higher order only."""
    process, t = mixture(), 20.3
    diffusion, schedule = process.diffusion, process.diffusion.schedule
    x_t = diffusion.marginal(jnp.array([0.7]), t).sample(jax.random.key(0), (5,))
    np.testing.assert_allclose(diffusion.from_exploding(diffusion.to_exploding(x_t, t), t), x_t, rtol=1e-12)
    marginal, sigma = diffusion.marginal(jnp.array([0.7]), t), np.exp(-schedule.log_snr(t) / 2)
    np.testing.assert_allclose(diffusion.to_exploding(marginal.mean, t), [0.7], rtol=1e-12)
    higher = diffusion.to_exploding(marginal.mean + marginal.variance**0.5, t)
    np.testing.assert_allclose(higher - 0.7, [1.3 * sigma], rtol=1e-9)

    def gap(length):
        now, to = (Level(schedule.time_at(u), u) for u in (schedule.log_snr(t), schedule.log_snr(t) + length))
        predict = lambda z, level: diffusion.standardize(
            process.denoiser.posterior(diffusion, diffusion.unstandardize(z), level.t).mean
        )
        step = lambda form, noise: (
            SDE(noise, form=form)
            .step(predict, State(jnp.array([0.3]), None), Move(now, to, jnp.array(jnp.inf)), jnp.array([0.4]))
            .z
        )
        return [float(abs(step("preserving", noise) - step("exploding", noise))[0]) for noise in (0.0, 1.5)]

    coarse, fine = (jax.jit(gap)(length) if False else gap(length) for length in (1e-2, 1e-3))
    assert coarse[0] < 1e-5
    assert fine[0] < coarse[0] / 500  # of third order
    assert fine[1] < coarse[1] / 20  # √length · length


@pytest.fixture(scope="module")
def learned():
    network = nd.networks.MLP(jax.random.key(1), (2,), num_steps=8, width=8, depth=1)
    diffusion = nd.GaussianDiffusion(nd.schedules.learned(8), 1.0, 2.0)
    return nd.ReverseProcess(diffusion, nd.denoisers.Network(network), (2,))


SAMPLERS = {
    "flow": (SDE(0, 5), 2, 6),
    "SDE": (SDE(0.5, 5, "multistep"), 6, 6),
    "chosen grid": (SDE(1.0, method="euler", grid=(8, 4.5, 1)), 4, 4),
    "DDIM": (DDIM(3, 0.5), 4, 4),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_a_prior(name, learned, tmp_path):
    """Draws, chains, noises, gradients and files, as with the ancestral sampler; networks at fractional t."""
    sampler, noises, states = SAMPLERS[name]
    prior = nd.DiffusionPrior(learned, sampler=sampler)
    assert prior.noise_shape == (noises, 2)
    prior.save(tmp_path / "prior.safetensors")
    loaded = nd.load(tmp_path / "prior.safetensors")
    assert loaded.sampler == sampler
    noise = jax.random.normal(jax.random.key(0), (3, noises, 2))
    value, slope = jax.jit(jax.value_and_grad(lambda noise: prior.from_noise(noise).sum()))(noise)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    assert (jnp.abs(slope[:, 0]) > 0).all()
    draws = jax.jit(lambda key: loaded.sample(key, (3,)))(jax.random.key(0))
    assert draws.shape == (3, 2)
    assert np.isfinite(draws).all()
    chain = prior.sample_trajectory(jax.random.key(0))
    assert chain.shape == (states, 2)
    assert np.isfinite(chain).all()


def test_a_schedule_that_erases_everything():
    """Its last log-SNR is −∞; draws and gradients are finite nevertheless."""
    diffusion = nd.GaussianDiffusion(nd.schedules.erasing(20))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.5, 0.3), (1,))
    for sampler in (SDE(1.0, 40), DDIM(20, 0.0)):
        x = jax.jit(jax.vmap(lambda key, sampler=sampler: sampler.sample(key, process)))(
            jax.random.split(jax.random.key(0), 500)
        )
        assert abs(float(x.mean()) - 0.5) < 0.07


@pytest.mark.parametrize("sampler", [Ancestral(), SDE(0.5, 60), DDIM(50, 1.0)], ids=repr)
def test_the_rest_of_a_chain(sampler):
    """From x_t of the data's own law the samplers lead back to it."""
    process, count = mixture(), 4000
    draws = process.denoiser.data().sample(jax.random.key(0), (count,))
    x_t = process.diffusion.marginal(draws, 21).sample(jax.random.key(1))
    run = jax.jit(jax.vmap(lambda key, x: sampler.sample_from(key, process, x, 21)))
    x = run(jax.random.split(jax.random.key(2), count), x_t)
    for power in (1, 2):
        gate = 4.5 * np.sqrt(2 / count) * float((draws**power).std()) + 0.03
        assert abs(float((x**power).mean() - (draws**power).mean())) < gate


def test_interpolation():
    """Weights share the noise; the ends are the rest of each example's own chain."""
    process = mixture()
    between = jax.jit(
        lambda key, t, mix: nd.samplers.interpolate(
            key, process, jnp.array([-1.5]), jnp.array([1.0]), jnp.linspace(0, 1, 5), t, sampler=SDE(0, 20), mix=mix
        ),
        static_argnums=(1, 2),
    )
    for mix in ("linear", "spherical"):
        x = between(jax.random.key(0), 5, mix)[:, 0]
        assert x.shape == (5,)
        assert (jnp.diff(x) > 0).all()
        np.testing.assert_allclose(x[jnp.array([0, -1])], [-1.5, 1.0], atol=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_the_mixtures_law(noise):
    """Moments and shares below nine points, at every noise level."""
    process, count = mixture(), 20_000
    data = process.denoiser.data()
    points = jnp.linspace(-2, 2, 9)
    expected = (WEIGHTS * norm.cdf((points[:, None] - LOCS[:, 0]) / SCALES)).sum(1)
    for sampler in (SDE(noise, 150), SDE(noise, 200, "multistep")):
        draw = lambda key, sampler=sampler: sampler.sample(key, process)
        x = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), count))
        gates = 4.5 * np.sqrt(expected * (1 - expected) / count) + 0.002
        assert (np.abs(np.mean(x < points, 0) - expected) < gates).all()
        assert abs(float(x.mean() - data.mean[0])) < 4.5 * float(x.std()) / np.sqrt(count) + 0.003
