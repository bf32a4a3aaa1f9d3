"""Simple models of the data, fitted in numpy: what a learned prior has to be better than.

A learned prior should be better than these: independent elements of a few values, a Gaussian with shrunken correlations
(Ledoit and Wolf 2004), and mixtures of Gaussians by expectation maximisation (Dempster, Laird and Rubin 1977), their
covariances drawn to a common one (Friedman 1989). Their log densities are *exact*, while K is a lower bound: a prior
that is ahead by K is better. They are also the baselines about which networks learn.
"""

from typing import NamedTuple

import numpy as np

LARGEST = 1024  # elements up to which a full covariance is fitted


class Mixture(NamedTuple):
    """A mixture of k Gaussians with full covariances.

    Attributes:
        weights: shape (k,), adding up to 1.
        means: shape (k, d).
        covariances: shape (k, d, d).
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def log_parts(self, x: np.ndarray) -> np.ndarray:
        """log of weight times density of each component, shape (n, k)."""
        found = []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            root = np.linalg.cholesky(covariance)
            whitened = np.linalg.solve(root, (x - mean).T)
            volume = np.log(np.diag(root)).sum() + 0.5 * len(mean) * np.log(2 * np.pi)
            found.append(np.log(weight) - 0.5 * np.square(whitened).sum(0) - volume)
        return np.stack(found, axis=1)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density in nats, shape (n,)."""
        return np.logaddexp.reduce(self.log_parts(x), axis=1)

    def affine(self, root: np.ndarray, loc: np.ndarray) -> "Mixture":
        """The law of root @ x + loc."""
        return Mixture(self.weights, self.means @ root.T + loc, root @ self.covariances @ root.T)


class Independent(NamedTuple):
    """Independent elements of a few values each.

    Attributes:
        log_chances: log probability of each value, shape (d, k).
    """

    log_chances: np.ndarray

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log probability in nats, shape (n,)."""
        return np.take_along_axis(self.log_chances, x.T.astype(int), 1).sum(0)


def independent(x: np.ndarray, num_values: int) -> Independent:
    """Frequencies of each element's values, each counted half a time more than it was seen; x of shape (n, d)."""
    counts = (x[..., None] == np.arange(num_values)).sum(0) + 0.5
    return Independent(np.log(counts / counts.sum(1, keepdims=True)))


def shrunk_gaussian(x: np.ndarray, added: float = 0.0) -> Mixture:
    """A Gaussian of mean and covariance of the examples, correlations shrunk as Ledoit and Wolf 2004 have it.

    Each element is scaled to variance 1 first, so that it keeps its own variance and units do not matter.

    Args:
        x: shape (n, d), n ≥ 2.
        added: variance of noise that the data will be given, added to each element's.
    """
    mean, variance = x.mean(0), x.var(0)
    scale = np.sqrt(np.where(variance > 0, variance, 1.0))
    z = (x - mean) / scale
    count, size = z.shape
    covariance = z.T @ z / count
    target = np.trace(covariance) / size
    distance = np.square(covariance - target * np.eye(size)).sum()
    # The mean of ‖zzᵀ − S‖² over examples, in which ‖zzᵀ‖² is ‖z‖⁴.
    noise = (np.mean(np.square(np.square(z).sum(1))) - np.square(covariance).sum()) / count
    share = 1.0 if distance <= 0 else float(np.clip(noise / distance, 1e-6, 1.0))
    shrunk = (1 - share) * covariance + share * target * np.eye(size)
    whole = shrunk * np.outer(scale, scale) + added * np.eye(size)
    return Mixture(np.ones(1), mean[None], whole[None])


def fit_mixture(
    x: np.ndarray, count: int, seed: int = 0, num_iterations: int = 100, start: Mixture | None = None
) -> Mixture:
    """A mixture by EM from centres that are spread over the examples (k-means++), or from another; `x` of shape (n, d).

    Each covariance is drawn to the one that all components have within them on average, as if by d examples more
    (Friedman 1989), and a hundredth of an example is spread as all the data are.
    """
    rng = np.random.default_rng(seed)
    size, whole = x.shape[1], shrunk_gaussian(x)
    if count == 1:
        return whole
    if start is None:
        own = whole.covariances[0] / count ** (2 / size)
        start = Mixture(np.full(count, 1 / count), _centres(rng, x, count, own), np.stack([own] * count))
    now = start
    last = -np.inf
    for _ in range(num_iterations):
        parts = now.log_parts(x)
        total = np.logaddexp.reduce(parts, axis=1)
        if total.mean() < last + 1e-5:
            break
        last = total.mean()
        share = np.exp(parts - total[:, None])
        now = _maximised(x, share, whole.covariances[0])
    return now


def _maximised(x: np.ndarray, share: np.ndarray, whole: np.ndarray) -> Mixture:
    size, mass = x.shape[1], share.sum(0) + 1e-3
    means = share.T @ x / mass[:, None]
    scatter = np.stack([((x - mean) * own[:, None]).T @ (x - mean) for mean, own in zip(means, share.T, strict=True)])
    within = (scatter.sum(0) + whole) / (len(x) + 1)
    covariances = (scatter + size * within + 0.01 * whole) / (mass + size + 0.01)[:, None, None]
    return Mixture(mass / mass.sum(), means, covariances)


def _centres(rng: np.random.Generator, x: np.ndarray, count: int, covariance: np.ndarray) -> np.ndarray:
    """Examples far from one another, in units of the covariance."""
    z = np.linalg.solve(np.linalg.cholesky(covariance), x.T).T
    chosen = [int(rng.integers(len(x)))]
    while len(chosen) < count:
        distance = np.min([np.square(z - z[i]).sum(1) for i in chosen], axis=0)
        weight = distance + 1e-12
        chosen.append(int(rng.choice(len(x), p=weight / weight.sum())))
    return x[chosen]
