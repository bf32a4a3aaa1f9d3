"""How a network is told the context c of p(x | c): numbers, vectors, labels, or small images.

A network for p(x | c) is told c beside x_t and t: features of c, standardised numbers or indicators of labels, go
through two layers, and are added to the embedding of time. Numbers that are not known are marked as such, so that one
network can learn p(x | c) and p(x). Splines (restricted cubic ones; Harrell 2015, eq. 2.25) are for baselines whose
variances change smoothly with c.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._checks import check_count, check_key, check_real
from .._shapes import AnyContext
from . import layers


class ContextFeatures(eqx.Module):
    """A context as a vector: numbers standardised, each with whether it is known (no NaN); labels as zeros and a one.

    A label below 0 is unknown, and all zeros.

    Args:
        shape: of one context.
        num_labels: contexts are whole numbers below this; None for real numbers.
        loc: location of numbers, broadcastable to `shape`; 0 unless given.
        scale: their scale; 1 unless given.

    Raises:
        ValueError: sizes that are not positive.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    num_labels: int | None = eqx.field(static=True)
    loc: Array
    scale: Array

    def __init__(
        self,
        shape: tuple[int, ...] = (),
        num_labels: int | None = None,
        loc: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
    ) -> None:
        self.shape = layers.check_event_shape(shape)
        self.num_labels = None if num_labels is None else check_count("num_labels", num_labels)
        check_real("loc", loc)
        check_real("scale", scale)
        self.loc, self.scale = jnp.asarray(loc, float), jnp.asarray(scale, float)

    @property
    def size(self) -> int:
        """How many features there are."""
        return math.prod(self.shape) * (2 if self.num_labels is None else self.num_labels)

    def __call__(self, context: AnyContext) -> Float[Array, " size"]:
        """The features of one context.

        Raises:
            ValueError: another shape.
        """
        context = jnp.asarray(context)
        if context.shape != self.shape:
            raise ValueError(f"context: expected one of shape {self.shape}, got {context.shape}")
        if self.num_labels is not None:
            return jax.nn.one_hot(context, self.num_labels).reshape(-1)
        z = (context - jax.lax.stop_gradient(self.loc)) / jax.lax.stop_gradient(self.scale)
        known = ~jnp.isnan(z)
        return jnp.concatenate([jnp.where(known, z, 0.0).reshape(-1), known.reshape(-1).astype(z.dtype)])


class SplineFeatures(eqx.Module):
    """A context's features, and restricted cubic splines of its numbers: cubic between knots, linear beyond them.

    Each number z of a real context adds, for knots k_1 < … < k_m of its own, the m − 2 functions of Harrell 2015, eq
    2.25. Numbers that are not known add zeros.

    Args:
        features: of the context.
        knots: in standardised numbers, shape (n, m) for n numbers, increasing; with m = 0, and for labels, no splines.

    Raises:
        ValueError: another shape, one or two knots.
    """

    features: ContextFeatures
    knots: Array

    def __init__(self, features: ContextFeatures, knots: ArrayLike) -> None:
        self.features, self.knots = features, jnp.asarray(knots, float)
        count = math.prod(features.shape) if features.num_labels is None else 0
        if self.knots.ndim != 2 or len(self.knots) != count or self.knots.shape[1] in (1, 2):
            raise ValueError(f"knots: expected shape ({count}, m), m = 0 or at least 3, got {self.knots.shape}")

    @property
    def size(self) -> int:
        """How many features there are."""
        return self.features.size + len(self.knots) * max(self.knots.shape[1] - 2, 0)

    def __call__(self, context: AnyContext) -> Float[Array, " size"]:
        """The features of one context.

        Raises:
            ValueError: another shape.
        """
        plain = self.features(context)
        if not self.knots.size:
            return plain
        knots = jax.lax.stop_gradient(self.knots)
        z, known = jnp.split(plain, 2)
        cube = jnp.maximum(z[:, None] - knots, 0.0) ** 3
        first, before, last = knots[:, :1], knots[:, -2:-1], knots[:, -1:]
        inner, gap = knots[:, :-2], last - before
        bent = cube[:, :-2] - cube[:, -2:-1] * (last - inner) / gap + cube[:, -1:] * (before - inner) / gap
        return jnp.concatenate([plain, (known[:, None] * bent / (last - first) ** 2).reshape(-1)])


class ContextEmbedding(eqx.Module):
    """Two layers on the features of a context, whose answer is added to what a network is told of time."""

    features: ContextFeatures
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray, features: ContextFeatures, width: int) -> None:
        """Initialise the weights.

        Args:
            key: JAX key for the initial weights.
            features: of the context.
            width: of the answer.
        """
        keys = jax.random.split(check_key("key", key))
        self.features = features
        self.inner = layers.linear(keys[0], features.size, width)
        self.outer = layers.linear(keys[1], width, width)

    def __call__(self, context: AnyContext) -> Float[Array, " width"]:
        """The embedding of one context."""
        features = self.features(context).astype(self.inner.weight.dtype)
        return self.outer(jax.nn.silu(self.inner(features)))


def embedded(embedding: ContextEmbedding | None, context: AnyContext | None) -> Float[Array, " conditions"] | float:
    """What is added to the embedding of time: nothing without a context.

    Raises:
        ValueError: a context for a network without one, or none for a network with one.
    """
    if (embedding is None) != (context is None):
        expected = "None, as the network has none" if embedding is None else "one"
        raise ValueError(f"context: expected {expected}, got {'None' if context is None else 'one'}")
    return 0.0 if embedding is None or context is None else embedding(context)
