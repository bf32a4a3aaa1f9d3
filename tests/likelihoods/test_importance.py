"""Importance weighting against enumeration of a chain of bits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd

STATES = np.array(list(itertools.product([0.0, 1.0], repeat=3)))


def test_unbiased_for_the_chain_of_bits_and_its_logarithm_tightens() -> None:
    """exp(value) averages to the chain's own p(x_0); the log is too low, less so with more trajectories."""
    listed, shares = STATES[[1, 6, 7]], np.array([0.2, 0.5, 0.3])
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(4), 0.4)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(listed.astype(int), shares), 3)

    @jax.jit
    def table(t: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: jax.vmap(process.inner_kernel(x, t, t - 1).log_prob)(STATES))(STATES)

    law = np.exp(np.asarray(process.terminal().log_prob(STATES), np.float64))
    for t in (4.0, 3.0, 2.0):
        law = law @ np.exp(np.asarray(table(t), np.float64))
    last = jax.jit(jax.vmap(lambda x: jax.vmap(process.last_kernel(x).log_prob)(STATES)))(STATES)
    exact = np.log(law @ np.exp(np.asarray(last, np.float64)))[[1, 6, 7]]

    @jax.jit
    def run(keys: jax.Array) -> jax.Array:
        one = lambda x, key: nd.ImportanceWeighted(32).estimate(key, process, x).terms.log_weight
        return jax.vmap(lambda x: jax.vmap(lambda key: one(x, key))(keys))(jnp.asarray(listed))

    weight = np.exp(np.asarray(run(jax.random.split(jax.random.key(0), 500)), np.float64) - exact[:, None, None])
    mean = weight.reshape(3, -1).mean(1)
    assert (abs(mean - 1) < 4.5 * weight.reshape(3, -1).std(1) / np.sqrt(16_000)).all()
    bias = np.array([np.log(weight.reshape(3, -1, count).mean(2)).mean() for count in (1, 4, 16)])
    assert (bias < 0).all() and (np.diff(bias) > 0).all()
    assert bias[1] > 0.5 * bias[0] and bias[2] > 0.5 * bias[1]
    gaps = np.log(weight).mean((1, 2))
    assert (gaps < 0).all()  # one trajectory: the K bound, on average
