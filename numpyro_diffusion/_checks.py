"""Argument checks that say which argument, what was expected and what came.

Messages say ``name: expected …, got …``. A wrong type is a ``TypeError``, a wrong value of a right type a
``ValueError`` (`refusal`). Arrays that are traced have no values to look at: their shapes and types are checked, and
their values pass. An array whose mask hides something is refused, since JAX would take what is hidden for data.
"""

# Over 300 lines: the checks of all arguments side by side, most of a few lines.

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution

Name = TypeVar("Name", bound=str)


def alike(one: Any, other: Any) -> bool:
    """Whether two trees are alike, and all of their arrays whose values are known are equal."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    structures: Any = (jax.tree.structure(one), jax.tree.structure(other))
    if structures[0] != structures[1]:
        return False
    pairs = zip(leaves, others, strict=True)
    return all(not (is_concrete(a) and is_concrete(b)) or np.array_equal(a, b) for a, b in pairs)


def is_concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at: it is no tracer, and no list that holds one."""
    if isinstance(x, list | tuple):
        return all(map(is_concrete, x))
    return not isinstance(x, jax.core.Tracer)


def is_number(value: Any) -> bool:
    """Whether `value` is one known real number, and no boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def refusal(message: str, right_type: bool) -> TypeError | ValueError:
    """The error that says `message`: about the value where its type is right, and else about its type."""
    return ValueError(message) if right_type else TypeError(message)


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an `int` of at least `minimum`.

    Raises:
        TypeError: no whole number, also one such as 4.0.
        ValueError: one that is too small or too large.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < minimum:
        raise refusal(f"{name}: expected a whole number of at least {minimum}, got {value!r}", whole)
    if value >= 2**31:
        raise ValueError(f"{name}: expected a whole number below 2**31, got {value}")
    return int(value)


def check_key(name: str, key: Any) -> Any:
    """Return `key` if it is one JAX key, of either kind, known or traced.

    Raises:
        TypeError: no key.
        ValueError: an array of several.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    shape = shape if isinstance(shape, tuple) else None
    typed = shape is not None and dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    of_keys = shape is not None and (typed or dtype == jnp.uint32)
    if not of_keys or len(shape or ()) != (0 if typed else 1):
        raise refusal(f"{name}: expected one JAX key, as from jax.random.key(0), got {key!r:.80}", of_keys)
    return key


def check_sizes(name: str, shape: Any) -> tuple[int, ...]:
    """Return `shape` as a tuple of whole numbers of at least 0.

    Raises:
        TypeError: anything but a tuple or list of whole numbers.
        ValueError: a number below 0.
    """
    sizes = tuple(shape) if isinstance(shape, tuple | list) else (None,)
    if any(isinstance(size, bool) or not isinstance(size, int | np.integer) for size in sizes):
        raise TypeError(f"{name}: expected a tuple of whole numbers, such as (3,), got {shape!r:.80}")
    if any(size < 0 for size in sizes):
        raise ValueError(f"{name}: expected sizes of at least 0, got {shape!r:.80}")
    return tuple(map(int, sizes))


def check_callable(name: str, model: Any) -> Any:
    """Return `model` if it is a function and no distribution, which can be called too, or raise ``TypeError``."""
    if not callable(model) or isinstance(model, Distribution):
        raise TypeError(f"{name}: expected a function, got {model!r:.80}")
    return model


def check_path(name: str, path: Any) -> Any:
    """Return `path` if it is one, or None, or raise ``TypeError``."""
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: expected the path of a file, got {path!r:.80}")
    return path


def check_site(site: Any) -> str | None:
    """Return `site` if it is a site's name or None, or raise ``TypeError``."""
    if site is not None and not isinstance(site, str):
        raise TypeError(f"site: expected the name of a site, or None for the only diffusion site, got {site!r:.80}")
    return site


def check_time(name: str, t: Any, least: Any, greatest: Any) -> None:
    """Raise unless all of a concrete time is a number from `least` to `greatest`, up to rounding.

    Raises:
        TypeError: no number.
        ValueError: a number outside, or NaN.
    """
    if not is_concrete(t) or not is_concrete(least) or not is_concrete(greatest):
        return
    try:
        # Of the same precision as what they are compared with: 1e-6 of T is what float32 may be off by.
        low, high, known = (np.asarray(each, dtype=np.float64) for each in (least, greatest, t))
        if np.asarray(t).dtype.kind not in "biufV":  # the last are those of few bits
            raise ValueError("no real number")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a number from {least} to {greatest}, got {t!r:.80}") from error
    slack = 1e-6 * (1 + np.abs(high))
    bad = ~((known >= low - slack) & (known <= high + slack))
    if bad.any():
        got = np.broadcast_arrays(known, bad)[0][bad].flat[0]
        raise ValueError(f"{name}: expected a time from {_said(low)} to {_said(high)}, got {got:g}")


def check_step(t: Any, s: Any, num_steps: int) -> None:
    """Check the times of a step between `s` < `t` (t − 1 where it is None), both in [0, T]; see `check_time`."""
    check_time("t", t, 1 if s is None else 0, num_steps)
    if s is not None:
        check_time("s", s, 0, t)


def _said(array: np.ndarray) -> str:
    return f"{array:g}" if array.ndim == 0 else f"{array!s:.80}"


def check_choice(name: str, value: Any, choices: Sequence[Name]) -> Name:
    """Return `value` if it is one of `choices`.

    Raises:
        TypeError: no text.
        ValueError: another text.
    """
    if not any(isinstance(value, str) and value == choice for choice in choices):
        raise refusal(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}", isinstance(value, str))
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


def check_unmasked(name: str, value: Any) -> None:
    """Raise ``TypeError`` for a NumPy array that hides some of its values: JAX would take them for the data."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        hidden = int(np.sum(np.ma.getmaskarray(value)))
        raise TypeError(f"{name}: expected an array without hidden values, got a masked array that hides {hidden}")


def check_real(name: str, value: Any) -> None:
    """Raise unless `value` is a number or an array of real numbers, known or traced.

    Raises:
        TypeError: complex numbers, an array with hidden values, any other object.
        ValueError: a whole number that no array can hold.
    """
    check_unmasked(name, value)
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            dtype = np.asarray(value).dtype
        except (TypeError, ValueError) as error:  # traced numbers in a list, or lists of different lengths
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
                return
            raise TypeError(f"{name}: expected an array of numbers, got {value!r:.80}") from error
    if np.issubdtype(dtype, np.complexfloating) if isinstance(dtype, np.dtype) else False:
        raise TypeError(f"{name}: expected real numbers, got complex ones")
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise TypeError(f"{name}: expected real numbers, got {value!r:.80}")
    if isinstance(value, int) and abs(value) >= 2**31:
        raise ValueError(f"{name}: expected whole numbers below 2**31, got {value}")


def check_scalar(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless `value` is one real number, known or traced."""
    check_real(name, value)
    if np.ndim(value) != 0:
        raise TypeError(f"{name}: expected one number, got {value!r:.80}")


def check_finite(name: str, value: Any) -> None:
    """Raise ``ValueError`` if a concrete `value` holds NaN or infinity."""
    check_real(name, value)
    if is_concrete(value):
        bad = ~np.isfinite(np.asarray(value, dtype=float))
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"{name}: expected finite numbers, got {bad.sum()} NaN or infinite, first at {first}")


def check_binary(name: str, value: Any) -> None:
    """Raise ``ValueError`` if a concrete `value` holds anything but 0 and 1."""
    check_real(name, value)
    if is_concrete(value):
        array = np.asarray(value)
        bad = (array != 0) & (array != 1)
        if bad.any():
            raise ValueError(f"{name}: expected only 0 and 1, got {array[bad].flat[0]:g} among others")


def check_levels(name: str, value: Any, num_levels: Any) -> None:
    """Raise ``ValueError`` if a concrete `value` holds anything but whole numbers from 0 to num_levels − 1.

    The numbers of levels may be those of elements that differ, an array that broadcasts to `value`.
    """
    if is_concrete(value):
        array, last = np.asarray(value), np.asarray(num_levels) - 1
        bad = ~((array >= 0) & (array <= last) & (array == np.round(array)))
        if bad.any():
            first = tuple(np.argwhere(bad)[0])
            most, got = np.broadcast_to(last, bad.shape)[first], np.broadcast_to(array, bad.shape)[first]
            raise ValueError(f"{name}: expected whole numbers from 0 to {most}, got {got:g} among others")


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
    check_real(name, value)
    if is_concrete(value) and not (np.asarray(value) > 0).all():
        raise ValueError(f"{name}: expected positive numbers, got a minimum of {np.min(np.asarray(value))}")


def checked_scale(name: str, value: Any, may_be_infinite: bool = False) -> Array:
    """Return `value` as a floating array once it is positive, with squares that its type can hold.

    Raises:
        ValueError: where a concrete `value` is not; infinite ones pass if they may.
    """
    if not may_be_infinite:
        check_finite(name, value)
    check_positive(name, value)
    with np.errstate(over="ignore", under="ignore"):
        scale = jnp.asarray(value, dtype=float)
    if is_concrete(scale):
        limits, known = np.finfo(scale.dtype), np.asarray(value, dtype=float)
        known = known[np.isfinite(known)]
        if (known > limits.max**0.5).any() or (known < limits.tiny**0.5).any():
            raise ValueError(f"{name}: expected numbers whose squares {scale.dtype} can hold, got {value!s:.80}")
    return scale


def checked_location(name: str, value: Any) -> Array:
    """Return `value` as a floating array once it is finite, in its own type too.

    Raises:
        ValueError: where a concrete `value` is not.
    """
    check_finite(name, value)
    with np.errstate(over="ignore"):
        location = jnp.asarray(value, dtype=float)
    if is_concrete(location) and not np.isfinite(np.asarray(location)).all():
        raise ValueError(f"{name}: expected numbers in the range of {location.dtype}, got {value!s:.80}")
    return location


def check_optional_positive(name: str, value: Any) -> float | None:
    """Return `value` as a positive `float`, or None if it is None.

    Raises:
        TypeError: no number.
        ValueError: one that is not positive and finite.
    """
    if value is None:
        return None
    if not is_number(value) or not 0 < value < np.inf:
        raise refusal(f"{name}: expected a positive number or None, got {value!r}", is_number(value))
    return float(value)
