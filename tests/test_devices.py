"""Where batches and weights lie. Training on eight devices is held by examples/benchmarks/data_parallel.py."""

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
