"""E[r(x)] over a factorised law of any kind, and the law that r wants, from fixed draws of that law.

For columns of several kinds, which no closed form and no list of states covers: importance sampling with the law.
What the weighted draws say of single elements is believed as far as there are enough effective ones.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Shaped
from numpyro.distributions import Normal

from .. import laws
from ..laws import FARTHEST, Categories, DiscretisedNormal, Mixed, Operation, PartlyKnown, elements
from ..laws.bits import KINDS as BITS
from .classes import LEAST, counted, near

SMOOTH = 2.0  # draws that the law itself counts for


def points(num_draws: int, size: int) -> Float[Array, "draws d"]:
    """Uniform numbers of a Latin hypercube (McKay et al. 1979), fixed, shape (num_draws, size)."""
    rank = jnp.argsort(jax.random.uniform(jax.random.key(0), (num_draws, size)), axis=0)
    return (rank + 0.5) / num_draws


def average(log_weight: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, " n"], Float[Array, ""]]:
    """log of the mean weight in nats, shape (); normalised weights; how much their answers are believed, in [0, 1)."""
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    log_mean = jnp.maximum(logsumexp(log_weight) - jnp.log(float(len(log_weight))), LEAST)
    weight = jax.nn.softmax(jnp.maximum(log_weight, LEAST))
    count = jnp.where(jnp.isfinite(log_weight).any(), 1 / jnp.sum(jnp.square(weight)), 0.0)
    return log_mean, weight, count / (count + SMOOTH)


@Operation
def drawn(law: dist.Distribution, uniform: Float[Array, "*event"]) -> Shaped[Array, "*event"]:
    """The draw that uniform numbers make, shape `event`; where the law's noise is uniform they are that."""
    return laws.from_noise(law, uniform)


@Operation
def led(
    law: dist.Distribution, draws: Shaped[Array, " n *event"], weight: Float[Array, " n"], share: Float[Array, ""]
) -> dist.Distribution:
    """A law of the same kind, nearer to what weighted draws of it say.

    Args:
        law: factorised.
        draws: of the law, shape (n, *event).
        weight: of each, adding up to 1.
        share: how much they are believed.
    """
    raise led.refuse(law)


@drawn.register(Normal, DiscretisedNormal)
def _drawn_normal(law: dist.Distribution, uniform: Array) -> Array:
    return laws.from_noise(law, jax.scipy.special.ndtri(uniform))


@drawn.register(PartlyKnown)
def _drawn_partly_known(law: PartlyKnown, uniform: Array) -> Array:
    free = drawn(law.law, uniform)
    return jnp.where(law.mask, law.values.astype(free.dtype), free)


@drawn.register(Mixed)
def _drawn_mixed(law: Mixed, uniform: Array) -> Array:
    return laws.together([drawn(own, part) for own, part in law.cut(uniform)], law.columns)


@led.register(Normal, DiscretisedNormal)
def _led_normal(law: dist.Distribution, draws: Array, weight: Array, share: Array) -> dist.Distribution:
    """The mean moves with the draws' own, by at most five standard deviations."""
    each = elements(law)
    most = FARTHEST * each.scale
    shift = share * (jnp.tensordot(weight, draws.astype(each.loc.dtype), 1) - jnp.mean(draws, 0))
    loc = each.loc + jnp.clip(shift, -most, most)
    if isinstance(each, DiscretisedNormal):
        return laws.levels(loc, each.scale, each.num_levels)
    return laws.normal(loc, jnp.square(each.scale))


@led.register(*BITS)
def _led_bits(law: dist.Distribution, draws: Array, weight: Array, share: Array) -> dist.Distribution:
    logits = laws.bit_logits(law)
    chance = share * jnp.tensordot(weight, draws.astype(logits.dtype), 1) + (1 - share) * jax.nn.sigmoid(logits)
    chance = jnp.clip(chance, 1e-6, 1 - 1e-6)
    return laws.bits(logits + jnp.clip(jnp.log(chance) - jnp.log1p(-chance) - logits, -FARTHEST, FARTHEST))


@led.register(Categories)
def _led_classes(law: dist.Distribution, draws: Array, weight: Array, share: Array) -> dist.Distribution:
    logits = laws.class_logits(law)
    seen = counted(jnp.log(weight), draws, logits.shape[-1])
    return laws.categories(near(logits, jnp.log(share * seen + (1 - share) * jnp.exp(logits))))


@led.register(PartlyKnown)
def _led_partly_known(law: PartlyKnown, draws: Array, weight: Array, share: Array) -> PartlyKnown:
    return PartlyKnown(led(law.law, draws, weight, share), law.values, law.mask)


@led.register(Mixed)
def _led_mixed(law: Mixed, draws: Array, weight: Array, share: Array) -> Mixed:
    return law.of([led(own, part, weight, share) for own, part in law.cut(draws)])
