"""Expectation maximisation, lap by lap: draws given the observations, then learning from them.

The score of a lap is the held-out observations' log evidence, an estimate that is right on average at any number of
particles (its logarithm a little low); the best lap is kept.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._files import check_writable
from ..checkpoints import CheckpointError, read_module, write_module
from ..distributions import DiffusionPrior
from .posterior_draws import Current, Draws

SCORE = 2**31 - 3  # fold-in of the key that scores: the same noise for every lap
LEAST_GAIN = 0.01  # nats an observation: a lap that gains less is none

Step = Callable[[Array, int, Current, Draws], Current]
Score = Callable[[Array, Current], Draws]


class History(NamedTuple):
    """The held-out log evidence, lap by lap, in nats per observation; the first entry is the start's.

    Attributes:
        score: its mean.
        error: standard error of the mean over the observations.
    """

    score: list[float]
    error: list[float]

    @property
    def best(self) -> int:
        """The lap that was kept; 0 for the start."""
        return int(np.argmax(self.score))

    def then(self, values: np.ndarray) -> "History":
        """With one more lap."""
        error = float(values.std() / np.sqrt(len(values)))
        return History([*self.score, float(values.mean())], [*self.error, error])


class Climb(NamedTuple):
    """Where expectation maximisation stands.

    Attributes:
        now: after the last lap.
        best: after the best one.
        values: log evidence of each held-out observation under `best`.
        history: of the laps so far.
    """

    now: Current
    best: Current
    values: np.ndarray
    history: History

    @property
    def laps(self) -> int:
        """How many are done; the start is none."""
        return len(self.history.score) - 1

    @property
    def waited(self) -> int:
        """Laps since the last one that was better by enough."""
        reached, last = -np.inf, 0
        for lap, score in enumerate(self.history.score):
            if score >= reached + LEAST_GAIN:
                reached, last = score, lap
        return self.laps - last


def climb(
    key: Array,
    start: Climb,
    step: Step,
    score: Score,
    *,
    num_laps: int,
    patience: int,
    opening: Draws | None = None,
    checkpoint: str | PathLike[str] | None = None,
    settings: dict[str, Any] | None = None,
    tell: Callable[[Climb], object] = lambda climb: None,
) -> Climb:
    """Laps until none has been better for `patience` of them, or there have been `num_laps`.

    Every lap's randomness comes from the key and its number, so that a run that is resumed ends where another does.

    Args:
        key: JAX random key.
        start: with no lap done.
        step: what is learned, from a key, the lap's number, what there is, and the held-out observations' draws.
        score: the held-out observations' draws and evidences.
        num_laps: at most.
        patience: laps.
        opening: draws and evidences under the start, where they are known without looking.
        checkpoint: file to resume from if it exists, and to save to after each lap.
        settings: what a checkpoint must agree with, in JSON.
        tell: is called after each lap.
    """
    now = _resumed(checkpoint, start, settings or {})
    draws = opening if now.laps == 0 else None
    while now.laps < num_laps and now.waited < patience:
        lap = now.laps + 1
        if draws is None:
            draws = score(jax.random.fold_in(key, SCORE), now.now)
        current = step(jax.random.fold_in(key, lap), lap, now.now, draws)
        draws = score(jax.random.fold_in(key, SCORE), current)
        history = now.history.then(draws.log_evidence)
        better = history.best == lap
        best, values = (current, draws.log_evidence) if better else (now.best, now.values)
        now = Climb(current, best, values, history)
        _save(checkpoint, now, settings or {})
        tell(now)
    return now


class SavedLaps(eqx.Module):
    """A `Climb` as a file holds it."""

    now: Any
    now_params: dict[str, Any]
    best: Any
    best_params: dict[str, Any]
    values: Array


def _save(path: Any, climb: Climb, settings: dict[str, Any]) -> None:
    if path is None:
        return
    (now, now_params), (best, best_params) = climb.now, climb.best
    saved = SavedLaps(now.module, now_params, best.module, best_params, jnp.asarray(climb.values, float))
    write_module(path, saved, metadata={"content": "laps", "settings": settings, "history": climb.history._asdict()})


def _resumed(path: Any, start: Climb, settings: dict[str, Any]) -> Climb:
    if path is None:
        return start
    check_writable("checkpoint", path)
    if not Path(path).exists():
        return start
    saved, metadata = read_module(path)
    stored: Any = metadata.get("settings")
    if not isinstance(saved, SavedLaps) or not isinstance(stored, dict):
        raise CheckpointError(f"checkpoint: expected {str(path)!r} to hold laps of learning, got something else")
    for name in settings:
        if stored.get(name) != settings[name]:
            raise CheckpointError(
                f"checkpoint: expected {str(path)!r} to be of this run, with {name} = {settings[name]!r}, "
                f"got one of another, with {stored.get(name)!r}"
            )
    history: Any = metadata["history"]
    now = Current(_prior(saved.now), saved.now_params)
    best = Current(_prior(saved.best), saved.best_params)
    return Climb(now, best, np.asarray(saved.values, np.float64), History(**history))


def _prior(parts: Any) -> DiffusionPrior:
    return DiffusionPrior(parts.process, parts.likelihood, parts.sampler, parts.key, transform=parts.transform)
