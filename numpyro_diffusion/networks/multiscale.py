"""The multi-scale convolutional network of Sohl-Dickstein et al. 2015, for images: a body for `BumpReadout`.

An image is averaged over blocks of 1, 2, 4, … pixels, convolved at each of these scales, and the answers are brought to
full size and summed (Sohl-Dickstein et al. 2015, App. D.2.1, Fig. D.1); beside it a dense way sees the whole image. The
paper leaves numbers of layers and filters open, so that this is its architecture and not its network.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_choice, check_count, check_key
from .._shapes import AnyContext, AnyExample, AnyTime
from . import layers
from .context import ContextEmbedding, ContextFeatures, embedded
from .image_layers import Convolution, Image, Pointwise, check_image_shape, double


class MultiScaleConvolution(eqx.Module):
    """One layer: the image averaged over blocks of 1, 2, 4, … pixels, a convolution at each scale, and their sum.

    Every scale's answer is brought back to full size by repeating pixels; a softplus follows the sum.

    Source: Sohl-Dickstein et al. 2015, appendix D.2.1, Fig. D.1.
    """

    convolutions: tuple[Convolution, ...]

    def __init__(self, key: PRNGKeyArray, inputs: int, outputs: int, scales: int) -> None:
        keys = jax.random.split(key, scales)
        self.convolutions = tuple(Convolution(k, inputs, outputs) for k in keys)

    def __call__(self, x: Image) -> Image:
        """Return the image of `outputs` channels."""
        images = [x]
        for _ in self.convolutions[1:]:
            images.append(halve(images[-1]))
        # From the coarsest up, so that each doubling serves all scales above it.
        total = self.convolutions[-1](images[-1])
        for convolution, image in zip(reversed(self.convolutions[:-1]), reversed(images[:-1]), strict=True):
            total = convolution(image) + double(total)
        return jax.nn.softplus(total)


class MultiScale(eqx.Module):
    """Two ways side by side, one of multi-scale convolutions and one dense, read together pixel by pixel.

    The convolutions see every pixel's surroundings at `scales` resolutions; the dense way sees the whole image and
    gives each pixel some features of its own. Pointwise layers with tanh mix both, and the last one, which starts at
    zero, gives `outputs` numbers for each pixel and colour. It ignores time, which `BumpReadout` brings in:

    ``BumpReadout(MultiScale(key, (28, 28), outputs=20), num_steps=1000)``, with ``predicts="mean"``.

    Source: Sohl-Dickstein et al. 2015, appendix D.2.1 and Fig. D.1, which leave numbers of layers and filters open; the
    defaults are small. The authors' released code also divides by the number of scales and has leaky rectifiers.
    """

    convolutions: tuple[MultiScaleConvolution, ...]
    dense: tuple[Pointwise, ...]
    mix: tuple[Pointwise, ...]
    readout: Pointwise
    event_shape: tuple[int, ...] = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    scales: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    context: ContextEmbedding | None = None

    def __init__(
        self,
        key: PRNGKeyArray,
        event_shape: Sequence[int],
        *,
        outputs: int,
        channels: int = 16,
        depth: int = 2,
        scales: int = 2,
        dense_width: int = 128,
        dense_depth: int = 2,
        dense_features: int = 2,
        mix_depth: int = 1,
        activation: str = "tanh",
        context: ContextFeatures | None = None,
    ) -> None:
        """Initialise the weights.

        Args:
            key: JAX key for the initial weights.
            event_shape: `(height, width, channels)`, or `(height, width)` for grey images; both sides must be
                divisible by 2^(scales − 1).
            outputs: values per pixel and colour; `outputs * num_bumps` of the read-out it serves.
            channels: of every multi-scale layer, and of the pointwise ones that follow.
            depth: multi-scale layers; 0 for the dense way alone, as in the paper's network for MNIST.
            scales: resolutions of each multi-scale layer.
            dense_width: units in each hidden layer of the dense way.
            dense_depth: its hidden layers; 0 for none of it.
            dense_features: what it gives each pixel.
            mix_depth: pointwise layers before the read-out.
            activation: of dense and pointwise layers, a name in `layers.ACTIVATIONS`.
            context: of a network that is called with a context too, which scales and shifts what the pointwise layers
                before the read-out see (FiLM, Perez et al. 2018).

        Raises:
            ValueError: a size is not a whole number in its range, the image does not divide, `activation` is unknown,
                or there is neither a convolution nor a dense layer.
        """
        self.event_shape = check_image_shape(event_shape, 2 ** (check_count("scales", scales) - 1), f"{scales} scales")
        self.outputs = check_count("outputs", outputs)
        self.scales = scales
        self.activation = check_choice("activation", activation, tuple(layers.ACTIVATIONS))
        width, hidden = check_count("channels", channels), check_count("dense_width", dense_width)
        depths = [check_count("depth", depth, 0), check_count("dense_depth", dense_depth, 0)]
        depths.append(check_count("mix_depth", mix_depth, 0))
        if not any(depths[:2]):
            raise ValueError("depth, dense_depth: expected at least one layer of either kind, got 0 and 0")
        features = check_count("dense_features", dense_features) if dense_depth else 0
        height, breadth, colours = (*self.event_shape, 1)[:3]
        own_keys = jax.random.split(check_key("key", key), 3)
        keys = [jax.random.split(k, max(n, 1)) for k, n in zip(own_keys, depths, strict=True)]
        ends = jax.random.split(jax.random.fold_in(key, 0), 2)
        inputs = [colours] + [width] * (depth - 1)
        self.convolutions = tuple(
            MultiScaleConvolution(k, n, width, scales) for k, n in zip(keys[0], inputs[:depth], strict=False)
        )
        sizes = [height * breadth * colours] + [hidden] * dense_depth
        self.dense = tuple(Pointwise(k, n, hidden) for k, n in zip(keys[1], sizes[:-1], strict=False))
        if dense_depth:
            self.dense += (Pointwise(ends[0], hidden, height * breadth * features),)
        both = (width if depth else 0) + features
        mixed = [both] + [width] * mix_depth
        self.mix = tuple(Pointwise(k, n, width) for k, n in zip(keys[2], mixed[:-1], strict=False))
        self.readout = Pointwise(ends[1], mixed[-1], self.outputs * colours, zero=True)
        own = jax.random.fold_in(key, 1)
        self.context = None if context is None else ContextEmbedding(own, context, 2 * both)

    def __call__(self, x: AnyExample, t: AnyTime, context: AnyContext | None = None) -> Float[Array, "..."]:
        """Return the network's value at one example; `t` makes no difference.

        Args:
            x: one example, of shape `event_shape`; float or int.
            t: step index, not used.
            context: one context, for a network made for it.

        Returns:
            Array of shape `event_shape` if `outputs` is 1, else `(outputs, *event_shape)`.

        Raises:
            ValueError: if the shape of `x` is not `event_shape`; channels that come first are said to.
        """
        flat = layers.flatten_event(x, self.event_shape)
        activation = layers.ACTIVATIONS[self.activation]
        image = flat.reshape(*self.event_shape[:2], -1)
        ways = []
        h = image
        for convolution in self.convolutions:
            h = convolution(h)
        if self.convolutions:
            ways.append(h)
        if self.dense:
            d = flat
            for layer in self.dense:
                d = activation(layer(d))
            ways.append(d.reshape(*image.shape[:2], -1))
        h = jnp.concatenate(ways, axis=-1)
        told = embedded(self.context, context)
        if isinstance(told, Array):
            scale, shift = jnp.split(told, 2)
            h = h * (1 + scale) + shift
        for layer in self.mix:
            h = activation(layer(h))
        out = self.readout(h).reshape(*image.shape[:2], self.outputs, -1)
        return layers.split_outputs(jnp.moveaxis(out, 2, 0), self.outputs, self.event_shape)


def halve(x: Image) -> Image:
    """Return the image of half the height and width, each pixel the mean of four."""
    height, width, channels = x.shape
    return jnp.mean(x.reshape(height // 2, 2, width // 2, 2, channels), axis=(1, 3))
