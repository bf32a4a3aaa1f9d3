"""From step to step: training, validation and checkpoints, until the steps are taken or none is better.

Stochastic gradient steps go on until there are enough of them, until validation has not risen for some time (early
stopping), or until a number is not finite; what has been learned by then is kept in each case. All random numbers come
from the key and the number of the step, so that a run that was interrupted ends exactly where another one does.
"""

from typing import NamedTuple

import numpy as np
from jax import Array
from tqdm.auto import tqdm

from .._devices import collect, is_shared
from ..likelihoods import AbstractLikelihood
from .interrupts import held_interrupts
from .results import CheckpointNotWritten, FitResult, TrainingDiverged
from .resume import History, Progress, Saver, extended
from .run import Examples, TrainingRun
from .sources import InMemory, Streamed
from .validation import is_due, passed
from .validation import validate as _validate


class Cadences(NamedTuple):
    """How often things are done, in steps of the optimiser; see `fit`."""

    max_steps: int
    validate_every: int
    log_every: int
    checkpoint_every: int
    patience: int | None


class Driver(NamedTuple):
    """What stays the same from step to step.

    Attributes:
        run: the compiled steps.
        key: of the run.
        source: of examples.
        held_out: examples to validate on, which may be none, with their contexts.
        likelihood: by which they are validated.
        cadences: how often.
        saver: of checkpoints.
        bar: of progress.
    """

    run: TrainingRun
    key: Array
    source: InMemory | Streamed
    held_out: Examples
    likelihood: AbstractLikelihood
    cadences: Cadences
    saver: Saver
    bar: tqdm

    def train(self, now: Progress) -> FitResult:
        """Go on until training stops, and save where it was, whatever stops it.

        Raises:
            TrainingDiverged: a step was not finite.
            CheckpointNotWritten: a checkpoint could not be written.
        """
        begun = int(now.state.step)
        try:
            while True:
                now = self._seen(now)
                step = int(now.state.step)
                stopped = self._stopped(now)
                if step > begun and (stopped or passed(step, self.cadences.log_every, self.cadences.checkpoint_every)):
                    _keep(self, now, wait=bool(stopped))
                if stopped:
                    return self.result(now, stopped)
                with held_interrupts():
                    now = _advance(self, now)
        except _NotFinite as error:
            _keep(self, error.last)
            result = self.result(error.last, "diverged")
            raise TrainingDiverged(result.steps + 1, result) from None
        except KeyboardInterrupt:
            if not (self.run.shard_weights and is_shared(self.run.sharding)):  # others have parts, and may not be here
                _keep(self, now)
            raise

    def result(self, now: Progress, stopped: str) -> FitResult:
        """The process with the weights that are asked for."""
        state, history, _ = now
        params = state.best if self.cadences.patience is not None and history["validation"] else state.average
        process = collect(self.run.process(params), self.run.sharding)
        return FitResult(process, history, int(state.step), stopped)

    def _seen(self, now: Progress) -> Progress:
        """With a validation, if one is due, and shown on the bar."""
        if len(self.held_out[0]) and is_due(
            now, self.cadences.max_steps, self.cadences.validate_every, self.cadences.log_every
        ):
            now = _validate(self.run, self.key, now, self.held_out, self.likelihood)
        self.bar.update(int(now.state.step) - self.bar.n)
        self.bar.set_postfix_str(_status(now.history))
        return now

    def _stopped(self, now: Progress) -> str:
        """Why training is over; empty while it is not."""
        if int(now.state.step) >= self.cadences.max_steps:
            return "finished"
        waited = sum(step > int(now.state.best_step) for step in now.history["validation_step"])
        if self.cadences.patience is not None and waited >= self.cadences.patience:
            return "early"
        return "ended" if self.source.failed else ""


class _NotFinite(Exception):
    """A bad step; `last` is the progress before it."""

    def __init__(self, last: Progress) -> None:
        super().__init__(int(last.state.step))
        self.last = last


def _keep(driver: Driver, now: Progress, wait: bool = True) -> None:
    """Save the progress; what cannot be written goes with the error."""
    try:
        driver.saver.save(now, wait=wait)
    except OSError as error:
        raise CheckpointNotWritten(driver.saver.path, driver.result(now, "unsaved"), error) from error


def _advance(driver: Driver, now: Progress) -> Progress:
    """The progress up to the next entry of the history. Its state takes the place of the one that there was."""
    before, every = int(now.state.step), driver.cadences.log_every
    count = min(every - before % every, driver.cadences.max_steps - before)
    state, losses, place = driver.source.steps(driver.run, driver.key, now, count)
    taken = int(state.step) - before
    entry = {"step": int(state.step), "loss": float(np.asarray(losses)[:taken].mean())} if taken else {}
    now = Progress(state, extended(now.history, entry), place)
    if taken < len(losses):
        raise _NotFinite(now)
    return now


def _status(history: History) -> str:
    parts = [f"loss {history['loss'][-1]:.3f}"] if history["loss"] else []
    if history["validation"]:
        parts.append(f"validation {history['validation'][-1]:.3f} nats")
    return ", ".join(parts)
