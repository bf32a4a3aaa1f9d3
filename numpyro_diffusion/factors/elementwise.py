"""Factors of bits."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.nn import log_sigmoid
from jax.typing import ArrayLike
from numpyro.distributions.discrete import BernoulliLogits

from .._checks import check_broadcast, check_finite
from .base import AbstractFactor
from .low_rank import elements


class Elementwise(AbstractFactor):
    """r(x) = Π r_i(x_i) for bits: what each bit says on its own.

    Args:
        log_one: log r_i(1) in nats, broadcastable to one example.
        log_zero: log r_i(0), likewise.

    Raises:
        ValueError: values that are not finite (`Delta` is for known bits).
    """

    log_one: Array
    log_zero: Array

    def __init__(self, log_one: ArrayLike, log_zero: ArrayLike = 0.0) -> None:
        check_finite("log_one", log_one)
        check_finite("log_zero", log_zero)
        self.log_one, self.log_zero = jnp.asarray(log_one, dtype=float), jnp.asarray(log_zero, dtype=float)

    def log_r(self, x: Array) -> Array:
        """Σ log r_i(x_i) in nats; linear in between 0 and 1."""
        return jnp.sum(jnp.asarray(x) * self.log_one + (1 - jnp.asarray(x)) * self.log_zero)

    def check(self, event_shape: tuple[int, ...], discrete: bool) -> None:
        """For bits, of a shape that broadcasts to one example."""
        self.check_kind(discrete, True)
        for name in ("log_one", "log_zero"):
            check_broadcast(name, getattr(self, name).shape, event_shape)

    def multiply(self, law: dist.Distribution) -> tuple[Array, dist.Distribution] | None:
        """Exact: c̃ = cd/(cd + (1−c)(1−d)) for each bit ([2015] Table App. 1, its misprint corrected)."""
        bits = elements(law)
        if not isinstance(bits, BernoulliLogits):
            return None
        one, zero = log_sigmoid(bits.logits) + self.log_one, log_sigmoid(-bits.logits) + self.log_zero
        logits = bits.logits + self.log_one - self.log_zero
        tilted = BernoulliLogits(logits, validate_args=False).to_event(logits.ndim)
        return jnp.sum(jnp.logaddexp(one, zero)), tilted

    @property
    def acts_by_element(self) -> bool:
        """True."""
        return True
