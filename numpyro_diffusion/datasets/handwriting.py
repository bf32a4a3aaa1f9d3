"""Handwritten digits: the small ones of scikit-learn, and MNIST.

Scikit-learn's digits are 8 × 8 pixels of grey levels in steps of 1/16. They are split by one fixed permutation, so that
a prior that learned from the first 1,500 of them, as the packaged one did, is tested on the others in every version.
MNIST comes from idx files: two zero bytes, a type, the number of axes, their sizes as big-endian 32-bit numbers, then
the values. Files of other types than bytes, and ones whose length is not what the header says, are refused; gzip is
told by the first bytes and not by the name. A network is used only where `download` asks for it.
"""

import gzip
import math
import zlib
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._require import check_folder, require
from .split import LabelledImages

_NUM_TRAIN = 1500
_MNIST_TRAIN = 60_000
_UNSIGNED_BYTES = 8  # the third byte of an idx file, its data type


class Digits(NamedTuple):
    """Handwritten digits, split into a training and a test part."""

    train_images: Float[Array, "train 8 8"]
    train_labels: Int[Array, " train"]
    test_images: Float[Array, "test 8 8"]
    test_labels: Int[Array, " test"]


def digits() -> Digits:
    """Return the 1,797 digits of scikit-learn, 8 × 8 pixels, grey values divided by 16 into [0, 1].

    A fixed permutation, then the last 297 images for testing. Needs the extra `numpyro-diffusion[datasets]`,
    but no network: scikit-learn carries the images.

    Example:
        >>> digits = nd.datasets.digits()
        >>> digits.train_images.shape, digits.test_images.shape
        ((1500, 8, 8), (297, 8, 8))

    Raises:
        ImportError: if scikit-learn is not installed.

    Source: `sklearn.datasets.load_digits`, the test part of the UCI optical digits of Alpaydin and Kaynak
    1998.
    """
    bunch = require("sklearn.datasets", "digits() needs scikit-learn").load_digits()
    # RandomState, unlike numpy's newer generators, promises the same permutation in every version.
    order = np.random.RandomState(0).permutation(len(bunch.images))
    images = jnp.asarray(bunch.images[order] / 16, jnp.result_type(float))
    labels = jnp.asarray(bunch.target[order], jnp.int32)
    return Digits(images[:_NUM_TRAIN], labels[:_NUM_TRAIN], images[_NUM_TRAIN:], labels[_NUM_TRAIN:])


def mnist(folder: str | PathLike[str] | None = None, *, download: bool = False) -> LabelledImages:
    """Return MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 × 28 grey levels from 0 to 255.

    Read from the four idx files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
    and ``t10k-labels-idx1-ubyte``, with or without ``.gz``. Any files of this form will do, such as those of
    Fashion-MNIST; the sizes are theirs.

    Args:
        folder: where the files are.
        download: fetch the data from OpenML by scikit-learn's `fetch_openml`, which needs a network and keeps a copy;
            in place of `folder`.

    Raises:
        ValueError: both or neither of `folder` and `download`; a file that is no idx file of bytes, is cut short or
            too long, or does not fit the others; it is named.
        FileNotFoundError: no such folder, or a file that is missing from it.
        ImportError: `download` without scikit-learn.

    Source: LeCun, Cortes and Burges; the format is described with the data.
    """
    if (folder is None) != bool(download):
        raise ValueError(f"folder, download: expected one of the two, got {folder!r} and {download!r}")
    if folder is None:
        return _from_openml()
    path = check_folder("folder", folder)
    parts = []
    for part in ("train", "t10k"):
        images = read_idx(_find(path, f"{part}-images-idx3-ubyte"))
        labels = read_idx(_find(path, f"{part}-labels-idx1-ubyte"))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{path}: expected {part} images (n, height, width) and n labels, got {images.shape} and {labels.shape}"
            )
        parts += [images, labels.astype(np.int32)]
    return LabelledImages(*parts)


def read_idx(path: str | PathLike[str]) -> np.ndarray:
    """Return the unsigned bytes of an idx file, gzipped or not, in its own shape.

    Raises:
        ValueError: another kind of file, one that is cut short or too long, or one of another data type.
        FileNotFoundError: no such file.
    """
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole gzip file, got a damaged or truncated one ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or not data[3]:
        raise ValueError(f"{path}: expected an idx file, which starts with two zero bytes, got {data[:4]!r}")
    if data[2] != _UNSIGNED_BYTES:
        raise ValueError(f"{path}: expected an idx file of unsigned bytes (type 0x08), got type {data[2]:#04x}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path}: expected a header of {start} bytes, got a truncated file of {len(data)}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", data[3], 4))
    if len(data) != (length := start + math.prod(shape)):
        got = f"{len(data)} (truncated or damaged)"
        raise ValueError(f"{path}: expected {length} bytes for shape {shape}, got {got}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    # Some copies on the web have a dot before "idx".
    names = [name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"]
    found = [folder / each for each in names if (folder / each).is_file()]
    if not found:
        raise FileNotFoundError(f"folder: expected {name} or {name}.gz in {folder}, got neither")
    return found[0]


def _from_openml() -> LabelledImages:
    fetch = require("sklearn.datasets", "mnist(download=True) needs scikit-learn").fetch_openml
    bunch = fetch("mnist_784", version=1, as_frame=False)
    images, labels = np.asarray(bunch.data), np.asarray(bunch.target).astype(np.int32)
    if images.ndim != 2 or images.shape[1] != 28 * 28 or len(images) <= _MNIST_TRAIN or len(labels) != len(images):
        raise ValueError(f"download: expected 70,000 images of 784 pixels from OpenML, got {images.shape}")
    images = images.astype(np.uint8).reshape(-1, 28, 28)
    return LabelledImages(images[:_MNIST_TRAIN], labels[:_MNIST_TRAIN], images[_MNIST_TRAIN:], labels[_MNIST_TRAIN:])
