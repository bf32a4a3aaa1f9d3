"""An exact denoiser for data whose law is a mixture of Gaussians with correlations.

Each component's covariance is diagonalised once, so that its law of x_0 given x_t is known along its own principal axes
at every noise level (`components`). The mean and variance of every element are exact, for noise of one scale along all
axes. Correlations of x_0 given x_t are left out of the reverse kernels, as of all kernels here, so that these are exact
for one Gaussian of diagonal covariance, and otherwise approach the true ones as steps shrink.
"""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_finite, is_concrete
from .._numbers import check_rounding
from .._products import dot
from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion, GaussianDiffusion, require_gaussian
from ..laws import normal
from .base import AbstractDenoiser
from .components import Components
from .exact import check_weights


class FullGaussianMixture(AbstractDenoiser):
    """Exact posterior mean and variance of examples that are a mixture of k Gaussians with full covariances.

    As with `GaussianMixture`, `posterior` has the exact mean and variance of each element, and reverse steps are the
    best Gaussian ones without correlations. For one Gaussian of unit covariance they are exact.

    Args:
        locs: means, shape (k, d), in data units, of flattened examples of d elements.
        covariances: shape (k, d, d), symmetric, positive definite.
        weights: shape (k,), not negative, adding up to 1 (to 1e-4); equal unless given.

    Raises:
        ValueError: shapes that do not fit, covariances that are not positive definite, weights that are no
            probabilities; `locs` that the float type rounds by more than a tenth of a standard deviation; a diffusion
            whose scale differs between elements (when called).
    """

    locs: Float[Array, "k d"]
    variances: Float[Array, "k d"]
    bases: Float[Array, "k d d"]
    weights: Float[Array, " k"]

    def __init__(self, locs: ArrayLike, covariances: ArrayLike, weights: ArrayLike | None = None) -> None:
        check_finite("locs", locs)
        check_finite("covariances", covariances)
        self.locs = jnp.asarray(locs, dtype=float)
        if self.locs.ndim != 2:
            raise ValueError(f"locs: expected shape (k, d), got {self.locs.shape}")
        (count, size), shape = self.locs.shape, np.shape(covariances)
        if shape != (count, size, size):
            raise ValueError(f"covariances: expected shape {(count, size, size)}, got {shape}")
        # In double precision where that is possible, as eigenvalues may differ by many orders of magnitude.
        if is_concrete(covariances):
            variances, bases = np.linalg.eigh(np.asarray(covariances, dtype=np.float64))
            if not (variances > 0).all():
                raise ValueError(f"covariances: expected positive definite ones, got an eigenvalue {variances.min()}")
        else:
            variances, bases = jnp.linalg.eigh(jnp.asarray(covariances, dtype=float))
        self.variances, self.bases = jnp.asarray(variances, dtype=float), jnp.asarray(bases, dtype=float)
        self.weights = jnp.asarray(np.full(count, 1 / count) if weights is None else weights, dtype=float)
        if is_concrete(covariances):
            own = np.sqrt(np.diagonal(np.asarray(covariances, np.float64), axis1=1, axis2=2))
            check_rounding("locs", locs, own)
        if self.weights.shape != (count,):
            raise ValueError(f"weights: expected shape {(count,)}, got {self.weights.shape}")
        check_weights(self.weights)

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """Normal with the exact element-wise mean and variance of x_0 given x_t."""
        diffusion = of_one_scale(diffusion)
        shape, scale = jnp.shape(x_t), diffusion.scale
        parts = self.components.standardized(diffusion, shape)
        log_share, means = parts.given(diffusion, x_t, t)
        share, own = jnp.exp(log_share), parts.variances_of(parts.left(diffusion, t))
        mean = dot(share, means)
        variance = dot(share, own + jnp.square(means - mean)) * scale**2
        return normal(diffusion.unstandardize(mean.reshape(shape)), variance.reshape(shape))

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """That of the data: within components and between them."""
        del event_shape
        return self.components.covariance() / of_one_scale(diffusion).scale ** 2

    @property
    def components(self) -> Components:
        """The mixture."""
        return Components(self.locs, self.variances, self.bases, self.weights)

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def data(self, event_shape: tuple[int, ...] | None = None) -> dist.Distribution:
        """The law of the data that this denoiser is exact for, flattened, with its exact `log_prob`."""
        del event_shape
        roots = self.bases * jnp.sqrt(self.variances)[:, None, :]
        covariances = dot(roots, jnp.swapaxes(roots, 1, 2))
        components = dist.MultivariateNormal(self.locs, covariances)
        return dist.MixtureSameFamily(dist.Categorical(probs=self.weights), components)


def of_one_scale(diffusion: AbstractDiffusion) -> GaussianDiffusion:
    """The diffusion, once its noise is the same along every axis."""
    gaussian = require_gaussian(diffusion, "diffusion: Gaussian oracles are for GaussianDiffusion")
    if gaussian.scale.ndim:
        raise ValueError(f"diffusion: expected one scale for all elements, got shape {gaussian.scale.shape}")
    return gaussian
