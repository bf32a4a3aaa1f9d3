"""A residual multi-layer perceptron conditioned on time, for low-dimensional data.

Residual blocks over the flattened example, modulated by the embedding of time (FiLM; Perez et al. 2018), and a gain for
each element beside them: near t = T, and for Gaussian data at every t, the best answer is linear in x_t, which the gain
gives by itself. Nothing is assumed of how elements belong together, which suits vectors of few elements.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_choice, check_count
from .._shapes import AnyContext, AnyExample, AnyTime
from . import layers, modulated
from .context import ContextEmbedding, ContextFeatures


class _Block(eqx.Module):
    """One residual block: h + W₂ a((1 + γ(c)) ⊙ W₁ norm(h) + δ(c)), with scale γ and shift δ read off c."""

    modulate: eqx.nn.Linear
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray, width: int, num_conditions: int) -> None:
        keys = jax.random.split(key, 3)
        self.modulate = layers.linear(keys[0], num_conditions, 2 * width)
        self.inner = layers.linear(keys[1], width, width)
        self.outer = layers.linear(keys[2], width, width)

    def __call__(
        self, h: Float[Array, " width"], condition: Float[Array, " conditions"], activation: str
    ) -> Float[Array, " width"]:
        scale, shift = jnp.split(self.modulate(condition), 2)
        update = self.inner(modulated.standardized(h)) * (1 + scale) + shift
        return h + self.outer(layers.ACTIVATIONS[activation](update))


class MLP(eqx.Module):
    """Residual network over the flattened example, modulated by time in every block.

    net(x, t) = R h_depth + s(t) ⊙ x, where h_0 = W x + b, each block adds
    W₂ a((1 + γ(c)) ⊙ W₁ norm(h) + δ(c)), and c embeds t. The gain s(t), one number per output element, lets
    the network be linear in x at a cost that does not grow with `width`: near t = T, and for Gaussian data at
    every t, the ideal answer is linear. R and s start at zero, so the initial output is exactly zero. All
    products are plain matrix products, which stay fast on a CPU under `jax.vmap`.

    The modulation is that of Perez et al. 2018 (FiLM, eq 1–2).

    Example:
        >>> network = nd.networks.MLP(jax.random.key(0), (3,), num_steps=20, width=32, depth=2)
        >>> network(jnp.ones(3), 7.0).tolist()  # zero, before any training
        [0.0, 0.0, 0.0]
    """

    embed: tuple[eqx.nn.Linear, eqx.nn.Linear]
    lift: eqx.nn.Linear
    blocks: tuple[_Block, ...]
    readout: eqx.nn.Linear
    gain: eqx.nn.Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    time_features: int = eqx.field(static=True)
    context: ContextEmbedding | None = None

    def __init__(
        self,
        key: PRNGKeyArray,
        event_shape: Sequence[int],
        *,
        num_steps: int,
        width: int = 256,
        depth: int = 3,
        outputs: int = 1,
        activation: str = "silu",
        time_features: int = 64,
        context: ContextFeatures | None = None,
    ) -> None:
        """Initialise the weights.

        Args:
            key: JAX key for the initial weights.
            event_shape: shape of one example; `()` is a scalar.
            num_steps: T; the network is called with t in [0, T].
            width: hidden units.
            depth: residual blocks.
            outputs: how many arrays of shape `event_shape` to return (say 2: a mean and a variance).
            activation: a name in `layers.ACTIVATIONS`.
            time_features: number of sines and cosines of t; even.
            context: of a network that is called with a context too.

        Raises:
            ValueError: if a size is not positive, `time_features` is odd, or `activation` is
                unknown.
        """
        self.event_shape = layers.check_event_shape(event_shape)
        self.num_steps = check_count("num_steps", num_steps)
        self.width = check_count("width", width)
        self.depth = check_count("depth", depth)
        self.outputs = check_count("outputs", outputs)
        self.activation = check_choice("activation", activation, tuple(layers.ACTIVATIONS))
        self.time_features = modulated.check_time_features(time_features)
        size, answers = layers.event_size(self.event_shape), self.outputs * layers.event_size(self.event_shape)
        ends = modulated.ends(
            key, size, self.width, answers, depth=self.depth, features=self.time_features, context=context
        )
        self.embed, self.lift, self.readout, self.gain = ends.embed, ends.lift, ends.readout, ends.gain
        self.blocks = tuple(_Block(own, self.width, self.time_features) for own in ends.blocks)
        self.context = ends.context

    @property
    def said(self) -> str:
        """In words."""
        return f"MLP of width {self.width}"

    def __call__(self, x: AnyExample, t: AnyTime, context: AnyContext | None = None) -> Float[Array, "..."]:
        """Return the network's value at one example.

        Args:
            x: one example, of shape `event_shape`; float or int.
            t: step index in [0, T]; may be fractional.
            context: one context, for a network made for it.

        Returns:
            Array of shape `event_shape` if `outputs` is 1, else `(outputs, *event_shape)`.

        Raises:
            ValueError: if `x`, `t` or `context` has the wrong shape.
        """
        x = layers.flatten_event(x, self.event_shape)
        condition = modulated.condition(self, t, context)
        h = self.lift(x)
        for block in self.blocks:
            h = block(h, condition, self.activation)
        direct = self.gain(condition).reshape(self.outputs, -1) * x
        return layers.split_outputs(self.readout(h) + direct.reshape(-1), self.outputs, self.event_shape)
