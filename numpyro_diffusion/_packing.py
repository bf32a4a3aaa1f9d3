"""Values of a module tree in JSON and arrays, and back: what a file may name, and how it is believed.

Nothing here unpickles, imports or calls what a file names: see `checkpoints`, which writes and reads the files. Types
are described exactly or refused, as a subclass would come back as something less. Files outlive the code: a class that
has moved is entered in `_MOVED`, and a field that one gains needs a default that changes nothing. In half precision
matrices alone are rounded, since vectors and scalars are small, and too exact for it.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints, transforms

from ._functions import FUNCTIONS, name_of
from .transforms import Bounded, PrincipalAxes

FORMAT_NAME = "numpyro_diffusion"

FloatName: TypeAlias = Literal["float32", "float16"] | None
Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
Tensors: TypeAlias = dict[str, np.ndarray]
Classes: TypeAlias = Iterable[type[eqx.Module]]
Known: TypeAlias = Mapping[str, type[eqx.Module]]

# Where classes of older files are now.
_MOVED = {
    f"{FORMAT_NAME}.{old}:{name}": f"{FORMAT_NAME}.{new}:{name}"
    for old, new, names in (
        ("distributions.prior", "distributions.parts", "PriorParts"),
        ("process", "last_steps", "ForwardStep LearnedStep FixedStep DiscretisedStep"),
        ("schedules", "schedules.base", "Schedule"),
        ("likelihoods.continuous", "likelihoods.integral", "ContinuousBound"),
        ("likelihoods.path_integral", "likelihoods.integral", "PathIntegral"),
        ("schedules", "schedules.learned", "LearnedSchedule VarianceSchedule"),
    )
    for name in names.split()
}

# Transforms that a file may name, with the arguments that make them; domains by NumPyro's names.
_TRANSFORMS: dict[type[transforms.Transform], tuple[str, ...]] = {
    transforms.AffineTransform: ("loc", "scale", "domain"),
    transforms.ComposeTransform: ("parts",),
    transforms.ExpTransform: ("domain",),
    transforms.IdentityTransform: (),
    transforms.LowerCholeskyAffine: ("loc", "scale_tril"),
    transforms.SigmoidTransform: (),
    transforms.SoftplusTransform: (),
    Bounded: ("low", "high"),
    PrincipalAxes: ("loc", "unit", "axes", "scale"),
}
_BY_NAME = {kind.__name__: kind for kind in _TRANSFORMS}
_DOMAINS = {name: getattr(constraints, name) for name in ("real", "positive", "unit_interval")}

_DTYPES = ["bool", "bfloat16", "complex64", *(f"float{bits}" for bits in (16, 32, 64))]
_DTYPES += [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]


class CheckpointError(ValueError):
    """A file is not a checkpoint this version can read; the message says which file, where in it, and why."""


def pack(value: object, name: str, tensors: Tensors, dtype: FloatName) -> Json:
    """Describe a value of the tree in JSON, and add its arrays to `tensors`."""
    kind = type(value)  # exactly: a subclass would come back as something less
    # A module may say that its arrays are too exact to be rounded, which holds for all that is in it.
    dtype = None if getattr(kind, "keeps_precision", False) else dtype
    inner = lambda item, key: pack(item, f"{name}.{key}" if name else str(key), tensors, dtype)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (tuple, list):
        return {kind.__name__: [inner(item, i) for i, item in enumerate(value)]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: inner(item, key) for key, item in value.items()}}
    if _is_describable(kind):
        label, names = f"{kind.__module__}:{kind.__qualname__}", [field.name for field in dataclasses.fields(kind)]
        return {"module": label, "fields": {key: inner(getattr(value, key), key) for key in names}}
    if (names := _TRANSFORMS.get(kind)) is not None:
        return {"transform": kind.__name__, "arguments": {key: inner(getattr(value, key), key) for key in names}}
    for domain, known in _DOMAINS.items():
        if kind is type(known) and value == known:
            return {"domain": domain}
    if (function := name_of(value)) is not None:
        return {"function": function}
    if isinstance(value, jax.Array | np.generic) or kind is np.ndarray:
        return _pack_array(value, name, tensors, dtype)
    expected = "an array, number, string, None, tuple, list, dict with string keys, activation of jax.nn, or module"
    raise TypeError(f"{name or 'module'}: expected {expected}, got {kind}: {value!r:.80}")


def _pack_array(value: jax.Array | np.ndarray, name: str, tensors: Tensors, dtype: FloatName) -> Json:
    node = {"array": name}
    if not isinstance(value, jax.Array):
        node["as"] = "numpy" if isinstance(value, np.ndarray) else "numpy scalar"
    elif jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        node["key"], value = str(jax.random.key_impl(value)), jax.random.key_data(value)
    # Little-endian rows, because safetensors would write strided arrays in the wrong order.
    array = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"{name}: expected an array of {', '.join(_DTYPES)}, got {array.dtype}")
    if name in tensors:
        raise ValueError(f"{name}: expected one array of this name, got two (a dot in a dict key?)")
    tensors[name], node = array, node | {"dtype": array.dtype.name, "shape": list(array.shape)}
    if dtype and jnp.issubdtype(array.dtype, jnp.floating):
        # Schedules, scales and biases are vectors or scalars: small, and too exact to round to half precision.
        dtype = dtype if array.ndim >= 2 else "float32"
        with np.errstate(over="ignore"):
            tensors[name], node = array.astype(dtype), node | {"dtype": "float32", "stored": dtype}
        if np.any(np.isinf(tensors[name]) & np.isfinite(array)):
            raise ValueError(f"{name}: expected numbers in the range of {dtype}, got larger ones")
    return node


def unpack(node: Json, name: str, tensors: Tensors, known: Known) -> object:
    """Rebuild the value that `node` describes, believing nothing, and take its arrays out of `tensors`."""
    inner = lambda item, key: unpack(item, f"{name}.{key}" if name else str(key), tensors, known)
    match node:
        case None | bool() | int() | float() | str():
            return node
        case {"tuple": list(items)} | {"list": list(items)}:
            return (list if "list" in node else tuple)(inner(item, i) for i, item in enumerate(items))
        case {"dict": dict(items)}:
            return {key: inner(item, key) for key, item in items.items()}
        case {"module": str(kind), "fields": dict(fields)}:
            if (cls := known.get(kind) or known.get(kind.partition(":")[2])) is None:
                expected = f"a class of the installed {FORMAT_NAME} or equinox.nn, or one given by classes=[…]"
                raise error_at(name, expected, repr(kind))
            # A field that a class gained after the file was written comes with the value that changes nothing.
            later = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
            names, fields = [field.name for field in dataclasses.fields(cls)], later | fields
            check_names(f"{name or 'module'}: fields unlike those of {kind}", names, fields)
            module = object.__new__(cls)
            for key in names:  # object's own setter, since modules are frozen
                object.__setattr__(module, key, inner(fields[key], key))
            return module
        case {"transform": str(kind), "arguments": dict(arguments)} if kind in _BY_NAME:
            check_names(f"{name}: arguments unlike those of {kind}", _TRANSFORMS[_BY_NAME[kind]], arguments)
            made = {key: inner(item, key) for key, item in arguments.items()}
            return _BY_NAME[kind](**made)
        case {"domain": str(domain)} if domain in _DOMAINS:
            return _DOMAINS[domain]
        case {"function": str(function)} if function in FUNCTIONS:
            return FUNCTIONS[function]
        case {"array": str(), "dtype": str(dtype), "shape": list()} if dtype in _DTYPES:
            return _unpack_array(node, name, tensors)
    raise error_at(name, "the description of a value", f"{node!s:.80}")


def _unpack_array(node: dict[str, Json], name: str, tensors: Tensors) -> jax.Array | np.ndarray:
    array = tensors.pop(node["array"], None)
    found = "none" if array is None else f"{array.dtype.name} of shape {list(array.shape)}"
    if found != (expected := f"{node.get('stored', node['dtype'])} of shape {node['shape']}"):
        raise error_at(name, f"a tensor {node['array']!r}, {expected}", found)
    array = array.astype(node["dtype"])
    if "as" in node:
        return array[()] if node["as"] == "numpy scalar" else array
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise error_at(name, f"jax_enable_x64 to be on for an array of {array.dtype}", "off")
    return jax.random.wrap_key_data(array, impl=node["key"]) if "key" in node else jnp.array(array)


def _known_classes() -> dict[str, type[eqx.Module]]:
    """Collect the classes a file may name by walking what is defined, never by importing what is named."""
    # Above all others that have some, so that files are read alike whatever a program has used before: the package
    # loads nothing by itself.
    importlib.import_module(f"{FORMAT_NAME}.infer")
    found, queue = {}, [eqx.Module]
    while queue:
        queue += (cls := queue.pop(0)).__subclasses__()
        if cls.__module__.startswith(("numpyro_diffusion.", "equinox.nn.")):
            found[f"{cls.__module__}:{cls.__qualname__}"] = cls
    return found | {old: found[new] for old, new in _MOVED.items() if new in found}


def _is_describable(kind: type) -> bool:
    """Whether a file can hold a module of this class: not the wrappers of functions that Equinox has inside."""
    return _known_classes().get(f"{kind.__module__}:{kind.__qualname__}") is kind or (
        issubclass(kind, eqx.Module) and not kind.__module__.startswith("equinox.")
    )


def admitted(classes: Classes) -> Known:
    """The classes that a file may name: the installed ones, and those given, by their own name too."""
    given = {}
    if isinstance(classes, type | str) or not isinstance(classes, Iterable):
        raise TypeError(f"classes: expected a list of classes, as [Mine], got {classes!r:.80}")
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, eqx.Module)):
            raise TypeError(f"classes: expected subclasses of equinox.Module, got {cls!r}")
        given |= {cls.__qualname__: cls, f"{cls.__module__}:{cls.__qualname__}": cls}
    return given | _known_classes()


def check_names(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    missing, left_over = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if missing or left_over:
        raise CheckpointError(f"{what}: missing {missing or 'none'}, left over {left_over or 'none'}")


def error_at(name: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{name or 'module'}: expected {expected}, got {found}")
