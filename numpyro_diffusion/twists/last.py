"""The step from x_1 to the data, for any twist.

After x_1 come the data, so that the best twist is a plain integral, ψ_1(x_1) = ∫ p(x_0 | x_1) r(x_0) dx_0, and the best
proposal the normalised product. Both are *exact* where r multiplies the last kernel in closed form. Otherwise the
integral is *approximate*, by a rule of the kernel's law: sums or fixed draws for bits, classes and columns of several
kinds, Laplace's approximation with importance sampling for real numbers and levels. Weights make up for it, as at every
step.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from .. import laws
from .._shapes import Example
from ..factors import AbstractFactor
from ..laws import (
    FARTHEST,
    Categories,
    DiscretisedNormal,
    LoweredNormal,
    Mixed,
    Operation,
    PartlyKnown,
    chosen,
    elements,
)
from ..laws.bits import KINDS as BITS
from ..process import ReverseProcess
from .averaged import Averages, averaged, averaging_points, multiplied_out
from .base import TwistedStep
from .covariance import Covariance
from .integrals import Approximation, integrate, white_draws

_NUM_DRAWS, _NUM_NEWTON = 16, 6


def last_step(process: ReverseProcess, factor: AbstractFactor, x_1: Example) -> TwistedStep:
    """The step from x_1 to the data.

    Where the factor multiplies the last kernel in closed form, ψ_1(x_1) = ∫ p(x_0 | x_1) r(x_0) dx_0 and the proposal
    is the normalised product, so that no weight changes any more. Otherwise single bits or classes, known elements and
    those observed by themselves are multiplied in closed form, and the rest as `Averaged` does for bits and classes and
    `Laplace` for real numbers. A rounded normal law is taken as the normal law itself times r of what it is rounded to.
    """
    kernel = process.last_kernel(x_1)
    product = factor.multiply(kernel)
    if product is not None:
        return TwistedStep(product[0], kernel, product[1])
    log_psi, law, rest = multiplied_out(factor, kernel)
    value, led = integrated(law, rest)
    return TwistedStep(log_psi + value, kernel, led)


@Operation
def integrated(law: dist.Distribution, factor: AbstractFactor, known: PartlyKnown | None = None) -> Averages:
    """log ∫ law · r in nats, shape (), and a law of the same family that is close to the product.

    Args:
        law: factorised, of x_0 given x_1.
        factor: r.
        known: the law with the elements that are known, if some are; the answer's are then of no account.
    """
    raise integrated.refuse(law)


@integrated.register(PartlyKnown)
def _integrated_partly_known(law: PartlyKnown, factor: AbstractFactor) -> Averages:
    value, led = integrated(law.law, factor, law)
    return value, PartlyKnown(led, law.values, law.mask)


@integrated.register(*BITS, Categories)
def _integrated_values(law: dist.Distribution, factor: AbstractFactor, known: PartlyKnown | None = None) -> Averages:
    value, led = averaged(law, factor, averaging_points(law, _NUM_DRAWS), known)
    # Certain elements where they are known would make the density of the others NaN.
    return value, led if known is None else chosen(led, law, known.mask)


@integrated.register(Mixed)
def _integrated_mixed(law: dist.Distribution, factor: AbstractFactor) -> Averages:
    return averaged(law, factor, averaging_points(law, _NUM_DRAWS))


@integrated.register(dist.Normal)
def _integrated_normal(law: dist.Distribution, factor: AbstractFactor, known: PartlyKnown | None = None) -> Averages:
    found = _around_mode(law, factor.log_r, known)
    whole = found.precision is not None and known is None
    return found.log_psi, _narrowed(law, found) if whole else laws.normal(found.mean, laws.variance(law))


@integrated.register(DiscretisedNormal)
def _integrated_levels(law: dist.Distribution, factor: AbstractFactor, known: PartlyKnown | None = None) -> Averages:
    each = elements(law)
    top = each.num_levels - 1

    def log_r(x: Array) -> Array:
        """r of the level, its slope as if nothing were rounded."""
        return factor.log_r(x + jax.lax.stop_gradient(jnp.clip(jnp.round(x), 0, top) - x))

    found = _around_mode(law, log_r, known)
    loc = each.loc + jnp.clip(found.mean - each.loc, -FARTHEST * each.scale, FARTHEST * each.scale)
    return found.log_psi, laws.levels(loc, each.scale, each.num_levels)


def _around_mode(law: dist.Distribution, log_r: Callable[[Array], Array], known: PartlyKnown | None) -> Approximation:
    """∫ of a normal law, partly known perhaps, times r."""
    each = elements(law)
    shape = each.loc.shape
    free = jnp.ones(shape, bool) if known is None else ~known.mask
    centre = each.loc if known is None else jnp.where(free, each.loc, known.values)
    covariance = Covariance(jnp.where(free, jnp.broadcast_to(each.scale, shape), 0.0).reshape(-1), shape)
    return integrate(log_r, centre, covariance, white_draws(_NUM_DRAWS, math.prod(shape)), _NUM_NEWTON)


def _narrowed(law: Any, found: Approximation) -> dist.Distribution:
    """A factorised normal moved to the product's mean, and as narrow as the product is at its mode."""
    values, vectors = jnp.linalg.eigh(found.precision)
    rows = vectors.T * jnp.sqrt(jnp.clip(1 - 1 / jnp.maximum(values, 1.0), 0.0))[:, None]
    scale = jnp.broadcast_to(jnp.sqrt(laws.variance(law)), found.mean.shape)
    return LoweredNormal(found.mean, scale, rows.reshape(-1, *found.mean.shape))
