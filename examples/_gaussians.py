"""Gaussian laws of flattened patches, alone and mixed: log density, and the posterior under noise, in closed form."""

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import logsumexp, softmax
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

RIDGE = 1e-2  # added to variances of 0 ... 255, a tenth of that of rounding


class Mixture:
    """A mixture of Gaussians with full covariances; one of them is the Wiener filter's law.

    Args:
        weights: shape (k,).
        means: shape (k, d).
        covariances: shape (k, d, d).
    """

    def __init__(self, weights, means, covariances):
        self.log_weights, self.means, self.covariances = np.log(weights), means, covariances

    @classmethod
    def single(cls, x):
        """The Gaussian of the mean and the covariance of x, shape (n, d)."""
        return cls(np.ones(1), x.mean(0)[None], (np.cov(x.T) + RIDGE * np.eye(x.shape[1]))[None])

    @classmethod
    def fit(cls, x, components, seed):
        """By scikit-learn's EM."""
        found = GaussianMixture(components, reg_covar=RIDGE, max_iter=30, tol=1e-2, random_state=seed).fit(x)
        return cls(found.weights_, found.means_, found.covariances_)

    def log_density(self, x, noise=0.0):
        """Log weight and density of each component, of x plus noise of this standard deviation; shape (k, n)."""
        parts = []
        for log_weight, mean, covariance in zip(self.log_weights, self.means, self.covariances, strict=True):
            factor = np.linalg.cholesky(covariance + noise**2 * np.eye(len(mean)))
            white = solve_triangular(factor, (x - mean).T, lower=True)
            constant = np.log(np.diag(factor)).sum() + 0.5 * len(mean) * np.log(2 * np.pi)
            parts.append(log_weight - constant - 0.5 * np.sum(white**2, axis=0))
        return np.stack(parts)

    def log_prob(self, x):
        """Log density, shape (n,)."""
        return logsumexp(self.log_density(x), axis=0)

    def denoise(self, y, noise):
        """Weights (k, n), means (k, n, d) and standard deviations (k, d) of the mixture p(x | y), y of shape (n, d)."""
        means, scales = [], []
        for mean, covariance in zip(self.means, self.covariances, strict=True):
            total = cho_factor(covariance + noise**2 * np.eye(len(mean)), lower=True)
            gain = cho_solve(total, covariance)
            means.append(mean + (y - mean) @ gain)
            scales.append(np.sqrt(np.diag(covariance) - np.sum(covariance * gain, axis=0)))
        return softmax(self.log_density(y, noise), axis=0), np.stack(means), np.stack(scales)


def mean(law):
    """Of a mixture as `Mixture.denoise` returns it, shape (n, d)."""
    return np.einsum("kn,knd->nd", law[0], law[1])


def below(law, x):
    """P(element < x) under such a mixture, shape (n, d): in its 90% interval where between 0.05 and 0.95."""
    weights, means, scales = law
    return sum(w[:, None] * norm.cdf((x - m) / s) for w, m, s in zip(weights, means, scales, strict=True))
