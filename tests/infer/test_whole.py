"""SMC of models in which more than x is unknown: closed forms, quadrature, and reweighted draws of the prior."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import mask, scale
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm, poisson

import numpyro_diffusion as nd

DIFFUSION = nd.GaussianDiffusion(nd.schedules.log_snr(20, -9.0, 6.0))
UNIT = nd.DiffusionPrior(nd.ReverseProcess(DIFFUSION, nd.denoisers.Gaussian(0.0, 1.0), 1))
LOCS = jnp.array([-2.0, 0.0, 1.5])


def told(size):
    """N(c, 1) in `size` dimensions, for a context c that is one number."""
    denoiser = nd.denoisers.Conditional(lambda c: nd.denoisers.Gaussian(c, 1.0))
    return nd.DiffusionPrior(nd.ReverseProcess(DIFFUSION, denoiser, size))


def centred(y):
    """A prior that depends on an unknown: y is N(0, 2.25)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", told(1).given(mu))
    numpyro.deterministic("double", 2 * x[0])
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def quiet(model, *args, key=0, **options):
    """A run that gives no warning, or the warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", nd.ReliabilityWarning)
        return nd.infer.SMC(model, **options).run(jax.random.key(key), *args)


def z_of_mean(draws, mean, sd):
    """The error of a mean in standard errors of as many independent draws."""
    draws = np.asarray(draws, np.float64).reshape(-1)
    return (draws.mean() - mean) / (sd / np.sqrt(draws.size))


@pytest.fixture(scope="module")
def run():
    """One run that several tests look at."""
    return quiet(centred, jnp.array([3.0]), num_particles=8, num_draws=128)


def test_a_context_and_x_have_the_closed_forms_posterior_and_evidence(run):
    assert 0 < run.log_evidence_error < 0.3
    assert abs(run.log_evidence - norm.logpdf(3.0, 0, 1.5)) < 4 * 0.15 / 2
    draws = run.get_samples()
    assert abs(z_of_mean(draws["mu"], 4 / 3, np.sqrt(5 / 9))) < 6
    assert abs(z_of_mean(draws["x"], 8 / 3, np.sqrt(2 / 9))) < 6
    assert abs(draws["mu"].std() / np.sqrt(5 / 9) - 1) < 0.2
    # Given y, x rises with mu: cov(mu, x | y) = 1 − 1 · 2 / 2.25.
    assert abs(np.cov(draws["mu"], draws["x"][:, 0])[0, 1] - 1 / 9) < 0.12


def test_draws_have_the_models_names_and_islands_are_chains(run):
    flat, grouped = run.get_samples(), run.get_samples(group_by_chain=True)
    assert set(flat) == set(grouped) == {"mu", "x", "double"}
    assert flat["x"].shape == (512, 1) and grouped["x"].shape == (4, 128, 1) and grouped["mu"].shape == (4, 128)
    np.testing.assert_allclose(flat["double"], 2 * flat["x"][:, 0], rtol=1e-5)
    data = nd.to_arviz(run)
    assert data["posterior"]["mu"].shape == (4, 128)
    assert np.nanmax(data["sample_stats"]["temperature"].values) == 1
    assert data["sample_stats"]["acceptance_rate"].dims == ("chain", "stage")
    assert data["log_likelihood"]["y"].shape[:2] == (4, 128)


def test_the_summary_says_what_was_found(run, capsys):
    run.print_summary()
    printed = capsys.readouterr().out
    assert "mu" in printed and "x[0]" in printed and f"log evidence {run.log_evidence:.3f} ±" in printed
    assert "noise of log p(y | other unknowns) 0.00" in printed
    assert "4 × 128 draws of the other unknowns × 8 particles" in printed
    assert run.reliability.acceptance > 0.3 and abs(run.reliability.least_size - 8) < 0.1
    assert all(each[-1] == 1 and (np.diff(each) > 0).all() for each in run.temperatures)
    with pytest.raises(ValueError, match="particles: expected a run in which x alone is unknown"):
        _ = run.particles


def several(y):
    """A label, the scale of the noise, and a site whose own prior depends on x."""
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
    s = numpyro.sample("s", dist.LogNormal(-0.5, 0.7))
    x = numpyro.sample("x", told(1).given(LOCS[k]))
    z = numpyro.sample("z", dist.Normal(x[0], 0.7))
    with numpyro.plate("seen", len(y)):
        numpyro.sample("y", dist.Normal(z, s), obs=y)


@pytest.mark.slow
def test_labels_scales_and_sites_below_x_against_quadrature():
    y = np.array([1.1, -0.3, 0.8, 2.0, 0.4])
    found = quiet(several, jnp.asarray(y), num_particles=16)
    grid = np.linspace(-4, 4, 801)
    spread, ones = 1 + 0.7**2, np.ones((5, 5))
    log_p = np.array(
        [
            [
                np.log(share)
                + norm.logpdf(u, -0.5, 0.7)
                + multivariate_normal.logpdf(y, np.full(5, float(loc)), np.exp(2 * u) * np.eye(5) + spread * ones)
                for u in grid
            ]
            for share, loc in zip([0.2, 0.3, 0.5], LOCS, strict=True)
        ]
    )
    total = logsumexp(log_p)
    share = np.exp(log_p - total)
    assert abs(found.log_evidence - total - np.log(grid[1] - grid[0])) < 4 * max(found.log_evidence_error, 0.05)
    draws, labels, scales = found.get_samples(), share.sum(1), share.sum(0)
    for k in range(3):
        assert abs(z_of_mean(draws["k"] == k, labels[k], np.sqrt(labels[k] * (1 - labels[k])))) < 5
    mean = (scales * np.exp(grid)).sum()
    assert abs(z_of_mean(draws["s"], mean, np.sqrt((scales * (np.exp(grid) - mean) ** 2).sum()))) < 5
    # E[z | y], and then x is on the way from z to its label's location.
    weight = 1 / (spread / 5 * np.exp(-2 * grid) * 25 + 1)  # the prior's share
    z_mean = (share * (weight * np.asarray(LOCS)[:, None] + (1 - weight) * y.mean())).sum()
    assert abs(float(draws["z"].mean()) - z_mean) < 0.1
    second = found.cross_check(jax.random.key(1))
    assert second.method == "prior draws" and second.agrees and second.error < 0.2


@pytest.mark.slow
def test_a_learned_prior_with_an_unknown_amplitude_against_reweighted_draws(banana):
    prior, y = banana.with_(sampler=nd.samplers.Ancestral(8)), np.array([3, 1])

    def model():
        a = numpyro.sample("a", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Poisson(jnp.exp(a * x)).to_event(1), obs=jnp.asarray(y))

    size = 50_000
    x = np.asarray(prior.sample(jax.random.key(1), (size,)), np.float64)
    a = np.exp(0.5 * np.random.default_rng(2).normal(size=size))
    log_weight = poisson.logpmf(y, np.exp(a[:, None] * x)).sum(1)
    log_evidence = logsumexp(log_weight) - np.log(size)
    weight = np.exp(log_weight - log_evidence)
    mean = np.mean(weight * a)
    found = quiet(model, num_particles=16, num_draws=128)
    error = np.hypot(max(found.log_evidence_error, 0.03), weight.std() / np.sqrt(size))
    assert abs(found.log_evidence - log_evidence) < 4 * error
    assert abs(z_of_mean(found.get_samples()["a"], mean, np.sqrt(np.mean(weight * (a - mean) ** 2)))) < 5


@pytest.mark.slow
def test_a_noisy_likelihood_is_named():
    found = nd.infer.SMC(centred, num_particles=2, num_draws=16, twist=nd.twists.Flat())
    with pytest.warns(nd.ReliabilityWarning, match="estimated with a noise of .* More draws"):
        found.run(jax.random.key(0), jnp.array([30.0]))
    assert found.reliability.noise > 2.5


def test_what_cannot_be_moved_is_refused_by_name():
    def counted():
        numpyro.sample("n", dist.Poisson(3.0))
        return numpyro.sample("x", UNIT)

    def masked():
        with mask(mask=False):
            numpyro.sample("n", dist.Normal(0.0, 1.0))
        return numpyro.sample("x", UNIT)

    def scaled():
        with scale(scale=2.0):
            numpyro.sample("n", dist.Normal(0.0, 1.0))
        return numpyro.sample("x", UNIT)

    def below():
        x = numpyro.sample("x", UNIT)
        return numpyro.sample("n", dist.Bernoulli(logits=x[0]))

    def scanned():
        x = numpyro.sample("x", UNIT)
        step = lambda carry, _: (carry, numpyro.sample("n", dist.Normal(carry, 1.0)))
        return scan(step, x[0], None, length=3)

    for model, said in {
        counted: "n: expected a continuous latent site, or single elements of a few values, for SMC, got Poisson",
        masked: "n: expected a latent site without a mask",
        scaled: "n: expected a latent site without a scale",
        below: r"n: expected a discrete site whose prior does not depend on \['x'\]",
        scanned: "n: expected a latent site outside of any scan|inside a scan",
    }.items():
        with pytest.raises(ValueError, match=said):
            nd.infer.SMC(model).run(jax.random.key(0))
    alone = numpyro.handlers.substitute(centred, data={"mu": jnp.array(1.0)})
    with pytest.raises(ValueError, match="num_draws: expected None for a model in which x alone is unknown, got 8"):
        nd.infer.SMC(alone, num_draws=8).run(jax.random.key(0), jnp.array([3.0]))
