"""What multiple imputation returns: completed tables, and what speaks for and against them.

Beside the completed tables and their priors stand diagnostics of the rows, by the names that `nd.infer.SMC` uses:
effective sizes, Pareto k̂, and the gaps between independent runs. Rows against which something speaks are named, and
counted in what is printed. No mathematics is done here; `pool` makes one answer of those from several tables.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from .._display import shown_as_text
from ..distributions import DiffusionPrior
from ..samplers.reliability import FEWEST_SIZE, LARGEST_GAP, LARGEST_KHAT


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
        num_priors: that were learned from rows drawn again, each of which every row was completed by; of several, the
            worst of what is above counts, and `log_evidence` is that of their mixture. 1 for one prior of all rows.
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
    num_priors: int
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
            several = f", by each of {self.num_priors} priors" if self.num_priors > 1 else ""
            lines.append(f"particles: {self.num_islands} × {self.num_particles} a row{several}")
            sizes = np.quantile(self.least_size, (0, 0.05, 0.5))
            lines.append("least effective particles: {:.1f}, 5% quantile {:.1f}, median {:.1f}".format(*sizes))
            lines.append(f"largest Pareto k̂ {self.khat.max():.2f}, largest gap of islands {self.gap.max():.2f} nats")
        return "\n".join([*lines, *(f"against: {said}" for said in self.complaints)])


_EMPTY = np.zeros(0)
NOTHING = ImputationDiagnostics(np.zeros(0, int), 0, _EMPTY, _EMPTY, _EMPTY, _EMPTY, 0, 0, 0)


@shown_as_text
class Imputations(Sequence[Any]):
    """Completed tables of the kind that was given, and what speaks for and against them.

    Attributes:
        priors: that they were drawn from, the first table from the first, and so on in turn; none where no cell was
            missing and none was given.
        diagnostics: an `ImputationDiagnostics`.
    """

    def __init__(
        self, tables: list[Any], priors: tuple[DiffusionPrior, ...], diagnostics: ImputationDiagnostics
    ) -> None:
        self._tables, self.priors, self.diagnostics = tables, priors, diagnostics

    @property
    def prior(self) -> DiffusionPrior | None:
        """The first of `priors`, the only one where the rows were not drawn again; None if there is none."""
        return self.priors[0] if self.priors else None

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
        print(self)

    def __str__(self) -> str:
        return f"{len(self)} imputations\n{self.diagnostics}"
