"""Factors of bits and classes: what each element says on its own.

For elements of a few values a factor of single elements is a table of log weights. Its product with independent bits or
classes multiplies probabilities and normalises them: c d/(c d + (1 − c)(1 − d)) for a bit of probability c and a factor
d that adds up to one (Sohl-Dickstein et al. 2015, Table App. 1, whose denominator has a misprint). The product and its
constant are *exact*.
"""

import functools
from abc import abstractmethod
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions.constraints import Constraint

from .._checks import check_broadcast, check_finite, is_concrete
from ..laws import one_hot, weighted
from .base import AbstractFactor, has_values


class _OfValues(AbstractFactor):
    """r(x) = Π r_i(x_i) for elements of a few values."""

    @abstractmethod
    def log_weight(self, value: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """log r_i in nats at a value of the elements, which broadcasts to one example."""

    def log_r(self, x: Shaped[Array, "..."]) -> Float[Array, ""]:
        """Σ log r_i(x_i) in nats."""
        return jnp.sum(self.log_weight(jnp.asarray(x)))

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def multiply(self, law: dist.Distribution) -> tuple[Float[Array, ""], dist.Distribution] | None:
        """Exact: c̃ ∝ cd for each value. Source: [2015] Table App. 1, its misprint corrected."""
        return weighted(law, self.log_weight) if weighted.knows(law) else None

    def check_count(self, support: Constraint, count: int, *said: Array) -> None:
        """Raise ``ValueError`` unless `count` is the largest number of values of elements that something is said of.

        Of mixed columns this is asked only where it is known what is said, and not under `jax.jit`.

        Args:
            support: of the prior's elements.
            count: the number of values.
            *said: arrays of what is said of each element; 0 where nothing is.
        """
        few = has_values(support)
        if few.ndim and not all(map(is_concrete, said)):
            self.check_kind(support, True, None)
            return
        acts = functools.reduce(np.logical_or, (np.asarray(each) != 0 for each in said)) if few.ndim else True
        self.check_kind(support, True, acts)
        values = [np.asarray(support(np.full(few.shape, value))) for value in range(count + 1)]
        if [bool((inside & acts).any()) for inside in values] != [True] * count + [False]:
            raise ValueError(f"factor: {type(self).__name__} is for {count} classes, got a prior on {support}")


class Elementwise(_OfValues):
    """r(x) = Π r_i(x_i) for bits: what each bit says on its own; 0 for columns beside them that are none.

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

    def check(self, event_shape: tuple[int, ...], support: Constraint) -> None:
        """For two values, of a shape that broadcasts to one example."""
        self.check_count(support, 2, self.log_one, self.log_zero)
        for name in ("log_one", "log_zero"):
            check_broadcast(name, getattr(self, name).shape, event_shape)

    def log_weight(self, value: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Linear in between 0 and 1."""
        return value * self.log_one + (1 - value) * self.log_zero


class Categorical(_OfValues):
    """r(x) = Π r_i(x_i) for classes: what each element says on its own; 0 for columns beside them of real numbers.

    Args:
        log_values: log r_i(c) in nats for each class c on the last axis, shape (*event, k) or broadcastable to it; what
            it says of classes that an element does not have is ignored.

    Raises:
        ValueError: no axis of classes, values that are not finite (`Delta` is for known elements).
    """

    log_values: Array

    def __init__(self, log_values: ArrayLike) -> None:
        check_finite("log_values", log_values)
        self.log_values = jnp.asarray(log_values, dtype=float)
        if self.log_values.ndim < 1:
            raise ValueError("log_values: expected an axis of classes, the last one, got one number")

    def check(self, event_shape: tuple[int, ...], support: Constraint) -> None:
        """For as many classes as there are values, of a shape that broadcasts to one example."""
        *shape, count = self.log_values.shape
        self.check_count(support, count, *_by_class(self.log_values))
        check_broadcast("log_values", (*shape, count), (*event_shape, count))

    def log_weight(self, value: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """0 for values that are no class."""
        return jnp.sum(jnp.where(one_hot(value, self.log_values.shape[-1]), self.log_values, 0.0), -1)


def _by_class(log_values: Array) -> list[Any]:
    """What is said of each class, on the host if it is known."""
    known = np.asarray(log_values) if is_concrete(log_values) else log_values
    return [known[..., value] for value in range(log_values.shape[-1])]


def by_value(log_values: Float[Array, "*event values"]) -> AbstractFactor:
    """r(x) = Π r_i(x_i) from log r_i of every value on the last axis: an `Elementwise` of two, else a `Categorical`."""
    if log_values.shape[-1] == 2:
        return Elementwise(log_values[..., 1], log_values[..., 0])
    return Categorical(log_values)
