"""Mixtures of independent columns, real and of classes, by expectation maximisation: latent class models."""

from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr

from ..denoisers import ProductMixture

COUNTS = (1, 2, 3, 5, 8)  # of components, that are tried
LAPS = 60
LEAST_GAIN = 1e-4  # nats a row
PER_COMPONENT = 20  # rows


class Columns(NamedTuple):
    """What the columns of a table of numbers are.

    Attributes:
        num_classes: of each column of classes, 0 for others, shape (d,).
        num_levels: of each ordered column, 0 for others, shape (d,).
    """

    num_classes: np.ndarray
    num_levels: np.ndarray


class Products(NamedTuple):
    """A mixture of k laws of independent columns.

    Attributes:
        columns: what they are.
        weights: shape (k,).
        means: of columns that are not of classes, shape (k, d).
        scales: their standard deviations, likewise.
        probabilities: of the classes of the others, shape (k, d, m).
    """

    columns: Columns
    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    probabilities: np.ndarray

    @property
    def denoiser(self) -> ProductMixture:
        """Exact for it, ordered columns taken as real ones."""
        return ProductMixture(self.means, self.scales, self.probabilities, self.weights)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density of rows in nats, that of ordered columns a log probability of the rounded number; shape (n,)."""
        log_parts = np.log(self.weights) + self._each(x, rounded=True).sum(-1)
        return np.logaddexp.reduce(log_parts, axis=1)

    def share_of(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Probability of each component given each row, shape (n, k), and the mean log density with levels as real."""
        log_parts = np.log(self.weights) + self._each(x, rounded=False).sum(-1)
        total = np.logaddexp.reduce(log_parts, axis=1)
        return np.exp(log_parts - total[:, None]), float(total.mean())

    def _each(self, x: np.ndarray, rounded: bool) -> np.ndarray:
        """Log density of each cell in each component, shape (n, k, d)."""
        classes, levels = self.columns
        z = (x[:, None] - self.means) / self.scales
        real = -0.5 * (z**2 + np.log(2 * np.pi)) - np.log(self.scales)
        if rounded and levels.any():
            real = np.where(levels > 0, self._masses(x), real)
        code = np.where(classes > 0, x, 0).astype(int)
        chosen = np.take_along_axis(np.log(self.probabilities)[None], code[:, None, :, None], -1)[..., 0]
        return np.where(classes > 0, chosen, real)

    def _masses(self, x: np.ndarray) -> np.ndarray:
        """Log probability of a rounded normal number, the tails belonging to the first and the last level."""
        low = np.where(x <= 0, -np.inf, x - 0.5)[:, None]
        high = np.where(x >= self.columns.num_levels - 1, np.inf, x + 0.5)[:, None]
        low, high = ((end - self.means) / self.scales for end in (low, high))
        low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)  # in the lower tail, which is exact
        above, below = log_ndtr(high), log_ndtr(low)
        return np.maximum(above + np.log1p(-np.exp(np.minimum(below - above, -1e-12))), -1e3)


def fit_products(x: np.ndarray, held_out: np.ndarray, columns: Columns, seed: int = 0) -> tuple[Products, Products]:
    """One component, and as many as are best on the held-out rows, shapes (n, d) and (m, d)."""
    most = max(1, len(x) // PER_COMPONENT)
    found = [_fit(x, columns, count, seed) for count in COUNTS if count <= most]
    return found[0], max(found, key=lambda law: law.log_prob(held_out).mean())


def _fit(x: np.ndarray, columns: Columns, count: int, seed: int) -> Products:
    rng = np.random.default_rng(seed)
    one = _maximised(x, np.ones((len(x), 1)), columns, None)
    if count == 1:
        return one
    centres = x[rng.choice(len(x), count, replace=False)]
    differs = np.where(
        columns.num_classes > 0, 1.0 * (x[:, None] != centres), np.square((x[:, None] - centres) / one.scales)
    )
    distance = differs.sum(-1)
    law = _maximised(x, np.exp(distance.min(1, keepdims=True) - distance), columns, one)
    last = -np.inf
    for _ in range(LAPS):
        share, value = law.share_of(x)
        if value < last + LEAST_GAIN:
            break
        law, last = _maximised(x, share, columns, one), value
    return law


def _maximised(x: np.ndarray, share: np.ndarray, columns: Columns, whole: Products | None) -> Products:
    """Moments and frequencies by weights, as if each component had two rows more with those of all rows."""
    share = share / share.sum(1, keepdims=True)
    mass = share.sum(0)[:, None]
    ballast = 0.0 if whole is None else 2.0
    centre, variance = (x.mean(0), x.var(0)) if whole is None else (whole.means[0], whole.scales[0] ** 2)
    means = (share.T @ x + ballast * centre) / (mass + ballast)
    square = share.T @ np.square(x) - 2 * means * (share.T @ x) + mass * means**2
    variances = (np.maximum(square, 0) + ballast * variance) / (mass + ballast)
    variances = np.maximum(variances, np.where(columns.num_levels > 0, 1 / 12, 1e-4 * variance))
    most = max(1, int(columns.num_classes.max(initial=0)))
    is_code = x[:, :, None] == np.arange(most)
    counted = np.einsum("nk,ndm->kdm", share, is_code)
    own = (np.arange(most) < np.maximum(columns.num_classes, 1)[:, None]).astype(float)
    probabilities = (counted + own) * own + 1e-30
    scales = np.sqrt(np.where(variances > 0, variances, 1.0))
    return Products(columns, mass[:, 0] / len(x), means, scales, probabilities / probabilities.sum(-1, keepdims=True))
