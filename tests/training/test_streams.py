"""Batches in parts, batches from elsewhere, and states that take one another's place."""

import itertools
import json
import os
import signal
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.checkpoints import describe
from numpyro_diffusion.denoisers import Context, Network
from numpyro_diffusion.training.objectives import OBJECTIVES, Part
from numpyro_diffusion.training.run import advance, advance_once
from numpyro_diffusion.training.sources import AHEAD

KEY, T = jax.random.key(0), 6


class Line(eqx.Module):
    """A slope and an offset, for as many outputs as are asked for, and a context that is added."""

    slope: jax.Array
    offset: jax.Array

    def __init__(self, outputs=1):
        shape = (2,) if outputs == 1 else (outputs, 2)
        self.slope, self.offset = jnp.full(shape, 0.1), jnp.zeros(shape)

    def __call__(self, x, t, c=0.0):
        return self.slope * x / (1 + t) + self.offset + c


def _process(variance="beta", last_step="learned", told=None):
    fn = Line(2 if variance == "learned" else 1)
    denoiser = Network(fn, "noise", variance, told=told)
    return nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(T)), denoiser, 2, last_step=last_step)


PROCESS = _process(last_step="forward")
X = np.random.default_rng(0).normal(size=(64, 2)).astype("f")
VALIDATION = np.random.default_rng(1).normal(size=(8, 2)).astype("f")


def _batch(step):
    return np.random.default_rng(step).normal(size=(8, 2)).astype("f")


def _fit(data, **options):
    options = {"max_steps": 12, "log_every": 4, "validation": 0.0, "objective": "simple"} | options
    options = {"batch_size": 8, "learning_rate": 0.02, "progress_bar": False} | options
    return nd.fit(KEY, options.pop("process", PROCESS), data, **options)


def _same(left, right):
    pairs = zip(jax.tree.leaves(left.process), jax.tree.leaves(right.process), strict=True)
    return left.history == right.history and all(np.array_equal(*pair) for pair in pairs)


# ---- Parts of a batch


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["bound", "simple", "hybrid"])
def test_the_gradients_of_parts_add_up_to_that_of_the_batch(objective, x64):
    """With contexts, and where the last step's eighth of a batch, five examples, does not divide among the parts."""
    size, parts = 40, 4
    process = _process("learned" if objective == "hybrid" else "beta", told=Context())
    params, rest = eqx.partition(process, eqx.is_inexact_array)
    batch, context = jnp.asarray(X[:size]), jnp.linspace(-1, 1, size)
    loss = lambda params, *part: OBJECTIVES[objective](KEY, eqx.combine(params, rest), batch, context, *part)
    each = jax.jit(jax.vmap(lambda place: jax.value_and_grad(loss)(params, Part(place, parts))))(jnp.arange(parts))
    whole = jax.jit(jax.value_and_grad(loss))(params)
    for found, expected in zip(jax.tree.leaves(each), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found.mean(0), expected, rtol=1e-9, atol=1e-12)
    assert len(set(np.asarray(each[0]).tolist())) == parts, "each part says something else"


def test_accumulated_training_is_training():
    one, four = (_fit(X, accumulate=count, batch_size=16, log_every=1) for count in (1, 4))
    np.testing.assert_allclose(four.history["loss"], one.history["loss"], rtol=1e-5)
    for found, expected in zip(jax.tree.leaves(four.process), jax.tree.leaves(one.process), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of accumulate = 3, got 16"):
        _fit(X, accumulate=3, batch_size=16)
    with pytest.raises(ValueError, match="accumulate: expected a whole number of at least 1, got 0"):
        _fit(X, accumulate=0)


# ---- States


@pytest.mark.slow
def test_a_step_takes_the_place_of_the_one_before():
    """So that weights, averages and optimiser are in memory once, not twice."""
    run = nd.training.run.TrainingRun(PROCESS, nd.training.optimizers.default_optimizer(0.1, 4, 0.0),
                                      OBJECTIVES["simple"], 0.9, 0.0, 8)  # fmt: skip
    for forward, given in (
        (advance, (jnp.asarray(X), None, jnp.asarray(len(X)), 2)),
        (advance_once, (jnp.asarray(X[:8]), None, jnp.zeros((), int))),
    ):
        state = run.start()
        new, losses = forward((run, KEY, *given), state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)), "the old state is still there"
        assert np.isfinite(np.asarray(losses)).all() and int(new.step) == np.size(losses)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter(PROCESS, eqx.is_array)))


@pytest.fixture
def interrupts():
    """As in a terminal; where the tests were started in the background, the shell has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_until_the_state_is_in_its_place(tmp_path, interrupts):
    """A real one, in the middle of the steps between two entries; nothing is lost, and the run goes on as it was."""
    path = tmp_path / "run"

    def interrupting(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return _batch(step)

    with pytest.raises(KeyboardInterrupt):
        _fit(interrupting, checkpoint=path)
    assert describe(path)["metadata"]["history"]["step"][-1] == 8
    assert _same(_fit(_batch, checkpoint=path), _fit(_batch))


# ---- Batches from elsewhere


class Places:
    """An iterator that knows where it is, as Grain's do."""

    def __init__(self, as_bytes):
        self.place, self.as_bytes = 0, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return _batch(self.place - 1)

    def get_state(self):
        state = {"place": self.place}
        return json.dumps(state).encode() if self.as_bytes else state

    def set_state(self, state):
        self.place = (json.loads(state) if self.as_bytes else state)["place"]


STREAMS = {
    "function": lambda: _batch,
    "iterable": lambda: type("Batches", (), {"__iter__": lambda self: map(_batch, range(12))})(),
    "iterator of dicts": lambda: Places(False),
    "iterator of bytes": lambda: Places(True),
}


@pytest.mark.slow
def test_streams_give_one_answer_and_go_on_where_they_were(tmp_path):
    whole = _fit(_batch, validation=VALIDATION, validate_every=4)
    assert len(whole.history["validation"]) == 4 and whole.steps == 12
    for name, make in STREAMS.items():
        path = tmp_path / name
        options = {"validation": VALIDATION, "validate_every": 4, "checkpoint": path, "checkpoint_every": 4}
        broken = itertools.islice(make(), 7) if name == "iterable" else None
        if broken is None:
            source = make()
            stop = lambda step, source=source: (_ for _ in ()).throw(OSError("gone")) if step == 6 else source(step)
            if name == "function":
                with pytest.raises(OSError, match="gone"):
                    _fit(stop, **options)
            else:
                source.__class__ = type("Breaking", (Places,), {"__next__": _breaking})
                with pytest.raises(OSError, match="gone"):
                    _fit(source, **options)
        else:
            with pytest.warns(UserWarning, match="ended after step 7, where training stops"):
                assert _fit(broken, **options).stopped == "ended"
        result = _fit(make(), **options)
        pairs = zip(jax.tree.leaves(result.process), jax.tree.leaves(whole.process), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs), name


def _breaking(self):
    if self.place == 6:
        raise OSError("gone")
    return Places.__next__(self)


@pytest.mark.slow
def test_an_array_in_a_file_is_learned_from_like_one_in_memory(tmp_path):
    """The same examples at the same steps, and the same held out; read by the thread that fetches ahead."""
    context = np.linspace(-1, 1, 64)
    process, readers = _process(told=Context()), set()

    class Watched(np.memmap):
        def __getitem__(self, index):
            if isinstance(index, np.ndarray) and len(index) == 8:
                readers.add(threading.current_thread().name)
            return np.asarray(np.memmap.__getitem__(self, index))

    np.save(tmp_path / "x.npy", X)
    data = np.load(tmp_path / "x.npy", mmap_mode="r").view(Watched)
    options = {"validation": 0.25, "context": context, "process": process, "objective": "bound", "validate_every": 4}
    here, there = (_fit(x, **options).history for x in (X, data))
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-5)
    assert len(readers) == 1 and threading.current_thread().name not in readers


def test_few_batches_are_fetched_ahead():
    asked = []
    _fit(lambda step: asked.append(step) or _batch(step), max_steps=4)
    assert asked == [*range(4 + AHEAD)][: len(asked)] and len(asked) >= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_step_that_is_not_finite_stops_a_stream(tmp_path):
    """The batches after it are not learned from either."""
    batch = lambda step: _batch(step) * (1e30 if step == 5 else 1)
    with pytest.raises(nd.TrainingDiverged) as caught:
        _fit(batch, checkpoint=tmp_path / "run")
    assert caught.value.step == 6 and caught.value.result.steps == 5


def test_streams_that_do_not_fit_are_refused(tmp_path):
    told = {"process": _process(told=Context())}
    pairs = lambda step: (_batch(step), np.zeros(8))
    assert _fit(pairs, **told, max_steps=2).steps == 2
    _fit(
        iter([_batch(step) for step in range(6)]), max_steps=4, learning_rate=lambda _: 0.1, checkpoint=tmp_path / "run"
    )
    again = {"max_steps": 6, "learning_rate": lambda _: 0.1, "checkpoint": tmp_path / "run"}
    for data, options, said in (
        (_batch, {"validation": 0.1}, "validation: expected held-out data, or 0 for none, with a stream, got 0.1"),
        (_batch, {"context": np.zeros(8)}, "context: expected None with a stream"),
        (_batch, told, "data: contexts of step 0: expected"),
        (pairs, {}, "data: contexts of step 0: expected a process whose denoiser takes a context"),
        (lambda step: np.zeros((8, 3)), {}, r"data: batch of step 0: expected shape \(n, 2\) with n >= 1"),
        (lambda step: np.full((8, 2), np.nan), {}, "data: batch of step 0: expected finite numbers"),
        (
            lambda step: _batch(step)[: 8 - step],
            {},
            "data: expected batches of one size, got one of 7 examples after 8",
        ),
        (iter([]), {}, "data: expected batches, got a stream without any more"),
        (lambda step: _batch(step), {"accumulate": 3}, "batch_size: expected a multiple of accumulate = 3, got 8"),
        (iter([]), again, "batches that can be started again .* to go on from step 4 of the checkpoint"),
    ):
        with pytest.raises(ValueError, match=said):
            _fit(data, **options)
