"""SMC without a twist, tempered in the space of the noise, and that it is taken where no twist will do."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp, ndtr
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer.extract import extract
from numpyro_diffusion.infer.islands import Alone
from numpyro_diffusion.infer.noise_sampler import SETTINGS, NoiseTempering, can_temper, effective_sizes
from numpyro_diffusion.infer.plan import Plan
from numpyro_diffusion.infer.tempering import Records


def prior_of(denoiser, shape, num_steps=10, diffusion=nd.GaussianDiffusion, **options):
    process = nd.ReverseProcess(diffusion(nd.schedules.log_snr(num_steps)), denoiser, shape)
    return nd.DiffusionPrior(process, **options)


def normal(loc=0.0, **options):
    return prior_of(nd.denoisers.Gaussian(loc, 1.0), 2, **options)


Y = np.array([1.0, 0.5])
EVIDENCE = norm(0.0, np.sqrt(1.25)).logpdf(Y).sum()  # of N(0, I) seen with a noise of 0.5


def observed(law, factors=1):
    with numpyro.plate("rows", factors):
        x = numpyro.sample("x", law)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=jnp.asarray(Y))


def run(model, args, num_particles=512, num_islands=4):
    target = Alone(model, "x", args, {})
    return target, target.run(jax.random.key(0), Plan(NoiseTempering(num_particles), num_islands, "as asked for"))


def test_a_normal_posterior_in_a_plate_is_that_of_the_closed_form():
    target, found = run(observed, (normal(), 2))
    assert abs(found.log_evidences.mean() - 2 * EVIDENCE) < 5 * found.log_evidence_error + 0.01
    assert found.log_evidence_error < 0.3 and found.is_good
    x = np.asarray(target.draws(found, jax.random.key(1), True)["x"])
    assert x.shape == (4, 512, 2, 2)
    error = np.sqrt(0.2 / 2048)  # particles are nearly independent of one another
    np.testing.assert_allclose(x.mean((0, 1)), np.stack([0.8 * Y] * 2), atol=6 * error)
    np.testing.assert_allclose(x.std((0, 1)), np.sqrt(0.2), rtol=0.1)


def test_labels_of_a_mixture_of_priors_have_their_probabilities():
    mixture = dist.MixtureGeneral(dist.Categorical(probs=jnp.array([0.3, 0.7])), [normal(0.0), normal(2.0)])

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", mixture), 0.5).to_event(1), obs=jnp.asarray(Y))

    _, found = run(model, ())
    each = np.log([0.3, 0.7]) + [norm(loc, np.sqrt(1.25)).logpdf(Y).sum() for loc in (0.0, 2.0)]
    np.testing.assert_allclose(found.labels(2).probabilities, np.exp(each - logsumexp(each)), atol=0.05)
    assert abs(found.log_evidences.mean() - logsumexp(each)) < 5 * found.log_evidence_error + 0.01


@pytest.mark.parametrize(("correlation", "share"), [(0.0, 1.0), (1.0, 0.36), (0.5, 1 / 1.2361111)])
def test_particles_that_do_not_move_are_worth_what_resampling_left(correlation, share):
    """Two temperatures, each of which keeps six tenths: v / 0.6, then 1 + ρ² (v / 0.6 − 1), twice, from v = 1."""
    blank = jnp.full(SETTINGS.max_temperatures, jnp.nan)
    records = Records(
        jnp.asarray(2), jnp.asarray(True), blank, blank, blank, blank.at[:2].set(correlation), jnp.asarray(0)
    )
    sizes = effective_sizes(records, 100)
    assert sizes.shape == (SETTINGS.max_temperatures + 2,) and sizes[0] == 100
    np.testing.assert_allclose(sizes[-1], 100 * share, rtol=1e-4)
    np.testing.assert_allclose(sizes[1], 60, rtol=1e-4)
    assert (sizes[3:-1] == 100).all()  # temperatures that were not needed
    assert (effective_sizes(records._replace(finished=jnp.asarray(False)), 100) == 0).all()


def network():
    return nd.denoisers.Network(nd.networks.MLP(jax.random.key(0), (2,), num_steps=10, width=64), predicts="noise")


@pytest.mark.parametrize(
    ("prior", "factor", "count", "expected"),
    [
        (normal(), nd.factors.Gaussian(1.0, 0.5), 2048, True),
        (normal(num_steps=100), nd.factors.Gaussian(1.0, 0.5), 10**6, False),  # too many
        (prior_of(network(), 2), nd.factors.Gaussian(1.0, 0.5), 8192, False),  # a network
        (normal(), nd.factors.Delta([1.0, 0.0], mask=[True, False]), 2048, False),
        (
            prior_of(nd.denoisers.Enumerated([[0, 1], [1, 1]], [0.5, 0.5]), 2, diffusion=nd.BinomialDiffusion),
            nd.factors.Factor(lambda x: x.sum()),
            2048,
            False,
        ),
    ],
)
def test_it_is_for_real_values_and_cheap_denoisers(prior, factor, count, expected):
    found = extract(lambda: numpyro.sample("x", prior * factor), "x", (), {}).in_latent()
    assert can_temper(found, None, count) is expected


def crescent(z):
    """The log likelihood of sbibm's two moons, observed at 0, of parameters that are uniform if z is normal."""
    theta = 2 * jax.scipy.special.ndtr(z) - 1
    across = jnp.abs(theta[0] + theta[1]) / jnp.sqrt(2.0) - 0.25
    along = (theta[0] - theta[1]) / jnp.sqrt(2.0)
    radius = jnp.sqrt(across**2 + along**2 + 1e-12)
    inside = dist.Normal(0.1, 0.01).log_prob(radius) - jnp.log(jnp.pi) - jnp.log(radius)
    return jnp.where(across > 0, inside, -jnp.inf)


@pytest.mark.slow
def test_the_crescents_are_those_of_quadrature():
    """No twist knows crescents of a hundredth: at the first steps particles are led to where few end well."""
    middle = (np.arange(2000) + 0.5) / 1000 - 1  # of cells of the parameters, which are uniform
    from_z = jnp.asarray(norm.ppf((middle + 1) / 2), dtype=float)
    grid = jax.jit(jax.vmap(lambda a: jax.vmap(lambda b: crescent(jnp.stack([a, b])))(from_z)))(from_z)
    truth = float(logsumexp(np.asarray(grid, dtype=np.float64)) - np.log(grid.size))

    def model():
        numpyro.factor("y", crescent(numpyro.sample("x", normal(num_steps=25))))

    with warnings.catch_warnings():
        warnings.simplefilter("error", nd.ReliabilityWarning)
        smc = nd.infer.SMC(model).run(jax.random.key(0))
    assert isinstance(smc.plan.sampler, NoiseTempering) and "no twist, tempered" in str(smc.plan)
    assert abs(smc.log_evidence - truth) < 4 * smc.log_evidence_error and smc.log_evidence_error < 0.25
    theta = 2 * ndtr(np.asarray(smc.get_samples()["x"], dtype=np.float64)) - 1
    share = np.mean(theta.sum(1) > 0)  # one of two crescents that are alike
    assert abs(share - 0.5) < 0.1
    across, along = np.abs(theta.sum(1)) / np.sqrt(2) - 0.25, (theta[:, 0] - theta[:, 1]) / np.sqrt(2)
    np.testing.assert_allclose(np.hypot(across, along).mean(), 0.1, atol=0.003)


@functools.cache
def mixture():
    denoiser = nd.denoisers.GaussianMixture([[-1.5, 0.0], [1.0, 1.0], [0.0, 2.0]], [0.5, 0.4, 0.7], [0.3, 0.5, 0.2])
    return prior_of(denoiser, 2, 16)


@functools.cache
def learned():
    """A small network about two moons, in which x_0 given x_t has several modes."""
    rng = np.random.default_rng(0)
    angle, side = rng.uniform(0, np.pi, 1_000), rng.integers(0, 2, 1_000)
    points = np.stack([np.cos(angle) * (1 - 2 * side) + side, np.sin(angle) * (1 - 2 * side) + 0.5 * side], 1)
    data = 2 * points + 0.2 * rng.normal(size=points.shape)
    network = nd.networks.MLP(jax.random.key(2), (2,), num_steps=8, width=16, depth=2)
    process = prior_of(nd.denoisers.Network(network, "velocity"), 2, 8).process
    options = {"max_steps": 400, "batch_size": 128, "validation": 0.0, "progress_bar": False}
    return nd.DiffusionPrior(nd.fit(jax.random.key(1), process, data, **options).process)


@functools.cache
def drawn(made):
    """Of its own chain."""
    return np.asarray(made().sample(jax.random.key(9), (100_000,)), np.float64)


LIKELIHOODS = {
    "counts": lambda x: dist.Poisson(jnp.exp(x)).log_prob(jnp.array([3.0, 2.0])).sum(),
    "modulus": lambda x: dist.Normal(jnp.abs(x[0] - x[1]), 0.2).log_prob(1.0),
}


def chosen(x, which):
    """The likelihood of that number: one program for all of them."""
    return jax.lax.switch(which, list(LIKELIHOODS.values()), x)


@functools.cache
def model_of(made):
    def model(which):
        numpyro.factor("y", chosen(numpyro.sample("x", made()), which))

    return model


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("made", [mixture, learned])
def test_of_learned_priors_and_mixtures_it_is_right_beside_reweighted_draws(made, name):
    which, draws = jnp.asarray(list(LIKELIHOODS).index(name)), drawn(made)
    each = np.asarray(jax.jit(jax.vmap(chosen, (0, None)))(jnp.asarray(draws, float), which), np.float64)
    weight = np.exp(each - each.max())
    truth, error = np.log(weight.mean()) + each.max(), weight.std() / weight.mean() / np.sqrt(len(weight))
    share = weight / weight.sum()
    mean = share @ draws
    deviation = np.sqrt(share @ (draws - mean) ** 2)

    target, found = run(model_of(made), (which,), num_particles=256)
    assert found.is_good
    value = logsumexp(np.asarray(found.log_evidences, np.float64)) - np.log(4)
    assert abs(value - truth) < 4 * np.hypot(found.log_evidence_error, error)
    x = np.asarray(target.draws(found, jax.random.key(1), False)["x"])
    # A third of the 1,024 draws count as independent.
    assert np.all(np.abs(x.mean(0) - mean) < 5 * deviation / np.sqrt(340))
    np.testing.assert_allclose(x.std(0) / deviation, 1.0, atol=0.15)
