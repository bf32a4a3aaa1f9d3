"""Batches and particles spread over devices: each takes its share of them, and all hold the same weights, or a part.

The devices may be those of several processes (`jax.distributed`), which then run the same program: each brings all
that goes in, computes the shares of its own devices, and has all that comes out.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ._checks import check_count, refusal

Devices = int | Sequence[Any]
SMALLEST_DIVIDED = (
    2**12
)  # elements of an array from which on it is divided; smaller ones cost more to send than to hold
Tree = TypeVar("Tree")


def check_devices(devices: Devices | None, size: int, name: str = "batch_size") -> NamedSharding | None:
    """Return how arrays of `size` examples, the argument `name`, lie on the devices; None for wherever JAX puts them.

    Raises:
        TypeError: other things than devices.
        ValueError: none, more than there are, those of some processes and not of others, or a size that does not
            divide among them.
    """
    if devices is None:
        return None
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        chosen = [*devices]
        right_type = all(isinstance(device, jax.Device) for device in chosen)
        if not chosen or not right_type or len(set(chosen)) < len(chosen):
            message = f"devices: expected different devices, as from jax.devices(), got {devices!r}"
            raise refusal(message, right_type)
    else:
        found, count = jax.devices(), check_count("devices", devices)
        if count > len(found):
            raise ValueError(f"devices: expected at most the {len(found)} of jax.devices(), got {devices}")
        chosen = found[:count]
    owners = {device.process_index for device in chosen}
    if owners != {jax.process_index()} and len(owners) < jax.process_count():
        expected = f"devices of this process, or some of each of {jax.process_count()} processes"
        raise ValueError(f"devices: expected {expected}, got those of {sorted(owners)}")
    if size % len(chosen):
        raise ValueError(f"{name}: expected a multiple of the {len(chosen)} devices, got {size}")
    return NamedSharding(Mesh(np.array(chosen), ("device",)), PartitionSpec("device"))


def is_shared(sharding: NamedSharding | None) -> bool:
    """Whether some of the devices are another process's."""
    return sharding is not None and not sharding.is_fully_addressable


def is_writer(sharding: NamedSharding | None) -> bool:
    """Whether this process writes what is computed on the devices: of several, the first does."""
    return sharding is None or jax.process_index() == min(device.process_index for device in sharding.mesh.devices.flat)


def check_agreement(name: str, value: int, sharding: NamedSharding | None) -> None:
    """Raise ``ValueError`` unless all processes that share the devices have the same `value`, below 2³¹."""
    if not is_shared(sharding):
        return
    found = np.asarray(multihost_utils.process_allgather(np.asarray(value, np.int32))).reshape(-1)
    if (found != value).any():
        raise ValueError(f"{name}: expected the same on all processes that share devices, got {found.tolist()}")


def check_hashing(sharding: NamedSharding | None) -> None:
    """Raise ``ValueError`` unless these processes order their sets alike, and with them their programs."""
    check_agreement("PYTHONHASHSEED in the environment (hash values)", hash("devices") & (2**31 - 1), sharding)


def replicate(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """The tree with its arrays on all devices."""
    return tree if sharding is None else _put(tree, lambda _: _whole(sharding))


def divide(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """The tree with its large arrays divided among the devices, and the others on all of them."""
    return tree if sharding is None else _put(tree, lambda leaf: _divided(leaf, sharding))


def distribute(examples: Any, sharding: NamedSharding | None) -> Any:
    """The examples, each on one device where they divide among them, else on all; None where there are none."""
    if sharding is None or examples is None:
        return examples
    if len(examples) % sharding.mesh.size or not len(examples):
        return replicate(examples, sharding)
    return _place(examples, sharding)


def share(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """Inside a compiled function: compute with arrays of examples where these lie."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def agree(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """Inside a compiled function: the same arrays on all devices."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, _whole(sharding))


def hold_parts(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """Inside a compiled function: large arrays divided among the devices, as `divide` has them, the others on all."""
    if sharding is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, _divided(leaf, sharding)), tree)


def collect(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """The tree with its arrays where JAX puts new ones, free to meet others."""
    return tree if sharding is None else jax.tree.map(lambda x: jnp.asarray(x) if _is_numpy(x) else x, on_host(tree))


def on_host(tree: Tree) -> Tree:
    """The tree with copies of its arrays (but keys) in the memory of this process.

    Of arrays that other processes have parts of, all must ask at once.
    """
    arrays, rest = eqx.partition(tree, _is_of_numbers)
    return eqx.combine(jax.tree.map(_copied, arrays), rest)


def _copied(leaf: jax.Array) -> np.ndarray:
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.array(leaf)  # NumPy may be shown the very memory that the next steps of training take


def _is_numpy(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray)


def _is_of_numbers(leaf: Any) -> bool:
    return eqx.is_array(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _whole(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec())


def _divided(leaf: Any, sharding: NamedSharding) -> NamedSharding:
    """How an array is divided: along the longest of its axes that can be, if it is large."""
    fitting = [axis for axis, size in enumerate(leaf.shape) if size % sharding.mesh.size == 0]
    if leaf.size < SMALLEST_DIVIDED or not fitting:
        return _whole(sharding)
    axis = max(fitting, key=lambda axis: leaf.shape[axis])
    return NamedSharding(sharding.mesh, PartitionSpec(*[None] * axis, *sharding.mesh.axis_names))


def _put(tree: Tree, where: Callable[[Any], NamedSharding]) -> Tree:
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.tree.map(lambda leaf: _place(leaf, where(leaf)), arrays), rest)


def _place(array: Any, sharding: NamedSharding) -> jax.Array:
    """The array on the devices, of which other processes may have some; each process brings all of it."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
