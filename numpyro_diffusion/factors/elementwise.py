"""Factors of bits."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from .._checks import check_broadcast, check_finite
from ..laws import weighted
from .base import AbstractFactor


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
        return jnp.sum(self._log_weight(jnp.asarray(x)))

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def check(self, event_shape: tuple[int, ...], discrete: bool) -> None:
        """For bits, of a shape that broadcasts to one example."""
        self.check_kind(discrete, True)
        for name in ("log_one", "log_zero"):
            check_broadcast(name, getattr(self, name).shape, event_shape)

    def multiply(self, law: dist.Distribution) -> tuple[Array, dist.Distribution] | None:
        """Exact: c̃ = cd/(cd + (1−c)(1−d)) for each bit ([2015] Table App. 1, its misprint corrected)."""
        return weighted(law, self._log_weight) if weighted.knows(law) else None

    def _log_weight(self, value: Array) -> Array:
        return value * self.log_one + (1 - value) * self.log_zero
