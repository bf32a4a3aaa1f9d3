"""The multi-scale network of the 2015 paper, against its parts written out in numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion.networks import BumpReadout, MultiScale
from numpyro_diffusion.networks.multiscale import MultiScaleConvolution

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest
SMALL = {"channels": 3, "depth": 2, "scales": 2, "dense_width": 5, "dense_depth": 1}


def _random(build):
    """The module that `build` makes, but with none of its parameters at its initial value."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(build)
    fill = lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape, a.dtype))
    return jax.tree.map(lambda a: fill(a) if isinstance(a, jax.ShapeDtypeStruct) else a, shapes)


def _convolve(image, weight, bias):
    """A 3×3 convolution by its definition, zeros outside."""
    height, width, _ = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + height, j : j + width] @ weight[i, j] for i in range(3) for j in range(3)]
    return sum(windows) + bias


def test_a_layer_is_pooled_convolved_repeated_and_summed():
    layer = _random(lambda: MultiScaleConvolution(KEY, 2, 3, 3))
    image = np.random.default_rng(1).normal(size=(8, 4, 2)).astype(np.float32)
    total = 0.0
    for scale, part in enumerate(layer.convolutions):
        size = 2**scale
        pooled = image.reshape(8 // size, size, 4 // size, size, 2).mean(axis=(1, 3))
        total = total + np.kron(_convolve(pooled, part.weight, part.bias), np.ones((size, size, 1)))
    np.testing.assert_allclose(eqx.filter_jit(layer)(image), np.logaddexp(0, total), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("event_shape", "change"),
    [((6, 4), {}), ((4, 8, 3), {"outputs": 1, "dense_depth": 0}), ((4, 4), {"depth": 0, "scales": 1})],
)
def test_shapes_start_and_gradients(event_shape, change):
    """Any size that divides, grey or colour; zero at first; no dead leaf; batched and compiled as one by one."""
    settings = SMALL | {"outputs": 4} | change
    build = lambda: MultiScale(KEY, event_shape, **settings)
    outputs = settings["outputs"]
    x = np.random.default_rng(2).normal(size=(2, *event_shape)).astype(np.float32)
    net = _random(build)
    run = jax.jit(lambda net, x: jax.vmap(lambda x: net(x, 3))(x))
    out = run(net, x)
    assert out.shape == (2, *event_shape) if outputs == 1 else (2, outputs, *event_shape)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(eqx.filter_jit(build)().readout))
    leaves = jax.tree.leaves(jax.jit(jax.grad(lambda net: jnp.sum(run(net, x) ** 2)))(net))
    assert all(jnp.abs(leaf).max() > 0 for leaf in leaves)


def test_it_is_the_body_of_a_read_out_and_of_a_process(tmp_path):
    """z = Σ_j y_j g_j(t) of a mean head with equations 64 and 65; saved and loaded as any network."""
    body = _random(lambda: MultiScale(KEY, (4, 4), outputs=6, **SMALL))
    net = BumpReadout(body, num_steps=5, num_bumps=3)
    x = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
    values, mixed, bumps = eqx.filter_jit(lambda net, x: (net.network(x, 0), net(x, 2.5), net.bumps(2.5)))(net, x)
    expected = np.einsum("ojab,j->oab", np.asarray(values).reshape(2, 3, 4, 4), np.asarray(bumps))
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(5))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Network(net, "mean"), (4, 4), last_step="forward")
    nd.DiffusionPrior(process).save(tmp_path / "prior")
    assert eqx.tree_equal(nd.load(tmp_path / "prior").process, process)


def test_bad_arguments_are_named():
    build = lambda shape=(4, 4), **change: MultiScale(KEY, shape, **({"outputs": 1} | SMALL | change))
    cases = [
        (
            lambda: build((6, 6), scales=3),
            r"event_shape: expected a height and width divisible by 4, for 3 scales, got",
        ),
        (lambda: build((3, 4, 4)), "event_shape: expected a height .* are the channels first"),
        (lambda: build((4,)), r"event_shape: expected \(height, width\) or \(height, width, channels\), got \(4,\)"),
        (lambda: build(depth=0, dense_depth=0), "depth, dense_depth: expected at least one layer"),
        (lambda: build(scales=0), "scales: expected a whole number of at least 1, got 0"),
        (lambda: build(channels=0), "channels: expected a whole number"),
        (lambda: build(activation="sin"), "activation: expected one of"),
        (
            lambda: eqx.filter_eval_shape(build, (4, 4, 3))(np.zeros((3, 4, 4)), 1),
            r"x: expected one example .* \(channels first: move",
        ),
        (
            lambda: eqx.filter_eval_shape(build)(np.zeros((2, 4, 4)), 1),
            r"x: expected one example .* \(batch with jax.vmap\)",
        ),
    ]
    for call, message in cases:
        with refused(message):
            call()
