"""Checkpoints: a module tree or a training state in one safetensors file, described by JSON in its header.

Reading never unpickles, imports or calls what a file names: a class is looked up among those that
numpyro_diffusion and `equinox.nn` have already defined and those that the reader hands over, a function in one closed
list, and fields are set without running a class's code.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree
from numpyro.distributions import constraints, transforms

from ._files import write_whole
from ._functions import FUNCTIONS, name_of

FORMAT_NAME = "numpyro_diffusion"
FORMAT_VERSION = 1

FilePath: TypeAlias = str | os.PathLike[str]
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

# NumPyro's transforms that a file may name, with the arguments that make them; domains by NumPyro's names.
_TRANSFORMS: dict[str, tuple[str, ...]] = {
    "AffineTransform": ("loc", "scale", "domain"),
    "ComposeTransform": ("parts",),
    "ExpTransform": ("domain",),
    "IdentityTransform": (),
    "LowerCholeskyAffine": ("loc", "scale_tril"),
    "SigmoidTransform": (),
    "SoftplusTransform": (),
}
_DOMAINS = {name: getattr(constraints, name) for name in ("real", "positive", "unit_interval")}

_DTYPES = ["bool", "bfloat16", "complex64", *(f"float{bits}" for bits in (16, 32, 64))]
_DTYPES += [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]


class CheckpointError(ValueError):
    """A file is not a checkpoint this version can read; the message says which file, where in it, and why."""


def write_module(
    path: FilePath, module: eqx.Module, *, metadata: Mapping[str, Json] = {}, dtype: FloatName = None
) -> None:
    """Write a module tree to one file, which appears whole or not at all.

    Fields may be modules (those of other packages than numpyro_diffusion and `equinox.nn` must be handed over to
    `read_module`), arrays of any shape (typed keys included), numbers, strings, None, common transforms of NumPyro,
    activations of `jax.nn`, and tuples, lists or dicts of these. Weakly typed arrays come back strongly typed.

    Args:
        path: The file; one that exists is replaced.
        module: The root of the tree.
        metadata: What JSON can hold, kept beside the module; tuples become lists.
        dtype: How to store real floating arrays, which then come back as float32 (float16 is for matrices; vectors
            and scalars stay float32); None keeps every bit.

    Raises:
        TypeError: If a field, named in the message, cannot be described (a function of one's own, another object).
        ValueError: If `dtype` is unknown, a number too large for it, or two arrays would share a name.
        FileNotFoundError: If the folder of `path` does not exist.

    """
    if dtype not in (None, "float32", "float16"):
        raise ValueError(f"dtype: expected None, 'float32' or 'float16', got {dtype!r}")
    if not isinstance(module, eqx.Module):
        raise TypeError(f"module: expected an equinox.Module, got {type(module)}")
    _write(path, "module", module, metadata, dtype)


def read_module(path: FilePath, *, classes: Classes = ()) -> tuple[eqx.Module, dict[str, Json]]:
    """Read the module and the metadata that `write_module` wrote.

    Args:
        path: The file.
        classes: Modules of other packages that the file may name, by their name and, where two share it, their home.

    Raises:
        CheckpointError: If the file is foreign, damaged, too new, or does not fit the classes known here.
        FileNotFoundError: If there is no such file.

    """
    known = _admitted(classes)
    with _open(path) as file:
        return _read(file, "module", eqx.Module, known)


def write_training_state(path: FilePath, state: PyTree, *, metadata: Mapping[str, Json] = {}) -> None:
    """Write the arrays (of any shape), numbers and strings of a pytree bit for bit, leaving functions out.

    Args:
        path: The file; one that exists is replaced, whole or not at all.
        state: Parameters, optimiser state, keys, ...
        metadata: What JSON can hold (step, losses with inf and nan, ...); tuples become lists.

    Raises:
        TypeError: If a leaf, named in the message, or a metadata value cannot be stored.
        FileNotFoundError: If the folder of `path` does not exist.

    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    stored = {jax.tree_util.keystr(key): leaf for key, leaf in leaves if not callable(leaf)}
    _write(path, "training state", stored, metadata, None)


def read_training_state(path: FilePath, like: PyTree) -> tuple[PyTree, dict[str, Json]]:
    """Read the state, in the structure of `like`, and the metadata that `write_training_state` wrote.

    Args:
        path: The file.
        like: A fresh state (or its `jax.ShapeDtypeStruct`s) with the stored names, shapes and dtypes.
            Functions, which are never stored, are taken from here.

    Raises:
        CheckpointError: If the file is foreign, damaged, too new, or of another structure than `like`.
        FileNotFoundError: If there is no such file.

    """
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = {jax.tree_util.keystr(key): leaf for key, leaf in paths}
    expected = {f"{name}: {_signature(leaf)}" for name, leaf in leaves.items() if not callable(leaf)}
    with _open(path) as file:
        stored, metadata = _read(file, "training state", dict, {})
        found = {f"{name}: {_signature(leaf)}" for name, leaf in stored.items()}
        _check_names("leaves unlike those of `like`", expected, found)
    return jax.tree_util.tree_unflatten(structure, (leaves | stored).values()), metadata


def describe(path: FilePath) -> dict[str, Json]:
    """Read "format_version", "kind", "metadata", "sha256" (of all tensors) and "content", but no tensor.

    Raises:
        CheckpointError: If the file is foreign, damaged or too new.
        FileNotFoundError: If there is no such file.

    """
    with _open(path) as file:
        return _description(file)


def digest(tree: PyTree) -> str:
    """A short hash of a tree's arrays, so that a checkpoint is not continued with others."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array_like)):
        typed_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if typed_key else leaf)
        found.update(f"{array.dtype.name}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def _pack(value: object, name: str, tensors: Tensors, dtype: FloatName) -> Json:
    """Describe a value of the tree in JSON, and add its arrays to `tensors`."""
    pack = lambda item, key: _pack(item, f"{name}.{key}" if name else str(key), tensors, dtype)
    kind = type(value)  # exactly: a subclass would come back as something less
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (tuple, list):
        return {kind.__name__: [pack(item, i) for i, item in enumerate(value)]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: pack(item, key) for key, item in value.items()}}
    if _is_describable(kind):
        label, names = f"{kind.__module__}:{kind.__qualname__}", [field.name for field in dataclasses.fields(kind)]
        return {"module": label, "fields": {key: pack(getattr(value, key), key) for key in names}}
    if (names := _TRANSFORMS.get(kind.__name__)) is not None and getattr(transforms, kind.__name__) is kind:
        return {"transform": kind.__name__, "arguments": {key: pack(getattr(value, key), key) for key in names}}
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


def _unpack(node: Json, name: str, tensors: Tensors, known: Known) -> object:
    """Rebuild the value that `node` describes, believing nothing, and take its arrays out of `tensors`."""
    unpack = lambda item, key: _unpack(item, f"{name}.{key}" if name else str(key), tensors, known)
    match node:
        case None | bool() | int() | float() | str():
            return node
        case {"tuple": list(items)} | {"list": list(items)}:
            return (list if "list" in node else tuple)(unpack(item, i) for i, item in enumerate(items))
        case {"dict": dict(items)}:
            return {key: unpack(item, key) for key, item in items.items()}
        case {"module": str(kind), "fields": dict(fields)}:
            if (cls := known.get(kind) or known.get(kind.partition(":")[2])) is None:
                expected = f"a class of the installed {FORMAT_NAME} or equinox.nn, or one given by classes=[…]"
                raise _error(name, expected, repr(kind))
            # A field that a class gained after the file was written comes with the value that changes nothing.
            later = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
            names, fields = [field.name for field in dataclasses.fields(cls)], later | fields
            _check_names(f"{name or 'module'}: fields unlike those of {kind}", names, fields)
            module = object.__new__(cls)
            for key in names:  # object's own setter, since modules are frozen
                object.__setattr__(module, key, unpack(fields[key], key))
            return module
        case {"transform": str(kind), "arguments": dict(arguments)} if kind in _TRANSFORMS:
            _check_names(f"{name}: arguments unlike those of {kind}", _TRANSFORMS[kind], arguments)
            made = {key: unpack(item, key) for key, item in arguments.items()}
            return getattr(transforms, kind)(**made)
        case {"domain": str(domain)} if domain in _DOMAINS:
            return _DOMAINS[domain]
        case {"function": str(function)} if function in FUNCTIONS:
            return FUNCTIONS[function]
        case {"array": str(), "dtype": str(dtype), "shape": list()} if dtype in _DTYPES:
            return _unpack_array(node, name, tensors)
    raise _error(name, "the description of a value", f"{node!s:.80}")


def _unpack_array(node: dict[str, Json], name: str, tensors: Tensors) -> jax.Array | np.ndarray:
    array = tensors.pop(node["array"], None)
    found = "none" if array is None else f"{array.dtype.name} of shape {list(array.shape)}"
    if found != (expected := f"{node.get('stored', node['dtype'])} of shape {node['shape']}"):
        raise _error(name, f"a tensor {node['array']!r}, {expected}", found)
    array = array.astype(node["dtype"])
    if "as" in node:
        return array[()] if node["as"] == "numpy scalar" else array
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise _error(name, f"jax_enable_x64 to be on for an array of {array.dtype}", "off")
    return jax.random.wrap_key_data(array, impl=node["key"]) if "key" in node else jnp.array(array)


def _write(path: FilePath, kind: str, tree: object, metadata: Mapping[str, Json], dtype: FloatName) -> None:
    content = _pack(tree, "", tensors := {}, dtype)
    description = {"kind": kind, "metadata": dict(metadata), "sha256": _digest(tensors), "content": content}
    try:  # Python's JSON also writes inf and nan, and every float so that it reads back to the same bits
        text = json.dumps(description)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata: expected what JSON can hold, got otherwise ({error})") from error
    header = {"format": FORMAT_NAME, "format_version": str(FORMAT_VERSION), "description": text}
    data = safetensors.numpy.save(tensors, header | {"checksum": hashlib.sha256(text.encode()).hexdigest()})
    write_whole(path, data)


def _read(file: safetensors.safe_open, kind: str, root: type, known: Known) -> tuple[object, dict[str, Json]]:
    description = _description(file)
    if description["kind"] != kind:
        raise _error("kind", kind, description["kind"])
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    digest = _digest(tensors)
    value = _unpack(description["content"], "", tensors, known)
    _check_names("tensors unlike those described", [], tensors)
    if digest != description["sha256"]:
        raise _error("tensors", "the recorded sha256", "another (damaged or edited)")
    if not isinstance(value, root):
        raise _error("content", f"a {root.__name__}", str(type(value)))
    return value, description["metadata"]


@contextlib.contextmanager
def _open(path: FilePath) -> Iterator[safetensors.safe_open]:
    """Open a file, and put its path before every complaint about it."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file (working folder: {os.getcwd()})")
    try:
        with safetensors.safe_open(path, "np") as file:
            yield file
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    except (safetensors.SafetensorError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, damaged or cut short ({error!r})") from error


def _description(file: safetensors.safe_open) -> dict[str, Json]:
    header = file.metadata() or {}
    if header.get("format") != FORMAT_NAME:
        raise CheckpointError(f"another program's file: its header does not name {FORMAT_NAME}")
    version, text = header.get("format_version", ""), header.get("description", "")
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        raise _error("format version", f"at most {FORMAT_VERSION} (upgrade {FORMAT_NAME})", version)
    if version != str(FORMAT_VERSION) or hashlib.sha256(text.encode()).hexdigest() != header.get("checksum"):
        raise _error("header", "the recorded checksum", "another (damaged or edited)")
    return {"format_version": FORMAT_VERSION, **json.loads(text)}


def _known_classes() -> dict[str, type[eqx.Module]]:
    """Collect the classes a file may name by walking what is defined, never by importing what is named."""
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


def _admitted(classes: Classes) -> Known:
    """The classes that a file may name: the installed ones, and those given, by their own name too."""
    given = {}
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, eqx.Module)):
            raise TypeError(f"classes: expected subclasses of equinox.Module, got {cls!r}")
        given |= {cls.__qualname__: cls, f"{cls.__module__}:{cls.__qualname__}": cls}
    return given | _known_classes()


def _signature(leaf: object) -> str:
    """Say what a stored leaf and the one it replaces must agree on."""
    return f"{leaf.dtype.name}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _check_names(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    missing, left_over = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if missing or left_over:
        raise CheckpointError(f"{what}: missing {missing or 'none'}, left over {left_over or 'none'}")


def _error(name: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{name or 'module'}: expected {expected}, got {found}")


def _digest(tensors: Tensors) -> str:
    return hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
