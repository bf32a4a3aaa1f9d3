"""Tables: simple models by EM, priors that are at least as good as them, and the record that says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.distributions.report import PriorReport, Score
from numpyro_diffusion.training import baselines, fit_prior, tables

KEY = jax.random.key(0)
ROOT = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.0, 0.0, 2.0]])


def _gaussian(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3)) @ ROOT.T + [5.0, 0.0, -1.0]


def _clusters(count, seed=0):
    """Two correlated Gaussians of equal weight, six standard deviations apart along the first element."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)) @ ROOT.T + np.where(rng.random((count, 1)) < 0.5, 3.0, -3.0) * [1.0, 0.9, 0.0]


def _truth():
    covariance = np.stack([ROOT @ ROOT.T] * 2)
    return baselines.Mixture(np.full(2, 0.5), np.outer([3.0, -3.0], [1.0, 0.9, 0.0]), covariance)


def test_em_finds_the_mixture():
    """With 2,000 examples the Kullback-Leibler divergence is about parameters / 2n = 19 / 4,000 nats."""
    found, x = baselines.fit_mixture(_clusters(2000), 2), _clusters(20_000, seed=1)
    gap = _truth().log_prob(x) - found.log_prob(x)
    assert -0.001 < gap.mean() < 0.02
    np.testing.assert_allclose(found.weights, 0.5, atol=0.05)


def test_a_mixture_moves_with_its_data():
    x, root, loc = _clusters(50), np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.3, 0.0, 1.0]]), np.arange(3.0)
    moved = _truth().affine(root, loc)
    exact = _truth().log_prob(x) - np.log(np.linalg.det(root))
    np.testing.assert_allclose(moved.log_prob(x @ root.T + loc), exact, rtol=1e-9)


def _many_clusters(count, number, seed=0):
    """Narrow clusters, far from one another, on a circle of radius 4 in the plane."""
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * rng.integers(number, size=count) / number
    return 4 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * rng.normal(size=(count, 2))


def test_a_table_of_many_clusters_has_many_components():
    """Of 12 clusters the truth has the entropy log 12 + log(2πe · 0.2²)."""
    data = tables.table(_many_clusters(900, 12), _many_clusters(100, 12, 1), 0.0)
    assert len(data.mixture.weights) in tables.MANY[1:]
    truth = -np.log(12) - np.log(2 * np.pi * np.e * 0.2**2)
    assert data.mixture.log_prob(_many_clusters(5000, 12, 2)).mean() > truth - 0.15


def test_few_components_are_enough_for_few_clusters_and_few_rows():
    assert len(tables.table(_many_clusters(900, 3), _many_clusters(100, 3, 1), 0.0).mixture.weights) in tables.FEW
    assert len(tables.table(_many_clusters(159, 12), _many_clusters(60, 12, 1), 0.0).mixture.weights) <= 5
    wide = np.random.default_rng(0).normal(size=(500, 51)) + 3 * np.eye(51)[np.arange(500) % 12]  # 8 · 51² > 20,000
    assert len(tables.table(wide[:400], wide[400:], 0.0).mixture.weights) <= 5


@pytest.mark.parametrize(
    "data",
    [
        _gaussian(15)[:, [0, 1, 2, 0]],
        np.random.default_rng(0).normal(size=(25, 40)),
        np.concatenate([_gaussian(99), [[50.0, -50.0, 100.0]]]),
    ],
    ids=["duplicate", "wide", "outlier"],
)
def test_simple_models_of_hard_data_are_finite(data):
    found = tables.table(data[5:], data[:5], 0.0)
    for model in (found.gaussian, found.mixture, baselines.fit_mixture(data, 3)):
        assert np.isfinite(model.log_prob(data)).all()


@pytest.mark.slow
def test_candidates_start_as_their_baselines():
    """In whitened coordinates K is the Gaussian's log density; those about a mixture lose little to the steps."""
    data = tables.table(_clusters(300), _clusters(40, seed=1), 0.0)
    assert len(data.mixture.weights) >= 2
    gaussian, mixture, elementwise, _ = found = tables.candidates(KEY, data, 8, (3,))
    assert [c.name.split(",")[0] for c in found] == ["whitened", "whitened", "elementwise", "elementwise"]
    x = data.held_out
    for candidate, model, loss in ((gaussian, data.gaussian, 0.02), (mixture, data.mixture, 0.1)):
        prior = nd.DiffusionPrior(candidate.process, nd.KBound(4, low_discrepancy=True), transform=candidate.transform)
        gap = model.log_prob(x) - np.asarray(prior.estimate(jnp.asarray(x, jnp.float32), key=KEY).value)
        error = gap.std() / np.sqrt(len(gap))
        assert -3 * error - 1e-3 < gap.mean() < loss + 3 * error and error < 0.1, candidate.name
    for candidate in (gaussian, elementwise):  # what is returned says the same, with less
        process, transform = tables.simplified(candidate, candidate.process)
        parts = (candidate.process, candidate.transform), (process, transform)
        one, two = (nd.DiffusionPrior(p, nd.KBound(1), transform=t) for p, t in parts)
        y = jnp.asarray(x[:3], jnp.float32)
        np.testing.assert_allclose(one.log_prob(y), two.log_prob(y), atol=2e-3)


def test_a_report_says_what_is_better_and_is_kept_in_files(tmp_path):
    score = lambda gain: Score("Gaussian", -3.0, 0.2, gain, 0.1)
    report = lambda gain: PriorReport(
        Score("prior (K)", gain - 3, 0.2), (score(gain),), 90, 10, 50, ("why",), {"a": {}}
    )
    assert report(0.5).verdict == "better than the simple models: +0.50 ± 0.10 nats beside the Gaussian"
    assert report(0.1).verdict.startswith("no better than a simple model: +0.10")
    assert report(-0.5).verdict.startswith("WORSE than a simple model: -0.50") and report(-0.5).is_worse
    assert "why" in str(report(0.5)) and "90 examples trained on, 10 held out" in str(report(0.5))
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), nd.denoisers.Gaussian(0.0, 1.0), 2)
    prior = nd.DiffusionPrior(process)
    with pytest.raises(ValueError, match="report: expected a prior made by fit_prior"):
        prior.report()
    prior = prior.with_report(report(0.5))
    assert prior.with_(key=jax.random.key(1)).report() == report(0.5)
    prior.save(tmp_path / "prior")
    assert nd.load(tmp_path / "prior").report() == report(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Gaussian", "crescent"])
def test_a_tables_prior_is_at_least_as_good_as_its_simple_models(kind, tmp_path):
    """On examples that nothing has seen: as good as a Gaussian where that is the truth, better where it is not."""
    data, more = _gaussian(200), _gaussian(200, seed=5)[:, :1]
    more = data[:, :1] ** 2 + 0.1 * more if kind == "crescent" else data[:, 1:2] + more
    data = np.concatenate([data, more], axis=1)
    x, train = data[:80], data[80:]
    prior = fit_prior(KEY, train, max_steps=200, progress_bar=False, checkpoint=tmp_path / "run")
    own = np.asarray(prior.estimate(jnp.asarray(x, jnp.float32), key=jax.random.key(1)).value)
    gap = own - baselines.shrunk_gaussian(train).log_prob(x)
    if kind == "Gaussian":
        assert abs(gap.mean()) < 0.15
    else:
        assert gap.mean() > 4 * gap.std() / np.sqrt(len(gap)) and gap.mean() > 0.3
    report = prior.report()
    assert len(report.curves) >= 2 and report.trained + report.held_out == 120 and not report.is_worse
    assert all(curve["step"][0] == 0 for curve in report.curves.values())
    draws = np.asarray(prior.sample(jax.random.key(2), (500,)))
    np.testing.assert_allclose(draws.mean(0), train.mean(0), atol=5 * np.max(train.std(0)) / np.sqrt(120))
    assert (tmp_path / "run").is_file()
