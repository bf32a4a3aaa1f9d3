"""Randomised low-discrepancy points: each uniform by itself, together more even than independent ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

MAX_DIMENSION = 2048  # beyond it noise is drawn independently: evenness in pairs of coordinates is lost anyhow


@functools.lru_cache(maxsize=16)
def sobol(count: int, dimension: int) -> np.ndarray:
    """The first `count` Sobol points as 32-bit fractions, shape (count, dimension)."""
    from scipy.stats import qmc  # half a second to import

    points = qmc.Sobol(dimension, scramble=False, bits=32).random_base2(max(0, (count - 1).bit_length()))
    return np.floor(points[:count] * 2.0**32).astype(np.uint32)


def scrambled(point: Array, seed: Array) -> Array:
    """The point, scrambled by nested uniform scrambling (Owen 1995; hashed as in Burley 2020), in (0, 1).

    Args:
        point: 32-bit fractions, shape (dimension,).
        seed: uniform 32-bit numbers, the same shape; points with one seed stay a low-discrepancy set.
    """
    bits = _reverse_bits(point) + seed
    for factor in (0x6C50B47C, 0xB82F1E52, 0xC7AFE638, 0x8D22F6E6):
        bits = bits ^ (bits * jnp.uint32(factor))
    return (_reverse_bits(bits) >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25


def uniform_and_noise(key: Array, index: Array, count: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Point `index` of a set of `count` that `key` makes: a uniform number and standard normal noise of a shape.

    Either is distributed as if drawn by itself.
    """
    size = int(np.prod(shape))
    inside = size < MAX_DIMENSION
    table = jnp.asarray(sobol(count, size + 1 if inside else 1))
    seed = jax.random.bits(key, table.shape[1:], jnp.uint32)
    place = scrambled(table[index], seed)
    if inside:
        return place[0], ndtri(place[1:]).reshape(shape)
    return place[0], jax.random.normal(jax.random.fold_in(key, index), shape)


def _reverse_bits(x: Array) -> Array:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        x = ((x >> shift) & jnp.uint32(mask)) | ((x & jnp.uint32(mask)) << shift)
    return (x >> 16) | (x << 16)
