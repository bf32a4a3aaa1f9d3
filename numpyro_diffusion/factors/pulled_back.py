"""Factors of x = T(z) as factors of z, for priors that live in coordinates of their own.

A linear observation of x stays one of z where T is affine; elements of x that are known, or observed by themselves,
stay so where T acts on each element. Whether T is affine is what its traced program shows. Every factor answers for
itself, by its method `pull_back`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from numpyro.distributions.transforms import ComposeTransform, Transform

from .base import AbstractFactor


def pull_back(
    factor: AbstractFactor, transform: Transform | None, event_shape: tuple[int, ...]
) -> tuple[AbstractFactor, Float[Array, ""]]:
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
    if not isinstance(transform, ComposeTransform):
        return factor.pull_back(transform, jnp.zeros(event_shape))
    total = jnp.zeros(())
    for part in reversed(transform.parts):
        factor, constant = pull_back(factor, part, event_shape)
        total = total + constant
    return factor, total


def with_known(factor: AbstractFactor | None, x: Shaped[Array, "*draws"]) -> Shaped[Array, "*draws"]:
    """Draws of shape (*lead, *event) with the values of known elements (`Delta`) in them."""
    return x if factor is None else factor.fill(x)
