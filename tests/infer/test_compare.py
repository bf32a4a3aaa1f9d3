"""Comparing priors: evidences and probabilities against closed forms and reweighted draws of learned priors."""

import warnings

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from refusals import refused
from scipy.stats import multivariate_normal, norm

import numpyro_diffusion as nd
from numpyro_diffusion import twists

NOISE, Y = 0.7, np.array([2.0, -0.5])
OPERATORS = {2: np.array([[1.0, 0.5], [0.0, 1.0]]), 3: np.array([[1.0, 0.0, -1.0], [0.5, 1.0, 0.0]])}
SMC = {"num_particles": 128, "num_islands": 4}


@pytest.fixture(autouse=True)
def quick_compilation():
    """Slow tests compute little here too; what takes time is compiling."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def prior(loc, scale, dim=2):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(6, -9.0, 6.0), 0.2, 1.5)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(loc, scale), dim))


LAWS = {"near": (0.5, 1.2, 2), "far": (-1.0, 1.0, 2), "wider": (0.0, 1.0, 3)}
PRIORS = {name: prior(*law) for name, law in LAWS.items()}


def model(prior, y):
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(OPERATORS[x.shape[-1]] @ x, NOISE).to_event(1), obs=y)


def exact(loc, scale, dim):
    operator = OPERATORS[dim]
    cov = scale**2 * operator @ operator.T + NOISE**2 * np.eye(2)
    return multivariate_normal(operator @ np.full(dim, loc), cov).logpdf(Y)


TRUTH = np.array([exact(*law) for law in LAWS.values()])
BEFORE = {"wider": 0.2, "near": 0.5, "far": 0.3}


@pytest.fixture(scope="module")
def comparison():
    return nd.compare_priors(jax.random.key(0), model, PRIORS, Y, prior_probabilities=BEFORE, smc=SMC)


def test_evidences_and_probabilities_are_those_of_gaussians(comparison):
    assert comparison.names == tuple(LAWS)
    # What the last step and the few steps add to the errors of the islands.
    tolerance = 4 * np.array(list(comparison.log_evidence_errors.values())) + 0.01
    assert (tolerance < 0.1).all()
    assert (abs(np.array(list(comparison.log_evidences.values())) - TRUTH) < tolerance).all()
    weights = np.exp(TRUTH) * [BEFORE[name] for name in LAWS]
    shares = np.array(list(comparison.probabilities.values()))
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-9)
    assert (abs(shares - weights / weights.sum()) < tolerance.max()).all()
    assert comparison.best == list(LAWS)[TRUTH.argmax()]
    assert comparison.prior_probabilities == BEFORE and tuple(comparison.prior_probabilities) == tuple(LAWS)
    assert comparison.warnings == dict.fromkeys(LAWS, ())


def test_bayes_factors_are_differences_with_errors(comparison):
    factors, errors = comparison.log_bayes_factors, comparison.log_bayes_factor_errors
    np.testing.assert_allclose(factors, -factors.T)
    assert (abs(factors - (TRUTH[:, None] - TRUTH)) < 4 * errors + 0.02).all()
    np.testing.assert_array_equal(errors, errors.T)
    own = comparison.log_evidence_errors
    np.testing.assert_allclose(errors[0, 1], np.hypot(own["near"], own["far"]))
    assert not errors.diagonal().any()


def test_runs_can_be_used_further(comparison):
    draws = comparison.runs["wider"].get_samples()["x"]
    assert draws.shape == (512, 3)
    assert np.ptp(np.asarray(comparison.runs["near"].log_evidences)) > 0
    for name, (low, high) in comparison.probability_intervals.items():
        assert 0 <= low <= comparison.probabilities[name] <= high <= 1


def test_the_table_names_every_prior(comparison, capsys):
    comparison.print_summary()
    printed = capsys.readouterr().out
    assert printed == f"{comparison}\n"
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == list(LAWS)
    assert sum("the best" in line for line in lines[1:4]) == 1
    for name, line in zip(LAWS, lines[1:4], strict=True):
        assert f"{comparison.log_evidences[name]:.3f} ±" in line and f"{comparison.probabilities[name]:.4f}" in line


@pytest.mark.slow
def test_priors_of_one_layout_share_a_program():
    traces = []

    def counted(prior, y):
        traces.append(1)
        model(prior, y)

    pair = {"near": PRIORS["near"], "far": PRIORS["far"]}
    few = {"num_particles": 4, "num_islands": 2, "num_steps": 2, "twist": twists.PseudoInverse()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        nd.compare_priors(jax.random.key(1), counted, {"a": pair["near"], "b": pair["near"]}, Y, smc=few)
        first = len(traces)
        nd.compare_priors(jax.random.key(1), counted, {"a": pair["far"], "b": pair["near"]}, Y, smc=few)
    # The second call runs the model only outside of compiled code; the first had to trace one program besides.
    assert len(traces) - first < first


@pytest.mark.slow
def test_warnings_are_issued_and_kept_by_name():
    poor = {"num_particles": 4, "num_islands": 2, "twist": twists.PseudoInverse(), "progress_bar": False}
    limit = {"target_log_evidence_sd": 1e-6, "max_particles": 4}
    pair = {name: PRIORS[name] for name in ("near", "far")}
    with pytest.warns(nd.ReliabilityWarning, match="(near|far): ") as issued:
        result = nd.compare_priors(jax.random.key(2), model, pair, Y, smc={**poor, **limit})
    expected = [f"{name}: {message}" for name in pair for message in result.warnings[name]]
    assert [str(one.message) for one in issued] == expected
    assert f"near: {result.warnings['near'][0]}" in str(result)
    low, high = result.probability_intervals["near"]
    assert high - low > 0.05  # two islands of four particles do not know much


@pytest.mark.slow
def test_intervals_hold_the_truth():
    """Of 60 comparisons with few particles; 90% intervals, a binomial of 60 and 0.9 is below 46 once in 1,400."""
    laws = {"near": (0.5, 1.2), "far": (0.2, 0.8)}
    priors = {name: prior(*law) for name, law in laws.items()}
    evidences = [exact(*law, 2) for law in laws.values()]
    truth = 1 / (1 + np.exp(evidences[1] - evidences[0]))
    few = {"num_particles": 32, "num_islands": 6, "twist": twists.Tweedie()}
    inside, widths = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for seed in range(60):
            found = nd.compare_priors(jax.random.key(seed), model, priors, Y, smc=few)
            low, high = found.probability_intervals["near"]
            inside += low <= truth <= high
            widths.append(high - low)
    assert np.median(widths) > 0.02
    assert inside >= 46


@pytest.mark.slow
def test_a_learned_prior_under_a_nonlinear_likelihood(banana):
    """Beside one that is known; the truth by reweighting draws of the priors themselves."""
    blob = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(40, -7.0, 6.0)), nd.denoisers.Gaussian(0.0, 1.0), 2
    )
    few = nd.samplers.Ancestral(10)
    priors = {"banana": banana.with_(sampler=few), "blob": nd.DiffusionPrior(blob, sampler=few)}

    def seen(prior, y):
        x = numpyro.sample("x", prior)
        numpyro.sample("bend", dist.Normal(x[1] - 0.5 * x[0] ** 2, 0.3), obs=y)

    result = nd.compare_priors(jax.random.key(1), seen, priors, 0.1, smc={"num_particles": 256, "num_islands": 8})
    for name, law in priors.items():
        draws = np.asarray(law.sample(jax.random.key(2), (50_000,)), dtype=np.float64)
        weights = norm(draws[:, 1] - 0.5 * draws[:, 0] ** 2, 0.3).pdf(0.1)
        error = np.hypot(weights.std() / weights.mean() / np.sqrt(len(weights)), result.log_evidence_errors[name])
        assert error < 0.05
        assert abs(result.log_evidences[name] - np.log(weights.mean())) < 4 * error
    assert result.best == "banana" and result.probabilities["banana"] > 0.6


@pytest.mark.slow
def test_a_factor_counts_as_data():
    """Prior times factor: the evidence of both observations."""
    seen = np.array([1.0, 0.0])
    priors = {name: PRIORS[name] * nd.factors.Gaussian(seen, 0.9) for name in ("near", "far")}
    result = nd.compare_priors(jax.random.key(3), model, priors, Y, smc={"num_particles": 512, "num_islands": 8})
    both, noise = np.vstack([OPERATORS[2], np.eye(2)]), np.diag([NOISE**2, NOISE**2, 0.81, 0.81])
    for name in priors:
        loc, scale, _ = LAWS[name]
        law = multivariate_normal(both @ np.full(2, loc), scale**2 * both @ both.T + noise)
        error = result.log_evidence_errors[name]
        assert error < 0.1
        assert abs(result.log_evidences[name] - law.logpdf([*Y, *seen])) < 4 * error + 0.01


def two_sites(prior, y):
    numpyro.sample("z", prior)
    model(prior, y)


PAIR = {"a": PRIORS["near"], "b": PRIORS["far"]}


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"a": PRIORS["near"]}, {}, r"priors: expected at least 2 to compare, got \['a'\]"),
        ([PRIORS["near"]] * 2, {}, "priors: expected a dict of priors by name, got"),
        (
            {**PAIR, "b": dist.Normal()},
            {},
            "priors: expected a DiffusionPrior, or one times a factor, as 'b', got Normal",
        ),
        (
            PAIR,
            {"prior_probabilities": {"a": 0.5, "c": 0.5}},
            r"prior_probabilities: expected the names .*\['a', 'c'\]",
        ),
        (
            PAIR,
            {"prior_probabilities": {"a": 0.5, "b": 0.6}},
            "prior_probabilities: expected numbers of at least 0 that",
        ),
        (PAIR, {"prior_probabilities": {"a": 1.5, "b": -0.5}}, "prior_probabilities: expected numbers of at least 0"),
        (PAIR, {"prior_probabilities": {"a": np.nan, "b": 0.5}}, "prior_probabilities: expected numbers of at least 0"),
        (PAIR, {"smc": {"particles": 9}}, r"smc: expected options of nd.infer.SMC, .* got \['particles'\]"),
        (PAIR, {"smc": {"site": "x"}}, r"smc: expected options of nd.infer.SMC, .* got \['site'\]"),
        (PAIR, {"smc": {"num_particles": 1}}, "num_particles: expected a whole number of at least 2, got 1"),
        (PAIR, {"site": "z"}, "model: expected a value for the other latent site 'x'.* the diffusion site is 'z'"),
    ],
)
def test_bad_input_is_named(given, options, message):
    with refused(message):
        nd.compare_priors(jax.random.key(0), model, given, Y, **options)


def test_models_without_a_diffusion_site_are_named():
    with pytest.raises(ValueError, match=r"got none among the latent sites \['w'\]") as caught:
        nd.compare_priors(jax.random.key(0), lambda prior, y: numpyro.sample("w", dist.Normal()), PAIR, Y)
    assert caught.value.__notes__ == ["while comparing priors: 'a'"]


@pytest.mark.slow
def test_a_second_site_that_nothing_is_seen_of_changes_no_evidence():
    found = nd.compare_priors(jax.random.key(0), two_sites, PAIR, Y, smc=SMC)
    for (name, value), truth in zip(found.log_evidences.items(), TRUTH, strict=False):
        assert abs(value - truth) < 4 * found.log_evidence_errors[name] + 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*this posterior may be wrong:UserWarning")
def test_a_prior_of_no_probability_stays_so():
    """And one island gives no interval."""
    few = {"num_particles": 4, "num_islands": 1, "num_steps": 2, "twist": twists.PseudoInverse()}
    result = nd.compare_priors(
        jax.random.key(0), model, PAIR, Y, prior_probabilities={"a": 1.0, "b": 0.0}, smc=few, site="x"
    )
    assert result.probabilities == {"a": 1.0, "b": 0.0}
    assert np.isnan(result.probability_intervals["a"]).all()
