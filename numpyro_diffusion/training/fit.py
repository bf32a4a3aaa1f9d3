"""Learning a reverse process from data."""

import hashlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from tqdm.auto import tqdm

from .._checks import check_binary, check_choice, check_count, check_finite
from ..checkpoints import read_training_state, write_training_state
from ..diffusions import BinomialDiffusion
from ..likelihoods import AbstractLikelihood, KBound
from ..process import ReverseProcess, trainable
from ..schedules import LearnedSchedule
from .objectives import OBJECTIVES, Objective


# Fold-ins of the run's key that no step number reaches.
_SPLIT, _VALIDATION = 2**31 - 1, 2**31 - 2


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        process: the trained process: averaged (EMA) weights of the last step, or of the best validation with `patience`.
        history: ``step`` and ``loss`` (nats, mean over the steps since the entry before); ``validation_step``,
            ``validation`` (the K bound in nats) and ``validation_error`` (its standard error over the examples).
        steps: optimiser steps taken.
        stopped: ``"finished"`` or ``"early"``.
    """

    process: ReverseProcess
    history: dict[str, list[float]]
    steps: int
    stopped: str


class TrainingDiverged(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
        step: the first step whose loss was not finite.
        result: the `FitResult` of the last good state.
    """

    def __init__(self, step: int, result: FitResult) -> None:
        super().__init__(
            f"training: the loss is not finite at step {step}; the state of step {result.steps} is kept in "
            "`.result` (and in the checkpoint, if there is one). A smaller learning_rate usually helps."
        )
        self.step, self.result = step, result


class _State(NamedTuple):
    params: Any
    average: Any
    best: Any
    optimizer: Any
    best_value: Array
    best_step: Array
    step: Array


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
    dequantize: float = 0.0,
    validation: float | ArrayLike = 0.1,
    likelihood: AbstractLikelihood | None = None,
    validate_every: int = 1000,
    patience: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    log_every: int = 100,
    progress: bool = True,
) -> FitResult:
    """Train the denoiser, the last step and a learned schedule by stochastic gradient steps.

    Every random number of step n comes from `key` and n, so a run that is resumed from its checkpoint ends exactly
    where an uninterrupted one does.

    Args:
        key: JAX random key.
        process: what to train; its denoiser is usually a `Network`.
        data: shape (n, *event), finite; 0 and 1 for bits.
        num_steps: optimiser steps in all.
        objective: ``"bound"`` for K, ``"simple"`` for the unweighted loss.
        batch_size: examples a step, drawn with replacement.
        learning_rate: the peak of the default schedule (a warm-up over 2% of the steps, then a cosine to 1% of the
            peak), or an optax schedule; used by the default optimiser, Adam with gradients clipped to norm 1.
        optimizer: any optax optimiser in place of the default; it brings its own learning rate.
        ema: decay of the exponential moving average of the weights (shorter in the first steps); 0 switches it off.
        dequantize: width of the uniform noise, centred on 0, that is added to each batch: the spacing of data that
            come in steps.
        validation: share of the data that is held out, or held-out data of their own, shape (m, *event); 0 for none.
        likelihood: estimator of the validation value; a K bound on at most 32 times unless given.
        validate_every: steps between validations; rounded up to whole `log_every`.
        patience: stop after so many validations without a better one, and return the best; never unless given.
        checkpoint: file to resume from if it exists, and to save to.
        checkpoint_every: steps between saves; rounded up to whole `log_every`.
        log_every: steps between entries of the history; also the number of steps compiled into one scan.
        progress: whether to show a progress bar.

    Returns:
        A `FitResult`.

    Raises:
        ValueError: bad arguments or data; the message says which.
        TrainingDiverged: the loss became NaN or infinite; carries the step and the last good state.
        CheckpointError: the checkpoint is damaged, or of another run.
    """
    _check_arguments(process, objective, learning_rate, optimizer, ema, dequantize)
    counts = {"num_steps": num_steps, "batch_size": batch_size, "validate_every": validate_every,
              "checkpoint_every": checkpoint_every, "log_every": log_every}  # fmt: skip
    for name, value in counts.items():
        check_count(name, value)
    train, held_out = _split(key, check_data("data", data, process), validation, process)
    optimizer = _default_optimizer(learning_rate, num_steps) if optimizer is None else optimizer
    run = _Run(process, optimizer, OBJECTIVES[objective], ema, dequantize, min(batch_size, len(train)))
    likelihood = _validation_likelihood(process) if likelihood is None else likelihood
    settings = {"objective": objective, "batch_size": batch_size, "ema": ema, "dequantize": dequantize,
                "log_every": log_every, "num_steps": num_steps, "data": _fingerprint(train, key)}  # fmt: skip
    state, history = _resume(checkpoint, run.start(), settings)
    bar = tqdm(total=num_steps, initial=int(state.step), disable=not progress, desc="training", unit="step")
    stopped = "finished"
    with bar:
        while int(state.step) < num_steps:
            count = min(log_every, num_steps - int(state.step))
            good, (state, losses) = state, run.advance(key, state, train, count)
            losses = np.asarray(losses)
            if not np.isfinite(losses).all():
                step = int(good.step) + int(np.argmin(np.isfinite(losses))) + 1
                _save(checkpoint, good, history, settings)
                raise TrainingDiverged(step, _result(process, good, history, "diverged", patience))
            step = int(state.step)
            history["step"].append(step)
            history["loss"].append(float(losses.mean()))
            due = step == num_steps
            if len(held_out) and (due or _passed(step, count, validate_every)):
                state = _validate(key, run, state, held_out, likelihood, history)
            bar.update(count)
            bar.set_postfix_str(_status(history))
            early = patience is not None and _waited(history, state) >= patience
            if due or early or _passed(step, count, checkpoint_every):
                _save(checkpoint, state, history, settings)
            if early:
                stopped = "early"
                break
    return _result(process, state, history, stopped, patience)


class _Run:
    """The compiled parts of one training run."""

    def __init__(
        self,
        process: ReverseProcess,
        optimizer: optax.GradientTransformation,
        loss: Callable[[Array, ReverseProcess, Array], Array],
        ema: float,
        dequantize: float,
        batch_size: int,
    ) -> None:
        self.mask = trainable(process)
        self.params, self.rest = eqx.partition(process, self.mask)
        if not jax.tree.leaves(self.params):
            raise ValueError("process: expected something to train (a network with array parameters), got none")
        self.optimizer, self.loss, self.ema = optimizer, loss, ema
        self.dequantize, self.batch_size = dequantize, batch_size
        self.advance = jax.jit(self._advance, static_argnums=3)

    def start(self) -> _State:
        params = self.params
        worst, zero = jnp.asarray(-jnp.inf), jnp.zeros((), int)
        return _State(params, params, params, self.optimizer.init(params), worst, zero, zero)

    def process(self, params: Any) -> ReverseProcess:
        return eqx.combine(params, self.rest)

    def _advance(self, key: Array, state: _State, data: Array, count: int) -> tuple[_State, Array]:
        return jax.lax.scan(lambda state, _: self._step(key, state, data), state, None, length=count)

    def _step(self, key: Array, state: _State, data: Array) -> tuple[_State, Array]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        batch = data[jax.random.randint(keys[0], (self.batch_size,), 0, len(data))]
        batch = _dequantize(keys[1], batch, self.dequantize)
        loss, grad = jax.value_and_grad(lambda p: self.loss(keys[2], self.process(p), batch))(state.params)
        updates, optimizer = self.optimizer.update(grad, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(self.ema, (1 + state.step) / (10 + state.step)) if self.ema else 0.0
        average = optax.incremental_update(params, state.average, 1 - decay)
        new = state._replace(params=params, average=average, optimizer=optimizer, step=state.step + 1)
        return new, loss


def check_data(name: str, data: ArrayLike, process: ReverseProcess) -> Array:
    """Return `data` as an array once it suits the process: not empty, of the event shape, finite, binary for bits."""
    if np.asarray(data).dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected numbers, got dtype {np.asarray(data).dtype}")
    array = jnp.asarray(data, dtype=process.diffusion.schedule.times.dtype)
    if array.shape[1:] != process.event_shape or array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{name}: expected shape (n, {', '.join(map(str, process.event_shape))}) with n >= 1, "
                         f"got {array.shape}")  # fmt: skip
    check_finite(name, array)
    if isinstance(process.diffusion, BinomialDiffusion):
        check_binary(name, array)
    return array


def _check_arguments(
    process: ReverseProcess, objective: str, learning_rate: Any, optimizer: Any, ema: float, dequantize: float
) -> None:
    if not isinstance(process, ReverseProcess):
        raise ValueError(f"process: expected a ReverseProcess, got {process!r}")
    check_choice("objective", objective, tuple(OBJECTIVES))
    if optimizer is None and not callable(learning_rate) and not learning_rate > 0:
        raise ValueError(f"learning_rate: expected a positive number or an optax schedule, got {learning_rate!r}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema: expected a decay in [0, 1), got {ema!r}")
    bits = isinstance(process.diffusion, BinomialDiffusion)
    if dequantize < 0 or (bits and dequantize):
        raise ValueError(f"dequantize: expected a width of at least 0 (0 for bits), got {dequantize!r}")
    if bits and isinstance(process.diffusion.schedule, LearnedSchedule):
        raise ValueError("schedule: learned schedules need a GaussianDiffusion, draws of bits have no gradient")
    if objective == "simple" and getattr(process.denoiser, "variance", None) == "learned":
        raise ValueError("objective: expected 'bound' for a learned variance, which the simple loss does not see")


def _default_optimizer(learning_rate: float | optax.Schedule, num_steps: int) -> optax.GradientTransformation:
    if not callable(learning_rate):
        learning_rate = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, max(1, num_steps // 50), max(2, num_steps), 0.01 * learning_rate
        )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))


def _validation_likelihood(process: ReverseProcess) -> KBound:
    return KBound(2, min(process.num_steps - 1, 32), chunk=2048)


def _split(key: Array, data: Array, validation: float | ArrayLike, process: ReverseProcess) -> tuple[Array, Array]:
    if np.ndim(validation) > 0:
        return data, check_data("validation", validation, process)
    share = float(np.asarray(validation))
    if not 0 <= share < 1:
        raise ValueError(f"validation: expected a share in [0, 1) or held-out data, got {validation!r}")
    count = round(share * len(data))
    order = jax.random.permutation(jax.random.fold_in(key, _SPLIT), len(data))
    return data[order[count:]], data[order[:count]]


def _dequantize(key: Array, batch: Array, width: float) -> Array:
    if not width:
        return batch
    return batch + width * (jax.random.uniform(key, batch.shape, dtype=batch.dtype) - 0.5)


def _validate(
    key: Array, run: _Run, state: _State, held_out: Array, likelihood: AbstractLikelihood, history: dict[str, list[float]]
) -> _State:
    values = _evaluate(likelihood, jax.random.fold_in(key, _VALIDATION), run.process(state.average), held_out, run.dequantize)
    value = jnp.mean(values)
    history["validation_step"].append(int(state.step))
    history["validation"].append(float(value))
    history["validation_error"].append(float(jnp.std(values) / np.sqrt(len(values))))
    better = value > state.best_value
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.average, state.best)
    return state._replace(
        best=best,
        best_value=jnp.where(better, value, state.best_value),
        best_step=jnp.where(better, state.step, state.best_step),
    )


@eqx.filter_jit
def _evaluate(
    likelihood: AbstractLikelihood, key: Array, process: ReverseProcess, data: Array, dequantize: float
) -> Array:
    noise, draws = jax.random.split(key)
    return likelihood(draws, process, _dequantize(noise, data, dequantize)).value


def _passed(step: int, count: int, every: int) -> bool:
    return step // every > (step - count) // every


def _waited(history: dict[str, list[float]], state: _State) -> int:
    return sum(step > int(state.best_step) for step in history["validation_step"])


def _status(history: dict[str, list[float]]) -> str:
    parts = [f"loss {history['loss'][-1]:.3f}"]
    if history["validation"]:
        parts.append(f"validation {history['validation'][-1]:.3f} nats")
    return ", ".join(parts)


def _result(
    process: ReverseProcess, state: _State, history: dict[str, list[float]], stopped: str, patience: int | None
) -> FitResult:
    params = state.best if patience is not None and history["validation"] else state.average
    rest = eqx.partition(process, trainable(process))[1]
    return FitResult(eqx.combine(params, rest), history, int(state.step), stopped)


def _fingerprint(data: Array, key: Array) -> str:
    """A short hash of the training data and the key, so that a checkpoint is not continued on others."""
    bits = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return hashlib.sha256(np.asarray(data).tobytes() + np.asarray(bits).tobytes()).hexdigest()[:16]


def _save(path: Any, state: _State, history: dict[str, list[float]], settings: dict[str, Any]) -> None:
    if path is not None:
        write_training_state(path, state, metadata={"history": history, "settings": settings})


def _resume(path: Any, state: _State, settings: dict[str, Any]) -> tuple[_State, dict[str, list[float]]]:
    history: dict[str, list[float]] = {
        name: [] for name in ("step", "loss", "validation_step", "validation", "validation_error")
    }
    if path is None or not Path(path).exists():
        return state, history
    state, metadata = read_training_state(path, state)
    for name, value in settings.items():
        if metadata["settings"].get(name) != value:
            raise ValueError(
                f"checkpoint: {path} is of another run: expected {name} = {value!r}, "
                f"got {metadata['settings'].get(name)!r}"
            )
    return state, metadata["history"]
