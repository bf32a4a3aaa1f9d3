"""Where batches and weights lie. Training an MLP on eight is held by examples/benchmarks/data_parallel.py."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from numpyro_diffusion._devices import check_devices, collect, distribute, replicate


def test_examples_are_distributed_where_they_divide():
    spread = check_devices(jax.devices()[:1], 8)
    assert distribute(np.zeros((3, 2)), spread).sharding.is_equivalent_to(spread, 2)
    assert distribute(np.zeros((0, 2)), spread).shape == (0, 2)
    tree = replicate({"a": jax.numpy.ones(3), "b": "text"}, spread)
    assert tree["a"].committed and tree["b"] == "text" and not collect(tree, spread)["a"].committed
    assert replicate(tree, None) is tree and check_devices(None, 8) is None
    with pytest.raises(ValueError, match="devices: expected different devices"):
        check_devices(jax.devices()[:1] * 2, 8)


UNET_ON_TWO = """
import numpyro

numpyro.set_host_device_count(2)
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import _devices
from numpyro_diffusion._devices import check_devices
from numpyro_diffusion.training import driver

event = (16, 16, 1)
network = nd.networks.UNet(jax.random.key(0), event, channels=(8, 8), depth=1, attention=(), num_groups=4)
stirred = jax.tree.map(lambda leaf: leaf + 0.05 if isinstance(leaf, jax.Array) else leaf, network)
process = nd.ReverseProcess(
    nd.GaussianDiffusion(nd.schedules.log_snr(5)), nd.denoisers.Network(stirred, "velocity"), event
)
prior, spread = nd.DiffusionPrior(process), check_devices(2, 16)
one, two = (
    jax.jit(lambda key: prior.sample(key, (16,)), out_shardings=where)(jax.random.key(1)) for where in (None, spread)
)
assert len(two.sharding.device_set) == 2 and two.addressable_shards[0].data.shape == (8, *event)
np.testing.assert_allclose(two, one, atol=1e-5)
data = np.random.default_rng(0).normal(size=(64, *event))
train = lambda count, **options: nd.fit(
    jax.random.key(2), process, data, max_steps=6, batch_size=16, log_every=3, validation=0.0, devices=count,
    objective="simple", progress_bar=False, **options)
one, two = (train(count).history["loss"] for count in (1, 2))
assert one[-1] != one[0]
np.testing.assert_allclose(two, one, rtol=1e-5)

# The same with weights, averages and optimiser divided: a device holds little more than half of them.
held, advance, _devices.SMALLEST_DIVIDED = [], driver._advance, 64


def counting(training, now):
    leaves = [leaf for leaf in jax.tree.leaves(now.state) if leaf.ndim]
    held.append(sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves))
    return advance(training, now)


driver._advance = counting
parts = train(2, shard_weights=True, checkpoint=CHECKPOINT)
np.testing.assert_allclose(parts.history["loss"], one, rtol=1e-5)
assert len(held) == 2 and max(held) < 0.55, held
again = train(None, checkpoint=CHECKPOINT)  # what was written is whole, and another layout goes on from it
assert all(map(np.array_equal, *(jax.tree.leaves(result.process) for result in (parts, again))))
"""


@pytest.mark.slow
def test_a_unet_samples_and_learns_the_same_on_two_devices(tmp_path):
    """Its convolutions are primitives with gradients of their own, which must add up over the devices' shares."""
    program = f"CHECKPOINT = {str(tmp_path / 'run')!r}\n{UNET_ON_TWO}"
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
