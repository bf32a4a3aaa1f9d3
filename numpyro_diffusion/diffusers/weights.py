"""The weights of a `UNet2DModel`, as those of our `UNet` and back: names, and the order of the axes.

Names go one way: the path of each of our arrays gives the library's name for it, and a file has to have all of these
and no others. A field of the network that is renamed needs its new name in `_STEPS` too. The library's kernels have
axes (outputs, inputs, *sides), ours (*sides, inputs, outputs), and vectors are the same. Two things differ beside:
shortcuts are 1 × 1 convolutions there and matrices here, and attention layers had other names in the first published
models. Weights are read as float32 (float64 under x64) and written as float32.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..networks import UNet

Tensors = dict[str, np.ndarray]

# A step on the way to one of our arrays, and the library's name for it.
_STEPS: Mapping[str, str] = MappingProxyType(
    {
        "down": "down_blocks",
        "middle": "mid_block",
        "up": "up_blocks",
        "blocks": "resnets",
        "norm_1": "norm1",
        "conv_1": "conv1",
        "time": "time_emb_proj",
        "norm_2": "norm2",
        "conv_2": "conv2",
        "shortcut": "conv_shortcut",
        "norm": "group_norm",
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "out": "to_out.0",
        "norm_out": "conv_norm_out",
    }
)
# What attention layers were called when the first models were published.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_weights(tensors: Mapping[str, np.ndarray], net: UNet) -> UNet:
    """Return the network with these weights, in float32 (float64 under x64); only the shapes of `net` are used.

    Raises:
        ValueError: weights that are missing, left over, of another shape, or not floating-point; they are named.
    """
    tensors = _renamed(tensors)
    paths, structure = jax.tree_util.tree_flatten_with_path(net)
    expected = {name_of(path): leaf.shape for path, leaf in paths}
    missing, left_over = sorted({*expected} - {*tensors}), sorted({*tensors} - {*expected})
    if missing or left_over:
        raise ValueError(f"weights: missing {_listed(missing)}; left over {_listed(left_over)}")
    leaves = []
    for name, shape in expected.items():
        theirs = _their_shape(name, shape)
        if tensors[name].shape != theirs:
            raise ValueError(f"{name}: expected shape {theirs}, got {tensors[name].shape}")
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating-point numbers, got {tensors[name].dtype}")
        leaves.append(jnp.asarray(_to_ours(tensors[name]).reshape(shape), dtype=float))
    return jax.tree_util.tree_unflatten(structure, leaves)


def write_weights(net: UNet) -> Tensors:
    """Return the network's weights under the library's names and in its order of axes, in float32."""
    paths, _ = jax.tree_util.tree_flatten_with_path(net)
    named = {name_of(path): np.asarray(leaf, np.float32) for path, leaf in paths}
    return {
        name: np.ascontiguousarray(_to_theirs(array).reshape(_their_shape(name, array.shape)))
        for name, array in named.items()
    }


def name_of(path: tuple[Any, ...]) -> str:
    """Return the library's name for the array of a `UNet` at `path`."""
    steps = [str(getattr(step, "name", getattr(step, "idx", None))) for step in path]
    if steps[0] == "time":
        return f"time_embedding.linear_{int(steps[1]) + 1}.{steps[2]}"
    resample = f"{steps[0]}samplers.0.conv"
    return ".".join(resample if step == "resample" else _STEPS.get(step, step) for step in steps)


def _renamed(tensors: Mapping[str, np.ndarray]) -> Tensors:
    renamed = {}
    for name, array in tensors.items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new) if ".attentions." in name else name
        if name in renamed:
            raise ValueError(f"{name}: expected one tensor of this name, got another under its old name")
        renamed[name] = array
    return renamed


def _to_ours(array: np.ndarray) -> np.ndarray:
    """(outputs, inputs, *sides) to (*sides, inputs, outputs)."""
    return np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array


def _to_theirs(array: np.ndarray) -> np.ndarray:
    """(*sides, inputs, outputs) to (outputs, inputs, *sides)."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array


def _their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    theirs = (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else shape
    return (*theirs, 1, 1) if name.endswith("conv_shortcut.weight") else theirs


def _listed(names: Collection[str], limit: int = 20) -> str:
    shown = ", ".join(list(names)[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
