"""Multiple imputation of tables by a learned prior."""

# Over 300 lines: one call, with its result and the checks of its table.

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import jax
import numpy as np
from jax import Array
from tqdm.auto import tqdm

from .._checks import check_count, check_key
from .._display import shown_as_text
from .._frames import AbstractTable, Levels, read_table
from ..distributions import DiffusionPrior
from ..moments import LARGEST_WHOLE
from ..samplers.reliability import FEWEST_SIZE, LARGEST_GAP, LARGEST_KHAT, pareto_khat
from ..training import fit_prior
from ..training.posterior_draws import Current, Draws, Effort, draw, read_cells
from ..twists import Laplace

ISLANDS = 2
CALLS = 5_000_000  # of the denoiser, for all rows
MORE = (4, 16)  # times the particles of the first run, for rows that are unreliable until then


@shown_as_text
class ImputationDiagnostics(NamedTuple):
    """What speaks for and against imputed rows, by the names that `nd.infer.SMC` uses; `print` it.

    Attributes:
        rows: numbers of the rows with missing cells, shape (r,).
        cells: how many cells were missing.
        least_size: the least effective number of particles of any island on the way, shape (r,).
        khat: Pareto k̂ of the islands' weights, shape (r,).
        gap: between the largest and the least of the islands' log evidences, in nats, shape (r,).
        log_evidence: log density of the known cells under the prior, in nats, shape (r,).
        num_particles: of one island in the first run; rows that were unreliable had four times as many in a second
            one, and sixteen times in a third.
        num_islands: independent runs for each row.
    """

    rows: np.ndarray
    cells: int
    least_size: np.ndarray
    khat: np.ndarray
    gap: np.ndarray
    log_evidence: np.ndarray
    num_particles: int
    num_islands: int

    @property
    def unreliable(self) -> np.ndarray:
        """The rows that something speaks against."""
        return self.rows[~((self.least_size >= FEWEST_SIZE) & (self.khat <= LARGEST_KHAT) & (self.gap <= LARGEST_GAP))]

    @property
    def complaints(self) -> list[str]:
        """What speaks against the imputations, with its numbers; empty where nothing does."""
        if not len(self.rows):
            return []
        found = (
            (
                self.least_size < FEWEST_SIZE,
                f"the least effective number of particles on the way is below {FEWEST_SIZE:g}",
            ),
            (self.khat > LARGEST_KHAT, f"the weights have a heavy tail, Pareto k̂ above {LARGEST_KHAT}"),
            (self.gap > LARGEST_GAP, f"the islands' log evidences differ by more than {LARGEST_GAP:g} nats"),
        )
        return [f"in {int(bad.sum())} of {len(self.rows)} rows {what}" for bad, what in found if bad.any()]

    def __str__(self) -> str:
        lines = [f"imputed: {self.cells} cells in {len(self.rows)} rows"]
        if len(self.rows):
            lines.append(f"particles: {self.num_islands} × {self.num_particles} a row")
            sizes = np.quantile(self.least_size, (0, 0.05, 0.5))
            lines.append("least effective particles: {:.1f}, 5% quantile {:.1f}, median {:.1f}".format(*sizes))
            lines.append(f"largest Pareto k̂ {self.khat.max():.2f}, largest gap of islands {self.gap.max():.2f} nats")
        return "\n".join([*lines, *(f"against: {said}" for said in self.complaints)])


_EMPTY = np.zeros(0)
_NOTHING = ImputationDiagnostics(np.zeros(0, int), 0, _EMPTY, _EMPTY, _EMPTY, _EMPTY, 0, 0)


class Imputations(Sequence[Any]):
    """Completed tables of the kind that was given, and what speaks for and against them.

    Attributes:
        prior: that they were drawn from; None where no cell was missing and none was given.
        diagnostics: an `ImputationDiagnostics`.
    """

    def __init__(self, tables: list[Any], prior: DiffusionPrior | None, diagnostics: ImputationDiagnostics) -> None:
        self._tables, self.prior, self.diagnostics = tables, prior, diagnostics

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        return self._tables[index]

    def __len__(self) -> int:
        return len(self._tables)

    def print_summary(self) -> None:
        """Print the diagnostics."""
        print(f"{len(self)} imputations\n{self.diagnostics}")


def impute(
    key: Array,
    table: Any,
    prior: DiffusionPrior | None = None,
    num_imputations: int = 20,
    *,
    num_particles: int | None = None,
    num_steps: int | None = None,
    progress_bar: bool = True,
    **options: Any,
) -> Imputations:
    """Complete a table several times: every missing cell is drawn given the known cells of its row, by SMC.

    *Consistent as particles grow*, under the prior's law, whose parameters count as known. Rows that
    are unreliable are run again with four, then with sixteen times as many particles. `nd.pool` pools estimates from
    the completed tables.

    Args:
        key: JAX random key.
        table: array of shape (n, *event), or a frame of pandas or polars with columns of numbers, classes and ordered
            levels in any mixture; NaN (or null) where missing. A row may be missing altogether: it is then a draw of
            the prior.
        prior: of rows; learned from the table itself by `fit_prior` unless given. One that was learned from a frame
            knows its columns' names, and takes frames with these in any order; one of classes knows their levels.
        num_imputations: how many.
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
            levels that the prior has not seen; options beside a prior; known cells off the prior's support; see
            `fit_prior`.
        TypeError: a masked array, or a prior that is none.

    Warns:
        UserWarning: rows whose diagnostics speak against them.
    """
    key = check_key("key", key)
    count = check_count("num_imputations", num_imputations)
    if num_particles is not None:
        check_count("num_particles", num_particles, 2)
    if num_steps is not None:
        check_count("num_steps", num_steps)
    if prior is not None and not isinstance(prior, DiffusionPrior):
        raise TypeError(f"prior: expected a DiffusionPrior, got {type(prior).__name__}")
    if prior is not None and options:
        raise ValueError(f"options: expected none of fit_prior beside a prior, got {sorted(options)}")
    levels = {} if prior is None else _levels_of(prior)
    given = read_table(table, levels)
    if prior is not None and (classes := _strange(given, prior, levels)):
        raise ValueError(f"table: expected columns of numbers, as the prior's are, got classes in {classes!s:.80}")
    if given.known.all():
        return Imputations([given.completed(given.values) for _ in range(count)], prior, _NOTHING)
    first, second = jax.random.split(key)
    if prior is None:
        prior = fit_prior(first, table if given.names else given.values, progress_bar=progress_bar, **options)
        order = np.arange(given.values.shape[1])
    else:
        order = _order(given, prior)
    values = given.values[:, order] if given.names else given.values
    known = ~np.isnan(values)
    _check_values(prior, values, known)
    rows = np.flatnonzero(~known.reshape(len(known), -1).all(1))
    effort = _effort(prior, len(rows), num_particles, num_steps)
    bar = tqdm(total=len(rows), disable=not progress_bar, desc="imputing", unit="row")
    with bar:
        found = _drawn(second, prior, values[rows], known[rows], effort, count, bar.update)
    diagnostics = ImputationDiagnostics(
        rows, int((~known).sum()), found.least_size, found.khat, found.gap, found.log_evidence, effort.num_particles,
        ISLANDS,
    )  # fmt: skip
    tables = []
    for number in range(count):
        whole = values.copy()
        whole[rows] = found.x[:, number]
        tables.append(given.completed(whole[:, np.argsort(order)] if given.names else whole))
    if said := diagnostics.complaints:
        warnings.warn(
            f"these imputations may be wrong: {'; '.join(said)}. `diagnostics.unreliable` has the rows; more particles "
            "may help.",
            stacklevel=2,
        )
    return Imputations(tables, prior, diagnostics)


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


def _effort(prior: DiffusionPrior, count: int, num_particles: int | None, num_steps: int | None) -> Effort:
    whole = prior.process.num_steps
    least = 32 if num_particles is None else num_particles
    fitting = int(np.clip(CALLS // (ISLANDS * least * count), min(16, whole), whole))
    steps = fitting if num_steps is None else min(num_steps, whole)
    fitting = int(np.clip(CALLS // (ISLANDS * steps * count), 32, 256))
    particles = fitting if num_particles is None else num_particles
    size = int(np.prod(prior.event_shape))
    real = prior.process.diffusion.is_gaussian
    twist = Laplace() if real and size <= LARGEST_WHOLE else None
    return Effort(particles, None if steps == whole else steps, ISLANDS, twist)


class _Found(NamedTuple):
    """Of every row with missing cells."""

    x: np.ndarray
    least_size: np.ndarray
    khat: np.ndarray
    gap: np.ndarray
    log_evidence: np.ndarray

    @property
    def is_unreliable(self) -> np.ndarray:
        return ~((self.least_size >= FEWEST_SIZE) & (self.khat <= LARGEST_KHAT) & (self.gap <= LARGEST_GAP))


def _summarised(draws: Draws) -> _Found:
    khat = np.array([pareto_khat(weights) for weights in draws.log_weight])
    with np.errstate(invalid="ignore"):
        gap = np.asarray(draws.islands.max(1) - draws.islands.min(1))
    return _Found(draws.x, draws.least_size, khat, gap, draws.log_evidence)


def _drawn(
    key: Array, prior: DiffusionPrior, values: np.ndarray, known: np.ndarray, effort: Effort, count: int, tick: Any
) -> _Found:
    """Draws for every row; unreliable ones again from more particles, the worst of them if they are many."""
    now, filled = Current(prior, {}), np.where(known, values, 0.0).astype(np.float32)
    found = _summarised(draw(key, now, (filled, known), read_cells, effort, count, tick))
    steps = prior.process.num_steps if effort.num_steps is None else effort.num_steps
    for times in MORE:
        more = effort._replace(num_particles=times * effort.num_particles)
        most = max(1, CALLS // (more.num_particles * ISLANDS * steps))
        unreliable = np.flatnonzero(found.is_unreliable)
        unreliable = unreliable[np.argsort(found.least_size[unreliable])][:most]
        if not len(unreliable):
            break
        again = jax.random.fold_in(key, times)
        draws = draw(again, now, (filled[unreliable], known[unreliable]), read_cells, more, count)
        for mine, theirs in zip(found, _summarised(draws), strict=True):
            mine[unreliable] = theirs
    return found
