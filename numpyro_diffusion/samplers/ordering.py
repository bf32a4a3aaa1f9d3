"""Particles in the order of a curve on which neighbours are alike, and draws of opposite noise for neighbours.

Systematic resampling has less variance where particles are sorted along a space-filling curve, on which neighbours are
alike (Gerber, Chopin and Whiteley 2019). The curve is Hilbert's, in the plane of the two directions in which the points
differ most. Sorted neighbours may then step with opposite noise (antithetic), each with the law that it has alone. As
any order is right, that the directions are *approximate* makes no sampler wrong.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._products import dot

_BITS = 10  # of each of the curve's two coordinates
_ITERATIONS = 4


def curve_order(points: Float[Array, "n ..."]) -> Int[Array, " n"]:
    """The order of points along a Hilbert curve through the two directions in which they differ most.

    The directions are those of a few power iterations from a fixed start: *approximate*, which makes no sampler wrong,
    as any order is right. They keep their units, so that points that differ in one direction only are sorted along it.

    Args:
        points: shape (N, ...).

    Returns:
        Indices of all points, shape (N,).
    """
    flat = points.reshape(points.shape[0], -1)
    flat = flat - jnp.mean(flat, 0)
    # Any start will do that no direction is orthogonal to; waves need no random bits, which are long to compile.
    waves = jnp.outer(jnp.arange(1, flat.shape[1] + 1), jnp.asarray([1.0, 2.0**0.5])[: min(2, flat.shape[1])])
    basis = jnp.cos(waves).astype(flat.dtype)
    turn = lambda _, basis: jnp.linalg.qr(dot(flat.T, dot(flat, basis)))[0]
    basis = jax.lax.fori_loop(0, _ITERATIONS, turn, basis)
    plane = dot(flat, basis)
    if plane.shape[1] == 1:
        return jnp.argsort(plane[:, 0])
    plane = dot(plane, jnp.linalg.eigh(dot(plane.T, plane))[1][:, ::-1])  # the larger first
    corner = jnp.min(plane, 0)
    width = jnp.maximum(jnp.max(plane - corner), jnp.finfo(plane.dtype).tiny)
    return jnp.argsort(hilbert_index((plane - corner) / width))


def hilbert_index(square: Float[Array, "n 2"]) -> Int[Array, " n"]:
    """Where points of the unit square, shape (N, 2), lie along Hilbert's curve of 2¹⁰ cells a side, shape (N,)."""
    side = 1 << _BITS
    cells = jnp.clip((square * side).astype(jnp.int32), 0, side - 1)

    def finer(k: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, y, index = state
        right, upper = (x >> (_BITS - 1 - k)) & 1, (y >> (_BITS - 1 - k)) & 1
        index = 4 * index + ((3 * right) ^ upper)
        # In the lower quarters the curve runs turned: axes exchanged, in the right one from the other end.
        x, y = (jnp.where((upper == 0) & (right == 1), side - 1 - each, each) for each in (x, y))
        return jnp.where(upper == 0, y, x), jnp.where(upper == 0, x, y), index

    return jax.lax.fori_loop(0, _BITS, finer, (cells[:, 0], cells[:, 1], jnp.zeros(len(square), jnp.int32)))[2]
