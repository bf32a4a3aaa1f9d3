"""The reverse SDE keeps the data's law at every noise level; DDIM and the flow are members of the family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion.samplers import DDIM, SDE, Ancestral
from numpyro_diffusion.samplers.smooth import Level, Move, State

MEAN, COVARIANCE = np.array([1.0, -0.5]), np.array([[1.5, 0.9], [0.9, 1.0]])
LOCS, SCALES, WEIGHTS = np.array([[-1.5], [1.0]]), np.array([0.4, 0.6]), np.array([0.4, 0.6])
NOISES = (0.0, 0.5, 1.0, 1.5)


def gaussian(num_steps=50):
    """The exact denoiser of correlated normal data, off the noise law's location and scale."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -10, 8), 0.3, 1.2)
    mean, (variances, turn) = diffusion.standardize(MEAN), np.linalg.eigh(COVARIANCE / 1.2**2)

    def predict(z, t):
        kept = diffusion.schedule.alpha_bar(t)
        gain = jnp.sqrt(kept) * variances / (kept * variances + 1 - kept)
        return mean + turn @ (gain * (turn.T @ (z - jnp.sqrt(kept) * mean)))

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


@pytest.mark.parametrize(
    ("method", "noise", "slack"),
    [
        ("heun", 0.0, 0.01),
        ("heun", 0.5, 0.01),
        ("heun", 1.0, 0.01),
        ("multistep", 0.0, 0.02),
        pytest.param("multistep", 0.5, 0.02, marks=pytest.mark.slow),
        pytest.param("multistep", 1.0, 0.02, marks=pytest.mark.slow),
    ],
)
def test_mean_and_covariance_are_kept(method, noise, slack, x64):
    """At every noise level, to what the steps' errors leave: exactly computed, no draws."""
    assert error(SDE(noise, 160, method), gaussian()) < slack


@pytest.mark.parametrize(
    ("method", "order", "slack"),
    [
        pytest.param("heun", 2, 0.01, marks=pytest.mark.slow),
        pytest.param("euler", 1, 0.1, marks=pytest.mark.slow),
        pytest.param("exponential", 1, 0.15, marks=pytest.mark.slow),
        pytest.param("multistep", 2, 0.02, marks=pytest.mark.slow),
    ],
)
def test_orders(method, order, slack, x64):
    """The same with much noise; with half the step, half or a quarter of the error."""
    process = gaussian()
    coarse, fine = (error(SDE(1.5, count, method), process) for count in (100, 199))
    assert order - 0.35 < np.log2(coarse / fine) < order + 0.5
    assert fine < slack


def test_the_printed_drift_is_wrong(monkeypatch, x64):
    """(1 + λ)/2 with noise λ ends with variance λ in place of 1; (1 + λ²)/2 keeps it."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(50, -10, 8))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (1,))
    variance = lambda noise: law(SDE(noise, 160, "heun"), process)[1].item()
    monkeypatch.setattr(SDE, "pull", property(lambda self: (1 + self.noise) / 2))
    assert abs(variance(0.5) - 0.5) < 0.02
    monkeypatch.undo()
    assert abs(variance(0.5) - 1) < 0.005


def test_the_flow_keeps_quantiles_and_is_inverted(x64):
    """In one dimension the flow is the map between quantiles; encode, decode and back to 1e-3."""
    process = mixture()
    x_T = process.diffusion.unstandardize(jnp.linspace(-2.5, 2.5, 41))[:, None]
    smooth = np.sqrt(SCALES**2 + (1.3 * np.exp(-3)) ** 2)
    flow = SDE(0.0, 160, "heun")
    decode, encode = (jax.jit(lambda x, map=map: map(process, x)) for map in (flow.decode, flow.encode))
    x_0 = decode(x_T)
    np.testing.assert_allclose(encode(x_0), x_T, atol=1e-3)
    np.testing.assert_allclose(decode(encode(x_T)), x_T, atol=1e-3)  # any points will do as data

    @jax.jit
    def shares(x_T, x_0):
        kept = process.diffusion.schedule.alpha_bar(50)
        locs, scales = 0.2 + jnp.sqrt(kept) * (LOCS[:, 0] - 0.2), jnp.sqrt(kept * SCALES**2 + (1 - kept) * 1.3**2)
        laws = (x_T, locs, scales), (x_0, LOCS[:, 0], smooth)
        return [(WEIGHTS * norm.cdf((x - locs) / scales)).sum(1) for x, locs, scales in laws]

    np.testing.assert_allclose(*shares(x_T, x_0), atol=1e-3)


@pytest.mark.parametrize("ends", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ddim_is_of_the_family(ends):
    """η = 0 is the flow and η = 1 the bridge, exactly; between them η tends to λ as steps shrink."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(161, -9, 6), 0.2, 1.3)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(1.0, 0.5), (1,))

    def gap(share, count):
        ddim = DDIM(count, share)
        sde = SDE(share, None, "exponential", tuple(Ancestral(count).times(process)))
        noise = jax.random.normal(jax.random.key(0), (64, *ddim.noise_shape(process)))
        assert ddim.noise_shape(process) == sde.noise_shape(process) == ((count + 1 if share else 2), 1)
        both = jax.jit(jax.vmap(lambda noise: jnp.stack([x.from_noise(noise, process) for x in (ddim, sde)])))
        return float(jnp.abs(jnp.diff(both(noise), axis=1)).mean())

    if ends:
        assert gap(0.0, 41) < 1e-5
        assert gap(1.0, 41) < 1e-5
        return
    coarse, fine = gap(0.5, 41), gap(0.5, 161)
    assert 1e-3 < coarse
    assert fine < 0.4 * coarse


def test_both_forms_are_one_process(x64):
    """The map between the forms is exact: steps in either differ by the terms of higher order only."""
    process, t = mixture(), 20.3
    diffusion, schedule = process.diffusion, process.diffusion.schedule

    def predict(z, level):
        posterior = process.denoiser.posterior(diffusion, diffusion.unstandardize(z), level.t)
        return diffusion.standardize(posterior.mean)

    @jax.jit
    def gap(length):
        u = schedule.log_snr(t)
        move = Move(Level(jnp.asarray(t), u), Level(schedule.time_at(u + length), u + length), jnp.inf)
        start = State(jnp.array([0.3]), None)
        step = lambda noise, form: SDE(noise, method="heun", form=form).step(predict, start, move, 0.4).z[0]
        return jnp.stack([abs(step(noise, "preserving") - step(noise, "exploding")) for noise in (0.0, 1.5)])

    coarse, fine = gap(1e-2), gap(1e-3)
    assert coarse[0] < 1e-5
    assert fine[0] < coarse[0] / 500  # of third order
    assert fine[1] < coarse[1] / 20  # √length · length

    @jax.jit
    def mapped(x_0):
        law = diffusion.marginal(x_0, t)
        ends = law.mean, law.mean + jnp.sqrt(law.variance)
        there = [diffusion.to_exploding(x, t) for x in ends]
        return there, [diffusion.from_exploding(y, t) - x for y, x in zip(there, ends, strict=True)]

    (mean, higher), back = mapped(jnp.array([0.7]))
    np.testing.assert_allclose(mean, [0.7], rtol=1e-12)
    np.testing.assert_allclose(higher - mean, [1.3 * np.exp(-schedule.log_snr(t) / 2)], rtol=1e-9)
    np.testing.assert_allclose(back, 0, atol=1e-12)


@pytest.fixture(scope="module")
def learned():
    diffusion = nd.GaussianDiffusion(nd.schedules.learned(8), 1.0, 2.0)
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.3, 0.7), (2,))


SAMPLERS = {
    "flow": (SDE(0, 5), 2, 6),
    "SDE": (SDE(0.5, 5, "multistep"), 6, 6),
    "chosen grid": (SDE(1.0, method="euler", grid=(8, 4.5, 1)), 4, 4),
    "DDIM": (DDIM(3, 0.5), 4, 4),
}


@pytest.mark.parametrize(
    "name", [name if name == "SDE" else pytest.param(name, marks=pytest.mark.slow) for name in SAMPLERS]
)
def test_all_that_a_sampler_answers(name, learned):
    """Noises, draws and chains, with gradients in the noise and in a learned schedule."""
    sampler, noises, states = SAMPLERS[name]
    assert sampler.noise_shape(learned) == (noises, 2)

    @jax.jit
    def answers(key):
        noise = jax.random.normal(key, (noises, 2))
        total = lambda noise, process: sampler.from_noise(noise, process).sum()
        slope, schedule_slope = jax.grad(total, (0, 1), allow_int=True)(noise, learned)
        chain = sampler.sample_trajectory(key, learned)
        return slope, schedule_slope.diffusion.schedule.logits, chain

    slope, logits, chain = answers(jax.random.key(0))
    assert (jnp.abs(slope[0]) > 0).all()
    assert (jnp.abs(logits).max() > 0) and np.isfinite(logits).all()
    assert chain.shape == (states, 2)
    assert np.isfinite(chain).all() and np.isfinite(slope).all()


def test_in_a_prior(tmp_path):
    """`DiffusionPrior` takes the samplers as it takes the ancestral one, files hold them; a network at fractional t."""
    diffusion = nd.GaussianDiffusion(nd.schedules.linear(8))
    network = nd.networks.RBF(jax.random.key(1), (2,), num_steps=8, outputs=1, num_centers=4)
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Network(network), 2))
    for name, (sampler, *_) in SAMPLERS.items():
        prior.with_(sampler=sampler).save(tmp_path / name)
        assert nd.load(tmp_path / name).sampler == sampler
    flow = nd.load(tmp_path / "flow")
    assert flow.noise_shape == (2, 2)
    noise = jax.random.normal(jax.random.key(0), (3, 2, 2))
    assert np.isfinite(flow.from_noise(noise)).all()
    assert np.isfinite(jax.jit(lambda prior, key: prior.expand((4,)).sample(key))(flow, jax.random.key(0))).all()


def test_a_schedule_that_erases_everything():
    """Its last log-SNR is −∞; draws and gradients are finite nevertheless."""
    diffusion = nd.GaussianDiffusion(nd.schedules.erasing(20))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.5, 0.3), (1,))
    draw = lambda key: jnp.stack([sampler.sample(key, process) for sampler in (SDE(1.0, 40), DDIM(20, 0.0))])
    x = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 500)))
    assert (abs(x.mean(0) - 0.5) < 0.07).all()
    assert (abs(x.std(0) - 0.3) < 0.07).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [DDIM(50, 1.0), Ancestral(), SDE(0.5, 100)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_rest_of_a_chain(sampler):
    """From x_t of the data's own law the samplers lead back to it."""
    process, count = mixture(), 4000

    @jax.jit
    def run(key):
        keys = jax.random.split(key, count + 1)
        x_0 = process.denoiser.data().sample(keys[0], (count,))

        def rest(key, x_0):
            forward, back = jax.random.split(key)
            x_t = process.diffusion.marginal(x_0, 21).sample(forward)
            return sampler.sample_from(back, process, x_t, 21)

        return x_0, jax.vmap(rest)(keys[1:], x_0)

    data, x = (np.asarray(draws, dtype=float) for draws in run(jax.random.key(0)))
    for power in (1, 2):
        gate = 4.5 * np.sqrt(2 / count) * (data**power).std() + 0.03
        assert abs((x**power).mean() - (data**power).mean()) < gate


def test_interpolation():
    """Weights share the noise; with little noise the ends are the examples, and what is between them lies between."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8, -9, 6), 0.2, 1.3)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 2.0), (3,))
    ends, weights = jnp.array([[-1.5, 0.0, 1.0], [1.0, 0.4, 1.0]]), jnp.linspace(0, 1, 5)
    between = jax.jit(
        lambda key: [
            nd.samplers.interpolate(key, process, *ends, weights, 2, sampler=DDIM(8), mix=mix)
            for mix in ("linear", "spherical")
        ]
    )
    for x in between(jax.random.key(0)):
        assert x.shape == (5, 3)
        assert (jnp.diff(x[:, 0]) > 0).all()
        np.testing.assert_allclose(x[jnp.array([0, -1])], ends, atol=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_draws_have_the_mixtures_law(noise):
    """Moments and shares below nine points, at every noise level."""
    process, count = mixture(), 10_000
    data = process.denoiser.data()
    points = jnp.linspace(-2, 2, 9)
    expected = (WEIGHTS * norm.cdf((points[:, None] - LOCS[:, 0]) / SCALES)).sum(1)
    x = jax.jit(jax.vmap(lambda key: SDE(noise, 200).sample(key, process)))(jax.random.split(jax.random.key(0), count))
    gates = 4.5 * np.sqrt(expected * (1 - expected) / count) + 0.002
    assert (np.abs(np.mean(x < points, 0) - expected) < gates).all()
    assert abs(float(x.mean() - data.mean[0])) < 4.5 * float(x.std()) / np.sqrt(count) + 0.003


COINS = nd.ReverseProcess(nd.BinomialDiffusion(nd.schedules.erasing(8)), nd.denoisers.Enumerated([[0, 1]]), 2)
BAD = {
    "negative": (lambda _: SDE(-0.5), "noise: expected a finite number of at least 0, got -0.5"),
    "infinite": (lambda _: SDE(float("inf")), "noise: expected a finite number of at least 0, got inf"),
    "text": (lambda _: SDE("1"), "noise: expected a finite number of at least 0, got '1'"),
    "one step": (lambda _: SDE(num_steps=1), "num_steps: expected a whole number of at least 2, got 1"),
    "method": (lambda _: SDE(method="milstein"), "method: expected one of 'euler', 'heun', 'exponential', 'multistep'"),
    "form": (lambda _: SDE(form="sub"), "form: expected one of 'preserving', 'exploding', got 'sub'"),
    "grid": (lambda _: SDE(grid="even"), "grid: expected one of 'log_snr', 'steps', got 'even'"),
    "rising": (
        lambda _: SDE(grid=(8, 3, 3.5, 1)),
        "grid: expected 'log_snr', 'steps' or times that decrease from T to",
    ),
    "counts": (lambda _: SDE(1, 4, grid=(8, 3, 1)), "num_steps: expected None or the grid's 3, got 4"),
    "ends": (lambda p: SDE(grid=(7, 1)).noise_shape(p), "grid: expected times from T = 8 to 1, got 7.0 to 1.0"),
    "bits": (
        lambda _: SDE().sample(jax.random.key(0), COINS),
        "expected a GaussianDiffusion for SDE, got BinomialD.*Anc",
    ),
    "bits, DDIM": (lambda _: DDIM().noise_shape(COINS), "process: expected a GaussianDiffusion for DDIM, got Binomial"),
    "eta": (lambda _: DDIM(4, 1.5), r"eta: expected a number in \[0, 1\], got 1.5"),
    "long": (lambda p: DDIM(9).noise_shape(p), "num_steps: expected at most T = 8, got 9"),
    "noisy code": (lambda p: SDE(1.0).encode(p, [0.0, 0.0]), "noise: expected 0, the deterministic flow, .* got 1"),
    "code's shape": (lambda p: SDE(0).decode(p, [0.0]), "x_T: expected a shape that ends in the event shape"),
    "start": (
        lambda p: DDIM().sample_from(None, p, jnp.zeros(2), 9),
        r"t: expected a number in \[1, T\], T = 8, got 9",
    ),
    "no mix": (lambda p: mixed(p, mix="cubic"), "mix: expected one of 'linear', 'spherical', got 'cubic'"),
    "two at once": (
        lambda p: mixed(p, a=np.zeros((1, 2))),
        r"x_a: expected one example, of shape \(2,\), got \(1, 2\)",
    ),
    "one weight": (lambda p: mixed(p, weights=0.5), r"weights: expected shape \(n,\), got \(\)"),
    "mixed bits": (
        lambda _: mixed(COINS),
        "process: expected a GaussianDiffusion to interpolate in, got BinomialDiffusion",
    ),
}


def mixed(process, a=(0.0, 0.0), weights=(0.5,), mix="linear"):
    return nd.samplers.interpolate(jax.random.key(0), process, a, [1.0, 1.0], weights, 4, mix=mix)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, learned):
    call, message = BAD[name]
    with refused(message):
        call(learned)
