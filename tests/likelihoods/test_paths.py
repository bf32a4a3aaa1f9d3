"""Straight paths of one noise: the trace, what no noise is left of, and that nothing is biased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.likelihoods._integral.paths import path_error, trace
from numpyro_diffusion.likelihoods._integral.reference import GaussianReference


@jax.jit
def traces(matrix: jax.Array, start: jax.Array, keys: jax.Array) -> jax.Array:
    """By 1, 3, 4 and 6 products, shape (4, keys)."""
    push = lambda v: (matrix @ v.reshape(-1)).reshape(v.shape)
    one = lambda count: jax.vmap(lambda key: trace(key, push, start, count))(keys)
    return jnp.stack([one(count) for count in (1, 3, 4, 6)])


def test_traces() -> None:
    """Of any matrix without bias, exact by as many products as rows; by few where few directions stand out."""
    rng = np.random.default_rng(0)
    matrix, keys = rng.normal(size=(6, 6)), jax.random.split(jax.random.key(0), 4000)
    start = rng.normal(size=(2, 3)).astype(np.float32)  # of any shape
    got = np.asarray(traces(matrix, start, keys), np.float64)
    spread = got.std(1)
    assert (abs(got.mean(1) - np.trace(matrix)) < 4.5 * spread / np.sqrt(4000) + 1e-4).all()
    assert (spread[:3] > 0.1).all() and spread[3] < 1e-5
    low = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 6)) + 0.7 * np.eye(6)
    got = np.asarray(traces(low, start, keys), np.float64)
    assert got[1].std() > 10 * got[2].std()  # three directions hold the start and all that the two make of it
    got = np.asarray(traces(0.7 * np.eye(6), start, keys), np.float64)  # no direction leads to another
    np.testing.assert_allclose(got, 4.2, rtol=1e-5)


def test_a_gaussian_leaves_no_noise() -> None:
    """Its own reference takes away everything at every point, and the mean of what is taken is the error's."""
    denoiser, law = (
        nd.denoisers.Gaussian([0.3, -0.4], [0.9, 0.6]),
        GaussianReference(jnp.array([0.3, -0.4]), jnp.array([0.81, 0.36])),
    )
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4, -9.0, 8.0)), denoiser, 2)
    x = jnp.array([0.5, 1.0])
    noise = jax.random.normal(jax.random.key(1), (20_000, 2))

    @jax.jit
    def both(log_snr: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        left = lambda noise: path_error(jax.random.key(0), process, x, law, log_snr, noise, 2)
        taken = jax.vmap(lambda noise: law.path_error(x, log_snr, noise))(noise)
        return jax.vmap(left)(noise[:50]), taken, law.mean_error(x, log_snr)

    for log_snr in (-6.0, -1.0, 2.0, 6.0):
        left, taken, mean = (np.asarray(part, np.float64) for part in both(jnp.asarray(log_snr)))
        np.testing.assert_allclose(left, 0, atol=1e-4)
        assert abs(taken.mean() - mean) < 4 * taken.std() / np.sqrt(len(noise))


@pytest.mark.slow
def test_no_bias_for_any_denoiser() -> None:
    """A network that is no score has one bound, with products or without; so have its gradients."""
    weight = jax.random.normal(jax.random.key(3), (3, 3))
    network = lambda x, t: jnp.tanh(weight @ x) + 0.01 * t * jnp.roll(x, 1)
    denoiser = nd.denoisers.Network(network, predicts="data")
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(20, -6.0, 5.0)), denoiser, 3)
    x = jnp.array([0.5, -1.0, 0.3])

    def run(bound: nd.ContinuousBound) -> list[np.ndarray]:
        value = jax.value_and_grad(lambda x, key: bound.estimate(key, process, x).value)
        keys = jax.random.split(jax.random.key(4), 300)
        value, slope = jax.jit(jax.vmap(value, (None, 0)))(x, keys)
        return [np.asarray(part, np.float64).reshape(300, -1) for part in (value, slope)]

    plain = run(nd.ContinuousBound(4, 32))
    for products in (2, 3):
        for one, two in zip(plain, run(nd.ContinuousBound(4, 16, num_products=products)), strict=True):
            error = np.hypot(one.std(0), two.std(0)) / np.sqrt(300)
            assert (abs(one.mean(0) - two.mean(0)) < 4 * error).all()


@pytest.mark.slow
def test_a_mixture_of_many_elements() -> None:
    """Five products of sixteen: log p within 2e-3 nats per dimension from a thousand calls, with an honest error."""
    locs = np.random.default_rng(0).standard_normal((4, 16))
    denoiser = nd.denoisers.GaussianMixture(locs, np.array([0.3, 0.4, 0.5, 0.6]), np.full(4, 0.25))
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), denoiser, 16)
    data, estimator = denoiser.data(), nd.PathIntegral(8, 21, num_products=5, chunk=300)
    assert estimator.evaluations(process) == 8 * (21 * 6 + 1)
    x = data.sample(jax.random.key(1), (4,))
    keys = jax.random.split(jax.random.key(2), (4, 50))
    one = jax.vmap(lambda x, key: estimator.estimate(key, process, x), (None, 0))
    got = jax.jit(lambda x, keys: jax.lax.map(lambda pair: one(*pair), (x, keys)))(x, keys)
    error = np.asarray(got.value - data.log_prob(x)[:, None], np.float64)
    assert np.sqrt(np.mean(error**2)) < 2e-3 * 16
    assert abs(np.std(error / np.asarray(got.widened_error)) - 1) < 0.25
