"""Images folded so that patches of pixels become channels: a smaller image for a network.

Folding is a bijection of pixels, so that any network for small images of many channels is one for larger images, at a
cost that falls with the number of pixels in a patch. What is lost is that convolutions do not see where in its patch a
pixel is but by its channel.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._shapes import AnyExample, AnyTime
from . import layers


class Patched(eqx.Module):
    """A network for images of shape (h, w, p² c), as one for images of shape (p h, p w, c).

    The pixels of each p × p patch become channels of one pixel (space to depth), and those of the answer go back to
    their places. A convolution then costs 1/p² of what it did, for as many filters:

    ``Patched(UNet(key, (14, 14, 4), **UNET_SIZES["tiny"]), (28, 28))``.

    Any such network will do; this is no part of a published architecture.
    """

    network: Callable[..., Array]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(self, network: Any, event_shape: tuple[int, ...]) -> None:
        """Fold images for a network.

        Args:
            network: a module with an `event_shape` of three, called as ``network(x, t)``.
            event_shape: shape of one example, (height, width) or (height, width, colours). p is found from it.

        Raises:
            ValueError: if the network has no such shape, or the two do not fit for any p ≥ 1.
        """
        inner = getattr(network, "event_shape", None)
        if inner is None or len(inner) != 3:
            raise ValueError(f"network: expected a module for images (height, width, channels), got {inner}")
        self.network = network
        self.event_shape = layers.check_event_shape(event_shape)
        self.patch = max(self.event_shape[0] // inner[0], 1)
        height, width, colours = (*self.event_shape, 1, 1)[:3]
        p = self.patch
        if len(self.event_shape) not in (2, 3) or (height, width, p**2 * colours) != (
            inner[0] * p,
            inner[1] * p,
            inner[2],
        ):
            expected = "(p h, p w) or (p h, p w, c) for a network of shape (h, w, p² c)"
            raise ValueError(f"event_shape: expected {expected}, got {self.event_shape} for {inner}")

    @property
    def said(self) -> str:
        """In words; a network inside that has none of its own is named by its class."""
        inner = getattr(self.network, "said", type(self.network).__name__)
        return f"{inner}, over patches of {self.patch} × {self.patch} pixels"

    def __call__(self, x: AnyExample, t: AnyTime, *context: ArrayLike) -> Float[Array, "..."]:
        """Return the network's value at one example, of `event_shape` or `(outputs, *event_shape)`, given a context.

        Raises:
            ValueError: if `x` is not of shape `event_shape`.
        """
        x = jnp.asarray(x)
        layers.check_example(x.shape, self.event_shape)
        p, (h, w) = self.patch, (self.event_shape[0] // self.patch, self.event_shape[1] // self.patch)
        folded = jnp.moveaxis(x.reshape(h, p, w, p, -1), 2, 1).reshape(h, w, -1)
        out = self.network(folded, t, *context)
        unfolded = jnp.moveaxis(out.reshape(*out.shape[:-3], h, w, p, p, -1), -3, -4)
        return unfolded.reshape(*out.shape[:-3], *self.event_shape)
