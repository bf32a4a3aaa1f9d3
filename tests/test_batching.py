import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion._batching import LONG_SCAN, batched_map, checkpointed_scan


def step(carry, xs):
    return jnp.tanh(carry * xs[0] + xs[1]), None


def both(count, size=3):
    xs = tuple(jax.random.normal(key, (count, size)) for key in jax.random.split(jax.random.key(0)))
    short = lambda carry, xs: checkpointed_scan(step, carry, xs).sum()
    plain = lambda carry, xs: jax.lax.scan(step, carry, xs)[0].sum()
    return [jax.value_and_grad(fn, argnums=(0, 1))(jnp.ones(size), xs) for fn in (short, plain)]


@pytest.mark.parametrize("count", [1, 9, LONG_SCAN, LONG_SCAN + 1, 400])
def test_a_checkpointed_scan_is_the_scan(count):
    (value, gradient), (expected, exact) = both(count)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7), gradient, exact)


def test_a_checkpointed_scan_keeps_the_root_of_the_steps():
    def planned(count):
        matrix = jnp.eye(64)

        def heavy(carry, noise):  # ten arrays of work in a step
            for _ in range(10):
                carry = jnp.tanh(matrix @ carry + noise)
            return carry, None

        def loss(scan, carry, noise):
            return scan(heavy, carry, noise * jnp.ones((count, 1))).sum()

        whole = lambda step, carry, xs: jax.lax.scan(step, carry, xs)[0]
        sizes = []
        for scan in (checkpointed_scan, whole):
            gradient = jax.jit(jax.grad(lambda carry, scan=scan: loss(scan, carry, 1.0)))
            sizes.append(gradient.lower(jnp.ones(64)).compile().memory_analysis().temp_size_in_bytes)
        return sizes

    (small, _), (large, whole) = planned(400), planned(6400)
    assert large < whole / 10
    assert large < 5 * small  # 4 = √16 times, and what does not depend on the steps


@pytest.mark.parametrize("chunk", [None, 3, 5, 8])
def test_a_batched_map_is_the_map(chunk):
    xs = jax.random.normal(jax.random.key(1), (8, 2))
    np.testing.assert_allclose(batched_map(jnp.sin, xs, chunk), jnp.sin(xs), rtol=1e-6)
