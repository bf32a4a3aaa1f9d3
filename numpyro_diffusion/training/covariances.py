"""Structures of a Gaussian, of which held-out examples choose one: full, of few factors, diagonal, stationary.

With few examples of many elements a covariance has to have some structure: correlations that are shrunk, factors and a
diagonal by maximum likelihood (Jöreskog 1967), a diagonal alone, or stationarity, for which a cosine transform makes it
diagonal, *approximately* at the ends. The log density of held-out examples chooses, and the first one stays unless
another is better by more than a standard error.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from .baselines import Mixture, shrunk_gaussian

RANKS = (0, 1, 2, 4, 8, 16, 32)
ROUNDS = 30  # of fitting factors
LEAST = 1e-3  # of an element's variance, that is its own

Structure = Callable[[np.ndarray, float], Mixture]


def structures(count: int, event_shape: tuple[int, ...]) -> dict[str, Structure]:
    """What may be fitted to `count` flat examples, by name; called with them and the variance of added noise."""
    size = math.prod(event_shape)
    found: dict[str, Structure] = {"shrunk as Ledoit and Wolf have it": shrunk_gaussian}
    for rank in RANKS:
        if rank <= min(size, count) // 3:
            name = f"of rank {rank} and a diagonal" if rank else "diagonal"
            found[name] = functools.partial(factor_gaussian, rank=rank)
    if size >= 8:
        for own, name in ((False, "stationary"), (True, "stationary but for elements' own means and scales")):
            found[name] = functools.partial(stationary_gaussian, event_shape=event_shape, own=own)
    return found


def chosen_structure(
    train: np.ndarray, held_out: np.ndarray, added: float, event_shape: tuple[int, ...]
) -> tuple[str, Mixture]:
    """The structure, by name, that is best on held-out examples; the first one unless by more than a standard error."""
    options = structures(len(train), event_shape)
    fitted = {name: fit(train, added) for name, fit in options.items()}
    first = next(iter(options))
    if not len(held_out):
        return first, fitted[first]
    values = {name: law.log_prob(held_out) for name, law in fitted.items()}
    gain = {name: value - values[first] for name, value in values.items()}
    best = max(gain, key=lambda name: gain[name].mean())
    good = gain[best].mean() > gain[best].std() / np.sqrt(len(held_out))
    return (best, fitted[best]) if good else (first, fitted[first])


def factor_gaussian(x: np.ndarray, added: float = 0.0, *, rank: int) -> Mixture:
    """A covariance L Lᵀ + D of rank-`rank` L and diagonal D, by maximum likelihood (Jöreskog 1967), up to `ROUNDS`.

    Given D, the best L is that of the `rank` largest eigenvalues of D^−½ S D^−½, each less 1; given L, D is what
    is left of the variances.

    Args:
        x: shape (n, d).
        added: variance of noise that the data will be given, added to each element's.
        rank: of L; 0 for none.
    """
    mean, variance = x.mean(0), x.var(0)
    scale = np.sqrt(np.where(variance > 0, variance, 1.0))
    z = (x - mean) / scale
    correlation, own = z.T @ z / len(z), np.ones(x.shape[1])
    loadings = np.zeros((len(own), 0))
    for _ in range(ROUNDS if rank else 0):
        root = np.sqrt(own)
        values, basis = np.linalg.eigh(correlation / np.outer(root, root))
        scales = np.sqrt(np.maximum(values[-rank:] - 1, 0.0))
        loadings = root[:, None] * basis[:, -rank:] * scales
        before, own = own, np.clip(1 - np.square(loadings).sum(1), LEAST, 1.0)
        if np.abs(own - before).max() < 1e-4:
            break
    whole = (loadings @ loadings.T + np.diag(own)) * np.outer(scale, scale) + added * np.eye(len(own))
    return Mixture(np.ones(1), mean[None], whole[None])


def stationary_gaussian(
    x: np.ndarray, added: float = 0.0, *, event_shape: tuple[int, ...], own: bool = False
) -> Mixture:
    """A covariance that the discrete cosine transform makes diagonal, so that it depends on distance (but at the ends).

    Args:
        x: flat examples, shape (n, d).
        added: variance of noise that the data will be given, added to each element's.
        event_shape: of one example; of three axes the last one is channels, each with a spectrum of its own.
        own: whether each element has a mean and a scale of its own; else there is one of each.
    """
    axis: int | None = 0 if own else None
    mean, scale = np.broadcast_to(x.mean(axis), x.shape[1:]), np.broadcast_to(x.std(axis), x.shape[1:])
    scale = np.where(scale > 0, scale, 1.0)
    basis = cosines(event_shape)
    power = np.square((x - mean) / scale @ basis.T).mean(0)
    power = np.maximum(power, LEAST * power.mean())
    whole = (basis.T * power) @ basis * np.outer(scale, scale) + added * np.eye(len(mean))
    return Mixture(np.ones(1), mean[None], whole[None])


def cosines(event_shape: tuple[int, ...]) -> np.ndarray:
    """The orthogonal matrix, shape (d, d), of the cosine transform of flat examples along their first two axes."""
    found = np.ones((1, 1))
    for axis, size in enumerate(event_shape):
        found = np.kron(found, np.eye(size) if axis == 2 else cosines_along(size))
    return found


def cosines_along(size: int) -> np.ndarray:
    """The orthogonal matrix of the cosine transform of so many elements, its rows from slow to fast."""
    places = np.arange(size)
    basis = np.sqrt(2 / size) * np.cos(np.pi * np.outer(places, places + 0.5) / size)
    basis[0] /= np.sqrt(2)
    return basis
