"""The U-Net: its layers against NumPy, its size against the paper, and the rules every network keeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from numpyro_diffusion import checkpoints
from numpyro_diffusion.networks import UNET_SIZES, UNet, sinusoidal
from numpyro_diffusion.networks.image_layers import Attention, Convolution, GroupNorm, double

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest
SMALL = {"channels": (4, 8), "depth": 1, "attention": (1,), "num_groups": 2}


def _small(event_shape=(4, 4, 3), outputs=1, **changes):
    return UNet(KEY, event_shape, outputs=outputs, **{**SMALL, **changes})


def _stirred(make, *args, scale=0.3, **settings):
    """Return what `make` does, with none of its weights at its initial value (which are not even computed)."""
    rng, shapes = np.random.default_rng(0), eqx.filter_eval_shape(lambda: make(*args, **settings))
    stir = lambda leaf: (leaf.ndim == 1) + scale * rng.standard_normal(leaf.shape, leaf.dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(stir(leaf)), shapes)


def _image(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def _count(**settings):
    shapes = eqx.filter_eval_shape(lambda key: UNet(key, (32, 32, 3), **settings), KEY)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_papers_cifar10_network_has_35_7_million_parameters():
    """Ho et al. 2020, appendix B; the exact number is that of the model converted to the `diffusers` library."""
    assert _count() == _count(**UNET_SIZES["cifar10"]) == 35_746_307


def test_the_papers_parameters_are_counted_level_by_level():
    """The same number by hand, so that it does not rest on the code that it checks."""
    conv = lambda i, o: 9 * i * o + o
    dense = lambda i, o: i * o + o
    block = lambda i, o: 2 * i + conv(i, o) + dense(512, o) + 2 * o + conv(o, o) + (dense(i, o) if i != o else 0)
    attention = lambda c: 2 * c + 4 * dense(c, c)
    time = dense(128, 512) + dense(512, 512)
    down = 2 * block(128, 128) + conv(128, 128)
    down += block(128, 256) + block(256, 256) + 2 * attention(256) + conv(256, 256)
    down += 2 * block(256, 256) + conv(256, 256) + 2 * block(256, 256)
    middle = 2 * block(256, 256) + attention(256)
    up = 3 * block(512, 256) + conv(256, 256)
    up += 3 * block(512, 256) + conv(256, 256)
    up += 2 * block(512, 256) + block(384, 256) + 3 * attention(256) + conv(256, 256)
    up += block(384, 128) + 2 * block(256, 128)
    assert _count() == time + conv(3, 128) + down + middle + up + 2 * 128 + conv(128, 3)


@pytest.mark.parametrize("name", UNET_SIZES)
def test_sizes_by_name_fit_colour_images_of_32_and_grey_ones_of_28(name):
    for shape in [(32, 32, 3), (28, 28)]:
        if name == "cifar10" and shape == (28, 28):
            continue  # four levels: 28 does not divide by 8
        net = eqx.filter_eval_shape(lambda key, shape=shape: UNet(key, shape, **UNET_SIZES[name]), KEY)
        assert jax.eval_shape(lambda net, shape=shape: net(jnp.zeros(shape), 1), net).shape == shape


@pytest.mark.parametrize(("event_shape", "outputs"), [((4, 2), 1), ((4, 2), 2), ((2, 4, 3), 3)])
def test_output_shape_and_zero_start(event_shape, outputs):
    out = eqx.filter_jit(_small(event_shape, outputs))(np.ones(event_shape), 3)
    assert out.shape == (event_shape if outputs == 1 else (outputs, *event_shape))
    assert out.dtype == jnp.float32 and not out.any()


def test_jit_and_vmap_agree_with_eager():
    net = _stirred(_small)
    x, t = jnp.asarray(_image(2, 4, 4, 3)), jnp.array([1.0, 2.5])
    single, both = eqx.filter_jit(net), jax.jit(jax.vmap(net))(x, t)
    assert np.abs(both[0] - both[1]).max() > 0.1
    np.testing.assert_allclose(both, np.stack([single(x[i], t[i]) for i in range(2)]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net(x[1], t[1]), both[1], rtol=1e-4, atol=1e-5)


def test_outputs_are_arrays_of_their_own():
    """With several outputs, the last convolution's channels are output-major: the first output's colours first."""
    both, x = _stirred(_small, outputs=2), _image(4, 4, 3)
    shared = lambda net: (net.time, net.conv_in, net.down, net.middle, net.up, net.norm_out)
    out = eqx.filter_jit(both)(x, 2)
    for i, part in enumerate([slice(0, 3), slice(3, 6)]):
        one = eqx.tree_at(shared, _stirred(_small), shared(both))
        last = (both.conv_out.weight[..., part], both.conv_out.bias[part])
        one = eqx.tree_at(lambda net: (net.conv_out.weight, net.conv_out.bias), one, last)
        np.testing.assert_allclose(eqx.filter_jit(one)(x, 2), out[i], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradient_reaches_every_parameter():
    net = _stirred(_small, (4, 4))
    x = jnp.asarray(_image(3, 4, 4), jnp.float32)
    loss = lambda net: jnp.sum(jax.vmap(net)(x, jnp.arange(1.0, 4.0)) ** 2)
    grads = jax.jit(jax.grad(loss))(net)
    # A shift of all keys alike changes no softmax.
    attending = lambda net: (net.down[1].attentions[0], net.middle.attentions[0], *net.up[0].attentions)
    keys = lambda net: [attention.key.bias for attention in attending(net)]
    grads = eqx.tree_at(keys, grads, replace_fn=jnp.ones_like)
    assert all(jnp.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(grads))


def test_time_features():
    """Those of the paper's code, which counts steps from 0; or their halves exchanged and another spacing."""
    net = _small()
    np.testing.assert_allclose(net.time_features(8), sinusoidal(7, 4, 10_000.0), rtol=1e-6)
    omega = 10_000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(6.5 * omega), np.sin(6.5 * omega)])
    net = _small(channels=(8, 8), cosine_first=True, frequency_shift=0)
    np.testing.assert_allclose(net.time_features(7.5), expected, rtol=1e-5, atol=1e-6)


def test_group_norm_is_numpys():
    x, norm = 3 + 2 * _image(4, 6, 6), _stirred(GroupNorm, 6, 3, 1e-3)
    groups = x.reshape(24, 3, 2)
    scaled = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-3)
    expected = scaled.reshape(x.shape) * np.asarray(norm.weight) + np.asarray(norm.bias)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_attention_is_numpys():
    x, attention = _image(2, 3, 4), _stirred(Attention, KEY, 4, 2, 1, 1e-6)
    h = np.asarray(attention.norm(jnp.asarray(x))).reshape(6, 4)
    q, k, v = (h @ np.asarray(p.weight) + np.asarray(p.bias) for p in (attention.query, attention.key, attention.value))
    mixed = []
    for head in (slice(0, 2), slice(2, 4)):
        weights = np.exp(q[:, head] @ k[:, head].T / np.sqrt(2))
        mixed.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, head])
    update = np.concatenate(mixed, axis=1) @ np.asarray(attention.out.weight) + np.asarray(attention.out.bias)
    np.testing.assert_allclose(
        attention(jnp.asarray(x, jnp.float32)), x + update.reshape(x.shape), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("stride", "padding"), [(1, (1, 1)), (2, (0, 1)), (2, (1, 1))])
def test_convolution_is_numpys(stride, padding):
    x, conv = _image(4, 6, 2), _stirred(Convolution, KEY, 2, 3, stride=stride, padding=padding)
    padded = np.pad(x, (padding, padding, (0, 0)))
    expected = np.zeros((4 // stride, 6 // stride, 3)) + np.asarray(conv.bias)
    for i, j in np.ndindex(*expected.shape[:2]):
        patch = padded[i * stride : i * stride + 3, j * stride : j * stride + 3]
        expected[i, j] += np.einsum("hwi,hwio->o", patch, np.asarray(conv.weight))
    np.testing.assert_allclose(conv(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_doubling_repeats_pixels():
    x = _image(2, 3, 2)
    np.testing.assert_array_equal(double(jnp.asarray(x, jnp.float32)), x.astype("f").repeat(2, 0).repeat(2, 1))


def test_bfloat16_computes_in_half_precision_and_answers_in_float32():
    """Convolutions and products are in bfloat16, with 8 bits of precision; the answer moves by that much."""
    exact, fast = _stirred(_small, scale=0.1), _stirred(_small, compute_dtype="bfloat16", scale=0.1)
    x = jnp.asarray(_image(4, 4, 3), jnp.float32)
    program = jax.jit(lambda x: fast(x, 3)).lower(x).as_text().splitlines()
    convolutions = [line for line in program if "stablehlo.convolution" in line]
    assert convolutions and all(line.endswith("xbf16>") for line in convolutions)
    left, right = eqx.filter_jit(exact)(x, 3), eqx.filter_jit(fast)(x, 3)
    error = jnp.sqrt(jnp.mean((left - right) ** 2) / jnp.mean(left**2))
    assert right.dtype == jnp.float32 and 1e-4 < error < 0.05
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(fast))
    grads = jax.eval_shape(jax.grad(lambda net: jnp.sum(net(x, 3) ** 2)), fast)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


def test_float64_stays_float64():
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: _small()(jnp.ones((4, 4, 3)), 3)).dtype == jnp.float64


def test_a_file_describes_it(tmp_path):
    net, x = _stirred(_small, (4, 4), 2, up_attention=(0,), head_channels=2), _image(4, 4)
    checkpoints.write_module(tmp_path / "net.safetensors", net)
    back, _ = checkpoints.read_module(tmp_path / "net.safetensors")
    assert jax.tree.structure(back) == jax.tree.structure(net)
    np.testing.assert_array_equal(eqx.filter_jit(back)(x, 5), eqx.filter_jit(net)(x, 5))


@pytest.mark.slow
def test_learns_to_shift_an_image():
    """A few hundred steps of gradient descent fit a function of neighbouring pixels and of t."""
    net, rng = _small((8, 8)), np.random.default_rng(2)
    x, t = jnp.asarray(rng.standard_normal((16, 8, 8)), jnp.float32), jnp.asarray(rng.uniform(1, 100, 16), jnp.float32)
    target = jnp.roll(x, 1, axis=1) * jnp.cos(t / 30)[:, None, None]

    def step(carry, _):
        net, square = carry
        loss = lambda net: jnp.mean((jax.vmap(net)(x, t) - target) ** 2)
        value, grad = jax.value_and_grad(loss)(net)
        square = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g**2, square, grad)
        net = jax.tree.map(lambda p, g, s: p - 2e-3 * g / (jnp.sqrt(s) + 1e-4), net, grad, square)
        return (net, square), value

    _, losses = jax.jit(lambda c: jax.lax.scan(step, c, None, length=400))((net, jax.tree.map(jnp.zeros_like, net)))
    assert losses[-10:].mean() < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"channels": ()}, "channels"),
        ({"channels": (4, 0)}, "channels"),
        ({"channels": (4, 7)}, r"channels: expected multiples of num_groups = 2, got \[7\]"),
        ({"channels": (5, 5), "num_groups": 5}, "channels: expected the first to be an even number"),
        ({"depth": 0}, "depth"),
        ({"attention": (2,)}, "attention: expected levels from 0 to 1"),
        ({"up_attention": (-1,)}, "up_attention"),
        ({"attention": 1}, "attention: expected a tuple"),
        ({"head_channels": 3}, r"head_channels: expected a divisor of the channels \[8\], got 3"),
        ({"outputs": 0}, "outputs"),
        ({"num_groups": 1.5}, "num_groups"),
        ({"eps": 0.0}, "eps: expected a positive number"),
        ({"activation": "swish"}, "activation.*'silu'.*'swish'"),
        ({"down_padding": (1, 0)}, "down_padding"),
        ({"frequency_shift": 2}, "channels: expected the first to be an even number above 4, got 4"),
        ({"compute_dtype": "float16"}, "compute_dtype: expected one of 'bfloat16', 'float32', got 'float16'"),
        ({"event_shape": (4,)}, r"event_shape: expected \(height, width\) or"),
        ({"event_shape": (6, 5)}, r"event_shape: expected a height and width divisible by 2, .* got \(6, 5\)"),
        ({"event_shape": (3, 4, 4)}, "are the channels first"),
        ({"event_shape": 4}, "event_shape: expected .* got 4$"),
    ],
)
def test_bad_arguments_are_named(change, named):
    with refused(named):
        UNet(KEY, **{"event_shape": (4, 4), **SMALL, **change})


def test_wrong_calls_are_refused():
    net = _small((4, 2, 3))
    with pytest.raises(ValueError, match=r"x: expected .*\(4, 2, 3\), got shape \(3, 4, 2\) \(channels first: move"):
        net(jnp.ones((3, 4, 2)), 1)
    with pytest.raises(ValueError, match=r"x: expected .* got shape \(5, 4, 2, 3\) \(batch with jax.vmap\)"):
        net(jnp.ones((5, 4, 2, 3)), 1)
    with pytest.raises(ValueError, match="t: expected a scalar"):
        net(jnp.ones((4, 2, 3)), jnp.ones(2))
    with pytest.raises(TypeError):
        UNet(KEY, (4, 4), dropout=0.1)
