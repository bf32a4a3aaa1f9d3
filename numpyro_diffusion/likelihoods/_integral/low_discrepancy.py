"""Randomised low-discrepancy points: each uniform by itself, together more even than independent ones.

Sobol points under hashed nested uniform scrambling (Owen 1995; Burley 2020): each point by itself is uniform in the
unit cube, so that estimates are unbiased, and together they cover the cube more evenly than independent points, so that
integrals of smooth functions have less variance. As the points of one set depend on one another, error bars come from
replicates of whole sets.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

MAX_DIMENSION = 2048  # memory; and in so many dimensions evenness is lost anyhow


@functools.lru_cache(maxsize=16)
def sobol(count: int, dimension: int) -> UInt32[np.ndarray, "count dimension"]:
    """The first `count` Sobol points as 32-bit fractions, shape (count, dimension)."""
    from scipy.stats import qmc  # half a second to import

    points = qmc.Sobol(dimension, scramble=False, bits=32).random_base2(max(0, (count - 1).bit_length()))
    return np.floor(points[:count] * 2.0**32).astype(np.uint32)


def scrambled(point: UInt32[Array, " d"], seed: UInt32[Array, " d"]) -> Float[Array, " d"]:
    """The point, scrambled by nested uniform scrambling (Owen 1995; hashed as in Burley 2020), in (0, 1).

    Args:
        point: 32-bit fractions, shape (dimension,).
        seed: uniform 32-bit numbers, the same shape; points with one seed stay a low-discrepancy set.
    """
    bits = _reverse_bits(point) + seed
    for factor in (0x6C50B47C, 0xB82F1E52, 0xC7AFE638, 0x8D22F6E6):
        bits = bits ^ (bits * jnp.uint32(factor))
    # 23 bits and a half: exact in float32, so that no point rounds to 1 or into its neighbour's place
    return (_reverse_bits(bits) >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24


def low_discrepancy_point(
    key: PRNGKeyArray, index: Int[Array, ""], count: int, dimension: int
) -> Float[Array, " dimension"]:
    """Point `index` of a set of `count` that `key` makes, shape (dimension,), each uniform in the unit cube.

    Coordinates beyond the first `MAX_DIMENSION` are independent.
    """
    inside = min(dimension, MAX_DIMENSION)
    table = jnp.asarray(sobol(count, inside))
    point = scrambled(table[index], jax.random.bits(key, (inside,), jnp.uint32))
    if inside == dimension:
        return point
    rest = jax.random.uniform(jax.random.fold_in(key, index), (dimension - inside,), jnp.float32, 2.0**-24)
    return jnp.concatenate([point, rest])


def _reverse_bits(x: Array) -> Array:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        x = ((x >> shift) & jnp.uint32(mask)) | ((x & jnp.uint32(mask)) << shift)
    return (x >> 16) | (x << 16)
