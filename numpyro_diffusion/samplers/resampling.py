"""Weights and resampling."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import check_key


def normalise(log_weight: Float[Array, " n"]) -> Float[Array, " n"]:
    """Normalised log weights; equal ones where all are zero."""
    total = logsumexp(log_weight)
    return jnp.where(jnp.isfinite(total), log_weight - total, -jnp.log(float(log_weight.size)))


def effective_size(log_weight: Float[Array, " n"]) -> Float[Array, ""]:
    """(Σ w)² / Σ w², between 1 and the number of particles, shape ()."""
    return jnp.minimum(jnp.exp(-logsumexp(2 * normalise(log_weight))), float(log_weight.size))


def systematic(key: PRNGKeyArray, log_weight: Float[Array, " n"]) -> Int[Array, " n"]:
    """Indices of as many particles: each appears ⌊N w⌋ or ⌈N w⌉ times, N w on average."""
    size = log_weight.size
    points = (jax.random.uniform(check_key("key", key)) + jnp.arange(size)) / size
    edges = jnp.cumsum(jnp.exp(normalise(log_weight)))
    return jnp.clip(jnp.searchsorted(edges / edges[-1], points, side="right"), 0, size - 1)
