"""A prior of tables whose columns are of several kinds: the plan, about a mixture of independent columns.

The law of a table of real, ordered and unordered columns begins as a mixture of independent columns (`products`), about
which a network learns what such a mixture leaves of the dependence. Each group of columns has the forward process of
its family; whole numbers of a few values are real ones that the last step rounds, which makes K a bound on a log
probability in them.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from .. import schedules
from .._checks import check_count
from .._frames import AbstractTable
from .._numbers import check_resolution
from ..denoisers import Residual
from ..diffusions import AbstractDiffusion, CategoricalDiffusion, GaussianDiffusion, MixedDiffusion
from ..networks import MLP
from ..process import MixedStep, ReverseProcess
from ._arguments import generator_of, split_rows
from .coordinates import finest_detail
from .plan import PriorPlan, table_width
from .products import Columns, Products, fit_products
from .tables import FEWEST

LEAST_STEPS, MOST_STEPS = 64, 200  # T


class MixedPlan(NamedTuple):
    """What is trained on a table of mixed columns, and on what.

    Attributes:
        plan: the process, an untrained network about the better mixture.
        models: simple models of the same rows, by name.
        train: rows to train on, shape (n, d).
        held_out: others, shape (m, d).
    """

    plan: PriorPlan
    models: dict[str, Products]
    train: np.ndarray
    held_out: np.ndarray


def check_columns(table: AbstractTable) -> Columns:
    """What the columns are, once there is something to learn of each.

    Raises:
        ValueError: fewer than 20 rows with a known cell, infinite numbers, a column all missing, one whose known cells
            do not vary, or a level that only one of them has; the columns are named.
    """
    count = int(table.known.any(1).sum())
    if count < FEWEST:
        raise ValueError(f"data: expected at least {FEWEST} rows of mixed columns, got {count}")
    cells = {name: column[~np.isnan(column)] for name, column in zip(table.names, table.values.T, strict=True)}
    named = lambda bad: [name for name, own in cells.items() if bad(own)]
    if wide := named(lambda own: np.isinf(own).any()):
        raise ValueError(f"data: expected finite numbers, got infinite ones in {wide!s:.80}")
    if empty := named(lambda own: not own.size):
        raise ValueError(f"data: expected known cells in every column, got columns all missing: {empty!s:.80}")
    if equal := named(lambda own: np.ptp(own) == 0):
        raise ValueError(f"data: expected every column to vary, got constant ones: {equal!s:.80}; leave them out")
    for i, (name, kind) in enumerate(zip(table.names, table.kinds, strict=True)):
        if kind == "class":
            counts = np.bincount(cells[name].astype(int), minlength=len(table.levels[i]))
            rare = [str(level) for level, count in zip(table.levels[i], counts, strict=True) if count < 2]
            if rare:
                raise ValueError(
                    f"data: expected two known cells or more of each level in column {name!r}, got one of "
                    f"{rare!s:.80}; join rare levels, or leave these rows out"
                )
    number = lambda wanted: np.array(
        [len(own) if kind == wanted else 0 for own, kind in zip(table.levels, table.kinds, strict=True)]
    )
    return Columns(number("class"), number("ordered"))


def widths(table: AbstractTable) -> np.ndarray:
    """Of the uniform noise that fills the gaps between whole numbers of many values: 1 for these, shape (d,)."""
    return np.array([float(kind == "whole") for kind in table.kinds])


def refused(**given: Any) -> None:
    """Raise ``ValueError`` for an argument of `fit_prior` that is not for mixed columns."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: expected None for a frame of mixed columns, got {value!r:.80}")


def plan_mixed(key: Array, run_key: Array, table: AbstractTable, network: Any, max_steps: int | None) -> MixedPlan:
    """Choose noise, baseline and network for a complete table.

    Args:
        key: JAX random key, for the network's first weights and what lies between whole numbers.
        run_key: by which rows are held out, as `fit` would.
        table: complete.
        network: ``fn(x_t, t)`` with a pair of outputs, or None for an `MLP`.
        max_steps: of the optimiser, or None.

    Raises:
        ValueError: see `check_columns` and `plan_about`.
    """
    columns, count = check_columns(table), len(table.values)
    noise = generator_of(jax.random.fold_in(key, 1)).random(table.values.shape) - 0.5
    x = table.values + widths(table) * noise
    train, held_out = (x[part] for part in split_rows(run_key, count, max(0.1, min(0.25, 25 / count))))
    independent, best = fit_products(train, held_out, columns)
    plan = plan_about(key, table, best, train, network, max_steps)
    return MixedPlan(plan, by_name(independent, best), train, held_out)


def by_name(independent: Products, best: Products) -> dict[str, Products]:
    """The simple models, the better one last."""
    parts = len(best.weights)
    return {"independent columns": independent} | ({f"mixture of {parts}": best} if parts > 1 else {})


def plan_about(
    key: Array, table: AbstractTable, law: Products, x: np.ndarray, network: Any, max_steps: int | None
) -> PriorPlan:
    """A process whose network learns what a mixture leaves.

    Args:
        key: JAX random key, for the network's first weights.
        table: of which the rows are.
        law: of the rows.
        x: complete rows to train on, with noise between whole numbers, shape (n, d).
        network: ``fn(x_t, t)`` with a pair of outputs, or None for an `MLP`.
        max_steps: of the optimiser, or None.

    Raises:
        TypeError: no function; no count.
        ValueError: numbers that float32 cannot tell apart.
    """
    check_resolution("data", x)
    if network is not None and not callable(network):
        raise TypeError(f"network: expected a callable fn(x_t, t), got {network!r}")
    columns, count = law.columns, int(table.known.any(1).sum())
    length = int(np.clip(10 * (columns.num_classes > 0).sum(), LEAST_STEPS, MOST_STEPS))
    groups = _groups(x, columns, length)
    diffusion = MixedDiffusion([own for own, _, _ in groups], [places for _, places, _ in groups])
    (width,) = diffusion.network_shape((diffusion.size,))
    hidden = table_width(count, width)
    fn = MLP(key, (width,), num_steps=length, width=hidden, outputs=2) if network is None else network
    last = MixedStep([levels for _, _, levels in groups])
    process = ReverseProcess(diffusion, Residual(fn, law.denoiser), diffusion.size, last_step=last)
    steps = int(np.clip(5 * count, 1_000, 20_000)) if max_steps is None else check_count("max_steps", max_steps)
    kinds = {kind: [name for name, own in zip(table.names, table.kinds, strict=True) if own == kind] for kind in _SAID}
    reasons = (
        "family: mixed (" + "; ".join(f"{_SAID[kind]}: {', '.join(own)}" for kind, own in kinds.items() if own) + ")",
        "noise law: normal about each column's mean, with its standard deviation; absorbing for classes",
        f"baseline: {len(law.weights)} laws of independent columns, mixed, as held-out rows decide; the network learns "
        "the rest",
        f"schedule: {length} steps",
        f"network: {f'MLP of width {hidden}' if network is None else f'{type(fn).__name__} (given)'}, {count} examples",
        f"training: at most {steps} steps{'' if max_steps is None else ' (given)'}, the best on validation are kept",
    )
    return PriorPlan(process, steps, 0.0, reasons)


_SAID = {"real": "real", "whole": "whole numbers", "ordered": "ordered", "class": "classes"}


def _groups(
    x: np.ndarray, columns: Columns, num_steps: int
) -> list[tuple[AbstractDiffusion, tuple[int, ...], int | None]]:
    """Diffusions with their columns: real ones, ordered ones of one number of levels each, and classes."""
    found: list[tuple[AbstractDiffusion, tuple[int, ...], int | None]] = []
    for levels in np.unique(columns.num_levels):
        places = np.flatnonzero((columns.num_classes == 0) & (columns.num_levels == levels))
        if not len(places):
            continue
        loc, scale = x[:, places].mean(0), x[:, places].std(0)
        if levels:
            # Noise as wide as a level's cell at t = 1: finer steps would only tell the model where in its cell it is.
            schedule = schedules.log_snr(num_steps, maximum=float(2 * np.log(np.sqrt(12) * scale.max())))
        else:
            schedule = schedules.log_snr(num_steps, detail=finest_detail((x[:, places] - loc) / scale))
        found.append((GaussianDiffusion(schedule, loc, scale), tuple(places.tolist()), int(levels) or None))
    classes = np.flatnonzero(columns.num_classes)
    if len(classes):
        own = CategoricalDiffusion(schedules.erasing(num_steps), columns.num_classes[classes], "absorbing")
        found.append((own, tuple(classes.tolist()), None))
    return found
