"""Antithetic particles: the curve, draws of opposite noise, and SMC that stays right and has less noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.discrete import BernoulliLogits
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.factors import Elementwise, Factor, Gaussian, LinearGaussian
from numpyro_diffusion.laws import LoweredNormal, PartlyKnown, mirrored
from numpyro_diffusion.samplers import TwistedSMC
from numpyro_diffusion.samplers.ordering import curve_order, hilbert_index

LOC, SCALE = np.array([0.5, -1.0]), np.array([1.2, 0.6])


@eqx.filter_jit
def runs(sampler, process, factor, keys):
    return jax.vmap(lambda key: sampler.run(key, process, factor))(keys)


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def relative(log_evidence, log_z):
    return np.exp(np.asarray(log_evidence, np.float64) - log_z)


# ---- the curve


def test_the_curve_goes_from_cell_to_neighbouring_cell_and_into_each():
    side = np.arange(32)
    cells = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    index = np.asarray(hilbert_index(jnp.asarray((cells + 0.5) / 32)))
    assert len(np.unique(index)) == 32**2
    assert (abs(np.diff(cells[np.argsort(index)], axis=0)).sum(1) == 1).all()


def test_particles_are_ordered_by_where_they_differ():
    """Two directions of 50 hold the spread; neighbours in the order are neighbours there, of a grid of 8 × 8."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)[rng.permutation(64)]
    plane = np.linalg.qr(rng.normal(size=(50, 2)))[0].T
    points = (grid * [1.0, 0.9] @ plane + 1e-3 * rng.normal(size=(64, 50))).reshape(64, 5, 10)
    order = np.asarray(jax.jit(curve_order)(jnp.asarray(points + 7.0)))
    np.testing.assert_array_equal(np.sort(order), np.arange(64))
    steps = np.linalg.norm(np.diff(grid[order], axis=0), axis=1)
    assert steps.mean() < 1.5  # 4.2 between any two


@pytest.mark.parametrize("shape", [(9, 1), (9,), (9, 4)])
def test_points_on_a_line_are_sorted_along_it(shape):
    place = np.random.default_rng(1).normal(size=9)
    points = np.broadcast_to(place.reshape((9, *(1 for _ in shape[1:]))), shape)
    sorted_place = place[np.asarray(curve_order(jnp.asarray(points, dtype=float)))]
    change = np.sign(np.diff(sorted_place))
    assert (change == change[0]).all()


def test_points_that_are_all_the_same_have_an_order_too():
    np.testing.assert_array_equal(np.sort(curve_order(jnp.ones((6, 3)))), np.arange(6))


# ---- opposite noise


def laws():
    """One law of each kind that a step can have, with its mean and its covariance or None for bits."""
    normal = dist.Normal(jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 0.5, 2.0]), validate_args=False).to_event(1)
    bits = BernoulliLogits(jnp.array([-1.0, 0.3, 2.0]), validate_args=False).to_event(1)
    values, mask = jnp.array([1.0, 0.0, 0.0]), jnp.array([True, False, False])
    lowered = LoweredNormal(normal.mean, jnp.array([1.0, 0.5, 2.0]), jnp.array([[0.6, -0.3, 0.2]]))
    known = {"known": PartlyKnown(normal, values, mask), "known_bits": PartlyKnown(bits, values, mask)}
    return {"normal": normal, "bits": bits, "lowered": lowered, **known}


@pytest.mark.parametrize("name", laws())
def test_mirrored_draws_have_the_law_and_are_opposite(name):
    law, count = laws()[name], 4000
    draw = jax.jit(jax.vmap(lambda key, mirror: mirrored(law, key, mirror), (0, None)))
    plain, mirror = (np.asarray(draw(keys(2, count), flag), np.float64) for flag in (False, True))
    np.testing.assert_array_equal(plain, jax.vmap(law.sample)(keys(2, count)))
    spread = np.sqrt(np.asarray(law.mean * (1 - law.mean)) if "bits" in name else np.asarray(law.variance))
    assert (abs(mirror.mean(0) - law.mean) < 4 * spread / np.sqrt(count) + 1e-6).all()
    np.testing.assert_allclose(np.cov(mirror.T), np.cov(plain.T), atol=4 * 4 * np.sqrt(2 / count))
    if "bits" in name:
        assert set(np.unique(mirror)) <= {0.0, 1.0}
        together = ((plain - law.mean) * (mirror - law.mean)).mean(0)
        odds = np.minimum(law.mean, 1 - law.mean)  # one uniform number u for both: u < p, and 1 − u < p
        expected = np.maximum(2 * np.asarray(law.mean) - 1, 0) - np.asarray(law.mean) ** 2
        assert (abs(together - expected) < 4 * np.sqrt(odds / count) + 1e-6).all()
    else:
        np.testing.assert_allclose(plain + mirror, np.broadcast_to(2 * law.mean, plain.shape), atol=1e-5)


def test_a_law_of_another_kind_is_named():
    with pytest.raises(TypeError, match="mirrored: expected a law of .*Normal.*, got one of Gamma"):
        mirrored(dist.Gamma(jnp.ones(2)).to_event(1), jax.random.key(0), True)


# ---- SMC


def gaussian_process(num_steps=8):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps), 0.2, 1.5)
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(LOC, SCALE), 2)


def chain_law(process):
    """Mean and variance of x_0 under the chain, by the recursion of its affine kernels."""
    mean, variance = np.full(2, 0.2), np.full(2, 1.5**2)
    for t in range(process.num_steps, 0, -1):
        at = lambda x, t=t: process.kernel(jnp.asarray(x, dtype=float), t, t - 1)
        offset = np.asarray(at(np.zeros(2)).mean, np.float64)
        slope = np.asarray(at(np.ones(2)).mean, np.float64) - offset
        mean = slope * mean + offset
        variance = slope**2 * variance + np.asarray(at(np.zeros(2)).variance, np.float64)
    return mean, variance


def test_the_evidence_is_unbiased():
    """With a poor twist single runs of five particles, one without a partner, are far off; their mean is right."""
    process, factor = gaussian_process(4), Gaussian([1.0, -1.5], 0.8)
    sampler = TwistedSMC(5, twists.Annealed(), antithetic=True)
    mean, variance = chain_law(process)
    log_z = norm(mean, np.sqrt(variance + 0.64)).logpdf([1.0, -1.5]).sum()
    got = relative(runs(sampler, process, factor, keys(3, 4000)).log_evidence, log_z)
    assert got.std() > 0.1
    assert abs(got.mean() - 1) < 4.5 * got.std() / np.sqrt(len(got))


@pytest.mark.slow
def test_the_evidence_of_bits_is_unbiased():
    """Two bits: p(x_0) of the chain by multiplying its transition matrices."""
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(3), 0.4)
    denoiser = nd.denoisers.Enumerated([[0, 0], [1, 1], [1, 0]], [0.3, 0.5, 0.2])
    process, factor = nd.ReverseProcess(diffusion, denoiser, 2), Elementwise([1.5, -1.0], [-0.5, 1.0])
    states = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    p = np.prod(np.where(states == 1, 0.4, 0.6), 1)
    each = jax.jit(jax.vmap(lambda x: (factor.log_r(x), [process.kernel(x, t, t - 1).mean for t in (3, 2, 1)])))
    log_r, kernels = each(jnp.asarray(states))
    for one in kernels:
        one = np.asarray(one, np.float64)[:, None]
        p = p @ np.prod(np.where(states == 1, one, 1 - one), -1)
    log_z = np.log(p @ np.exp(np.asarray(log_r, np.float64)))
    sampler = TwistedSMC(4, twists.Constant(), antithetic=True)
    got = relative(runs(sampler, process, factor, keys(4, 4000)).log_evidence, log_z)
    assert got.std() > 0.05
    assert abs(got.mean() - 1) < 4.5 * got.std() / np.sqrt(len(got))


@pytest.mark.slow
def test_shares_of_two_modes_have_less_noise():
    """Share of one of two modes, over 100 runs of 64 particles each: a variance of less than half, by 4 s.e."""
    means = np.array([[-1.0, 0.5, -1.0, 0.5], [1.0, -0.5, 1.0, -0.5]])
    mixture = nd.denoisers.GaussianMixture(means, np.full(2, 0.3), np.array([0.3, 0.7]))
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(24, -5.0, 3.0)), mixture, 4)
    factor = LinearGaussian([-0.2], np.array([[1.0, 0.5, 0.0, 0.0]]), 0.6)
    twist = twists.Tempered(twists.Laplace(), 0.5)  # one that leaves weights something to do

    def shares(antithetic):
        got = runs(TwistedSMC(64, twist, antithetic=antithetic), process, factor, keys(5, 100))
        return (np.exp(np.asarray(got.log_weight, np.float64)) * (np.asarray(got.x)[..., 0] > 0)).sum(1)

    plain, paired = shares(False), shares(True)
    gain = np.log(plain.var(ddof=1) / paired.var(ddof=1))
    error = 2 / np.sqrt(99)  # of the difference of two log variances
    assert gain > np.log(2) + 4 * error
    assert abs(plain.mean() - paired.mean()) < 4 * np.hypot(plain.std(), paired.std()) / 10


@pytest.mark.parametrize(
    ("threshold", "antithetic"),
    [pytest.param(*case, marks=pytest.mark.slow) for case in [(1.0, True), (0.0, True), (1.0, False)]],
)
def test_ancestors_are_the_true_parents(threshold, antithetic):
    """A chain that hardly moves: every x_0 is next to the x_T that its ancestors lead back to."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(4, -4.0, -3.95))
    stays = nd.denoisers.Network(lambda x, t: x, "data")
    process = nd.ReverseProcess(diffusion, stays, 20, last_step=nd.process.LearnedStep(-4.0))
    factor, key = Factor(lambda x: 0.3 * jnp.sum(x)), jax.random.key(6)
    sampler = TwistedSMC(15, twists.Constant(), threshold=threshold, antithetic=antithetic)
    got = eqx.filter_jit(sampler.run)(key, process, factor)
    start, _ = sampler.chain(process, factor, antithetic).start(jax.random.split(key, 4)[0], 15)
    lineage = np.arange(15)
    for back in np.asarray(got.ancestors)[::-1]:
        lineage = back[lineage]
    gap = np.linalg.norm(np.asarray(got.x)[:, None] - np.asarray(start), axis=-1)
    np.testing.assert_array_equal(gap.argmin(1), lineage)
    assert (len(np.unique(lineage)) == 15) == (threshold == 0)
    assert (lineage != np.arange(15)).any()


@pytest.mark.slow
def test_chunks_change_no_number():
    process, factor = gaussian_process(4), Factor(lambda x: -jnp.sum(jnp.abs(x - 1.0)))
    whole, parts = (
        eqx.filter_jit(TwistedSMC(9, chunk=chunk, antithetic=True).run)(jax.random.key(8), process, factor)
        for chunk in (None, 4)
    )
    np.testing.assert_array_equal(whole.ancestors, parts.ancestors)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)


@pytest.mark.slow
def test_the_runner_passes_it_on():
    """Without resampling, what shows it are the ancestors: the particles are put in order all the same."""
    prior = nd.DiffusionPrior(gaussian_process(4))

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)

    for antithetic in (False, True):
        own = {"twist": twists.MomentMatched(), "threshold": 0.0, "antithetic": antithetic}
        smc = nd.infer.SMC(model, num_particles=6, num_islands=2, **own)
        ancestors = np.asarray(smc.run(jax.random.key(9), 0.3).particles.ancestors)
        assert (ancestors != np.arange(6)).any() == antithetic
        np.testing.assert_array_equal(np.sort(ancestors, axis=-1), np.broadcast_to(np.arange(6), ancestors.shape))
