"""What networks of residual blocks that time modulates have in common: their ends, and what the blocks are told.

Networks of residual blocks differ in the blocks. The layers before and after them, the embedding of time and context
that modulates them (FiLM; Perez et al. 2018), and the gain that lets the answer be linear in x_t are the same, and are
made here.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_count, check_key
from .._shapes import AnyContext, AnyTime
from . import layers
from .context import ContextEmbedding, ContextFeatures, embedded


class Ends(NamedTuple):
    """The layers before and after the blocks.

    Attributes:
        embed: of the sines and cosines of t.
        lift: from the inputs to the hidden features.
        blocks: a key for each block.
        readout: from the hidden features to the outputs, zero at first.
        gain: from what is known of t to one number for each output, zero at first.
        context: of a network that is called with a context too.
    """

    embed: tuple[eqx.nn.Linear, eqx.nn.Linear]
    lift: eqx.nn.Linear
    blocks: PRNGKeyArray
    readout: eqx.nn.Linear
    gain: eqx.nn.Linear
    context: ContextEmbedding | None


def ends(
    key: PRNGKeyArray,
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    depth: int,
    features: int,
    context: ContextFeatures | None,
) -> Ends:
    """The first weights of all but the blocks.

    Args:
        key: JAX key.
        inputs: numbers that the network, or each place of it, is given.
        hidden: features between the blocks.
        outputs: numbers that it answers.
        depth: how many blocks there are to be.
        features: number of sines and cosines of t.
        context: features of a context, if the network is told one.
    """
    keys = jax.random.split(check_key("key", key), 6)
    return Ends(
        embed=(layers.linear(keys[0], features, features), layers.linear(keys[1], features, features)),
        lift=layers.linear(keys[2], inputs, hidden),
        blocks=jax.random.split(keys[3], depth),
        readout=layers.zero_linear(keys[4], hidden, outputs),
        gain=layers.zero_linear(keys[5], features, outputs),
        context=None if context is None else ContextEmbedding(jax.random.fold_in(key, 0), context, features),
    )


def check_time_features(value: int) -> int:
    """Return a number of sines and cosines.

    Raises:
        ValueError: it is not positive, or odd.
    """
    count = check_count("time_features", value)
    if count % 2:
        raise ValueError(f"time_features: expected an even number, got {value}")
    return count


def condition(network: Any, t: AnyTime, context: AnyContext | None) -> Float[Array, " conditions"]:
    """What the blocks of a network with such ends are told: of t, and of the context if it takes one.

    Raises:
        ValueError: a context of another shape, or none where one is needed.
    """
    time = layers.embedded_time(network.embed, t, network.num_steps, network.activation)
    return time + embedded(network.context, context)


def standardized(h: Float[Array, "*places channels"]) -> Float[Array, "*places channels"]:
    """Of mean 0 and variance 1 over the last axis."""
    # Its sums are at least float32, whatever the rest is computed in.
    return jax.nn.standardize(h.astype(jnp.promote_types(h.dtype, jnp.float32))).astype(h.dtype)
