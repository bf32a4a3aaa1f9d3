"""The training loop: what it learns, what it keeps fixed, and that nothing is lost when it is stopped."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import transforms

import numpyro_diffusion as nd
from numpyro_diffusion import schedules
from numpyro_diffusion.checkpoints import CheckpointError, describe, write_module
from numpyro_diffusion.denoisers import Network
from numpyro_diffusion.likelihoods import AbstractLikelihood, Estimate

# `numpyro_diffusion.training.loop` the attribute is the function.
loop = importlib.import_module("numpyro_diffusion.training.loop")
driver = importlib.import_module("numpyro_diffusion.training.driver")

T = 8
LOC, SCALE = np.array([1.0, -2.0]), np.array([0.5, 3.0])
# In the units of the noise law the data are N(0.4, 0.5²) and N(-0.5, 1.2²).
NOISE_LOC, NOISE_SCALE = LOC - [0.4, -1.25], np.array([1.0, 2.5])
SCHEDULE = schedules.log_snr(T, -7.0, 3.0)
TRACES = []


class Affine(eqx.Module):
    """One affine map a step: outputs are pairs, or single, of the shape of x."""

    slope: jax.Array
    offset: jax.Array

    def __init__(self, outputs=1, start=0.0):
        shape = (T, 2) if outputs == 1 else (outputs, T, 2)
        self.slope, self.offset = jnp.full(shape, start), jnp.zeros(shape)

    def __call__(self, x, t):
        step = jnp.asarray(t).astype(int) - 1
        return self.slope[..., step, :] * x + self.offset[..., step, :]


class Counted(eqx.Module):
    """Says when Python runs it: only while it is traced."""

    weight: jax.Array

    def __call__(self, x, t):
        TRACES.append(1)
        return self.weight * x


class Closeness(AbstractLikelihood):
    """Scores a process by how close its first weight is to a target; the data only shift the score."""

    target: float
    chunk: int | None = None

    def estimate(self, key, process, x_0):
        weight = jax.tree.leaves(eqx.filter(process.denoiser, eqx.is_inexact_array))[0].reshape(-1)[0]
        value = -jnp.square(weight - self.target) + jnp.sum(x_0)
        return Estimate(value, jnp.zeros(()), None)


def _process(predicts="mean", fn=None, schedule=SCHEDULE, last_step="learned", variance="beta"):
    fn = Affine(2 if predicts == "mean" else 1) if fn is None else fn
    diffusion = nd.GaussianDiffusion(schedule, NOISE_LOC, NOISE_SCALE)
    return nd.ReverseProcess(diffusion, Network(fn, predicts, variance), 2, last_step=last_step)


def _data(count, seed=0):
    return np.random.default_rng(seed).normal(LOC, SCALE, (count, 2)).astype(np.float32)


def _log_prob(x):
    """The exact law of the data, in numpy."""
    return (-0.5 * ((x - LOC) / SCALE) ** 2 - np.log(SCALE) - 0.5 * np.log(2 * np.pi)).sum(-1)


def _k(process, x):
    """K of each example; compiled as training compiles it, to do so once."""
    return loop.held_out_values(nd.KBound(64), jax.random.key(99), process, x, 0.0)


def _fit(process=None, data=None, *, seed=5, **options):
    process = _process() if process is None else process
    options = {"max_steps": 20, "log_every": 5, "validation": 0.0, "progress_bar": False, "batch_size": 16} | options
    return nd.fit(jax.random.key(seed), process, _data(64) if data is None else data, **options)


def _drift(by=0.01, use_gradient=False):
    """An optimiser that adds the same to every weight at every step, whatever the loss."""

    def update(gradient, state, params=None):
        return jax.tree.map(lambda g: jnp.full_like(g, by) + (0 * g if use_gradient else 0), gradient), state

    return optax.GradientTransformation(lambda params: (), update)


DRIFT = _drift()  # one, so that runs with it share compiled code


def _same(left, right):
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def _weights(result):
    return np.asarray(result.process.denoiser.fn.slope)


@pytest.fixture
def cheap(monkeypatch):
    """A loss that compiles in no time, in the place of both objectives."""

    def use(loss):
        monkeypatch.setitem(loop.OBJECTIVES, "bound", loss)
        monkeypatch.setitem(loop.OBJECTIVES, "simple", loss)

    use(_sum_loss)
    return use


def _sum_loss(key, process, batch):
    return jnp.mean(batch) + jnp.sum(process.denoiser.fn.slope)


# ---- Learning


@pytest.fixture(scope="module")
def trained():
    """A Gaussian is learned from 8000 draws, with the bound."""
    held_out = _data(400, seed=1)
    result = nd.fit(
        jax.random.key(0), _process(), _data(8000), max_steps=1500, learning_rate=0.03, batch_size=256,
        validation=held_out, validate_every=500, likelihood=nd.KBound(64), progress_bar=False,
    )  # fmt: skip
    return result, held_out


def test_k_rises_to_the_exact_log_likelihood(trained):
    """Affine kernels with a free variance hold the truth; the standard error of K is 0.01."""
    result, x = trained
    exact, start = _log_prob(x).mean(), float(_k(_process(), x).mean())
    reached = float(_k(result.process, x).mean())
    assert start < exact - 0.5
    assert abs(reached - exact) < 0.03
    assert result.stopped == "finished" and result.steps == 1500


def test_the_history(trained):
    result, x = trained
    history = result.history
    assert set(history) == {"step", "loss", "validation_step", "validation", "validation_error"}
    assert history["step"] == list(range(100, 1501, 100)) and history["validation_step"] == [0, 500, 1000, 1500]
    assert len(history["loss"]) == 15 and len(history["validation"]) == len(history["validation_error"]) == 4
    assert all(isinstance(value, float) for name in ("loss", "validation") for value in history[name])
    assert history["loss"][-1] == pytest.approx(-_log_prob(x).mean(), abs=0.15)
    values = np.asarray(_k(result.process, x))
    assert history["validation"][-1] == pytest.approx(values.mean(), abs=0.04)
    assert history["validation_error"][-1] == pytest.approx(values.std() / 20, rel=0.1)


def test_what_is_fixed_stays_bit_for_bit(trained):
    result, _ = trained
    assert _same(result.process.diffusion, _process().diffusion)
    assert not _same(result.process.denoiser, _process().denoiser)


@pytest.mark.slow
def test_the_simple_objective_learns_the_posterior_mean():
    """For Gaussian data E[ε | x_t] is affine; its coefficients are known."""
    result = _fit(
        _process("noise"), _data(8000), objective="simple", max_steps=1500, log_every=100, batch_size=256,
        learning_rate=0.03,
    )  # fmt: skip
    m, s = (LOC - NOISE_LOC) / NOISE_SCALE, SCALE / NOISE_SCALE
    kept = 1 / (1 + np.exp(-np.linspace(3.0, -7.0, T)))[:, None]
    spread = kept * s**2 + 1 - kept
    slope, offset = np.sqrt(1 - kept) / spread, -np.sqrt(1 - kept) * np.sqrt(kept) * m / spread
    np.testing.assert_allclose(result.process.denoiser.fn.slope, slope, atol=0.06)
    np.testing.assert_allclose(result.process.denoiser.fn.offset, offset, atol=0.06)
    # The last step's own scale: the spread of x_0 about its prediction at t = 1.
    last = 0.5 * np.log(s**2 * (1 - kept[0]) / spread[0])
    assert np.exp(float(result.process.last_step.log_scale)) == pytest.approx(np.exp(last).mean(), rel=0.15)


@pytest.mark.slow
def test_a_learned_schedule_is_trained_in_its_logits_alone():
    """It starts with a last step that forgets too little, which no denoiser can make up for."""
    start = schedules.learned(T, 0.03, schedules.log_snr(T, -0.5, 3.5))
    kinds = _process(schedule=start), _process(schedule=schedules.Schedule(start.table))
    options = {"max_steps": 1500, "log_every": 100, "learning_rate": 0.03, "batch_size": 256}
    learned, plain = (_fit(process, _data(8000), **options).process for process in kinds)
    new = learned.diffusion.schedule
    assert new.first_beta == 0.03 and np.array_equal(new.times, start.times)
    assert not np.allclose(new.logits, start.logits, atol=0.05)
    assert float(new.beta(1)) == pytest.approx(0.03, rel=1e-4)
    assert _same((learned.diffusion.loc, learned.diffusion.scale), (plain.diffusion.loc, plain.diffusion.scale))
    # As a fixed schedule of the same table, so that one compiled K serves both.
    learned = eqx.tree_at(lambda p: p.diffusion.schedule, learned, schedules.Schedule(new.table))
    x = _data(400, seed=1)
    assert float(_k(learned, x).mean()) > float(_k(plain, x).mean()) + 0.05


@pytest.mark.slow
def test_a_schedule_is_trained_for_the_least_variance():
    """Between fixed ends: the sd of K at one random time falls, the continuous bound does not move."""
    start = schedules.learned(16, 1e-3, objective="variance")
    data, denoiser = _data(4000), nd.denoisers.Gaussian(LOC, SCALE)
    process = lambda schedule: nd.ReverseProcess(nd.GaussianDiffusion(schedule, NOISE_LOC, NOISE_SCALE), denoiser, 2)
    new = _fit(process(start), data, max_steps=400, log_every=400, batch_size=128).process.diffusion.schedule
    assert (new.ends, new.times.shape) == (start.ends, start.times.shape)

    @jax.jit
    def values(process, keys):
        one, bound = nd.KBound(1, 1, antithetic=False), nd.ContinuousBound(2, 16)
        draws = lambda x: jax.vmap(lambda key: one.estimate(key, process, x).terms.kl)(keys)
        return jax.vmap(draws)(data[:8]), bound(keys[0], process, data[:8]).value

    keys = jax.random.split(jax.random.key(1), 500)
    tables = new.table, start.table, schedules.cosine(16).table
    kl, bound = zip(*(values(process(schedules.Schedule(table)), keys) for table in tables), strict=True)
    spread = [np.sqrt(np.var(values, 1).mean()) for values in kl]
    assert spread[0] < 0.65 * spread[1] and spread[0] < 0.8 * spread[2], spread
    np.testing.assert_allclose(bound[0], bound[1], atol=5e-3)


def test_a_learned_schedule_needs_the_bound_and_real_values():
    schedule = schedules.learned(T)
    bits = nd.ReverseProcess(nd.BinomialDiffusion(schedule), Network(Affine(), "logits"), 2)
    with pytest.raises(ValueError, match="schedule: expected a fixed one for bits.* got a LearnedSchedule"):
        _fit(bits, np.eye(2))
    for learned in (schedule, schedules.learned(T, objective="variance")):
        with pytest.raises(ValueError, match="objective: expected 'bound' for a learned schedule, got 'simple'"):
            _fit(_process("noise", schedule=learned), objective="simple")


# ---- The optimiser and the averages


def test_the_average_of_the_weights(cheap):
    """Against the recursion in numpy: the decay is shorter in the first steps."""
    weight = average = 0.0
    for step in range(20):
        weight += 0.01
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    np.testing.assert_allclose(_weights(_fit(optimizer=DRIFT, ema=0.8)), average, rtol=1e-5)
    np.testing.assert_allclose(_weights(_fit(optimizer=DRIFT, ema=0.0)), 0.2, rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.lion(0.1), optax.chain(optax.clip(1.0), optax.adamw(0.1))], ids=lambda _: ""
)
def test_any_optax_optimiser(cheap, optimizer):
    cheap(lambda key, process, batch: jnp.sum(jnp.square(process.denoiser.fn.slope - 0.7)))
    result = _fit(optimizer=optimizer, max_steps=200, ema=0.0)
    np.testing.assert_allclose(_weights(result), 0.7, atol=0.11)
    assert result.history["loss"][-1] < 0.5 * result.history["loss"][0]


def test_the_learning_rate_may_be_a_schedule(cheap):
    """Adam's first steps have the size of the learning rate, so that a rate of zero from step 10 on is seen."""
    result = _fit(learning_rate=lambda step: jnp.where(step < 10, 0.1, 0.0), ema=0.0)
    np.testing.assert_allclose(_weights(result), -1.0, rtol=1e-3)


def test_the_default_learning_rate_warms_up_and_decays(cheap):
    one = _weights(_fit(max_steps=100, ema=0.0, learning_rate=0.1))
    ramp, rest = [0.0, 0.05], 0.001 + 0.099 * 0.5 * (1 + np.cos(np.pi * np.arange(98) / 98))
    np.testing.assert_allclose(one, -(sum(ramp) + rest.sum()), rtol=1e-3)


def test_the_loss_is_averaged_over_the_steps_between_entries(cheap):
    """The drift makes the loss of step n known; 23 steps leave an entry of 3."""
    cheap(lambda key, process, batch: jnp.mean(process.denoiser.fn.slope) + 0 * jnp.sum(batch))
    result = _fit(optimizer=DRIFT, max_steps=23, log_every=10)
    assert result.history["step"] == [10, 20, 23]
    np.testing.assert_allclose(result.history["loss"], [0.045, 0.145, 0.21], rtol=1e-4)


def test_the_whole_data_set_is_drawn_from_with_new_examples_at_every_step(cheap):
    cheap(lambda key, process, batch: jnp.mean(batch) + 0 * jnp.sum(process.denoiser.fn.slope))
    data = np.arange(10.0)[:, None].repeat(2, 1)
    losses = _fit(data=data, max_steps=400, log_every=1, batch_size=1).history["loss"]
    assert set(losses) == set(range(10))
    assert np.mean(losses) == pytest.approx(4.5, abs=4 * np.sqrt(8.25 / 400))
    assert losses != _fit(data=data, max_steps=400, log_every=1, batch_size=1, seed=6).history["loss"]


def test_dequantisation(cheap):
    """Whole numbers get uniform noise of the given width about them; its square has mean width²/12."""
    cheap(lambda key, process, batch: jnp.mean((batch - 3) ** 2) + 0 * jnp.sum(process.denoiser.fn.slope))
    run = lambda width: np.mean(_fit(data=np.full((20, 2), 3), dequantize=width, max_steps=200).history["loss"])
    assert run(0.0) == 0
    assert run(0.5) == pytest.approx(0.25 / 12, rel=0.05)
    cheap(lambda key, process, batch: jnp.mean(batch - 3) + 0 * jnp.sum(process.denoiser.fn.slope))
    assert abs(run(0.5)) < 4 * 0.5 / np.sqrt(12 * 200 * 32)


# ---- Validation


def test_validation_data_of_their_own_or_a_share(cheap):
    options = {"optimizer": DRIFT, "likelihood": Closeness(0.0), "validate_every": 10, "ema": 0.0}
    own = _fit(validation=np.ones((3, 2)), **options).history
    assert own["validation_step"] == [0, 10, 20]
    np.testing.assert_allclose(own["validation"], [2, 2 - 0.1**2, 2 - 0.2**2], rtol=1e-5)
    cheap(lambda key, process, batch: jnp.mean(batch) + 0 * jnp.sum(process.denoiser.fn.slope))
    # One example in ten is 10, and is held out or trained on; the others are 0.
    data = np.zeros((10, 2))
    data[3] = 10
    held = [_fit(data=data, seed=seed, validation=0.5, max_steps=40, **options).history for seed in range(6)]
    for history in held:
        out = history["validation"][-1] > 1
        assert history["validation"][-1] == pytest.approx((4 if out else 0) - 0.4**2, rel=1e-4)
        assert (max(history["loss"]) == 0) == out
    assert {history["validation"][-1] > 1 for history in held} == {True, False}
    assert _fit(**options).history["validation"] == []
    # Due at 7, done at 10: rounded up to whole `log_every`; and always after the last step.
    odd = _fit(validation=np.ones((3, 2)), max_steps=22, **(options | {"validate_every": 7})).history
    assert odd["validation_step"] == [0, 10, 15, 22]


def test_patience_stops_early_and_returns_the_best(cheap):
    options = {"optimizer": DRIFT, "validation": 0.2, "validate_every": 10, "max_steps": 300, "ema": 0.0}
    result = _fit(patience=3, likelihood=Closeness(0.61), **options)
    assert result.stopped == "early" and result.steps == 90
    np.testing.assert_allclose(_weights(result), 0.6, rtol=1e-5)
    assert result.history["validation_step"] == list(range(0, 91, 10))
    patient = _fit(patience=30, likelihood=Closeness(0.61), **options)
    assert patient.stopped == "finished" and patient.steps == 300
    np.testing.assert_allclose(_weights(patient), 0.6, rtol=1e-5)
    last = _fit(likelihood=Closeness(0.61), **options)
    np.testing.assert_allclose(_weights(last), 3.0, rtol=1e-4)


def test_the_start_is_kept_if_nothing_better_comes(cheap):
    """Every step leads away from the target, which is where the weights start."""
    options = {"optimizer": DRIFT, "validation": 0.2, "validate_every": 10, "max_steps": 300, "ema": 0.0}
    result = _fit(patience=2, likelihood=Closeness(0.0), **options)
    assert result.steps == 20 and result.stopped == "early" and not _weights(result).any()


def test_validation_is_as_frequent_as_the_number_of_examples_asks_for(cheap):
    run = lambda count: _fit(data=_data(count), max_steps=200, validation=_data(4), likelihood=Closeness(0.0),
                             log_every=None).history["validation_step"]  # fmt: skip
    assert run(100) == [0, 50, 100, 150, 200] and run(2000) == [0, 100, 200]


def test_a_transform_makes_the_process_one_of_other_coordinates(cheap):
    """Loss and validation are of x = T(z): here of the exact log density of z, less log |det|."""

    class Known(AbstractLikelihood):
        chunk: int | None = None

        def estimate(self, key, process, x_0):
            return Estimate(dist.Normal().log_prob(x_0).sum(), jnp.zeros(()), None)

    cheap(lambda key, process, batch: -jnp.mean(dist.Normal().log_prob(batch).sum(1)))
    root = np.array([[2.0, 0.0], [-1.0, 0.5]], np.float32)
    data = (np.random.default_rng(0).normal(size=(2000, 2)) @ root.T + LOC).astype(np.float32)
    exact = dist.MultivariateNormal(LOC, root @ root.T).log_prob(data)
    options = {"data": data[200:], "validation": data[:200], "likelihood": Known(), "optimizer": DRIFT}
    full = _fit(transform=transforms.LowerCholeskyAffine(jnp.asarray(LOC), root), **options).history
    assert full["validation"][0] == pytest.approx(float(exact[:200].mean()), abs=1e-3)
    assert np.mean(full["loss"]) == pytest.approx(-float(exact[200:].mean()), abs=0.3)
    scale = np.exp(0.2 * np.arange(2))
    each = transforms.AffineTransform(jnp.asarray(LOC), scale)
    single = _fit(transform=each, **options).history
    assert single["validation"][0] == pytest.approx(
        float(dist.Normal(LOC, scale).log_prob(data[:200]).sum(1).mean()), abs=1e-3
    )
    with pytest.raises(TypeError, match="transform: expected a numpyro.distributions.transforms.Transform, got 3"):
        _fit(transform=3)


def test_weight_decay_shrinks_matrices_alone(cheap):
    """Without a gradient AdamW takes off rate times decay at each step."""
    cheap(lambda key, process, batch: 0.0 * jnp.sum(process.denoiser.fn.slope))
    start = _process("noise", Affine(start=1.0))
    result = _fit(start, weight_decay=0.5, learning_rate=lambda step: 0.1, ema=0.0)
    np.testing.assert_allclose(_weights(result), 0.95**20, rtol=1e-4)
    assert result.process.last_step.log_scale == start.last_step.log_scale
    for decay, optimizer in ((-1.0, None), (0.1, DRIFT)):
        with pytest.raises(ValueError, match=f"weight_decay: expected .*, got {decay}"):
            _fit(weight_decay=decay, optimizer=optimizer)


def test_the_progress_bar(cheap, capsys):
    _fit(progress_bar=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    _fit(progress_bar=True, validation=0.2, likelihood=Closeness(0.0))
    shown = capsys.readouterr().err
    assert "training" in shown and "20/20" in shown and "loss" in shown and "nats" in shown


# ---- Compilation


def test_a_step_is_traced_at_most_twice_and_not_again_for_an_equal_run_or_about_as_many_examples(cheap):
    cheap(lambda key, process, batch: jnp.sum(process.denoiser.fn(batch[0], 1.0)))

    def traces(**options):
        TRACES.clear()
        _fit(_process("noise", Counted(jnp.ones(2))), batch_size=8, **options)
        return len(TRACES)

    # Every run traces the network to check its shape; beyond that, one scan's length is one trace.
    once = traces(max_steps=4, log_every=4, learning_rate=1e-4)
    again = traces(max_steps=4, log_every=4, learning_rate=1e-4)
    assert once > again
    assert again == traces(max_steps=4, log_every=4, learning_rate=1e-4, data=_data(60))
    many = traces(max_steps=40, log_every=4, learning_rate=2e-4)
    assert many == once
    uneven = traces(max_steps=42, log_every=4, learning_rate=3e-4)
    assert uneven - again == 2 * (once - again)


# ---- Checkpoints


def _run(path, **options):
    """A run that takes its time, for the process that is killed and for the one that is not."""
    options = {"max_steps": 200, "log_every": 10, "checkpoint_every": 40, "ema": 0.9, "learning_rate": 0.02} | options
    options = {"validation": 0.2, "likelihood": Closeness(0.1), "validate_every": 30, "patience": 50} | options
    process = _process("noise", last_step="forward")
    return _fit(process, data=_data(200), objective="simple", checkpoint=path, **options)


def _slow_run(path):
    """Run by another interpreter."""
    advance = driver._advance

    def slow(*args):
        time.sleep(0.15)
        return advance(*args)

    driver._advance = slow
    _run(path)


@pytest.mark.slow
def test_a_killed_run_is_resumed_bit_for_bit(tmp_path):
    path, root = tmp_path / "run.safetensors", Path(nd.__file__).parents[1]
    program = f"import runpy; runpy.run_path({__file__!r})['_slow_run']({str(path)!r})"
    # Compiled with the same options, or the last bits would differ.
    options = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations")))}
    child = subprocess.Popen([sys.executable, "-c", program], cwd=root, env=os.environ | options)
    try:
        deadline = time.monotonic() + 100
        while not path.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".safetensors"] == [path.name]
    saved = describe(path)["metadata"]["history"]["step"][-1]
    assert 40 <= saved < 200
    resumed, whole = _run(path), _run(None)
    assert resumed.history == whole.history and resumed[2:] == whole[2:]
    assert _same(resumed.process, whole.process)
    # What is finished stays finished.
    assert _same(_run(path).process, whole.process)


@pytest.mark.parametrize("during", ["_advance", "_validate", "_keep", "write_training_state"])
def test_an_interrupt_loses_nothing(cheap, tmp_path, monkeypatch, during):
    module = driver if hasattr(driver, during) else importlib.import_module("numpyro_diffusion.training.resume")
    path, calls, function = tmp_path / "run", [], getattr(module, during)

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, during, interrupted)
        with pytest.raises(KeyboardInterrupt):
            _run(path, optimizer=DRIFT)
    done = {"_advance": 20, "_validate": 60, "_keep": 120, "write_training_state": 160}[during]
    assert describe(path)["metadata"]["history"]["step"][-1] == done
    resumed, whole = _run(path, optimizer=DRIFT), _run(None, optimizer=DRIFT)
    assert resumed.history == whole.history and _same(resumed.process, whole.process)


def test_a_run_that_stopped_early_does_not_go_on(cheap, tmp_path):
    run = lambda path: _run(path, optimizer=DRIFT, patience=1, likelihood=Closeness(0.2), ema=0.0)
    first = run(tmp_path / "run")
    again = run(tmp_path / "run")
    assert first.stopped == again.stopped == "early" and first.steps == again.steps == 60
    assert first.history == again.history and _same(first.process, again.process)


def test_a_run_with_its_own_optimiser_may_be_made_longer(cheap, tmp_path):
    path = tmp_path / "run"
    _run(path, optimizer=DRIFT, max_steps=100, validation=0.0, patience=None)
    longer = _run(path, optimizer=DRIFT, max_steps=150, validation=0.0, patience=None)
    assert longer.steps == 150 and longer.history["step"] == list(range(10, 151, 10))
    assert _same(longer.process, _run(None, optimizer=DRIFT, max_steps=150, validation=0.0, patience=None).process)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": _data(200, seed=8)}, "data"),
        ({"seed": 6}, "key"),
        ({"objective": "simple"}, "objective = 'simple', got one of another, with 'bound'"),
        ({"batch_size": 8}, "batch_size = 8, got one of another, with 16"),
        ({"max_steps": 300}, "max_steps = 300, got one of another, with 200"),
        ({"learning_rate": 0.5}, "learning_rate = 0.5, got one of another, with 0.02"),
        ({"ema": 0.5}, "ema = 0.5, got one of another, with 0.9"),
        ({"dequantize": 0.5}, "dequantize = 0.5, got one of another, with 0.0"),
        ({"validation": np.ones((4, 2))}, "(data|validation)"),
        ({"process": _process("noise", Affine(start=1.0))}, "process"),
        ({"process": _process("noise", schedule=schedules.log_snr(T, -6.0, 3.0))}, "process"),
        ({"optimizer": optax.sgd(0.1)}, "learning_rate = 'given by an optimizer', got one of another, with 0.02"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "-".join(value),
)
def test_a_checkpoint_of_another_run_is_refused(cheap, tmp_path, change, named):
    path = tmp_path / "run"
    own = {"max_steps": 200, "learning_rate": 0.02, "ema": 0.9, "validation": 0.2, "likelihood": Closeness(0.1)}
    common = {"process": _process("noise"), "data": _data(200), "checkpoint": path} | own
    _fit(**common)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"checkpoint: expected .* to be of this run, with {named}"):
        _fit(**(common | change))
    assert path.read_bytes() == before


def test_damaged_and_foreign_checkpoints_are_refused(cheap, tmp_path):
    path = tmp_path / "run"
    _run(path)
    data = path.read_bytes()
    for bad in (b"", data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), b"no checkpoint at all"):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=f"{path.name}: "):
            _run(path)
        assert path.read_bytes() == bad
    write_module(path, _process("noise").diffusion)
    with pytest.raises(CheckpointError, match="kind: expected training state, got module"):
        _run(path)
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a file in a folder that exists, got"):
        _run(tmp_path / "nowhere" / "run")
    with pytest.raises(IsADirectoryError, match="checkpoint: expected a file, got the folder"):
        _run(tmp_path)


# ---- A loss that is no number


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_loss_stops_at_its_step_with_the_last_good_state(cheap, tmp_path, where):
    """The weights are 0.01 n after n steps; from 0.0755 on, the loss or its gradient is no number: in step 9."""

    def loss(key, process, batch):
        weight = jnp.mean(process.denoiser.fn.slope)
        if where == "loss":
            return jnp.log(0.0755 - weight)
        return jnp.where(weight < 0.0755, jnp.sqrt(0.0755 - weight), 0.0)

    cheap(loss)
    path = tmp_path / "run"
    run = lambda: _fit(optimizer=_drift(use_gradient=True), max_steps=30, log_every=5, ema=0.0, checkpoint=path)
    for _ in range(2):  # the second time from the checkpoint
        with pytest.raises(
            nd.TrainingDiverged, match="NaN or infinity at step 9; the state of step 8 is kept"
        ) as error:
            run()
        assert error.value.step == 9 and isinstance(error.value, FloatingPointError)
        result = error.value.result
        assert result.steps == 8 and result.stopped == "diverged" and result.history["step"] == [5, 8]
        np.testing.assert_allclose(_weights(result), 0.08, rtol=1e-5)
        assert np.isfinite(result.history["loss"]).all()
        assert describe(path)["metadata"]["history"]["step"][-1] == 8


def test_a_bad_first_step(cheap):
    cheap(lambda key, process, batch: jnp.mean(process.denoiser.fn.slope) * jnp.nan)
    with pytest.raises(nd.TrainingDiverged, match="at step 1; the state of step 0") as error:
        _fit()
    assert error.value.step == 1 and error.value.result.history["loss"] == []
    assert _same(_parts(error), (_process().denoiser, _process().last_step))


def test_steps_that_are_too_large_leave_finite_weights(cheap, tmp_path):
    cheap(lambda key, process, batch: jnp.sum(jnp.square(process.denoiser.fn.slope + jnp.mean(batch))))
    with pytest.raises(nd.TrainingDiverged) as error:
        _fit(optimizer=optax.sgd(1e15), checkpoint=tmp_path / "run", max_steps=100)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(_parts(error), eqx.is_array)))
    assert error.value.result.steps == error.value.step - 1


def _parts(error):
    process = error.value.result.process
    return process.denoiser, process.last_step
