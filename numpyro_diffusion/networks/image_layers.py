"""What image networks are made of: layers on one image of shape (height, width, channels).

Channels come last, as in the events of the package, so that nothing is transposed on the way. Every layer computes in
the floating type of its input and weights; sums over many pixels (group norm, softmax) are at least float32.
"""

from collections.abc import Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from . import layers
from .convolution import convolve

Image: TypeAlias = Float[Array, "_height _width _channels"]

# The paper's code: uniform, with variance 1 / the mean of fan-in and fan-out.
_INITIAL = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class Convolution(eqx.Module):
    """A 3×3 convolution: the weight has shape (3, 3, inputs, outputs), the padding is the same for both axes."""

    weight: Float[Array, "3 3 inputs outputs"]
    bias: Float[Array, " outputs"]
    stride: int = eqx.field(static=True)
    padding: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        padding: tuple[int, int] = (1, 1),
        zero: bool = False,
    ) -> None:
        self.weight = _initial(key, (3, 3, inputs, outputs), zero)
        self.bias = jnp.zeros(outputs)
        self.stride = stride
        self.padding = padding

    def __call__(self, x: Image) -> Image:
        """Return the image of `outputs` channels, smaller by `stride`."""
        return convolve(x, self.weight, self.stride, self.padding) + self.bias


class Pointwise(eqx.Module):
    """An affine map of the last axis, whatever comes before it: a 1×1 convolution, or a dense layer."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, key: PRNGKeyArray, inputs: int, outputs: int, *, zero: bool = False) -> None:
        self.weight = _initial(key, (inputs, outputs), zero)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*lead inputs"]) -> Float[Array, "*lead outputs"]:
        """Return x W + b."""
        return x @ self.weight + self.bias


class GroupNorm(eqx.Module):
    """Each group of neighbouring channels to mean 0 and variance 1, then a gain and a shift for each channel.

    Source: Wu & He 2018.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    num_groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, num_groups: int, eps: float) -> None:
        self.weight, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.num_groups, self.eps = num_groups, eps

    def __call__(self, x: Image) -> Image:
        """Return the normalised image, in the type of `x`."""
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        h = h - self._group_mean(h)
        gain = jax.lax.rsqrt(self._group_mean(h**2) + self.eps) * self.weight
        return (h * gain + self.bias).astype(x.dtype)

    def _group_mean(self, h: Image) -> Float[Array, " channels"]:
        """The mean over the image and the channel's group. Pixels first: that sum runs along whole rows of memory."""
        groups = jnp.mean(h, axis=(0, 1)).reshape(self.num_groups, -1)
        return jnp.repeat(jnp.mean(groups, axis=1), groups.shape[1])


class Attention(eqx.Module):
    """Self-attention among the pixels, added to its input: x + W_o softmax(q k^T / √d) v.

    Source: Vaswani et al. 2017, eq 1, with the group norm and the residual of the code of Ho et al. 2020.
    """

    norm: GroupNorm
    query: Pointwise
    key: Pointwise
    value: Pointwise
    out: Pointwise
    num_heads: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, channels: int, num_heads: int, num_groups: int, eps: float) -> None:
        keys = jax.random.split(key, 4)
        self.norm = GroupNorm(channels, num_groups, eps)
        self.query, self.key, self.value = (Pointwise(k, channels, channels) for k in keys[:3])
        self.out = Pointwise(keys[3], channels, channels, zero=True)
        self.num_heads = num_heads

    def __call__(self, x: Image) -> Image:
        """Return an image of the same shape."""
        h = self.norm(x).reshape(-1, x.shape[-1])
        q, k, v = (layer(h).reshape(len(h), self.num_heads, -1) for layer in (self.query, self.key, self.value))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("qhd,khd->hqk", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("hqk,khd->qhd", weights, v).reshape(len(h), -1)
        return x + self.out(mixed).reshape(x.shape)


class ResidualBlock(eqx.Module):
    """Two convolutions beside a shortcut, with the time embedding c added between them.

    S x + conv₂(a(norm₂(conv₁(a(norm₁(x))) + W a(c)))), where S is the identity, or 1×1 if the channels change. conv₂
    starts at zero.

    Source: Ho et al. 2020, appendix B, and their code.
    """

    norm_1: GroupNorm
    conv_1: Convolution
    time: Pointwise
    norm_2: GroupNorm
    conv_2: Convolution
    shortcut: Pointwise | None
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        inputs: int,
        outputs: int,
        conditions: int,
        num_groups: int,
        eps: float,
        activation: str,
    ) -> None:
        keys = jax.random.split(key, 4)
        self.norm_1 = GroupNorm(inputs, num_groups, eps)
        self.conv_1 = Convolution(keys[0], inputs, outputs)
        self.time = Pointwise(keys[1], conditions, outputs)
        self.norm_2 = GroupNorm(outputs, num_groups, eps)
        self.conv_2 = Convolution(keys[2], outputs, outputs, zero=True)
        self.shortcut = None if inputs == outputs else Pointwise(keys[3], inputs, outputs)
        self.activation = activation

    def __call__(self, x: Image, condition: Float[Array, " conditions"]) -> Image:
        """Return the image of `outputs` channels."""
        activation = layers.ACTIVATIONS[self.activation]
        h = self.conv_1(activation(self.norm_1(x))) + self.time(activation(condition))
        h = self.conv_2(activation(self.norm_2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


def double(x: Image) -> Image:
    """Return the image of twice the height and width, each pixel repeated."""
    height, width, channels = x.shape
    return jnp.broadcast_to(x[:, None, :, None], (height, 2, width, 2, channels)).reshape(
        2 * height, 2 * width, channels
    )


def check_image_shape(event_shape: Sequence[int], factor: int, what: str) -> tuple[int, ...]:
    """Return the shape of an image as a tuple once both sides divide by `factor`, which `what` asks for.

    Raises:
        ValueError: it has another rank, or does not divide; channels that come first are said to.
    """
    shape = layers.check_event_shape(event_shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"event_shape: expected (height, width) or (height, width, channels), got {shape}")
    if shape[0] % factor or shape[1] % factor:
        hint = "; are the channels first? they belong last" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        raise ValueError(
            f"event_shape: expected a height and width divisible by {factor}, for {what}, got {shape}{hint}"
        )
    return shape


def _initial(key: PRNGKeyArray, shape: tuple[int, ...], zero: bool) -> Array:
    return jnp.zeros(shape) if zero else _INITIAL(key, shape, jnp.result_type(float))
