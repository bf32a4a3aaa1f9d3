"""A network of 1-d convolutions, for series.

Along a series, neighbours belong together at all places alike: residual blocks of convolutions whose reach doubles from
block to block (van den Oord et al. 2016, here not causal), modulated by the embedding of time (FiLM; Perez et al.
2018). Each place has features of its own too, which start at zero, so that what differs along the series can be
learned.
"""

import math
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_choice, check_count
from .._shapes import AnyContext, AnyExample, AnyTime
from . import layers, modulated
from .context import ContextEmbedding, ContextFeatures

Padding = Literal["zeros", "edge", "circular"]
_MODES: dict[Padding, str] = {"zeros": "constant", "edge": "edge", "circular": "wrap"}  # of jnp.pad

Rows = Float[Array, "_length _channels"]


class _Block(eqx.Module):
    """h + W₂ a((1 + γ(c)) ⊙ (W₁ ∗ norm(h)) + δ(c)) at each place; W₁ sees it and its neighbours at `dilation`."""

    modulate: eqx.nn.Linear
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    dilation: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, channels: int, conditions: int, dilation: int) -> None:
        keys = jax.random.split(key, 3)
        self.modulate = layers.linear(keys[0], conditions, 2 * channels)
        self.inner = layers.linear(keys[1], 3 * channels, channels)
        self.outer = layers.linear(keys[2], channels, channels)
        self.dilation = dilation

    def __call__(self, h: Rows, condition: Float[Array, " conditions"], activation: str, padding: Padding) -> Rows:
        scale, shift = jnp.split(self.modulate(condition), 2)
        norm = modulated.standardized(h)
        update = jax.vmap(self.inner)(_near(norm, self.dilation, padding)) * (1 + scale) + shift
        return h + jax.vmap(self.outer)(layers.ACTIVATIONS[activation](update))


class Series(eqx.Module):
    """Residual network of 1-d convolutions over a series, modulated by time in every block.

    Each block looks at a place and its two neighbours at a distance of 1, 2, 4, … places, twice as far as the block
    before, so that with the default `depth` every place hears of all others. Beyond the ends lies what `padding` says.
    Each place has features of its own too, which start at zero: the network may learn where in the series it is. The
    answer is R h + s(t) ⊙ x at each place, as an `MLP` has it for the whole; R and s start at zero, so the initial
    output is exactly zero. Convolutions are written as products of matrices, which are fast on a CPU.

    Source: the dilated convolutions are those of van den Oord et al. 2016 (WaveNet), not causal here; the modulation is
    that of Perez et al. 2018 (FiLM, eq 1–2).

    Example:
        >>> network = nd.networks.Series(jax.random.key(0), (24,), num_steps=20, channels=8)
        >>> network(jnp.ones(24), 7.0).shape, len(network.blocks)
        ((24,), 5)
    """

    embed: tuple[eqx.nn.Linear, eqx.nn.Linear]
    lift: eqx.nn.Linear
    place: Float[Array, "length channels"]
    blocks: tuple[_Block, ...]
    readout: eqx.nn.Linear
    gain: eqx.nn.Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    time_features: int = eqx.field(static=True)
    context: ContextEmbedding | None = None

    def __init__(
        self,
        key: PRNGKeyArray,
        event_shape: Sequence[int],
        *,
        num_steps: int,
        channels: int = 32,
        depth: int | None = None,
        outputs: int = 1,
        padding: Padding = "zeros",
        activation: str = "silu",
        time_features: int = 64,
        context: ContextFeatures | None = None,
    ) -> None:
        """Initialise the weights.

        Args:
            key: JAX key for the initial weights.
            event_shape: shape of one example, `(length,)` or `(length, variables)`.
            num_steps: T; the network is called with t in [0, T].
            channels: hidden features of each place.
            depth: blocks; the i-th looks 2^i places far. ⌈log₂ length⌉ if None, by which all places are reached.
            outputs: how many arrays of shape `event_shape` to return (say 2: a mean and a variance).
            padding: what lies beyond the ends: `"zeros"`, `"edge"` for the last value again, or `"circular"` for series
                that are closed, such as a day's hours.
            activation: a name in `layers.ACTIVATIONS`.
            time_features: number of sines and cosines of t; even.
            context: of a network that is called with a context too.

        Raises:
            ValueError: a shape of another rank, a size that is not positive, `time_features` odd, an
                unknown padding or activation.
        """
        self.event_shape = layers.check_event_shape(event_shape)
        if len(self.event_shape) not in (1, 2):
            raise ValueError(f"event_shape: expected (length,) or (length, variables), got {self.event_shape}")
        length, variables = (*self.event_shape, 1)[:2]
        self.num_steps = check_count("num_steps", num_steps)
        self.channels = check_count("channels", channels)
        self.depth = max(1, math.ceil(math.log2(length))) if depth is None else check_count("depth", depth)
        self.outputs = check_count("outputs", outputs)
        self.padding = check_choice("padding", padding, tuple(_MODES))
        self.activation = check_choice("activation", activation, tuple(layers.ACTIVATIONS))
        self.time_features = modulated.check_time_features(time_features)
        answers = self.outputs * variables
        ends = modulated.ends(
            key, variables, self.channels, answers, depth=self.depth, features=self.time_features, context=context
        )
        self.embed, self.lift, self.readout, self.gain = ends.embed, ends.lift, ends.readout, ends.gain
        self.place = jnp.zeros((length, self.channels))
        self.blocks = tuple(_Block(own, self.channels, self.time_features, 2**i) for i, own in enumerate(ends.blocks))
        self.context = ends.context

    @property
    def said(self) -> str:
        """In words."""
        return f"1-d convolutions of {self.channels} channels, with {self.padding} beyond the ends"

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
        rows = layers.flatten_event(x, self.event_shape).reshape(self.event_shape[0], -1)
        condition = modulated.condition(self, t, context)
        h = jax.vmap(self.lift)(rows) + self.place
        for block in self.blocks:
            h = block(h, condition, self.activation, self.padding)
        direct = self.gain(condition).reshape(self.outputs, -1)[:, None] * rows
        out = jnp.moveaxis(jax.vmap(self.readout)(h).reshape(len(rows), self.outputs, -1), 1, 0) + direct
        return layers.split_outputs(out, self.outputs, self.event_shape)


def _near(h: Rows, distance: int, padding: Padding) -> Rows:
    """What lies `distance` places before, here, and as far behind, side by side."""
    padded = jnp.pad(h, ((distance, distance), (0, 0)), _MODES[padding])
    return jnp.concatenate([padded[start : start + len(h)] for start in (0, distance, 2 * distance)], axis=1)
