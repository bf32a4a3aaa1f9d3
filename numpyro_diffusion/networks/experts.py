"""Two networks that share the steps of one chain between them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_count
from . import layers


class Experts(eqx.Module):
    """One network for little noise and another for much: each is an expert for its part of the chain.

    net(x, t) = near(x, t) for t ≤ `last`, and far(x, t + `ahead`) beyond. What a whole image shows at high noise and
    what single pixels show at low noise are different tasks, and networks of different kinds may do them, trained by
    themselves and at the same time. Where t is one number for a whole batch, as along a chain, only one of them runs.

    Source: the expert denoisers of Balaji et al. 2022 (eDiff-I), with two networks that may differ in kind.
    """

    near: Callable[..., Array]
    far: Callable[..., Array]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    last: int = eqx.field(static=True)
    ahead: int = eqx.field(static=True)

    def __init__(self, near: Any, far: Any, last: int, *, ahead: int = 0) -> None:
        """Put two networks together.

        Args:
            near: the module for steps 1 … `last`, called as ``near(x, t)``.
            far: the module for the steps after, for the same `event_shape`.
            last: the last step of `near`, at least 1; a fractional step just after it is still its own, up to half.
            ahead: how much later a step of this chain was in the one that `far` was trained for; may be negative.

        Raises:
            ValueError: two modules of different `event_shape`, or a step that is no whole number.
        """
        shapes = [getattr(network, "event_shape", None) for network in (near, far)]
        if shapes[0] is None or shapes[0] != shapes[1]:
            raise ValueError(f"near, far: expected two modules of one event_shape, got {shapes[0]} and {shapes[1]}")
        if not isinstance(ahead, int) or isinstance(ahead, bool):
            raise ValueError(f"ahead: expected a whole number, got {ahead!r}")
        self.event_shape = layers.check_event_shape(shapes[0])
        self.near, self.far = near, far
        self.last, self.ahead = check_count("last", last), ahead

    def __call__(self, x: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        """Return the value of the network whose step `t` is.

        Raises:
            ValueError: if `x` is not of shape `event_shape`.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        layers.check_example(x.shape, self.event_shape)
        # Both: a `lax.cond` under `jax.vmap` would copy the weights for every example.
        return jnp.where(t <= self.last + 0.5, self.near(x, t), self.far(x, t + self.ahead))
