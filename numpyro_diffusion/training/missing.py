"""A prior from rows with missing cells, which are learned from as they are: missing at random, no row dropped."""

import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._numbers import check_resolution
from ..checkpoints import digest
from ..distributions import DiffusionPrior
from ..distributions.report import PriorReport, Score
from ..moments import LARGEST_WHOLE
from ..twists import Laplace
from .assemble import assembled, chain_of
from .gaps import Rows, completed, fit_gaussian, fit_mixture_of_rows, known_log_prob
from .laps import Climb, History, climb
from .loop import fit
from .plan import PriorPlan, spacing
from .posterior_draws import Current, Draws, Effort, effort_for, read_cells, scored
from .tables import NUM_TIMES, table

LAPS = 3
LAP_STEPS = 700  # of training in each lap after the first
RUNS = 4  # independent runs of SMC that score a lap
LARGEST = LARGEST_WHOLE
FEW = 900  # rows up to which every row is completed more than once

Learn = Callable[[PriorPlan, np.ndarray, np.ndarray], DiffusionPrior]
Choose = Callable[..., PriorPlan]


class DroppedRowsWarning(UserWarning):
    """Rows with no known cell, from which nothing can be learned."""


class Laps(NamedTuple):
    """How a prior is trained on completed rows.

    Attributes:
        first_steps: in the first lap, at most.
        options: of `fit` in the laps after the first.
        most: laps.
    """

    first_steps: int
    options: dict[str, Any]
    most: int = LAPS


class Gaps(NamedTuple):
    """Data with missing cells, flat.

    Attributes:
        rows: those with a known cell, in their order.
        event_shape: of one example.
        used: which rows of the data these are, boolean.
        width: of the noise that fills the gaps between steps; 0 for none.
    """

    rows: Rows
    event_shape: tuple[int, ...]
    used: np.ndarray
    width: float

    @property
    def said(self) -> str:
        """How many cells are missing."""
        missing, total = int((~self.rows.known).sum()), self.rows.known.size
        dropped = int((~self.used).sum())
        more = f"; {dropped} rows without a known cell are left out" if dropped else ""
        return f"missing: {missing} of {total} cells ({missing / total:.0%}), taken as missing at random{more}"


def find_gaps(data: np.ndarray, dequantize: float | None) -> Gaps:
    """The data, checked.

    Raises:
        ValueError: no batch of examples, more than 256 elements, infinite values, bits, a column all missing or with
            equal known values.

    Warns:
        DroppedRowsWarning: rows that are all missing.
    """
    if data.ndim < 2 or data.size == 0:
        raise ValueError(f"data: expected shape (n, *event) with an event of rank 1 or more, got {data.shape}")
    size = int(np.prod(data.shape[1:]))
    if size > LARGEST:
        raise ValueError(
            f"data: expected at most {LARGEST} elements an example where cells are missing, got {size}; "
            "fit_prior_from_observations takes more"
        )
    flat = data.reshape(len(data), size).astype(np.float64)
    known = ~np.isnan(flat)
    if np.isinf(flat).any():
        raise ValueError("data: expected finite values, and NaN where a cell is missing, got infinite ones")
    values = flat[known]
    if ((values == 0) | (values == 1)).all():
        raise ValueError("data: expected real values where cells are missing, got only 0 and 1 beside NaN")
    empty = np.flatnonzero(~known.any(0))
    if empty.size:
        raise ValueError(f"data: expected known cells in every column, got columns all missing at {empty[:8].tolist()}")
    low, high = np.where(known, flat, np.inf).min(0), np.where(known, flat, -np.inf).max(0)
    constant = np.flatnonzero(low == high)
    if constant.size:
        raise ValueError(f"data: expected every element to vary, got constant ones at {constant[:8].tolist()}; "
                         "leave them out")  # fmt: skip
    used: np.ndarray = np.asarray(known.any(1))
    if not used.all():
        warnings.warn(
            f"data: {int((~used).sum())} of {len(used)} rows have no known cell; they say nothing and are left out",
            DroppedRowsWarning,
            stacklevel=4,
        )
    rows = Rows(np.where(known, flat, 0.0)[used], known[used])
    if len(rows.x) < 2:
        raise ValueError(f"data: expected at least 2 examples with known cells, got {len(rows.x)}")
    width = spacing(values) if dequantize is None else float(dequantize)
    return Gaps(rows, data.shape[1:], used, width)


def learn_with_gaps(
    key: Array,
    gaps: Gaps,
    choose: Choose,
    learn: Learn,
    laps: Laps,
    *,
    checkpoint: str | PathLike[str] | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> DiffusionPrior:
    """Expectation maximisation from a Gaussian, or a mixture of them, fitted by EM to the known cells.

    Args:
        key: JAX random key.
        gaps: the data.
        choose: the plan for completed examples, of shape (n, *event) and with the share that is held out.
        learn: a prior of completed examples, those to train on and those held out.
        laps: how it is trained.
        checkpoint: see `climb`.
        tell: is told what is done, line by line.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    tell(gaps.said)
    noisy = lambda rows: rows._replace(x=rows.x + gaps.width * (rng.random(rows.x.shape) - 0.5) * rows.known)
    rows = noisy(gaps.rows)
    gaussian = fit_gaussian(rows)
    whole = completed(rng, gaussian, rows)
    check_resolution("data", whole)
    shaped = lambda x: x.reshape(len(x), *gaps.event_shape)
    plan = choose(shaped(whole), dequantize=0.0)
    plan = plan._replace(num_steps=min(plan.num_steps, laps.first_steps))
    if not plan.num_steps:
        report = PriorReport(None, (), len(rows.x), 0, 0, (gaps.said, *plan.reasons), {})
        return chain_of(gaussian, gaps.event_shape, plan.schedule).with_report(report)
    count = len(rows.x)
    held = round(max(0.1, min(0.25, 25 / count)) * count)
    order = rng.permutation(count)
    train, out = rows.take(order[held:]), rows.take(order[:held])
    gaussian = fit_gaussian(train)
    laws = {"Gaussian": gaussian}
    simple = table(completed(rng, gaussian, train), completed(rng, gaussian, out), 0.0)
    if (parts := len(simple.mixture.weights)) > 1:
        laws[f"mixture of {parts} Gaussians"] = fit_mixture_of_rows(train, simple.mixture)
    values = {name: known_log_prob(law, out) for name, law in laws.items()}
    start_name = max(values, key=lambda name: values[name].mean())
    law = laws[start_name]
    tell(f"start: {start_name} by EM, held-out log evidence {values[start_name].mean():.3f} nats")
    every = max(1, min(8, FEW // len(train.x)))
    again = Rows(np.repeat(train.x, every, 0), np.repeat(train.known, every, 0))

    def step(key: Array, lap: int, now: Current, held_out: Draws) -> Current:
        own, run = jax.random.split(key)
        if lap == 1:
            return Current(learn(plan, shaped(completed(rng_of(own), law, again)), shaped(held_out.x[:, 0])), {})
        prior = now.prior
        x = _drawn(own, now, train, gaps.event_shape, every, effort, 1).x
        x = np.swapaxes(x, 0, 1).reshape(-1, *gaps.event_shape)
        steps = min(LAP_STEPS, laps.first_steps, plan.num_steps)
        result = fit(run, prior.process, x, transform=prior.transform, num_steps=steps, validation=held_out.x[:, 0],
                     progress_bar=False, **laps.options)  # fmt: skip
        return Current(assembled(result.process, prior.transform, x).with_report(prior._report), {})

    def score(key: Array, now: Current) -> Draws:
        return _drawn(key, now, out, gaps.event_shape, every, effort, RUNS)

    begun = shaped(completed(rng, law, out))[:, None]
    effort = effort_for(len(train.x), NUM_TIMES if plan.schedule is None else plan.schedule.num_steps)._replace(
        twist=Laplace()
    )
    first = Current(chain_of(law, gaps.event_shape, plan.schedule), {})
    history = History([], []).then(values[start_name])
    settings = {
        "key": digest(key),
        "data": digest(jnp.asarray(gaps.rows.x)),
        "known": digest(jnp.asarray(gaps.rows.known)),
    }
    say = lambda now: tell(f"lap {now.laps}: held-out log evidence {now.history.score[-1]:.3f} nats")
    found = climb(
        key, Climb(first, first, values[start_name], history), step, score, num_laps=laps.most, patience=1,
        opening=Draws(begun, *[values[start_name]] * 4), checkpoint=checkpoint, settings=settings, tell=say,
    )  # fmt: skip
    return _reported(found, plan, gaps, values, len(train.x))


def rng_of(key: Array) -> np.random.Generator:
    """A NumPy generator of a JAX key's bits."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))


def _drawn(
    key: Array, now: Current, rows: Rows, event_shape: tuple[int, ...], num_draws: int, effort: Effort, repeats: int
) -> Draws:
    """Draws of completed rows, whose known cells are as they are."""
    shape = (len(rows.x), *event_shape)
    values = rows.x.astype(np.float32).reshape(shape), rows.known.reshape(shape)
    found = scored(key, now, values, read_cells, effort, num_draws, repeats)
    exact = np.where(rows.known.reshape(shape)[:, None], rows.x.reshape(shape)[:, None], found.x)
    return found._replace(x=exact)


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
