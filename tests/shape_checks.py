"""Shapes in signatures, checked at every call that a test makes.

Only what jaxtyping writes is checked, and only of arrays of numbers: wrong arguments of other kinds go on to the
package's own messages. A name such as ``*event`` has to mean one shape within one call. jaxtyping's own import hook
wraps every function of a package, and a type checker in it refuses arguments before the package can say what is wrong
with them.
"""

import ast
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jaxtyping
import numpy as np


class WrongShape(AssertionError):
    """An array has not the shape or the kind of numbers that a signature says."""


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which raises `WrongShape` where its arrays are not what its signature says."""
    said = {name: hint for name, hint in getattr(fn, "__annotations__", {}).items() if has_shape(hint)}
    if not said:
        return fn
    names = list(inspect.signature(fn).parameters)  # in the package no annotated array comes after ``*args``
    result = said.pop("return", None)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}  # of wrong ones the function's own error says more
        with jaxtyping.jaxtyped("context"):
            for name, hint in said.items():
                if name in given:
                    check(fn, name, given[name], hint)
            out = fn(*args, **kwargs)
            if result is not None:
                check(fn, "the result", out, result)
        return out

    return call


def has_shape(hint: Any) -> bool:
    """Whether an annotation, or a part of it, is one of jaxtyping's."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(hint)))


def is_of_real_numbers(value: Any) -> bool:
    """Or of keys: of complex numbers, objects, words and dates the package's own messages say more."""
    return getattr(value.dtype, "kind", "") not in "cOSUmM"


@functools.cache
def parts_of(hint: Any) -> tuple[Any, ...] | None:
    """Of a tuple's annotation."""
    return typing.get_args(hint) if typing.get_origin(hint) is tuple else None


@functools.cache
def options_of(hint: Any, kind: type) -> tuple[Any, ...]:
    """The shapes that an annotation allows, of arrays of this kind: either will do where the other is written."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = typing.get_args(hint) if union else (hint,)
    return tuple(option.dtype[kind, option.dim_str] for option in options if has_shape(option))


def check(fn: Callable[..., Any], name: str, value: Any, hint: Any) -> None:
    """Raise unless an array, or each one of a tuple, is what the annotation says."""
    if isinstance(value, jax.Array | np.ndarray):
        options = options_of(hint, np.ndarray if isinstance(value, np.ndarray) else jax.Array)
        if options and is_of_real_numbers(value) and not any(isinstance(value, option) for option in options):
            wanted = " or ".join(dict.fromkeys(option.__name__ for option in options))
            raise WrongShape(f"{fn.__qualname__}: {name}: expected {wanted}, got {value.dtype}{value.shape}")
    elif isinstance(value, tuple) and (parts := parts_of(hint)) is not None:
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        if len(parts) != len(value):
            raise WrongShape(f"{fn.__qualname__}: {name}: expected {len(parts)} parts, got {len(value)}")
        for i, (part, own) in enumerate(zip(value, parts, strict=True)):
            check(fn, f"{name}[{i}]", part, own)


class _Loader(importlib.machinery.SourceFileLoader):
    """Decorates the functions of a module that imports jaxtyping; its compiled code is not stored."""

    def get_code(self, fullname: str) -> types.CodeType | None:
        source = self.get_data(self.path)
        if b"jaxtyping" not in source:
            return super().get_code(fullname)
        tree = ast.parse(source, self.path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                # The innermost one: others, such as `jax.custom_jvp`, make something else of a function.
                node.decorator_list.append(ast.parse(f"__import__({__name__!r}).checked", mode="eval").body)
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if not name.startswith(f"{self.package}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


def install(package: str) -> None:
    """Check the signatures of a package's modules, of all that are imported from now on."""
    assert not any(name.startswith(f"{package}.") for name in sys.modules)
    sys.meta_path.insert(0, _Finder(package))
