"""A network whose answer a second one corrects, pixel by pixel."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import layers


class Refined(eqx.Module):
    """A base network that sees an image as a whole, and a correction that sees x and the base's answer side by side.

    net(x, t) = (1 + b) ⊙ y + a, where y = base(x, t) and (a, b) = correction([x, y], t), of as many channels each as x.
    A dense base is cheap and knows where everything belongs, convolutions see what neighbours have in common; since a
    `UNet` starts at zero, so does the correction, and a base that was trained by itself keeps what it learned:

    ``Refined(MLP(key, (28, 28), num_steps=200, width=512), UNet(key, (28, 28, 2), **UNET_SIZES["tiny"]))``.

    It is no part of a published architecture.
    """

    base: Callable[..., Array]
    correction: Callable[..., Array]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, base: Any, correction: Any) -> None:
        """Put two networks together.

        Args:
            base: a module for images (height, width) or (height, width, colours), with one output.
            correction: a module for images (height, width, 2 · colours), with one output.

        Raises:
            ValueError: if the modules' `event_shape` are not these.
        """
        shape = getattr(base, "event_shape", None)
        if shape is None or len(shape) not in (2, 3):
            raise ValueError(f"base: expected a module for images (height, width[, colours]), got {shape}")
        self.event_shape = layers.check_event_shape(shape)
        expected = (*shape[:2], 2 * (*shape, 1)[2])
        if getattr(correction, "event_shape", None) != expected:
            found = getattr(correction, "event_shape", None)
            raise ValueError(f"correction: expected a module for images of shape {expected}, got {found}")
        self.base, self.correction = base, correction

    def __call__(self, x: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        """Return the network's value at one example, of `event_shape`.

        Raises:
            ValueError: if `x` is not of shape `event_shape`.
        """
        x = jnp.asarray(x)
        layers.check_example(x.shape, self.event_shape)
        first = self.base(x, t)
        image = (*self.event_shape[:2], -1)
        seen = jnp.concatenate([x.reshape(image), first.reshape(image)], axis=-1)
        shift, gain = jnp.split(self.correction(seen, t), 2, axis=-1)
        return (1 + gain.reshape(first.shape)) * first + shift.reshape(first.shape)
