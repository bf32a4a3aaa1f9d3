"""Files that commands write, tried before any work is done: hours of training must not end at a missing folder."""

from pathlib import Path

from .._files import check_writable


def writable(name: str, path: str) -> Path:
    """`path` once its folder exists, so that no work is done for a file that cannot be written.

    Raises:
        OSError: nothing can be written there, or the path is itself a folder, a device or a pipe.
    """
    file = Path(path)
    check_writable(name, file)
    return file
