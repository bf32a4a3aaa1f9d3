"""SMC for models: evidence against closed forms, and what becomes of the particles."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.checkpoints import CheckpointError
from numpyro_diffusion.infer import doubling
from numpyro_diffusion.infer.evidence import weight_variance

LOC, SCALE, NOISE = 0.5, 1.2, 0.7
Y = np.array([2.0, -0.5])


@pytest.fixture(autouse=True)
def quick_compilation():
    """Slow tests compute little here too; what takes time is compiling."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def prior(num_steps=6, **options):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9.0, 6.0), 0.2, 1.5)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(LOC, SCALE), 2), **options)


PRIOR = prior()


def model(y=None):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("constant", dist.Normal(0.0, 2.0), obs=1.3)
    numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)


def exact_log_evidence(y=Y):
    return norm(LOC, np.hypot(SCALE, NOISE)).logpdf(y).sum() + norm(0, 2).logpdf(1.3)


POSTERIOR_MEAN = LOC + SCALE**2 / (SCALE**2 + NOISE**2) * (Y - LOC)
POSTERIOR_SD = SCALE * NOISE / np.hypot(SCALE, NOISE)


@pytest.fixture(scope="module")
def smc():
    """One run that several tests look at."""
    return nd.infer.SMC(model, num_particles=128, num_islands=3).run(jax.random.key(0), Y)


def test_the_evidence_counts_every_observed_site(smc):
    """Also the one that says nothing about x."""
    assert smc.log_evidences.shape == (3,)
    assert abs(smc.log_evidence - exact_log_evidence()) < 5 * smc.log_evidence_error + 5e-3
    evidences = np.exp(np.asarray(smc.log_evidences, np.float64))
    np.testing.assert_allclose(smc.log_evidence, np.log(evidences.mean()), rtol=1e-5)
    # Three islands have two degrees of freedom, and half of what the weights say counts three: five in all.
    size = np.asarray(smc.particles.effective_size, np.float64)
    resampled = np.where(size < 64, 128 / size - 1, 0.0)[:, :-1].sum(1)
    weights = np.mean(resampled + 128 / size[:, -1] - 1) / 128
    islands = np.var(np.log(evidences), ddof=1)
    assert islands < 2 * weights
    error = np.sqrt((2 * islands + 1.5 * weights) / 5 / 3 * 5 / 3)
    np.testing.assert_allclose(smc.log_evidence_error, error, rtol=1e-3)


def test_samples_are_equally_weighted_draws(smc):
    """Those of all islands are the grouped ones' law; resampled draws come from the particles."""
    flat, grouped = smc.get_samples()["x"], smc.get_samples(group_by_chain=True)["x"]
    assert flat.shape == (384, 2) and grouped.shape == (3, 128, 2)
    particles = {tuple(x) for x in np.asarray(smc.particles.x).reshape(-1, 2).tolist()}
    assert {tuple(x) for x in np.asarray(flat).tolist()} <= particles
    for island in range(3):
        own = {tuple(x) for x in np.asarray(smc.particles.x[island]).tolist()}
        assert {tuple(x) for x in np.asarray(grouped[island]).tolist()} <= own
    for draws in (flat, grouped.reshape(-1, 2)):
        assert (abs(np.asarray(draws).mean(0) - POSTERIOR_MEAN) < 5 * POSTERIOR_SD * np.sqrt(2 / 384)).all()
        assert (abs(np.asarray(draws).std(0) / POSTERIOR_SD - 1) < 5 / np.sqrt(384)).all()
    np.testing.assert_array_equal(flat, smc.get_samples()["x"])


def test_particles_have_islands_in_front(smc):
    assert smc.particles.x.shape == (3, 128, 2)
    assert smc.particles.log_weight.shape == (3, 128)
    assert smc.particles.effective_size.shape == (3, 7)
    assert len(np.unique(np.asarray(smc.particles.x)[..., 0])) > 300  # islands are independent


def test_the_summary_names_the_site_and_the_evidence(smc, capsys):
    smc.print_summary()
    printed = capsys.readouterr().out
    assert "x[0]" in printed and f"log evidence {smc.log_evidence:.3f} ±" in printed
    assert "particles of 128: " in printed
    variances = weight_variance(smc.particles.effective_size, 128, smc.plan.sampler.threshold)
    assert f"noise of weights {np.sqrt(variances.mean()):.2f} nats" in printed


def test_draws_go_into_predictive(smc):
    draws = Predictive(model, smc.get_samples())(jax.random.key(1))
    assert draws["y"].shape == (384, 2)
    error = 5 * np.hypot(POSTERIOR_SD, NOISE) * np.sqrt(2 / 384)
    assert (abs(np.asarray(draws["y"]).mean(0) - POSTERIOR_MEAN) < error).all()


def test_nothing_before_a_run():
    smc = nd.infer.SMC(model)
    for ask in (lambda: smc.particles, lambda: smc.log_evidence, smc.get_samples, smc.print_summary):
        with pytest.raises(ValueError, match="SMC: expected a finished run; call run"):
            ask()


@pytest.mark.slow
def test_a_model_that_is_impossible_everywhere_is_an_error():
    def impossible():
        numpyro.factor("never", jnp.where(numpyro.sample("x", PRIOR).sum() > 1e6, 0.0, -jnp.inf))

    smc = nd.infer.SMC(impossible, num_particles=4, num_islands=2, num_steps=2)
    with pytest.raises(ValueError, match="model: expected a positive density of the observed sites somewhere, got 0"):
        smc.run(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this posterior may be wrong:UserWarning")
def test_particles_double_until_the_evidence_is_good_enough():
    poor = {"num_islands": 4, "twist": twists.PseudoInverse(), "progress_bar": False}
    smc = nd.infer.SMC(model, num_particles=8, target_log_evidence_sd=0.3, **poor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "this posterior may be wrong")  # few particles, which is said too
        smc.run(jax.random.key(2), Y)
    assert smc.num_particles in 8 * 2 ** np.arange(1, 11)
    assert np.std(np.asarray(smc.log_evidences), ddof=1) <= 0.3
    assert smc.get_samples()["x"].shape == (4 * smc.num_particles, 2)
    short = nd.infer.SMC(model, num_particles=8, target_log_evidence_sd=1e-6, max_particles=11, **poor)
    with pytest.warns(nd.ReliabilityWarning, match="at 8 particles, more than target_log_evidence_sd = 1e-06; max"):
        short.run(jax.random.key(2), Y)
    assert short.num_particles == 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this posterior may be wrong:UserWarning", "ignore:the islands' log:UserWarning")
def test_a_run_with_a_budget_goes_on_from_its_last_finished_run(tmp_path, monkeypatch):
    """Interrupted or out of its budget, and to the bit; a file of another run is refused."""
    path, key = tmp_path / "runs", jax.random.key(2)

    def smc(checkpoint=path, **options):
        own = {"num_islands": 3, "twist": twists.PseudoInverse(), "progress_bar": False, "max_particles": 32} | options
        return nd.infer.SMC(model, num_particles=8, target_log_evidence_sd=1e-6, checkpoint=checkpoint, **own)

    whole, save, sizes = smc(None).run(key, Y), doubling.save_run, []

    def interrupted(checkpoint, size, run, settings):
        sizes.append(size)
        if sizes == [8, 16, 32]:
            raise KeyboardInterrupt
        save(checkpoint, size, run, settings)

    monkeypatch.setattr(doubling, "save_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        smc().run(key, Y)
    again = smc(max_particles=16).run(key, Y)
    assert sizes == [8, 16, 32] and again.num_particles == 16  # nothing is run again
    again = smc().run(key, Y)
    assert sizes[3:] == [32] and again.num_particles == 32
    np.testing.assert_array_equal(again.log_evidences, whole.log_evidences)
    np.testing.assert_array_equal(again.get_samples()["x"], whole.get_samples()["x"])
    others = (jax.random.key(3), Y, {}), (key, Y + 1, {}), (key, Y, {"num_islands": 4}), (key, Y, {"threshold": 0.4})
    for (key, y, options), name in zip(others, ("key", "arguments", "plan", "threshold"), strict=True):
        with pytest.raises(CheckpointError, match=f"checkpoint: expected '.*' to be of this run, with {name} = "):
            smc(**options).run(key, y)
    path.write_bytes(b"no run")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        smc().run(key, Y)


@pytest.mark.slow
def test_one_island_has_no_error():
    smc = nd.infer.SMC(model, num_particles=32, num_islands=1).run(jax.random.key(3), Y)
    assert np.isnan(smc.log_evidence_error)
    assert abs(smc.log_evidence - exact_log_evidence()) < 0.02


@pytest.mark.slow
def test_a_plate_is_a_product_of_evidences():
    ys = np.array([[2.0, -0.5], [0.0, 1.0], [1.0, -1.5]])

    def plated(ys):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=ys)

    smc = nd.infer.SMC(plated, num_particles=256, num_islands=2).run(jax.random.key(4), ys)
    assert smc.particles.x.shape == (2, 3, 256, 2)
    truth = norm(LOC, np.hypot(SCALE, NOISE)).logpdf(ys).sum()
    assert abs(smc.log_evidence - truth) < 0.02
    flat, grouped = smc.get_samples()["x"], smc.get_samples(group_by_chain=True)["x"]
    assert flat.shape == (512, 3, 2) and grouped.shape == (2, 256, 3, 2)
    mean = LOC + SCALE**2 / (SCALE**2 + NOISE**2) * (ys - LOC)
    for draws in (flat, grouped.reshape(512, 3, 2)):
        assert (abs(np.asarray(draws).mean(0) - mean) < 5 * POSTERIOR_SD * np.sqrt(2 / 512)).all()


@pytest.mark.slow
def test_two_draws_of_one_prior_that_add_up():
    """The plate's elements are used together: one state, whose posterior correlates them."""

    def summed(y):
        with numpyro.plate("sources", 2):
            x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x.sum(0), NOISE).to_event(1), obs=y)

    smc = nd.infer.SMC(summed, num_particles=512, num_islands=2).run(jax.random.key(7), Y)
    spread = 2 * SCALE**2 + NOISE**2
    truth = norm(2 * LOC, np.sqrt(spread)).logpdf(Y).sum()
    assert abs(smc.log_evidence - truth) < 5 * smc.log_evidence_error + 0.02
    assert smc.get_samples(group_by_chain=True)["x"].shape == (2, 512, 2, 2)
    x = np.asarray(smc.get_samples()["x"], dtype=np.float64)
    mean = LOC + SCALE**2 / spread * (Y - 2 * LOC)
    variance, covariance = SCALE**2 - SCALE**4 / spread, -(SCALE**4) / spread
    assert (abs(x.mean(0) - mean) < 5 * np.sqrt(2 * variance / 1024)).all()
    assert (abs(x.var(0) / variance - 1) < 5 * np.sqrt(4 / 1024)).all()
    both = ((x[:, 0] - mean) * (x[:, 1] - mean)).mean(0)
    assert (abs(both - covariance) < 5 * np.sqrt(2 * (variance**2 + covariance**2) / 1024)).all()


@pytest.mark.slow
def test_a_site_that_is_a_prior_times_a_factor():
    """Its factor is one more observation: in the posterior, and in the integral that is the evidence."""
    seen = np.array([1.0, 0.0])

    def model(ys):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", PRIOR * nd.factors.Gaussian(seen, 0.9))
            numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=ys)

    ys = np.array([[2.0, -0.5], [0.0, 1.0]])
    smc = nd.infer.SMC(model, num_particles=256, num_islands=8).run(jax.random.key(8), ys)
    precision = 1 / SCALE**2 + 1 / 0.9**2
    loc = (LOC / SCALE**2 + seen / 0.9**2) / precision
    first = norm(LOC, np.hypot(SCALE, 0.9)).logpdf(seen).sum()
    truth = 2 * first + norm(loc, np.sqrt(1 / precision + NOISE**2)).logpdf(ys).sum()
    assert smc.log_evidence_error < 0.05
    assert abs(smc.log_evidence - truth) < 4 * smc.log_evidence_error
    mean = (loc * precision + ys / NOISE**2) / (precision + 1 / NOISE**2)
    sd = np.sqrt(1 / (precision + 1 / NOISE**2))
    assert (abs(np.asarray(smc.get_samples()["x"]).mean(0) - mean) < 5 * sd * np.sqrt(2 / 2048)).all()


@pytest.mark.slow
def test_bits_and_the_priors_own_strides():
    """A prior whose sampler takes fewer steps is that prior in SMC too."""
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(6))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(np.eye(3, dtype=int)), 3)
    strided = nd.DiffusionPrior(process, sampler=nd.samplers.Ancestral(3))

    def noisy():
        x = numpyro.sample("x", strided)
        numpyro.sample("y", dist.Bernoulli(0.9 * x + 0.1 * (1 - x)).to_event(1), obs=np.array([1, 0, 0]))

    smc = nd.infer.SMC(noisy, num_particles=512, num_islands=4).run(jax.random.key(5))
    assert smc.particles.effective_size.shape == (4, 4)
    x = np.asarray(strided.sample(jax.random.key(6), (100_000,)))
    likelihood = np.where(x == [1, 0, 0], 0.9, 0.1).prod(1)
    error = np.hypot(likelihood.std() / likelihood.mean() / np.sqrt(100_000), smc.log_evidence_error)
    assert abs(smc.log_evidence - np.log(likelihood.mean())) < 5 * error
    truth = np.average(x[:, 0], weights=likelihood)
    assert abs(np.asarray(smc.get_samples()["x"])[:, 0].mean() - truth) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "num_particles: expected a whole number of at least 2, got 1"),
        ({"num_islands": 0}, "num_islands: expected a whole number of at least 1, got 0"),
        ({"threshold": 2.0}, "threshold: expected a fraction"),
        ({"target_log_evidence_sd": 0.0}, "target_log_evidence_sd: expected a positive number or None, got 0.0"),
        ({"target_log_evidence_sd": 0.1, "num_islands": 1}, "num_islands: expected at least 2 with target"),
        ({"devices": 10_000}, "devices: expected at most the 1 of jax.devices"),
        ({"checkpoint": "file"}, "checkpoint: expected None without target_log_evidence_sd, got 'file'"),
        ({"max_particles": 1}, "max_particles: expected a whole number of at least 2"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nd.infer.SMC(model, **options)


def test_a_model_that_does_not_fit_says_why():
    empty = lambda: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)
    with pytest.raises(ValueError, match="site: expected the name of a latent site"):
        nd.infer.SMC(empty, "x").run(jax.random.key(0))
    with pytest.raises(ValueError, match="model: expected one latent diffusion site, got none"):
        nd.infer.SMC(empty).run(jax.random.key(0))


def test_a_sampler_or_the_keywords_that_make_one():
    sampler = nd.samplers.TwistedSMC(40, antithetic=False)
    assert nd.infer.SMC(model, sampler=sampler).num_particles == 40
    with pytest.raises(ValueError, match=r"sampler: expected .* got both: \['antithetic', 'num_particles'\]"):
        nd.infer.SMC(model, num_particles=8, antithetic=False, sampler=sampler)
    with pytest.raises(TypeError, match="sampler: expected a numpyro_diffusion.samplers.TwistedSMC, got Particle"):
        nd.infer.SMC(model, sampler=nd.samplers.ParticleGibbs(4))


@pytest.mark.slow
def test_a_sampler_runs_as_its_keywords_do():
    """To the bit, and as asked for: its twist and its particles are kept."""
    own = {"twist": twists.Annealed(), "num_steps": 4, "threshold": 1.0, "chunk": 4, "antithetic": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = nd.infer.SMC(model, num_islands=2, sampler=nd.samplers.TwistedSMC(8, **own)).run(jax.random.key(0), Y)
        two = nd.infer.SMC(model, num_particles=8, num_islands=2, **own).run(jax.random.key(0), Y)
    assert str(one.plan) == str(two.plan) and one.num_particles == 8
    np.testing.assert_array_equal(one.log_evidences, two.log_evidences)
    np.testing.assert_array_equal(one.get_samples()["x"], two.get_samples()["x"])
