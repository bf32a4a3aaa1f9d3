"""Patches as channels, against the same indices written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.networks import MLP, Patched

KEY = jax.random.key(0, impl="unsafe_rbg")


class Double:
    """Answers with (x, 2x + t), and keeps what it saw."""

    def __init__(self, event_shape):
        self.event_shape = event_shape

    def __call__(self, x, t):
        self.seen = x
        return jnp.stack([x, 2 * x + t])


@pytest.mark.parametrize(("shape", "inner"), [((4, 6), (2, 3, 4)), ((4, 6, 3), (2, 3, 12)), ((2, 3, 1), (2, 3, 1))])
def test_each_pixel_goes_to_its_patch_and_back(shape, inner):
    network = Double(inner)
    net = Patched(network, shape)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    out = net(x, 3.0)
    np.testing.assert_array_equal(out, np.stack([x, 2 * x + 3]))
    p, image = net.patch, x.reshape(*shape[:2], -1)
    for i in range(inner[0]):
        for j in range(inner[1]):
            patch = image[p * i : p * (i + 1), p * j : p * (j + 1)]
            np.testing.assert_array_equal(network.seen[i, j], patch.reshape(-1))


def test_it_says_what_is_inside():
    assert Patched(Double((2, 3, 4)), (4, 6)).said == "Double, over patches of 2 × 2 pixels"
    assert Patched(MLP(KEY, (2, 2, 4), num_steps=10, width=8), (4, 4)).said.startswith("MLP of width 8, over patches")


def test_it_is_saved_with_its_network(tmp_path):
    net = Patched(MLP(KEY, (2, 2, 4), num_steps=10, width=8, depth=1), (4, 4))
    assert net(jnp.ones((4, 4)), 1).shape == (4, 4)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(10))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Network(net, "velocity"), (4, 4)))
    prior.save(tmp_path / "prior.safetensors")
    read = nd.load(tmp_path / "prior.safetensors").process.denoiser
    x = jnp.arange(16.0).reshape(4, 4) / 16
    np.testing.assert_array_equal(read.fn(x, 3), net(x, 3))


@pytest.mark.parametrize(
    ("inner", "shape", "match"),
    [
        ((4, 4), (8, 8), "network: expected a module for images"),
        ((2, 2, 4), (4, 6), "event_shape: expected .* got"),
        ((2, 2, 4), (5, 4), "event_shape: expected"),
        ((2, 2, 3), (4, 4), "event_shape: expected"),
        ((2, 2, 4), (16,), "event_shape: expected"),
        ((4, 4, 1), (2, 2), "event_shape: expected"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(inner, shape, match):
    with pytest.raises(ValueError, match=match):
        Patched(Double(inner), shape)


def test_channels_first_are_said_to_be():
    with pytest.raises(ValueError, match="channels first"):
        Patched(Double((2, 2, 12)), (4, 4, 3))(jnp.ones((3, 4, 4)), 1)
