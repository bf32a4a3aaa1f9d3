"""A prior of tables whose columns are of several kinds: the plan, about a mixture of independent columns."""

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
from ._arguments import split_rows
from .plan import PriorPlan, table_width
from .products import Columns, Products, fit_products
from .tables import FEWEST, finest_detail

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
        ValueError: missing cells, fewer than 20 rows, infinite numbers, a column that does not vary, or a level of
            which there is one row only; the columns are named.
    """
    gaps = [name for i, name in enumerate(table.names) if not table.known[:, i].all()]
    if gaps:
        raise ValueError(
            f"data: expected no missing cells where columns are of several kinds, got some in {gaps!s:.80}; learn from "
            "the complete rows, and complete the others by impute(key, table, prior)"
        )
    if len(table.values) < FEWEST:
        raise ValueError(f"data: expected at least {FEWEST} rows of mixed columns, got {len(table.values)}")
    wide = [name for i, name in enumerate(table.names) if not np.isfinite(table.values[:, i]).all()]
    if wide:
        raise ValueError(f"data: expected finite numbers, got infinite ones in {wide!s:.80}")
    equal = [name for i, name in enumerate(table.names) if np.ptp(table.values[:, i]) == 0]
    if equal:
        raise ValueError(f"data: expected every column to vary, got constant ones: {equal!s:.80}; leave them out")
    for i, (name, kind) in enumerate(zip(table.names, table.kinds, strict=True)):
        if kind == "class":
            counts = np.bincount(table.values[:, i].astype(int), minlength=len(table.levels[i]))
            rare = [str(level) for level, count in zip(table.levels[i], counts, strict=True) if count < 2]
            if rare:
                raise ValueError(
                    f"data: expected two rows or more of each level in column {name!r}, got one of {rare!s:.80}; join "
                    "rare levels, or leave these rows out"
                )
    count = lambda wanted: np.array(
        [len(own) if kind == wanted else 0 for own, kind in zip(table.levels, table.kinds, strict=True)]
    )
    return Columns(count("class"), count("ordered"))


def filled(key: Array, table: AbstractTable) -> np.ndarray:
    """The rows as numbers, columns of whole numbers of many values with uniform noise between them."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    whole = np.array([kind == "whole" for kind in table.kinds])
    return np.asarray(table.values + whole * (rng.random(table.values.shape) - 0.5))


def refused(**given: Any) -> None:
    """Raise ``ValueError`` for an argument of `fit_prior` that is not for mixed columns."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: expected None for a frame of mixed columns, got {value!r:.80}")


def plan_mixed(key: Array, run_key: Array, table: AbstractTable, network: Any, num_steps: int | None) -> MixedPlan:
    """Choose noise, baseline and network.

    Args:
        key: JAX random key, for the network's first weights and what lies between whole numbers.
        run_key: by which rows are held out, as `fit` would.
        table: complete.
        network: ``fn(x_t, t)`` with a pair of outputs, or None for an `MLP`.
        num_steps: of the optimiser, or None.

    Raises:
        ValueError: see `check_columns`; numbers that float32 cannot tell apart; no function; no count.
    """
    columns, count = check_columns(table), len(table.values)
    check_resolution("data", table.values)
    if network is not None and not callable(network):
        raise ValueError(f"network: expected a callable fn(x_t, t), got {network!r}")
    x = filled(jax.random.fold_in(key, 1), table)
    train, held_out = (x[part] for part in split_rows(run_key, count, max(0.1, min(0.25, 25 / count))))
    length = int(np.clip(10 * (columns.num_classes > 0).sum(), LEAST_STEPS, MOST_STEPS))
    groups = _groups(train, columns, length)
    diffusion = MixedDiffusion([own for own, _, _ in groups], [places for _, places, _ in groups])
    independent, best = fit_products(train, held_out, columns)
    (width,) = diffusion.network_shape((diffusion.size,))
    hidden = table_width(count, width)
    fn = MLP(key, (width,), num_steps=length, width=hidden, outputs=2) if network is None else network
    last = MixedStep([levels for _, _, levels in groups])
    process = ReverseProcess(diffusion, Residual(fn, best.denoiser), diffusion.size, last_step=last)
    steps = int(np.clip(5 * count, 1_000, 20_000)) if num_steps is None else check_count("num_steps", num_steps)
    parts = len(best.weights)
    kinds = {kind: [name for name, own in zip(table.names, table.kinds, strict=True) if own == kind] for kind in _SAID}
    reasons = (
        "family: mixed (" + "; ".join(f"{_SAID[kind]}: {', '.join(own)}" for kind, own in kinds.items() if own) + ")",
        "noise law: normal about each column's mean, with its standard deviation; absorbing for classes",
        f"baseline: {parts} laws of independent columns, mixed, as held-out rows decide; the network learns the rest",
        f"schedule: {length} steps",
        f"network: {f'MLP of width {hidden}' if network is None else f'{type(fn).__name__} (given)'}, {count} examples",
        f"training: at most {steps} steps{'' if num_steps is None else ' (given)'}, the best on validation are kept",
    )
    models = {"independent columns": independent} | ({f"mixture of {parts}": best} if parts > 1 else {})
    return MixedPlan(PriorPlan(process, steps, 0.0, reasons), models, train, held_out)


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
