"""Time features: how a network is told the step index.

A step index enters a network as sines and cosines at geometrically spaced frequencies (Vaswani et al. 2017; Ho, Jain
and Abbeel 2020): smooth in t, so that a network may be asked between whole steps, and different at all of them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count, check_scalar
from .._shapes import AnyTime


def sinusoidal(t: AnyTime, num_features: int, max_period: float = 10_000.0) -> Float[Array, " num_features"]:
    """Return sines and cosines of `t` at geometrically spaced frequencies.

    With h = num_features / 2, the features are sin(ω_i t) for i = 0…h−1, then cos(ω_i t), where
    ω_i = max_period^(−i/(h−1)) runs from 1 down to 1/max_period radians per step (h = 1: only 1). They are
    smooth in t, so a network may be asked between whole steps. For t in [0, T] choose `max_period` of about
    T: the slowest pair then tells the two ends apart, while the fastest still tells neighbouring steps apart.

    Args:
        t: step index, a scalar; may be fractional.
        num_features: even number of features, at least 2.
        max_period: the slowest wave's period over 2π, in steps; positive.

    Raises:
        ValueError: if `t` is not a scalar, `num_features` is odd or below 2, or `max_period` is not positive.

    Source: Vaswani et al. 2017, section 3.5, with the spacing used in the code of Ho et al. 2020.
    """
    if check_count("num_features", num_features, 2) % 2:
        raise ValueError(f"num_features: expected an even number of at least 2, got {num_features!r}")
    check_scalar("max_period", max_period)
    if not max_period > 0:
        raise ValueError(f"max_period: expected a positive number, got {max_period!r}")
    t = scalar_time(t)
    half = num_features // 2
    exponents = jnp.arange(half, dtype=t.dtype) / max(half - 1, 1)
    angles = t * max_period**-exponents
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


def scalar_time(t: AnyTime) -> Float[Array, ""]:
    """Return a step index as a floating-point scalar.

    Raises:
        ValueError: if `t` is not a scalar.
    """
    t = jnp.asarray(t, jnp.result_type(float, t))
    if t.shape:
        raise ValueError(f"t: expected a scalar, got shape {t.shape} (batch with jax.vmap)")
    return t
