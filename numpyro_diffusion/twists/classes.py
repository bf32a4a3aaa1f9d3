"""E[r(x)] over independent classes x for any r, and which classes r wants: all states of a few, else fixed draws.

Draws are of an adaptive mixture of laws of independent classes and weighted as one sample of it, as in `twists.bits`.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, Real

from ..laws import FARTHEST, IMPOSSIBLE, Categories, one_hot

MOST_LISTED = 1024  # states up to which all are visited
LEAST = -1e18  # log ψ where no draw finds a positive r: still a weight, so that some particle is left
_POWERS = (1.0, 0.6, 0.35, 0.2, 0.1, 0.05, 0.0)  # of r, tried from the largest on
_ENOUGH = 6.0  # effective draws, for laws that only look for where r is large
_SMOOTH = 2.0  # draws that the law before counts for
_LAWS = 4


class Average(NamedTuple):
    """E[r(x)] and the classes that r wants.

    Attributes:
        log_psi: log E[r(x)] in nats, shape ().
        logits: log probabilities of classes under the law times r, shape (d, S): each at most five from the law's own.
    """

    log_psi: Float[Array, ""]
    logits: Float[Array, "d classes"]


def points(num_draws: int, size: int, num_states: int) -> Real[Array, "*draws d"]:
    """What `average` needs for examples of `size` classes: their states, shape (S^d, d), or uniform numbers.

    The numbers are of shape (4, num_draws, d): a Latin hypercube (McKay et al. 1979) for each of four laws, fixed.
    """
    if num_states**size <= MOST_LISTED:
        return jnp.asarray(np.array(list(itertools.product(range(num_states), repeat=size))))
    rank = jnp.argsort(jax.random.uniform(jax.random.key(0), (_LAWS, num_draws, size)), axis=1)
    return (rank + 0.5) / num_draws


def average(
    log_r: Callable[[Int[Array, " d"]], Float[Array, ""]],
    logits: Float[Array, "d classes"],
    at: Real[Array, "*draws d"],
) -> Average:
    """E[r(x)] for independent classes of these log probabilities, and the classes that r wants.

    Args:
        log_r: from classes of shape (d,), whole numbers, to log r in nats.
        logits: log probabilities, shape (d, S).
        at: `points`.
    """
    if at.ndim == 2:
        log_weight = _number(jax.vmap(log_r)(at) + _log_prob(logits, at))
        wanted = counted(log_weight, at, logits.shape[-1])
        return Average(jnp.maximum(logsumexp(log_weight), LEAST), near(logits, jnp.log(wanted)))
    laws, draws, value = [logits], [Categories(logits).at(at[0])], []
    for u in at[1:]:
        value.append(jax.vmap(log_r)(draws[-1]))
        laws.append(_adapted(laws, jnp.concatenate(draws), jnp.concatenate(value), enough=True))
        draws.append(Categories(laws[-1]).at(u))
    value.append(jax.vmap(log_r)(draws[-1]))
    pooled = jnp.concatenate(draws), jnp.concatenate(value)
    log_weight = _log_weight(laws, *pooled, 1.0)
    log_psi = logsumexp(log_weight) - math.log(len(log_weight))
    return Average(jnp.maximum(log_psi, LEAST), _adapted(laws, *pooled, enough=False))


def _log_weight(laws: list[Array], draws: Array, value: Array, power: float | Array) -> Array:
    """log of r^power times the first law over the mixture of all, for draws of the mixture."""
    each = jnp.stack([_log_prob(law, draws) for law in laws])
    return _number(power * value + each[0] - logsumexp(each, axis=0) + math.log(len(laws)))


def _adapted(laws: list[Array], draws: Array, value: Array, enough: bool) -> Array:
    """Log probabilities that the weighted draws speak for; with `enough`, of a power of r that leaves enough of them.

    The law before counts for two draws, so that what few say is not believed.
    """
    own = jnp.exp(laws[0])
    powers = jnp.asarray(_POWERS if enough else _POWERS[:1])
    log_weights = jax.vmap(lambda power: _log_weight(laws, draws, value, power))(powers)
    sizes = jnp.exp(2 * logsumexp(log_weights, axis=1) - logsumexp(2 * log_weights, axis=1))
    best = jnp.argmax(sizes >= _ENOUGH) if enough else 0
    count = jnp.where(jnp.isfinite(sizes[best]), sizes[best], 0.0)
    wanted = counted(log_weights[best], draws, own.shape[-1])
    return near(laws[0], jnp.log((count * wanted + _SMOOTH * own) / (count + _SMOOTH)))


def counted(
    log_weight: Float[Array, " n"], draws: Real[Array, " n *event"], num_states: int
) -> Float[Array, "*event classes"]:
    """The weighted frequency of each class, shape (d, S)."""
    weight = jax.nn.softmax(jnp.maximum(log_weight, LEAST))
    return jnp.sum(jnp.where(one_hot(draws, num_states), weight[:, None, None], 0.0), 0)


def _log_prob(logits: Array, draws: Array) -> Array:
    """log probability of classes, shape (n, d) to (n,)."""
    return jnp.sum(jnp.where(one_hot(draws, logits.shape[-1]), logits, 0.0), (-2, -1))


def near(
    logits: Float[Array, "*event classes"], wanted: Float[Array, "*event classes"]
) -> Float[Array, "*event classes"]:
    """`wanted` within five of `logits`; what cannot be stays so."""
    shift = jnp.clip(wanted - logits, -FARTHEST, FARTHEST)
    return jnp.where(logits > IMPOSSIBLE / 2, logits + jnp.where(jnp.isnan(shift), 0.0, shift), IMPOSSIBLE)


def _number(log_weight: Array) -> Array:
    """No weight for what cannot be, and what is no number."""
    return jnp.where(log_weight > IMPOSSIBLE / 2, log_weight, -jnp.inf)
