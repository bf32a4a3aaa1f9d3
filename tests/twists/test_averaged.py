"""The twist for any factor of bits, and last steps of bits and grey levels, against sums over all states."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit, logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.factors import Delta, Elementwise, Factor
from numpyro_diffusion.factors.base import batched_log_r
from numpyro_diffusion.laws import bit_logits
from numpyro_diffusion.samplers import ParticleGibbs, TwistedSMC
from numpyro_diffusion.twists.bits import average, points

SIZE, NUM_STEPS = 5, 6
SLOW = pytest.mark.slow


def listed(size):
    return np.array(list(itertools.product([0, 1], repeat=size)))


def log_bits(logits, states):
    return np.where(states == 1, -np.logaddexp(0, -logits), -np.logaddexp(0, logits)).sum(-1)


def summed(y, sd=0.3):
    return Factor(lambda x: -0.5 * ((jnp.sum(x) - y) / sd) ** 2)


def quadratic(size):
    matrix = jnp.asarray(np.random.default_rng(3).normal(size=(size, size)))
    return Factor(lambda x: x @ matrix @ x)


FACTORS = {
    "sum": summed(3.0),
    "quadratic": quadratic(SIZE),
    "parity": Factor(lambda x: 2.0 * jnp.cos(jnp.pi * jnp.sum(x))),
    "logistic": Factor(lambda x: jax.nn.log_sigmoid(4 * (x[0] + x[1] - x[2] - 0.5))),
    "poisson": Factor(lambda x: 4 * jnp.log(jnp.sum(x) + 0.1) - jnp.sum(x)),
    "known_and_sum": Delta([1, 0, 0, 0, 0], [True, False, False, True, False]) * summed(3.0),
    "all_kinds": Delta([0, 1, 0, 0, 0], [False, True, False, False, False]) * quadratic(SIZE) * Elementwise(0.7),
}

# ---- averages


@pytest.mark.parametrize("name", ["sum", "quadratic", "parity"])
def test_few_bits_are_summed_over(name):
    """log E[r] and the posterior log-odds of single bits, of which one is known."""
    logits = np.array([0.3, -1.0, 1.5, 0.0, np.inf])
    got = jax.jit(lambda logits: average(FACTORS[name].log_r, logits, points(4, SIZE)))(jnp.asarray(logits))
    states = listed(SIZE)
    weight = log_bits(logits, states) + np.asarray(batched_log_r(FACTORS[name], states, (SIZE,)), np.float64)
    np.testing.assert_allclose(got.log_psi, logsumexp(weight), rtol=1e-4)
    one = np.exp(weight - logsumexp(weight)) @ states
    np.testing.assert_allclose(got.logits[:4], np.clip(logit(one[:4]), logits[:4] - 5, logits[:4] + 5), atol=1e-3)
    assert got.logits[4] == np.inf


LONG = {
    "sum": (summed(9.0), 0.45),
    "quadratic": (quadratic(12), 0.45),
    "poisson": (Factor(lambda x: 11 * jnp.log(jnp.sum(x) + 0.1) - jnp.sum(x)), 0.15),
}


@pytest.mark.parametrize("name", ["sum", pytest.param("quadratic", marks=SLOW), pytest.param("poisson", marks=SLOW)])
def test_many_bits_are_drawn(name):
    """Twelve bits: fixed draws come within a fraction of a nat, and their bits closer than those of the law."""
    factor, tolerance = LONG[name]
    logits = np.random.default_rng(1).normal(size=(20, 12)) - 0.5
    states = listed(12)
    weight = np.asarray(batched_log_r(factor, states, (12,)), np.float64) + np.stack(
        [log_bits(each, states) for each in logits]
    )
    truth = logsumexp(weight, axis=1)
    one = np.exp(weight - truth[:, None]) @ states
    at = points(32, 12)
    got = jax.jit(jax.vmap(lambda logits: average(factor.log_r, logits, at)))(jnp.asarray(logits))
    error = np.asarray(got.log_psi) - truth
    assert np.sqrt(np.mean(error**2)) < tolerance
    closer = np.abs(expit(np.asarray(got.logits)) - one).mean(), np.abs(expit(logits) - one).mean()
    assert closer[0] < 0.35 * closer[1]


@pytest.mark.parametrize("size", [4, 11])
def test_a_factor_that_is_zero_or_has_no_slope_leaves_a_law(size):
    """ψ stays positive, and the proposal the law itself, where no r is seen."""
    logits = jnp.linspace(-1.0, 1.0, size)
    found = jax.jit(lambda log_r, logits: average(log_r, logits, points(8, size)), static_argnums=0)
    nowhere = found(lambda x: jnp.where(jnp.sum(x) > 99, 0.0, -jnp.inf), logits)
    assert np.isfinite(nowhere.log_psi) and np.isfinite(nowhere.logits).all()
    np.testing.assert_allclose(nowhere.logits, logits, atol=1e-5)
    root = found(lambda x: jnp.sum(jnp.log(x)) * 0.1, logits)
    assert np.isfinite(root.logits).all()


# ---- the chain


def process():
    rng = np.random.default_rng(0)
    data = rng.integers(2, size=(8, SIZE))
    diffusion = nd.BinomialDiffusion(nd.schedules.log_snr(NUM_STEPS, -3.0, 3.0), 0.4)
    return nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(data, rng.dirichlet(np.ones(8) * 2)), SIZE)


@functools.cache
def chain_probabilities():
    """p(x_0) of the chain for all states, by multiplying its transition matrices."""
    states = listed(SIZE)

    @jax.jit
    def logits():
        each = lambda kernel: jax.vmap(lambda x: bit_logits(kernel(x)))(jnp.asarray(states))
        inner = jax.vmap(lambda t: each(lambda x: process().inner_kernel(x, t, t - 1)))(jnp.arange(NUM_STEPS, 1, -1))
        return jnp.append(inner, each(process().last_kernel)[None], axis=0)

    p = np.prod(np.where(states == 1, 0.4, 0.6), axis=1)
    for one in np.asarray(logits(), np.float64):
        p = p @ np.exp(log_bits(one[:, None], states))
    return p


def truth(factor):
    """The chain's posterior means of bits, and log Z."""
    states = listed(SIZE)
    weight = chain_probabilities() * np.exp(np.asarray(batched_log_r(factor, states, (SIZE,)), np.float64))
    return weight @ states / weight.sum(), np.log(weight.sum())


@SLOW
@pytest.mark.parametrize("name", sorted(FACTORS))
def test_bits_have_the_posterior_of_their_own_chain(name):
    """Z within 4.5 standard errors, and less than .15 nats off; Z-weighted means of bits likewise."""
    factor = FACTORS[name]
    mean, log_z = truth(factor)
    run = eqx.filter_jit(jax.vmap(lambda key: TwistedSMC(256).run(key, process(), factor)))
    got = run(jax.random.split(jax.random.key(6), 20))
    relative = np.exp(np.asarray(got.log_evidence, np.float64) - log_z)
    error = relative.std(ddof=1) / np.sqrt(len(relative))
    assert abs(relative.mean() - 1) < min(4.5 * error + 1e-4, 0.16)
    weight = relative[:, None] * np.exp(np.asarray(got.log_weight, np.float64))
    off = np.einsum("rn,rni->ri", weight, np.asarray(got.x, np.float64) - mean)
    assert (abs(off.mean(0)) < 4.5 * off.std(0, ddof=1) / np.sqrt(len(off)) + 1e-4).all()
    if "known" in name:
        assert (np.asarray(got.x)[..., 0] == 1).all() and (np.asarray(got.x)[..., 3] == 0).all()


@SLOW
def test_particle_gibbs_keeps_known_bits_and_a_sum():
    """125 steps of each of 16 chains; means of bits to their own error over chains."""
    factor = FACTORS["known_and_sum"]
    mean, _ = truth(factor)
    sampler = ParticleGibbs(16)

    @eqx.filter_jit
    def chain(key):
        first, rest = jax.random.split(key)
        start = sampler.init(first, process(), factor).x

        def step(path, key):
            new = sampler.step(key, process(), factor, path).x
            return new, new[0]

        return jax.lax.scan(step, start, jax.random.split(rest, 125))[1][25:].mean(0)

    means = np.asarray(jax.vmap(chain)(jax.random.split(jax.random.key(7), 16)), np.float64)
    assert (abs(means.mean(0) - mean) < 4.5 * means.std(0, ddof=1) / 4 + 1e-4).all()


def test_psi_is_one_function_of_the_state_and_no_state_is_excluded():
    factor, twist = FACTORS["sum"], twists.Averaged()
    shared = twist.prepare(process(), factor)

    @jax.jit
    def look(x):
        step = twist.step(process(), factor, shared, x, 4, 3)
        return step.log_psi, bit_logits(step.kernel), bit_logits(step.proposal)

    first, again = look(jnp.array([1, 0, 1, 1, 0])), look(jnp.array([1, 0, 1, 1, 0]))
    assert first[0] == again[0] and np.isfinite(first[0])
    assert (abs(np.asarray(first[2] - first[1])) < 5).all()


# ---- grey levels


@pytest.mark.parametrize("known", [False, pytest.param(True, marks=SLOW)])
def test_rounded_last_steps_average_r_over_levels(known):
    """Two grey levels that r couples: ψ_1 against the sum over all levels, and the proposal leaves even weights."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8, -6.0, 2.0), 3.5, 2.0)
    step = nd.process.DiscretisedStep(8)
    gaussian = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian([3.0, 4.0], 1.5), 2, last_step=step)
    factor = Factor(lambda x: -0.5 * ((x[0] * x[1] - 12.0) / 2.0) ** 2)
    factor = Delta([4, 0], [True, False]) * factor if known else factor
    x_1 = jnp.array([3.2, 4.6])
    step = jax.jit(lambda x: twists.last_step(gaussian, factor, x))(x_1)
    levels = jnp.asarray(np.array(list(itertools.product(range(8), repeat=2))))
    log_p = np.asarray(jax.vmap(step.kernel.log_prob)(levels), np.float64)
    log_w = log_p + np.asarray(jax.vmap(factor.log_r)(levels.astype(float)), np.float64)
    np.testing.assert_allclose(step.log_psi, logsumexp(log_w), atol=0.15)
    kept = np.isfinite(log_w)
    log_q = np.asarray(jax.vmap(step.proposal.log_prob)(levels), np.float64)[kept]
    evenness = np.exp(2 * logsumexp(log_w) - logsumexp(2 * log_w[kept] - log_q))
    assert evenness > 0.4  # effective share of draws


def test_averaged_is_for_bits():
    real = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), nd.denoisers.Gaussian(0.0, 1.0), 2)
    with pytest.raises(ValueError, match="twist: Averaged is for bits, classes and mixed columns, got"):
        twists.Averaged().check(real, summed(1.0))
    with pytest.raises(ValueError, match="num_draws: expected a whole number of at least 1, got 0"):
        twists.Averaged(0)
    assert isinstance(twists.default_twist(process(), FACTORS["all_kinds"]), twists.Averaged)
    assert isinstance(twists.default_twist(process(), Elementwise(1.0)), twists.MomentMatched)
