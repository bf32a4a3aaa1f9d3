"""Networks that are told a context: numbers, labels and small images."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.networks import MLP, UNET_SIZES, BumpReadout, ContextFeatures, MultiScale, Series, UNet

KEY = jax.random.key(0)
IMAGE = (8, 8)


def test_features():
    numbers = ContextFeatures((2,), None, np.array([1.0, 0.0]), 2.0)
    np.testing.assert_allclose(numbers(jnp.array([3.0, np.nan])), [1.0, 0.0, 1.0, 0.0])
    labels = ContextFeatures((2,), 3)
    np.testing.assert_array_equal(labels(jnp.array([2, -1])), [0, 0, 1, 0, 0, 0])
    assert (numbers.size, labels.size) == (4, 6)
    with pytest.raises(ValueError, match=r"context: expected one of shape \(2,\), got \(3,\)"):
        numbers(jnp.zeros(3))


NETWORKS = {
    "mlp": lambda context: MLP(KEY, IMAGE, num_steps=10, width=8, depth=1, context=context),
    "series": lambda context: Series(KEY, IMAGE, num_steps=10, channels=6, depth=1, context=context),
    "multiscale": lambda context: BumpReadout(
        MultiScale(KEY, IMAGE, outputs=4, channels=4, depth=1, dense_width=8, dense_depth=1, context=context),
        num_steps=10, num_bumps=4, outputs=1,
    ),
    "unet": lambda context: UNet(KEY, IMAGE, **{**UNET_SIZES["tiny"], "channels": (16, 16)}, context=context),
}  # fmt: skip


@pytest.mark.parametrize("name", ["mlp", "series", "multiscale", pytest.param("unet", marks=pytest.mark.slow)])
def test_networks_use_it_and_ask_for_it(name):
    """Weights away from zero: another context is another answer, and an unknown one is a number too."""
    net = NETWORKS[name](ContextFeatures((2, 2)))
    arrays, rest = eqx.partition(net, eqx.is_inexact_array)
    rng = np.random.default_rng(0)
    net = eqx.combine(jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype("f"), arrays), rest)
    x = jax.random.normal(KEY, IMAGE)
    c = jnp.stack([jnp.zeros((2, 2)), jnp.eye(2), jnp.full((2, 2), jnp.nan)])
    out = np.asarray(jax.jit(jax.vmap(lambda c: net(x, 3.0, c)))(c))
    assert out.shape == (3, *IMAGE) and np.isfinite(out).all()
    assert np.abs(out[0] - out[1]).max() > 1e-4 and np.abs(out[0] - out[2]).max() > 1e-4
    with pytest.raises(ValueError, match="context: expected one, got None"):
        net(x, 3.0)
    with pytest.raises(ValueError, match="context: expected None, as the network has none, got one"):
        NETWORKS[name](None)(x, 3.0, c[0])
