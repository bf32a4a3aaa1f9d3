"""Learning a reverse process from data.

The denoiser, the last step and a learned schedule follow stochastic gradients of an objective: −K, or the unweighted
loss of Ho, Jain and Abbeel (2020, eq. 14), at one random time for each example (`objectives`). Weights may be averaged
over steps, and those that are best on held-out data kept. As K is a *bound* on log p(x_0), maximising it is maximum
likelihood but for the gap, and but for what optimisation leaves.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import optax
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.transforms import Transform
from tqdm.auto import tqdm

from .._checks import check_count, check_key
from .._devices import (
    Devices,
    check_agreement,
    check_devices,
    check_hashing,
    distribute,
    divide,
    is_writer,
    replicate,
)
from ..distributions.parts import check_transform
from ..likelihoods import AbstractLikelihood
from ..process import ReverseProcess
from ._arguments import cadence, check_batch, check_dropout, check_process, check_settings, check_validation
from .driver import Cadences, Driver
from .objectives import OBJECTIVES, Objective
from .optimizers import default_optimizer, optimizer_settings
from .reading import read
from .results import FitResult
from .resume import Saver, digest, resume
from .run import TrainingRun
from .sources import StreamEnded
from .validation import held_out_values as held_out_values
from .validation import validation_told

Batches = Callable[[int], Any] | Iterable[Any]


def fit(
    key: Array,
    process: ReverseProcess,
    data: ArrayLike | Batches,
    *,
    max_steps: int = 10_000,
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
    accumulate: int = 1,
    shard_weights: bool = False,
    progress_bar: bool = True,
) -> FitResult:
    """Train the denoiser, the last step and a learned schedule by stochastic gradient steps.

    Every random number of step n comes from `key` and n, so a run that is resumed from its checkpoint ends exactly
    where an uninterrupted one does.

    Args:
        key: JAX random key.
        process: what to train; its denoiser is usually a `Network`.
        data: shape (n, *event), finite; 0 and 1 for bits. A `np.memmap` stays in its file, from which each step reads
            its examples. Or batches, shape (b, *event) with one b for all, or pairs of them and contexts: a function of
            the step's number (from 0), an iterable, which is gone through again and again, or an iterator. Two are
            fetched ahead, by another thread. A run that is resumed asks a function for the next step, an iterator that
            has `get_state` and `set_state` (Grain's) for where it was, and skips what an iterable had before; another
            iterator cannot go on from a checkpoint.
        max_steps: optimiser steps in all.
        objective: ``"bound"`` for K, ``"simple"`` for the unweighted loss, ``"hybrid"`` for that with a thousandth of
            −K, which teaches a learned variance and nothing else.
        batch_size: examples a step, drawn with replacement; not of batches, which come as they are.
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
            With batches, one of the latter two.
        context: of each example, shape (n, *context_shape), for a process of p(x | c).
        context_dropout: share of contexts that are left out at random, in validation too, so that the network learns
            p(x) as well, for a denoiser of ``Context(optional=True)``.
        validation_context: of held-out data of their own.
        likelihood: estimator of the validation value, with the same noise each time; a K bound unless given, with
            more draws the fewer examples are held out.
        validate_every: steps between validations, of which the first is before training; rounded up to whole
            `log_every`. From 50 for small tables to 1,000 unless given.
        patience: stop after so many validations without a better one, and return the best; never unless given.
        checkpoint: file to resume from if it exists, and to save to, while training goes on: also on an interrupt
            from the keyboard. A run with an optimizer or a schedule of its own may be resumed with more `max_steps`.
        checkpoint_every: steps between saves; rounded up to whole `log_every`.
        log_every: steps between entries of the history; also the number of steps compiled into one scan. At most
            100, and no more than `validate_every`, unless given.
        devices: devices that share each batch, or how many of `jax.devices()`; they must divide `batch_size`. Weights
            and optimiser live on all of them. The run is the same but for the order of sums, and may be resumed on
            others. One, where JAX puts it, unless given. They may be those of several processes (`jax.distributed`),
            which all give the same data and get the same result; the first writes the checkpoint, all read it.
        accumulate: compute the gradient of each batch in so many equal parts, one after the other, which takes less
            memory; the same but for the order of sums. For a schedule learned for the least variance, whose pull
            compares the terms of a batch, those of each part.
        shard_weights: divide large arrays of weights, averages and optimiser among `devices` (fully sharded data
            parallelism): each holds a part, and the weights are brought together where a step computes with them. The
            same but for the order of sums. Where other processes hold parts, an interrupt saves nothing.
        progress_bar: whether to show a progress bar.

    Returns:
        A `FitResult`.

    Example:
        >>> network = nd.networks.MLP(jax.random.key(0), (2,), num_steps=20, width=16)
        >>> denoiser = nd.denoisers.Network(network, predicts="velocity")
        >>> process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(20)), denoiser, 2)
        >>> data = jax.random.normal(jax.random.key(1), (300, 2))
        >>> result = nd.fit(jax.random.key(2), process, data, max_steps=20, validation=0.0, progress_bar=False)
        >>> nd.DiffusionPrior(result.process).event_shape
        (2,)

    Raises:
        TypeError: arguments or data of a wrong type; the message says which.
        ValueError: wrong values of them, likewise.
        TrainingDiverged: the loss became NaN or infinite; carries the step and the last good state.
        CheckpointError: the checkpoint is damaged, or of another run.
        Exception: what a stream of batches raises, once the steps before it are in the checkpoint.
        OSError: the checkpoint's folder does not exist, or nothing can be written there: before the first step. Later,
            on a full disk say, a `CheckpointNotWritten`, which carries the result so far.
    """
    check_process(process, objective)
    check_settings(optimizer, learning_rate, ema, weight_decay, dequantize, patience, process)
    check_transform(transform, process)
    key = check_key("key", key)
    source, held_out, held_out_context, size, digests = read(
        key, process, data, validation, context, validation_context
    )
    dropout = check_dropout(context_dropout, process)
    validate_every = cadence(size) if validate_every is None else validate_every
    counts = {"max_steps": max_steps, "batch_size": batch_size, "validate_every": validate_every,
              "checkpoint_every": checkpoint_every, "accumulate": accumulate}  # fmt: skip
    for name, value in counts.items():
        check_count(name, value)
    log_every = check_count("log_every", min(100, validate_every) if log_every is None else log_every)
    likelihood = check_validation(key, process, held_out, likelihood, patience)
    given = {"objective": objective, "batch_size": batch_size, "ema": float(ema), "dequantize": float(dequantize),
             "log_every": log_every} | optimizer_settings(optimizer, learning_rate, max_steps)  # fmt: skip
    given |= {"transform": digest(transform)} if transform is not None else {}
    given |= {"weight_decay": float(weight_decay)} if weight_decay else {}
    given |= {"context_dropout": dropout} if context is not None else {}
    given |= {"key": digest(key), "process": digest(process)} | digests
    if optimizer is None:
        rate = learning_rate if callable(learning_rate) else float(learning_rate)
        optimizer = default_optimizer(rate, 0 if callable(rate) else max_steps, float(weight_decay))
    made = lambda batch_size, sharding: TrainingRun(
        process, optimizer, OBJECTIVES[objective], ema, dequantize, batch_size, sharding, transform, dropout,
        accumulate, shard_weights,
    )  # fmt: skip
    process = source.with_moments(process, transform, float(dequantize))
    run, where = made(batch_size, None), check_devices(devices, 0)
    held_out_context = validation_told(run, key, held_out_context)
    if shard_weights and where is None:
        raise ValueError("shard_weights: expected False without devices to divide weights among, got True")
    now = resume(checkpoint, run.start(), given, is_writer(where))
    begun = int(now.state.step)
    check_hashing(where)
    check_agreement("checkpoint (the step in its file)", begun, where)
    bar = tqdm(total=max_steps, initial=begun, disable=not progress_bar, desc="training", unit="step")
    with bar, contextlib.closing(source), contextlib.closing(Saver(checkpoint, given, is_writer(where))) as saver:
        batch_size = source.open(run, key, now) if begun < max_steps else batch_size
        sharding = check_batch(devices, batch_size, accumulate)
        run, now, key = (divide if shard_weights else replicate)((made(batch_size, sharding), now, key), sharding)
        source.shard(sharding)
        unseen = distribute(held_out, sharding), distribute(held_out_context, sharding)
        cadences = Cadences(max_steps, validate_every, log_every, checkpoint_every, patience)
        result = Driver(run, key, source, unseen, likelihood, cadences, saver, bar).train(now)
    _tell(source.failed, result.steps)
    return result


def _tell(failed: Exception | None, step: int) -> None:
    """Raise what a stream raised; where it only ended, warn."""
    if isinstance(failed, StreamEnded):
        said = f"data: expected batches for every step, got a stream that ended after step {step}, where training stops"
        warnings.warn(said, stacklevel=3)
    elif failed is not None:
        raise failed
