"""Coordinates in which a table is simple: affine maps, the finest detail in them, elements that are one.

Affine maps between the data and coordinates in which their law is simple, such as white ones. They keep normal laws and
linear observations what they are and change densities by a constant, all of it *exact*. The finest detail of a table is
estimated by distances between nearest neighbours.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.transforms import ComposeTransform, LowerCholeskyAffine, Transform


def to_data_of(loc: np.ndarray, root: np.ndarray) -> LowerCholeskyAffine:
    """z ↦ root @ z + loc."""
    kind = jax.dtypes.canonicalize_dtype(float)
    return LowerCholeskyAffine(jnp.asarray(loc, kind), jnp.asarray(root, kind))


def in_units_of(root: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """root⁻¹ @ each row."""
    return np.linalg.solve(root, apart.T).T


def after(first: Transform | None, second: Transform | None) -> Transform | None:
    """One transform after another, of which either may be none."""
    if first is None or second is None:
        return second if first is None else first
    return ComposeTransform([first, second])


def finest_detail(standardized: np.ndarray) -> float:
    """The finest scale worth keeping: half the typical distance to the nearest neighbour."""
    sample = standardized.reshape(len(standardized), -1)[:1000]
    square = np.square(sample).sum(1)
    distance = square[:, None] + square[None] - 2 * sample @ sample.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.sqrt(np.maximum(distance.min(axis=1), 0) / sample.shape[1])
    return float(np.clip(np.median(nearest) / 2, 2e-3, 0.3))


def same_elements(array: np.ndarray) -> tuple[int, int] | None:
    """The first two elements that say the same, if there are any."""
    z = (array - array.mean(0)) / array.std(0)
    near = np.argwhere(np.triu(np.abs(z.T @ z) / len(z), 1) > 1 - 1e-6)
    return (int(near[0][0]), int(near[0][1])) if len(near) else None
