"""Training on named devices; eight of them are in examples/benchmarks/data_parallel.py, which CI runs."""

import equinox as eqx
import jax
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training._devices import check_devices, collect, distribute, replicate

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest


@pytest.mark.slow
def test_one_device_by_name_is_the_default():
    """The same losses and weights, and arrays that are not tied to a device afterwards."""
    network = nd.networks.RBF(KEY, (2,), num_steps=4, num_centers=3, outputs=1)
    diffusion = nd.GaussianDiffusion(nd.schedules.cosine(4))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Network(network), 2, last_step="forward")
    data = np.random.default_rng(0).normal(size=(16, 2))
    fit = lambda devices: nd.fit(
        KEY, process, data, num_steps=3, batch_size=8, validation=0.0, devices=devices, progress=False
    )
    plain, named = fit(None), fit(1)
    assert plain.history == named.history
    assert eqx.tree_equal(plain.process, named.process)
    assert not any(leaf.committed for leaf in jax.tree.leaves(eqx.filter(named.process, eqx.is_inexact_array)))


def test_examples_are_distributed_where_they_divide():
    spread = check_devices(jax.devices()[:1], 8)
    assert distribute(np.zeros((3, 2)), spread).sharding.is_equivalent_to(spread, 2)
    assert distribute(np.zeros((0, 2)), spread).shape == (0, 2)
    tree = replicate({"a": jax.numpy.ones(3), "b": "text"}, spread)
    assert tree["a"].committed and tree["b"] == "text" and not collect(tree, spread)["a"].committed
    assert replicate(tree, None) is tree and check_devices(None, 8) is None
    with pytest.raises(ValueError, match="devices: expected different devices"):
        check_devices(jax.devices()[:1] * 2, 8)
