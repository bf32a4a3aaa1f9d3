"""A mixture of Gaussians along turned axes: it says what one with full covariances says."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from programs import programs_optimised

import numpyro_diffusion as nd
from numpyro_diffusion.denoisers import FullGaussianMixture, SeparableMixture

SHAPE, COUNT = (3, 4, 2), 3
RNG = np.random.default_rng(0)
BASES = tuple(np.linalg.qr(RNG.normal(size=(size, size)))[0] for size in SHAPE)
LOCS = RNG.normal(size=(COUNT, *SHAPE)) + 3.0
VARIANCES = np.exp(RNG.normal(size=(COUNT, *SHAPE)))
WEIGHTS = np.array([0.5, 0.3, 0.2])


def separable():
    return SeparableMixture(LOCS, VARIANCES, BASES, WEIGHTS)


def full():
    whole = functools.reduce(np.kron, BASES)
    covariances = np.einsum("ij,kj,lj->kil", whole, VARIANCES.reshape(COUNT, -1), whole)
    return FullGaussianMixture(LOCS.reshape(COUNT, -1), covariances, WEIGHTS)


def diffusion():
    return nd.GaussianDiffusion(nd.schedules.log_snr(20), 2.5, 1.5)


def moments(denoiser, x, times):
    def one(x, t):
        law = denoiser.posterior(diffusion(), x, t)
        return law.mean, law.variance

    return jax.jit(jax.vmap(one))(x, times)


def test_it_says_what_full_covariances_say(x64):
    """Mean and variance at every step, near the data and far from them, and the log density."""
    x, times = np.random.default_rng(1).normal(size=(20, *SHAPE)) * 3 + 2.5, np.arange(1, 21)
    for got, expected in zip(moments(separable(), x, times), moments(full(), x, times), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(separable().data().log_prob(x), full().data().log_prob(x.reshape(len(x), -1)), rtol=1e-9)
    assert separable().is_exact and not separable().is_gaussian


def test_single_precision_is_enough_for_grey_levels():
    """Whose slow cosines are a thousand times the noise of the last step: beside double precision in numpy."""
    size, rng = 32, np.random.default_rng(2)
    places = np.arange(size)
    basis = np.sqrt(2 / size) * np.cos(np.pi * np.outer(places + 0.5, places) / size)
    basis[:, 0] /= np.sqrt(2)
    speed = 1 + places[:, None] + places[None]
    locs, variances = np.full((1, size, size), 128.0), (2e6 / speed**3 + 1 / 12)[None]
    exact = SeparableMixture(locs, variances, (basis, basis))
    schedule = nd.schedules.log_snr(100, detail=1 / np.sqrt(12) / 64)
    diffusion = nd.GaussianDiffusion(schedule, 128.0, 64.0)
    x = 128 + basis @ (np.sqrt(variances[0]) * rng.normal(size=(size, size))) @ basis.T
    for t in (1, 30, 100):
        alpha_bar, share = map(float, schedule.signal_and_noise(t))
        x_t = 128 + np.sqrt(alpha_bar) * (x - 128) + 64 * np.sqrt(share) * rng.normal(size=x.shape)
        law = exact.posterior(diffusion, jnp.asarray(x_t, jnp.float32), t)
        total = alpha_bar * variances[0] + 64**2 * share
        z = basis.T @ (x_t - 128) @ basis * np.sqrt(alpha_bar) * variances[0] / total
        left = np.square(basis) @ (variances[0] * 64**2 * share / total) @ np.square(basis).T
        np.testing.assert_array_less(np.abs(np.asarray(law.mean) - 128 - basis @ z @ basis.T), 0.02 * np.sqrt(left))
        np.testing.assert_allclose(law.variance, left, rtol=1e-3)


def test_its_chain_draws_the_density():
    """The mean log density of draws is that of the density's own, as many draws as there are of it."""
    exact = separable()
    process = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(200, scale=2.0, detail=0.3), 2.5, 1.5), exact, SHAPE
    )
    draws = nd.DiffusionPrior(process).sample(jax.random.key(0), (600,))
    own = exact.data().sample(jax.random.key(1), (600,))
    one, two = (np.asarray(exact.data().log_prob(x)) for x in (draws, own))
    assert abs(one.mean() - two.mean()) < 4 * np.hypot(one.std(), two.std()) / np.sqrt(600)


def test_files_keep_all_its_bits(tmp_path):
    """In half precision too, which a basis could not bear."""
    network = nd.networks.MLP(jax.random.key(0), SHAPE, num_steps=20, width=8, depth=1, outputs=2)
    denoiser = nd.denoisers.Residual(network, separable())
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion(), denoiser, SHAPE))
    prior.save(tmp_path / "prior", dtype="float16")
    again, x = nd.load(tmp_path / "prior"), jnp.ones(SHAPE)
    for got, expected in zip(
        jax.tree.leaves(again.process.denoiser.baseline), jax.tree.leaves(separable()), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(again.process.predict(x, 5), prior.process.predict(x, 5), rtol=1e-6)


def test_a_posterior_is_that_of_the_mixture():
    """One known element, by SMC, against the means and variances by linear algebra."""
    prior = nd.DiffusionPrior(
        nd.ReverseProcess(
            nd.GaussianDiffusion(nd.schedules.log_snr(64, scale=2.0, detail=0.3), 2.5, 1.5), separable(), SHAPE
        )
    )
    y, noise = 5.0, 0.3
    factor = nd.factors.LinearGaussian(y, lambda x: x[1, 2, 0], noise)
    found = (prior * factor).smc(jax.random.key(0))
    dense, place = full(), np.ravel_multi_index((1, 2, 0), SHAPE)
    covariances = np.einsum("kij,kj,klj->kil", dense.bases, dense.variances, dense.bases)
    seen = covariances[:, place, place] + noise**2
    apart = y - LOCS.reshape(COUNT, -1)[:, place]
    log_share = np.log(WEIGHTS) - 0.5 * (apart**2 / seen + np.log(2 * np.pi * seen))
    exact = np.logaddexp.reduce(log_share)
    each = np.asarray(found.log_evidence)
    assert abs(np.logaddexp.reduce(each) - np.log(len(each)) - exact) < 0.15
    share = np.exp(log_share - exact)
    mean = share @ (LOCS.reshape(COUNT, -1) + covariances[:, place] * (apart / seen)[:, None])
    weight = np.exp(np.asarray(found.log_weight) + (each - np.logaddexp.reduce(each))[:, None]).reshape(-1)
    draws = np.asarray(found.x).reshape(len(weight), -1)
    got = weight @ draws
    error = np.sqrt(weight @ np.square(draws - got) * np.square(weight).sum())
    np.testing.assert_array_less(np.abs(got - mean), 4.5 * error)


def test_its_components_are_those_of_full_covariances(x64):
    """And the covariance of the data; none where a matrix of all elements would be a burden."""
    own, dense = separable().components, full().components
    np.testing.assert_allclose(own.locs, dense.locs, atol=1e-9)
    one = jax.vmap(lambda k, parts: parts._replace(weights=jnp.eye(COUNT)[k]).covariance(), (0, None))
    np.testing.assert_allclose(one(jnp.arange(COUNT), own), one(jnp.arange(COUNT), dense), atol=1e-9)
    of_data = [each.covariance(diffusion(), SHAPE) for each in (separable(), full())]
    np.testing.assert_allclose(*of_data, atol=1e-9)
    large = SeparableMixture(np.zeros((1, 17, 16)), np.ones((1, 17, 16)), (np.eye(17), np.eye(16)))
    assert large.components is None and large.covariance(diffusion(), (17, 16)) is None


@pytest.mark.slow
def test_a_radius_by_the_defaults():
    """Of eight elements far out, where the components differ in reach: against the chain's own draws, reweighted.

    A twist that takes x_0 given x_t for one normal law is too low by several of its standard errors here, and its
    islands agree.
    """
    schedule = nd.schedules.log_snr(16, scale=2.0, detail=0.3)
    prior = nd.DiffusionPrior(nd.ReverseProcess(nd.GaussianDiffusion(schedule, 2.5, 1.5), separable(), SHAPE))
    log_r = lambda x: dist.Normal(jnp.linalg.norm(x[0]), 0.3).log_prob(12.0)

    def weighted(key):
        x = prior.sample(key, (1000,))
        weight, flat = jnp.exp(jax.vmap(log_r)(x)), x.reshape(1000, -1)
        return weight.sum(), jnp.square(weight).sum(), weight @ flat, weight @ flat**2

    count = 50_000
    keys = jax.random.split(jax.random.key(3), count // 1000)
    smc = nd.infer.SMC(lambda: numpyro.factor("y", log_r(numpyro.sample("x", prior))))
    with programs_optimised():
        found = jax.jit(lambda keys: jax.lax.map(weighted, keys))(keys)
        smc.run(jax.random.key(0))
    total, square, mean, second = (np.asarray(each, np.float64).sum(0) for each in found)
    truth, error = np.log(total / count), np.sqrt(square / total**2 - 1 / count)
    mean, deviation = mean / total, np.sqrt(second / total - (mean / total) ** 2)
    off = abs(smc.log_evidence - truth)
    assert off < 0.15 and off < 4 * np.hypot(smc.log_evidence_error, error)
    draws = np.asarray(smc.get_samples()["x"]).reshape(-1, 24)
    assert np.abs((draws.mean(0) - mean) / deviation).max() < 0.15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"locs": np.zeros(3)}, "locs: expected shape (k, *event) with k >= 1"),
        ({"locs": np.full(LOCS.shape, np.nan)}, "locs: expected finite numbers"),
        ({"variances": VARIANCES[:2]}, "variances: expected shape (3, 3, 4, 2), got (2, 3, 4, 2)"),
        ({"variances": -VARIANCES}, "variances: expected positive numbers"),
        (
            {"bases": BASES[:2]},
            "bases: expected a matrix for each axis of an event, of shapes [(3, 3), (4, 4), (2, 2)]",
        ),
        ({"bases": (2 * BASES[0], *BASES[1:])}, "bases: expected orthogonal matrices, got one of axis 0"),
        ({"weights": [0.5, 0.5]}, "weights: expected shape (3,), got (2,)"),
        ({"weights": [0.5, 0.5, 0.5]}, "weights: expected probabilities"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    given = {"locs": LOCS, "variances": VARIANCES, "bases": BASES, "weights": WEIGHTS} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        SeparableMixture(**given)


def test_noise_of_several_scales_is_refused():
    uneven = nd.GaussianDiffusion(nd.schedules.log_snr(4), 0.0, np.full(SHAPE, 1.0))
    with pytest.raises(ValueError, match="diffusion: expected one scale for all elements"):
        separable().posterior(uneven, jnp.zeros(SHAPE), 1)
