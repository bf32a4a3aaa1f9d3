"""Mixtures of Gaussians of events that are too large for covariances, by expectation maximisation.

An image of a thousand pixels has a million covariances. Turned along each of its axes, by cosines (which make
stationary laws diagonal, *approximately* at the ends) or by the principal axes of all rows, columns and colours
(De Lathauwer et al. 2000, "A multilinear singular value decomposition"), its coefficients hardly correlate, and a
component is a mean and a variance for each of them. Many such components are a strong simple model of pictures, as
Zoran and Weiss (2011) found for patches. Held-out examples choose the basis and the number of components.
"""

import math
from typing import NamedTuple

import numpy as np

from .._checks import check_choice, check_count, check_finite
from ..denoisers import SeparableMixture
from ..denoisers.separable import turned
from .baselines import Mixture, fit_mixture
from .covariances import cosines_along

COMPONENTS = (1, 4, 16, 64)
LEADING = 16  # coefficients that say where expectation maximisation begins
ROUNDS = 20
COMMON = 16.0  # examples by which a component's variances are drawn to the spectrum of all components
LEAST = 1e-5  # of the mean variance of a coefficient, that is added to each
MOST_NUMBERS = 3e7  # of the examples that are fitted
MOST_AXIS = 1_024  # elements along an axis that is turned


class Separable(NamedTuple):
    """A mixture of k Gaussians, diagonal after each axis of an event has been turned.

    Attributes:
        weights: shape (k,), adding up to 1.
        means: of the coefficients, shape (k, d).
        variances: shape (k, d).
        bases: one orthogonal matrix for each axis.
        basis: their name.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    bases: tuple[np.ndarray, ...]
    basis: str

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density in nats of flat examples, shape (n,)."""
        return np.logaddexp.reduce(self.log_parts(coefficients(x, self.bases)), axis=1)

    def log_parts(self, z: np.ndarray) -> np.ndarray:
        """log of weight times density of each component, of coefficients, shape (n, k)."""
        precision = 1 / self.variances
        scaled = (self.means * precision).astype(z.dtype)
        square = np.square(z) @ precision.astype(z.dtype).T - 2 * z @ scaled.T
        constant = np.sum(np.square(self.means) * precision + np.log(2 * np.pi * self.variances), 1)
        return np.asarray(np.log(self.weights) - 0.5 * (square + constant), np.float64)

    @property
    def said(self) -> str:
        """In words."""
        count = len(self.weights)
        return f"{'Gaussian' if count == 1 else f'mixture of {count} Gaussians'} along {self.basis}"

    def denoiser(self) -> SeparableMixture:
        """Exact for it."""
        shape = tuple(len(basis) for basis in self.bases)
        backwards = tuple(basis.T for basis in self.bases)
        locs = coefficients(self.means, backwards).reshape(-1, *shape)
        return SeparableMixture(locs, self.variances.reshape(-1, *shape), self.bases, self.weights)


def coefficients(x: np.ndarray, bases: tuple[np.ndarray, ...]) -> np.ndarray:
    """Flat examples along the columns of one matrix for each axis, shape (n, d)."""
    z = x.reshape(len(x), *(len(basis) for basis in bases))
    return turned(z, bases, np.matmul, np.moveaxis).reshape(len(x), -1)


def fit_separable(
    x: np.ndarray, event_shape: tuple[int, ...], count: int, basis: str = "principal axes", seed: int = 0
) -> Separable:
    """A mixture of Gaussians without correlations along turned axes, by EM (Dempster, Laird and Rubin 1977).

    It begins with a mixture of the leading coefficients. A component's variances are drawn to a multiple of those that
    all have within them on average, as if by `COMMON` examples more (Friedman 1989), and `LEAST` of the mean variance
    is added to each.

    Args:
        x: flat examples, shape (n, d), n ≥ 2, with uniform noise as wide as their steps, if they come in steps.
        event_shape: of one example, of d elements in all.
        count: k; no more than there are examples.
        basis: ``"cosines"``, along the first two axes, or ``"principal axes"``, along each.
        seed: of where it begins.

    Returns:
        The `Separable` law of flat examples, in float64; ``law.denoiser()`` is exact for it, on events.

    Raises:
        ValueError: an unknown basis, examples of another size or that are not finite, fewer of them than components.
    """
    check_choice("basis", basis, tuple(BASES))
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] != math.prod(event_shape):
        raise ValueError(f"x: expected shape (n, {math.prod(event_shape)}), flat events {event_shape}, got {x.shape}")
    check_finite("x", x)
    if check_count("count", count) > len(x) or len(x) < 2:
        raise ValueError(f"count: expected at most as many as the {len(x)} examples, of at least 2, got {count}")
    bases = BASES[basis](x, event_shape)
    centre = x.mean(0)
    z = coefficients((x - centre).astype(np.float32), bases)
    square = np.square(z)
    floor = np.float32(LEAST * square.mean())
    now = _begun(z, square, count, seed)
    last = -np.inf
    for _ in range(ROUNDS if count > 1 else 0):
        parts = now._replace(variances=now.variances + floor).log_parts(z)
        total = np.logaddexp.reduce(parts, axis=1)
        if total.mean() < last + 1e-5 * z.shape[1]:
            break
        last = total.mean()
        now = _maximised(z, square, np.exp(parts - total[:, None]).astype(np.float32))
    means = now.means.astype(np.float64) + coefficients(centre[None], bases)
    return Separable(now.weights, means, (now.variances + floor).astype(np.float64), bases, basis)


def chosen_separable(train: np.ndarray, held_out: np.ndarray, event_shape: tuple[int, ...]) -> Separable:
    """The one of few to many components, along the better axes, that is best on held-out examples.

    Args:
        train: flat examples with the noise that fills the gaps between steps, shape (n, d).
        held_out: others, shape (m, d), m ≥ 1.
        event_shape: of one example, of d elements in all.

    Raises:
        ValueError: see `fit_separable`.
    """
    fewer = max(1, int(np.ceil(train.size / MOST_NUMBERS)))
    x = train[::fewer]
    counts = [count for count in COMPONENTS if count == 1 or 20 * count <= len(x)]
    value = lambda law: law.log_prob(held_out).mean()
    best = max((fit_separable(x, event_shape, 1, basis) for basis in BASES), key=value)
    for count in counts[1:]:
        own = fit_separable(x, event_shape, count, best.basis)
        if value(own) < value(best):
            break
        best = own
    return best


def _begun(z: np.ndarray, square: np.ndarray, count: int, seed: int) -> Separable:
    """Where expectation maximisation begins: shares by a mixture of the leading coefficients."""
    if count == 1:
        return _maximised(z, square, np.ones((len(z), 1), np.float32))
    leading = np.argsort(-square.mean(0))[:LEADING]
    head = z[:, leading].astype(np.float64) / np.sqrt(square[:, leading].mean(0) + 1e-12)
    start: Mixture = fit_mixture(head, count, seed, num_iterations=ROUNDS)
    parts = start.log_parts(head)
    share = np.exp(parts - np.logaddexp.reduce(parts, axis=1)[:, None])
    return _maximised(z, square, share.astype(np.float32))


def _maximised(z: np.ndarray, square: np.ndarray, share: np.ndarray) -> Separable:
    mass = share.sum(0, dtype=np.float64)[:, None] + 1e-3
    means = (share.T @ z) / mass
    scatter = np.maximum(share.T @ square - mass * np.square(means), 0)
    within = scatter.sum(0) / mass.sum() + 1e-12
    strength = (scatter / within).mean(1, keepdims=True) / mass  # pictures differ most in contrast
    variances = (scatter + COMMON * strength * within) / (mass + COMMON)
    return Separable(mass[:, 0] / mass.sum(), means, variances, (), "")


def _cosine_axes(x: np.ndarray, event_shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Cosines along the first two axes, and the principal axes of what is left."""
    own = _principal_axes(x, event_shape)
    along = lambda axis, size: cosines_along(size).T if axis < 2 and size <= MOST_AXIS else own[axis]
    return tuple(along(axis, size) for axis, size in enumerate(event_shape))


def _principal_axes(x: np.ndarray, event_shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Eigenvectors of the covariance of all lines along each axis; the elements themselves where there are too many."""
    apart = (x - x.mean(0)).astype(np.float32).reshape(len(x), *event_shape)
    found = []
    for axis, size in enumerate(event_shape, start=1):
        if size > MOST_AXIS:
            found.append(np.eye(size))
            continue
        lines = np.moveaxis(apart, axis, -1).reshape(-1, size)
        found.append(np.linalg.eigh((lines.T @ lines).astype(np.float64))[1][:, ::-1])
    return tuple(found)


BASES = {"cosines": _cosine_axes, "principal axes": _principal_axes}
