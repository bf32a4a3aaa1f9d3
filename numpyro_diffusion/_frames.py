"""Tables with missing cells as arrays, classes as codes, and completed arrays as tables of the same kind.

Neither pandas nor polars is imported: a frame brings its library with it. What is computed with is float64, with NaN
where cells are missing; a completed table has the known cells as they were, and columns of the types that they had.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ._numbers import as_numbers

# What the codes 0, 1, … of a column stand for; nothing for a column of numbers.
Levels: TypeAlias = tuple[Any, ...]

# Whole numbers beside classes are ordered levels where their range is below this, else quantities.
MOST_LEVELS = 20


class AbstractTable(ABC):
    """A table.

    Attributes:
        names: of the columns; empty for an array.
        levels: of each column, empty where it is one of numbers; nothing at all for an array.
        kinds: of each column, ``"real"``, ``"whole"`` for whole numbers, ``"class"``, or ``"ordered"`` for levels in
            their order; nothing at all for an array.
        values: shape (n, *event), float64, codes for classes, NaN where missing.
    """

    names: tuple[str, ...]
    levels: tuple[Levels, ...]
    kinds: tuple[str, ...]
    values: np.ndarray

    @property
    def is_mixed(self) -> bool:
        """Whether some columns are of classes or ordered levels, and not all of one kind."""
        return self.has_classes and len(set(self.kinds)) > 1

    @property
    def has_classes(self) -> bool:
        """Whether a column is one of classes."""
        return any(self.levels)

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
        self.names, self.levels, self.kinds = (), (), ()
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
    """A frame, column by column: numbers, or classes (categories and strings, and booleans beside them)."""

    def __init__(self, frame: Any, names: list[Any], levels: Mapping[str, Levels]) -> None:
        self.names, self._own = tuple(map(str, names)), frame
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"table: expected columns of different names, got {twice} more than once")
        if not self.names or not len(frame):
            raise ValueError(f"table: expected a frame with rows and columns, got shape {frame.shape}")
        kinds = [self._kind(i) for i in range(len(self.names))]
        other = [name for name, kind in zip(self.names, kinds, strict=True) if kind not in tuple("biufc")]
        if other:
            raise ValueError(
                f"table: expected columns of numbers or classes, got others: {other}; leave them out, or encode them"
            )
        # Booleans by themselves are bits; beside anything else, or with cells missing, they are two classes.
        are_bits = set(kinds) == {"b"} and not any(None in self._cells(i) for i in range(len(kinds)))
        coded = {"c"} if are_bits else {"c", "b"}
        own = lambda i, kind: self._levels(i) if kind in coded else ()
        found = {name: levels.get(name) or own(i, kinds[i]) for i, name in enumerate(self.names)}
        is_mixed = any(found.values()) and any(kind in "iuf" for kind in kinds)
        if is_mixed and not levels:  # a prior that is known already says what its columns are
            kinds = ["i" if kind == "f" and self._hides_whole(i) else kind for i, kind in enumerate(kinds)]
            found |= {name: self._few(i) for i, name in enumerate(self.names) if kinds[i] in "iu"}
        self.levels = tuple(found.values())
        self.kinds = tuple(map(self._said, range(len(kinds)), kinds))
        columns = [self._codes(i, found) if found else self._column(i) for i, found in enumerate(self.levels)]
        self.values = np.stack(columns, axis=1)

    def completed(self, values: np.ndarray) -> Any:
        """A frame; imputed cells of whole-number columns are rounded."""
        out = self._own
        for i, levels in enumerate(self.levels):
            missing = ~self.known[:, i]
            if missing.any():
                out = self._with(out, i, missing, self._cells_of(i, values[missing, i], levels))
        return self._copied(out)

    def _cells_of(self, i: int, new: np.ndarray, levels: Levels) -> np.ndarray:
        """Imputed values as what the column has in its cells."""
        if levels:
            cells = np.empty(len(new), object)
            cells[:] = [levels[int(code)] for code in new]
            return cells
        return np.round(new).astype(np.int64) if self.kinds[i] == "whole" else new

    def _said(self, i: int, kind: str) -> str:
        """The kind of a column, in words."""
        if self.levels[i]:
            return "ordered" if kind in "iuf" or self._is_ordered(i) else "class"
        return "real" if kind == "f" else "whole"

    def _hides_whole(self, i: int) -> bool:
        """Whether a column of floating numbers is one of whole numbers, which pandas makes floating for its gaps."""
        values = self._column(i)
        known = values[~np.isnan(values)]
        return bool(0 < len(known) < len(values) and np.isfinite(known).all() and (known == np.round(known)).all())

    def _few(self, i: int) -> Levels:
        """All whole numbers from the least to the largest, if they are few."""
        found = {int(cell) for cell in self._cells(i) if cell is not None}
        low, high = (min(found), max(found)) if found else (0, 0)
        return tuple(range(low, high + 1)) if 0 < high - low < MOST_LEVELS else ()

    def _codes(self, i: int, levels: Levels) -> np.ndarray:
        """float64 codes with NaN."""
        code: dict[Any, float] = {level: float(number) for number, level in enumerate(levels)} | {None: np.nan}
        cells = self._cells(i)
        unseen = sorted({str(cell) for cell in cells if cell not in code})
        if unseen:
            raise ValueError(
                f"table: expected levels that the prior has seen in column {self.names[i]!r}, "
                f"{list(levels)!s:.80}, got {unseen!s:.80}"
            )
        return np.array([code[cell] for cell in cells])

    def _levels(self, i: int) -> Levels:
        """The levels that occur in a column, in the order of its categories, or sorted."""
        found = {cell for cell in self._cells(i) if cell is not None}
        strange = [level for level in found if not isinstance(level, str | int | float)]
        if strange:
            raise ValueError(
                f"table: expected levels of strings or numbers in column {self.names[i]!r}, got {strange[0]!r:.60}"
            )
        ordered = self._categories(i)
        return tuple(level for level in ordered if level in found) if ordered else tuple(sorted(found))

    @abstractmethod
    def _kind(self, i: int) -> str:
        """NumPy's letter for the kind of a column; ``"c"`` for categories and strings."""

    @abstractmethod
    def _column(self, i: int) -> np.ndarray:
        """float64 with NaN."""

    @abstractmethod
    def _cells(self, i: int) -> list[Any]:
        """Python's values with None."""

    @abstractmethod
    def _categories(self, i: int) -> list[Any]:
        """The declared categories in their order, empty where none are."""

    @abstractmethod
    def _is_ordered(self, i: int) -> bool:
        """Whether the categories of a column are declared to be ordered."""

    @abstractmethod
    def _with(self, frame: Any, i: int, missing: np.ndarray, new: np.ndarray) -> Any:
        """A frame with other cells in one column."""

    def _copied(self, frame: Any) -> Any:
        return frame


class PandasTable(FrameTable):
    """A `pandas.DataFrame`."""

    def __init__(self, frame: Any, levels: Mapping[str, Levels]) -> None:
        super().__init__(frame, list(frame.columns), levels)

    def _kind(self, i: int) -> str:
        kind = self._own.dtypes.iloc[i]
        if hasattr(kind, "categories"):
            return "c"
        letter = str(getattr(kind, "kind", "O"))
        own = {type(cell) for cell in self._cells(i) if cell is not None} if letter == "O" else {object}
        return "c" if all(issubclass(kind, str) for kind in own) else "b" if own == {bool} else letter

    def _cells(self, i: int) -> list[Any]:
        column = self._own.iloc[:, i]
        return [None if lacks else cell for cell, lacks in zip(column.tolist(), column.isna().tolist(), strict=True)]

    def _categories(self, i: int) -> list[Any]:
        return list(getattr(self._own.dtypes.iloc[i], "categories", ()))

    def _is_ordered(self, i: int) -> bool:
        return bool(getattr(self._own.dtypes.iloc[i], "ordered", False))

    def _column(self, i: int) -> np.ndarray:
        return np.asarray(self._own.iloc[:, i].to_numpy(dtype=np.float64, na_value=np.nan))

    def _with(self, frame: Any, i: int, missing: np.ndarray, new: np.ndarray) -> Any:
        column = self._own.iloc[:, i].copy()
        kind = getattr(column.dtype, "numpy_dtype", column.dtype)
        is_number = getattr(kind, "kind", "O") in tuple("biuf")
        column.iloc[np.flatnonzero(missing)] = new.astype(kind) if is_number else new
        frame = frame.copy()
        frame.isetitem(i, column)
        return frame

    def _copied(self, frame: Any) -> Any:
        return frame.copy()


class PolarsTable(FrameTable):
    """A `polars.DataFrame`, whose missing cells are null or NaN."""

    def __init__(self, frame: Any, levels: Mapping[str, Levels]) -> None:
        super().__init__(frame, list(frame.columns), levels)

    def _kind(self, i: int) -> str:
        kind = self._own.dtypes[i]
        if str(kind).startswith(("Categorical", "Enum", "String")):
            return "c"
        return "f" if kind.is_float() else "i" if kind.is_integer() else "b" if str(kind) == "Boolean" else "O"

    def _column(self, i: int) -> np.ndarray:
        values = [np.nan if value is None else float(value) for value in self._own.get_column(self.names[i]).to_list()]
        return np.asarray(values, np.float64)

    def _cells(self, i: int) -> list[Any]:
        return [None if cell != cell else cell for cell in self._own.get_column(self.names[i]).to_list()]

    def _categories(self, i: int) -> list[Any]:
        kind = self._own.dtypes[i]
        return list(kind.categories) if str(kind).startswith("Enum") else []

    def _is_ordered(self, i: int) -> bool:
        del i
        return False  # an Enum lists its categories, in an order that means nothing

    def _with(self, frame: Any, i: int, missing: np.ndarray, new: np.ndarray) -> Any:
        column = self._own.get_column(self.names[i])
        values = column.to_list()
        for row, value in zip(np.flatnonzero(missing), new.tolist(), strict=True):
            values[row] = value
        return frame.with_columns(type(column)(self.names[i], values, dtype=column.dtype))


def read_table(table: Any, levels: Mapping[str, Levels] | None = None) -> AbstractTable:
    """The table that `table` is: a frame of pandas or polars, or an array.

    Args:
        table: the table.
        levels: of columns of a frame by name, where they are known already; else those that occur in it.

    Raises:
        ValueError: nothing in it, columns that are neither numbers nor classes (by name), names that occur twice,
            levels that are not among the known ones.
        TypeError: an array with hidden values (a mask).
    """
    if is_frame(table):
        return (PandasTable if hasattr(table, "iloc") else PolarsTable)(table, levels or {})
    return ArrayTable(table)


def is_frame(table: Any) -> bool:
    """Whether it is a frame of pandas or polars."""
    return hasattr(table, "columns") and (hasattr(table, "iloc") or hasattr(table, "get_column"))


def read_classes(table: Any) -> AbstractTable | None:
    """A frame with columns of classes, as codes; None for what has none.

    Raises:
        ValueError: see `read_table`.
    """
    if not is_frame(table):
        return None
    kinds = [str(kind).lower() for kind in table.dtypes]
    if all(kind.startswith(("int", "uint", "float")) for kind in kinds):
        return None
    read = read_table(table)
    return read if read.has_classes else None
