"""Multiple imputation of tables by a learned prior.

Multiple imputation (Rubin 1987): every missing cell is drawn several times given the known cells of its row, so that
what is unknown of it shows in how the completed tables differ, and in estimates that are pooled from them. Draws come
from SMC under a learned prior, *consistent as particles grow*; that cells are missing at random is assumed. From few
rows several priors are learned, each of rows drawn with replacement, so that imputation is proper (Little and Rubin
2019, §10.2.3), *approximately*.
"""

import warnings
from os import fspath
from typing import Any

import jax
import numpy as np
from jax import Array
from tqdm.auto import tqdm

from .._checks import check_count, check_key, check_path
from .._frames import AbstractTable, Levels, read_table
from ..distributions import DiffusionPrior
from ..training import fit_prior
from .imputed import NOTHING, ImputationDiagnostics, Imputations
from .row_draws import ISLANDS, Wanted, draws_by_turns

PRIORS, FEW = 5, 500  # priors of tables of up to so many rows


def impute(
    key: Array,
    table: Any,
    prior: DiffusionPrior | None = None,
    num_imputations: int = 20,
    *,
    num_priors: int | None = None,
    num_particles: int | None = None,
    num_steps: int | None = None,
    progress_bar: bool = True,
    **options: Any,
) -> Imputations:
    """Complete a table several times: every missing cell is drawn given the known cells of its row, by SMC.

    *Consistent as particles grow*, under the prior's law. Rows that are unreliable are run again with four, then with
    sixteen times as many particles. `nd.pool` pools estimates from the completed tables.

    A given prior counts as known, and so does one that is learned from many rows. From few rows several priors are
    learned, each from rows drawn with replacement, and complete the table in turn: what few rows leave open of the
    prior then shows in how the tables differ, so that the imputation is proper (Little and Rubin 2019, §10.2.3), but
    *approximate*, as the bootstrap is.

    Args:
        key: JAX random key.
        table: array of shape (n, *event), or a frame of pandas or polars with columns of numbers, classes and ordered
            levels in any mixture; NaN (or null) where missing. A row may be missing altogether: it is then a draw of
            the prior.
        prior: of rows; learned from the table itself by `fit_prior` unless given. One that was learned from a frame
            knows its columns' names, and takes frames with these in any order; one of classes knows their levels.
        num_imputations: how many.
        num_priors: how many are learned; 1 for one from all rows as they are. Unless given 5 for tables of up to 500
            rows, but no more than imputations, and 1 for larger tables.
        num_particles: of each of two independent runs of each row; unless given from 32 to 256, as the number of rows
            allows.
        num_steps: of the prior's chain; unless given all of them, or for many rows 16 or more.
        progress_bar: whether `fit_prior` says what it does, and whether to show a progress bar.
        **options: of `fit_prior`, where no prior is given.

    Returns:
        `Imputations`: a sequence of tables of the same kind, columns, index and types as `table`, known cells exactly
        as they were; cells of columns of whole numbers are rounded, also of those that pandas made floating for their
        gaps, beside classes and without a prior.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> table = jnp.array([[0.3, jnp.nan], [-1.0, 0.5]])
        >>> prior = nd.DiffusionPrior(process)  # or none: it is then learned from the table
        >>> done = nd.impute(jax.random.key(0), table, prior, num_imputations=3, progress_bar=False)
        >>> len(done), bool(jnp.isnan(done[0]).any())
        (3, False)

    Raises:
        ValueError: a table of another shape than the prior's, with other columns, with columns that are no numbers, or
            levels that the prior has not seen; options or `num_priors` beside a prior, more priors than imputations;
            known cells off the prior's support; see
            `fit_prior`.
        TypeError: a masked array, or a prior that is none.

    Warns:
        UserWarning: rows whose diagnostics speak against them.
    """
    key = check_key("key", key)
    count = check_count("num_imputations", num_imputations)
    _check_counts(count, num_priors, num_particles, num_steps)
    _check_prior(prior, num_priors, options)
    levels = {} if prior is None else _levels_of(prior)
    given = read_table(table, levels)
    if prior is not None and (classes := _strange(given, prior, levels)):
        raise ValueError(f"table: expected columns of numbers, as the prior's are, got classes in {classes!s:.80}")
    if given.known.all():
        whole = [given.completed(given.values) for _ in range(count)]
        return Imputations(whole, () if prior is None else (prior,), NOTHING)
    first, second = jax.random.split(key)
    if prior is None:
        several = min(count, PRIORS if len(given.values) <= FEW else 1) if num_priors is None else num_priors
        options |= {"progress_bar": progress_bar}
        priors = _learned(first, table if given.names else given.values, several, options)
        order = np.arange(given.values.shape[1])
    else:
        priors, order = (prior,), _order(given, prior)
    values = given.values[:, order] if given.names else given.values
    known = ~np.isnan(values)
    _check_values(priors[0], values, known)
    rows = np.flatnonzero(~known.reshape(len(known), -1).all(1))
    wanted = Wanted(num_particles, num_steps)
    bar = tqdm(total=len(priors) * len(rows), disable=not progress_bar, desc="imputing", unit="row")
    with bar:
        found = draws_by_turns(second, priors, values[rows], known[rows], wanted, count, bar.update)
    diagnostics = ImputationDiagnostics(
        rows, int((~known).sum()), found.least_size, found.khat, found.gap, found.log_evidence, len(priors),
        int(found.num_particles.min()), ISLANDS,
    )  # fmt: skip
    back = np.argsort(order)
    tables = []
    for number in range(count):
        filled = values.copy()
        filled[rows] = found.x[:, number]
        tables.append(given.completed(filled[:, back] if given.names else filled))
    if said := diagnostics.complaints:
        warnings.warn(
            f"these imputations may be wrong: {'; '.join(said)}. `diagnostics.unreliable` has the rows; more particles "
            "may help.",
            stacklevel=2,
        )
    return Imputations(tables, priors, diagnostics)


def _check_counts(count: int, num_priors: int | None, num_particles: int | None, num_steps: int | None) -> None:
    if num_particles is not None:
        check_count("num_particles", num_particles, 2)
    if num_steps is not None:
        check_count("num_steps", num_steps)
    if num_priors is not None and check_count("num_priors", num_priors) > count:
        raise ValueError(f"num_priors: expected at most num_imputations = {count}, got {num_priors}")


def _check_prior(prior: Any, num_priors: int | None, options: dict[str, Any]) -> None:
    if prior is None:
        return
    if not isinstance(prior, DiffusionPrior):
        raise TypeError(f"prior: expected a DiffusionPrior, got {type(prior).__name__}")
    if options:
        raise ValueError(f"options: expected none of fit_prior beside a prior, got {sorted(options)}")
    if num_priors is not None:
        raise ValueError(f"num_priors: expected None beside a prior, got {num_priors}")


def _learned(key: Array, table: Any, several: int, options: dict[str, Any]) -> tuple[DiffusionPrior, ...]:
    """One prior of the rows, or several, each of rows drawn with replacement."""
    if several == 1:
        return (fit_prior(key, table, **options),)
    place = check_path("checkpoint", options.pop("checkpoint", None))
    places = [None if place is None else f"{fspath(place)}.prior{number}" for number in range(several)]
    keys = jax.random.split(key, several)
    return tuple(
        fit_prior(own, table, resample=True, checkpoint=place, **options)
        for own, place in zip(keys, places, strict=True)
    )


def _levels_of(prior: DiffusionPrior) -> dict[str, Levels]:
    """Levels of the columns of a prior that was learned from a frame of classes, by name."""
    report = prior._report
    return {} if report is None or not report.levels else dict(zip(report.columns, report.levels, strict=True))


def _strange(table: AbstractTable, prior: DiffusionPrior, levels: dict[str, Levels]) -> list[str]:
    """Columns of classes in the table that are numbers to the prior."""
    names = () if prior._report is None else prior._report.columns
    pairs = zip(table.names, table.levels, strict=True) if table.names else ()
    return [name for name, found in pairs if found and not levels.get(name) and (name in names or not levels)]


def _order(table: AbstractTable, prior: DiffusionPrior) -> np.ndarray:
    """Which column of the table each of the prior's is."""
    names = () if prior._report is None else prior._report.columns
    if table.names and names:
        if set(table.names) != set(names):
            lacking = [name for name in names if name not in table.names]
            unknown = [name for name in table.names if name not in names]
            raise ValueError(f"table: expected the prior's columns, got none called {lacking}, and others: {unknown}")
        return np.array([table.names.index(name) for name in names])
    if table.values.shape[1:] != prior.event_shape:
        raise ValueError(f"table: expected rows of the prior's shape {prior.event_shape}, got {table.values.shape[1:]}")
    return np.arange(table.values.shape[1])


def _check_values(prior: DiffusionPrior, values: np.ndarray, known: np.ndarray) -> None:
    if prior.batch_shape:
        raise ValueError(f"prior: expected batch shape (), got {prior.batch_shape}")
    if np.isinf(values).any():
        raise ValueError("table: expected finite values, and NaN where a cell is missing, got infinite ones")
    inside = np.asarray(prior.sample(jax.random.key(0)))
    whole = np.where(known, values, inside)
    if not np.all(np.asarray(prior.support(whole))):
        raise ValueError(f"table: expected known cells on the prior's support, {prior.support}, got others")
