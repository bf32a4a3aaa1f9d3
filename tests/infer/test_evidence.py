"""The error of a log evidence: calibrated where islands agree, honest where they do not."""

import numpy as np
import pytest
from scipy.special import logsumexp

from numpyro_diffusion.infer.evidence import evidence_error, weight_variance


def simulate(num_islands, sd, runs=20_000):
    """Log evidences of lognormal islands with mean evidence 1, and the errors of their log mean exp."""
    each = np.random.default_rng(0).normal(-(sd**2) / 2, sd, (runs, num_islands))
    return each, logsumexp(each, axis=1) - np.log(num_islands)


@pytest.mark.parametrize("num_islands", [4, 8, 16])
@pytest.mark.parametrize("sd", [0.02, 0.3])
def test_errors_in_its_units_have_unit_variance(num_islands, sd):
    each, error = simulate(num_islands, sd)
    scores = error / np.array([evidence_error(logs) for logs in each])
    assert abs(scores.std() - 1) < 0.1
    assert abs(np.mean(np.abs(scores) < 2) - 0.95) < 0.015


@pytest.mark.parametrize("num_islands", [2, 3])
def test_of_two_and_three_islands_two_errors_cover_95_of_100(num_islands):
    each, error = simulate(num_islands, 0.2)
    scores = error / np.array([evidence_error(logs) for logs in each])
    assert np.isfinite(scores).all()
    assert abs(np.mean(np.abs(scores) < 1.96) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / len(scores)) + 0.003


@pytest.mark.parametrize("num_islands", [2, 4, 8])
def test_it_does_not_saturate(num_islands):
    """The delta method is at most 1 nat; errors of islands 4 nats apart are more."""
    each, error = simulate(num_islands, 4.0, 2000)
    errors = np.array([evidence_error(logs) for logs in each])
    assert np.median(errors) > 2.5
    assert np.mean(np.abs(error) < 2 * errors) > 0.75


def test_small_and_large_spreads_have_their_limits():
    logs = np.array([-1.0, 1.0, 2.0, -2.0, 0.5])
    small, sd = 1e-6 * logs, np.std(logs, ddof=1)
    np.testing.assert_allclose(evidence_error(small), 1e-6 * sd / np.sqrt(5) * np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(evidence_error(1000 * logs), 1000 * sd * np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(evidence_error(logs - 1e3), evidence_error(logs), rtol=1e-9)
    wide = logs * np.sqrt(np.array([39.999, 40.001])[:, None]) / sd  # where one expression takes over from the other
    np.testing.assert_allclose(evidence_error(wide[0]), evidence_error(wide[1]), rtol=1e-4)


def test_what_has_no_error():
    assert np.isnan(evidence_error(np.array([-3.0])))
    assert np.isnan(evidence_error(np.array([-3.0, np.nan, 1.0])))
    assert evidence_error(np.array([-3.0, -np.inf])) == np.inf
    assert evidence_error(np.full(4, -7.0)) == 0


@pytest.mark.parametrize("known", [0.02**2, 2 * 0.02**2, 4 * 0.02**2])
def test_what_weights_say_makes_the_error_steady(known):
    """Where it is right within a factor of two to four, errors far too small are rarer than of four islands."""
    each, error = simulate(4, 0.02)
    alone = np.array([evidence_error(logs) for logs in each])
    pooled = np.array([evidence_error(logs, known) for logs in each])
    assert 0.6 < (error / pooled).std() < 1.2
    assert np.mean(np.abs(error / pooled) > 4) < 0.5 * np.mean(np.abs(error / alone) > 4)


def test_what_weights_say_counts_nothing_where_islands_are_far_apart():
    logs = np.array([-1.0, 0.5, 0.0, 0.7])
    variance = np.var(logs, ddof=1)
    assert evidence_error(logs, 0.49 * variance) == evidence_error(logs)
    assert evidence_error(logs, 0.51 * variance) < evidence_error(logs)
    assert evidence_error(np.full(4, -7.0), 0.0) == 0
    assert np.isnan(evidence_error(np.array([-3.0]), 0.1))


def test_the_variance_of_weights():
    """Of the mean of independent weights it is their squared coefficient of variation; resampled ones add up."""
    rng = np.random.default_rng(0)
    weight = np.exp(0.6 * rng.normal(size=(20_000, 64)))
    size = weight.sum(1) ** 2 / (weight**2).sum(1)
    each = np.log(weight.mean(1))
    found = weight_variance(size[:, None], 64, 0.5)
    np.testing.assert_allclose(found.mean(), each.var(), rtol=0.05)
    # 20 of 64 are resampled, 40 of 64 are not, and count only at the end.
    expected = (64 / 20 - 1 + 64 / 50 - 1) / 64
    np.testing.assert_allclose(weight_variance([40.0, 20.0, 40.0, 50.0], 64, 0.5), expected)
    assert weight_variance([64.0, 64.0], 64, 0.5) == 0
