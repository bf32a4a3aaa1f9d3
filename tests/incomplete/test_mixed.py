"""Frames of mixed columns: kinds and levels, a learned prior beside the law of the data, and what it refuses."""

import jax
import numpy as np
import pandas as pd
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion._frames import read_classes, read_table
from numpyro_diffusion.training.mixed import check_columns
from numpyro_diffusion.training.products import fit_products

pytestmark = pytest.mark.usefixtures("small")
KEY = jax.random.key(0)
SHARES, LOCS, SCALE = np.array([0.5, 0.3, 0.2]), np.array([-1.5, 0.5, 3.0]), 0.5
NAMES = ("red", "green", "blue")


def frame(count, seed=0):
    """A class, a real number given it, a boolean given that, and a count."""
    rng = np.random.default_rng(seed)
    code = rng.choice(3, count, p=SHARES)
    x = LOCS[code] + SCALE * rng.normal(size=count)
    level = np.clip(np.round(2 + 0.8 * x + 0.7 * rng.normal(size=count)), 0, 6).astype(int)
    colour = pd.Categorical(np.array(NAMES)[code], categories=NAMES)
    return pd.DataFrame({"x": x, "colour": colour, "on": rng.random(count) < 1 / (1 + np.exp(-x)), "count": level})


def test_columns_keep_their_kinds():
    """Whole numbers beside classes are levels if they are few; a prior's columns are what they were."""
    data = frame(60).assign(many=np.arange(60), grade=pd.Categorical(["lo", "hi"] * 30, ["lo", "hi"], ordered=True))
    read = read_classes(data)
    assert read.is_mixed and read.kinds == ("real", "class", "class", "ordered", "whole", "ordered")
    low, high = data["count"].min(), data["count"].max()
    assert read.levels == ((), NAMES, (False, True), tuple(range(low, high + 1)), (), ("lo", "hi"))
    np.testing.assert_array_equal(read.values[:, 3], data["count"] - low)
    done = read.completed(read.values)
    pd.testing.assert_frame_equal(done, data)
    columns = check_columns(read)
    assert columns.num_classes.tolist() == [0, 3, 2, 0, 0, 0] and columns.num_levels[5] == 2


def test_the_mixture_of_columns_knows_the_law_of_the_data():
    """More than independent columns, whose class says nothing of x; the probabilities of levels add up."""
    train, held_out = (read_classes(frame(n, seed)) for n, seed in ((800, 0), (300, 1)))
    independent, best = fit_products(train.values, held_out.values, check_columns(train))
    gain = best.log_prob(held_out.values).mean() - independent.log_prob(held_out.values).mean()
    assert gain > 1.0 and len(best.weights) >= 3
    rows = np.repeat(held_out.values[:1], 7, 0)
    rows[:, 3] = np.arange(7)
    rows = rows[: len(train.levels[3])]
    without = np.where(np.arange(4) == 3, np.nan, rows[:1])
    as_real = best._replace(columns=best.columns._replace(num_levels=0 * best.columns.num_levels))
    assert np.exp(best.log_prob(rows)).sum() == pytest.approx(np.exp(best.log_prob(without)[0]), rel=1e-6)
    assert not np.allclose(as_real.log_prob(rows), best.log_prob(rows))


BAD = {
    "empty": (
        lambda: frame(60).assign(colour=[None] * 60, on=pd.array([None] * 60, "boolean"), a=["u", "v"] * 30),
        r"columns all missing: \['colour', 'on'\]",
    ),
    "rare": (
        lambda: frame(60).assign(colour=["pink", None] + ["red", "blue"] * 29),
        "two known cells or more of each level in column 'colour', got one of .*pink",
    ),
    "constant": (lambda: frame(60).assign(x=[1.0, np.nan] * 30), r"got constant ones: \['x'\]"),
    "one answer": (lambda: pd.DataFrame({"a": ["u", "v"] * 30, "b": ["w", None] * 30}), r"constant ones: \['b'\]"),
    "few": (lambda: frame(12), "at least 20 rows of mixed columns, got 12"),
    "few known": (
        lambda: frame(60).mask(np.tile(np.arange(60)[:, None] > 9, 4)),
        "at least 20 rows of mixed columns, got 10",
    ),
    "infinite": (lambda: frame(60).assign(x=[np.inf] + [0.5] * 59), r"infinite ones in \['x'\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_learned_from_is_refused_by_name(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        nd.fit_prior(KEY, build(), progress_bar=False)
    with pytest.raises(ValueError, match="loc: expected None for a frame of mixed columns, got 1.0"):
        nd.fit_prior(KEY, frame(60), loc=1.0)


@pytest.mark.slow
def test_a_learned_prior_and_what_it_refuses(tmp_path):
    """K near that of the mixture it begins at, draws with the data's law, and the frame's levels kept in its file.

    What it imputes has the form of what one of rows with gaps does (`test_mixed_gaps`).
    """
    prior = nd.fit_prior(KEY, frame(500), max_steps=50, progress_bar=False)
    report = prior.report()
    assert report.baselines[0].name == "independent columns" and report.baselines[0].gain > 1.0
    assert report.baselines[1].gain > -0.3 and report.columns == ("x", "colour", "on", "count")
    prior.save(tmp_path / "mixed.safetensors")
    prior = nd.load(tmp_path / "mixed.safetensors")
    draws = np.asarray(prior.sample(jax.random.key(1), (1500,)))
    data = read_classes(frame(20_000, 5)).values
    assert (abs(draws.mean(0) - data.mean(0)) < 0.15 * data.std(0) + 0.02).all()
    assert abs(np.corrcoef(draws.T) - np.corrcoef(data.T)).max() < 0.12
    unseen = frame(80, 3).assign(colour=pd.Categorical([None] * 80, categories=NAMES))
    read = read_table(unseen, dict(zip(report.columns, prior.report().levels, strict=True)))
    assert read.levels == report.levels and np.isnan(read.values).sum(0).tolist() == [0, 80, 0, 0]
    with pytest.raises(ValueError, match="levels that the prior has seen in column 'count'"):
        nd.impute(KEY, unseen.assign(count=99), prior)
    with pytest.raises(ValueError, match=r"got classes in \['x'\]"):
        nd.impute(KEY, unseen.assign(x="a"), prior)
