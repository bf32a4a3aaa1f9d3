"""Radial basis functions with one read-out per step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.networks import RBF

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest


def _net(event_shape: tuple[int, ...] = (2,), outputs: int = 2, num_steps: int = 5) -> RBF:
    """Return a network with random parameters."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(RBF, KEY, event_shape, num_steps=num_steps, num_centers=7, outputs=outputs)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape, a.dtype)), shapes)


@pytest.mark.parametrize(("event_shape", "outputs"), [((), 1), ((2,), 2), ((3, 2), 1), ((3, 2), 2)])
def test_output_shape_and_zero_start(event_shape: tuple[int, ...], outputs: int) -> None:
    """The shape follows `outputs`, the read-outs are laid out as documented, and the start is zero."""
    net = RBF(KEY, event_shape, num_steps=5, num_centers=7, outputs=outputs)
    out = eqx.filter_jit(net)(np.ones(event_shape), 3)
    assert out.shape == (event_shape if outputs == 1 else (outputs, *event_shape))
    assert net.weight.shape == (5, outputs, *event_shape, 7)
    assert net.bias.shape == (5, outputs, *event_shape)
    assert not out.any()


def test_basis_is_a_partition_of_unity_and_matches_its_formula() -> None:
    """The basis is the normalised Gaussian of the paper."""
    net, x = _net(), np.array([0.4, -0.9])
    squares = ((x - np.asarray(net.centers)) ** 2).sum(-1)
    bumps = np.exp(-squares / (2 * np.exp(np.asarray(net.log_widths)) ** 2))
    np.testing.assert_allclose(net.basis(x), bumps / bumps.sum(), rtol=1e-4)
    far = jax.jit(jax.vmap(net.basis))(100 * np.random.default_rng(1).standard_normal((20, 2)))
    np.testing.assert_allclose(far.sum(-1), 1, rtol=1e-5)


def test_each_whole_step_has_its_own_readout() -> None:
    """At t the output is A_t φ(x) + b_t, by numpy."""
    net, x = _net((3, 2)), np.linspace(-1, 2, 6).reshape(3, 2)
    value = jax.jit(lambda x, t: net(x, t))
    for t in range(1, 6):
        expected = np.asarray(net.weight)[t - 1] @ np.asarray(net.basis(x)) + np.asarray(net.bias)[t - 1]
        np.testing.assert_allclose(value(x, t), expected, rtol=1e-4, atol=1e-6)


def test_fractional_steps_interpolate_and_ends_clip() -> None:
    """Between steps the output is linear in t; outside [1, T] it is that of the nearest end."""
    net, x = _net(), np.array([0.4, -0.9])
    value = jax.jit(lambda x, t: net(x, t))
    between = 0.75 * value(x, 2.0) + 0.25 * value(x, 3.0)
    np.testing.assert_allclose(value(x, 2.25), between, rtol=1e-4, atol=1e-6)
    for outside, end in [(0, 1), (0.5, 1), (-3.0, 1), (5.5, 5), (9, 5)]:
        np.testing.assert_array_equal(value(x, float(outside)), value(x, float(end)))


def test_jit_and_vmap_agree_with_eager() -> None:
    """Compiling and batching change nothing, also for a chain of one step."""
    for num_steps in (1, 5):
        net, x = _net(num_steps=num_steps), np.array([[0.4, -0.9], [1.0, 2.0]])
        t = np.array([1.0, 2.5])
        eager = np.stack([net(x[i], t[i]) for i in range(2)])
        np.testing.assert_allclose(jax.jit(jax.vmap(net))(x, t), eager, rtol=1e-4, atol=1e-6)


def test_gradient_reaches_every_parameter() -> None:
    """Centres, widths and the read-outs of all steps learn; a step leaves the others' read-outs alone."""
    net, x = _net(), np.random.default_rng(1).standard_normal((5, 2))
    grads = jax.jit(jax.grad(lambda n: jnp.sum(jax.vmap(n)(x, np.arange(1, 6)) ** 2)))(net)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(grads))
    alone = np.asarray(jax.jit(jax.grad(lambda n: jnp.sum(n(x[0], 3) ** 2)))(net).weight)
    assert alone[2].any() and not alone[[0, 1, 3, 4]].any()


def test_float64_stays_float64() -> None:
    """Under x64 all of the arithmetic is in double precision."""
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: RBF(KEY, (2,), num_steps=3)(jnp.ones(2), 1.5)).dtype == jnp.float64


@pytest.mark.parametrize("name", ["num_steps", "num_centers", "outputs"])
def test_bad_arguments_are_named(name: str) -> None:
    """Errors name the argument."""
    with pytest.raises(ValueError, match=name):
        RBF(KEY, (2,), **{"num_steps": 3, name: 0})


def test_wrong_calls_are_refused() -> None:
    """A batch and a vector of times raise."""
    net = _net()
    with pytest.raises(ValueError, match="x: expected one example"):
        net(jnp.ones((5, 2)), 1)
    with pytest.raises(ValueError, match="t: expected a scalar"):
        net(jnp.ones(2), jnp.ones(3))
