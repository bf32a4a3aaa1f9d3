"""A prior from data in one call.

Learning is by the bound K (Sohl-Dickstein et al. 2015, eq. 14), about simple models, judged on held-out examples.
"""

# Over 300 lines: one call, whose ways for each kind of data share its settings.

import functools
import warnings
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .._checks import check_key, check_path
from .._frames import AbstractTable, read_classes
from ..distributions import DiffusionPrior
from ..distributions.report import PriorReport
from ..schedules import AbstractSchedule
from ._arguments import check_data, check_numbers, split, split_context
from .assemble import assembled
from .checks import with_checks
from .conditional import Pairs, Regressed, conditional_plan, described, with_residual_moments, without_context
from .holding_out import held_out_rows
from .holes import Gaps, find_gaps, find_gaps_of_table
from .kinds import KINDS, Kind, kind_beside
from .loop import fit
from .missing import Laps, learn_with_gaps
from .mixed import plan_mixed, refused
from .of_table import UNCHECKED, Finish, learn_table
from .optimizers import WEIGHT_DECAY, warmed_up
from .plan import Family, PriorPlan, plan_prior
from .reporting import report_of, simple_models
from .starts import AbstractStart, GaussianStart, ProductStart

PILOT = 1_000  # steps by which coordinates and baseline are chosen
FIRST_PILOT = 500  # the same, before missing cells are drawn again


class BelowBaselineWarning(UserWarning):
    """A prior that is worse on held-out examples than a simple model of them."""


def fit_prior(
    key: Array,
    data: ArrayLike,
    *,
    family: Family | None = None,
    loc: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    schedule: AbstractSchedule | None = None,
    network: object = None,
    kind: Kind | None = None,
    dequantize: float | None = None,
    max_steps: int | None = None,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    context: ArrayLike | None = None,
    context_dropout: float = 0.0,
    resample: bool = False,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    checkpoint: str | PathLike[str] | None = None,
    progress_bar: bool = True,
) -> DiffusionPrior:
    """Learn a prior from data: `plan_prior`, then `fit` of the K bound, with the best weights on held-out examples.

    A tenth of the examples is held out, more where they are few. Validation begins before the first step and is as
    frequent as their number asks for. Examples of up to 256 real values start as an exact Gaussian or Gaussian
    mixture, and a network learns what that leaves, or vectors have a kernel density without one: see `plan_prior`.

    Cells that are NaN are taken as missing at random, and no row is dropped: by expectation maximisation, from a
    Gaussian or a mixture fitted by EM to the known cells, the missing ones are drawn given the known ones by SMC
    (*consistent as particles grow*), and the prior learns from the completed rows, lap by lap, as long as the log
    evidence of held-out rows' known cells rises. Of frames with classes the mixture is one of independent columns.

    Args:
        key: JAX random key.
        data: shape (n, *event), not constant; `plan_prior` says more of it, and of the arguments up to `bounds`. Real
            values may be NaN, in examples of up to 256 of them. Of a frame the report keeps the columns' names; columns
            of categories, strings and booleans are of classes, and the report keeps their levels. Beside columns of
            numbers they make a table of mixed columns (`MixedDiffusion`), in which columns of up to 20 whole numbers
            are ordered levels; arguments from `family` to `dequantize`, but `network`, are not for it. Cells of any
            column of such frames may be missing; classes by themselves are then a `MixedDiffusion` of one group.
        family: ``"gaussian"``, ``"binomial"`` or ``"categorical"``. Bits are known by their values; codes of classes in
            an array have to be asked for.
        loc: location of the Gaussian noise law; the mean unless given.
        scale: its scale; the standard deviation unless given.
        schedule: of the noise, in standardised or whitened coordinates; from the data's scale to their finest detail.
        network: a callable ``fn(x_t, t)`` that predicts the velocity, or logits; chosen by `kind` unless given.
        kind: of events: ``"vector"``, by an `MLP`; ``"series"``, by 1-d convolutions with zeros beyond the ends;
            ``"image"``, by a small U-Net. Small images are known by their shape; all else, and what has a context or
            missing cells, is a vector unless said. Series and images have no classes, mixed columns or missing cells.
        dequantize: width of the uniform noise for data in equal steps; their spacing unless given.
        max_steps: optimiser steps; chosen unless given.
        bounds: (low, high) of the elements of tables, −inf and inf for none: the support of the prior. Unless given,
            proposed for some columns and decided by held-out examples; with missing cells or a context none.
        context: c of each example, shape (n, *context_shape), for a prior of p(x | c), ``prior.given(c)``: real
            numbers, or whole numbers from 0, which are labels. A network of one's own is called as ``fn(x_t, t, c)``.
            Real values start as a linear regression on c.
        context_dropout: share of contexts that are left out in training and validation, so that ``prior.given(None)``
            is p(x) and NaN or label −1 stands for what is not known; contexts may then have some.
        resample: with missing cells, train on rows that are drawn with replacement from those that are not held out:
            priors of several keys then differ as far as what they learn is uncertain (the bootstrap). `impute` does so.
        batch_size: examples a step; 256 unless given, 128 for a table of at most 2,000 examples.
        learning_rate: the peak of a warm-up and a cosine, for Adam with clipped gradients.
        checkpoint: file to resume from if it exists, and to save to; of a table, that of what is tried first, with
            others beside it, ``checkpoint.1`` and on; with missing cells, one of the last finished lap.
        progress_bar: whether to print the plan and the report, and to show a progress bar.

    Returns:
        The `DiffusionPrior`, in the data's units, with its `report()`. Of dequantised data K bounds the noisy density.

    Example:
        >>> table = jax.random.normal(jax.random.key(0), (300, 3))
        >>> prior = nd.fit_prior(jax.random.key(1), table, max_steps=20, progress_bar=False)
        >>> prior.sample(jax.random.key(2), (5,)).shape
        (5, 3)

    Raises:
        TypeError: see `plan_prior` and `fit`.
        ValueError: likewise; `resample` without missing cells; with them, an array of bits or codes of classes, more
            than 256 real elements, a column all missing; of a frame with classes, fewer than 20 rows, a column that
            does not vary, a level that fewer than two known cells have.

    Warns:
        DroppedRowsWarning: rows with no known cell.
        BelowBaselineWarning: K on the held-out examples is below the log density of a simple model, beyond errors.
    """
    first, second = jax.random.split(check_key("key", key))
    columns = tuple(map(str, getattr(data, "columns", ())))
    classes = read_classes(data)
    mixed = classes if classes is not None and (classes.is_mixed or not classes.known.all()) else None
    if mixed is not None:
        refused(family=family, loc=loc, scale=scale, schedule=schedule, dequantize=dequantize, context=context,
                bounds=bounds, kind=kind)  # fmt: skip
        data = mixed.values
    elif classes is not None:
        family, data = "categorical" if family is None else family, classes.values
    data = check_numbers("data", data)
    if family == "categorical" and np.isnan(data).any():
        raise ValueError("data: expected no missing cells in codes of classes, got NaN; a frame of them may have some")
    settings = _Settings(first, second, batch_size, learning_rate, check_path("checkpoint", checkpoint), progress_bar)
    if context is not None or np.isnan(data).any():
        bounds, kind = _unbounded(bounds), kind_beside(kind, network, bool(np.isnan(data).any()))
    # A network that takes a context too is put in its place once the plan for p(x) is there.
    own = network if context is None or network is None else without_context
    choose = functools.partial(
        plan_prior, first, family=family, loc=loc, scale=scale, schedule=schedule, network=own, max_steps=max_steps,
        bounds=bounds, kind=kind,
    )  # fmt: skip
    said: tuple[str, ...] = ()  # what of the report has been printed before
    if resample and not np.isnan(data).any():
        raise ValueError(f"resample: expected False for data without missing cells, got {resample!r}")
    if mixed is not None and not mixed.known.all():
        begin = ProductStart(first, mixed, network, max_steps, resample)
        prior = _of_gaps(settings, find_gaps_of_table(mixed), begin, max_steps)
    elif mixed is not None:
        prior = _of_mixed(settings, mixed, network, max_steps)
    elif context is not None:
        plan = choose(data, dequantize=dequantize)
        prior, said = _conditional(settings, plan, np.asarray(data), context, context_dropout, network)
    elif context_dropout:
        raise ValueError(f"context_dropout: expected 0 without a context, got {context_dropout!r}")
    elif np.isnan(data).any():
        gaps = find_gaps(data, dequantize)
        prior = _of_gaps(settings, gaps, GaussianStart(choose, gaps.event_shape, resample), max_steps)
    else:
        plan = choose(data, dequantize=dequantize)
        prior, said = _complete(settings, plan, np.asarray(data)), plan.reasons
    levels = () if classes is None else classes.levels
    prior = prior.with_report(prior.report()._replace(columns=columns, levels=levels))
    if progress_bar:
        print(f"{prior.report()}".removeprefix("\n".join(said)).strip())
    if prior.report().is_worse:
        warnings.warn(f"fit_prior: {prior.report().verdict}", BelowBaselineWarning, stacklevel=2)
    return prior


class _Settings(NamedTuple):
    """Arguments of `fit_prior` that every way of training takes."""

    plan_key: Array
    run_key: Array
    batch_size: int | None
    learning_rate: Any
    checkpoint: str | PathLike[str] | None
    progress_bar: bool

    def options(self, plan: PriorPlan, count: int) -> dict[str, Any]:
        """Arguments of `fit`, for so many examples."""
        few = plan.has_baseline and count <= 2_000
        size = KINDS[plan.kind].batch_size(few) if self.batch_size is None else self.batch_size
        return {"batch_size": size, "dequantize": plan.dequantize, "progress_bar": self.progress_bar,
                "validate_every": KINDS[plan.kind].validation_every(count)}  # fmt: skip


def _unbounded(bounds: tuple[ArrayLike, ArrayLike] | None) -> tuple[float, float]:
    """No bounds, for data whose free coordinates no simple model is fitted in."""
    if bounds is not None:
        raise ValueError("bounds: expected None with missing cells or a context, got some")
    return -np.inf, np.inf


def _of_mixed(settings: _Settings, table: AbstractTable, network: Any, max_steps: int | None) -> DiffusionPrior:
    """A prior of a table of mixed columns."""
    plan, models, train, held_out = plan_mixed(settings.plan_key, settings.run_key, table, network, max_steps)
    if settings.progress_bar:
        print(plan)
    finish = Finish(lambda prior: with_checks(prior, train, held_out, 0.0))
    return _learned(settings, settings.checkpoint, plan, train, held_out, finish=finish, models=models)


def _of_gaps(settings: _Settings, gaps: Gaps, start: AbstractStart, max_steps: int | None) -> DiffusionPrior:
    """A prior of rows with missing cells."""
    laps = Laps.of(len(gaps.rows.x), settings.batch_size, settings.learning_rate, max_steps)
    learn = functools.partial(_learned, settings, None, pilot=FIRST_PILOT, models={}, copies=True)
    tell = print if settings.progress_bar else lambda line: None
    return learn_with_gaps(settings.run_key, gaps, start, learn, laps, checkpoint=settings.checkpoint, tell=tell)


def _complete(settings: _Settings, plan: PriorPlan, data: np.ndarray) -> DiffusionPrior:
    """A prior of complete examples, with the checks of its draws in its report."""
    if settings.progress_bar:
        print(plan)
    train, held_out, said = _parts(settings.run_key, data, plan)
    plan = plan._replace(reasons=(*plan.reasons, *said))
    finish = Finish(lambda prior: with_checks(prior, train, held_out, plan.dequantize), data)
    return _learned(settings, settings.checkpoint, plan, train, held_out, finish=finish)


def _learned(
    settings: _Settings,
    checkpoint: str | PathLike[str] | None,
    plan: PriorPlan,
    train: np.ndarray,
    held_out: np.ndarray,
    pilot: int = PILOT,
    finish: Finish = UNCHECKED,
    models: dict[str, Any] | None = None,
    copies: bool = False,
) -> DiffusionPrior:
    """A prior, with its report beside simple models, of examples to train on and others held out."""
    options, rate = settings.options(plan, len(train)), settings.learning_rate
    if not plan.max_steps:
        report = PriorReport(None, (), len(train), 0, 0, plan.reasons, {})
        return DiffusionPrior(plan.process, transform=plan.transform).with_report(report)
    if plan.has_baseline:
        rate = warmed_up(float(rate)) if rate > 0 else rate
        options |= {"learning_rate": rate, "weight_decay": WEIGHT_DECAY, "ema": 0.99 if len(train) <= 4_000 else 0.998}
    patience = _patience(plan, len(train)) if len(held_out) else None
    options |= {"likelihood": KINDS[plan.kind].validation(plan.process, len(held_out)), "patience": patience}
    if plan.is_table:
        keys = settings.plan_key, settings.run_key
        return learn_table(keys, plan, train, held_out, finish, options, checkpoint, pilot, copies)
    options |= {"learning_rate": rate, "checkpoint": checkpoint}
    result = fit(settings.run_key, plan.process, train, max_steps=plan.max_steps, validation=held_out, **options)
    models = simple_models(plan, train, held_out) if models is None else models
    report = report_of(plan, result, None, {"": result}, plan.reasons, models, train, held_out)
    return finish.check(assembled(result.process, None, train, plan.dequantize).with_report(report))


def _conditional(
    settings: _Settings, plan: PriorPlan, data: np.ndarray, context: ArrayLike, dropout: float, network: object
) -> tuple[DiffusionPrior, tuple[str, ...]]:
    """A prior of p(x | c) from pairs, and what was printed of its plan."""
    key = settings.run_key
    array = check_data("data", data, plan.process)
    train, held_out = (
        np.asarray(part, np.float64) for part in split(key, array, _share(plan, len(array)), plan.process)
    )
    values, told, features = described(context, len(data), dropout)
    share = split_context(key, jnp.asarray(values), 0.1, None, plan.process, len(held_out))
    pairs, unseen = (Pairs(x, np.asarray(c)) for x, c in zip((train, held_out), share, strict=True))
    plan, model = conditional_plan(settings.plan_key, plan, pairs, told, features, network)
    if settings.progress_bar:
        print(plan)
    options = settings.options(plan, len(train)) | {"context_dropout": dropout}
    options |= {"checkpoint": settings.checkpoint, "learning_rate": settings.learning_rate}
    return _of_pairs(key, plan, pairs, unseen, model, options), plan.reasons


def _parts(key: Array, data: np.ndarray, plan: PriorPlan) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """To train on and to hold out: a tenth, but 25 examples or a quarter of them where they are few."""
    array = np.asarray(check_data("data", data, plan.process), np.float64)
    train, held_out, said = held_out_rows(key, array, _share(plan, len(array)))
    return array[train], array[held_out], said


def _share(plan: PriorPlan, count: int) -> float:
    return 0.0 if not plan.max_steps else KINDS[plan.kind].share_held_out(count)


def _of_pairs(
    key: Array, plan: PriorPlan, pairs: Pairs, unseen: Pairs, model: Regressed | None, options: dict[str, Any]
) -> DiffusionPrior:
    """Train p(x | c)."""
    if plan.is_table and options["learning_rate"] > 0:
        options |= {"learning_rate": warmed_up(float(options["learning_rate"])), "weight_decay": WEIGHT_DECAY}
        options |= {"ema": 0.99 if len(pairs.x) <= 4_000 else 0.998}
    options |= {"likelihood": KINDS[plan.kind].validation(plan.process, len(unseen.x))}
    result = fit(
        key, plan.process, pairs.x, max_steps=plan.max_steps, transform=plan.transform, context=pairs.context,
        validation=unseen.x, validation_context=unseen.context, patience=_patience(plan, len(pairs.x)),
        **options,
    )  # fmt: skip
    models = {} if model is None else {"linear regression": model.given(unseen.context)}
    report = report_of(plan, result, plan.transform, {"": result}, plan.reasons, models, pairs.x, unseen.x,
                     jnp.asarray(unseen.context))  # fmt: skip
    process = with_residual_moments(result.process, plan.transform, model, pairs, plan.dequantize)
    return DiffusionPrior(process, transform=plan.transform).with_report(report)


def _patience(plan: PriorPlan, count: int) -> int:
    """Validations without a better one: a tenth of the training, 500 steps at least."""
    return max(5, -(-max(500, plan.max_steps // 10) // KINDS[plan.kind].validation_every(count)))
