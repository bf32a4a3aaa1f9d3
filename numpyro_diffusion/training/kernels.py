"""A kernel density of a table, fitted in numpy: every row is the mean of a Gaussian, all of one covariance.

A kernel density puts a Gaussian about each row (Parzen 1962), here of one covariance for all, which is round in
whitened, partly whitened or elementwise coordinates. Coordinates and width are those under which rows are most probable
by the others (leave-one-out likelihood; Duin 1976), copies of a row left out with it. The log density is *exact* for
this law, which is a prior too: `denoisers.KernelDensity`.
"""

from typing import NamedTuple

import numpy as np

from .baselines import Mixture
from .coordinates import in_units_of

SHARES = {"whitened": 0.0, "partly whitened": 0.25, "elementwise": 1.0}  # of the diagonal in the kernels' covariance
LEAST_WIDTH = 0.02  # in units in which the data have variance 1: rows that are all but copies have no finite one
LEFT_OUT = 500  # rows by which a width is chosen
TOGETHER = 256  # rows whose densities are found at a time


class Kernels(NamedTuple):
    """Equal Gaussians about the rows, round in coordinates of their own, x = root @ z + loc.

    Attributes:
        coordinates: their name.
        loc: shape (d,).
        root: lower triangular, shape (d, d).
        means: of the kernels, in these coordinates, shape (n, d).
        width: standard deviation of a kernel, in these coordinates.
    """

    coordinates: str
    loc: np.ndarray
    root: np.ndarray
    means: np.ndarray
    width: float

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density in nats, shape (n,)."""
        z = in_units_of(self.root, x - self.loc)
        parts = np.array_split(z, -(-len(z) // TOGETHER) or 1)
        own = np.concatenate([_log_density(_squares(part, self.means), self.width, z.shape[1]) for part in parts])
        return own - np.log(np.diag(self.root)).sum()


def fit_kernels(x: np.ndarray, gaussian: Mixture, coordinates: tuple[str, ...] = tuple(SHARES)) -> Kernels:
    """Of the coordinates and the width under which rows are most probable by all others (leave-one-out likelihood).

    Copies of a row say nothing of how far others are from one another, and are left out with it.

    Args:
        x: shape (n, d), at least two rows of them different.
        gaussian: whose covariance, partly diagonal, kernels have but for its scale.
        coordinates: those that are tried, by name.
    """
    different = np.unique(x, axis=0)
    loc, whole = gaussian.means[0], gaussian.covariances[0]
    found = []
    for name in coordinates:
        share = SHARES[name]
        root = np.linalg.cholesky((1 - share) * whole + share * np.diag(np.diag(whole)))
        width, value = _width(in_units_of(root, different - loc))
        volume = np.log(np.diag(root)).sum()
        found.append((value - volume, Kernels(name, loc, root, in_units_of(root, x - loc), width)))
    return max(found, key=lambda pair: pair[0])[1]


def _width(z: np.ndarray) -> tuple[float, float]:
    """The width that is best for rows left out, and the mean of their log densities."""
    count, size = z.shape
    out = np.arange(0, count, -(-count // LEFT_OUT))
    squares = _squares(z[out], z)
    squares[np.arange(len(out)), out] = np.inf
    value = lambda width: _log_density(squares, width, size).mean() + np.log(count / (count - 1))
    widths = np.geomspace(LEAST_WIDTH, 1.0, 16)
    for _ in range(2):  # the second time between the neighbours of the best
        values = [value(width) for width in widths]
        best = int(np.argmax(values))
        width, found = float(widths[best]), float(values[best])
        widths = np.geomspace(widths[max(best - 1, 0)], widths[min(best + 1, len(widths) - 1)], 9)
    return width, found


def _log_density(squares: np.ndarray, width: float, size: int) -> np.ndarray:
    """Of rows whose squared distances from the kernels' means these are, shape (m, n)."""
    nearest = squares.min(1)
    total = np.exp((nearest[:, None] - squares) / (2 * width**2)).mean(1)
    return np.log(total) - nearest / (2 * width**2) - size * np.log(width * np.sqrt(2 * np.pi))


def _squares(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    square = np.square(one).sum(1)[:, None] + np.square(two).sum(1) - 2 * one @ two.T
    return np.maximum(square, 0.0)
