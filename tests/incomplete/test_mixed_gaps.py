"""Frames of mixed columns, and of classes, with missing cells: learned from as they are, and completed."""

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.incomplete import row_draws
from numpyro_diffusion.training import DroppedRowsWarning, posterior_draws

pytestmark = pytest.mark.usefixtures("small")
KEY = jax.random.key(0)
SHARES, NAMES = np.array([0.5, 0.3, 0.2]), ("red", "green", "blue")
# Given the colour all columns are independent: a number, a count of 0 to 5, income in whole units, a boolean.
LOCS = np.array([[-1.5, 1.0, 30.0], [0.5, 2.5, 45.0], [3.0, 4.0, 50.0]])
SCALES = np.array([0.6, 0.8, 6.0])
ON = np.array([0.9, 0.5, 0.15])
COLUMNS = ["x", "count", "income", "on", "colour"]


def rows(count, rng):
    code = rng.choice(3, count, p=SHARES)
    x = LOCS[code] + SCALES * rng.normal(size=(count, 3))
    x[:, 1], x[:, 2] = np.clip(np.round(x[:, 1]), 0, 5), np.round(x[:, 2])
    return np.column_stack([x, rng.random(count) < ON[code], code])


def frame_of(cells, known):
    """With every kind of column that has a missing value of its own, and an index of words."""
    hidden = pd.DataFrame(np.where(known, cells, np.nan), columns=COLUMNS)
    colour = hidden["colour"].map(dict(enumerate(NAMES)))
    frame = hidden.astype({"count": "Int64", "on": "boolean"})
    return frame.assign(colour=pd.Categorical(colour, categories=NAMES)).set_index("r" + hidden.index.astype(str))


def shares_given(cells, known):
    """Of each colour given a row's known cells; *exact*."""
    z = (cells[:, None, :3] - LOCS) / SCALES
    mass = norm.cdf(np.where(cells[:, None, 1] >= 5, np.inf, z[..., 1] + 0.5 / SCALES[1])) - norm.cdf(
        np.where(cells[:, None, 1] <= 0, -np.inf, z[..., 1] - 0.5 / SCALES[1])
    )
    on = np.where(cells[:, None, 3] > 0, ON, 1 - ON)
    colour = 1.0 * (cells[:, None, 4] == np.arange(3))
    each = np.stack([norm.pdf(z[..., 0]), mass, norm.pdf(z[..., 2]), on, colour], axis=-1)
    product = SHARES * np.where(known[:, None], each, 1.0).prod(-1)
    return product / product.sum(1, keepdims=True)


def means_given(cells, known):
    """Of number, count, income and boolean; *exact* but for the rounding of income."""
    level = np.arange(6)
    low, high = np.where(level > 0, level - 0.5, -np.inf), np.where(level < 5, level + 0.5, np.inf)
    mass = norm.cdf(high, LOCS[:, 1:2], SCALES[1]) - norm.cdf(low, LOCS[:, 1:2], SCALES[1])
    return shares_given(cells, known) @ np.column_stack([LOCS[:, 0], mass @ level, LOCS[:, 2], ON])


@pytest.mark.slow
def test_a_mixed_frame_with_holes_is_completed_by_its_law(monkeypatch, tmp_path):
    """Learned from 300 rows, of which one in seven is complete; what is known and all types are as they were.

    The frame that is completed has its columns in another order, and the prior has been in a file.
    """
    rng = np.random.default_rng(1)
    cells = rows(300, rng)
    known = rng.random(cells.shape) > 0.3
    known[~known.any(1), 0] = True
    frame = frame_of(cells, known)
    monkeypatch.setattr(posterior_draws, "BUDGET", 300_000)  # fewer particles while it learns
    prior = nd.fit_prior(KEY, frame, max_steps=50, progress_bar=False)
    report = prior.report()
    assert f"missing: {(~known).sum()} of 1500 cells" in str(report) and report.columns == tuple(COLUMNS)
    assert report.prior.value == max(report.laps["score"]) and not report.is_worse
    assert report.baselines[0].name == "independent columns" and report.baselines[0].gain > 0.5
    some, own, truth = frame[:60], known[:60], cells[:60]
    prior.save(tmp_path / "mixed.safetensors")
    prior, turned = nd.load(tmp_path / "mixed.safetensors"), some[COLUMNS[::-1]]
    found = nd.impute(jax.random.key(2), turned, prior, 40, num_particles=128, num_steps=32, progress_bar=False)
    for done in found[:3]:
        assert (done.dtypes == turned.dtypes).all() and (done.index == some.index).all() and not done.isna().any().any()
    draws = np.stack([done.assign(colour=done["colour"].cat.codes)[COLUMNS].to_numpy(float) for done in found])
    assert (draws[:, own] == truth[own]).all()
    gone = ~own[:, 4]
    shares = np.stack([(draws[:, gone, 4] == code).mean(0) for code in range(3)], axis=1)
    apart = shares - shares_given(truth, own)[gone]
    assert np.abs(apart).mean() < 0.1 and np.abs(apart.mean(0)).max() < 0.1
    off = (draws[..., :4].mean(0) - means_given(truth, own)) / cells[:, :4].std(0)
    for i in range(4):
        assert np.abs(off[~own[:, i], i]).mean() < 0.3 and np.abs(off[~own[:, i], i].mean()) < 0.3


LISTED, ODDS = np.array([[0, 0, 1], [1, 0, 0], [2, 1, 1], [2, 1, 0]]), np.array([0.2, 0.3, 0.4, 0.1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:these imputations may be wrong")  # k̂ of weights of few values is noise
def test_a_frame_of_classes_with_holes_is_completed(monkeypatch):
    """With a row that says nothing: shares by enumeration of the four kinds of rows that there are."""
    rng = np.random.default_rng(4)
    codes = LISTED[rng.choice(4, 300, p=ODDS)]
    known = rng.random(codes.shape) > 0.3
    known[~known.any(1), 0] = True
    known[7] = False
    pick = lambda i, levels: [levels[c] if k else None for c, k in zip(codes[:, i], known[:, i], strict=True)]
    frame = pd.DataFrame({"a": pick(0, "rgb"), "b": pick(1, ("no", "yes")), "c": pick(2, (False, True))})
    monkeypatch.setattr(posterior_draws, "BUDGET", 300_000)  # fewer particles while it learns
    with pytest.warns(DroppedRowsWarning, match="1 of 300 rows"):
        prior = nd.fit_prior(KEY, frame, max_steps=50, progress_bar=False)
    assert prior.process.diffusion.description()["family"] == "mixed"
    monkeypatch.setattr(row_draws, "MORE", ())  # k̂ would have most rows run again, with many more particles
    frame, codes, known = frame[:100], codes[:100], known[:100]
    found = nd.impute(KEY, frame, prior, 30, num_particles=64, num_steps=32, progress_bar=False)
    fits = ((codes[:, None] == LISTED) | ~known[:, None]).all(-1) * ODDS
    shares = fits / fits.sum(1, keepdims=True)
    draws = np.stack([np.column_stack([done["a"].map("rgb".index), done["b"] == "yes", done["c"]]) for done in found])
    assert (found[0].dtypes == frame.dtypes).all() and (draws[:, known] == codes[known]).all()
    for i, values in enumerate((3, 2, 2)):
        gone = ~known[:, i]
        seen = np.stack([(draws[:, gone, i] == value).mean(0) for value in range(values)], axis=1)
        wanted = np.stack([shares[gone] @ (LISTED[:, i] == value) for value in range(values)], axis=1)
        assert np.abs(seen - wanted).mean() < 0.15 and np.abs((seen - wanted).mean(0)).max() < 0.1
