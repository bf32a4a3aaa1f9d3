"""Contexts for priors of p(x | c), from files.

Contexts lie in a file of their own, one for each example and in the same order, or one for all. A file for a prior that
takes none is refused, and so is a prior that needs some without a file: its draws would be of another law than the one
that was asked for. Arrays keep their type, since one of whole numbers holds labels, and the prior itself has the last
word on their values.
"""

from typing import Any

import numpy as np

from ._tables import read_examples


def read_context(path: str) -> np.ndarray:
    """The array of contexts."""
    return read_examples(path).values


def contexts_for(prior: Any, path: str | None, count: int) -> np.ndarray | None:
    """One context for each of `count` examples, from a file with so many, or with one; None without a file.

    Raises:
        ValueError: another number of contexts, a prior that takes none, or one that needs some and is given no file.
    """
    shape = prior.context_shape
    if path is None:
        if shape is not None:
            raise ValueError(
                f"--context: expected a file of contexts of shape {shape}, which the prior takes, got none"
            )
        return None
    if shape is None:
        raise ValueError(f"--context: expected none, as the prior takes none, got {path!r}")
    array = read_context(path)
    if array.shape == shape:
        array = np.broadcast_to(array, (count, *shape))
    if array.shape != (count, *shape):
        raise ValueError(
            f"{path}: expected shape {shape}, or {(count, *shape)} for {count} examples, got {array.shape}"
        )
    prior.given(array)  # refuses values that are no contexts
    return array
