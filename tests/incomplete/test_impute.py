"""Multiple imputation: laws against a Gaussian's closed forms, and tables of every kind in and out."""

import jax
import numpy as np
import pandas as pd
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion._frames import read_table
from numpyro_diffusion.training.assemble import chain_of
from numpyro_diffusion.training.baselines import Mixture
from numpyro_diffusion.training.gaps import Rows, completed, fit_gaussian, given
from numpyro_diffusion.training.holes import parted, resampled

KEY = jax.random.key(0)
ROOT = np.array([[2.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.3, 0.9]])
MEAN = np.array([1.0, -2.0, 30.0])
LAW = Mixture(np.ones(1), MEAN[None], (ROOT @ ROOT.T)[None])
OPTIONS = {"num_particles": 16, "num_steps": 8, "progress_bar": False}


def gaussian():
    """The prior whose law is exactly LAW."""
    return chain_of(LAW, (3,))


def holes(count, seed=0):
    rng = np.random.default_rng(seed)
    x = (MEAN + rng.standard_normal((count, 3)) @ ROOT.T).round(3)
    return np.where(rng.random(x.shape) > 0.4, x, np.nan)


@pytest.mark.slow
def test_imputed_cells_have_their_law_given_the_known_ones():
    """Standardised by the exact conditional mean and covariance, draws are standard and independent across rows."""
    table = holes(60)
    table[:3] = np.nan
    found = nd.impute(KEY, table, gaussian(), 100, progress_bar=False, num_particles=128, num_steps=16)
    assert len(found) == 100
    assert not found.diagnostics.complaints
    known = ~np.isnan(table)
    law = given(MEAN, LAW.covariances[0], Rows(np.where(known, table, 0.0), known))
    draws = np.stack(found)
    np.testing.assert_array_equal(draws[:, known], np.tile(table[known], (100, 1)))
    missing = ~known
    z = ((draws - law.mean) / np.sqrt(np.where(missing, np.diagonal(law.covariance, axis1=1, axis2=2), 1.0)))[
        :, missing
    ]
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 0.05
    assert np.abs(z.mean(0)).max() < 0.6  # of each cell: 100 draws


@pytest.mark.slow
def test_frames_come_back_as_they_went_in():
    table = pd.DataFrame(holes(12), columns=["a", "b", "c"], index=[f"r{i}" for i in range(12)])
    frame = table.astype({"a": "float32"})
    frame["c"] = frame["c"].round().astype("Int64")
    prior = gaussian()
    found = nd.impute(KEY, frame, prior, 2, **OPTIONS)
    for done in found:
        assert list(done.columns) == ["a", "b", "c"]
        assert (done.dtypes == frame.dtypes).all()
        assert (done.index == frame.index).all()
        assert not done.isna().any().any()
        for name in frame:
            known = frame[name].notna()
            assert (done.loc[known, name] == frame.loc[known, name]).all()
    assert frame.isna().any().any()  # the table that was given is as it was
    assert len(found[:1]) == 1


@pytest.mark.slow
def test_columns_in_another_order_are_matched_by_name():
    prior = named(gaussian(), ("a", "b", "c"))
    frame = pd.DataFrame(holes(12), columns=["a", "b", "c"])
    straight, turned = (
        nd.impute(KEY, frame[names], prior, 2, **OPTIONS) for names in (["a", "b", "c"], ["c", "a", "b"])
    )
    assert list(turned[0].columns) == ["c", "a", "b"]
    pd.testing.assert_frame_equal(turned[1][["a", "b", "c"]], straight[1])
    with pytest.raises(ValueError, match=r"table: expected the prior's columns, got none called \['c'\], .*\['d'\]"):
        nd.impute(KEY, frame.rename(columns={"c": "d"}), prior)


@pytest.mark.parametrize("dtype", ["float64", "float32", "Float32", "Int64", "Int8"])
def test_columns_keep_their_type_and_known_cells(dtype):
    frame = pd.DataFrame({"a": pd.Series([1.0, None, 3.0]).astype(dtype), "b": [0, 1, 2]}).set_axis([5, 7, 9])
    table = read_table(frame)
    np.testing.assert_array_equal(table.values, [[1.0, 0.0], [np.nan, 1.0], [3.0, 2.0]])
    done = table.completed(np.array([[9.0, 9.0], [1.75, 9.0], [9.0, 9.0]]))
    assert (done.dtypes == frame.dtypes).all()
    assert done.index.tolist() == [5, 7, 9]
    assert done["a"].tolist() == [1.0, 2.0 if "Int" in dtype else 1.75, 3.0]
    assert done["b"].tolist() == [0, 1, 2]
    assert frame["a"].isna().tolist() == [False, True, False]


def named(prior, columns):
    """With a record that knows the columns."""
    return prior.with_report(nd.training.PriorReport(None, (), 0, 0, 0, (), {}, columns=columns))


def test_a_complete_table_is_copied():
    table = np.ones((2, 3))
    found = nd.impute(KEY, table, gaussian(), 3)
    assert len(found) == 3
    assert found[0] is not table
    np.testing.assert_array_equal(found[2], table)
    assert "imputed: 0 cells" in str(found.diagnostics)


@pytest.mark.slow
def test_few_particles_are_warned_of(capsys):
    """A prior that is nowhere near the row: the islands say so."""
    far = np.array([[np.nan, 40.0, -50.0]])
    prior = bent()
    with pytest.warns(UserWarning, match="these imputations may be wrong: in 1 of 1 rows"):
        found = nd.impute(KEY, far, prior, 2, num_particles=2, num_steps=8, progress_bar=False)
    assert found.diagnostics.unreliable.tolist() == [0]
    found.print_summary()
    assert "against: " in capsys.readouterr().out


def bent():
    """Two narrow modes far apart, which the covariance knows nothing of."""
    law = Mixture(np.full(2, 0.5), np.array([[-3.0] * 3, [3.0] * 3]), np.stack([0.01 * np.eye(3)] * 2))
    return chain_of(law, (3,))


BAD = [
    (np.array([1.0, np.nan]), {}, r"table: expected shape \(n, \*event\)"),
    (np.array([[1.0, np.nan]]), {}, r"table: expected rows of the prior's shape \(3,\), got \(2,\)"),
    (np.array([[1.0, np.nan, np.inf]]), {}, "table: expected finite values"),
    (pd.DataFrame({"a": ["x", None], "b": [1.0, 2.0]}), {}, r"table: expected columns of numbers, .*'a'"),
    (pd.DataFrame({"a": pd.array([True, None], "boolean"), "b": [1.0, 2.0]}), {}, r"table: expected columns of n.*'a'"),
    (pd.DataFrame([[1.0, np.nan]], columns=["a", "a"]), {}, r"table: expected columns of different names, got \['a'\]"),
    (pd.DataFrame({"a": []}), {}, "table: expected a frame with rows and columns"),
    (np.full((2, 3), np.nan), {"num_steps": 3, "batch_size": 4}, r"options: .* beside a prior, got \['batch_size'\]"),
    (np.full((2, 3), np.nan), {"num_imputations": 0}, "num_imputations"),
    (np.full((2, 3), np.nan), {"num_priors": 2}, "num_priors: expected None beside a prior, got 2"),
    (np.full((2, 3), np.nan), {"num_priors": 21}, "num_priors: expected at most num_imputations = 20, got 21"),
    (np.full((2, 3), np.nan), {"num_priors": 0}, "num_priors"),
    (np.full((2, 3), np.nan), {"num_particles": 1}, "num_particles"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "options", "said"), BAD)
def test_what_does_not_fit_is_refused_by_name(table, options, said):
    with pytest.raises(ValueError, match=said):
        nd.impute(KEY, table, gaussian(), **options)


def test_other_things_than_tables_and_priors_are_refused():
    with pytest.raises(TypeError, match="table"):
        nd.impute(KEY, np.ma.masked_invalid([[1.0, np.nan, 2.0]]), gaussian())
    with pytest.raises(TypeError, match="prior: expected a DiffusionPrior, got str"):
        nd.impute(KEY, holes(3), "gaussian")


@pytest.mark.slow
def test_polars_frames_come_back_as_they_went_in():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1.0, None, 2.0], "b": [None, -2.0, -1.5], "c": [30, None, 31]})
    done = nd.impute(KEY, frame, gaussian(), 1, **OPTIONS)[0]
    assert done.schema == frame.schema
    assert done.null_count().sum_horizontal().item() == 0
    assert done["a"][0] == 1.0
    assert done["c"][2] == 31


@pytest.mark.slow
def test_priors_of_rows_drawn_again_show_what_few_rows_leave_open():
    """A mean of 18 rows differs between tables as it does by exact draws of bootstrapped laws.

    With one prior they differ too little, by the noise of the missing cells alone.
    """
    rng = np.random.default_rng(3)
    x = MEAN + rng.standard_normal((18, 3)) @ ROOT.T
    known = np.column_stack([np.arange(18) % 3 == 0, np.ones((18, 2), bool)])
    table, rows = np.where(known, x, np.nan), Rows(np.where(known, x, 0.0), known)
    mean = lambda done: done[:, 0].mean()
    effort = {"num_particles": 64, "num_steps": 16, "progress_bar": False}
    several, one = (nd.impute(KEY, table, None, 60, num_priors=count, **effort) for count in (60, 1))
    assert len(several.priors) == 60 and several.diagnostics.num_priors == 60 and len(one.priors) == 1
    laws = [fit_gaussian(resampled(rng, rows)) for _ in range(1_000)]
    spread = np.std([mean(completed(rng, law, rows)) for law in laws])
    # The standard error of a standard deviation of 60 normal numbers is 9% of it.
    assert abs(np.log(np.std([mean(done) for done in several]) / spread)) < 0.36
    law = fit_gaussian(rows)
    alone = np.std([mean(completed(rng, law, rows)) for _ in range(2_000)])
    assert alone < 0.7 * spread and abs(np.log(np.std([mean(done) for done in one]) / alone)) < 0.36


@pytest.mark.slow
def test_priors_take_turns_and_their_training_goes_on_where_it_was(tmp_path):
    """The imputations of each prior are those by it alone, whether or not the table is a frame."""
    frame = pd.DataFrame(holes(30), columns=["a", "b", "c"])
    network = nd.networks.MLP(KEY, (3,), num_steps=8, width=8, depth=1)  # without candidates, of which each compiles
    options = {"network": network, "schedule": nd.schedules.log_snr(8), "max_steps": 20, **OPTIONS}
    found = nd.impute(KEY, frame, None, 5, num_priors=2, checkpoint=tmp_path / "run", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.prior0", "run.prior1"]
    again = nd.impute(KEY, frame, None, 5, num_priors=2, checkpoint=tmp_path / "run", **options)
    for mine, theirs in zip(found, again, strict=True):
        pd.testing.assert_frame_equal(mine, theirs)
    assert found.prior is found.priors[0] and "by each of 2 priors" in str(found.diagnostics)
    first, second = (np.asarray(prior.sample(KEY, (2_000,))).mean(0) for prior in found.priors)
    assert abs(first - second).max() > 0.1  # of different rows


def test_rows_drawn_again_are_those_to_train_on_and_vary_in_every_column():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.arange(40.0), np.arange(40) == 7])
    rows = Rows(x, np.ones((40, 2), bool))
    for _ in range(50):
        train, out = parted(rng, rows, resample=True)
        assert len(train.x) == 30 and len(set(train.x[:, 0])) < 30
        assert not set(train.x[:, 0]) & set(out.x[:, 0])
        assert 7.0 in out.x[:, 0] or 7.0 in train.x[:, 0]  # drawn again until it is there
    same = Rows(np.ones((5, 1)), np.ones((5, 1), bool))
    np.testing.assert_array_equal(resampled(rng, same).x, same.x)


def test_complete_data_are_not_drawn_again():
    with pytest.raises(ValueError, match="resample: expected False for data without missing cells, got True"):
        nd.fit_prior(KEY, np.random.default_rng(0).normal(size=(30, 2)), resample=True)


def test_rubins_rules():
    """By hand: three estimates of two numbers."""
    found = nd.pool([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]], [[0.5, 0.1], [0.5, 0.1], [0.8, 0.4]])
    np.testing.assert_allclose(found.mean, [2.0, 5.0])
    np.testing.assert_allclose(found.variance, [0.6 + 4 / 3, 0.2])
    np.testing.assert_allclose(found.missing, [(4 / 3) / (0.6 + 4 / 3), 0.0])
    np.testing.assert_allclose(found.degrees, [2 / found.missing[0] ** 2, np.inf])


@pytest.mark.parametrize(
    ("estimates", "variances", "said"),
    [
        ([1.0], [1.0], "estimates: expected shape"),
        ([1.0, 2.0], [1.0], "variances: expected the shape"),
        ([1.0, np.nan], [1.0, 1.0], "estimates: expected finite"),
        ([1.0, 2.0], [1.0, -1.0], "variances: expected finite"),
    ],
)
def test_what_cannot_be_pooled_is_refused(estimates, variances, said):
    with pytest.raises(ValueError, match=said):
        nd.pool(estimates, variances)
