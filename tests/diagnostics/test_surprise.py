"""The prior predictive check of the evidence: uniform ranks under the truth, and what it says of other data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from refusals import refused
from scipy.stats import chisquare, norm

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics, samplers, twists
from numpyro_diffusion.diagnostics.surprise import _ByChain

LOC, SCALE, NOISE, Y = 0.5, 1.2, 0.7, np.array([2.0, -0.5])
DIFFUSION = nd.GaussianDiffusion(nd.schedules.log_snr(6, -9.0, 6.0), 0.2, 1.5)
PRIOR = nd.DiffusionPrior(nd.ReverseProcess(DIFFUSION, nd.denoisers.Gaussian(LOC, SCALE), 2))
FEW = {"sampler": samplers.TwistedSMC(4, twists.PseudoInverse(), num_steps=3), "num_islands": 1}


def model(noise=NOISE):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, noise).to_event(1))


def log_evidence(y):
    return norm(LOC, np.hypot(SCALE, NOISE)).logpdf(y).sum(-1)


@pytest.fixture(scope="module")
def result():
    return diagnostics.surprise(jax.random.key(0), model, observed={"y": Y}, num_replicates=199)


@pytest.mark.slow
def test_evidences_are_those_of_the_data_and_of_the_models_own(result):
    assert abs(result.log_evidence - log_evidence(Y)) < 4 * result.log_evidence_error + 0.02
    assert 0 < result.log_evidence_error < 0.05
    assert result.replicates.shape == result.replicate_errors.shape == (199,)
    assert np.median(result.replicate_errors) < 0.05
    # Their law in closed form: minus half a χ² with 2 degrees of freedom below the density at the mean.
    drops = log_evidence(np.full(2, LOC)) - result.replicates
    assert abs(drops.mean() - 1) < 5 / np.sqrt(199)
    # The least of 199 exponentials is 0.005 ± 0.005; what estimates are off comes on top.
    assert -0.05 < drops.min() < 0.1


@pytest.mark.slow
def test_the_p_value_is_the_share_of_less_probable_data(result):
    truth = np.exp(log_evidence(Y) - log_evidence(np.full(2, LOC)))
    assert result.p_value == (1 + np.sum(result.replicates <= result.log_evidence)) / 200
    assert abs(result.p_value - truth) < 4 * result.p_value_error
    np.testing.assert_allclose(result.p_value_error, np.sqrt(result.p_value * (1 - result.p_value) / 199))


@pytest.mark.slow
def test_the_summary_is_printed(result, capsys):
    result.print_summary()
    printed = capsys.readouterr().out
    assert f"data: {result.log_evidence:.3f} ± {result.log_evidence_error:.3f} nats" in printed
    assert f"p = {result.p_value:.3f} ± {result.p_value_error:.3f}" in printed and "of 199 data sets" in printed


@pytest.mark.slow
def test_far_out_data_get_the_least_p_value():
    options = {"num_replicates": 19, **FEW}
    key = jax.random.key(1)
    far = diagnostics.surprise(key, model, observed={"y": Y + 10}, **options)
    assert far.p_value == 1 / 20
    assert np.isnan(far.log_evidence_error) and np.isnan(far.replicate_errors).all()


@pytest.mark.slow
def test_ranks_are_uniform_under_the_truth():
    """At four particles, whose evidences are poor, in a chain of three steps: exactness needs neither."""
    draw = jax.jit(jax.vmap(lambda key: PRIOR.with_(sampler=samplers.Ancestral(3)).sample(key)))
    x = draw(jax.random.split(jax.random.key(2), 240))
    data = np.asarray(x + NOISE * jax.random.normal(jax.random.key(3), x.shape))
    ranks = []
    for seed, y in enumerate(data):
        found = diagnostics.surprise(jax.random.key(seed), model, observed={"y": y}, num_replicates=19, **FEW)
        ranks.append(round(20 * found.p_value))
    counts = np.bincount(ranks, minlength=21)[1:]
    assert chisquare(counts).pvalue > 0.01
    # The same ranks know a wrong model: data that are spread more widely.
    wrong = [
        diagnostics.surprise(jax.random.key(i), model, observed={"y": 2 * y}, num_replicates=19, **FEW).p_value
        for i, y in enumerate(data[:60])
    ]
    assert np.mean(np.array(wrong) <= 0.1) > 0.3


@pytest.mark.slow
def test_data_come_from_the_chain_that_smc_runs():
    """Two steps that are far too few: the chain's own law is what its evidence is of."""
    coarse = nd.GaussianDiffusion(nd.schedules.log_snr(20, -9.0, 9.0), 0.0, 1.0)
    locs, few = jnp.array([[-3.0], [3.0]]), samplers.TwistedSMC(64, num_steps=2)
    exact = nd.denoisers.GaussianMixture(locs, jnp.array([0.1, 0.1]), jnp.array([0.3, 0.7]))
    two = nd.DiffusionPrior(nd.ReverseProcess(coarse, exact, 1), sampler=samplers.DDIM(5))

    def model():
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", two)
            numpyro.sample("y", dist.Normal(x, 0.2).to_event(1))

    drawn = diagnostics.surprise(
        jax.random.key(4), model, observed={"y": np.zeros((3, 1))}, sampler=few, num_replicates=400
    )
    strided = two.with_(sampler=samplers.Ancestral(2))
    truth = np.asarray(
        strided.sample(jax.random.key(5), (1200,)) + 0.2 * jax.random.normal(jax.random.key(6), (1200, 1))
    )
    table = np.asarray(strided.sample(jax.random.key(7), (5_000,)))[:, 0]
    density = norm.pdf(truth, table, 0.2).mean(1)
    expected = np.log(density).reshape(400, 3).sum(1)
    error = np.hypot(expected.std(), drawn.replicates.std()) / np.sqrt(400)
    assert abs(expected.mean() - drawn.replicates.mean()) < 4 * error


@pytest.mark.slow
def test_repeated_calls_share_their_programs():
    traces = []

    def counted():
        traces.append(1)
        model()

    call = lambda key, y: diagnostics.surprise(
        jax.random.key(key), counted, observed={"y": y}, num_replicates=3, batch_size=2, **FEW
    )
    call(0, Y)
    first = len(traces)
    call(1, Y + 1)
    outside = len(traces) - first
    call(2, Y - 1)
    assert len(traces) - first == 2 * outside < 2 * first


def counts():
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("n", dist.Poisson(jnp.exp(x)).to_event(1))


@pytest.mark.slow
def test_counts_are_whole_numbers():
    data = {"n": np.array([2.0, 1.0])}
    found = diagnostics.surprise(jax.random.key(0), counts, observed=data, num_replicates=5, **FEW)
    assert np.isfinite(found.replicates).all() and 1 / 6 <= found.p_value <= 1
    with pytest.raises(ValueError, match="observed: expected whole numbers for 'n', got"):
        diagnostics.surprise(jax.random.key(0), counts, observed={"n": [0.5, 1.0]})


def beside():
    model()
    numpyro.sample("known", dist.Normal(), obs=0.0)


def unknown():
    model()
    numpyro.sample("scale", dist.HalfNormal())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (model, {"observed": {"z": Y}}, r"observed: expected data by the names of sites .*\['y'\], got \['z'\]"),
        (model, {"observed": {"x": Y}}, r"observed: expected data by the names of sites .*\['y'\], got \['x'\]"),
        (model, {"observed": {}}, r"observed: expected data by the names of sites"),
        (model, {"observed": "y"}, r"observed: expected data by the names of sites that the model draws, .*got str"),
        (model, {"observed": {"y": Y[:1]}}, r"observed: expected shape \(2,\) for 'y', got \(1,\)"),
        (beside, {}, r"model: expected no observed site or factor beside those in `observed`, got \['known'\]"),
        (unknown, {}, "model: expected a value for the other latent site 'scale'"),
        (model, {"num_replicates": 0}, "num_replicates: expected a whole number of at least 1, got 0"),
        (model, {"num_islands": 0}, "num_islands: expected a whole number of at least 1, got 0"),
        (model, {"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        (model, {"sampler": samplers.Ancestral()}, "sampler: expected a TwistedSMC, got Ancestral"),
        (model, {"site": "z"}, "site: expected the name of a latent site of the model|for the other latent site 'x'"),
    ],
)
def test_bad_input_is_named(model, options, message):
    with refused(message):
        diagnostics.surprise(jax.random.key(0), model, **{"observed": {"y": Y}, **options})


def test_the_key_comes_first():
    with pytest.raises(TypeError, match="model: expected a function, got"):
        diagnostics.surprise(model, jax.random.key(0), observed={"y": Y})


def test_evidences_of_zero_are_printed():
    drawn = np.array([-np.inf, -np.inf, -2.0, -1.0])
    found = diagnostics.Surprise(-np.inf, np.nan, drawn, np.full(4, np.nan))
    assert found.p_value == 3 / 5
    assert "90% from -inf to -1.000 nats" in str(found)


@pytest.mark.slow
def test_a_density_that_is_no_number_is_an_error():
    def broken():
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x, jnp.sqrt(x[0] - 50.0), validate_args=False).to_event(1))

    with pytest.raises(ValueError, match="model: expected a positive density of data somewhere, got 0"):
        diagnostics.surprise(jax.random.key(0), broken, observed={"y": Y}, num_replicates=2, **FEW)


def test_a_power_of_a_prior_is_not_drawn_by_its_chain_alone():
    """The chain of a power needs weights, with no factor too: the law that is drawn stays the power's own."""
    for law, own in ((PRIOR, samplers.Ancestral), (PRIOR**2, samplers.TwistedSMC)):
        drawn = _ByChain(lambda: None, "x", 3)._drawn(law)
        assert isinstance(drawn.sampler, own), law
