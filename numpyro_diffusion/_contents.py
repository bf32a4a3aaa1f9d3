"""Whether a module that was put together without its constructor is one that its constructor could have made.

A file's checksums say that it is as it was written, not that what was written makes sense. Each field is held against
its annotation (names among their choices, counts that are none), each array against NaN and infinity, and each module
of this package whose constructor takes its own fields is made anew, so that its own checks are made.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .schedules import AbstractSchedule

PACKAGE = __name__.partition(".")[0]


def check_contents(module: eqx.Module) -> None:
    """Raise ``ValueError``, with the path of the part, where a module or anything in it makes no sense."""
    for name, part in _modules("", module):
        for key, value in _fields(part).items():
            if isinstance(value, jax.Array | np.ndarray) and not isinstance(part, AbstractSchedule):
                _check_finite(f"{name}{key}", value)
        if not type(part).__module__.startswith(f"{PACKAGE}."):
            continue
        hints = get_type_hints(type(part))
        for key, value in _fields(part).items():
            if not _fits(value, hints.get(key, Any)):
                expected = str(hints[key]).replace("typing.", "")
                raise ValueError(f"{name}{key}: expected {expected}, got {value!r:.80}")
        if isinstance(part, AbstractSchedule):
            _check_schedule(name, part)
    for name, part in _modules("", module):
        _remake(name, part)


def _modules(name: str, value: Any) -> Iterator[tuple[str, eqx.Module]]:
    """Every module in a tree, with the start of its fields' names; the parts of one come before it."""
    items: Any = ()
    if isinstance(value, eqx.Module):
        items = _fields(value).items()
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    for key, item in items:
        yield from _modules(f"{name}{key}.", item)
    if isinstance(value, eqx.Module):
        yield name, value


def _fields(module: Any) -> dict[str, Any]:
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}


def _check_finite(name: str, value: Any) -> None:
    if jnp.issubdtype(value.dtype, jnp.inexact) and not np.isfinite(np.asarray(value, dtype=np.float64)).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def _check_schedule(name: str, schedule: AbstractSchedule) -> None:
    """Learned ones too, whose constructors take other arguments than their fields."""
    table, times = np.asarray(schedule.table), np.asarray(schedule.times)
    if table.ndim != 1 or len(table) < 3 or table[0] != np.inf or not (table[1:] < table[:-1]).all():
        raise ValueError(f"{name}table: expected log-SNR that decreases from infinity, T >= 2, got {table!s:.80}")
    if times.shape != table.shape or not np.isfinite(times).all() or not (times[1:] > times[:-1]).all():
        raise ValueError(f"{name}times: expected {len(table)} numbers that increase, got {times!s:.80}")


def _remake(name: str, part: eqx.Module) -> None:
    """Make a module anew from its fields, if its constructor takes them, and throw it away."""
    if not type(part).__module__.startswith(f"{PACKAGE}."):
        return
    given = {key.lstrip("_"): value for key, value in _fields(part).items()}
    wanted = inspect.signature(type(part)).parameters
    if any(wanted[key].default is inspect.Parameter.empty and key not in given for key in wanted):
        return
    try:
        type(part)(**{key: value for key, value in given.items() if key in wanted})
    except Exception as error:  # whatever a network of another shape makes JAX raise
        where = f"{name.rstrip('.')}: " if name else ""
        raise ValueError(f"{where}{' '.join(str(error).split()) or type(error).__name__}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as it can say."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value is choice or (type(value) is str and value == choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(value) == len(each) and all(map(_fits, value, each))
    if hint is int:
        return type(value) is int and 0 <= value < 2**31  # all are counts
    if hint is float:
        return type(value) in (int, float) and not np.isnan(value)
    if origin is Callable or hint is Callable:
        return callable(value)
    return not isinstance(hint, type) or hint is Any or isinstance(value, hint)
