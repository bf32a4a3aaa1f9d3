"""Factors of x = T(z) as factors of z, for priors that live in coordinates of their own.

A linear observation of x stays one of z where T is affine; elements of x that are known, or observed by themselves,
stay so where T acts on each element. Whether T is affine is what its traced program shows.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import ComposeTransform, Transform

from .._checks import is_concrete
from .._structure import is_affine, is_elementwise
from .base import AbstractFactor, Product, factors_of
from .callable import Factor
from .delta import Delta
from .gaussian import Gaussian
from .linear import LinearGaussian

# Known elements that a transform mixes with others are observed with so much noise, of their own spread: float32
# knows no less, and no evidence differs by more than its square.
LEAST_NOISE = 1e-3


class PulledBack(eqx.Module):
    """z ↦ log r(T(z))."""

    factor: AbstractFactor
    transform: Transform

    def __call__(self, z: Array) -> Array:
        """log r of the data that z stands for, in nats, shape ()."""
        return self.factor.log_r(self.transform(z))


class PulledOperator(eqx.Module):
    """z ↦ A (T(z) − T(0)) for an affine T; A is the identity where there is none."""

    factor: LinearGaussian | None
    transform: Transform

    def __call__(self, z: Array) -> Array:
        """The linear part, of the observation's shape."""
        moved = self.transform(z) - self.transform(jnp.zeros_like(z))
        return moved if self.factor is None else self.factor.apply(moved).reshape(self.factor.observation.shape)


def pull_back(
    factor: AbstractFactor, transform: Transform | None, event_shape: tuple[int, ...]
) -> tuple[AbstractFactor, Array]:
    """r(T(z)) as a factor of z.

    Args:
        factor: r(x).
        transform: T, from one example z to one example x of the same shape; None for the identity.
        event_shape: of z and x.

    Returns:
        The factor, and a constant in nats, shape (), that belongs to its logarithm: the known elements' density is one
        of x, so that it has ``−log |dx/dz|`` of them. Known elements that T mixes with others are observed with a
        thousandth of their own standard deviation as noise (`with_known` puts their values into draws).

    Raises:
        ValueError: known elements off the transform's codomain, or under one that mixes elements and is not affine.
    """
    if transform is None:
        return factor, jnp.zeros(())
    if isinstance(transform, ComposeTransform):
        total = jnp.zeros(())
        for part in reversed(transform.parts):
            factor, constant = pull_back(factor, part, event_shape)
            total = total + constant
        return factor, total
    parts = [_pull(part, transform, jnp.zeros(event_shape)) for part in factors_of(factor)]
    one = parts[0][0] if len(parts) == 1 else Product(tuple(part for part, _ in parts))
    return one, sum((constant for _, constant in parts), jnp.zeros(()))


def with_known(factor: AbstractFactor | None, x: Array) -> Array:
    """Draws of shape (*lead, *event) with the values of known elements (`Delta`) in them."""
    for part in () if factor is None else factors_of(factor):
        if isinstance(part, Delta):
            x = jnp.where(part.mask, part.values.astype(x.dtype), x)
    return x


def _pull(factor: AbstractFactor, transform: Any, origin: Array) -> tuple[AbstractFactor, Array]:
    """One factor through one transform that is no composition; `origin` is z = 0."""
    nothing = jnp.zeros(())
    if isinstance(factor, Delta):
        return _known(factor, transform, origin)
    if not isinstance(factor, Gaussian | LinearGaussian) or not is_affine(transform, origin):
        return Factor(PulledBack(factor, transform)), nothing
    shift = transform(origin)
    if isinstance(factor, Gaussian) and is_elementwise(transform, origin):
        gain = transform(jnp.ones_like(origin)) - shift
        return Gaussian(factor.loc - factor.gain * shift, factor.scale, factor.gain * gain), nothing
    linear = factor.linear(origin.shape)
    left = linear.observation - linear.apply(shift).reshape(linear.observation.shape)
    return LinearGaussian(left, PulledOperator(linear, transform), linear.scale, mask=linear.mask), nothing


def _known(factor: Delta, transform: Any, origin: Array) -> tuple[AbstractFactor, Array]:
    inside = transform.codomain(jnp.where(factor.mask, factor.values, transform(origin)))
    if is_concrete(inside) and not np.all(inside):
        raise ValueError(f"values: expected known values on the prior's support, {transform.codomain}, got others")
    if is_elementwise(transform, origin):
        z = jnp.where(factor.mask, transform.inv(factor.values), 0.0)
        slope = jnp.broadcast_to(transform.log_abs_det_jacobian(z, transform(z)), z.shape)
        return Delta(z, factor.mask), -jnp.sum(jnp.where(factor.mask, slope, 0.0))
    if not is_affine(transform, origin):
        kind = type(transform).__name__
        raise ValueError(f"factor: expected a transform that is affine, or acts on elements, for Delta, got {kind}")
    shift, operator = transform(origin), PulledOperator(None, transform)
    rows = jax.vmap(lambda z: operator(z.reshape(origin.shape)))(jnp.eye(origin.size))
    scale = LEAST_NOISE * jnp.sqrt(jnp.sum(jnp.square(rows), 0))
    left = jnp.where(factor.mask, factor.values - shift, 0.0)
    return LinearGaussian(left, operator, scale, mask=factor.mask), jnp.zeros(())
