"""A table of draws that says nothing about chains."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from .._checks import check_scalar


def table(draws: Mapping[str, ArrayLike], prob: float = 0.9) -> str:
    """Mean, standard deviation, median and an interval of every element, as text.

    Args:
        draws: equally weighted ones by name, shape (n, ...).
        prob: of the interval between two quantiles that leave as much on either side.

    Raises:
        TypeError: `prob` is no number.
        ValueError: `prob` outside (0, 1).
    """
    check_scalar("prob", prob)
    if not 0 < prob < 1:
        raise ValueError(f"prob: expected a number in (0, 1), got {prob}")
    low, high = 50 * (1 - prob), 50 * (1 + prob)
    head = ("", "mean", "std", "median", f"{low:.1f}%", f"{high:.1f}%")
    rows: list[tuple[str, ...]] = [head]
    for name, values in draws.items():
        array = np.asarray(values, dtype=np.float64)
        numbers = np.stack([array.mean(0), array.std(0), *np.percentile(array, [50, low, high], axis=0)], -1)
        for index in np.ndindex(array.shape[1:]):
            label = name + (f"[{','.join(map(str, index))}]" if index else "")
            rows.append((label, *(f"{number:.2f}" for number in numbers[index])))
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].rjust(width) + "".join(cell.rjust(11) for cell in row[1:]) for row in rows)
