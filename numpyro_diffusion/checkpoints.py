"""Checkpoints: a module tree or a training state in one safetensors file, described by JSON in its header.

Reading never unpickles, imports or calls what a file names: a class is looked up among those that numpyro_diffusion and
`equinox.nn` have already defined and those that the reader hands over, a function in one closed list, and fields are
set without running a class's code. The header holds the format's version, of which a newer one is refused, and
checksums of the description and of all tensors: against damage, and no proof of where a file comes from. Training
states are kept bit for bit by the names of their leaves, and are read into a state of the same structure.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from ._files import write_whole
from ._packing import (
    FORMAT_NAME,
    Classes,
    FloatName,
    Json,
    Known,
    Tensors,
    admitted,
    check_names,
    error_at,
    pack,
    unpack,
)
from ._packing import CheckpointError as CheckpointError

FORMAT_VERSION = 1

FilePath: TypeAlias = str | os.PathLike[str]


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
    known = admitted(classes)
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
        check_names("leaves unlike those of `like`", expected, found)
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


def _write(path: FilePath, kind: str, tree: object, metadata: Mapping[str, Json], dtype: FloatName) -> None:
    content = pack(tree, "", tensors := {}, dtype)
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
        raise error_at("kind", kind, description["kind"])
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    digest = _digest(tensors)
    value = unpack(description["content"], "", tensors, known)
    check_names("tensors unlike those described", [], tensors)
    if digest != description["sha256"]:
        raise error_at("tensors", "the recorded sha256", "another (damaged or edited)")
    if not isinstance(value, root):
        raise error_at("content", f"a {root.__name__}", str(type(value)))
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
        raise error_at("format version", f"at most {FORMAT_VERSION} (upgrade {FORMAT_NAME})", version)
    if version != str(FORMAT_VERSION) or hashlib.sha256(text.encode()).hexdigest() != header.get("checksum"):
        raise error_at("header", "the recorded checksum", "another (damaged or edited)")
    return {"format_version": FORMAT_VERSION, **json.loads(text)}


def _signature(leaf: object) -> str:
    """Say what a stored leaf and the one it replaces must agree on."""
    return f"{leaf.dtype.name}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _digest(tensors: Tensors) -> str:
    return hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors))).hexdigest()
