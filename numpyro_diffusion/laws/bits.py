"""Independent bits, and what the operations make of them; in logits, so that nearly certain bits stay precise.

A bit is given by its log-odds, in which the operations are sums: a factor of single bits adds the difference of its two
log weights, a tilt adds the gradient, tempering interpolates, and a draw is a threshold on uniform noise. All of it is
exact but the tilt, which is exact for factors that are linear in the log and whose gradient is cut at `FARTHEST`. The
KL divergence of two Bernoulli laws, which NumPyro does not have, is registered here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.nn import log_sigmoid
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpyro.distributions.discrete import BernoulliLogits, BernoulliProbs
from numpyro.distributions.kl import kl_divergence

from .._shapes import Example
from .normal import FARTHEST
from .operations import between, bit_logits, certain, chosen, elements, from_noise, mirrored, tilt, weighted

KINDS = (BernoulliLogits, BernoulliProbs)


def bits(logits: Float[Array, "*event"]) -> dist.Distribution:
    """Independent bits of these log-odds as one event."""
    return BernoulliLogits(logits, validate_args=False).to_event(jnp.ndim(logits))


@bit_logits.register(*KINDS)
def _bit_logits(law: dist.Distribution) -> Float[Array, "*event"]:
    return elements(law).logits


@from_noise.register(*KINDS)
def _from_noise(law: dist.Distribution, noise: Float[Array, "*event"]) -> Example:
    return (noise < law.mean).astype(noise.dtype)


@mirrored.register(*KINDS)
def _mirrored(law: dist.Distribution, key: PRNGKeyArray, mirror: Bool[Array, ""]) -> Example:
    return jnp.where(mirror, 1 - bits(-bit_logits(law)).sample(key), law.sample(key))


@certain.register(*KINDS)
def _certain(law: dist.Distribution, values: Example, mask: Bool[Array, "*event"]) -> dist.Distribution:
    return bits(jnp.where(mask, jnp.where(values > 0.5, jnp.inf, -jnp.inf), bit_logits(law)))


@chosen.register(*KINDS)
def _chosen(law: dist.Distribution, other: dist.Distribution, where_other: Bool[Array, "*event"]) -> dist.Distribution:
    return bits(jnp.where(where_other, bit_logits(other), bit_logits(law)))


@tilt.register(*KINDS)
def _tilt(law: dist.Distribution, gradient: Float[Array, "*event"]) -> dist.Distribution:
    return bits(bit_logits(law) + jnp.clip(gradient, -FARTHEST, FARTHEST))


@between.register(*KINDS)
def _between(proposal: dist.Distribution, kernel: dist.Distribution, share: Float[Array, ""]) -> dist.Distribution:
    own, led = bit_logits(kernel), bit_logits(proposal)
    return bits(own + share * (led - own))


@weighted.register(*KINDS)
def _weighted(
    law: dist.Distribution, log_weight: Callable[[Array], Array]
) -> tuple[Float[Array, ""], dist.Distribution]:
    logits, log_one, log_zero = bit_logits(law), log_weight(jnp.ones(())), log_weight(jnp.zeros(()))
    each = jnp.logaddexp(log_sigmoid(logits) + log_one, log_sigmoid(-logits) + log_zero)
    return jnp.sum(each), bits(logits + log_one - log_zero)


@kl_divergence.register(BernoulliLogits, BernoulliLogits)
def _kl_bernoulli(p: BernoulliLogits, q: BernoulliLogits) -> Array:
    """KL between bits in nats, from logits; NumPyro has no such pair."""
    largest = jnp.finfo(p.logits.dtype).max
    p_logits = jnp.clip(p.logits, -largest, largest)  # a certain bit is no 0 * inf

    def part(sign: int) -> Array:
        chance = jax.nn.sigmoid(sign * p_logits)
        excess = log_sigmoid(sign * p_logits) - log_sigmoid(sign * q.logits)
        return jnp.where(chance > 0, chance * excess, 0.0)

    return part(1) + part(-1)
