"""CIFAR-10, for those who have it.

The binary version is a row of records: a byte for the class, then 3,072 for the pixels, as a red, a green and a blue
plane of 32 × 32 (Krizhevsky 2009; the format is described with the data). Nothing is downloaded. Colours are moved to
the last axis, and stay whole numbers from 0 to 255: scaling and dequantisation are left to training. The Python version
is refused, since its files are pickles, which can execute code; so are files cut short, or with classes above 9.
"""

from os import PathLike
from pathlib import Path

import numpy as np

from ._require import check_folder
from .split import LabelledImages

_RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue planes
_TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


def cifar10(folder: str | PathLike[str]) -> LabelledImages:
    """Return CIFAR-10 from the files of its *binary* version: 32 × 32 colour images, 50,000 and 10,000 of them.

    Read are ``data_batch_1.bin`` … ``data_batch_5.bin`` and ``test_batch.bin``, each any number of records of 3,073
    bytes. The Python version, of the same names without ``.bin``, is refused: its files are pickles, which can execute
    code when they are read.

    Args:
        folder: where the files are, usually ``cifar-10-batches-bin``.

    Returns:
        Images with the colours last, bytes from 0 to 255, and classes from 0 to 9.

    Raises:
        FileNotFoundError: no such folder, or a file that is missing from it.
        ValueError: the pickled version, or a file that is empty, cut short, or holds classes above 9.

    Source: Krizhevsky 2009; the format is described with the data.
    """
    path = check_folder("folder", folder)
    if not (path / "data_batch_1.bin").exists() and (path / "data_batch_1").exists():
        raise ValueError(
            f"folder: expected the binary version of CIFAR-10 (data_batch_1.bin, …), got the Python version in {path}, "
            "whose files are pickles, which can execute code when they are read"
        )
    batches = [_read(path / f"{name}.bin") for name in _TRAIN]
    test_images, test_labels = _read(path / "test_batch.bin")
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return LabelledImages(images, labels, test_images, test_labels)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"folder: expected {path.name} in {path.parent}, got none")
    data = np.fromfile(path, np.uint8)
    if len(data) == 0 or len(data) % _RECORD:
        raise ValueError(f"{path}: expected whole records of {_RECORD:,} bytes, got {len(data):,} bytes (truncated?)")
    records = data.reshape(-1, _RECORD)
    if records[:, 0].max() > 9:
        raise ValueError(f"{path}: expected classes from 0 to 9, got {records[:, 0].max()}")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int32)
