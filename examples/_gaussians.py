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
    def fit(cls, x, components, seed, ridge=RIDGE):
        """By scikit-learn's EM."""
        found = GaussianMixture(components, reg_covar=ridge, max_iter=30, tol=1e-2, random_state=seed).fit(x)
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

    def posterior(self, y, noise):
        """Means (k, n, d) and covariances (k, d, d) of x given y and the component, y of shape (n, d)."""
        means, covariances = [], []
        for mean, covariance in zip(self.means, self.covariances, strict=True):
            total = cho_factor(covariance + noise**2 * np.eye(len(mean)), lower=True)
            gain = cho_solve(total, covariance)
            means.append(mean + (y - mean) @ gain)
            covariances.append(covariance - covariance @ gain)
        return np.stack(means), np.stack(covariances)

    def denoise(self, y, noise):
        """Weights (k, n), means (k, n, d) and standard deviations (k, d) of the mixture p(x | y), y of shape (n, d)."""
        means, covariances = self.posterior(y, noise)
        scales = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
        return softmax(self.log_density(y, noise), axis=0), means, scales


class Principal:
    """A mixture in principal components: full covariances in the leading ones, diagonal in the others.

    With one component it is the Gaussian with a full covariance; with several it has k(r² / 2 + 2d) parameters in
    place of k d² / 2, and so suits whole patches.

    Args:
        x: data, shape (n, d).
        leading: r, how many principal components have full covariances.
        components: k, of the mixture.
        seed: of scikit-learn's EM in the leading ones, from which `rounds` of EM in all of them start.
        rounds: of EM.
    """

    def __init__(self, x, leading, components, seed, rounds=20):
        self.center, self.leading = x.mean(0), leading
        self.axes = np.linalg.eigh(np.cov(x.T))[1][:, ::-1]
        head, rest = self._split(x)
        start = GaussianMixture(components, reg_covar=RIDGE, max_iter=10, tol=1e-2, random_state=seed).fit(head)
        share = start.predict_proba(head).T
        for _ in range(rounds):
            self._maximise(share, head, rest)
            share = softmax(self._log_density(head, rest, 0.0), axis=0)
        self._maximise(share, head, rest)

    def log_prob(self, x):
        """Log density, shape (n,)."""
        return logsumexp(self._log_density(*self._split(x), 0.0), axis=0)

    def denoise(self, y, noise):
        """As `Mixture.denoise`."""
        head, rest = self._split(y)
        means, covariances = self.head.posterior(head, noise)
        gain = self.variances / (self.variances + noise**2)
        others = self.means[:, None] + gain[:, None] * (rest - self.means[:, None])
        first, second = self.axes[:, : self.leading], self.axes[:, self.leading :]
        variances = np.einsum("di,kij,dj->kd", first, covariances, first, optimize=True)
        scales = np.sqrt(variances + noise**2 * gain @ (second**2).T)
        weights = softmax(self._log_density(head, rest, noise), axis=0)
        return weights, self.center + means @ first.T + others @ second.T, scales

    def _split(self, x):
        z = (x - self.center) @ self.axes
        return z[:, : self.leading], z[:, self.leading :]

    def _maximise(self, share, head, rest):
        """Weights, means and (co)variances for shares of shape (k, n)."""
        total = share.sum(1)
        means = share @ head / total[:, None]
        self.means = share @ rest / total[:, None]
        self.variances = share @ rest**2 / total[:, None] - self.means**2 + RIDGE
        around = (head - mean for mean in means)
        covariances = [(s[:, None] * z).T @ z / s.sum() for s, z in zip(share, around, strict=True)]
        self.head = Mixture(total / total.sum(), means, np.stack(covariances) + RIDGE * np.eye(self.leading))

    def _log_density(self, head, rest, noise):
        total = self.variances + noise**2
        square = (1 / total) @ rest.T**2 - 2 * (self.means / total) @ rest.T + np.sum(self.means**2 / total, 1)[:, None]
        constant = np.sum(np.log(2 * np.pi * total), axis=1)[:, None]
        return self.head.log_density(head, noise) - 0.5 * (square + constant)


def mean(law):
    """Of a mixture as `Mixture.denoise` returns it, shape (n, d)."""
    return np.einsum("kn,knd->nd", law[0], law[1])


def below(law, x):
    """P(element < x) under such a mixture, shape (n, d): in its 90% interval where between 0.05 and 0.95."""
    weights, means, scales = law
    return sum(w[:, None] * norm.cdf((x - m) / s) for w, m, s in zip(weights, means, scales, strict=True))
