"""A corrected network, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.networks import MLP, Refined

KEY = jax.random.key(0, impl="unsafe_rbg")


class Fixed:
    """Answers with what it was made with, and keeps what it saw."""

    def __init__(self, event_shape, answer=0.0):
        self.event_shape, self.answer = event_shape, answer

    def __call__(self, x, t):
        self.seen = x
        return jnp.broadcast_to(jnp.asarray(self.answer, float), self.event_shape) + 0 * t


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 2)])
def test_the_answer_is_scaled_and_shifted(shape):
    rng = np.random.default_rng(0)
    colours = (*shape, 1)[2]
    x, first = rng.normal(size=(2, *shape)).astype(np.float32)
    both = rng.normal(size=(*shape[:2], 2 * colours)).astype(np.float32)
    correction = Fixed((*shape[:2], 2 * colours), both)
    out = Refined(Fixed(shape, first), correction)(x, 1.0)
    shift, gain = both[..., :colours].reshape(shape), both[..., colours:].reshape(shape)
    np.testing.assert_allclose(out, (1 + gain) * first + shift, rtol=1e-6)
    np.testing.assert_array_equal(correction.seen[..., :colours].reshape(shape), x)
    np.testing.assert_array_equal(correction.seen[..., colours:].reshape(shape), first)


def test_it_starts_as_its_base_and_is_saved(tmp_path):
    base = jax.tree.map(lambda leaf: leaf + 0.1, MLP(KEY, (4, 4), num_steps=10, width=8, depth=1))
    net = Refined(base, MLP(KEY, (4, 4, 2), num_steps=10, width=8, depth=1))
    x = jnp.arange(16.0).reshape(4, 4) / 16
    np.testing.assert_array_equal(net(x, 3), base(x, 3))
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(10))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Network(net, "velocity"), (4, 4)))
    prior.save(tmp_path / "prior.safetensors")
    read = nd.load(tmp_path / "prior.safetensors").process.denoiser
    np.testing.assert_array_equal(read.fn(x, 3), net(x, 3))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"base: expected a module for images .*, got \(4,\)"):
        Refined(Fixed((4,)), Fixed((4, 4, 2)))
    with pytest.raises(ValueError, match=r"correction: expected .* \(4, 4, 6\), got \(4, 4, 3\)"):
        Refined(Fixed((4, 4, 3)), Fixed((4, 4, 3)))
    with pytest.raises(ValueError, match=r"correction: expected .* \(4, 4, 2\), got None"):
        Refined(Fixed((4, 4)), abs)
    with pytest.raises(ValueError, match="channels first"):
        Refined(Fixed((4, 4, 3)), Fixed((4, 4, 6)))(jnp.ones((3, 4, 4)), 1)
