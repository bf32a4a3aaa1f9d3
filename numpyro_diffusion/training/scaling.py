"""What data say of their units: location and scale, the step that they come in, and the finest detail worth keeping.

Location and scale bring data to the units of the noise law. Data in equal steps, such as grey levels, have no density,
and K could grow without end: uniform noise as wide as a step makes it one that bounds the log probability of the steps
(Theis, van den Oord and Bethge 2016). The finest detail says down to which noise steps are worth taking. All of them
are *estimates* from the examples.
"""

import numpy as np
from jax.typing import ArrayLike

from .._checks import check_finite, checked_location, checked_scale
from ._arguments import check_numbers
from .coordinates import finest_detail

SAMPLED = 1_000_000  # values that are sorted to find the spacing


def location_and_scale(
    array: np.ndarray, loc: ArrayLike | None, scale: ArrayLike | None, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale: per element for vectors (none may be constant), one constant for arrays of higher rank."""
    if array.ndim == 2:
        default_loc, default_scale = array.mean(axis=0), np.hypot(array.std(axis=0), noise)
        constant = np.flatnonzero(np.ptp(array, axis=0) == 0)
        if scale is None and constant.size:
            raise ValueError(f"data: expected every element to vary, got constant ones at {constant[:8].tolist()}; "
                             "leave them out, or give a scale")  # fmt: skip
    else:
        default_loc, default_scale = np.asarray(array.mean()), np.asarray(array.std())
    used_loc = default_loc if loc is None else _element("loc", loc, array.shape[1:])
    used_scale = default_scale if scale is None else _element("scale", scale, array.shape[1:])
    checked_location("loc", used_loc)
    checked_scale("scale", used_scale)
    return used_loc, used_scale


def _element(name: str, value: ArrayLike, event_shape: tuple[int, ...]) -> np.ndarray:
    """`value` as finite numbers that broadcast to one example."""
    array = check_numbers(name, value).astype(np.float64)
    check_finite(name, array)
    try:
        fits = np.broadcast_shapes(array.shape, event_shape) == event_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: expected a shape that broadcasts to {event_shape}, got {array.shape}")
    return array


def spacing(array: np.ndarray) -> float:
    """The step of data that come in equal steps (up to 65,536 over their range), otherwise 0.

    Whole numbers are as far apart as their differences' greatest common divisor. For others the candidate is the
    smallest gap between distinct values, of which there may be 1024; all data must be on its grid, up to the rounding
    of float32. Two distinct values are always on one: each must occur twice.
    """
    flat = array.reshape(-1)
    if flat.size > SAMPLED:  # at random, or a stride might see the same pixels only
        flat = flat[np.random.default_rng(0).integers(0, flat.size, SAMPLED)]
    values, counts = np.unique(flat, return_counts=True)
    rounding = 4 * float(np.finfo(np.float32).eps) * np.abs(values).max()
    gaps = np.diff(values)
    gaps = gaps[gaps > rounding]
    if gaps.size == 0 or (values.size == 2 and counts.min() < 2):
        return 0.0
    whole = rounding < 0.1 and bool((values == np.round(values)).all())
    step = float(np.gcd.reduce(gaps.astype(int)) if whole else gaps.min())
    count = round((values[-1] - values[0]) / step)
    if count > 65_536 or not (whole or values.size <= 1024):
        return 0.0
    step = float(values[-1] - values[0]) / count
    steps = (array - values[0]) / step
    off = np.abs(steps - np.round(steps)).max()
    return step if off <= min(1e-5 + rounding / step, 0.1) else 0.0


def detail_of(standardized: np.ndarray, step: float) -> float:
    """The finest scale worth keeping: a grey level's width, or half the typical distance to the nearest neighbour."""
    if step:
        return float(max(step / np.sqrt(12), 1e-3))
    return finest_detail(standardized)
