"""Two networks on one chain, against each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.networks import MLP, Experts

KEY = jax.random.key(0, impl="unsafe_rbg")


def grown(key, shape=(2, 2)):
    """A network whose answer is not zero."""
    net = MLP(key, shape, num_steps=20, width=8, depth=1)
    return jax.tree.map(lambda leaf: leaf + 0.1, net)


@pytest.fixture(scope="module")
def pair():
    return grown(KEY), grown(jax.random.fold_in(KEY, 1))


def test_each_serves_its_own_steps(pair):
    near, far = pair
    net = Experts(near, far, 5, ahead=-2)
    x, times = jnp.arange(4.0).reshape(2, 2), jnp.array([0.0, 1.0, 5.0, 5.4, 5.6, 6.0, 9.5])
    found = jax.jit(jax.vmap(net, (None, 0)))(x, times)
    for t, value in zip(times, found, strict=True):
        expected = near(x, t) if t < 5.5 else far(x, t - 2)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_it_is_trained_and_saved(pair, tmp_path):
    net = Experts(*pair, 5)
    grad = jax.grad(lambda net: net(jnp.ones((2, 2)), 9.0).sum(), allow_int=True)(net)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grad.near))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grad.far))
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(10))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Network(net, "velocity"), (2, 2)))
    prior.save(tmp_path / "prior.safetensors")
    read = nd.load(tmp_path / "prior.safetensors").process.denoiser
    x = jnp.ones((2, 2))
    np.testing.assert_array_equal([read.fn(x, t) for t in (5, 6)], [net(x, t) for t in (5, 6)])


def test_bad_input_is_named(pair):
    near, far = pair
    with pytest.raises(ValueError, match=r"near, far: expected .*, got \(2, 2\) and \(4,\)"):
        Experts(near, grown(KEY, (4,)), 5)
    with pytest.raises(ValueError, match="near, far: expected .* got None"):
        Experts(abs, abs, 5)
    with pytest.raises(ValueError, match="ahead: expected a whole number, got 0.5"):
        Experts(near, far, 5, ahead=0.5)
    with pytest.raises(ValueError, match="last: expected"):
        Experts(near, far, 0)
    with pytest.raises(ValueError, match="x: expected one example of shape"):
        Experts(near, far, 5)(jnp.ones(3), 1)
