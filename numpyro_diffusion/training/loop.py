"""Learning a reverse process from data."""

import functools
from collections.abc import Callable
from os import PathLike
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.transforms import Transform
from tqdm.auto import tqdm

from .._batching import batched_map
from .._checks import check_count, check_key
from .._devices import Devices, check_devices, collect, distribute, replicate
from ..distributions.parts import check_transform
from ..likelihoods import AbstractLikelihood
from ..process import ReverseProcess
from ._arguments import (
    VALIDATION,
    cadence,
    check_context,
    check_data,
    check_dropout,
    check_process,
    check_settings,
    check_validation,
    split,
    split_context,
)
from .objectives import OBJECTIVES, Objective
from .results import CheckpointNotWritten, FitResult, TrainingDiverged
from .resume import History, Progress, digest, resume, save
from .run import TrainingRun, dequantized, to_latent

Examples = tuple[Array, Array | None]  # with their contexts


def fit(
    key: Array,
    process: ReverseProcess,
    data: ArrayLike,
    *,
    num_steps: int = 10_000,
    objective: Objective = "bound",
    batch_size: int = 256,
    learning_rate: float | optax.Schedule = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    ema: float = 0.999,
    weight_decay: float = 0.0,
    dequantize: float = 0.0,
    transform: Transform | None = None,
    validation: float | ArrayLike = 0.1,
    context: ArrayLike | None = None,
    context_dropout: float = 0.0,
    validation_context: ArrayLike | None = None,
    likelihood: AbstractLikelihood | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    log_every: int | None = None,
    devices: Devices | None = None,
    progress_bar: bool = True,
) -> FitResult:
    """Train the denoiser, the last step and a learned schedule by stochastic gradient steps.

    Every random number of step n comes from `key` and n, so a run that is resumed from its checkpoint ends exactly
    where an uninterrupted one does.

    Args:
        key: JAX random key.
        process: what to train; its denoiser is usually a `Network`.
        data: shape (n, *event), finite; 0 and 1 for bits.
        num_steps: optimiser steps in all.
        objective: ``"bound"`` for K, ``"simple"`` for the unweighted loss, ``"hybrid"`` for that with a thousandth of
            −K, which teaches a learned variance and nothing else.
        batch_size: examples a step, drawn with replacement.
        learning_rate: the peak of the default schedule (a warm-up over 2% of the steps, then a cosine to 1% of the
            peak), or an optax schedule; used by the default optimiser, Adam with gradients clipped to norm 1.
        optimizer: any optax optimiser in place of the default; it brings its own learning rate.
        ema: decay of the exponential moving average of the weights (shorter in the first steps); 0 switches it off.
        weight_decay: share of the weights that is taken off at each step, times the learning rate (AdamW); for the
            default optimiser.
        dequantize: width of the uniform noise, centred on 0, that is added to each batch: the spacing of data that
            come in steps.
        transform: T, a NumPyro transform: the process is one of z, and the data are x = T(z). Loss and validation
            count ``log |det dx/dz|``, so that they are of x. None for a process of the data themselves.
        validation: share of the data that is held out, or held-out data of their own, shape (m, *event); 0 for none.
        context: of each example, shape (n, *context_shape), for a process of p(x | c).
        context_dropout: share of contexts that are left out at random, so that the network learns p(x) too, for a
            denoiser of ``Context(optional=True)``.
        validation_context: of held-out data of their own.
        likelihood: estimator of the validation value, with the same noise each time; a K bound unless given, with
            more draws the fewer examples are held out.
        validate_every: steps between validations, of which the first is before training; rounded up to whole
            `log_every`. From 50 for small tables to 1,000 unless given.
        patience: stop after so many validations without a better one, and return the best; never unless given.
        checkpoint: file to resume from if it exists, and to save to: also on an interrupt from the keyboard. A run
            with an optimizer or a schedule of its own may be resumed with more `num_steps`.
        checkpoint_every: steps between saves; rounded up to whole `log_every`.
        log_every: steps between entries of the history; also the number of steps compiled into one scan. At most
            100, and no more than `validate_every`, unless given.
        devices: devices that share each batch, or how many of `jax.devices()`; they must divide `batch_size`. Weights
            and optimiser live on all of them. The run is the same but for the order of sums, and may be resumed on
            others. One, where JAX puts it, unless given.
        progress_bar: whether to show a progress bar.

    Returns:
        A `FitResult`.

    Raises:
        ValueError: bad arguments or data; the message says which.
        TrainingDiverged: the loss became NaN or infinite; carries the step and the last good state.
        CheckpointError: the checkpoint is damaged, or of another run.
        OSError: the checkpoint's folder does not exist, or nothing can be written there: before the first step. Later,
            on a full disk say, a `CheckpointNotWritten`, which carries the result so far.
    """
    check_process(process, objective)
    check_settings(optimizer, learning_rate, ema, weight_decay, dequantize, patience, process)
    check_transform(transform, process)
    key = check_key("key", key)
    data = check_data("data", data, process)
    train, held_out = split(key, data, validation, process)
    context = check_context("context", context, process, len(data))
    contexts = split_context(key, context, validation, validation_context, process, len(held_out))
    dropout = check_dropout(context_dropout, process)
    validate_every = cadence(len(train)) if validate_every is None else validate_every
    counts = {"num_steps": num_steps, "batch_size": batch_size, "validate_every": validate_every,
              "checkpoint_every": checkpoint_every}  # fmt: skip
    for name, value in counts.items():
        check_count(name, value)
    log_every = check_count("log_every", min(100, validate_every) if log_every is None else log_every)
    likelihood = check_validation(key, process, held_out, likelihood, patience)
    settings = {"objective": objective, "batch_size": batch_size, "ema": float(ema), "dequantize": float(dequantize),
                "log_every": log_every} | _optimizer_settings(optimizer, learning_rate, num_steps)  # fmt: skip
    settings |= {"transform": digest(transform)} if transform is not None else {}
    settings |= {"weight_decay": float(weight_decay)} if weight_decay else {}
    settings |= {"context": digest(contexts), "context_dropout": dropout} if context is not None else {}
    settings |= {"key": digest(key), "data": digest(train), "validation": digest(held_out), "process": digest(process)}
    if optimizer is None:
        rate = learning_rate if callable(learning_rate) else float(learning_rate)
        optimizer = _default_optimizer(rate, 0 if callable(rate) else num_steps, float(weight_decay))
    batch_size = min(batch_size, len(train))
    spread = check_devices(devices, batch_size)
    run = TrainingRun(
        process, optimizer, OBJECTIVES[objective], ema, dequantize, batch_size, spread, transform, dropout
    )
    now = resume(checkpoint, run.start(), settings)
    run, now, key = replicate(run, spread), replicate(now, spread), replicate(key, spread)
    examples = replicate(train, spread), replicate(contexts[0], spread)
    unseen = distribute(held_out, spread), contexts[1]
    keep = lambda now: _keep(checkpoint, now, settings, lambda: _result(run, now, "unsaved", patience))
    bar = tqdm(total=num_steps, initial=int(now.state.step), disable=not progress_bar, desc="training", unit="step")
    try:
        with bar:
            if len(held_out) and not now.history["validation"] and not int(now.state.step):
                now = _validate(run, key, now, unseen, likelihood)
            while not (stopped := _stopped(now, num_steps, patience)):
                step = int(now.state.step)
                count = min(log_every - step % log_every, num_steps - step)
                new, step = _advance(run, key, now, examples, count), step + count
                if len(held_out) and (step == num_steps or _passed(step, count, validate_every)):
                    new = _validate(run, key, new, unseen, likelihood)
                now = new  # whole, so that an interrupt finds no step without its validation
                bar.update(count)
                bar.set_postfix_str(_status(now.history))
                if _stopped(now, num_steps, patience) or _passed(step, count, checkpoint_every):
                    keep(now)
    except _NotFinite as error:
        keep(error.last)
        result = _result(run, error.last, "diverged", patience)
        raise TrainingDiverged(result.steps + 1, result) from None
    except KeyboardInterrupt:
        keep(now)
        raise
    return _result(run, now, stopped, patience)


def _keep(checkpoint: Any, now: Progress, settings: dict[str, Any], result: Callable[[], FitResult]) -> None:
    """Save the progress; what cannot be written goes with the error."""
    try:
        save(checkpoint, now, settings)
    except OSError as error:
        raise CheckpointNotWritten(checkpoint, result(), error) from error


class _NotFinite(Exception):
    """A bad step; `last` is the progress before it."""

    def __init__(self, last: Progress) -> None:
        super().__init__(int(last.state.step))
        self.last = last


def _advance(run: TrainingRun, key: Array, now: Progress, data: Examples, count: int) -> Progress:
    state, losses = run.steps(key, now.state, data[0], count, data[1])
    taken = int(state.step) - int(now.state.step)
    entry = {"step": int(state.step), "loss": float(np.asarray(losses)[:taken].mean())} if taken else {}
    now = Progress(state, _extended(now.history, entry))
    if taken < count:
        raise _NotFinite(now)
    return now


def _extended(history: History, entry: dict[str, float]) -> History:
    return {name: values + [entry[name]] if name in entry else values for name, values in history.items()}


@functools.lru_cache(maxsize=32)
def _default_optimizer(
    learning_rate: float | optax.Schedule, num_steps: int, weight_decay: float
) -> optax.GradientTransformation:
    """Cached, since two optimisers made alike are not equal, and would not share compiled code."""
    if not callable(learning_rate):
        learning_rate = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, max(1, num_steps // 50), max(2, num_steps), 0.01 * learning_rate
        )
    adam = optax.adam(learning_rate)
    if weight_decay:  # of matrices alone: offsets and scales are no weights
        matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
        adam = optax.adamw(learning_rate, weight_decay=weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def _optimizer_settings(optimizer: Any, learning_rate: Any, num_steps: int) -> dict[str, Any]:
    """What can be said about the optimiser in JSON; only the default schedule depends on the number of steps."""
    if optimizer is not None or callable(learning_rate):
        return {"learning_rate": "given by an optimizer" if optimizer is not None else "given by a schedule"}
    return {"learning_rate": float(learning_rate), "num_steps": num_steps}


def _validate(
    run: TrainingRun, key: Array, now: Progress, held_out: Examples, likelihood: AbstractLikelihood
) -> Progress:
    state, process = now.state, run.process(now.state.average)
    own = jax.random.fold_in(key, VALIDATION)
    values = held_out_values(likelihood, own, process, held_out[0], run.dequantize, run.transform, held_out[1])
    value = jnp.mean(values)
    error = float(jnp.std(values) / np.sqrt(len(values)))
    entry = {"validation_step": int(state.step), "validation": float(value), "validation_error": error}
    if value > state.best_value:
        best_value = value.astype(state.best_value.dtype)
        state = state._replace(best=state.average, best_value=best_value, best_step=state.step)
    return Progress(state, _extended(now.history, entry))


@eqx.filter_jit
def held_out_values(
    likelihood: AbstractLikelihood,
    key: Array,
    process: ReverseProcess,
    data: Array,
    dequantize: float,
    transform: Transform | None = None,
    context: Array | None = None,
) -> Array:
    """The estimate for each of some held-out data, shape (m,), of x = T(z) if there is a `transform`."""
    noise, draws = jax.random.split(key)
    z, log_volume = to_latent(transform, dequantized(noise, data, dequantize))
    if context is None:
        return likelihood(draws, process, z).value - log_volume
    one = lambda args: likelihood.estimate(args[0], process.given(args[1]), args[2]).value
    together = None if likelihood.chunk is None else max(1, likelihood.chunk // likelihood.calls(process))
    return batched_map(one, (jax.random.split(draws, len(z)), context, z), together) - log_volume


def _passed(step: int, count: int, every: int) -> bool:
    return step // every > (step - count) // every


def _stopped(now: Progress, num_steps: int, patience: int | None) -> str:
    """Why training is over; empty while it is not."""
    if int(now.state.step) >= num_steps:
        return "finished"
    waited = sum(step > int(now.state.best_step) for step in now.history["validation_step"])
    return "early" if patience is not None and waited >= patience else ""


def _status(history: History) -> str:
    parts = [f"loss {history['loss'][-1]:.3f}"]
    if history["validation"]:
        parts.append(f"validation {history['validation'][-1]:.3f} nats")
    return ", ".join(parts)


def _result(run: TrainingRun, now: Progress, stopped: str, patience: int | None) -> FitResult:
    state, history = now
    params = state.best if patience is not None and history["validation"] else state.average
    return FitResult(collect(run.process(params), run.spread), history, int(state.step), stopped)
