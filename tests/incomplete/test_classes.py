"""Frames of classes: codes and levels, priors that know them, and imputed cells as they were written."""

import jax
import numpy as np
import pandas as pd
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion._frames import read_classes, read_table
from numpyro_diffusion.distributions.report import PriorReport, report_from_json
from numpyro_diffusion.incomplete import row_draws

KEY = jax.random.key(0)
LISTED, SHARES = np.array([[0, 0, 1], [1, 0, 0], [2, 1, 1], [2, 1, 0]]), np.array([0.2, 0.3, 0.4, 0.1])
LEVELS = (("red", "green", "blue"), ("no", "yes"), (False, True))
# Pareto k̂ of some rows may be large by chance; what they are is checked against the law.
NOISY = pytest.mark.filterwarnings("ignore:these imputations may be wrong")
OPTIONS = {"num_particles": 32, "progress_bar": False}


def frame_of(codes):
    cells = [[None if np.isnan(c) else LEVELS[i][int(c)] for c in codes[:, i]] for i in range(3)]
    colour = pd.Categorical(cells[0], categories=["red", "green", "blue", "violet"])
    table = pd.DataFrame({"colour": colour, "answer": pd.Series(cells[1], dtype="str")})
    return table.assign(old=pd.array(cells[2], "boolean"))


def prior():
    """Of exactly the listed rows, with the record that `fit_prior` keeps."""
    diffusion = nd.CategoricalDiffusion(nd.schedules.erasing(40), [3, 2, 2], "absorbing")
    exact = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(LISTED, SHARES), 3))
    return exact.with_report(PriorReport(None, (), 4, 0, 0, (), {}, columns=("colour", "answer", "old"), levels=LEVELS))


@pytest.fixture
def few_programs(monkeypatch):
    """No row is run again with more particles, which would be two programs more."""
    monkeypatch.setattr(row_draws, "MORE", ())


def test_classes_are_read_as_codes():
    """In the order of the categories, or sorted; levels that do not occur are none; numbers stay numbers."""
    codes = np.array([[2.0, 1, 0], [0, 0, 1], [1, 1, 1]])
    read = read_classes(frame_of(codes))
    assert read.names == ("colour", "answer", "old") and read.levels == LEVELS
    np.testing.assert_array_equal(read.values, codes)
    assert read_classes(codes) is None and read_classes(pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})) is None
    mixed = read_table(pd.DataFrame({"a": ["x", None, "y"], "b": [1.5, 2.0, np.nan]}))
    assert mixed.levels == (("x", "y"), ())
    np.testing.assert_array_equal(mixed.values, [[0, 1.5], [np.nan, 2.0], [1, np.nan]])
    record = prior().report()
    assert report_from_json(record.to_json()).levels == LEVELS


BAD = {
    "dates": (lambda: read_table(pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])})), r"got others: \['a'\]"),
    "intervals": (
        lambda: read_table(pd.DataFrame({"a": pd.cut([1.0, 2.0], 2)})),
        "expected levels of strings or numbers in column 'a', got Interval",
    ),
    "unseen": (
        lambda: nd.impute(KEY, frame_of(np.array([[0, np.nan, 1.0]])).replace({"colour": {"red": "violet"}}), prior()),
        "levels that the prior has seen in column 'colour', .* got .'violet'",
    ),
    "columns": (
        lambda: nd.impute(KEY, frame_of(np.array([[0, np.nan, 1.0]])).rename(columns={"old": "new"}), prior()),
        r"table: expected the prior's columns, got none called \['old'\], and others: \['new'\]",
    ),
    "codes": (lambda: nd.impute(KEY, np.array([[3.0, np.nan, 0.0]]), prior()), "known cells on the prior's support"),
    "gaps": (
        lambda: nd.fit_prior(KEY, np.array([[0, np.nan]] * 9), family="categorical"),
        "missing cells in codes of classes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()


@NOISY
@pytest.mark.slow
def test_imputed_classes_have_their_law_and_their_levels(few_programs):
    """Given the known cells, in any order of the columns; types, index and known cells as they were."""
    codes = np.array([[np.nan, 1, 1], [2, np.nan, 1], [np.nan, 0, np.nan], [0, 0, 1], [np.nan] * 3])
    frame = frame_of(codes).set_axis(list("vwxyz"))
    found = nd.impute(KEY, frame[["old", "colour", "answer"]], prior(), 200, **OPTIONS)
    assert len(found) == 200
    for done in found[:3]:
        assert (done.dtypes == frame.dtypes[done.columns]).all() and (done.index == frame.index).all()
        assert not done.isna().any().any() and done.loc["y"].tolist() == [True, "red", "no"]
    share = lambda row, name, level: np.mean([done.loc[row, name] == level for done in found])
    assert share("v", "colour", "blue") > 0.97 and share("w", "answer", "yes") > 0.97
    joint = {("red", True): 0.4, ("green", False): 0.6}
    for (colour, old), expected in joint.items():
        seen = np.mean([done.loc["x", "colour"] == colour and done.loc["x", "old"] == old for done in found])
        assert abs(seen - expected) < 5 * np.sqrt(0.24 / 64)
    assert abs(share("z", "answer", "yes") - 0.5) < 5 * np.sqrt(0.25 / 64)


@NOISY
@pytest.mark.slow
def test_a_prior_of_a_frame_of_classes(tmp_path, few_programs):
    """K near the entropy, better than independent columns, levels kept in files, and rows completed."""
    rng = np.random.default_rng(1)
    codes = LISTED[rng.choice(4, 800, p=SHARES)].astype(float)
    network = nd.networks.MLP(jax.random.key(2), (3, 4), num_steps=8, width=32, depth=1)
    learned = nd.fit_prior(
        KEY, frame_of(codes), network=network, schedule=nd.schedules.erasing(8), max_steps=400, learning_rate=5e-3,
        progress_bar=False,
    )  # fmt: skip
    learned.save(tmp_path / "classes.safetensors")
    report = nd.load(tmp_path / "classes.safetensors").report()
    assert report.columns == ("colour", "answer", "old") and report.levels == LEVELS
    entropy = -np.sum(SHARES * np.log(SHARES))
    assert -entropy - 0.5 < report.prior.value < -entropy + 0.3
    assert report.baselines[0].name == "independent elements" and report.baselines[0].gain > 0.2
    assert learned.process.diffusion.num_classes == (3, 2, 2)
    done = nd.impute(KEY, frame_of(np.array([[np.nan, 1, 1]] * 40)), learned, 1, **OPTIONS)[0]
    assert (done["colour"] == "blue").mean() > 0.7


def test_polars_classes_are_read_and_written_as_they_were():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(
        {"a": ["x", None, "y"], "b": polars.Series(["lo", "hi", None], dtype=polars.Enum(["lo", "mid", "hi"]))}
    ).with_columns(c=polars.Series([True, None, False]), d=polars.col("a").cast(polars.Categorical))
    read = read_table(frame)
    assert read.levels == (("x", "y"), ("lo", "hi"), (False, True), ("x", "y"))
    done = read.completed(np.array([[0, 0, 1, 0], [1, 1, 1, 1], [1, 1, 0, 1.0]]))
    assert done.schema == frame.schema
    assert done.rows() == [("x", "lo", True, "x"), ("y", "hi", True, "y"), ("y", "hi", False, "y")]
