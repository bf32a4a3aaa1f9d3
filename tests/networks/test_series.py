"""The network of 1-d convolutions: against its sums written out, and the rules every network keeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion.networks import ContextFeatures, Series

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest


def _small(event_shape=(7,), **changes):
    return Series(KEY, event_shape, **{"num_steps": 10, "channels": 6, "time_features": 8} | changes)


def _random(event_shape=(7,), **changes):
    """A network none of whose parameters is at its initial value."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(lambda: _small(event_shape, **changes))
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), shapes)


@pytest.mark.parametrize(("event_shape", "outputs"), [((1,), 1), ((5, 3), 1), ((6, 2), 2)])
def test_output_shape_and_zero_start(event_shape, outputs):
    out = eqx.filter_jit(_small(event_shape, outputs=outputs))(np.ones(event_shape), 3)
    assert out.shape == (event_shape if outputs == 1 else (outputs, *event_shape)) and not out.any()


def _by_hand(net, x, t, place_of):
    """The network's answer by loops over places; `place_of` finds a neighbour's row, or None for zeros."""
    act = lambda a: a / (1 + np.exp(-a))
    weights = lambda layer: (np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64))
    dense = lambda layer, a: weights(layer)[0] @ a + weights(layer)[1]
    omega = net.num_steps ** -(np.arange(4) / 3)
    c = np.concatenate([np.sin(t * omega), np.cos(t * omega)])
    for layer in net.embed:
        c = act(dense(layer, c))
    rows = x.reshape(len(x), -1)
    h = np.stack([dense(net.lift, row) for row in rows]) + np.asarray(net.place)
    for block in net.blocks:
        scale, shift = np.split(dense(block.modulate, c), 2)
        norm = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        new = []
        for i in range(len(h)):
            near = [place_of(i + offset * block.dilation, len(h)) for offset in (-1, 0, 1)]
            seen = np.concatenate([np.zeros(h.shape[1]) if j is None else norm[j] for j in near])
            new.append(h[i] + dense(block.outer, act(dense(block.inner, seen) * (1 + scale) + shift)))
        h = np.stack(new)
    gain = dense(net.gain, c).reshape(net.outputs, -1)
    out = np.stack([dense(net.readout, row) for row in h]).reshape(len(h), net.outputs, -1)
    return np.moveaxis(out, 1, 0) + gain[:, None] * rows


PLACES = {
    "zeros": lambda j, n: j if 0 <= j < n else None,
    "edge": lambda j, n: min(max(j, 0), n - 1),
    "circular": lambda j, n: j % n,
}


@pytest.mark.parametrize("padding", PLACES)
def test_it_is_its_formula(padding):
    net = _random((5, 2), outputs=2, padding=padding)
    x = np.random.default_rng(1).normal(size=(5, 2))
    expected = _by_hand(net, x, 2.5, PLACES[padding])
    np.testing.assert_allclose(net(x, 2.5), expected, rtol=1e-4, atol=1e-4)
    batch = jax.jit(jax.vmap(net))(np.stack([x, x]), np.array([2.5, 4.0]))
    np.testing.assert_allclose(batch[0], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(batch[0] - batch[1]).max() > 1e-3


def test_every_place_hears_of_all_others_unless_it_is_less_deep():
    reach = lambda net: np.asarray(jax.jacobian(lambda x: net(x, 3.0))(jnp.ones(9))) != 0
    assert reach(_random((9,))).all()
    near = np.abs(np.subtract.outer(np.arange(9), np.arange(9))) <= 3
    np.testing.assert_array_equal(reach(_random((9,), depth=2)), near)


def test_gradient_reaches_every_parameter():
    x = np.random.default_rng(1).standard_normal((8, 7))
    net = _random(context=ContextFeatures((2,)))
    value = lambda net, x, t: net(x, t, jnp.ones(2))
    grads = jax.jit(jax.grad(lambda n: jnp.sum(jax.vmap(value, (None, 0, 0))(n, x, np.arange(8.0)) ** 2)))(net)
    dead = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not leaf.any()]
    assert not [name for name in dead if "features" not in name], dead  # loc and scale of a context are no weights


def test_float64_stays_float64():
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: _small()(jnp.ones(7), 3)).dtype == jnp.float64


def test_it_is_saved(tmp_path):
    net = _random((4, 2), padding="circular")
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(10))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Network(net, "velocity"), (4, 2)))
    prior.save(tmp_path / "prior.safetensors")
    read = nd.load(tmp_path / "prior.safetensors").process.denoiser.fn
    x = jnp.arange(8.0).reshape(4, 2) / 8
    assert read.padding == "circular"
    np.testing.assert_array_equal(read(x, 3), net(x, 3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"event_shape": ()}, r"event_shape: expected \(length,\) or \(length, variables\), got \(\)"),
        ({"event_shape": (4, 4, 1)}, "event_shape: expected"),
        ({"padding": "reflect"}, "padding: expected one of 'zeros', 'edge', 'circular', got 'reflect'"),
        ({"activation": "sin"}, "activation: expected one of"),
        ({"depth": 0}, "depth: expected a whole number of at least 1, got 0"),
        ({"channels": 1.5}, "channels: expected a whole number of at least 1, got 1.5"),
        ({"time_features": 7}, "time_features: expected an even number, got 7"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, match):
    with refused(match):
        _small(**change)
    with pytest.raises(ValueError, match=r"x: expected one example of shape \(7,\), got shape \(3,\)"):
        _small()(jnp.ones(3), 1)
