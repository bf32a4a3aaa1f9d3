"""A prior from rows with missing cells, which are learned from as they are: missing at random, no row dropped.

Expectation maximisation (Dempster, Laird and Rubin 1977) with a diffusion prior: missing cells are drawn given the
known ones by SMC under the current prior, *consistent as particles grow*, the prior learns from the completed rows, and
so on. Laps are *approximate* steps of EM, by draws and by what training leaves. The simple model that completes the
rows first is fitted to the known cells by EM in closed form. The log evidence of the known cells of held-out rows says
when to stop.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..checkpoints import digest
from ..distributions import DiffusionPrior
from ..distributions.report import PriorReport, Score
from ._arguments import generator_of
from .assemble import assembled
from .gaps import Rows
from .holes import Gaps
from .laps import Climb, History, climb
from .loop import fit
from .optimizers import WEIGHT_DECAY, warmed_up
from .plan import PriorPlan
from .posterior_draws import Current, Draws, Effort, effort_for, read_cells, scored
from .starts import AbstractStart, Begun

FIRST_LAP = 2_000  # steps, before missing cells are drawn again
LAPS, FEW_LAPS, MANY = 8, 3, 2_000  # at most, for up to so many rows and for more
# The first lap learns from what the simple model says of missing cells, and seldom more than that model knows.
PATIENCE = 2
LAP_STEPS = 700  # of training in each lap after the first
RUNS = 4  # independent runs of SMC that score a lap
FEW = 900  # rows up to which every row is completed more than once

Learn = Callable[[PriorPlan, np.ndarray, np.ndarray], DiffusionPrior]


class Laps(NamedTuple):
    """How a prior is trained on completed rows.

    Attributes:
        first_steps: in the first lap, at most.
        options: of `fit` in the laps after the first.
        most: laps.
    """

    first_steps: int
    options: dict[str, Any]
    most: int

    @classmethod
    def of(cls, count: int, batch_size: int | None, learning_rate: float, max_steps: int | None) -> "Laps":
        """As the arguments of `fit_prior` want it, for so many rows."""
        rate: Any = warmed_up(float(learning_rate)) if learning_rate > 0 else learning_rate
        options = {"learning_rate": rate, "weight_decay": WEIGHT_DECAY, "ema": 0.99, "patience": 10}
        options |= {"batch_size": 128 if batch_size is None else batch_size}
        most = LAPS if count <= MANY else FEW_LAPS
        return cls(FIRST_LAP if max_steps is None else max_steps, options, most)


def learn_with_gaps(
    key: Array,
    gaps: Gaps,
    start: AbstractStart,
    learn: Learn,
    laps: Laps,
    *,
    checkpoint: str | PathLike[str] | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> DiffusionPrior:
    """Expectation maximisation from a simple model, itself fitted by EM to the known cells.

    Args:
        key: JAX random key.
        gaps: the data.
        start: the simple models, and the plan about them.
        learn: a prior of completed examples, those to train on and those held out.
        laps: how it is trained.
        checkpoint: see `climb`.
        tell: is told what is done, line by line.
    """
    rng = generator_of(key)
    tell(gaps.said)
    begun = start.begun(rng, gaps.noisy(rng))
    if not begun.plan.max_steps:
        (law,) = begun.laws.values()
        report = PriorReport(None, (), len(begun.train.x), 0, 0, (gaps.said, *begun.plan.reasons), {})
        return start.chain(law, begun.plan).with_report(report)
    values = {name: start.known_log_prob(law, begun.out) for name, law in begun.laws.items()}
    best = max(values, key=lambda name: values[name].mean())
    tell(f"start: {best} by EM, held-out log evidence {values[best].mean():.3f} nats")
    run = _Run(start, begun, begun.laws[best], gaps.event_shape, learn, laps)
    opening = Draws(run.shaped(start.completed(rng, run.law, begun.out))[:, None], *[values[best]] * 4)
    first = Current(start.chain(run.law, begun.plan), {})
    settings = {
        "key": digest(key),
        "data": digest(jnp.asarray(gaps.rows.x)),
        "known": digest(jnp.asarray(gaps.rows.known)),
        "resample": start.resample,
    }
    say = lambda now: tell(f"lap {now.laps}: held-out log evidence {now.history.score[-1]:.3f} nats")
    found = climb(
        key, Climb(first, first, values[best], History([], []).then(values[best])), run.step, run.score,
        num_laps=laps.most, patience=PATIENCE, opening=opening, checkpoint=checkpoint, settings=settings, tell=say,
    )  # fmt: skip
    return _reported(found, begun.plan, gaps, values, len(begun.train.x))


class _Run(NamedTuple):
    """What all laps share.

    Attributes:
        start: the simple models.
        begun: plan and rows.
        law: the simple model that is best on the rows held out.
        event_shape: of one example.
        learn: see `learn_with_gaps`.
        laps: how a prior is trained.
    """

    start: AbstractStart
    begun: Begun
    law: Any
    event_shape: tuple[int, ...]
    learn: Learn
    laps: Laps

    def shaped(self, x: np.ndarray) -> np.ndarray:
        """Flat examples as examples."""
        return x.reshape(len(x), *self.event_shape)

    def step(self, key: Array, lap: int, now: Current, held_out: Draws) -> Current:
        """Complete the rows by what there is, the simple model first, and train on them."""
        own, run = jax.random.split(key)
        unseen = held_out.x[:, 0]
        plan = self.begun.plan._replace(max_steps=min(self.begun.plan.max_steps, self.laps.first_steps))
        if lap == 1:
            train, every = self.begun.train, self._every
            again = Rows(np.repeat(train.x, every, 0), np.repeat(train.known, every, 0))
            x = self.start.completed(generator_of(own), self.law, again)
            return Current(self.learn(plan, self.shaped(x), unseen), {})
        prior = now.prior
        x = np.swapaxes(self._drawn(own, now, self.begun.train, 1).x, 0, 1).reshape(-1, *self.event_shape)
        result = fit(run, prior.process, x, transform=prior.transform, max_steps=min(LAP_STEPS, plan.max_steps),
                     validation=unseen, progress_bar=False, **self.laps.options)  # fmt: skip
        return Current(assembled(result.process, prior.transform, x, plan.dequantize).with_report(prior._report), {})

    def score(self, key: Array, now: Current) -> Draws:
        """Draws and log evidences of the rows held out."""
        return self._drawn(key, now, self.begun.out, RUNS)

    @property
    def _every(self) -> int:
        """How often each row is completed."""
        return max(1, min(8, FEW // len(self.begun.train.x)))

    @property
    def _effort(self) -> Effort:
        effort = effort_for(len(self.begun.train.x), self.begun.plan.process.num_steps)
        return effort._replace(twist=self.start.twist)

    def _drawn(self, key: Array, now: Current, rows: Rows, repeats: int) -> Draws:
        """Draws of completed rows, whose known cells are as they are."""
        x, known = self.shaped(rows.x), self.shaped(rows.known)
        values = x.astype(np.float32), known
        found = scored(key, now, values, read_cells, self._effort, self._every, repeats)
        return found._replace(x=np.where(known[:, None], x[:, None], found.x))


def _reported(found: Climb, plan: PriorPlan, gaps: Gaps, simple: dict[str, np.ndarray], count: int) -> DiffusionPrior:
    """The best lap's prior with its record."""
    history, prior = found.history, found.best.prior
    laps = {"score": history.score, "error": history.error}
    said = ", ".join(f"{score:.3f}" for score in history.score)
    said_laps = f"laps: {found.laps}, of which {history.best} is kept (0: the start); held-out log evidence {said} nats"
    scores = [_score("prior (known cells)", found.values, found.values)]
    scores += [_score(name, values, found.values) for name, values in simple.items()]
    own = prior._report
    base = PriorReport(None, (), 0, 0, 0, plan.reasons, {}) if own is None else own
    report = base._replace(
        prior=scores[0], baselines=tuple(scores[1:]), trained=count, held_out=len(found.values),
        reasons=(gaps.said, *base.reasons, said_laps), laps=laps,
    )  # fmt: skip
    return prior.with_report(report)


def _score(name: str, values: np.ndarray, own: np.ndarray) -> Score:
    error = lambda x: float(x.std() / np.sqrt(len(x)))
    return Score(name, float(values.mean()), error(values), float((own - values).mean()), error(own - values))
