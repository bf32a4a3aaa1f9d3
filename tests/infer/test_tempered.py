"""Tempered SMC against quadrature, closed forms, and reweighted draws of the prior's own chain."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale, substitute
from programs import programs_optimised
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm, poisson

import numpyro_diffusion as nd
from numpyro_diffusion.infer.rotation import Point, Reference, move


def prior_of(denoiser, size, num_steps=8, low=-9.0, high=6.0, **options):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, low, high))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, (size,)), **options)


NORMAL_1 = prior_of(nd.denoisers.Gaussian(0.0, 1.0), 1)
NORMAL_2 = prior_of(nd.denoisers.Gaussian(0.0, 1.0), 2)
MIXTURE = prior_of(
    nd.denoisers.GaussianMixture(
        jnp.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]]), jnp.array([0.5, 0.4, 0.7]), jnp.array([0.3, 0.5, 0.2])
    ),
    2,
    40,
    high=9.0,
)
COUNT = 40


def counted(count=COUNT):
    x = numpyro.sample("x", NORMAL_1)
    numpyro.deterministic("rate", jnp.exp(x[0]))
    numpyro.sample("y", dist.Poisson(jnp.exp(x)).to_event(1), obs=jnp.array([count]))


def quadrature():
    """Log evidence, mean and standard deviation of the counts' posterior."""
    moment = lambda power: quad(lambda x: x**power * norm.pdf(x) * poisson.pmf(COUNT, np.exp(x)), 0, 7, points=[3.4])[0]
    total, mean, square = (moment(power) for power in range(3))
    return np.log(total), mean / total, np.sqrt(square / total - (mean / total) ** 2)


def quiet(model, *args, key=0, **options):
    """A run that gives no warning, or the warning is an error."""
    return nd.infer.TemperedSMC(model, progress_bar=False, **options).run(jax.random.key(key), *args)


def reweighted(prior, log_likelihood, statistic, size=200_000, key=100):
    """Log evidence, posterior mean of a statistic, and their standard errors, by draws of the prior's chain."""
    x = np.asarray(prior.sample(jax.random.key(key), (size,)), dtype=np.float64)
    log_weight = log_likelihood(x)
    log_evidence = logsumexp(log_weight) - np.log(size)
    weight = np.exp(log_weight - log_evidence)
    mean = np.mean(weight * statistic(x))
    error = np.sqrt(np.mean(np.square(weight * (statistic(x) - mean))) / size)
    return log_evidence, weight.std() / np.sqrt(size), mean, error


@pytest.fixture(scope="module")
def run():
    """One run that several tests look at."""
    return quiet(counted, num_islands=3)


def test_the_evidence_and_the_draws_of_a_count(run):
    log_evidence, mean, sd = quadrature()
    assert run.log_evidences.shape == (3,)
    assert 0 < run.log_evidence_error < 0.5
    assert abs(run.log_evidence - log_evidence) < 4 * run.log_evidence_error
    assert abs(run.log_evidence - log_evidence) < 5 * 0.1 / np.sqrt(3)
    x = np.asarray(run.get_samples()["x"])
    assert abs(x.mean() - mean) < 5 * sd * np.sqrt(2 / x.size)
    assert abs(x.std() / sd - 1) < 5 / np.sqrt(x.size)


def test_draws_have_the_models_names(run):
    flat, grouped = run.get_samples(), run.get_samples(group_by_chain=True)
    assert set(flat) == set(grouped) == {"x", "rate"}
    assert flat["x"].shape == (1536, 1) and grouped["x"].shape == (3, 512, 1) and grouped["rate"].shape == (3, 512)
    np.testing.assert_allclose(flat["rate"], np.exp(flat["x"][:, 0]), rtol=1e-5)
    assert set(np.ravel(flat["x"]).tolist()) <= set(np.ravel(grouped["x"]).tolist())
    np.testing.assert_array_equal(flat["x"], run.get_samples()["x"])


def test_temperatures_grow_to_one(run):
    for temperature, acceptance, moves in zip(run.temperatures, run.acceptance_rates, run.moves, strict=True):
        assert temperature.shape == acceptance.shape == moves.shape
        assert (np.diff(temperature, prepend=0.0) > 0).all() and temperature[-1] == 1
        assert (acceptance > 0.05).all() and (acceptance <= 1).all()
        assert (moves >= 1).all() and (moves <= 20).all()


def test_the_summary_says_what_was_found(run, capsys):
    run.print_summary()
    printed = capsys.readouterr().out
    assert "x[0]" in printed and "rate" in printed and f"log evidence {run.log_evidence:.3f} ±" in printed
    assert "acceptance at least" in printed


def test_arviz_takes_it(run, tmp_path):
    data = nd.to_arviz(run)
    assert data["posterior"]["x"].shape == (3, 512, 1)
    stats = data["sample_stats"]
    assert stats["temperature"].dims == ("chain", "stage")
    assert np.nanmax(stats["temperature"].values) == 1
    np.testing.assert_allclose(stats["log_evidence"].values, run.log_evidences)
    x = data["posterior"]["x"].values
    np.testing.assert_allclose(data["log_likelihood"]["y"].values, poisson.logpmf(COUNT, np.exp(x))[..., 0], rtol=1e-3)
    data.to_netcdf(str(tmp_path / "run.nc"))


def test_a_second_run_compiles_nothing(run):
    """Arrays among the arguments may have other values."""
    seen = []

    def model(y):
        seen.append(isinstance(y, jax.core.Tracer))
        numpyro.sample("y", dist.Normal(numpyro.sample("x", NORMAL_1), 1.0).to_event(1), obs=y)

    tempered = nd.infer.TemperedSMC(model, 16, 2, move="pcn", num_moves=2, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tempered.run(jax.random.key(0), jnp.ones(1))
        assert any(seen)
        seen.clear()
        tempered.run(jax.random.key(1), jnp.zeros(1))
    assert not any(seen)


@pytest.mark.parametrize("kicks", [True, False])
@pytest.mark.parametrize("angle", [0.2, 0.8])
def test_a_move_leaves_the_target_as_it_is(kicks, angle):
    """Exact draws stay exact, whatever the reference: of a skew law with a support that ends."""
    log_likelihood = lambda z: jnp.where(z[0] > 0, 1.5 * jnp.log(jnp.maximum(z[0], 1e-30)) - 2 * z[0], -jnp.inf)
    base = lambda z: -0.5 * jnp.sum(jnp.square(z))
    temperature = jnp.asarray(0.7)

    def point_at(z, temperature):
        slope = jax.grad(lambda z: base(z) + temperature * log_likelihood(z))(z) if kicks else jnp.zeros(())
        return Point(z, base(z), log_likelihood(z), jnp.asarray(False), z, jnp.where(jnp.isfinite(slope), slope, 0.0))

    grid = np.linspace(1e-4, 5, 20_001)
    density = np.exp(-0.5 * grid**2 + 0.7 * (1.5 * np.log(grid) - 2 * grid))
    table = np.cumsum(density) / density.sum()
    rng = np.random.default_rng(0)
    z = jnp.asarray(np.stack([np.interp(rng.uniform(size=40_000), table, grid), rng.normal(size=40_000)], 1))
    law = Reference(jnp.array([0.7, 0.2]), jnp.array([0.4, 1.3]))

    @jax.jit
    def four_moves(key, z):
        points = jax.vmap(point_at, (0, None))(z, temperature)
        step = lambda key, point: move(key, point_at, point, temperature, jnp.asarray(angle), 3 if kicks else 1, law)
        for own in jax.random.split(key, 4):
            points, accepted = jax.vmap(step)(jax.random.split(own, len(z)), points)
        return points.z, accepted.mean()

    after, accepted = four_moves(jax.random.key(0), z)
    assert 0.2 < accepted < 0.999
    assert np.mean(np.abs(np.asarray(after - z)[:, 0]) > 1e-3) > 0.5
    uniform = np.sort(np.interp(np.asarray(after)[:, 0], grid, table))
    assert np.abs(uniform - np.linspace(0, 1, len(uniform))).max() < 2.2 / np.sqrt(len(uniform))  # Kolmogorov, p = 1e-4
    assert abs(np.asarray(after)[:, 1].std() - 1) < 4 / np.sqrt(2 * len(z))


def total(x):
    return x.sum(-1)


@pytest.fixture(scope="module")
def squared():
    """Of a square of the sum that is observed."""
    with programs_optimised():
        return reweighted(MIXTURE, lambda x: norm.logpdf(4.0, total(x) ** 2, 1.5), lambda x: total(x) < 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hmc", "pcn"])
def test_modes_have_their_shares(squared, kind):
    def model():
        x = numpyro.sample("x", MIXTURE)
        numpyro.sample("y", dist.Normal(jnp.square(x.sum()), 1.5), obs=4.0)

    log_evidence, error, share, share_error = squared
    assert abs(log_evidence + 2.65) < 0.03
    run = quiet(model, move=kind, max_leapfrogs=8, num_moves=8 if kind == "hmc" else 100)
    assert abs(run.log_evidence - log_evidence) < 4 * np.hypot(run.log_evidence_error, error)
    assert run.log_evidence_error < 0.15
    # The first draws of the prior decide the shares: as many independent draws as particles that the likelihood leaves.
    left = np.mean(np.asarray(total(run.get_samples()["x"])) < 0)
    assert abs(left - share) < 4 * np.hypot(np.sqrt(share * (1 - share) / (0.25 * 2048)), share_error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hmc", "pcn"])
def test_a_far_tail(kind):
    """Ten standard deviations out in two dimensions, seen with noise of 0.1."""

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", NORMAL_2), 0.1).to_event(1), obs=jnp.full(2, 10.0))

    run = quiet(model, move=kind, num_moves=100)
    truth = 2 * norm.logpdf(10.0, 0.0, np.sqrt(1.01))
    assert abs(run.log_evidence - truth) < 4 * run.log_evidence_error
    assert abs(run.log_evidence - truth) < 0.6
    x = np.asarray(run.get_samples()["x"])
    sd = np.sqrt(0.01 / 1.01)
    assert (abs(x.mean(0) - 10 / 1.01) < 5 * sd * np.sqrt(4 / len(x))).all()
    assert (abs(x.std(0) / sd - 1) < 5 * np.sqrt(2 / len(x))).all()


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_hundred_standard_deviations_away():
    """Single precision, likelihoods of -5e5 nats at every draw of the prior: numbers all the way."""

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", NORMAL_1), 0.1).to_event(1), obs=jnp.full(1, 100.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # islands may be more than 1 nat apart
        run = nd.infer.TemperedSMC(model, progress_bar=False).run(jax.random.key(0))
    truth = norm.logpdf(100.0, 0.0, np.sqrt(1.01))
    assert np.isfinite(run.log_evidences).all()
    assert abs(run.log_evidence - truth) < 5 + 4 * run.log_evidence_error
    assert abs(np.asarray(run.get_samples()["x"]).mean() - 100 / 1.01) < 0.1


@pytest.mark.slow
def test_other_unknowns_beside_x():
    """A noise scale and a slope, moved without their constraints, by draws of the prior that are weighted."""
    at, ys = np.array([-1.0, 0.0, 1.0, 2.0]), np.array([0.5, 1.2, 2.5, 3.1])

    def model():
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
        x = numpyro.sample("x", NORMAL_2)
        numpyro.sample("y", dist.Normal(x[0] + slope * at + x[1], noise).to_event(1), obs=ys)

    rng = np.random.default_rng(1)
    noise, slope, x = (
        np.abs(rng.normal(size=1_000_000)),
        2 * rng.normal(size=1_000_000),
        rng.normal(size=(2, 1_000_000)),
    )
    log_weight = sum(norm.logpdf(y, x[0] + slope * a + x[1], noise) for a, y in zip(at, ys, strict=True))
    truth = logsumexp(log_weight) - np.log(log_weight.size)
    weight = np.exp(log_weight - truth) / log_weight.size
    run = quiet(model, num_particles=1024)
    draws = run.get_samples()
    assert set(draws) == {"noise", "slope", "x"}
    assert abs(run.log_evidence - truth) < 4 * np.hypot(run.log_evidence_error, np.sqrt(np.sum(weight**2)))
    assert abs(run.log_evidence - truth) < 0.3
    for name, values in (("noise", noise), ("slope", slope)):
        mean = np.sum(weight * values)
        sd = np.sqrt(np.sum(weight * (values - mean) ** 2))
        assert abs(np.mean(draws[name]) - mean) < 5 * sd * np.sqrt(1 / 1000 + np.sum(weight**2))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_learned_prior(banana):
    """The truth is about the learned chain: its own draws, weighted."""
    prior = banana.with_(sampler=nd.samplers.Ancestral(12))

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[1], 0.3), obs=2.0)

    log_evidence, error, share, share_error = reweighted(
        prior, lambda x: norm.logpdf(2.0, x[:, 1], 0.3), lambda x: x[:, 0] < 0, 100_000
    )
    run = quiet(model, move="pcn")
    assert abs(run.log_evidence - log_evidence) < 4 * np.hypot(run.log_evidence_error, error)
    assert run.log_evidence_error < 0.2
    left = np.mean(np.asarray(run.get_samples()["x"])[:, 0] < 0)
    assert abs(left - share) < 4 * np.hypot(np.sqrt(share * (1 - share) / 512), share_error)


@pytest.mark.slow
def test_plates_factors_and_sites_with_values():
    """A prior times a factor in a plate, a site that is given, and one that says nothing about x."""
    seen, ys = np.array([1.0, 0.0]), np.array([[2.0, -0.5], [0.0, 1.0]])

    def model(ys):
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        numpyro.sample("constant", dist.Normal(0.0, 2.0), obs=1.3)
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", NORMAL_2 * nd.factors.Gaussian(seen, 0.9))
            numpyro.sample("y", dist.Normal(x, noise).to_event(1), obs=ys)

    run = quiet(substitute(model, data={"noise": jnp.asarray(0.7)}), ys, num_particles=1024)
    precision = 1 + 1 / 0.9**2
    loc = seen / 0.9**2 / precision
    first = norm(0.0, np.hypot(1.0, 0.9)).logpdf(seen).sum()
    truth = 2 * first + norm(loc, np.sqrt(1 / precision + 0.49)).logpdf(ys).sum() + norm(0, 2).logpdf(1.3)
    assert run.get_samples()["x"].shape == (4096, 2, 2)
    assert abs(run.log_evidence - truth) < 4 * run.log_evidence_error
    assert run.log_evidence_error < 0.15
    mean = (loc * precision + ys / 0.49) / (precision + 1 / 0.49)
    sd = np.sqrt(1 / (precision + 1 / 0.49))
    assert (abs(np.asarray(run.get_samples()["x"]).mean(0) - mean) < 5 * sd * np.sqrt(4 / 4096)).all()


@pytest.mark.slow
def test_a_chunk_at_a_time_is_the_same():
    runs = [quiet(counted, num_particles=64, num_islands=2, chunk=chunk, ess=0.3, key=3) for chunk in (None, 24)]
    np.testing.assert_allclose(runs[0].log_evidences, runs[1].log_evidences, rtol=1e-3)


def truncated(cut, low=-jnp.inf):
    """x is observed to be above a cut; elsewhere the log density is `low`."""

    def model():
        x = numpyro.sample("x", NORMAL_1)
        numpyro.factor("above", jnp.where(x[0] > cut, 0.0, low))

    return model


def test_a_likelihood_that_is_zero_for_many():
    run = quiet(truncated(1.0), move="pcn", num_moves=30)
    assert abs(run.log_evidence - norm.logsf(1.0)) < 4 * np.sqrt((1 / norm.sf(1.0) - 1) / 2048)
    x = np.asarray(run.get_samples()["x"])
    assert x.min() > 1
    assert abs(x.mean() - norm.pdf(1.0) / norm.sf(1.0)) < 5 * 0.45 * np.sqrt(4 / 2048)
    assert all(each.tolist() == [1.0] for each in run.temperatures)


QUICK = {"num_particles": 32, "num_islands": 2, "move": "pcn", "num_moves": 2, "progress_bar": False}


@pytest.mark.slow
def test_what_is_doubtful_is_said():
    tempered = nd.infer.TemperedSMC(truncated(0.0, jnp.nan), **QUICK)
    with pytest.warns(nd.ReliabilityWarning, match=r"no number at \d+ of 64 draws of the prior; it counts as 0 there"):
        tempered.run(jax.random.key(0))
    assert abs(tempered.log_evidence - np.log(0.5)) < 5 / np.sqrt(64)
    short = nd.infer.TemperedSMC(counted, max_temperatures=2, **QUICK)
    with pytest.warns(nd.ReliabilityWarning, match="nats apart, more than 1.*; max_temperatures = 2 was too few for 2"):
        short.run(jax.random.key(1))
    assert np.isfinite(short.log_evidences).all() and short.log_evidence_error > 0.5


@pytest.mark.parametrize("low", [-jnp.inf, pytest.param(jnp.nan, marks=pytest.mark.slow)])
def test_a_likelihood_that_is_zero_everywhere_is_an_error(low):
    with pytest.raises(ValueError, match="model: expected a positive density of the observed sites somewhere, got 0"):
        nd.infer.TemperedSMC(truncated(1e6, low), **QUICK).run(jax.random.key(0))


def bits():
    process = nd.ReverseProcess(
        nd.BinomialDiffusion(nd.schedules.erasing(5)), nd.denoisers.Enumerated(jnp.eye(3, dtype=int)), (3,)
    )
    numpyro.sample("x", nd.DiffusionPrior(process))


def discrete():
    numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("x", NORMAL_1)


def subsampled():
    with numpyro.plate("n", 4, subsample_size=2):
        numpyro.sample("x", NORMAL_1)


def scaled():
    with scale(scale=2.0):
        numpyro.sample("x", NORMAL_1)


def masked():
    with mask(mask=False):
        numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", NORMAL_1)


def scanned():
    numpyro.sample("x", NORMAL_1)
    scan(lambda carry, _: (numpyro.sample("z", dist.Normal(carry, 1.0)), None), 0.0, jnp.arange(3))


def known():
    numpyro.sample("x", NORMAL_1 * nd.factors.Delta(jnp.zeros(1), jnp.array([True])))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (bits, "x: expected a DiffusionPrior of real numbers for TemperedSMC, got bits or classes; nd.infer.SMC"),
        (discrete, "k: expected a continuous latent site for TemperedSMC, got Bernoulli"),
        (subsampled, "model: plate 'n' subsamples"),
        (scaled, "x: expected a latent site without a scale"),
        (masked, "z: expected a latent site without a mask"),
        (scanned, "z: expected a latent site outside of any scan"),
        (known, "x: expected a factor without known coordinates for DiffusionReparam, got Delta"),
        (lambda: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0), "model: expected a latent site"),
    ],
)
def test_models_that_do_not_fit_say_why(model, message):
    with pytest.raises(ValueError, match=message):
        nd.infer.TemperedSMC(model, **QUICK).run(jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "num_particles: expected a whole number of at least 2, got 1"),
        ({"num_islands": 0}, "num_islands: expected a whole number of at least 1, got 0"),
        ({"move": "nuts"}, "move: expected one of 'hmc', 'pcn', got 'nuts'"),
        ({"ess": 1.0}, "ess: expected a fraction between 0 and 1, got 1.0"),
        ({"num_moves": 0}, "num_moves: expected a whole number of at least 1"),
        ({"chunk": 0}, "chunk: expected a whole number of at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nd.infer.TemperedSMC(counted, **options)


def test_nothing_before_a_run():
    tempered = nd.infer.TemperedSMC(counted)
    for ask in (lambda: tempered.log_evidence, lambda: tempered.temperatures, tempered.get_samples):
        with pytest.raises(ValueError, match="TemperedSMC: expected a finished run; call run"):
            ask()
