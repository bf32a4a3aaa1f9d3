"""Gaussians and mixtures of them from rows with missing cells, in closed form.

The EM of Little and Rubin (2019, §11.2) for a normal law, and that of Ghahramani and Jordan (1994) for a mixture: the
missing cells are replaced by their law given the known ones, whose mean and covariance are exact.
"""

from typing import Any, NamedTuple

import numpy as np

from .baselines import Mixture

LARGEST_BLOCK = 4_000_000  # numbers of the rows' covariances that are held at once
WORK = 3e10  # products an EM may take
TOLERANCE = 1e-5  # nats a row


class Rows(NamedTuple):
    """A table with missing cells.

    Attributes:
        x: shape (n, d); any finite number where a cell is missing.
        known: shape (n, d), boolean.
    """

    x: np.ndarray
    known: np.ndarray

    def take(self, picked: Any) -> "Rows":
        """Some of the rows: a slice, numbers or a mask."""
        return Rows(self.x[picked], self.known[picked])

    @property
    def cells(self) -> np.ndarray:
        """The table with NaN where a cell is missing."""
        return np.where(self.known, self.x, np.nan)


class Given(NamedTuple):
    """What one Gaussian says of rows whose known cells are given.

    Attributes:
        log_prob: log density of the known cells in nats, shape (n,).
        mean: of all cells, known ones their value, shape (n, d).
        covariance: of all cells, 0 for known ones, shape (n, d, d).
    """

    log_prob: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


def given(mean: np.ndarray, covariance: np.ndarray, rows: Rows) -> Given:
    """*Exact*: the normal law of the missing cells, and the density of the known ones."""
    x, known = rows
    both = known[:, :, None] & known[:, None, :]
    within = np.where(both, covariance, np.eye(len(mean)))
    across = covariance * known[:, None, :]  # of every cell with the known ones
    residual = np.where(known, x - mean, 0.0)
    gain = np.swapaxes(np.linalg.solve(within, np.swapaxes(across, 1, 2)), 1, 2)
    _, log_det = np.linalg.slogdet(within)
    square = np.einsum("ni,ni->n", residual, np.linalg.solve(within, residual[:, :, None])[:, :, 0])
    log_prob = -0.5 * (square + log_det + known.sum(1) * np.log(2 * np.pi))
    left = covariance - gain @ np.swapaxes(across, 1, 2)
    left = np.where(known[:, :, None] | known[:, None, :], 0.0, left)
    expected = np.where(known, x, mean + np.einsum("nij,nj->ni", gain, residual))
    return Given(log_prob, expected, left)


def known_log_prob(law: Mixture, rows: Rows) -> np.ndarray:
    """Log density of each row's known cells, in nats, shape (n,); *exact*."""
    return np.concatenate([np.logaddexp.reduce(_log_parts(law, block), axis=1) for block in _blocks(rows)])


def completed(rng: np.random.Generator, law: Mixture, rows: Rows) -> np.ndarray:
    """The rows with a draw of their missing cells given the known ones, shape (n, d); *exact*."""
    return np.concatenate([_completed(rng, law, block) for block in _blocks(rows)])


def fit_gaussian(rows: Rows) -> Mixture:
    """The normal law of most likelihood for the known cells, its correlations shrunk by d/(n + d)."""
    mean, scale = _standards(rows)
    size = len(mean)
    start = Mixture(np.ones(1), np.zeros((1, size)), np.eye(size)[None])
    law = _em(start, Rows((rows.x - mean) / scale, rows.known))
    return law.affine(np.diag(scale), mean)


def fit_mixture_of_rows(rows: Rows, start: Mixture) -> Mixture:
    """The mixture that EM reaches from `start`; each covariance drawn to the common one, as if by d rows more."""
    mean, scale = _standards(rows)
    inner = start.affine(np.diag(1 / scale), -mean / scale)
    law = _em(inner, Rows((rows.x - mean) / scale, rows.known))
    return law.affine(np.diag(scale), mean)


def _standards(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column's known cells."""
    count = rows.known.sum(0)
    mean = np.where(rows.known, rows.x, 0.0).sum(0) / count
    variance = np.where(rows.known, np.square(rows.x - mean), 0.0).sum(0) / count
    return mean, np.sqrt(np.where(variance > 0, variance, 1.0))


def _em(law: Mixture, rows: Rows) -> Mixture:
    count, size = rows.x.shape
    most = int(np.clip(WORK / (len(law.weights) * count * size**3), 10, 200))
    last = -np.inf
    for _ in range(most):
        law, value = _lap(law, rows)
        if value < last + TOLERANCE:
            break
        last = value
    return law


def _lap(law: Mixture, rows: Rows) -> tuple[Mixture, float]:
    """One lap of EM, and the mean log density of the known cells before it."""
    count, size = rows.x.shape
    parts = len(law.weights)
    mass, first, second, value = np.zeros(parts), np.zeros((parts, size)), np.zeros((parts, size, size)), 0.0
    for block in _blocks(rows):
        found = [given(mean, cov, block) for mean, cov in zip(law.means, law.covariances, strict=True)]
        log_parts = np.log(law.weights) + np.stack([one.log_prob for one in found], axis=1)
        total = np.logaddexp.reduce(log_parts, axis=1)
        share = np.exp(log_parts - total[:, None])
        value += float(total.sum())
        mass += share.sum(0)
        for part, one in enumerate(found):
            own = share[:, part]
            first[part] += own @ one.mean
            second[part] += (one.mean * own[:, None]).T @ one.mean + np.einsum("n,nij->ij", own, one.covariance)
    return _maximised(mass, first, second, count), value / count


def _maximised(mass: np.ndarray, first: np.ndarray, second: np.ndarray, count: int) -> Mixture:
    size = first.shape[1]
    safe = mass + 1e-3
    means = first / safe[:, None]
    scatter = second - np.einsum("ki,kj->kij", means, means) * mass[:, None, None]
    if len(mass) == 1:
        whole = scatter[0] / count
        shrunk = whole + size / (count + size) * (np.diag(np.diag(whole)) - whole)
        return Mixture(np.ones(1), means, shrunk[None])
    within = scatter.sum(0) / count
    covariances = (scatter + (size + 0.01) * within) / (safe + size + 0.01)[:, None, None]
    return Mixture(safe / safe.sum(), means, covariances)


def _log_parts(law: Mixture, rows: Rows) -> np.ndarray:
    pairs = zip(law.means, law.covariances, strict=True)
    return np.log(law.weights) + np.stack([given(mean, cov, rows).log_prob for mean, cov in pairs], axis=1)


def _completed(rng: np.random.Generator, law: Mixture, rows: Rows) -> np.ndarray:
    found = [given(mean, cov, rows) for mean, cov in zip(law.means, law.covariances, strict=True)]
    log_parts = np.log(law.weights) + np.stack([one.log_prob for one in found], axis=1)
    picked = np.argmax(log_parts + rng.gumbel(size=log_parts.shape), axis=1)
    out = np.empty(rows.x.shape)
    for part, one in enumerate(found):
        own = picked == part
        missing = ~rows.known[own]
        # The known cells, of no variance, are given some, so that the covariance has a root; they keep their values.
        added = np.where(missing, 1e-9 * np.diag(law.covariances[part]), 1.0)
        covariance = one.covariance[own] + np.eye(rows.x.shape[1]) * added[:, None, :]
        noise = rng.standard_normal(missing.shape)
        moved = np.einsum("nij,nj->ni", np.linalg.cholesky(covariance), noise)
        out[own] = one.mean[own] + np.where(missing, moved, 0.0)
    return np.where(rows.known, rows.x, out)


def _blocks(rows: Rows) -> list[Rows]:
    count = max(1, LARGEST_BLOCK // rows.x.shape[1] ** 2)
    return [rows.take(slice(i, i + count)) for i in range(0, len(rows.x), count)]
