"""What holds for all estimators: values, honest errors, use as a prior, families, files."""

import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from refusals import refused

import numpyro_diffusion as nd

NOISY = (
    nd.KBound(16, 3, low_discrepancy=True),
    nd.ContinuousBound(16, 16),
    nd.PathIntegral(16, 16, loc=0.2, scale=1.1),
)
ESTIMATORS: dict[str, Any] = {
    **{type(e).__name__: e for e in NOISY},
    "ImportanceWeighted": nd.ImportanceWeighted(32),
    "Twisted": nd.ImportanceWeighted(32, "twisted"),
    "ProbabilityFlow": nd.ProbabilityFlow(12),
    "Hutchinson": nd.ProbabilityFlow(12, 16),
    "Quadrature": nd.ProbabilityFlow(12, num_traces=24),
    "Paths": nd.ContinuousBound(16, 16, num_products=2),
}
FLOW = "exact up to discretisation"
KINDS = ("lower bound", "lower bound", "bound on average", "unbiased", "unbiased", FLOW, FLOW, FLOW, "lower bound")
# What repeats the code of others is left to the slow runs.
QUICK = ("ContinuousBound", "ImportanceWeighted", "ProbabilityFlow")
LAWS = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ESTIMATORS if name != "KBound"],
)
LOC, SCALE = np.array([0.3, -0.4]), np.array([0.9, 0.6])
LOCS = np.array([[0.9, -1.0], [-0.8, -0.2], [0.5, 1.2]])


def mixture(num_steps: int = 4) -> nd.ReverseProcess:
    denoiser = nd.denoisers.GaussianMixture(LOCS, [0.5, 0.6, 0.4], [0.3, 0.5, 0.2])
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9.0, 8.0), LOCS.mean(0), 1.1)
    return nd.ReverseProcess(diffusion, denoiser, 2)


@pytest.fixture
def estimator(name: str) -> Any:
    if isinstance(ESTIMATORS[name], nd.ProbabilityFlow):
        pytest.importorskip("diffrax")
    return ESTIMATORS[name]


def gaussian(num_steps: int = 4) -> nd.ReverseProcess:
    """A chain that is exact, but for the noise it starts from."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9.0, 8.0), 0.1, 1.2)
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(LOC, SCALE), 2)


@eqx.filter_jit
def run(estimator: Any, process: nd.ReverseProcess, x_0: Any, keys: jax.Array) -> Any:
    """Values, standard errors and gradients for each example and key, in one program."""

    def one(x: Any, key: jax.Array) -> Any:
        estimate = estimator.estimate(key, process, x)
        return estimate.value, estimate

    both = jax.value_and_grad(one, has_aux=True)
    (_, estimate), gradient = jax.vmap(lambda x: jax.vmap(lambda key: both(x, key))(keys))(x_0)
    return estimate, gradient


@LAWS
def test_laws(name: str, estimator: Any) -> None:
    """Under jit, vmap and grad: shapes, kinds, and log p of exact Gaussian data, where all are equal, and its score."""
    process, keys = gaussian(), jax.random.split(jax.random.key(0), 24)
    x = LOC + SCALE * np.random.default_rng(1).normal(size=(5, 2))
    got, gradient = run(estimator, process, x, keys)
    assert got.kind == KINDS[list(ESTIMATORS).index(name)]
    assert got.value.shape == got.standard_error.shape == (5, 24)
    assert all(leaf.shape[:2] == (5, 24) for leaf in jax.tree.leaves(got))
    exact = (-0.5 * ((x - LOC) / SCALE) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(SCALE)).sum(1)
    slope = -(x - LOC) / SCALE**2
    for answer, wanted in ((got.value, exact), (gradient, slope)):
        error = np.asarray(answer, np.float64) - wanted[:, None]
        assert (abs(error.mean(1)) < 4.5 * error.std(1) / np.sqrt(24) + 5e-3).all()
        assert error.std() < 0.3
    assert estimator.evaluations(process) >= estimator.calls(process) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "KBound", "ContinuousBound", "ImportanceWeighted", "Paths"])
def test_mixtures_and_standard_errors(name: str) -> None:
    """A mixture's log p at every point, within what T leaves of it; z-scores over seeds with sd 1 ± 0.1."""
    estimator = nd.KBound() if name == "default" else ESTIMATORS[name]
    process = mixture(200 if name in ("default", "KBound") else 32)  # long steps make terms of K with long tails
    data = process.denoiser.data()
    x = LOCS[:2].astype(np.float32)
    got, gradient = run(estimator, process, x, jax.random.split(jax.random.key(0), 500))
    exact, slope = jax.jit(jax.vmap(jax.value_and_grad(data.log_prob)))(x)
    error = np.asarray(got.value, np.float64) - np.asarray(exact)[:, None]
    finite = {"default": 0.1, "KBound": 0.1, "ImportanceWeighted": 0.05}.get(name, 1e-3)
    assert (abs(error.mean(1)) < 4 * error.std(1) / np.sqrt(500) + finite).all()
    np.testing.assert_allclose(np.asarray(gradient).mean(1), slope, atol=0.2)
    scores = (error - error.mean(1, keepdims=True)) / np.asarray(got.widened_error, np.float64)
    assert abs(scores.std() - 1) < 0.1


@pytest.mark.slow
def test_nuts() -> None:
    """A posterior with a known mean and variance, within its Monte Carlo error."""
    loc, scale, count = LOC, SCALE, 1500
    prior = nd.DiffusionPrior(gaussian(), likelihood=ESTIMATORS["PathIntegral"])

    def model() -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=np.array([1.0, 0.0]))

    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=count, progress_bar=False)
    mcmc.run(jax.random.key(3))
    x = np.asarray(mcmc.get_samples()["x"], np.float64)
    precision = 1 / scale**2 + 4
    error = 1 / np.sqrt(precision * count / 3)
    assert (abs(x.mean(0) - (loc / scale**2 + 4 * np.array([1.0, 0.0])) / precision) < 4 * error).all()
    assert (abs(x.std(0) * np.sqrt(precision) - 1) < 4 / np.sqrt(2 * count / 3)).all()


@pytest.mark.parametrize(
    "estimator",
    [
        nd.ContinuousBound(2, 8, accuracy=0.01),
        nd.ImportanceWeighted(4, "twisted", chunk=3),
        nd.KBound(low_discrepancy=True),
        nd.PathIntegral(2, 8, num_products=3, loc=[0.0, 1.0], scale=2.0),
        nd.ProbabilityFlow(8, 0, adjoint="backsolve"),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_saved_priors_carry_them(estimator: Any, tmp_path: Any) -> None:
    if isinstance(estimator, nd.ProbabilityFlow):
        pytest.importorskip("diffrax")
    nd.DiffusionPrior(mixture(), likelihood=estimator).save(tmp_path / "prior")
    assert eqx.tree_equal(nd.load(tmp_path / "prior").likelihood, estimator)


def test_bits_are_told_what_works() -> None:
    """At construction of a prior and at a call; the two that cover bits take them."""
    bits = nd.ReverseProcess(
        nd.BinomialDiffusion(nd.schedules.erasing(4)), nd.denoisers.Enumerated([[0, 1, 1], [1, 0, 1]]), 3
    )
    for name in ("ContinuousBound", "PathIntegral", "Twisted", "ProbabilityFlow"):
        for use in (
            lambda e: nd.DiffusionPrior(bits, likelihood=e),
            lambda e: e(jax.random.key(0), bits, np.zeros(3)),
        ):
            with pytest.raises(
                ValueError, match="GaussianDiffusion, got BinomialDiffusion; for bits and classes use KBound or Imp"
            ):
                use(ESTIMATORS[name])


def test_whole_numbers_have_no_flow() -> None:
    levels = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(4)), nd.denoisers.Gaussian(1.0, 1.0), 1, last_step="discretised"
    )
    with pytest.raises(ValueError, match="for densities, got whole numbers 0 … 255; for those use KBound"):
        nd.DiffusionPrior(levels, likelihood=nd.ProbabilityFlow())


def test_without_diffrax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r'pip install "numpyro_diffusion\[ode\]"'):
        nd.DiffusionPrior(mixture(), likelihood=nd.ProbabilityFlow())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nd.ContinuousBound(0), "num_samples: expected a whole number of at least 1, got 0"),
        (lambda: nd.ContinuousBound(accuracy=-1.0), "accuracy: expected a positive number or None, got -1.0"),
        (lambda: nd.ContinuousBound(num_products=-1), "num_products: expected a whole number of at least 0, got -1"),
        (lambda: nd.PathIntegral(num_times=1.5), "num_times: expected a whole number"),
        (lambda: nd.PathIntegral(scale=[1.0, 0.0]), "scale: expected positive numbers, got a minimum of 0.0"),
        (lambda: nd.PathIntegral(loc=np.nan), "loc: expected finite numbers"),
        (lambda: nd.ImportanceWeighted(0), "num_trajectories: expected a whole number of at least 1, got 0"),
        (lambda: nd.ImportanceWeighted(4, "plain"), "proposal: expected one of 'bridge', 'twisted', got 'plain'"),
        (lambda: nd.ProbabilityFlow(num_probes=-1), "num_probes: expected a whole number of at least 0, got -1"),
        (lambda: nd.ProbabilityFlow(num_traces=0), "num_traces: expected a whole number of at least 1, got 0"),
        (
            lambda: nd.ProbabilityFlow(adjoint="exact"),
            "adjoint: expected one of 'checkpoint', 'backsolve', got 'exact'",
        ),
    ],
)
def test_errors(build: Callable[[], Any], message: str) -> None:
    """Wrong arguments are named, with what was expected and what came."""
    with refused(message):
        build()
