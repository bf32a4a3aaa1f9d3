"""The optimiser of `fit` unless it is given one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

WEIGHT_DECAY = 0.01  # of `fit_prior`


@functools.lru_cache(maxsize=32)
def default_optimizer(
    learning_rate: float | optax.Schedule, max_steps: int, weight_decay: float
) -> optax.GradientTransformation:
    """Cached, since two optimisers made alike are not equal, and would not share compiled code."""
    if not callable(learning_rate):
        learning_rate = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, max(1, max_steps // 50), max(2, max_steps), 0.01 * learning_rate
        )
    adam = optax.adam(learning_rate)
    if weight_decay:  # of matrices alone: offsets and scales are no weights
        matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
        adam = optax.adamw(learning_rate, weight_decay=weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def optimizer_settings(optimizer: Any, learning_rate: Any, max_steps: int) -> dict[str, Any]:
    """What can be said about the optimiser in JSON; only the default schedule depends on the number of steps."""
    if optimizer is not None or callable(learning_rate):
        return {"learning_rate": "given by an optimizer" if optimizer is not None else "given by a schedule"}
    return {"learning_rate": float(learning_rate), "max_steps": max_steps}


@functools.lru_cache(maxsize=32)
def warmed_up(rate: float) -> Callable[[Any], Any]:
    """A learning rate that does not depend on how long training lasts, so that a run may go on."""
    return lambda step: rate * jnp.minimum(1.0, (step + 1) / 50) / jnp.sqrt(1 + step / 2_000)
