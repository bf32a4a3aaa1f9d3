"""Mapping over many examples with bounded memory."""

from typing import Any

import jax
import jax.numpy as jnp


def batched_map(fn: Any, xs: Any, chunk: int | None) -> Any:
    """`vmap` over the leading axis, at most `chunk` at a time; what a chunk computed is not kept for the gradient.

    The last chunk is filled up with repeated examples, so that one program serves all.
    """
    size = jax.tree.leaves(xs)[0].shape[0]
    if chunk is None or size <= chunk:
        return jax.vmap(fn)(xs)
    count = -(-size // chunk)
    index = jnp.minimum(jnp.arange(count * chunk), size - 1)
    parts = jax.tree.map(lambda leaf: leaf[index].reshape((count, chunk, *leaf.shape[1:])), xs)
    out = jax.lax.map(jax.checkpoint(jax.vmap(fn)), parts)
    return jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:]))[:size], out)
