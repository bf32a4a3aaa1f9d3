"""Batches and particles spread over devices: each takes its share of them, and all hold the same weights."""

from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ._checks import check_count

Devices = int | Sequence[Any]
Tree = TypeVar("Tree")


def check_devices(devices: Devices | None, size: int, name: str = "batch_size") -> NamedSharding | None:
    """Return how arrays of `size` examples, the argument `name`, lie on the devices; None for wherever JAX puts them.

    Raises:
        ValueError: no devices, more than there are, other things, or a size that does not divide among them.
    """
    if devices is None:
        return None
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        chosen = [*devices]
        if not chosen or not all(isinstance(device, jax.Device) for device in chosen) or len(set(chosen)) < len(chosen):
            raise ValueError(f"devices: expected different devices, as from jax.devices(), got {devices!r}")
    else:
        found, count = jax.devices(), check_count("devices", devices)
        if count > len(found):
            raise ValueError(f"devices: expected at most the {len(found)} of jax.devices(), got {devices}")
        chosen = found[:count]
    if size % len(chosen):
        raise ValueError(f"{name}: expected a multiple of the {len(chosen)} devices, got {size}")
    return NamedSharding(Mesh(np.array(chosen), ("device",)), PartitionSpec("device"))


def replicate(tree: Tree, spread: NamedSharding | None) -> Tree:
    """The tree with its arrays on all devices."""
    return tree if spread is None else _put(tree, NamedSharding(spread.mesh, PartitionSpec()))


def distribute(examples: jax.Array, spread: NamedSharding | None) -> jax.Array:
    """The examples, each on one device where they divide among them, else on all."""
    if spread is None or len(examples) % spread.mesh.size or not len(examples):
        return replicate(examples, spread)
    return jax.device_put(examples, spread)


def share(tree: Tree, spread: NamedSharding | None) -> Tree:
    """Inside a compiled function: compute with arrays of examples where these lie."""
    return tree if spread is None else jax.lax.with_sharding_constraint(tree, spread)


def agree(tree: Tree, spread: NamedSharding | None) -> Tree:
    """Inside a compiled function: the same arrays on all devices."""
    if spread is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(spread.mesh, PartitionSpec()))


def collect(tree: Tree, spread: NamedSharding | None) -> Tree:
    """The tree with its arrays where JAX puts new ones, free to meet others."""
    if spread is None:
        return tree
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), arrays), rest)


def _put(tree: Tree, sharding: NamedSharding) -> Tree:
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, sharding), rest)
