"""Simple models of rows with missing cells: closed forms against those of each row by itself."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from numpyro_diffusion.training.baselines import Mixture
from numpyro_diffusion.training.gaps import Rows, completed, fit_gaussian, fit_mixture_of_rows, known_log_prob

ROOT = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.3, 0.9]])
MEAN = np.array([1.0, -2.0, 30.0])
LAW = Mixture(
    np.array([0.3, 0.7]), np.stack([MEAN, MEAN + [4.0, 0.0, -3.0]]), np.stack([ROOT @ ROOT.T, 0.5 * np.eye(3)])
)


def rows(count, law, missing=0.3):
    rng = np.random.default_rng(0)
    part = rng.choice(len(law.weights), count, p=law.weights)
    roots = np.linalg.cholesky(law.covariances)[part]
    x = law.means[part] + np.einsum("nij,nj->ni", roots, rng.standard_normal((count, 3)))
    known = rng.random(x.shape) > missing
    known[~known.any(1), 0] = True
    return Rows(np.where(known, x, 0.0), known)


def test_the_density_of_known_cells_is_that_of_their_marginal():
    some = rows(50, LAW, 0.5)
    wanted = []
    for x, known in zip(*some, strict=True):
        parts = [
            np.log(weight) + multivariate_normal(mean[known], covariance[np.ix_(known, known)]).logpdf(x[known])
            for weight, mean, covariance in zip(*LAW, strict=True)
        ]
        wanted.append(np.logaddexp.reduce(parts))
    np.testing.assert_allclose(known_log_prob(LAW, some), wanted, rtol=1e-9)


def test_completions_have_the_law_of_the_missing_cells():
    """Of one row, known in its last cell alone: mean and covariance by the mixture's own draws near that value."""
    count = 40_000
    known = np.tile([False, False, True], (count, 1))
    found = completed(np.random.default_rng(1), LAW, Rows(np.tile([0.0, 0.0, 28.5], (count, 1)), known))
    np.testing.assert_array_equal(found[:, 2], 28.5)
    last = np.array(
        [multivariate_normal(m[2], c[2, 2]).pdf(28.5) for m, c in zip(LAW.means, LAW.covariances, strict=True)]
    )
    share = LAW.weights * last / (LAW.weights * last).sum()
    means, covariances = [], []
    for mean, c in zip(LAW.means, LAW.covariances, strict=True):
        means.append(mean[:2] + c[:2, 2] / c[2, 2] * (28.5 - mean[2]))
        covariances.append(c[:2, :2] - np.outer(c[:2, 2], c[:2, 2]) / c[2, 2])
    mean = share @ np.array(means)
    second = np.einsum("k,kij->ij", share, np.array(covariances) + np.einsum("ki,kj->kij", means, means))
    covariance = second - np.outer(mean, mean)
    np.testing.assert_allclose(found[:, :2].mean(0), mean, atol=5 * np.sqrt(np.diag(covariance).max() / count))
    np.testing.assert_allclose(np.cov(found[:, :2].T), covariance, atol=0.12)


def test_the_gaussian_is_where_the_likelihood_is_greatest():
    """No step away from it, in mean or covariance, makes the known cells likelier, but for the shrinkage of 3/n."""
    some = rows(3000, Mixture(np.ones(1), MEAN[None], (ROOT @ ROOT.T)[None]))
    law = fit_gaussian(some)
    best = known_log_prob(law, some).mean()
    for step in 0.03 * np.vstack([np.eye(3), -np.eye(3)]):
        assert known_log_prob(law._replace(means=law.means + step), some).mean() < best
        twisted = law.covariances + np.outer(step, step[::-1])[None] + np.outer(step, step[::-1]).T[None]
        assert known_log_prob(law._replace(covariances=twisted), some).mean() < best + 1e-5
    error = np.sqrt(np.diag(ROOT @ ROOT.T) / (0.7 * 3000))
    assert (np.abs(law.means[0] - MEAN) < 4 * error).all()
    np.testing.assert_allclose(law.covariances[0], ROOT @ ROOT.T, atol=0.12)


def test_the_mixture_comes_near_the_true_one():
    some = rows(3000, LAW)
    start = LAW._replace(weights=np.full(2, 0.5), means=LAW.means + 0.5, covariances=2 * LAW.covariances)
    law = fit_mixture_of_rows(some, start)
    assert known_log_prob(law, some).mean() > known_log_prob(LAW, some).mean() - 0.01
    np.testing.assert_allclose(law.weights, LAW.weights, atol=0.05)
    assert known_log_prob(law, some).mean() > known_log_prob(fit_gaussian(some), some).mean() + 0.1


@pytest.mark.parametrize("count", [1, 5000])
def test_blocks_change_nothing(count, monkeypatch):
    some = rows(40, LAW)
    whole = known_log_prob(LAW, some)
    monkeypatch.setattr("numpyro_diffusion.training.gaps.LARGEST_BLOCK", 9 * count)
    np.testing.assert_allclose(known_log_prob(LAW, some), whole, rtol=1e-12)
