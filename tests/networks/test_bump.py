"""The bump-function read-out and its dense body."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.networks import MLP, BumpReadout, Dense

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest


def _net(event_shape: tuple[int, ...] = (3,), outputs: int = 2, num_bumps: int = 4) -> BumpReadout:
    body = Dense(KEY, event_shape, outputs=outputs * num_bumps, width=8, depth=2)
    return BumpReadout(body, num_steps=40, num_bumps=num_bumps, outputs=outputs)


def _random(build: Callable[..., eqx.Module], *args: object, **kwargs: object) -> eqx.Module:
    """Return the module that `build` makes, but with none of its parameters at its initial value."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(build, *args, **kwargs)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape, a.dtype)), shapes)


@pytest.mark.parametrize("width", [None, 2.5])
def test_bumps_match_the_paper(width: float | None) -> None:
    """The weights are eq 63, with centres evenly inside (0, T) and the spacing as the default width."""
    net = BumpReadout(lambda x, t: x, num_steps=40, num_bumps=4, width=width)
    centers, w = np.array([5.0, 15.0, 25.0, 35.0]), 10.0 if width is None else width
    for t in (0, 1, 17.3, 40):
        bumps = np.exp(-((t - centers) ** 2) / (2 * w**2))
        np.testing.assert_allclose(net.bumps(t), bumps / bumps.sum(), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(net.bumps(t).sum(), 1, rtol=1e-5)


def test_narrow_bumps_do_not_underflow() -> None:
    """Far from every centre the weights still sum to 1."""
    net = BumpReadout(lambda x, t: x, num_steps=1000, num_bumps=2, width=0.1)
    np.testing.assert_allclose(net.bumps(0.0), [1.0, 0.0])


def test_readout_mixes_the_body_by_output() -> None:
    """z_o = Σ_j y_oj g_j(t) with the body's outputs output-major (eq 62)."""
    net, x = _random(_net, (3, 2)), np.linspace(-1, 2, 6).reshape(3, 2)
    y = np.asarray(net.network(x, 0)).reshape(2, 4, 3, 2)
    expected = np.einsum("ojab,j->oab", y, np.asarray(net.bumps(12.5)))
    np.testing.assert_allclose(net(x, 12.5), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("event_shape", "outputs", "num_bumps"), [((), 1, 1), ((), 2, 1), ((3,), 1, 4), ((2, 2), 2, 4)]
)
def test_output_shape_and_zero_start(event_shape: tuple[int, ...], outputs: int, num_bumps: int) -> None:
    """The shape follows `outputs`, and the initial output is zero."""
    out = eqx.filter_jit(_net(event_shape, outputs, num_bumps))(np.ones(event_shape), 3)
    assert out.shape == (event_shape if outputs == 1 else (outputs, *event_shape))
    assert not out.any()


def test_time_dependent_body() -> None:
    """A body that knows the time is handed it."""
    body = _random(MLP, KEY, (3,), num_steps=40, width=8, depth=1, outputs=8, time_features=8)
    net, x = BumpReadout(body, num_steps=40, num_bumps=4), jnp.ones(3)
    expected = jnp.einsum("oja,j->oa", body(x, 7).reshape(2, 4, 3), net.bumps(7))
    np.testing.assert_allclose(net(x, 7), expected, rtol=1e-4, atol=1e-5)


def test_jit_and_vmap_agree_with_eager() -> None:
    """Compiling and batching change nothing, for fractional steps and integer data too."""
    net, x, t = _random(_net), np.array([[0, 1, 1], [1, 0, 0]]), np.array([0.0, 2.5])
    eager = np.stack([net(x[i], t[i]) for i in range(2)])
    np.testing.assert_allclose(jax.jit(jax.vmap(net))(x.astype(float), t), eager, rtol=1e-4, atol=1e-5)


def test_dense_body_ignores_time_but_readout_does_not() -> None:
    """Only the bumps carry the time."""
    net, x = _random(_net), jnp.ones(3)
    np.testing.assert_array_equal(net.network(x, 1), net.network(x, 39))
    assert jnp.abs(net(x, 1) - net(x, 39)).max() > 1e-3


def test_gradient_reaches_every_parameter() -> None:
    """No leaf is dead; centres and widths of the bumps are not leaves."""
    net, x = _random(_net), np.random.default_rng(1).standard_normal((5, 3))
    grads = jax.jit(jax.grad(lambda n: jnp.sum(jax.vmap(n)(x, np.arange(5.0)) ** 2)))(net)
    leaves = jax.tree.leaves(grads)
    assert len(leaves) == 6 and all(jnp.abs(leaf).max() > 0 for leaf in leaves)


def test_float64_stays_float64() -> None:
    """Under x64 all of the arithmetic is in double precision."""
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: _net()(jnp.ones(3), 3)).dtype == jnp.float64


def test_bad_arguments_are_named() -> None:
    """Errors name the argument, and a body of the wrong shape is refused."""
    with pytest.raises(ValueError, match=r"network: expected output of shape \(20, 3\), got \(8, 3\)"):
        BumpReadout(Dense(KEY, (3,), outputs=8, width=4, depth=1), num_steps=40)(jnp.ones(3), 1)
    for bad in ({"num_bumps": 0}, {"num_steps": 0}, {"outputs": 0}, {"width": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            BumpReadout(lambda x, t: x, **{"num_steps": 40, **bad})
    for bad in ({"outputs": 0}, {"width": 0}, {"depth": 0}, {"activation": "exp"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Dense(KEY, (3,), **{"outputs": 1, "width": 4, "depth": 1, **bad})
