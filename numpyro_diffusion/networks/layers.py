"""What the networks share: activations by name, zero-initialised layers, and the shapes of examples.

Networks start at an output of exactly zero, as their last layers are zero: about a baseline the process then starts as
that baseline, and elsewhere at the forward kernel or at a prediction of zero. What checks the shapes of examples is
here too, since networks are written for one example.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_count
from .._shapes import AnyExample, AnyTime
from .embedding import sinusoidal

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "silu": jax.nn.silu,
        "gelu": jax.nn.gelu,
        "relu": jax.nn.relu,
        "tanh": jnp.tanh,
        "softplus": jax.nn.softplus,
        "sigmoid": jax.nn.sigmoid,
        "leaky_relu": jax.nn.leaky_relu,
    }
)
"""Every activation a network may name.

Networks hold the name and not the function, so that a checkpoint can describe them without code. `gelu` is
the tanh approximation; `leaky_relu` has slope 0.01 below zero.
"""


def check_event_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    """Return `event_shape` as a tuple of positive ints; `()` is a scalar event.

    Raises:
        TypeError: it is no sequence of whole numbers.
        ValueError: one of them is not positive.
    """
    if not isinstance(event_shape, Sequence) or isinstance(event_shape, str):
        raise TypeError(f"event_shape: expected a tuple of positive whole numbers, got {event_shape!r}")
    return tuple(check_count("event_shape", size) for size in event_shape)


def flatten_event(x: AnyExample, event_shape: tuple[int, ...]) -> Float[Array, " size"]:
    """Return one example as a floating-point vector.

    Raises:
        ValueError: if the shape of `x` is not `event_shape`.
    """
    x = jnp.asarray(x, jnp.result_type(float, x))
    check_example(x.shape, event_shape)
    return x.reshape(-1)


def check_example(shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `shape` is that of one example."""
    if shape != event_shape:
        first = len(event_shape) == 3 and shape == (event_shape[2], *event_shape[:2])
        hint = "channels first: move that axis to the end" if first else "batch with jax.vmap"
        raise ValueError(f"x: expected one example of shape {event_shape}, got shape {shape} ({hint})")


def split_outputs(flat: Float[Array, "..."], outputs: int, event_shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return a vector as `event_shape` if `outputs` is 1, else as `(outputs, *event_shape)`."""
    return flat.reshape(event_shape if outputs == 1 else (outputs, *event_shape))


def linear(key: PRNGKeyArray, inputs: int, outputs: int) -> eqx.nn.Linear:
    """Return an affine layer with Equinox's default initial weights."""
    return eqx.nn.Linear(inputs, outputs, key=key)


def zero_linear(key: PRNGKeyArray, inputs: int, outputs: int) -> eqx.nn.Linear:
    """Return an affine layer whose weights and bias start at zero."""
    layout = eqx.filter_eval_shape(linear, key, inputs, outputs)  # nothing is drawn
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layout)


def event_size(event_shape: tuple[int, ...]) -> int:
    """Return the number of elements of one example."""
    return math.prod(event_shape)


def embedded_time(
    embed: tuple[eqx.nn.Linear, eqx.nn.Linear], t: AnyTime, num_steps: int, activation: str
) -> Float[Array, " time_features"]:
    """Return the step index as two layers on its sines and cosines see it."""
    features = sinusoidal(t, embed[0].weight.shape[1], num_steps)
    # A step in float32 must not make all that follows float32 where the weights are of a lower type.
    weight = embed[0].weight.dtype
    features = features if weight.itemsize >= 4 else features.astype(weight)
    for layer in embed:
        features = ACTIVATIONS[activation](layer(features))
    return features
