"""Tables in text (CSV): numbers in columns with names.

A table is UTF-8 text, with or without a byte-order mark. Its separator (comma, semicolon or tab) is the one that gives
the first lines equally many cells, and the most; the first line holds names where one of its cells is no number. Empty
cells, NA and the like become NaN, for the caller to take or refuse; any other text among the numbers, lines of other
lengths, and columns without a name of their own are refused. A prior's card keeps the names, by which the columns of
later tables are chosen and put in order. Numbers are written with nine digits, which tell all of float32 apart.
"""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._arrays import read_array

SEPARATORS = ",;\t"
MISSING = {"", "na", "nan", "n/a", "null", "none", "?"}
ENDINGS = (".csv", ".tsv", ".txt")


class Examples(NamedTuple):
    """An array of examples, and the names of its columns where it came as a table with a first line of names."""

    values: np.ndarray
    columns: tuple[str, ...] | None


def read_examples(path: str, expected: Any = None) -> Examples:
    """The examples of a ``.csv``, ``.tsv`` or ``.txt`` file, or of an ``.npy`` or ``.npz`` file.

    Args:
        path: of the file.
        expected: names of columns that a table must have, which are then put in that order; any unless given.

    Raises:
        ValueError: no such file, or one that cannot be read, or a table of something else than numbers; the message
            names file, line and column.
    """
    if not path.lower().endswith(ENDINGS) or not Path(path).is_file():
        array = read_array(path)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path}: expected numbers, got dtype {array.dtype}")
        return Examples(array, None)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a table in text (UTF-8), got other bytes at {error.start}") from error
    found = _parsed(path, text)
    return found if expected is None else _ordered(path, found, tuple(expected))


def write_table(path: Path, values: np.ndarray, columns: tuple[str, ...]) -> None:
    """Rows of numbers under a line of names."""
    with open(path, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[f"{value:.9g}" for value in row] for row in values])


def recorded_columns(card: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of a prior's columns that its card has, if it is one of a table with names."""
    names = card.get("columns")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _parsed(path: str, text: str) -> Examples:
    if "\0" in text:
        raise ValueError(f"{path}: expected a table in text, got zero bytes")
    try:
        rows = max((_rows(text, separator) for separator in SEPARATORS), key=_regular)
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table in text (CSV), got one that cannot be read ({error})") from error
    if not rows:
        raise ValueError(f"{path}: expected a table in text (CSV), got an empty file")
    named = any(_number(cell) is None for cell in rows[0][1])
    columns = tuple(cell.strip() for cell in rows[0][1]) if named else None
    if columns is not None and (len(set(columns)) < len(columns) or "" in columns):
        raise ValueError(f"{path}: expected a name of its own for each column in line 1, got {list(columns)[:8]}")
    body, width = rows[named:], len(rows[0][1])
    if not body:
        raise ValueError(f"{path}: expected rows of numbers below the names, got none")
    values = np.empty((len(body), width))
    for place, (number, row) in enumerate(body):
        if len(row) != width:
            raise ValueError(f"{path}: expected {width} cells in line {number} as in the first, got {len(row)}")
        for column, cell in enumerate(row):
            value = _number(cell)
            if value is None:
                name = f"column {column + 1}" if columns is None else f"column {columns[column]!r}"
                raise ValueError(f"{path}: expected a number in line {number}, {name}, got {cell[:40]!r}")
            values[place, column] = value
    return Examples(values, columns)


def _rows(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Lines that are not empty, as cells, with their numbers."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    return [(reader.line_num, row) for row in reader if row]


def _regular(rows: list[tuple[int, list[str]]]) -> tuple[bool, int]:
    """Whether the first lines have as many cells each, several; and how many the first has."""
    widths = {len(row) for _, row in rows[:10]}
    first = len(rows[0][1]) if rows else 0
    return len(widths) == 1 and first > 1, first


def _number(cell: str) -> float | None:
    """The cell's number, NaN where it is missing, None where it is something else."""
    if cell.strip().lower() in MISSING:
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return None


def _ordered(path: str, found: Examples, expected: tuple[str, ...]) -> Examples:
    """The columns in the order of `expected`; a table without names is taken as it is."""
    if found.columns is None:
        return found
    missing = [name for name in expected if name not in found.columns]
    if missing:
        raise ValueError(f"{path}: expected the prior's columns {list(expected)[:8]}, got none called {missing[:8]}")
    return Examples(found.values[:, [found.columns.index(name) for name in expected]], expected)
