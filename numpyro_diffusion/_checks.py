"""Argument checks that say which argument, what was expected and what came."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

Name = TypeVar("Name", bound=str)


def is_concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at (not a tracer)."""
    return not isinstance(x, jax.core.Tracer)


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an `int` of at least `minimum`, or raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name}: expected a whole number of at least {minimum}, got {value!r}")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[Name]) -> Name:
    """Return `value` if it is one of `choices`, or raise ``ValueError``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_event(name: str, shape: Sequence[int], event_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the leading (batch) part of `shape` once its end is `event_shape`, or raise ``ValueError``."""
    shape, event_shape = tuple(shape), tuple(event_shape)
    start = len(shape) - len(event_shape)
    if start < 0 or shape[start:] != event_shape:
        first = len(event_shape) == 3 and shape[-3:] == (event_shape[2], *event_shape[:2])
        hint = " (channels first: move that axis to the end)" if first else ""
        raise ValueError(f"{name}: expected a shape that ends in the event shape {event_shape}, got {shape}{hint}")
    return shape[:start]


def check_finite(name: str, value: Any) -> None:
    """Raise ``ValueError`` if a concrete `value` holds NaN or infinity."""
    if is_concrete(value):
        bad = ~np.isfinite(np.asarray(value, dtype=float))
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"{name}: expected finite numbers, got {bad.sum()} NaN or infinite, first at {first}")


def check_binary(name: str, value: Any) -> None:
    """Raise ``ValueError`` if a concrete `value` holds anything but 0 and 1."""
    if is_concrete(value):
        array = np.asarray(value)
        bad = (array != 0) & (array != 1)
        if bad.any():
            raise ValueError(f"{name}: expected only 0 and 1, got {array[bad].flat[0]!r} among others")


def check_levels(name: str, value: Any, num_levels: int) -> None:
    """Raise ``ValueError`` if a concrete `value` holds anything but whole numbers from 0 to num_levels − 1."""
    if is_concrete(value):
        array = np.asarray(value)
        bad = ~((array >= 0) & (array <= num_levels - 1) & (array == np.round(array)))
        if bad.any():
            raise ValueError(
                f"{name}: expected whole numbers from 0 to {num_levels - 1}, got {array[bad].flat[0]:g} among others"
            )


def check_broadcast(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless `shape` broadcasts to `wanted`."""
    try:
        fits = np.broadcast_shapes(shape, wanted) == tuple(wanted)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: expected a shape that broadcasts to {wanted}, got {shape}")


def check_positive(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless all of a concrete `value` is positive."""
    if is_concrete(value) and not (np.asarray(value) > 0).all():
        raise ValueError(f"{name}: expected positive numbers, got a minimum of {np.min(np.asarray(value))}")


def check_optional_positive(name: str, value: Any) -> float | None:
    """Return `value` as a positive `float`, or None if it is None, or raise ``ValueError``."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
        raise ValueError(f"{name}: expected a positive number or None, got {value!r}")
    return float(value)
