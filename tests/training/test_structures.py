"""What held-out examples choose of a table: bounds, structures of the covariance, and which examples are held out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training import (
    baselines,
    bounds,
    covariances,
    fit_prior,
    holding_out,
    placing,
    plan_prior,
    tables,
)

pytestmark = pytest.mark.usefixtures("small")
KEY = jax.random.key(0)
ROOT = np.array([[0.8, 0.0, 0.0], [0.5, 0.6, 0.0], [0.3, -0.4, 0.9]])


def _skewed(count, seed):
    """exp z_0, σ(2 z_1) and z_2 of a correlated Gaussian, and their exact log densities."""
    z = np.random.default_rng(seed).normal(size=(count, 3)) @ ROOT.T
    x = np.stack([np.exp(z[:, 0]), 1 / (1 + np.exp(-2 * z[:, 1])), z[:, 2]], 1)
    exact = baselines.Mixture(np.ones(1), np.zeros((1, 3)), (ROOT @ ROOT.T)[None]).log_prob(z)
    return x, exact - z[:, 0] - np.log(2 * x[:, 1] * (1 - x[:, 1]))


def test_skewed_and_bounded_elements_are_found():
    x, exact = _skewed(800, 0)
    found, reasons = bounds.proposed_bounds(x, 0.0)
    assert found is not None and found.low.tolist() == [0, 0, -np.inf] and found.high.tolist() == [np.inf, 1, np.inf]
    assert "log of element 0" in reasons[0] and "logit of element 1" in reasons[0]
    own = baselines.shrunk_gaussian(found.free(x))
    gap = exact - bounds.Pushed(own, found).log_prob(x)
    assert abs(gap.mean()) < 0.05 and (exact - baselines.shrunk_gaussian(x).log_prob(x)).mean() > 0.3
    rng = np.random.default_rng(1)
    assert bounds.proposed_bounds(rng.normal(size=(300, 2)) + 50, 0.0) == (None, ())
    counts = rng.poisson(np.exp(rng.normal(size=(300, 1)) + 1)).astype(float)
    steps, _ = bounds.proposed_bounds(counts, 1.0)
    assert steps is not None and steps.low[0] == -1 and steps.high[0] == np.inf


def test_bounds_are_taken_as_given_or_refused_by_name():
    x, _ = _skewed(60, 2)
    plan = plan_prior(KEY, x, bounds=([0.0, 0.0, -np.inf], np.inf))
    assert plan.bounds is not None and plan.bounds_given and "(given)" in str(plan)
    assert plan_prior(KEY, np.exp(x), bounds=(-np.inf, np.inf)).bounds is None
    few = fit_prior(KEY, x[:15], bounds=([0, 0, -np.inf], [np.inf, 1, np.inf]), progress_bar=False)
    assert bool(jnp.all(few.support(few.sample(KEY, (50,)))))
    for given, error, match in (
        (0.0, TypeError, "bounds: expected a pair"),
        ((0.0, 0.5), ValueError, "bounds: expected data between them, got some on or beyond them in element"),
        ((np.zeros(2), 1.0), ValueError, r"bounds: expected shapes that broadcast to \(3,\)"),
        ((1.0, 0.0), ValueError, "bounds: expected lower bounds below"),
        ((np.nan, 0.0), ValueError, "bounds: expected numbers"),
    ):
        with pytest.raises(error, match=match):
            plan_prior(KEY, x, bounds=given)
    with pytest.raises(ValueError, match="bounds: expected None but for tables"):
        plan_prior(KEY, np.eye(6), bounds=(-1.0, 2.0))
    with pytest.raises(ValueError, match="bounds: expected None with missing cells or a context"):
        fit_prior(KEY, np.where(np.arange(3) == 1, np.nan, x), bounds=(0.0, 1.0))


def test_structured_covariances_are_nearer_where_they_are_true():
    """Few factors with more columns than rows, and a stationary series; the structure is found on held-out rows."""
    rng = np.random.default_rng(3)
    factors = rng.normal(size=(2, 60))
    wide = rng.normal(size=(60, 2)) @ factors + 0.3 * rng.normal(size=(60, 60))
    truth = baselines.Mixture(np.ones(1), np.zeros((1, 60)), (factors.T @ factors + 0.09 * np.eye(60))[None])
    lag = np.abs(np.subtract.outer(np.arange(32), np.arange(32)))
    series_truth = baselines.Mixture(np.ones(1), np.full((1, 32), 5.0), 0.9 ** lag[None])
    series = 5 + rng.normal(size=(60, 32)) @ np.linalg.cholesky(0.9**lag).T
    for x, law, expected in ((wide, truth, "of rank"), (series, series_truth, "stationary")):
        name, found = covariances.chosen_structure(x[15:], x[:15], 0.0, x.shape[1:])
        fresh = law.means[0] + rng.normal(size=(500, x.shape[1])) @ np.linalg.cholesky(law.covariances[0]).T
        loss, shrunk = (
            (law.log_prob(fresh) - each.log_prob(fresh)).mean() for each in (found, baselines.shrunk_gaussian(x[15:]))
        )
        assert name.startswith(expected) and loss < shrunk - 1, (name, loss, shrunk)
    basis = covariances.cosines((4, 3, 2))
    np.testing.assert_allclose(basis @ basis.T, np.eye(24), atol=1e-12)


def test_windows_that_overlap_are_held_out_in_blocks():
    series = np.random.default_rng(0).normal(size=500)
    windows = np.stack([series[i : i + 12] for i in range(0, 480, 2)])
    assert holding_out.window_shift(windows) == 2 and holding_out.independent_rows(windows) == 40
    train, out, (said,) = holding_out.held_out_rows(KEY, windows, 0.1)
    assert "moved by 2" in said and len(out) >= 20 and len(train) > 150
    assert np.abs(np.subtract.outer(train, out)).min() >= 6  # nothing is in both
    assert not set(windows[train].ravel()) & set(windows[out].ravel())
    rows = np.random.default_rng(1).normal(size=(100, 5))
    assert holding_out.window_shift(rows) == 0 and holding_out.held_out_rows(KEY, rows, 0.1)[2] == ()
    plan = plan_prior(KEY, np.stack([series[i : i + 24] for i in range(150)]))
    assert plan.max_steps == 0 and "windows of which only 7 share nothing" in str(plan)


@pytest.mark.slow
def test_steps_are_placed_and_as_many_as_the_baseline_needs():
    """Correlated elements in elementwise coordinates lose; in whitened ones a Gaussian does not."""
    root = np.array([[1.0, 0.0, 0.0], [0.99, 0.1, 0.0], [0.0, 0.0, 1.0]])
    x = np.random.default_rng(0).normal(size=(200, 3)) @ root.T
    data = tables.table(x[40:], x[:40], 0.0)._replace(mixture=tables.table(x, x[:0], 0.0).gaussian)
    tried = tables.candidates(KEY, data, 4, (3,))
    placed, said = placing.with_placed_steps(KEY, tried, data)
    assert "placed where" in said and [c.name for c in placed] == [c.name for c in tried]
    counts = {c.process.num_steps for c in placed}
    assert len(counts) == 1 and counts <= set(placing.MORE_TIMES)
    chosen, count = placed[1], counts.pop()  # elementwise
    z, scale = chosen.latent(data.held_out), np.diagonal(np.asarray(chosen.root.scale_tril, np.float64))
    exact = data.gaussian.log_prob(data.held_out) + np.log(scale).sum()
    first, last = chosen.process.diffusion.schedule.log_snr(jnp.array([1.0, float(count)]))
    even = chosen.of_schedule(nd.schedules.log_snr(count, float(last), float(first)))
    bound = lambda made: np.asarray(nd.KBound(64, low_discrepancy=True)(KEY, made.process, z).value, np.float64)
    lost, lost_evenly = ((exact - bound(made)).mean() for made in (chosen, even))
    assert 0 < lost < placing.LEAST_LOSS and lost_evenly > 1.5 * lost


def test_a_schedule_of_ones_own_keeps_coordinates_and_baseline():
    x = np.random.default_rng(0).normal(size=(100, 2)) @ np.array([[1.0, 0.0], [0.9, 0.3]]).T
    schedule = nd.schedules.log_snr(12, -8.0, 6.0)
    plan = plan_prior(KEY, x, schedule=schedule)
    assert plan.is_table and plan.transform is not None and "schedule: 12 steps, log-SNR 6 to -8 (given)" in str(plan)
    few = plan_prior(KEY, x[:10], schedule=schedule)
    assert few.max_steps == 0 and few.process.diffusion.schedule is schedule
    learned = plan_prior(KEY, x, schedule=nd.schedules.learned(12))
    assert not learned.is_table


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_a_prior_of_ones_own_schedule_is_no_worse_than_a_gaussian(missing):
    """Complete, and where the start may be all that is left of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2)) @ np.array([[1.0, 0.0], [0.99, 0.1]]).T
    x = np.where(missing & (rng.random(x.shape) < 0.2), np.nan, x)
    schedule = nd.schedules.log_snr(32, -8.0, 8.0)
    prior = fit_prior(KEY, x[np.isfinite(x).any(1)], schedule=schedule, max_steps=50, progress_bar=False)
    np.testing.assert_array_equal(prior.process.diffusion.schedule.table, schedule.table)
    assert prior.report().baselines[0].gain > -0.1


@pytest.mark.slow
def test_a_skewed_tables_prior_is_near_the_truth():
    """K within a few tenths of a nat of the exact density on fresh examples, and far above the Gaussian's."""
    (train, _), (fresh, exact) = _skewed(300, 0), _skewed(1000, 1)
    prior = fit_prior(KEY, train, max_steps=200, progress_bar=False)
    own = np.asarray(prior.estimate(jnp.asarray(fresh, jnp.float32), key=jax.random.key(1)).value, np.float64)
    gaussian = baselines.shrunk_gaussian(train).log_prob(fresh)
    assert -0.3 < (own - exact).mean() < 0.02
    assert (own - gaussian).mean() > 0.3
    assert "logit of element 1 better" in str(prior.report())
    assert bool(jnp.all(prior.support(prior.sample(jax.random.key(2), (200,)))))
    assert prior.report().trained + prior.report().held_out == 300 and "all examples: " in str(prior.report())
