"""Files that appear whole or not at all, and what killed runs leave beside them.

A file is written beside its place under a name of its own, brought to the disk, and renamed, which puts it in the old
one's place at once: a run that is killed at any moment leaves the old file or the new one. What it leaves beside them,
the next one to write there removes, but no younger than a minute, as another run may be writing it. Links are followed,
so that the file behind them is replaced. Folders, devices and pipes are refused, since a rename would put a file where
they were. Whether a file can be written is tried with some kilobytes, since a full disk still makes an empty one.
"""

import contextlib
import glob
import os
import time
import uuid
from pathlib import Path

from ._checks import check_path

# Seconds since the last change, up to which a half-written file may be one that another run is writing.
_YOUNG = 60.0


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under another name and rename it when it is whole, so that nobody ever sees half of it.

    Raises:
        TypeError: no path.
        OSError: the folder does not exist, or `path` is itself a folder, a device or a pipe.
    """
    target = _target("path", path)
    remove_leftovers(target)
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove half-written files that killed runs have left beside `path`, but none that may still be written."""
    target = Path(os.path.realpath(path))
    for file in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 32}.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _YOUNG:
                file.unlink()


def check_writable(name: str, path: str | os.PathLike[str]) -> None:
    """Raise ``OSError`` that names the argument and the path where no file can be written, and leave nothing there.

    ``TypeError`` for what is no path.

    Args:
        name: of the argument.
        path: of a file that is to be written later, and may exist.
    """
    target = _target(name, path)
    remove_leftovers(target)
    probe = _temporary(target)
    try:
        with open(probe, "xb") as file:
            file.write(bytes(4096))  # a full disk makes the empty file, but does not fill it
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        said = f"{name}: expected a file that can be written, got {str(path)!r} ({reason})"
        raise type(error)(error.errno, said) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _target(name: str, path: str | os.PathLike[str]) -> Path:
    """The file that is to be written, once it can be replaced without destroying what is no file."""
    target = Path(os.path.realpath(check_path(name, path)))
    if target.is_dir():
        raise IsADirectoryError(f"{name}: expected a file, got the folder {str(path)!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{name}: expected a file in a folder that exists, got {str(path)!r}")
    if target.exists() and not target.is_file():
        # Renamed over, as only root can, a device would be gone for the whole machine.
        raise OSError(f"{name}: expected a file, got {str(path)!r}, which is a device, a pipe or a socket")
    return target


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
