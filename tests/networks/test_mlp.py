"""The residual network, its time features, and the rules every network keeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from numpyro_diffusion.networks import MLP, sinusoidal

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest


def _small(event_shape: tuple[int, ...] = (2,), outputs: int = 1, activation: str = "silu") -> MLP:
    sizes = {"num_steps": 10, "width": 16, "depth": 2, "outputs": outputs, "time_features": 8}
    return MLP(KEY, event_shape, activation=activation, **sizes)


def _random(event_shape: tuple[int, ...] = (2,), outputs: int = 1, activation: str = "silu") -> MLP:
    """Return a network none of whose parameters is at its initial value."""
    rng = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(_small, event_shape, outputs, activation)
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape, a.dtype)), shapes)


@pytest.mark.parametrize(("event_shape", "outputs"), [((), 1), ((4, 2, 1), 3)])
def test_output_shape_and_zero_start(event_shape: tuple[int, ...], outputs: int) -> None:
    """The shape follows `outputs`, and the initial output is exactly zero."""
    out = eqx.filter_jit(_small(event_shape, outputs))(np.ones(event_shape), 3)
    assert out.shape == (event_shape if outputs == 1 else (outputs, *event_shape))
    assert not out.any()


@pytest.mark.parametrize("activation", ["silu", "leaky_relu"])
def test_jit_and_vmap_agree_with_eager(activation: str) -> None:
    """Compiling and batching change nothing, for whole and fractional steps, float and integer data."""
    net = _random((3,), 2, activation)
    x, t = np.array([[0, 1, 1], [1, 0, 0]]), np.array([0.0, 2.5])
    eager = np.stack([net(x[i], t[i]) for i in range(2)])
    np.testing.assert_allclose(jax.jit(jax.vmap(net))(x.astype(float), t), eager, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net(x[0], 2), net(x[0], 2.0), rtol=1e-6)


def test_gradient_reaches_every_parameter() -> None:
    """No leaf of the network is dead, and every leaf is trainable."""
    net = _random()
    x = np.random.default_rng(1).standard_normal((8, 2))
    grads = jax.jit(jax.grad(lambda n: jnp.sum(jax.vmap(n)(x, np.arange(8.0)) ** 2)))(net)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_fractional_steps_lie_between_and_are_smooth() -> None:
    """The output moves with t, continuously."""
    net, x = _random(), np.array([0.3, -1.2])
    value = jax.jit(lambda t: net(x, t))
    assert jnp.abs(value(3.0) - value(4.0)).max() > 1e-4
    slope = jax.jit(jax.jacfwd(value))(3.5)
    np.testing.assert_allclose((value(3.55) - value(3.45)) / 0.1, slope, rtol=0.05, atol=1e-3)


def test_static_fields_rebuild_the_network() -> None:
    """The static fields and the leaves are enough to rebuild the network."""
    net = _random((2, 2), 2, "tanh")
    names = ("num_steps", "width", "depth", "outputs", "activation", "time_features")
    static = {name: getattr(net, name) for name in names}
    twin = eqx.filter_eval_shape(MLP, KEY, net.event_shape, **static)
    twin = jax.tree.unflatten(jax.tree.structure(twin), jax.tree.leaves(net))
    x = jnp.arange(4.0).reshape(2, 2)
    np.testing.assert_array_equal(eqx.filter_jit(twin)(x, 5), eqx.filter_jit(net)(x, 5))
    assert hash(jax.tree.structure(twin)) == hash(jax.tree.structure(net))


def test_float64_stays_float64() -> None:
    """Under x64 all of the arithmetic is in double precision."""
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: _small()(jnp.ones(2), 3)).dtype == jnp.float64
        assert sinusoidal(3, 4, 10.0).dtype == jnp.float64


def test_sinusoidal_matches_its_formula() -> None:
    """Sines then cosines, at frequencies from 1 down to 1/max_period."""
    omega = np.array([1.0, 10.0**-0.5, 0.1])
    expected = np.concatenate([np.sin(2.5 * omega), np.cos(2.5 * omega)])
    np.testing.assert_allclose(sinusoidal(2.5, 6, 10.0), expected, rtol=1e-5)


def test_the_whole_chain_has_distinct_time_features() -> None:
    """No two steps of [0, T] share their features."""
    features = jax.vmap(lambda t: sinusoidal(t, 64, 1000))(jnp.arange(1001))
    squares = jnp.sum(features**2, axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T + 100 * jnp.eye(1001)
    assert distances.min() > 0.1


def test_learns_a_linear_map_and_a_bend() -> None:
    """A few hundred steps of gradient descent fit a function of x and t well."""
    net, rng = _small(), np.random.default_rng(2)
    x, t = rng.standard_normal((128, 2)), rng.uniform(0, 10, 128)
    target = x * np.cos(t / 5)[:, None] + np.sin(2 * x[:, ::-1])
    moments = jax.tree.map(jnp.zeros_like, net)

    def loss(net: MLP) -> jax.Array:
        return jnp.mean((jax.vmap(net)(x, t) - target) ** 2)

    def step(carry: tuple[MLP, MLP], _: None) -> tuple[tuple[MLP, MLP], jax.Array]:
        net, square = carry
        value, grad = jax.value_and_grad(loss)(net)
        square = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g**2, square, grad)
        net = jax.tree.map(lambda p, g, s: p - 2e-3 * g / (jnp.sqrt(s) + 1e-4), net, grad, square)
        return (net, square), value

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=400))((net, moments))
    assert losses[-10:].mean() < 0.03 * losses[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 0}, "width"),
        ({"depth": 0}, "depth"),
        ({"outputs": 1.5}, "outputs: expected a whole number of at least 1, got 1.5"),
        ({"num_steps": -1}, "num_steps"),
        ({"time_features": 7}, "time_features"),
        ({"activation": "swish"}, "activation.*'silu'.*'swish'"),
        ({"event_shape": (2, 0)}, "event_shape: expected a whole number of at least 1, got 0"),
        ({"event_shape": 2}, "event_shape: expected .* got 2$"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], named: str) -> None:
    """Errors name the argument."""
    with refused(named):
        MLP(KEY, **{"event_shape": (2,), "num_steps": 10, **change})


def test_wrong_calls_are_refused() -> None:
    """A batch, a vector of times and an unknown keyword all raise."""
    net = _small()
    with pytest.raises(ValueError, match=r"x: expected .*\(2,\).*got shape \(5, 2\)"):
        net(jnp.ones((5, 2)), 1)
    with pytest.raises(ValueError, match="t: expected a scalar"):
        net(jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError):
        MLP(KEY, (2,), num_steps=10, hidden=3)
    with pytest.raises(ValueError, match="num_features"):
        sinusoidal(1.0, 5)
    with pytest.raises(ValueError, match="max_period"):
        sinusoidal(1.0, 4, 0.0)
