"""Kernel densities of tables: their width, when they are chosen, and the priors that are made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.training import baselines, fit_prior, kernels, of_table, tables
from numpyro_diffusion.training.placing import with_placed_steps
from numpyro_diffusion.training.results import FitResult

KEY = jax.random.key(0)
ROOT = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.0, 0.0, 2.0]])


def near_copies(groups, each, seed=0, apart=0.1):
    """Rows in so many groups, near to one another within a group, in no order."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(groups, 3)), each, 0) + apart * rng.normal(size=(groups * each, 3))
    return (rows @ ROOT.T + [5.0, 0.0, -1.0])[rng.permutation(len(rows))]


def left_out(x, covariance):
    """The mean log density of each row by equal Gaussians about all the others."""
    each = [multivariate_normal(row, covariance).pdf(np.delete(x, i, 0)).mean() for i, row in enumerate(x)]
    return np.log(each).mean()


@pytest.mark.parametrize("coordinates", kernels.SHARES)
def test_the_width_is_the_best_for_rows_left_out(coordinates):
    x = near_copies(20, 3)
    gaussian = baselines.shrunk_gaussian(x)
    found = kernels.fit_kernels(x, gaussian, (coordinates,))
    whole = found.root @ found.root.T
    share, given = kernels.SHARES[coordinates], gaussian.covariances[0]
    np.testing.assert_allclose(np.diag(whole), np.diag(given), rtol=1e-12)
    np.testing.assert_allclose(whole[0, 1], (1 - share) * given[0, 1], rtol=1e-12)
    value = lambda width: left_out(x, width**2 * whole)
    assert value(found.width) > max(value(width) for width in np.geomspace(0.03, 1.0, 40)) - 5e-3


def test_its_log_density_is_that_of_the_kernels():
    """Also of more rows than are looked at together, and of none."""
    x, y = near_copies(20, 3), near_copies(100, 3, 1)
    found = kernels.fit_kernels(x, baselines.shrunk_gaussian(x))
    covariance = found.width**2 * found.root @ found.root.T
    exact = np.log(np.mean([multivariate_normal(row, covariance).pdf(y) for row in x], axis=0))
    np.testing.assert_allclose(found.log_prob(y), exact, rtol=1e-9)
    assert found.log_prob(y[:0]).shape == (0,)


def test_coordinates_are_those_in_which_rows_are_more_probable():
    """Shifts within a group that are correlated as all rows are, and others of each column by itself."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(60, 3)) @ ROOT.T, 4, 0)
    shifts = 0.1 * rng.normal(size=centres.shape)
    for x, expected in ((centres + shifts @ ROOT.T, "whitened"), (centres + shifts * centres.std(0), "elementwise")):
        assert kernels.fit_kernels(x, baselines.shrunk_gaussian(x)).coordinates == expected


def test_copies_of_rows_do_not_narrow_kernels():
    """Whole copies are left out together; rows that differ by nothing but rounding find the least width."""
    x = near_copies(30, 2)
    gaussian = baselines.shrunk_gaussian(x)
    one, two = kernels.fit_kernels(x, gaussian), kernels.fit_kernels(np.concatenate([x] * 3), gaussian)
    np.testing.assert_allclose(one.width, two.width, rtol=1e-6)
    np.testing.assert_allclose(one.log_prob(x), two.log_prob(x), rtol=1e-6)
    rounded = np.concatenate([x, x * (1 + 1e-12)])
    found = kernels.fit_kernels(rounded, gaussian)
    assert found.width == pytest.approx(kernels.LEAST_WIDTH)
    assert np.isfinite(found.log_prob(rounded)).all()


def test_kernels_are_for_rows_that_have_near_ones():
    x = near_copies(60, 5)
    found = tables.table(x[30:], x[:30], 0.0)
    assert found.kernels is not None and list(found.models)[-1] == "kernel density"
    assert found.value == pytest.approx(found.kernels.log_prob(x[:30]).mean())
    alone = near_copies(300, 1)
    assert tables.table(alone[30:], alone[:30], 0.0).kernels is None
    assert tables.table(x[30:], x[:30], 0.0, copies=True).kernels is None  # completions of rows
    assert tables.table(x[30:], x[:30], 0.0, None, (3, 1)).kernels is None  # no vectors
    again = tables.table(x, x[:0], 0.0, recipe=found.recipe)
    assert len(again.kernels.means) == 300 and again.kernels.coordinates == found.kernels.coordinates


def test_large_tables_and_those_of_few_rows_have_none(monkeypatch):
    x = near_copies(60, 5)
    few = np.repeat(x[:19], 20, 0)
    assert tables.table(few, x[:19], 0.0).kernels is None
    monkeypatch.setattr(tables, "LARGEST_MIXTURE", 3 * 270 - 1)
    assert tables.table(x[30:], x[:30], 0.0).kernels is None


def test_the_candidate_is_the_density():
    """K is below its log density by little; in coordinates of its own, without a network."""
    x = near_copies(60, 5)
    data = tables.table(x[30:], x[:30], 0.0)
    *others, candidate = tables.candidates(KEY, data, 8, (3,))
    assert all(other.is_trained for other in others) and not candidate.is_trained
    assert candidate.name == f"{data.kernels.coordinates}, kernel density"
    process, transform = tables.simplified(candidate, candidate.process)
    prior = nd.DiffusionPrior(process, nd.KBound(8, low_discrepancy=True), transform=transform)
    gap = data.kernels.log_prob(x) - np.asarray(prior.estimate(jnp.asarray(x, jnp.float32), key=KEY).value)
    error = gap.std() / np.sqrt(len(gap))
    assert -3 * error < gap.mean() < 0.1 + 3 * error and error < 0.1


def test_steps_are_placed_for_it_alone():
    """Of it as many as it needs; of the others as many as without it."""
    x = near_copies(60, 5, apart=0.02)
    data = tables.table(x[30:], x[:30], 0.0)
    tried = tables.candidates(KEY, data, 8, (3,))
    *placed, own = with_placed_steps(KEY, tried, data)[0]
    alone, said = with_placed_steps(KEY, tried[:-1], data)
    assert [each.process.num_steps for each in placed] == [each.process.num_steps for each in alone]
    both = with_placed_steps(KEY, tried, data)[1]
    assert both == f"{said}; {own.process.num_steps} of {own.name}"


@pytest.mark.parametrize(("lead", "goes_on"), [(-1.0, 1), (0.5, 1), (3.0, 2)])
def test_networks_go_on_unless_a_simple_model_is_better_beyond_errors(lead, goes_on):
    """Of two networks the better one, which has -2 nats; the errors are .5 each."""
    x = near_copies(60, 5)
    tried = tables.candidates(KEY, tables.table(x[30:], x[:30], 0.0), 8, (3,))
    tried = [tried[0], tried[1], tried[-1]]
    results = [
        FitResult(c.process, {"validation": [-9.0, value], "validation_error": [1.0, 0.5]}, 0, "finished")
        for c, value in zip(tried, (-3.0, -2.0, -2.0 + lead), strict=True)
    ]
    assert of_table._promising(tried, results) == goes_on


@pytest.fixture(scope="module")
def fitted(small):
    """A prior with defaults but for the network and the length of its training, of near copies, and its rows."""
    x = near_copies(60, 5)
    return fit_prior(KEY, x, max_steps=50, progress_bar=False), x


@pytest.mark.slow
def test_a_prior_of_near_copies_is_a_kernel_density(fitted, tmp_path):
    """It is as good as one, on rows that nothing has seen; it says so; it is one of all rows; files keep it."""
    prior, x = fitted
    report = prior.report()
    assert not report.is_worse and [score.name for score in report.baselines][-1] == "kernel density"
    (chosen,) = [reason for reason in report.reasons if reason.startswith("chosen: ")]
    assert "kernel density" in chosen.split("(")[0] and report.steps == 0
    assert isinstance(prior.process.denoiser, nd.denoisers.KernelDensity)
    assert len(prior.process.denoiser.locs) == len(x)
    assert report.checks.nearest_draws < 1.5 * report.checks.nearest_held_out
    fresh = near_copies(60, 6)
    simple = baselines.shrunk_gaussian(x).log_prob(fresh)
    own = np.asarray(prior.estimate(jnp.asarray(fresh, jnp.float32), key=KEY).value)
    assert (own - simple).mean() > 0.3
    prior.save(tmp_path / "prior")
    again = nd.load(tmp_path / "prior")
    assert str(again.report()) == str(report)
    np.testing.assert_array_equal(again.sample(KEY, (3,)), prior.sample(KEY, (3,)))


@pytest.mark.slow
def test_its_posterior_is_that_of_reweighted_draws(fitted):
    """One column is seen: by SMC, and by weights of draws of the prior, evidence and both moments of each column."""
    prior, _ = fitted
    y, noise = 5.6, 0.3

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], noise), obs=y)

    found = nd.infer.SMC(model, num_particles=512, num_islands=4).run(jax.random.key(1), jnp.float32(y))
    draws = np.asarray(found.get_samples()["x"], np.float64)
    before = np.asarray(prior.sample(jax.random.key(2), (6_000,)), np.float64)
    weight = np.exp(-0.5 * ((before[:, 0] - y) / noise) ** 2) / (noise * np.sqrt(2 * np.pi))
    share = weight / weight.sum()
    mean, effective = share @ before, 1 / np.square(share).sum()
    spread = np.sqrt(share @ np.square(before - mean))
    error = spread * np.sqrt(1 / effective + 4 / len(draws))  # draws of one island have ancestors in common
    assert (abs(draws.mean(0) - mean) < 4 * error).all()
    assert (abs(draws.std(0) - spread) < 4 * error).all()
    scatter = weight.std() / weight.mean() / np.sqrt(len(weight))
    assert abs(found.log_evidence - np.log(weight.mean())) < 4 * np.hypot(found.log_evidence_error, scatter)


@pytest.mark.slow
def test_cells_are_imputed_by_it(fitted):
    """The last column given the others: draws have the mean and the spread of the kernels' law, in closed form."""
    prior, x = fitted
    rows = near_copies(60, 6)[:12]
    table = np.where([True, True, False], rows, np.nan)
    done = np.stack(nd.impute(jax.random.key(3), table, prior, 60, num_particles=256, progress_bar=False))
    np.testing.assert_array_equal(done[..., :2], np.broadcast_to(table[:, :2], (60, 12, 2)))
    denoiser, root, loc = prior.process.denoiser, prior.transform.scale_tril, prior.transform.loc
    root, means = np.asarray(root, np.float64), np.asarray(denoiser.locs, np.float64)
    covariance, means = float(denoiser.scale) ** 2 * root @ root.T, means @ root.T + np.asarray(loc)
    slope = np.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    for row, cells in zip(rows, done[:, :, 2].T, strict=True):
        apart = row[:2] - means[:, :2]
        square = np.einsum("ki,ij,kj->k", apart, np.linalg.inv(covariance[:2, :2]), apart)
        share = np.exp(-0.5 * (square - square.min()))
        share /= share.sum()
        each, within = means[:, 2] + apart @ slope, covariance[2, 2] - slope @ covariance[:2, 2]
        mean = share @ each
        spread = np.sqrt(share @ np.square(each - mean) + within)
        assert abs(cells.mean() - mean) < 4.5 * spread * np.sqrt(2 / 60)
