"""Images with a part that is held out for testing."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8


class LabelledImages(NamedTuple):
    """Images of grey levels or colours from 0 to 255, with their classes, as NumPy arrays.

    Attributes:
        train_images: shape (train, height, width), or (train, height, width, 3).
        train_labels: classes, int32.
        test_images: shape (test, height, width), or (test, height, width, 3).
        test_labels: classes, int32.
    """

    train_images: UInt8[np.ndarray, "train ..."]
    train_labels: Int[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test ..."]
    test_labels: Int[np.ndarray, " test"]


class Patches(NamedTuple):
    """Square pieces of larger pictures, grey levels or colours from 0 to 255, as NumPy arrays.

    Attributes:
        train: shape (train, size, size), or (train, size, size, 3).
        test: pieces of other pictures, or of another part of the picture; shape likewise.
    """

    train: UInt8[np.ndarray, "train ..."]
    test: UInt8[np.ndarray, "test ..."]
