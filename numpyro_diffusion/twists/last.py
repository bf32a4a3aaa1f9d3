"""The step from x_1 to the data, for any twist."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from ..denoisers.base import normal
from ..diffusions.gaussian import variance_of
from ..factors import AbstractFactor, Delta, Gaussian, Product, factors_of
from ..factors.low_rank import LoweredNormal, PartlyKnown, elements
from ..process import ReverseProcess
from .base import TwistedStep, tilt
from .integrals import Approximation, integrate, white_draws
from .spread import Spread

_NUM_DRAWS, _NUM_NEWTON = 16, 6


def last_step(process: ReverseProcess, factor: AbstractFactor, x_1: Array) -> TwistedStep:
    """The step from x_1 to the data.

    Where the factor multiplies the last kernel in closed form, ψ_1(x_1) = ∫ p(x_0 | x_1) r(x_0) dx_0 and the proposal
    is the normalised product, so that no weight changes any more. Otherwise known elements and those observed by
    themselves are multiplied in closed form, and the rest as `Laplace` does, or for bits and grey levels along its
    gradient.
    """
    kernel = process.last_kernel(x_1)
    product = factor.multiply(kernel)
    if product is not None:
        return TwistedStep(product[0], kernel, product[1])
    log_psi, law, rest = _multiplied(factor, kernel)
    inner = law.law if isinstance(law, PartlyKnown) else law
    if not isinstance(elements(inner), dist.Normal):
        mean = law.mean
        value, gradient = jax.value_and_grad(rest.log_r)(mean)
        led = tilt(inner, gradient)
    else:
        noise = white_draws(_NUM_DRAWS, math.prod(process.event_shape))
        root = jnp.broadcast_to(jnp.sqrt(variance_of(law)), process.event_shape).reshape(-1)
        found = integrate(rest.log_r, law.mean, Spread(root, process.event_shape), noise, _NUM_NEWTON)
        value = found.log_psi
        whole = found.precision is not None and law is inner
        led = _narrowed(inner, found) if whole else normal(found.mean, variance_of(inner))
    led = PartlyKnown(led, law.values, law.mask) if isinstance(law, PartlyKnown) else led
    return TwistedStep(log_psi + value, kernel, led)


def _multiplied(factor: AbstractFactor, law: Any) -> tuple[Array, Any, AbstractFactor]:
    """Multiply what factorises in closed form, known elements last: the integral, the product and what is left."""
    parts = sorted(factors_of(factor), key=lambda part: isinstance(part, Delta))
    total, rest = jnp.zeros(()), []
    for part in parts:
        product = part.multiply(law) if isinstance(part, Gaussian | Delta) else None
        if product is None:
            rest.append(part)
        else:
            total, law = total + product[0], product[1]
    return total, law, Product(tuple(rest))


def _narrowed(law: Any, found: Approximation) -> dist.Distribution:
    """A factorised normal moved to the product's mean, and as narrow as the product is at its mode."""
    values, vectors = jnp.linalg.eigh(found.precision)
    rows = vectors.T * jnp.sqrt(jnp.clip(1 - 1 / jnp.maximum(values, 1.0), 0.0))[:, None]
    scale = jnp.broadcast_to(jnp.sqrt(variance_of(law)), found.mean.shape)
    return LoweredNormal(found.mean, scale, rows.reshape(-1, *found.mean.shape))
