"""Parzen windows against plain loops and a Gaussian closed form."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from numpyro_diffusion import diagnostics


def test_parzen_is_the_mixture_of_windows():
    """Against plain loops, the bandwidth chosen on validation data, whatever the chunk."""
    rng = np.random.default_rng(0)
    samples, test, validation = (rng.normal(5, 1, (n, 2, 3)) for n in (40, 11, 7))
    widths = [0.3, 0.6, 1.5]

    def loop(x, width):
        parts = [norm.logpdf(x, sample, width).sum() for sample in samples]
        return logsumexp(parts) - np.log(len(samples))

    found = diagnostics.parzen(samples, test, validation, bandwidth=widths, chunk=4)
    scores = [np.mean([loop(x, width) for x in validation]) for width in widths]
    assert found.bandwidth == widths[np.argmax(scores)] == 0.6
    np.testing.assert_allclose(found.validation, scores, rtol=1e-4)
    expected = [loop(x, 0.6) for x in test]
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-4)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.standard_error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(11), rel=1e-3)


def test_parzen_of_many_samples_is_the_blurred_law():
    """Samples of N(0, 1) and windows of width σ give N(0, 1 + σ²), whose mean log density is known."""
    rng = np.random.default_rng(1)
    samples, test = rng.normal(size=(20_000, 1)), rng.normal(size=(2_000, 1))
    found = diagnostics.parzen(samples, test, bandwidth=0.5)
    assert found.validation.shape == (0,) and found.bandwidth == 0.5
    blurred = norm.logpdf(test[:, 0], scale=np.sqrt(1.25))
    # The estimate's own noise is of the order of 1/√(samples in a window).
    assert abs(found.value - blurred.mean()) < 4 / np.sqrt(20_000 * 0.3)
    closed = -0.5 * np.log(2 * np.pi * 1.25) - 0.5 / 1.25
    assert abs(found.value - closed) < 4 * np.hypot(found.standard_error, 1 / np.sqrt(6_000))


def test_bad_arguments_are_named():
    x = np.zeros((3, 2))
    for arguments, message in (
        ((x, x), "validation: expected data to choose among 10 bandwidths by, got None"),
        ((x, np.zeros((3, 3)), x), r"test: expected shape \(n, 2\) with n >= 1, got \(3, 3\)"),
        ((x, x, np.zeros((0, 2))), r"validation: expected shape \(n, 2\) with n >= 1, got \(0, 2\)"),
        ((np.zeros(3), x), r"samples: expected shape \(n, \*event\)"),
        ((np.full((3, 2), np.nan), x), "samples: expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            diagnostics.parzen(*arguments)
    with pytest.raises(ValueError, match="bandwidth: expected positive numbers"):
        diagnostics.parzen(x, x, bandwidth=0.0)
    with pytest.raises(ValueError, match="chunk: expected a whole number"):
        diagnostics.parzen(x, x, bandwidth=1.0, chunk=0)
