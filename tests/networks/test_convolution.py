"""The convolution's own derivatives against those that JAX has for XLA's."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.networks.convolution import convolve

CASES = pytest.mark.parametrize(("stride", "padding"), [(1, (1, 1)), (2, (0, 1)), (2, (1, 1))])
ONE_WEIGHT = (0, None)


def _reference(x, weight, stride, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x[None], weight, (stride, stride), (padding, padding), None, None, numbers)[0]


def _arrays(dtype, images=9, weights=1):
    """More images than the fast code of the weight's gradient asks for, and weights."""
    rng = np.random.default_rng(0)
    shapes = (images, 4, 6, 2), (weights, 3, 3, 2, 3)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def _loss(convolution, axes=ONE_WEIGHT):
    return lambda x, weight: jnp.sum(jnp.sin(jax.vmap(convolution, axes)(x, weight)))


def _derivatives(convolution, x, weight):
    """The answer, and derivatives of one and two orders, in every order of forward and backward."""
    batched, gradients = jax.vmap(convolution, ONE_WEIGHT), jax.grad(_loss(convolution), (0, 1))
    forward = lambda x, weight: jax.jvp(batched, (x, weight), (x**2, weight - 1))[1]
    total = lambda fn: lambda *args: sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(fn(*args)))
    return (
        batched(x, weight),
        forward(x, weight),
        gradients(x, weight),
        jax.jvp(gradients, (x, weight), (x + 1, weight**2)),
        jax.grad(total(forward), (0, 1))(x, weight),
        jax.grad(total(jax.checkpoint(gradients)), (0, 1))(x, weight),
    )


def _assert_close(got, expected, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@CASES
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
def test_derivatives_are_xlas(stride, padding, dtype, tolerance):
    """float32 has code of its own, and float64 is what shows that nothing but rounding is between them."""
    with jax.enable_x64(dtype == "float64"):
        x, (weight,) = _arrays(dtype)
        own, reference = (partial(fn, stride=stride, padding=padding) for fn in (convolve, _reference))
        answers = [jax.jit(partial(_derivatives, fn))(x, weight) for fn in (own, reference)]
        _assert_close(*answers, tolerance)


@CASES
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (-1, 1)])
def test_derivatives_of_single_examples_are_xlas(stride, padding, axes):
    """Batched along images, along weights, along both, and not along the first axis."""
    with jax.enable_x64(True):
        arrays = [np.asarray(a) for a in _arrays("float64", 3, 3)]
        x, weight = (a[0] if axis is None else np.moveaxis(a, 0, axis) for a, axis in zip(arrays, axes, strict=True))

        def single(fn):
            loss = lambda x, weight: jnp.sum(jnp.sin(fn(x, weight, stride, padding)))
            gradients = jax.grad(loss, (0, 1))
            both = lambda x, weight: jax.jvp(gradients, (x, weight), (x + 1, weight**2))
            return jax.jit(jax.vmap(both, axes))(x, weight)

        _assert_close(single(convolve), single(_reference), 1e-9)


def test_each_of_several_networks_has_its_own_gradient():
    """Weights batched outside of images: an ensemble."""
    x, weights = _arrays("float32", 3, 2)
    pad = {"stride": 1, "padding": (1, 1)}
    losses = [_loss(partial(fn, **pad)) for fn in (convolve, _reference)]
    answers = [jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, 0)))(x, weights) for loss in losses]
    _assert_close(*answers, 1e-4)


def test_descent_in_a_loop_is_xlas():
    x, (weight,) = _arrays("float32")

    def descend(fn):
        loss = _loss(partial(fn, stride=1, padding=(1, 1)))
        step = lambda weight, _: (weight - 0.01 * jax.grad(loss, 1)(x, weight), None)
        return jax.jit(lambda weight: jax.lax.scan(step, weight, None, length=3)[0])(weight)

    _assert_close(descend(convolve), descend(_reference), 1e-4)


def test_gradients_on_a_cpu_are_in_the_layout_with_fast_code():
    """Neither mirrored nor spread out, and channels last; elsewhere they are left as XLA has them."""
    x, (weight,) = _arrays("float32")
    gradients = jax.jit(jax.grad(_loss(partial(convolve, stride=1, padding=(1, 1))), (0, 1)))
    texts = [gradients.trace(x, weight).lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")]
    on_cpu, elsewhere = (re.findall(r"stablehlo\.convolution\(.*", text) for text in texts)
    assert len(on_cpu) == len(elsewhere) == 3
    fast = "dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert all(fast in line and "reverse = [true" not in line and "lhs_dilate = [2" not in line for line in on_cpu)
    assert sum(fast in line for line in elsewhere) == 1


def test_bfloat16_stays_bfloat16():
    x, (weight,) = _arrays("float32")
    gradients = jax.jit(jax.grad(_loss(partial(convolve, stride=1, padding=(1, 1))), (0, 1)))
    half = gradients(x.astype("bfloat16"), weight.astype("bfloat16"))
    for one, other in zip(half, gradients(x, weight), strict=True):
        assert one.dtype == jnp.bfloat16
        assert jnp.linalg.norm(one - other) < 0.03 * jnp.linalg.norm(other)


def test_types_that_differ_are_refused():
    x, (weight,) = _arrays("float32")
    with pytest.raises(TypeError, match="same dtypes"):
        convolve(x[0], weight.astype("bfloat16"), 1, (1, 1))


def test_it_runs_without_jit():
    x, (weight,) = _arrays("float32")
    _assert_close(convolve(x[0], weight, 2, (0, 1)), _reference(x[0], weight, 2, (0, 1)), 1e-5)
