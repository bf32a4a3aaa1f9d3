"""Mixtures of independent columns, real and of classes, by expectation maximisation: latent class models.

Cells that are NaN are missing. Given the component columns are independent, so that what is known of a row is its known
cells' product, and the missing ones need no thought: they drop out of each sum (Little and Rubin 2019, §13.2).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import log_ndtr

from ..denoisers import ProductMixture

COUNTS = (1, 2, 3, 5, 8)  # of components, that are tried
STARTS, STARTED = 4, 40_000  # runs of EM at most, and rows times components of all of them together
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
        means = self.means.astype(jnp.zeros(()).dtype)  # the data were found fit for it: what is rounded is constant
        return ProductMixture(means, self.scales, self.probabilities, self.weights)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density of rows' known cells in nats, *exact*, shape (n,); of ordered columns that of rounded numbers."""
        return np.logaddexp.reduce(self._log_parts(x, rounded=True), axis=1)

    def share_of(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Probability of each component given each row, shape (n, k), and the mean log density with levels as real."""
        log_parts = self._log_parts(x, rounded=False)
        total = np.logaddexp.reduce(log_parts, axis=1)
        return np.exp(log_parts - total[:, None]), float(total.mean())

    def completed(self, rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
        """The rows with a draw of their missing cells given the known ones, shape (n, d); *exact*, levels rounded."""
        log_parts = self._log_parts(x, rounded=True)
        part = np.argmax(log_parts + rng.gumbel(size=log_parts.shape), axis=1)
        drawn = self.means[part] + self.scales[part] * rng.standard_normal(x.shape)
        classes, levels = self.columns
        drawn = np.where(levels > 0, np.clip(np.round(drawn), 0, np.maximum(levels - 1, 0)), drawn)
        below, uniform = np.cumsum(self.probabilities, axis=-1), rng.random(x.shape)
        for i in np.flatnonzero(classes):
            drawn[:, i] = np.minimum((uniform[:, i, None] > below[part, i]).sum(-1), classes[i] - 1)
        return np.where(np.isnan(x), drawn, x)

    def _log_parts(self, x: np.ndarray, rounded: bool) -> np.ndarray:
        """Log of each component's weight times its density of the known cells, shape (n, k)."""
        missing = np.isnan(x)
        each = self._each(np.where(missing, 0.0, x), rounded)
        return np.log(self.weights) + np.where(missing[:, None], 0.0, each).sum(-1)

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


def fit_products(
    x: np.ndarray, held_out: np.ndarray, columns: Columns, counts: tuple[int, ...] = COUNTS
) -> tuple[Products, Products]:
    """The law of as few components as are tried, and that which is best on the held-out rows.

    Args:
        x: rows, NaN where missing, shape (n, d).
        held_out: others, shape (m, d).
        columns: what the columns are.
        counts: numbers of components to try; those for which there are too few rows are not.
    """
    most = max(counts[0], len(x) // PER_COMPONENT)
    found = [_fit(x, columns, count) for count in counts if count <= most]
    return found[0], max(found, key=lambda law: law.log_prob(held_out).mean())


def _fit(x: np.ndarray, columns: Columns, count: int) -> Products:
    """The best of several runs of EM, which end in different places; of one where there are many rows."""
    one = _maximised(x, np.ones((len(x), 1)), columns, None)
    if count == 1:
        return one
    rng = np.random.default_rng(0)
    whole = one.completed(rng, x)  # to begin with, where rows have to be compared
    runs = int(np.clip(STARTED // (len(x) * count), 1, STARTS))
    found = [_em(x, _start(rng, x, whole, one, count), one) for _ in range(runs)]
    return max(found, key=lambda law: law.share_of(x)[1])


def _em(x: np.ndarray, law: Products, one: Products) -> Products:
    last = -np.inf
    for _ in range(LAPS):
        share, value = law.share_of(x)
        if value < last + LEAST_GAIN:
            break
        law, last = _maximised(x, share, one.columns, one), value
    return law


def _start(rng: np.random.Generator, x: np.ndarray, whole: np.ndarray, one: Products, count: int) -> Products:
    """Components about rows far from one another (k-means++)."""

    def distance(centre: np.ndarray) -> np.ndarray:
        real = np.square((whole - centre) / one.scales)
        return np.where(one.columns.num_classes > 0, whole != centre, real).sum(-1)

    found = [distance(whole[rng.integers(len(x))])]
    while len(found) < count:
        weight = np.min(found, axis=0) + 1e-12
        found.append(distance(whole[rng.choice(len(x), p=weight / weight.sum())]))
    apart = np.stack(found, axis=1)
    return _maximised(x, np.exp(apart.min(1, keepdims=True) - apart), one.columns, one)


def _maximised(x: np.ndarray, share: np.ndarray, columns: Columns, whole: Products | None) -> Products:
    """Moments and frequencies of known cells by weights, as if each component had two rows more as all rows are."""
    share, known = share / share.sum(1, keepdims=True), ~np.isnan(x)
    x = np.where(known, x, 0.0)
    mass = np.maximum(share.T @ known, 1e-12)
    ballast = 0.0 if whole is None else 2.0
    centre = (x.sum(0) / mass)[0] if whole is None else whole.means[0]
    variance = np.where(known, np.square(x - centre), 0.0).sum(0) / mass[0] if whole is None else whole.scales[0] ** 2
    means = (share.T @ x + ballast * centre) / (mass + ballast)
    square = share.T @ np.square(x) - 2 * means * (share.T @ x) + mass * means**2
    variances = (np.maximum(square, 0) + ballast * variance) / (mass + ballast)
    variances = np.maximum(variances, np.where(columns.num_levels > 0, 1 / 12, 1e-4 * variance))
    most = max(1, int(columns.num_classes.max(initial=0)))
    is_code = (x[:, :, None] == np.arange(most)) & known[:, :, None]
    counted = np.einsum("nk,ndm->kdm", share, is_code)
    own = (np.arange(most) < np.maximum(columns.num_classes, 1)[:, None]).astype(float)
    probabilities = (counted + own) * own + 1e-30
    scales = np.sqrt(np.where(variances > 0, variances, 1.0))
    return Products(columns, share.mean(0), means, scales, probabilities / probabilities.sum(-1, keepdims=True))
