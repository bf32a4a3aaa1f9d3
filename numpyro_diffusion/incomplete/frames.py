"""Tables with missing cells as arrays, and completed arrays as tables of the same kind.

Neither pandas nor polars is imported: a frame brings its library with it.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from .._numbers import as_numbers


class AbstractTable(ABC):
    """A table.

    Attributes:
        names: of the columns; empty for an array.
        values: shape (n, *event), float64, NaN where missing.
    """

    names: tuple[str, ...]
    values: np.ndarray

    @abstractmethod
    def completed(self, values: np.ndarray) -> Any:
        """A table of the same kind: its known cells as they are, the missing ones from `values`, shape (n, *event)."""

    @property
    def known(self) -> np.ndarray:
        """Which cells are known."""
        return ~np.isnan(self.values)


class ArrayTable(AbstractTable):
    """A NumPy or JAX array, or what makes one; completed to a NumPy array of its type."""

    def __init__(self, array: Any) -> None:
        self.names = ()
        self._own = as_numbers("table", array)
        if self._own.ndim < 2 or self._own.size == 0:
            raise ValueError(
                f"table: expected shape (n, *event) with an event of rank 1 or more, got {self._own.shape}"
            )
        self.values = self._own.astype(np.float64)

    def completed(self, values: np.ndarray) -> np.ndarray:
        """An array."""
        return np.where(self.known, self._own, values.astype(self._own.dtype))


class FrameTable(AbstractTable):
    """A frame, column by column."""

    def __init__(self, frame: Any, names: list[Any]) -> None:
        self.names, self._own = tuple(map(str, names)), frame
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"table: expected columns of different names, got {twice} more than once")
        if not self.names or not len(frame):
            raise ValueError(f"table: expected a frame with rows and columns, got shape {frame.shape}")
        other = [name for i, name in enumerate(self.names) if self._kind(i) not in "biuf"]
        if other:
            raise ValueError(f"table: expected columns of numbers, got others: {other}; leave them out, or encode them")
        self.values = np.stack([self._column(i) for i in range(len(self.names))], axis=1)
        half = [name for i, name in enumerate(self.names) if self._kind(i) == "b" and not self.known[:, i].all()]
        if half:
            raise ValueError(f"table: expected no missing cells in columns of booleans, got some in {half}")

    def completed(self, values: np.ndarray) -> Any:
        """A frame; imputed cells of whole-number columns are rounded."""
        out = self._own
        for i in range(len(self.names)):
            missing = ~self.known[:, i]
            if missing.any():
                new = values[missing, i]
                whole = self._kind(i) in "iu"
                out = self._with(out, i, missing, np.round(new).astype(np.int64) if whole else new)
        return self._copied(out)

    @abstractmethod
    def _kind(self, i: int) -> str:
        """NumPy's letter for the kind of a column."""

    @abstractmethod
    def _column(self, i: int) -> np.ndarray:
        """float64 with NaN."""

    @abstractmethod
    def _with(self, frame: Any, i: int, missing: np.ndarray, new: np.ndarray) -> Any:
        """A frame with other cells in one column."""

    def _copied(self, frame: Any) -> Any:
        return frame


class PandasTable(FrameTable):
    """A `pandas.DataFrame`."""

    def __init__(self, frame: Any) -> None:
        super().__init__(frame, list(frame.columns))

    def _kind(self, i: int) -> str:
        return str(getattr(self._own.dtypes.iloc[i], "kind", "O"))

    def _column(self, i: int) -> np.ndarray:
        return np.asarray(self._own.iloc[:, i].to_numpy(dtype=np.float64, na_value=np.nan))

    def _with(self, frame: Any, i: int, missing: np.ndarray, new: np.ndarray) -> Any:
        column = self._own.iloc[:, i].copy()
        kind = column.dtype
        column.iloc[np.flatnonzero(missing)] = new.astype(getattr(kind, "numpy_dtype", kind))
        frame = frame.copy()
        frame.isetitem(i, column)
        return frame

    def _copied(self, frame: Any) -> Any:
        return frame.copy()


class PolarsTable(FrameTable):
    """A `polars.DataFrame`, whose missing cells are null or NaN."""

    def __init__(self, frame: Any) -> None:
        super().__init__(frame, list(frame.columns))

    def _kind(self, i: int) -> str:
        kind = self._own.dtypes[i]
        return "f" if kind.is_float() else "i" if kind.is_integer() else "b" if str(kind) == "Boolean" else "O"

    def _column(self, i: int) -> np.ndarray:
        values = [np.nan if value is None else float(value) for value in self._own.get_column(self.names[i]).to_list()]
        return np.asarray(values, np.float64)

    def _with(self, frame: Any, i: int, missing: np.ndarray, new: np.ndarray) -> Any:
        column = self._own.get_column(self.names[i])
        values = column.to_list()
        for row, value in zip(np.flatnonzero(missing), new.tolist(), strict=True):
            values[row] = value
        return frame.with_columns(type(column)(self.names[i], values, dtype=column.dtype))


def read_table(table: Any) -> AbstractTable:
    """The table that `table` is: a frame of pandas or polars, or an array.

    Raises:
        ValueError: nothing in it, columns that are no numbers (by name), missing booleans, names that occur twice.
        TypeError: an array with hidden values (a mask).
    """
    if hasattr(table, "iloc") and hasattr(table, "columns"):
        return PandasTable(table)
    if hasattr(table, "with_columns") and hasattr(table, "get_column"):
        return PolarsTable(table)
    return ArrayTable(table)
