"""E[r(b)] over independent bits b for any r, and which bits r wants: all states of a few bits, else fixed draws.

Draws are of an adaptive mixture of laws of independent bits and weighted as one sample of it (Owen and Zhou 2000;
adapted as in Cappé et al. 2004). What the weights say of single bits is believed as far as it exceeds their noise.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .._products import dot
from ..laws import FARTHEST

LARGEST_LISTED = 10  # bits up to which all states are visited
LEAST = -1e18  # log ψ where no draw finds a positive r: still a weight, so that some particle is left
_POWERS = (1.0, 0.6, 0.35, 0.2, 0.1, 0.05, 0.0)  # of r, tried from the largest on
_ENOUGH = 6.0  # effective draws, for laws that only look for where r is large
_SIZES = (1.0, 0.4, 0.15, 0.05, 0.02, 0.005, 0.001, 0.0)  # of a step towards a mode, tried at once
_STEPS = 6
_SMOOTH = 1.0  # draws that the law before counts for


class Average(NamedTuple):
    """E[r(b)] and the bits that r wants.

    Attributes:
        log_psi: log E[r(b)] in nats, shape ().
        logits: of single bits under the law times r, shape (d,): at most five from those of the law.
    """

    log_psi: Float[Array, ""]
    logits: Float[Array, " d"]


def points(num_draws: int, size: int) -> Float[Array, "*draws d"]:
    """What `average` needs for examples of `size` bits: their states, shape (2^d, d), or uniform numbers.

    The numbers are of shape (4, num_draws, d): a Latin hypercube (McKay et al. 1979) for each of four laws, fixed.
    """
    if size <= LARGEST_LISTED:
        return jnp.asarray(np.array(list(itertools.product([0.0, 1.0], repeat=size))))
    rank = jnp.argsort(jax.random.uniform(jax.random.key(0), (4, num_draws, size)), axis=1)
    return (rank + 0.5) / num_draws


def average(
    log_r: Callable[[Float[Array, " d"]], Float[Array, ""]], logits: Float[Array, " d"], at: Float[Array, "*draws d"]
) -> Average:
    """E[r(b)] for independent bits of these logits, which may be infinite, and the logits that r wants.

    Args:
        log_r: from bits of shape (d,) to log r in nats.
        logits: shape (d,).
        at: `points`.
    """
    if at.ndim == 2:
        log_weight = _number(jax.vmap(log_r)(at)) + _log_bits(logits, at)
        one = logsumexp(log_weight[:, None], axis=0, where=at == 1)
        zero = logsumexp(log_weight[:, None], axis=0, where=at == 0)
        return Average(jnp.maximum(logsumexp(log_weight), LEAST), _near(logits, one - zero))
    laws = [logits, _mode(log_r, logits)]
    draws = [_drawn(law, u) for law, u in zip(laws, at, strict=False)]
    value = [_number(jax.vmap(log_r)(b)) for b in draws]
    for u in at[2:]:
        laws.append(_adapted(laws, jnp.concatenate(draws), jnp.concatenate(value), enough=True))
        draws.append(_drawn(laws[-1], u))
        value.append(_number(jax.vmap(log_r)(draws[-1])))
    pooled = jnp.concatenate(draws), jnp.concatenate(value)
    log_weight = _log_weight(laws, *pooled)
    log_psi = logsumexp(log_weight) - math.log(len(log_weight))
    return Average(jnp.maximum(log_psi, LEAST), _adapted(laws, *pooled, enough=False))


def _mode(log_r: Callable[[Array], Array], logits: Array) -> Array:
    """Bits q for which log r(E_q[b]) − KL(q | law) is large, by a few damped steps to where its gradient is 0.

    r is continued to probabilities here, as a function of real numbers: its gradient may mislead, and is only tried.
    """
    sizes = jnp.asarray(_SIZES)

    def goal(shift: Array) -> Array:
        tilted = logits + shift
        chance = sigmoid(tilted)
        each = jnp.where(jnp.isfinite(logits), chance * shift + log_sigmoid(-tilted) - log_sigmoid(-logits), 0.0)
        return log_r(chance) - jnp.sum(each)

    def step(shift: Array, _: None) -> tuple[Array, None]:
        slope = jax.grad(log_r)(sigmoid(logits + shift))
        slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
        tried = jnp.clip(shift + sizes[:, None] * (slope - shift), -FARTHEST, FARTHEST)
        return tried[jnp.argmax(_number(jax.vmap(goal)(tried)))], None

    shift, _ = jax.lax.scan(step, jnp.zeros_like(logits), None, length=_STEPS)
    return logits + shift


def _log_weight(laws: list[Array], draws: Array, value: Array, power: float = 1.0) -> Array:
    """log of r^power times the first law over the mixture of all, for draws of the mixture."""
    each = jnp.stack([_log_bits(law, draws) for law in laws])
    return _number(power * value + each[0] - logsumexp(each, axis=0) + math.log(len(laws)))


def _adapted(laws: list[Array], draws: Array, value: Array, enough: bool) -> Array:
    """Logits that the weighted draws speak for; with `enough`, of a power of r that leaves enough of them.

    A shift of the bits' probabilities is shrunk by its noise, that of all bits together (James and Stein 1961) or of
    a bit by itself, if it stands out from all (Donoho and Johnstone 1994).
    """
    logits, size = laws[0], draws.shape[1]
    powers = jnp.asarray(_POWERS if enough else _POWERS[:1])
    weights = jax.vmap(lambda power: jax.nn.softmax(_finite(_log_weight(laws, draws, value, power))))(powers)
    sizes = 1 / jnp.sum(weights**2, 1)
    best = jnp.argmax(sizes >= _ENOUGH) if enough else 0
    weight, count = weights[best], sizes[best]
    chance = sigmoid(logits)
    shift = dot(weight, draws) - chance
    variance = jnp.maximum(chance * (1 - chance), 1e-4)
    square = count * shift**2 / variance
    known = ~jnp.isfinite(logits)
    total = jnp.sum(jnp.where(known, 0.0, square))
    together = 1 - (size - jnp.sum(known)) / jnp.maximum(total, 1e-6)
    alone = 1 - 2 * math.log(size) / jnp.maximum(square, 1e-6)
    fraction = jnp.clip(jnp.maximum(together, alone), 0.0, 1.0) * count / (count + _SMOOTH)
    tilted = jnp.clip(chance + fraction * shift, 1e-6, 1 - 1e-6)
    return _near(logits, jnp.log(tilted) - jnp.log1p(-tilted))


def _drawn(logits: Array, uniform: Array) -> Array:
    return (uniform < sigmoid(logits)).astype(uniform.dtype)


def _log_bits(logits: Array, bits: Array) -> Array:
    """log probability of bits, shape (n, d) to (n,)."""
    return jnp.sum(jnp.where(bits == 1, log_sigmoid(logits), log_sigmoid(-logits)), -1)


def _near(logits: Array, wanted: Array) -> Array:
    """`wanted` within five of `logits`, which stay where infinite or where nothing is said."""
    shift = wanted - jnp.where(jnp.isfinite(logits), logits, 0.0)
    return logits + jnp.clip(jnp.where(jnp.isnan(shift), 0.0, shift), -FARTHEST, FARTHEST)


def _number(log_weight: Array) -> Array:
    return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)


def _finite(log_weight: Array) -> Array:
    return jnp.maximum(log_weight, LEAST)
