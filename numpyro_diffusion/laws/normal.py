"""Independent normal laws, and what the operations make of them.

Independent normal elements stay normal under nearly all that is asked of them: an observation of single elements adds
precisions, tempering mixes them, a linear observation lowers the covariance in a few directions (`LoweredNormal`), and
a draw is an affine function of normal noise. These rules are exact. The tilt moves the mean by variance times gradient,
which is exact for a log factor that is linear, and no element by more than `FARTHEST` standard deviations.
"""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray, Real

from .._products import tensordot
from .._shapes import Example
from .lowered import LoweredNormal
from .operations import (
    between,
    elements,
    from_noise,
    lowered,
    mean_and_variance,
    mirrored,
    observed,
    tilt,
    variance,
)

# The farthest that a gradient may move a law, in standard deviations, or in logits.
FARTHEST = 5.0


def normal(mean: Float[Array, "*event"], variance: ArrayLike) -> dist.Distribution:
    """Independent normals with the shape of `mean` as one event; `variance` broadcasts and may be 0."""
    return dist.Normal(mean, jnp.sqrt(variance), validate_args=False).to_event(jnp.ndim(mean))


@variance.register(dist.Normal)
def _variance(law: dist.Distribution) -> Float[Array, "..."]:
    return jnp.square(elements(law).scale)


@mean_and_variance.register(
    dist.Normal, dist.Delta, dist.MultivariateNormal, dist.LowRankMultivariateNormal, LoweredNormal
)
def _mean_and_variance(law: dist.Distribution) -> tuple[Float[Array, "*event"], Float[Array, "..."]]:
    return law.mean, variance(law)  # a Delta is a normal law whose mean alone is known


@mean_and_variance.register(dist.ExpandedDistribution)
def _of_expanded(law: dist.Distribution) -> tuple[Float[Array, "*event"], Float[Array, "..."]]:
    mean_and_variance(elements(law).base_dist)
    return law.mean, law.variance


@from_noise.register(dist.Normal)
def _from_noise(law: dist.Distribution, noise: Float[Array, "*event"]) -> Example:
    each = elements(law)
    return each.loc + each.scale * noise


@mirrored.register(dist.Normal, LoweredNormal)
def _mirrored(law: dist.Distribution, key: PRNGKeyArray, mirror: Bool[Array, ""]) -> Example:
    draw = law.sample(key)
    return jnp.where(mirror, 2 * law.mean - draw, draw)


@tilt.register(dist.Normal)
def _tilt(law: dist.Distribution, gradient: Float[Array, "*event"]) -> dist.Distribution:
    scale = jnp.sqrt(variance(law))
    return normal(law.mean + scale * jnp.clip(scale * gradient, -FARTHEST, FARTHEST), jnp.square(scale))


@between.register(dist.Normal)
def _between(proposal: dist.Distribution, kernel: dist.Distribution, share: Float[Array, ""]) -> dist.Distribution:
    # Precisions mix; multiplied out, so that a variance of 0 stays one.
    weight, own = share * kernel.variance, (1 - share) * proposal.variance
    total = jnp.where(weight + own > 0, weight + own, 1.0)
    mean = jnp.where(weight + own > 0, (weight * proposal.mean + own * kernel.mean) / total, proposal.mean)
    return normal(mean, kernel.variance * proposal.variance / total)


@between.register(LoweredNormal, second=dist.Normal)
def _between_lowered(proposal: LoweredNormal, kernel: dist.Distribution, share: Float[Array, ""]) -> dist.Distribution:
    # In the kernel's own coordinates: precision 1 across, 1/remaining along the rows of the basis.
    shift, axes = (proposal.loc - kernel.mean) / proposal.scale, jnp.ndim(kernel.mean)
    along = tensordot(proposal.basis, shift, axes)
    mixed = share + (1 - share) * proposal.remaining
    moved = share * (shift + tensordot(along * (1 / mixed - 1), proposal.basis, 1))
    rows = jnp.sqrt(jnp.maximum(share * (1 - proposal.remaining) / mixed, 0.0))
    directions = rows.reshape((-1,) + (1,) * axes) * proposal.basis
    return LoweredNormal(kernel.mean + proposal.scale * moved, proposal.scale, directions)


@observed.register(dist.Normal)
def _observed(
    law: dist.Distribution, loc: Real[Array, "..."], scale: Real[Array, "..."], gain: Real[Array, "..."]
) -> tuple[Float[Array, ""], dist.Distribution]:
    seen = jnp.isfinite(scale)
    noise, own = jnp.where(seen, scale, 1.0), variance(law)
    total = gain**2 * own + noise**2
    residual = loc - gain * law.mean
    each = -0.5 * (residual**2 / total + jnp.log(2 * jnp.pi * total))
    pull = jnp.where(seen, gain * own / total, 0.0)
    left = jnp.where(seen, noise**2 / total, 1.0)
    return jnp.sum(jnp.where(seen, each, 0.0)), normal(law.mean + pull * residual, own * left)


@lowered.register(dist.Normal)
def _lowered(
    law: dist.Distribution, shift: Float[Array, "*event"], directions: Float[Array, " m *event"]
) -> dist.Distribution:
    scale = jnp.sqrt(law.variance)
    safe = jnp.where(scale > 0, scale, 1.0)
    return LoweredNormal(law.mean + shift, scale, directions / safe)
