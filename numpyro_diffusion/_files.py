"""Files that appear whole or not at all, and what killed runs leave beside them."""

import contextlib
import glob
import os
import time
import uuid
from pathlib import Path

# Seconds since the last change, up to which a half-written file may be one that another run is writing.
_YOUNG = 60.0


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under another name and rename it when it is whole, so that nobody ever sees half of it.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in a folder that exists, got {target.parent}")
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

    Args:
        name: of the argument.
        path: of a file that is to be written later, and may exist.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir() or target.is_dir():
        raise FileNotFoundError(f"{name}: expected a file in a folder that exists, got {str(path)!r}")
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


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
