"""The covariance of a prior's draws: what a twist may claim of x_0 before it has looked at x_t.

For data with covariance C and Gaussian noise, the best linear estimate of x_0 from x_t has errors of covariance
(C⁻¹ + SNR_t I)⁻¹, in units in which the noise law is N(0, 1). On average over x_t the covariance of x_0 given x_t is at
most that, whatever the law of the data, and for Gaussian data it is that (the Wiener filter; Kailath, Sayed and Hassibi
2000, §3.2). Of n draws of d elements C has its correlations shrunk by d/(n + d), so that fewer draws than elements do
not make it singular.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._products import dot

LARGEST_WHOLE = 256  # elements of x up to which its covariance is kept as a matrix
# Eigenvalues below this, relative to the noise law's variance, are those of rounding.
_LEAST = 1e-8


class Moments(eqx.Module):
    """The covariance of x_0 under a prior, flat and in units in which the noise law is N(0, 1).

    Attributes:
        variances: its eigenvalues, shape (d,); with no `basis`, the variance of each element.
        basis: its eigenvectors as columns, shape (d, d), or None for a diagonal covariance.
    """

    variances: Array
    basis: Array | None = None

    def given(self, log_snr: Float[Array, ""]) -> Float[Array, " d"]:
        """Eigenvalues of the covariance of the linear estimate's error at this log-SNR, shape (d,)."""
        return self.variances / (1 + self.variances * jnp.exp(log_snr))


def moments_of_covariance(covariance: Float[Array, "d d"]) -> Moments:
    """From a covariance, shape (d, d)."""
    variances, basis = jnp.linalg.eigh(covariance)
    return Moments(jnp.maximum(variances, _LEAST), basis)


def moments_of_draws(z: Float[Array, "n d"]) -> Moments:
    """From draws in units of the noise law, shape (n, d), correlations shrunk by d/(n + d)."""
    centred = z - jnp.mean(z, 0)
    return moments_of_covariance(_shrunk(dot(centred.T, centred), *z.shape))


def moments_of_data(z: np.ndarray) -> Moments:
    """The same from an array on the host, shape (n, d), n ≥ 2: nothing has to be compiled."""
    z = np.asarray(z, np.float64)
    centred = z - z.mean(0)
    variances, basis = np.linalg.eigh(_shrunk(centred.T @ centred, *z.shape))
    return Moments(jnp.asarray(np.maximum(variances, _LEAST), float), jnp.asarray(basis, float))


def _shrunk(products: Any, count: int, size: int) -> Any:
    """A covariance from the sum of products of deviations, shape (d, d), of arrays of either kind."""
    covariance = products / (count - 1)
    own = covariance * np.eye(size, dtype=covariance.dtype)
    return covariance + size / (count + size) * (own - covariance)


def unit_moments(size: int) -> Moments:
    """Of data whose elements vary as the noise law does, each by itself."""
    return Moments(jnp.ones(size))
