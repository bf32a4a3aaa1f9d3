"""Data from elsewhere as arrays of numbers that computing in float32 does not destroy.

Numbers that have much in common lose what tells them apart: in a type of spacing ε|x| rounding adds an error whose
standard deviation is ε|x|/√12, that of a uniform law. Data are refused where this exceeds both a hundredth of their own
standard deviation and a thousandth of the scale that is given, observed numbers where rounding moves one by more than a
tenth of its standard deviation. Elements of vectors are judged one by one, those of images and series together; numbers
that are all equal pass. Squares have to be in range too. The messages say what helps: to subtract what is common, or
double precision.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._checks import check_finite, check_unmasked, is_concrete

# Of the data's standard deviation: rounding by so much is felt where the chain has little noise left.
_COARSEST = 0.01
_FELT = 0.001  # of a scale that is given
_EQUAL = 1e-12  # of the numbers: a deviation that is rounding in double precision
# Of a standard deviation that is given beside a number: what rounding may move the number by, at most.
_LARGEST_SHIFT = 0.1


def as_numbers(name: str, data: Any) -> np.ndarray:
    """`data` as a NumPy array once it is one of real numbers; pandas' nullable types and bfloat16 too.

    What pandas calls missing is NaN.

    Raises:
        ValueError: ragged data.
        TypeError: anything but real numbers; an array with hidden values (a mask).
    """
    check_unmasked(name, data)
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of numbers, got {type(data).__name__} ({error})") from error
    if array.dtype == object:
        array = _from_nullable(data, array)
    # Types of few bits that NumPy does not know: bfloat16, int4, …
    if array.dtype.kind not in "biufc" and jnp.issubdtype(array.dtype, jnp.number):
        array = array.astype(np.int32 if jnp.issubdtype(array.dtype, jnp.integer) else np.float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    return array


def check_resolution(name: str, array: np.ndarray, dtype: Any = None, scale: float = 0.0) -> None:
    """Raise ``ValueError`` where `dtype` cannot hold data of shape (n, *event), or not tell them apart.

    Args:
        name: of the argument.
        array: finite real numbers.
        dtype: JAX's default for floating numbers unless given.
        scale: rounding by a thousandth of it is felt by nobody.
    """
    dtype = np.dtype(jnp.zeros(()).dtype if dtype is None else dtype)
    limits = np.finfo(dtype)
    wide = array.astype(np.float64)
    largest = float(np.abs(wide).max(initial=0.0))
    # Squares are taken of what is that large, or so small.
    if largest > float(limits.max) ** 0.5 or 0 < largest < float(limits.tiny) ** 0.5:
        raise ValueError(
            f"{name}: expected numbers whose squares {dtype} can hold, got {largest:.4g}; change their units"
        )
    axis = 0 if array.ndim == 2 else None  # elements of a vector have scales of their own
    deviation = np.atleast_1d(wide.std(axis=axis))
    size = np.atleast_1d(np.abs(wide).max(axis=axis, initial=0.0))
    rounding = limits.eps * size / np.sqrt(12)
    # Equal numbers have a deviation that is not quite 0.
    bad = (deviation > _EQUAL * size) & (rounding > np.maximum(_COARSEST * deviation, _FELT * scale))
    if bad.any():
        first = int(np.argmax(bad))
        where = f" in element {first}" if axis == 0 else ""
        raise ValueError(
            f"{name}: expected numbers that {dtype} tells apart, got a standard deviation of {deviation[first]:.3g} "
            f"about {wide.mean(axis=axis).ravel()[first]:.6g}{where}; subtract what they have in common (data - "
            "data.mean(0)), or switch jax_enable_x64 on"
        )


def check_told_apart(name: str, data: Any, event_rank: int, scale: Any = 0.0) -> None:
    """Raise unless data of shape (*batch, *event), where they are known, are finite and told apart; see above.

    Raises:
        TypeError: no real numbers; an array with hidden values (a mask).
        ValueError: NaN or infinity; numbers that JAX's default type cannot tell apart.
    """
    check_finite(name, data)
    if is_concrete(data) and is_concrete(scale) and (array := np.asarray(data)).size:
        rows = array.reshape(-1, *array.shape[max(array.ndim - event_rank, 0) :])
        check_resolution(name, rows, scale=float(np.min(scale)))


def check_rounding(name: str, value: Any, scale: Any, counts: Any = True) -> None:
    """Raise ``ValueError`` where a known `value` is rounded by more than a tenth of its standard deviation `scale`.

    Args:
        name: of the argument.
        value: finite, of any type; an array of JAX's default type has been rounded before, and passes.
        scale: broadcastable to it; infinite where the value says nothing.
        counts: where the value counts at all, likewise.
    """
    dtype = jax.dtypes.canonicalize_dtype(float)
    parts = (value, scale, counts)
    if getattr(value, "dtype", None) == dtype or not is_concrete(parts):
        return
    exact, wide, where = (np.asarray(part, np.float64) for part in parts)
    try:
        np.broadcast_shapes(exact.shape, wide.shape, where.shape)
    except ValueError:  # which is for others to say, who know the event
        return
    shift = np.where(where > 0, np.abs(exact - exact.astype(dtype)), 0.0)
    bad = shift > _LARGEST_SHIFT * wide
    if bad.any():
        first = tuple(np.argwhere(bad)[0])
        got, moved, beside = (np.broadcast_to(part, bad.shape)[first] for part in (exact, shift, wide))
        raise ValueError(
            f"{name}: expected numbers that {dtype} rounds by little beside their standard deviation, got {got:.12g}, "
            f"moved by {moved:.2g} beside {beside:.3g}; subtract what all have in common, or switch jax_enable_x64 on"
        )


def _from_nullable(data: Any, array: np.ndarray) -> np.ndarray:
    """Frames and columns of pandas whose nullable types are numbers; pandas itself need not be loaded."""
    kinds: Any = getattr(data, "dtypes", None)
    kinds = [kinds] if hasattr(kinds, "kind") else list(kinds) if hasattr(kinds, "__iter__") else []
    if not kinds or not hasattr(data, "to_numpy") or any(getattr(kind, "kind", "O") not in "biuf" for kind in kinds):
        return array
    converted: np.ndarray = data.to_numpy(dtype=np.float64, na_value=np.nan)
    return converted
