"""Data with missing cells, once they are checked: the rows to learn from, and those that are held out.

Cells that are missing at random, by a mechanism that looks only at what is known, leave the likelihood of the known
cells as it is (Rubin 1976); that they are is *assumed*. Rows are checked and set apart here. One without a known cell
says nothing and is dropped, with a warning. Where rows are drawn with replacement (the bootstrap), those held out are
not among them.
"""

import warnings
from typing import NamedTuple

import numpy as np

from .._frames import AbstractTable
from ..moments import LARGEST_WHOLE
from .gaps import Rows
from .mixed import check_columns, widths
from .scaling import spacing

LARGEST = LARGEST_WHOLE
FEW_CELLS = 5  # known ones of a column, below which its rows are not held out
TRIES = 1_000  # of drawing rows in which every column varies; a column that one row tells apart varies in 63% of them


class DroppedRowsWarning(UserWarning):
    """Rows with no known cell, from which nothing can be learned."""


class Gaps(NamedTuple):
    """Data with missing cells, flat.

    Attributes:
        rows: those with a known cell, in their order.
        event_shape: of one example.
        used: which rows of the data these are, boolean.
        width: of the noise that fills the gaps between steps, shape () or (d,); 0 for none.
    """

    rows: Rows
    event_shape: tuple[int, ...]
    used: np.ndarray
    width: float | np.ndarray

    @property
    def said(self) -> str:
        """How many cells are missing."""
        missing, total = int((~self.rows.known).sum()), self.rows.known.size
        dropped = int((~self.used).sum())
        more = f"; {dropped} rows without a known cell are left out" if dropped else ""
        return f"missing: {missing} of {total} cells ({missing / total:.0%}), taken as missing at random{more}"

    def noisy(self, rng: np.random.Generator) -> Rows:
        """The rows with noise between steps."""
        rows = self.rows
        return rows._replace(x=rows.x + self.width * (rng.random(rows.x.shape) - 0.5) * rows.known)


def find_gaps(data: np.ndarray, dequantize: float | None) -> Gaps:
    """The data of real numbers, checked.

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
    width = spacing(values) if dequantize is None else float(dequantize)
    return _with_a_known_cell(flat, data.shape[1:], width)


def find_gaps_of_table(table: AbstractTable) -> Gaps:
    """The rows of a frame with classes, checked.

    Raises:
        ValueError: see `check_columns`.

    Warns:
        DroppedRowsWarning: rows that are all missing.
    """
    check_columns(table)
    return _with_a_known_cell(table.values, table.values.shape[1:], widths(table))


def parted(rng: np.random.Generator, rows: Rows, resample: bool = False) -> tuple[Rows, Rows]:
    """Rows to train on, and a tenth to hold out, 25 or a quarter where they are few; none with rarely known columns.

    Where they are resampled, those to train on are drawn with replacement, and those held out are not among them.
    """
    count = len(rows.x)
    held = round(max(0.1, min(0.25, 25 / count)) * count)
    order = rng.permutation(count)
    rare: np.ndarray = np.asarray(rows.known[:, rows.known.sum(0) < FEW_CELLS].any(1))
    first = np.arange(count) < held
    out = first & ~rare[order] if (first & ~rare[order]).any() else first
    train = rows.take(order[~out])
    return resampled(rng, train) if resample else train, rows.take(order[out])


def resampled(rng: np.random.Generator, rows: Rows) -> Rows:
    """As many rows, drawn with replacement, again until what varies in every column still does."""
    varies = _varies(rows)
    for _ in range(TRIES):
        found = rows.take(rng.integers(len(rows.x), size=len(rows.x)))
        if (_varies(found) | ~varies).all():
            return found
    return rows


def _varies(rows: Rows) -> np.ndarray:
    low, high = np.where(rows.known, rows.x, np.inf).min(0), np.where(rows.known, rows.x, -np.inf).max(0)
    return np.asarray(low < high)


def _with_a_known_cell(flat: np.ndarray, event_shape: tuple[int, ...], width: float | np.ndarray) -> Gaps:
    known = ~np.isnan(flat)
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
    return Gaps(rows, event_shape, used, width)
