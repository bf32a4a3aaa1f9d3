"""Linear maps of x, observed in Gaussian noise.

r(x) = N(y; A x, Σ_y), A a matrix or a linear function, with independent or correlated noise. A normal law is
conditioned on y by a Cholesky factor of the m × m covariance Σ_y + A V Aᵀ: the density of y, the shift of the mean and
the directions in which the covariance is lowered are *exact* (the Wiener filter). Observations of one x are stacked
into one. Where an approximate V makes A V Aᵀ indefinite it may be projected, which is then part of the approximation.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from .._checks import check_broadcast, check_real, checked_location, checked_scale, is_concrete
from .._numbers import check_rounding
from .._products import dot
from .._shapes import Example
from .._structure import is_affine
from ..laws import lowered
from .base import AbstractFactor, as_function, has_values
from .operators import AbstractMap, AbstractNoise, Correlated, Dense, Independent, Mapped, Masked, Operator


class LinearGaussian(AbstractFactor):
    """r(x) = N(observation; A x, noise).

    Args:
        observation: y, of any shape `seen`.
        operator: A, as an array of shape (*seen, *event) or (y.size, x.size) that acts on flattened x, or as a linear
            callable from one example to an array of shape `seen`. Callables are checked to be linear.
        scale: standard deviation of the noise, scalar or of shape `seen`, positive; or, for a `y` of one dimension,
            its covariance matrix, shape (y.size, y.size).
        mask: which elements of `y` count, shape `seen`; all unless given. Not with a covariance matrix.

    Example:
        >>> total = nd.factors.LinearGaussian(jnp.array([14.0]), jnp.ones((1, 64)), 0.5)  # the sum of 64 pixels
        >>> (nd.load("digits") * total).event_shape
        (8, 8)

    Raises:
        ValueError: values that are not finite, shapes that do not fit, `scale` not positive, a covariance that is not
            symmetric and positive definite, an operator that is not linear, an observation that the float type rounds
            by more than a tenth of `scale`.
    """

    observation: Float[Array, "*seen"]
    operator: Array | Operator
    scale: Array
    mask: Bool[Array, "*seen"] | None

    def __init__(
        self,
        observation: ArrayLike,
        operator: ArrayLike | Operator,
        scale: ArrayLike,
        *,
        mask: ArrayLike | None = None,
    ) -> None:
        self.observation = checked_location("observation", observation)
        seen = self.observation.shape
        self.operator = as_function(operator) if callable(operator) else checked_location("operator", operator)
        got = seen if callable(operator) else self.operator.shape
        if got[: len(seen)] != seen and got[:1] != (self.observation.size,):
            raise ValueError(
                f"operator: expected shape ({self.observation.size}, x.size) or (*{seen}, *event) for an "
                f"observation of shape {seen}, got {got}"
            )
        self.scale = _noise(scale, self.observation)
        if mask is not None:
            check_real("mask", mask)
        self.mask = None if mask is None else jnp.asarray(mask, dtype=bool)
        if self.mask is not None and (self.mask.shape != seen or self.is_covariance):
            raise ValueError(
                f"mask: expected shape {seen}, that of the observation, and a scale that is no covariance; "
                f"got mask {self.mask.shape} and scale {self.scale.shape}"
            )
        deviation = jnp.sqrt(jnp.diagonal(self.scale)) if self.is_covariance else self.scale
        check_rounding("observation", observation, deviation, True if mask is None else mask)

    @property
    def is_covariance(self) -> bool:
        """Whether `scale` is a covariance matrix."""
        return self.scale.ndim == 2 and self.observation.ndim == 1

    @property
    def num_observed(self) -> int:
        """Size of the observation, hidden elements included."""
        return self.observation.size

    @property
    def seen(self) -> Float[Array, " m"]:
        """Flat mask of the observation as numbers, shape (y.size,)."""
        size = self.num_observed
        return jnp.ones(size) if self.mask is None else self.mask.reshape(-1).astype(self.observation.dtype)

    @property
    def map(self) -> AbstractMap:
        """A, 0 where the observation is hidden."""
        operator: Any = self.operator
        size = self.num_observed
        matrix = isinstance(operator, Array)
        inner: AbstractMap = Dense(operator.reshape(size, -1)) if matrix else Mapped(operator, size)
        return inner if self.mask is None else Masked(inner, self.seen)

    @property
    def noise(self) -> AbstractNoise:
        """Its law."""
        if self.is_covariance:
            return Correlated(self.scale)
        variance = jnp.broadcast_to(self.scale**2, self.observation.shape).reshape(-1)
        return Independent(jnp.where(self.seen > 0, variance, 1.0))

    def apply(self, x: Example) -> Float[Array, " m"]:
        """A x, flat, shape (y.size,), 0 where the observation is hidden."""
        return self.map.apply(x)

    def transpose(self, y: Float[Array, " m"], event_shape: tuple[int, ...]) -> Float[Array, "*event"]:
        """Aᵀ y for a flat `y`, shape `event`."""
        return self.map.transpose(y, event_shape)

    def rows(self, event_shape: tuple[int, ...]) -> Float[Array, " m *event"]:
        """A as rows, shape (y.size, *event): only for observations with few elements."""
        return self.map.rows(event_shape)

    def residual(self, x: Example) -> Float[Array, " m"]:
        """y − A x, flat, shape (y.size,), 0 where the observation is hidden."""
        return (self.observation.reshape(-1) - self.apply(x)) * self.seen

    def noise_variance(self) -> Float[Array, " m"]:
        """Variance of each element of the noise, flat; 1 where the observation is hidden."""
        return self.noise.variance

    def covariance(self, signal: Float[Array, "m m"] | None = None) -> Float[Array, "m m"]:
        """Covariance of y: that of the noise, 1 on the diagonal where it is hidden, plus A V Aᵀ = `signal`."""
        noise = self.noise.covariance
        return noise if signal is None else noise + signal

    def log_density(self, square: Float[Array, ""], log_det: Float[Array, ""]) -> Float[Array, ""]:
        """log N(y; …) from the Mahalanobis square and the log determinant over the observed elements."""
        return -0.5 * (square + log_det + jnp.sum(self.seen) * jnp.log(2 * jnp.pi))

    def log_r(self, x: Shaped[Array, "..."]) -> Float[Array, ""]:
        """log N(y; A x, noise) in nats."""
        return self.log_density(*self.noise.square_and_log_det(self.residual(x)))

    def multiply(self, law: dist.Distribution) -> tuple[Float[Array, ""], dist.Distribution] | None:
        """Condition a factorised normal on the observation: exact, by a Cholesky factor of y's covariance."""
        if not lowered.knows(law):
            return None
        rows = self.rows(law.event_shape)
        log_r, shift, directions = condition(self, self.residual(law.mean), rows * law.variance, rows)
        return log_r, lowered(law, shift, directions)

    def check(self, event_shape: tuple[int, ...], support: Constraint) -> None:
        """The operator must be a linear map from one example, with a real element, to the observation."""
        if has_values(support).all():
            self.check_kind(support, False)
        self.map.check(self.observation.shape, event_shape)

    def observation_size(self, event_shape: tuple[int, ...]) -> int:
        """`num_observed`."""
        del event_shape
        return self.num_observed

    def linear(self, event_shape: tuple[int, ...]) -> "LinearGaussian":
        """Itself."""
        del event_shape
        return self

    def pull_back(self, transform: Transform, origin: Example) -> tuple[AbstractFactor, Float[Array, ""]]:
        """A linear observation of z where T is affine."""
        if not is_affine(transform, origin):
            return super().pull_back(transform, origin)
        left = self.observation - self.apply(transform(origin)).reshape(self.observation.shape)
        pulled = LinearGaussian(left, PulledOperator(self, transform), self.scale, mask=self.mask)
        return pulled, jnp.zeros(())


class PulledOperator(eqx.Module):
    """z ↦ A (T(z) − T(0)) for an affine T; A is the identity where there is none."""

    factor: LinearGaussian | None
    transform: Transform

    def __call__(self, z: Example) -> Float[Array, "*seen"]:
        """The linear part, of the observation's shape."""
        moved = self.transform(z) - self.transform(jnp.zeros_like(z))
        return moved if self.factor is None else self.factor.apply(moved).reshape(self.factor.observation.shape)


def condition(
    factor: LinearGaussian,
    residual: Float[Array, " m"],
    covariances: Float[Array, " m *event"],
    rows: Float[Array, " m *event"],
    *,
    project: bool = False,
) -> tuple[Float[Array, ""], Float[Array, "*event"], Float[Array, " m *event"]]:
    """Condition x on y, given Cov[y, x] before noise.

    Args:
        factor: the observation.
        residual: y − A E[x], flat.
        covariances: Cov[A x, x] as rows, shape (y.size, *event).
        rows: A as rows, likewise.
        project: whether Cov[A x] may be no covariance (a network's Jacobian) and is made one.

    Returns:
        log N(y; A E[x], Cov[y]) in nats; E[x | y] − E[x], shape `event`; and directions W, shape (y.size, *event),
        with Cov[x | y] = Cov[x] − Wᵀ W.
    """
    flat, size = covariances.reshape(len(covariances), -1), len(covariances)
    signal = dot(flat, rows.reshape(size, -1).T)
    signal = (signal + signal.T) / 2
    if project:
        values, vectors = jnp.linalg.eigh(signal)
        signal = dot(vectors * jnp.clip(values, 0.0), vectors.T)
    lower = jnp.linalg.cholesky(factor.covariance(signal))
    # One solve, and none with the residual: where the covariances of all particles are the same it is made once. Two
    # solves at once, over a batch, each wait for threads of one pool, and on few cores for ever.
    whiten = solve_triangular(lower, jnp.eye(size), lower=True)
    white, directions = dot(whiten, residual), dot(whiten, flat)
    log_r = factor.log_density(dot(white, white), 2 * jnp.sum(jnp.log(jnp.diagonal(lower))))
    return log_r, dot(white, directions).reshape(rows.shape[1:]), directions.reshape(rows.shape)


class Stack(eqx.Module):
    """The operator of several observations of one x, end to end."""

    factors: tuple[LinearGaussian, ...]

    def __call__(self, x: Example) -> Float[Array, " m"]:
        """All of A x, flat."""
        return jnp.concatenate([factor.apply(x) for factor in self.factors])


def stack(factors: tuple[LinearGaussian, ...]) -> LinearGaussian:
    """The product of observations as one, exact."""
    observation = jnp.concatenate([factor.observation.reshape(-1) for factor in factors])
    if not any(factor.is_covariance for factor in factors):
        scale = jnp.sqrt(jnp.concatenate([factor.noise_variance() for factor in factors]))
        mask = jnp.concatenate([factor.seen for factor in factors]) > 0
        return LinearGaussian(observation, Stack(factors), scale, mask=mask)
    # Correlated noise has no mask: what is hidden is 0, seen as 0 with variance 1/2π, a factor of 1.
    seen = jnp.concatenate([factor.seen for factor in factors])
    noise = jax.scipy.linalg.block_diag(*[factor.covariance() for factor in factors])
    noise = jnp.where(jnp.diag(seen == 0), 1 / (2 * jnp.pi), noise)
    return LinearGaussian(jnp.where(seen > 0, observation, 0.0), Stack(factors), noise)


def _noise(scale: ArrayLike, observation: Array) -> Array:
    array = checked_location("scale", scale)
    if array.shape == (observation.size, observation.size) and observation.ndim == 1 and array.ndim == 2:
        if is_concrete(array):
            matrix = np.asarray(array, dtype=np.float64)
            least = np.linalg.eigvalsh((matrix + matrix.T) / 2).min()
            if not np.allclose(matrix, matrix.T, rtol=1e-5) or least <= 1e-7 * np.abs(matrix).max():
                raise ValueError(
                    "scale: expected a symmetric positive definite covariance, "
                    f"got one whose smallest eigenvalue is {least:.3g}"
                )
        return array
    check_broadcast("scale", array.shape, observation.shape)
    return checked_scale("scale", scale)
