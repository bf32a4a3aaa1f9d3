"""Arrays from files that may be anything: what cannot be read is called what it is, in one line.

Files may come from anywhere: nothing is unpickled, and what a file is, its first bytes say, and not its name. One that
is neither ``.npy`` nor ``.npz`` is told by its mark (pictures, archives, tables in text). A damaged one makes NumPy,
zipfile and zlib raise nearly anything, all of which becomes one ``ValueError`` with the path. An ``.npz`` file of
several arrays is refused, since it does not say which is meant. Shapes and types are for the caller to check.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

_NPY, _ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")
_PICTURES = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture", b"BM": "a BMP picture",
    b"II*\x00": "a TIFF picture", b"MM\x00*": "a TIFF picture", b"RIFF": "a RIFF file (a WebP picture, sound or film)",
    b"%PDF": "a PDF file",
}  # fmt: skip
_OTHERS = {
    b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "a gzip file", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file",
    b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"MATLAB": "a MATLAB file", b"SQLite": "an SQLite file",
}  # fmt: skip


def read_array(path: str) -> np.ndarray:
    """The array of an ``.npy`` file, or the only one of an ``.npz`` file; nothing is unpickled.

    Raises:
        ValueError: no such file, or not one of these, or a damaged one; the message names it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file")
    with open(file, "rb") as opened:
        start = opened.read(4096)
    if not start.startswith((_NPY, *_ZIP)):
        raise _error(path, f"it is {_kind(start)}")
    try:
        with open(file, "rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as those of Python's parser about a header that makes no sense
            return _only_array(np.load(opened, allow_pickle=False))
    except MemoryError as error:
        raise _error(path, "it claims to hold more than fits the memory") from error
    # A damaged file makes NumPy, zipfile and zlib raise nearly anything: whatever it is, the file is to blame.
    except Exception as error:
        if "pickle" in str(error):
            raise _error(path, "it holds Python objects, which are not read") from error
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise _error(path, f"damaged or cut short: {reason}" if not isinstance(error, _Unfit) else reason) from error


class _Unfit(ValueError):
    """A file that is whole, but holds something else."""


def _only_array(loaded: Any) -> np.ndarray:
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = loaded.files
        if len(names) != 1:
            listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise _Unfit(f"expected one array, got {len(names)}{': ' * bool(names)}{listed}")
        array = loaded[names[0]]
        if not isinstance(array, np.ndarray):  # the bytes of any other file
            raise _Unfit(f"it is a zip file that holds {names[0]!r}, which is {_kind(array[:4096])}")
        return array


def _error(path: str, reason: str) -> ValueError:
    return ValueError(f"{path}: expected an .npy file, or an .npz file of one array ({reason})")


def _kind(start: bytes) -> str:
    """What a file that begins like this seems to be."""
    for marks in (_PICTURES, _OTHERS):
        for mark, kind in marks.items():
            if start.startswith(mark):
                return kind
    if not start:
        return "an empty file"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle, which can run any code when it is read, and is not"
    if start[8:9] == b"{":
        return "a safetensors file"
    text = start.decode("utf-8", "replace")
    if any(not (letter.isprintable() or letter in "\t\r\n\f\ufeff") for letter in text.rstrip("\ufffd")):
        return "of no kind that is known here"
    first = text.splitlines()[0] if text.splitlines() else ""
    separators = [mark for mark in ",;\t" if mark in first]
    if not separators:
        return "a text file"
    return f"a table in text (CSV): numpy.save writes what numpy.loadtxt(…, delimiter={separators[0]!r}) reads"
