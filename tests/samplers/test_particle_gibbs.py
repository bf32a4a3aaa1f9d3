"""Particle Gibbs leaves the chain's posterior as it is, with as few as two particles and a poor twist."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.factors import Delta, Elementwise, Factor, Gaussian
from numpyro_diffusion.samplers import ParticleGibbs

NUM_STEPS = 5
LOC, SCALE, Y, NOISE = 0.5, 1.2, 2.0, 0.7


def gaussian_process():
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS, -4.0, 4.0), 0.2, 1.5)
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(LOC, SCALE), 1)


@functools.cache
def path_law():
    """Mean and covariance of (x_0 … x_T) given Y: the chain is a Gaussian vector, Y sees its first element."""
    process = gaussian_process()
    mean, root = np.zeros(NUM_STEPS + 1), np.zeros((NUM_STEPS + 1, NUM_STEPS + 1))
    mean[-1], root[-1, -1] = 0.2, 1.5
    for t in range(NUM_STEPS, 0, -1):
        zero, one = (process.kernel(jnp.full(1, x), t) for x in (0.0, 1.0))
        offset, slope = float(zero.mean[0]), float(one.mean[0] - zero.mean[0])
        mean[t - 1], root[t - 1] = slope * mean[t] + offset, slope * root[t]
        root[t - 1, t - 1] = np.sqrt(float(zero.variance[0]))
    covariance = root @ root.T
    gain = covariance[:, 0] / (covariance[0, 0] + NOISE**2)
    return mean + gain * (Y - mean[0]), covariance - np.outer(gain, covariance[0])


@eqx.filter_jit
def one_step(sampler, process, factor, keys, paths):
    return jax.vmap(lambda key, path: sampler.step(key, process, factor, path))(keys, paths)


def exact_paths(count, seed):
    mean, covariance = path_law()
    draws = np.random.default_rng(seed).multivariate_normal(mean, covariance, count)
    return jnp.asarray(draws[..., None], dtype=float)


SLOW = pytest.mark.slow
SETTINGS = [
    (2, 0.5, twists.Annealed()),
    pytest.param(2, 1.0, twists.Annealed(), marks=SLOW),
    pytest.param(2, 0.0, twists.Annealed(), marks=SLOW),
    pytest.param(3, 0.7, twists.Tweedie(), marks=SLOW),
]


@pytest.mark.parametrize(("num_particles", "threshold", "twist"), SETTINGS)
def test_one_step_leaves_gaussian_chains_as_they_are(num_particles, threshold, twist):
    """From exact draws of whole chains, one step gives exact draws: every mean and covariance of (x_0 … x_T)."""
    count = 8_000
    sampler = ParticleGibbs(num_particles, twist, threshold=threshold)
    keys = jax.random.split(jax.random.key(0), count)
    got = one_step(sampler, gaussian_process(), Gaussian(Y, NOISE), keys, exact_paths(count, 1))
    mean, covariance = path_law()
    x = np.asarray(got.x, np.float64)[..., 0] - mean
    assert (abs(x.mean(0)) < 4.5 * np.sqrt(np.diag(covariance) / count)).all()
    variance = np.diag(covariance)
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    assert (abs(x.T @ x / count - covariance) < 4.5 * error + 1e-4).all()
    changed = np.asarray(got.changed)
    assert 0 < changed.mean() < 1 and set(np.round(changed * (NUM_STEPS + 1), 3)) <= set(range(NUM_STEPS + 2))
    np.testing.assert_allclose(got.log_r[:5], [Gaussian(Y, NOISE).log_r(x) for x in got.x[:5, 0]], rtol=1e-5)


def test_a_wrong_law_is_seen():
    """The gate above has power: chains of the prior, one step on, are not yet chains of the posterior."""
    mean, covariance = path_law()
    paths = exact_paths(8_000, 2) - 1.0
    keys = jax.random.split(jax.random.key(0), 8_000)
    sampler = ParticleGibbs(2, twists.Annealed())
    x = np.asarray(one_step(sampler, gaussian_process(), Gaussian(Y, NOISE), keys, paths).x)[:, 0, 0]
    assert abs(x.mean() - mean[0]) > 10 * np.sqrt(covariance[0, 0] / 8_000)


@eqx.filter_jit
def long_chains(sampler, process, factor, keys, num_steps):
    def chain(key):
        first, rest = jax.random.split(key)

        def step(path, key):
            path = sampler.step(key, process, factor, path).x
            return path, path[0]

        start = sampler.init(first, process, factor).x
        return jax.lax.scan(step, start, jax.random.split(rest, num_steps))[1]

    return jax.vmap(chain)(keys)


@pytest.mark.slow
def test_long_chains_of_two_particles_find_the_posterior():
    """From SMC's start and a poor twist; the error from the spread of independent chains."""
    keys = jax.random.split(jax.random.key(3), 32)
    sampler = ParticleGibbs(2, twists.Annealed())
    x = np.asarray(long_chains(sampler, gaussian_process(), Gaussian(Y, NOISE), keys, 800), np.float64)[:, 50:, 0]
    mean, covariance = path_law()
    for values, truth in ((x.mean(1), mean[0]), (((x - mean[0]) ** 2).mean(1), covariance[0, 0])):
        assert abs(values.mean() - truth) < 4.5 * values.std(ddof=1) / np.sqrt(len(values))
        assert values.std(ddof=1) / np.sqrt(len(values)) < 0.03


# ---- bits, against the model's own chain multiplied out

STATES = np.array(list(itertools.product([0, 1], repeat=3)))
LISTED, SHARES = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]]), np.array([0.2, 0.4, 0.3, 0.1])
FACTORS = {
    "delta": Delta([0, 0, 1], [False, False, True]),
    "coupled": Factor(lambda x: 2.0 * x[0] * x[1] - x[2]),
}


def bits_process():
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(4), 0.4)
    return nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(LISTED, SHARES), 3)


def bits_truth(factor):
    """p(x_0) r(x_0)/Z over STATES, p by multiplying the chain's transition matrices."""
    process = bits_process()

    @jax.jit
    def each(x):
        return process.terminal().log_prob(x), factor.log_r(x), [process.kernel(x, t).mean for t in range(4, 0, -1)]

    log_p, log_r, kernels = jax.tree.map(lambda each: np.asarray(each, np.float64), jax.vmap(each)(jnp.asarray(STATES)))
    p = np.exp(log_p)
    for one in kernels:
        p = p @ np.prod(np.where(STATES == 1, one[:, None], 1 - one[:, None]), axis=-1)
    p = p * np.exp(log_r)
    return p / p.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_particles", "twist", "threshold"),
    [
        ("coupled", 3, twists.Constant(), 1.0),
        ("delta", 2, None, 0.5),
    ],
)
def test_bits_have_the_posterior_of_their_own_chain(name, num_particles, twist, threshold):
    sampler, factor = ParticleGibbs(num_particles, twist, threshold=threshold), FACTORS[name]
    keys = jax.random.split(jax.random.key(4), 32)
    x = np.asarray(long_chains(sampler, bits_process(), factor, keys, 600))[:, 50:]
    truth = bits_truth(factor)
    index = x.astype(int) @ np.array([4, 2, 1])
    seen = np.stack([np.bincount(row, minlength=8) for row in index]) / x.shape[1]
    assert (seen[:, truth == 0] == 0).all()
    error = seen.std(0, ddof=1) / np.sqrt(len(seen))
    assert (abs(seen.mean(0) - truth) < 5 * error + 1e-6).all()
    assert 0.5 * abs(seen.mean(0) - truth).sum() < 0.02


# ---- the machine


@pytest.mark.slow
def test_a_first_chain_is_one_of_smcs():
    """`init` has no chain before it: it says that all is new, and with many particles it is near the posterior."""
    draw = eqx.filter_jit(
        jax.vmap(lambda key: ParticleGibbs(64, num_steps=3).init(key, gaussian_process(), Gaussian(Y, NOISE)))
    )
    got = draw(jax.random.split(jax.random.key(5), 300))
    assert got.x.shape == (300, 4, 1)
    np.testing.assert_array_equal(got.changed, 1.0)
    mean, covariance = path_law()  # of all five steps: the Gaussian chain is close to it with three
    assert abs(np.asarray(got.x)[:, 0].mean() - mean[0]) < 0.1 + 4.5 * np.sqrt(covariance[0, 0] / 300)
    assert ((np.asarray(got.effective_size) > 1) & (np.asarray(got.effective_size) < 64.01)).all()


BAD = {
    "one": (lambda: ParticleGibbs(1), "num_particles: expected a whole number of at least 2, got 1"),
    "threshold": (lambda: ParticleGibbs(2, threshold=-0.1), r"threshold: expected a fraction in \[0, 1\], got -0.1"),
    "path": (
        lambda: ParticleGibbs(2).step(jax.random.key(0), gaussian_process(), Gaussian(Y, NOISE), jnp.zeros((5, 1))),
        r"path: expected a shape that ends in the event shape \(6, 1\), got \(5, 1\)",
    ),
    "paths": (
        lambda: ParticleGibbs(2).step(jax.random.key(0), gaussian_process(), Gaussian(Y, NOISE), jnp.zeros((3, 6, 1))),
        r"path: expected shape \(6, 1\), got \(3, 6, 1\)",
    ),
    "factor": (
        lambda: ParticleGibbs(2).init(jax.random.key(0), gaussian_process(), Elementwise(1.0)),
        "factor: Elementwise is for bits",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
