"""The step from x_1 to the data, for any twist."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.discrete import BernoulliLogits

from ..denoisers.base import normal
from ..diffusions.binomial import posterior_logits
from ..diffusions.gaussian import variance_of
from ..discretised import DiscretisedNormal
from ..factors import AbstractFactor
from ..factors.low_rank import LoweredNormal, PartlyKnown, elements
from ..process import ReverseProcess
from .averaged import averaged_bits, multiplied_out
from .base import FARTHEST, TwistedStep
from .bits import points
from .integrals import Approximation, integrate, white_draws
from .spread import Spread

_NUM_DRAWS, _NUM_NEWTON = 16, 6


def last_step(process: ReverseProcess, factor: AbstractFactor, x_1: Array) -> TwistedStep:
    """The step from x_1 to the data.

    Where the factor multiplies the last kernel in closed form, ψ_1(x_1) = ∫ p(x_0 | x_1) r(x_0) dx_0 and the proposal
    is the normalised product, so that no weight changes any more. Otherwise single bits, known elements and those
    observed by themselves are multiplied in closed form, and the rest as `Averaged` does for bits and `Laplace` for
    real numbers. A rounded normal law is taken as the normal law itself times r of what it is rounded to.
    """
    kernel = process.last_kernel(x_1)
    product = factor.multiply(kernel)
    if product is not None:
        return TwistedStep(product[0], kernel, product[1])
    log_psi, law, rest = multiplied_out(factor, kernel)
    known = law if isinstance(law, PartlyKnown) else None
    inner: Any = law if known is None else known.law
    if isinstance(elements(inner), BernoulliLogits):
        value, logits = averaged_bits(rest, law, points(_NUM_DRAWS, math.prod(process.event_shape)))
        if known is not None:
            logits = jnp.where(known.mask, posterior_logits(inner), logits)
        led: Any = BernoulliLogits(logits, validate_args=False).to_event(jnp.ndim(logits))
    else:
        value, led = _integrated(rest, inner, known)
    return TwistedStep(log_psi + value, kernel, led if known is None else PartlyKnown(led, known.values, known.mask))


def _integrated(rest: AbstractFactor, law: Any, known: PartlyKnown | None) -> tuple[Array, Any]:
    """log ∫ of a normal law, rounded or not and partly known perhaps, times r, and a law close to the product."""
    each = elements(law)
    shape, log_r = each.loc.shape, rest.log_r
    scale = jnp.broadcast_to(each.scale, shape)
    free = jnp.ones(shape, bool) if known is None else ~known.mask
    centre = each.loc if known is None else jnp.where(free, each.loc, known.values)
    if isinstance(each, DiscretisedNormal):
        top = each.num_levels - 1

        def log_r(x: Array) -> Array:
            """r of the level, its slope as if nothing were rounded."""
            return rest.log_r(x + jax.lax.stop_gradient(jnp.clip(jnp.round(x), 0, top) - x))

    spread = Spread(jnp.where(free, scale, 0.0).reshape(-1), shape)
    found = integrate(log_r, centre, spread, white_draws(_NUM_DRAWS, math.prod(shape)), _NUM_NEWTON)
    if isinstance(each, DiscretisedNormal):
        loc = each.loc + jnp.clip(found.mean - each.loc, -FARTHEST * scale, FARTHEST * scale)
        led: Any = DiscretisedNormal(loc, each.scale, each.num_levels, validate_args=False).to_event(len(shape))
        return found.log_psi, led
    whole = found.precision is not None and known is None
    return found.log_psi, _narrowed(law, found) if whole else normal(found.mean, variance_of(law))


def _narrowed(law: Any, found: Approximation) -> dist.Distribution:
    """A factorised normal moved to the product's mean, and as narrow as the product is at its mode."""
    values, vectors = jnp.linalg.eigh(found.precision)
    rows = vectors.T * jnp.sqrt(jnp.clip(1 - 1 / jnp.maximum(values, 1.0), 0.0))[:, None]
    scale = jnp.broadcast_to(jnp.sqrt(variance_of(law)), found.mean.shape)
    return LoweredNormal(found.mean, scale, rows.reshape(-1, *found.mean.shape))
