"""x_0 given x_t as a Gaussian: the denoiser's mean, and the covariance of the best linear estimate's error.

With C the covariance of x_0, the best linear estimate of x_0 from x_t has errors of covariance V_t = (C⁻¹ + SNR_t I)⁻¹
in units of the noise law: at least Cov[x_0 | x_t] on average over x_t, and equal to it for Gaussian data
(`numpyro_diffusion.moments`). About the denoiser's mean it makes x_0 given x_t a normal law that asks for no derivative
of the denoiser and is of one shape for all particles. Linear observations condition it exactly, by a Cholesky factor
that is computed once for each step.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .._products import dot
from .._shapes import Time
from ..factors import LinearGaussian
from ..process import ReverseProcess


class Covariance(NamedTuple):
    """A covariance V = L Lᵀ of x_0, the same for all particles at one step.

    Attributes:
        root: L in data units, shape (d, d), or (d,) for a diagonal one.
        shape: of one example.
    """

    root: Float[Array, "d d"] | Float[Array, " d"]
    shape: tuple[int, ...]

    def lift(self, z: Float[Array, " d"]) -> Float[Array, "*event"]:
        """L z as an example, from white noise of shape (d,)."""
        flat = self.root * z if self.root.ndim == 1 else dot(self.root, z)
        return flat.reshape(self.shape)

    def apply(self, x: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """V x, both of the shape of an example."""
        flat = x.reshape(-1)
        if self.root.ndim == 1:
            return (self.root**2 * flat).reshape(self.shape)
        return dot(self.root, dot(self.root.T, flat)).reshape(self.shape)

    @property
    def variance(self) -> Float[Array, "*event"]:
        """Variance of each element, shape `event`."""
        each = self.root**2 if self.root.ndim == 1 else jnp.sum(self.root**2, 1)
        return each.reshape(self.shape)


def covariance_at(process: ReverseProcess, t: Time) -> Covariance:
    """Covariance of x_0 given x_t by the prior's own covariance: at most that, and at most what a flat prior leaves."""
    diffusion: Any = process.diffusion
    moments: Any = process.moments
    scale = jnp.broadcast_to(diffusion.scale, process.event_shape).reshape(-1)
    deviation = jnp.sqrt(moments.given(diffusion.schedule.log_snr(t)))
    if moments.basis is None:
        return Covariance(scale * deviation, process.event_shape)
    return Covariance(scale[:, None] * moments.basis * deviation, process.event_shape)


class Observed(NamedTuple):
    """A linear observation of x_0 ~ N(mean, V), all but what hangs on the mean; computed once for a step.

    Attributes:
        gain: V Aᵀ S⁻¹ with S = noise + A V Aᵀ, as rows, shape (m, *event).
        lower: Cholesky factor of S, shape (m, m).
        log_det: log determinant of S.
        covariance: the covariance that is left, V − V Aᵀ S⁻¹ A V.
        directions: rows W with V − Wᵀ W left, shape (m, *event).
    """

    gain: Float[Array, " m *event"]
    lower: Float[Array, "m m"]
    log_det: Float[Array, ""]
    covariance: Covariance
    directions: Float[Array, " m *event"]


def observe(covariance: Covariance, factor: LinearGaussian, rows: Float[Array, " m *event"], *, root: bool) -> Observed:
    """Condition on a linear observation; the root of what is left is computed only if asked for."""
    flat = rows.reshape(len(rows), -1)
    white = flat * covariance.root if covariance.root.ndim == 1 else dot(flat, covariance.root)  # A L
    total = factor.covariance(dot(white, white.T))
    lower = jnp.linalg.cholesky(total)
    covariances = (white * covariance.root if covariance.root.ndim == 1 else dot(white, covariance.root.T)).reshape(
        rows.shape
    )
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    both = jnp.concatenate([white, covariances.reshape(len(rows), -1)], 1)
    half, directions = jnp.split(solve_triangular(lower, both, lower=True), 2, 1)
    gain = solve_triangular(lower, directions, lower=True, trans=1).reshape(rows.shape)
    left = _left(covariance, half) if root else covariance
    return Observed(gain, lower, log_det, left, directions.reshape(rows.shape))


def _left(covariance: Covariance, half: Array) -> Covariance:
    """L (I − Hᵀ H)^{1/2}, for H of singular values below 1."""
    values, vectors = jnp.linalg.eigh(jnp.eye(half.shape[1]) - dot(half.T, half))
    root = jnp.diag(covariance.root) if covariance.root.ndim == 1 else covariance.root
    return Covariance(dot(root, vectors) * jnp.sqrt(jnp.clip(values, 0.0)), covariance.shape)
