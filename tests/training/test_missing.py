"""A prior from rows with missing cells."""

import jax
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training import DroppedRowsWarning, posterior_draws

pytestmark = pytest.mark.usefixtures("small")
KEY = jax.random.key(0)


def curve(count, seed):
    """Points about a curve, and the same with 30% of the cells missing."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-1.5, 1.5, count)
    x = np.stack([t, np.sin(2 * t), t**2], 1) + 0.1 * rng.standard_normal((count, 3))
    known = rng.random(x.shape) > 0.3
    known[~known.any(1), 0] = True
    return x, np.where(known, x, np.nan)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.where(np.eye(4, dtype=bool), np.nan, 1.0)[:, :0], r"data: expected shape \(n, \*event\)"),
        (np.array([[1.0, np.nan], [2.0, np.nan], [3.0, np.nan]]), r"data: .* columns all missing at \[1\]"),
        (np.array([[1.0, 2.0], [1.0, np.nan], [1.0, 3.0]]), r"data: expected every element to vary, .* at \[0\]"),
        (np.array([[1.0, 0.0], [0.0, np.nan], [1.0, 1.0]]), r"data: expected real values where cells are missing"),
        (np.array([[1.0, np.inf], [0.5, np.nan], [1.0, 1.0]]), r"data: expected finite values, and NaN"),
        (np.full((3, 300), np.nan), r"data: expected at most 256 elements"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_by_name(data, said):
    with pytest.raises(ValueError, match=said):
        nd.fit_prior(KEY, data, progress_bar=False)


def test_masked_arrays_are_refused():
    data = np.ma.masked_invalid([[1.0, np.nan], [2.0, 3.0]])
    with pytest.raises(TypeError, match="data"):
        nd.fit_prior(KEY, data, progress_bar=False)


def test_few_rows_make_a_gaussian_and_empty_ones_are_dropped():
    data = np.random.default_rng(0).standard_normal((15, 2))
    data[2, 0] = np.nan
    data[7] = np.nan
    with pytest.warns(DroppedRowsWarning, match="1 of 15 rows"):
        prior = nd.fit_prior(KEY, data, progress_bar=False)
    said = str(prior.report())
    assert "missing: 1 of 28 cells" in said
    assert "1 rows without a known cell" in said


@pytest.mark.slow
def test_a_prior_of_incomplete_rows(tmp_path, monkeypatch):
    """Better than a Gaussian on rows never seen, known in full; resumed to the same; files keep the record."""
    monkeypatch.setattr(posterior_draws, "BUDGET", 100_000)  # fewer particles and steps
    _, data = curve(150, 1)
    options = {"max_steps": 100, "progress_bar": False, "checkpoint": tmp_path / "laps"}
    prior = nd.fit_prior(KEY, data, **options)
    report = prior.report()
    assert not report.is_worse
    assert report.baselines[0].name == "Gaussian"
    assert report.baselines[0].gain > 4 * report.baselines[0].gain_error
    scores = report.laps["score"]
    assert report.prior.value == max(scores)
    assert len(scores) == 1 + 8 or max(scores[-2:]) < max(scores[:-2]) + 0.01  # two laps in turn were hardly better
    assert f"missing: {np.isnan(data).sum()} of 450 cells" in str(report)
    assert "laps: " in str(report)
    x, _ = curve(300, 2)
    complete = data[~np.isnan(data).any(1)]
    gaussian = np.cov(complete.T), complete.mean(0)
    residual = x - gaussian[1]
    square = np.einsum("ni,ij,nj->n", residual, np.linalg.inv(gaussian[0]), residual)
    alone = -0.5 * (square + np.linalg.slogdet(2 * np.pi * gaussian[0])[1])
    assert float(np.mean(prior.log_prob(x))) > alone.mean() + 0.5
    again = nd.fit_prior(KEY, data, **options)
    np.testing.assert_array_equal(again.sample(KEY, (3,)), prior.sample(KEY, (3,)))
    prior.save(tmp_path / "prior")
    assert nd.load(tmp_path / "prior").report().laps == report.laps
