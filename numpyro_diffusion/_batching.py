"""Mapping over many examples, and scanning over many steps, with bounded memory.

A derivative keeps what the way forward computed, which for a network at many examples or steps can be more than a
machine has. Past one chunk, and in every scan, it is computed again on the way back (`jax.checkpoint`): two forward
passes in all, three for a long scan. Values are those of `jax.vmap` and `jax.lax.scan` but for rounding. All chunks
have one size, and what fills up the last one is thrown away; a scan's steps that fill no segment are run behind the
others.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

LONG_SCAN = 256


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


def checkpointed_scan(step: Any, carry: Any, xs: Any) -> Any:
    """The final carry of ``lax.scan(step, carry, xs)``, whose gradient keeps few of the carries between n steps.

    Up to `LONG_SCAN` steps it keeps them all, and runs each step again for its derivative: two forward passes in all.
    More steps run in segments of √n. The backward pass keeps where each segment begins, and runs a segment again to
    keep where each of its steps begins: about 2 √n carries, one step's work, and three forward passes.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    again = partial(jax.checkpoint, prevent_cse=False)  # a scan separates the passes by itself
    inner = lambda carry, xs: jax.lax.scan(again(step), carry, xs)
    if count <= LONG_SCAN:
        return inner(carry, xs)[0]
    size = math.isqrt(count)
    whole = count // size * size
    parts = jax.tree.map(lambda leaf: leaf[:whole].reshape((-1, size, *leaf.shape[1:])), xs)
    carry, _ = jax.lax.scan(again(inner), carry, parts)
    return again(inner)(carry, jax.tree.map(lambda leaf: leaf[whole:], xs))[0]
