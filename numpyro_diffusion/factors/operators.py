"""Linear maps A of one example and the Gaussian noise in which A x is observed, each form as a small class.

All of them are flat: A x and the noise have shape (m,), for an observation of m elements.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .._checks import is_concrete
from .._products import dot
from .._shapes import Example
from .._structure import is_affine

Operator = Callable[[Array], Array]


class AbstractMap(eqx.Module):
    """A linear map from one example, shape `event`, to m numbers."""

    @abstractmethod
    def apply(self, x: Example) -> Float[Array, " m"]:
        """A x, shape (m,)."""

    @abstractmethod
    def rows(self, event_shape: tuple[int, ...]) -> Float[Array, " m *event"]:
        """A as rows, shape (m, *event)."""

    @abstractmethod
    def check(self, seen: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless A maps examples of shape `event` linearly to observations of shape `seen`."""

    @final
    def transpose(self, y: Float[Array, " m"], event_shape: tuple[int, ...]) -> Float[Array, "*event"]:
        """Aᵀ y, shape `event`."""
        return jax.linear_transpose(self.apply, jax.ShapeDtypeStruct(event_shape, y.dtype))(y)[0]


class Dense(AbstractMap):
    """A matrix, shape (m, n), of flattened examples."""

    matrix: Float[Array, "m n"]

    def apply(self, x: Example) -> Float[Array, " m"]:
        """A x, shape (m,)."""
        return dot(self.matrix, x.reshape(-1))

    def rows(self, event_shape: tuple[int, ...]) -> Float[Array, " m *event"]:
        """The matrix, shape (m, *event)."""
        return self.matrix.reshape(-1, *event_shape)

    def check(self, seen: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        """Of as many columns as examples have elements."""
        del seen
        if self.matrix.shape[1] != int(np.prod(event_shape)):
            raise ValueError(
                f"operator: expected {len(self.matrix)} rows for examples of shape {event_shape}, "
                f"got shape {self.matrix.shape}"
            )


class Mapped(AbstractMap):
    """A linear function of one example, whose answer has m elements."""

    function: Operator
    size: int = eqx.field(static=True)

    def apply(self, x: Example) -> Float[Array, " m"]:
        """A x, shape (m,)."""
        return jnp.asarray(self.function(x)).reshape(-1)

    def rows(self, event_shape: tuple[int, ...]) -> Float[Array, " m *event"]:
        """One transposed application for each row: for observations with few elements."""
        return jax.vmap(lambda row: self.transpose(row, event_shape))(jnp.eye(self.size))

    def check(self, seen: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        """Affine by its program (`is_affine`), and 0 at 0 where that can be looked at."""
        check_linear(self.function, seen, event_shape)


class Masked(AbstractMap):
    """Another map, 0 where the observation is hidden.

    Attributes:
        inner: the map.
        seen: 1 where it counts, 0 elsewhere, shape (m,).
    """

    inner: AbstractMap
    seen: Float[Array, " m"]

    def apply(self, x: Example) -> Float[Array, " m"]:
        """A x, shape (m,)."""
        return self.inner.apply(x) * self.seen

    def rows(self, event_shape: tuple[int, ...]) -> Float[Array, " m *event"]:
        """A as rows, shape (m, *event)."""
        return self.inner.rows(event_shape) * self.seen.reshape((-1,) + (1,) * len(event_shape))

    def check(self, seen: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
        """As the inner map."""
        self.inner.check(seen, event_shape)


class AbstractNoise(eqx.Module):
    """Gaussian noise of mean 0."""

    @property
    @abstractmethod
    def variance(self) -> Float[Array, " m"]:
        """Of each element, shape (m,)."""

    @property
    @abstractmethod
    def covariance(self) -> Float[Array, "m m"]:
        """Shape (m, m)."""

    @abstractmethod
    def square_and_log_det(self, residual: Float[Array, " m"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """rᵀ C⁻¹ r and log det C, shape () each, for a residual r of shape (m,)."""


class Independent(AbstractNoise):
    """Independent elements.

    Attributes:
        each: their variances, shape (m,); 1 where the observation is hidden, so that they add nothing.
    """

    each: Float[Array, " m"]

    @property
    def variance(self) -> Float[Array, " m"]:
        """`each`."""
        return self.each

    @property
    def covariance(self) -> Float[Array, "m m"]:
        """A diagonal matrix."""
        return jnp.diag(self.each)

    def square_and_log_det(self, residual: Float[Array, " m"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Element by element."""
        return jnp.sum(residual**2 / self.each), jnp.sum(jnp.log(self.each))


class Correlated(AbstractNoise):
    """A covariance matrix, shape (m, m)."""

    matrix: Float[Array, "m m"]

    @property
    def variance(self) -> Float[Array, " m"]:
        """Its diagonal."""
        return jnp.diagonal(self.matrix)

    @property
    def covariance(self) -> Float[Array, "m m"]:
        """`matrix`."""
        return self.matrix

    def square_and_log_det(self, residual: Float[Array, " m"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """By a Cholesky factor."""
        lower = jnp.linalg.cholesky(self.matrix)
        white = solve_triangular(lower, residual, lower=True)
        return dot(white, white), 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))


def check_linear(operator: Operator, seen: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless `operator` maps one example linearly to an array of shape `seen`."""
    example = jnp.zeros(event_shape)
    shape = jax.eval_shape(lambda x: operator(x), example).shape
    if shape != seen:
        raise ValueError(f"operator: expected a result of the observation's shape {seen}, got {shape}")
    if not is_affine(operator, example):
        raise ValueError(
            "operator: expected a linear map, A(x + c y) = A x + c A y, got one whose program does not say so"
        )
    offset = operator(example)
    if is_concrete(offset) and np.any(np.asarray(offset) != 0):
        size = float(np.max(np.abs(np.asarray(offset))))
        raise ValueError(f"operator: expected a linear map, A 0 = 0, got values up to {size:.3g} at 0")
