"""The U-Net of Ho et al. 2020, in their CIFAR-10 configuration and in any other of its kind.

Convolutions on halved images see far, those at full size see detail, and skips join both (Ho, Jain and Abbeel 2020,
App. B; Ronneberger, Fischer and Brox 2015).
"""

# Over 300 lines: one network, with the checks of its many settings beside it.

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_choice, check_count, check_key, refusal
from .._shapes import AnyContext, AnyExample, AnyTime
from . import layers
from .context import ContextEmbedding, ContextFeatures, embedded
from .embedding import scalar_time, sinusoidal
from .image_layers import Attention, Convolution, GroupNorm, Image, Pointwise, ResidualBlock, check_image_shape, double

ComputeType = Literal["bfloat16", "float32"]

UNET_SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": {"channels": (16, 32), "depth": 1, "attention": (), "mid_attention": False, "num_groups": 8},
        "small": {"channels": (32, 64, 64), "depth": 1, "attention": (2,), "num_groups": 8},
        "cifar10": {"channels": (128, 256, 256, 256), "depth": 2, "attention": (1,), "num_groups": 32},
    }
)
"""Settings by name: `UNet(key, event_shape, **UNET_SIZES["small"])`.

`"cifar10"`, which is also the default, is the configuration of Ho et al. 2020, appendix B: 35.7 million parameters.
"""


class Down(eqx.Module):
    """One level of the way down: residual blocks, attention after each of them or none, and a halving or none."""

    blocks: tuple[ResidualBlock, ...]
    attentions: tuple[Attention, ...]
    resample: Convolution | None

    def __call__(self, h: Image, condition: Float[Array, " conditions"]) -> tuple[Image, tuple[Image, ...]]:
        """Return the image, and every one made on the way, in order."""
        skips: tuple[Image, ...] = ()
        for i, block in enumerate(self.blocks):
            h = block(h, condition)
            h = self.attentions[i](h) if self.attentions else h
            skips = (*skips, h)
        return (h, skips) if self.resample is None else (h := self.resample(h), (*skips, h))


class Middle(eqx.Module):
    """The lowest level: a residual block, attention or none, and a residual block."""

    blocks: tuple[ResidualBlock, ResidualBlock]
    attentions: tuple[Attention, ...]

    def __call__(self, h: Image, condition: Float[Array, " conditions"]) -> Image:
        """Return an image of the same shape."""
        h = self.blocks[0](h, condition)
        for attention in self.attentions:
            h = attention(h)
        return self.blocks[1](h, condition)


class Up(eqx.Module):
    """One level of the way up: residual blocks that each take in an image from the way down, and a doubling or none."""

    blocks: tuple[ResidualBlock, ...]
    attentions: tuple[Attention, ...]
    resample: Convolution | None

    def __call__(self, h: Image, condition: Float[Array, " conditions"], skips: Sequence[Image]) -> Image:
        """Return the image; `skips` has one image for each block, the last for the first."""
        for i, (block, other) in enumerate(zip(self.blocks, reversed(skips), strict=True)):
            h = block(jnp.concatenate([h, other], axis=-1), condition)
            h = self.attentions[i](h) if self.attentions else h
        return h if self.resample is None else self.resample(double(h))


class UNet(eqx.Module):
    """Convolutional network that goes down through halved images and up again, with attention, told the step.

    On each level of the way down `depth` residual blocks; in the middle two, with attention between them; on each
    level of the way up `depth + 1`, each fed an image from the way down. The step enters every block through
    sinusoids of t − 1, since the paper's code counts steps from 0. The last convolution, every block's second one and
    every attention's output start at zero, so the initial output is exactly zero. The paper's dropout is left out.

    It is the architecture of the `diffusers` library's `UNet2DModel`, whose published models it can hold. `UNET_SIZES`
    has settings for smaller ones, by name: `UNet(key, event_shape, **UNET_SIZES["small"])`.

    Source: Ho et al. 2020, appendix B, and their code; the defaults are their CIFAR-10 configuration.
    """

    time: tuple[Pointwise, Pointwise]
    conv_in: Convolution
    down: tuple[Down, ...]
    middle: Middle
    up: tuple[Up, ...]
    norm_out: GroupNorm
    conv_out: Convolution
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    attention: tuple[int, ...] = eqx.field(static=True)
    up_attention: tuple[int, ...] = eqx.field(static=True)
    mid_attention: bool = eqx.field(static=True)
    head_channels: int | None = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    num_groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    down_padding: tuple[int, int] = eqx.field(static=True)
    cosine_first: bool = eqx.field(static=True)
    frequency_shift: int = eqx.field(static=True)
    compute_dtype: str | None = eqx.field(static=True)
    context: ContextEmbedding | None = None

    def __init__(
        self,
        key: PRNGKeyArray,
        event_shape: Sequence[int],
        *,
        channels: Sequence[int] = (128, 256, 256, 256),
        depth: int = 2,
        attention: Sequence[int] = (1,),
        up_attention: Sequence[int] | None = None,
        mid_attention: bool = True,
        head_channels: int | None = None,
        outputs: int = 1,
        num_groups: int = 32,
        eps: float = 1e-6,
        activation: str = "silu",
        down_padding: Sequence[int] = (0, 1),
        cosine_first: bool = False,
        frequency_shift: int = 1,
        compute_dtype: ComputeType | None = None,
        context: ContextFeatures | None = None,
    ) -> None:
        """Initialise the weights.

        Args:
            key: JAX key for the initial weights.
            event_shape: `(height, width, channels)`, or `(height, width)` for grey images; both sides must be
                divisible by 2^(levels − 1).
            channels: hidden channels of each level, full-sized images first; each divisible by `num_groups`.
            depth: residual blocks of a level on the way down; one more on the way up.
            attention: levels with self-attention, counted from 0.
            up_attention: the same for the way up; as on the way down if None.
            mid_attention: whether the middle has self-attention.
            head_channels: channels of one attention head; one head of all channels if None.
            outputs: how many arrays of shape `event_shape` to return (say 2: noise and a variance).
            num_groups: groups of the group norms.
            eps: what the group norms add to a variance.
            activation: of the blocks, a name in `layers.ACTIVATIONS`.
            down_padding: zeros before and after the image where it is halved: (0, 1) or (1, 1).
            cosine_first: whether the time features are cosines then sines, not sines then cosines.
            frequency_shift: their i-th of h frequencies is 10000^(−i/(h − frequency_shift)) radians per step.
            compute_dtype: `"bfloat16"` or `"float32"` for the activations, whatever the weights' type; group norms,
                softmax and output stay in float32. The type of weights and input if None.
            context: of a network that is called with a context too.

        Raises:
            ValueError: a size is not positive, the image does not divide, the channels do not divide
                into groups or heads, or a setting is unknown.
        """
        self.event_shape = layers.check_event_shape(event_shape)
        self.channels = tuple(check_count("channels", size) for size in _sequence("channels", channels))
        levels = range(len(self.channels))
        self.depth = check_count("depth", depth)
        self.attention = _levels("attention", attention, levels)
        self.up_attention = self.attention if up_attention is None else _levels("up_attention", up_attention, levels)
        self.mid_attention = bool(mid_attention)
        self.head_channels = None if head_channels is None else check_count("head_channels", head_channels)
        self.outputs = check_count("outputs", outputs)
        self.num_groups = check_count("num_groups", num_groups)
        self.eps = float(eps)
        self.activation = check_choice("activation", activation, tuple(layers.ACTIVATIONS))
        self.down_padding = _sequence("down_padding", down_padding)
        self.cosine_first = bool(cosine_first)
        self.frequency_shift = check_count("frequency_shift", frequency_shift, 0)
        kinds = ("bfloat16", "float32")
        self.compute_dtype = None if compute_dtype is None else check_choice("compute_dtype", compute_dtype, kinds)
        self._check()
        self._build(check_key("key", key))
        own = jax.random.fold_in(key, 0)
        self.context = None if context is None else ContextEmbedding(own, context, 4 * self.channels[0])

    @property
    def said(self) -> str:
        """In words."""
        return f"U-Net of {', '.join(map(str, self.channels))} channels"

    def __call__(self, x: AnyExample, t: AnyTime, context: AnyContext | None = None) -> Float[Array, "..."]:
        """Return the network's value at one example.

        Args:
            x: one example, of shape `event_shape`; float or int.
            t: step index in [0, T]; may be fractional.
            context: one context, for a network made for it.

        Returns:
            Array of shape `event_shape` if `outputs` is 1, else `(outputs, *event_shape)`; float32, or float64 where
            `x` or the weights are.

        Raises:
            ValueError: if `x` or `t` has the wrong shape; channels that come first are said to.
        """
        x = jnp.asarray(x)
        self._check_shape(x.shape)
        wide = jnp.result_type(float, x, self.conv_in.weight)
        dtype = jnp.dtype(self.compute_dtype or wide)
        net = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, self)
        told = embedded(net.context, context)
        told = told.astype(dtype) if isinstance(told, Array) else told
        image, features = x.astype(dtype).reshape(*self.event_shape[:2], -1), self.time_features(t).astype(dtype)
        out = net._run(image, features, told)
        out = out.astype(wide).reshape(*out.shape[:2], self.outputs, -1)
        return layers.split_outputs(jnp.moveaxis(out, 2, 0), self.outputs, self.event_shape)

    def time_features(self, t: AnyTime) -> Float[Array, " features"]:
        """Return the sinusoids of t − 1, as many as the first level has channels.

        Raises:
            ValueError: if `t` is not a scalar.
        """
        half = self.channels[0] // 2
        slowest = 10_000.0 ** ((half - 1) / (half - self.frequency_shift)) if half > 1 else 10_000.0
        features = sinusoidal(scalar_time(t) - 1, self.channels[0], slowest)
        return jnp.roll(features, half) if self.cosine_first else features

    def _run(self, x: Image, features: Float[Array, " features"], told: Array | float) -> Image:
        """The network itself: all of one floating type; `told` is what it knows of the context."""
        condition = self.time[1](jax.nn.silu(self.time[0](features))) + told
        h = self.conv_in(x)
        skips: tuple[Image, ...] = (h,)
        for down in self.down:
            h, more = down(h, condition)
            skips = skips + more
        h = self.middle(h, condition)
        for up in self.up:
            count = len(up.blocks)
            h = up(h, condition, skips[-count:])
            skips = skips[:-count]
        return self.conv_out(jax.nn.silu(self.norm_out(h)))

    def _build(self, key: PRNGKeyArray) -> None:
        """Set the layers; called once, while the module may still change."""
        first, conditions, colours = self.channels[0], 4 * self.channels[0], _colours(self.event_shape)
        keys = iter(jax.random.split(key, 4 + 4 * len(self.channels) * (self.depth + 2)))
        block = lambda i, o: ResidualBlock(next(keys), i, o, conditions, self.num_groups, self.eps, self.activation)
        attend = lambda size: Attention(next(keys), size, self._heads(size), self.num_groups, self.eps)
        self.time = (Pointwise(next(keys), first, conditions), Pointwise(next(keys), conditions, conditions))
        self.conv_in = Convolution(next(keys), colours, first)
        sizes, down, up = [first], [], []
        for level, size in enumerate(self.channels):
            last = level == len(self.channels) - 1
            blocks = tuple(block(sizes[-1] if i == 0 else size, size) for i in range(self.depth))
            attentions = tuple(attend(size) for _ in blocks if level in self.attention)
            halve = None if last else Convolution(next(keys), size, size, stride=2, padding=self.down_padding)
            down.append(Down(blocks, attentions, halve))
            sizes += [size] * (self.depth + (not last))
        self.middle = Middle((block(size, size), block(size, size)), (attend(size),) if self.mid_attention else ())
        below = size
        for level, size in reversed(list(enumerate(self.channels))):
            blocks = tuple(block((below if i == 0 else size) + sizes.pop(), size) for i in range(self.depth + 1))
            attentions = tuple(attend(size) for _ in blocks if level in self.up_attention)
            up.append(Up(blocks, attentions, None if level == 0 else Convolution(next(keys), size, size)))
            below = size
        self.down, self.up = tuple(down), tuple(up)
        self.norm_out = GroupNorm(first, self.num_groups, self.eps)
        self.conv_out = Convolution(next(keys), first, self.outputs * colours, zero=True)

    def _heads(self, size: int) -> int:
        return 1 if self.head_channels is None else size // self.head_channels

    def _check(self) -> None:
        """Raise ValueError for settings that do not fit one another."""
        shape, factor = self.event_shape, 2 ** (len(self.channels) - 1)
        check_image_shape(shape, factor, f"{len(self.channels)} levels")
        if self.channels[0] % 2 or self.frequency_shift >= max(self.channels[0] // 2, 2):
            expected = f"an even number above {2 * self.frequency_shift}"
            raise ValueError(f"channels: expected the first to be {expected}, got {self.channels[0]}")
        if bad := [size for size in self.channels if size % self.num_groups]:
            raise ValueError(f"channels: expected multiples of num_groups = {self.num_groups}, got {bad}")
        attending = {self.channels[level] for level in (*self.attention, *self.up_attention)}
        attending |= {self.channels[-1]} if self.mid_attention else set()
        if self.head_channels and (bad := sorted(size for size in attending if size % self.head_channels)):
            raise ValueError(f"head_channels: expected a divisor of the channels {bad}, got {self.head_channels}")
        if self.down_padding not in ((0, 1), (1, 1)):
            raise ValueError(f"down_padding: expected (0, 1) or (1, 1), got {self.down_padding}")
        if not self.eps > 0:
            raise ValueError(f"eps: expected a positive number, got {self.eps}")

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless `shape` is that of one example."""
        layers.check_example(shape, self.event_shape)


def _colours(event_shape: tuple[int, ...]) -> int:
    return event_shape[2] if len(event_shape) == 3 else 1


def _sequence(name: str, value: Any) -> tuple[Any, ...]:
    right_type = isinstance(value, Sequence) and not isinstance(value, str)
    if not right_type or (name == "channels" and not value):
        raise refusal(f"{name}: expected a tuple of whole numbers, got {value!r}", right_type)
    return tuple(value)


def _levels(name: str, value: Any, levels: range) -> tuple[int, ...]:
    chosen = tuple(check_count(name, level, 0) for level in _sequence(name, value))
    if set(chosen) - set(levels):
        raise ValueError(f"{name}: expected levels from 0 to {levels[-1]}, got {value!r}")
    return tuple(sorted(set(chosen)))
