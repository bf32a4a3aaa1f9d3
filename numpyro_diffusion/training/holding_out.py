"""Which examples are held out: at random, but blocks of them where they are windows of one series that overlap.

Held-out examples say how good a model is only as far as they share nothing with those that it has seen. Rows that are
overlapping windows of one series do share: each is the one before, moved by a few places, by which they are recognised.
Of them a few blocks are held out, and windows that reach into a block are left out of training. All other rows are held
out at random.
"""

import numpy as np
from jax import Array

from ._arguments import generator_of, split_rows

BLOCKS = 5  # of held-out windows, at most
ALIKE = 0.9  # share of neighbouring rows that have to overlap


def held_out_rows(key: Array, examples: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Which examples are trained on, which are held out, and what there is to say about it.

    Of windows that overlap their neighbours, those held out at random would be no news to a model that has been trained
    on the others: blocks are held out, and the windows that overlap them are left out.

    Args:
        key: JAX random key.
        examples: shape (n, *event), the first axis of an event being the one that may be time.
        share: of the examples that is held out.
    """
    shift = window_shift(examples)
    if not shift or not share:
        train, out = split_rows(key, len(examples), share)
        return train, out, ()
    count, reach = len(examples), -(-examples.shape[1] // shift)  # windows so far apart share nothing
    held = round(share * count)
    blocks = int(np.clip(held // reach, 1, BLOCKS))
    rng = generator_of(key)
    edges, length = np.linspace(0, count, blocks + 1).astype(int), held // blocks
    starts = [int(rng.integers(low, max(low + 1, high - length))) for low, high in zip(edges, edges[1:], strict=False)]
    out = np.concatenate([np.arange(start, min(start + length, count)) for start in starts])
    near = np.zeros(count + 1, int)
    for start in starts:
        near[max(0, start - reach + 1)] += 1
        near[min(count, start + length + reach - 1)] -= 1
    train = np.flatnonzero(np.cumsum(near[:-1]) == 0)
    if len(train) < count // 3:
        train, out = split_rows(key, count, share)
        said = "too few to hold out blocks: what is held out is no news"
    else:
        said = f"{blocks} block{'s' if blocks > 1 else ''} of {length} are held out, and what overlaps them is left out"
    return train, out, (f"windows: each row is the one before, moved by {shift}; {said}",)


def independent_rows(examples: np.ndarray) -> int:
    """How many rows share nothing: all, but of windows that overlap their neighbours only every so many."""
    shift = window_shift(examples)
    return -(-len(examples) * shift // examples.shape[1]) if shift else len(examples)


def window_shift(examples: np.ndarray) -> int:
    """By how much rows that are windows of one series move from one to the next, at most half of one; 0 for others."""
    if examples.ndim < 2 or len(examples) < 3:
        return 0
    for shift in range(1, 1 + examples.shape[1] // 2):
        earlier, later = examples[:-1, shift:], examples[1:, :-shift]
        if not np.array_equal(earlier[:3], later[:3]) and not np.array_equal(earlier[-3:], later[-3:]):
            continue
        same = (earlier == later).reshape(len(earlier), -1).all(1)
        if same.mean() >= ALIKE and np.ptp(earlier) > 0:
            return shift
    return 0
