"""A twist for priors that are about a mixture of Gaussians: x_0 given x_t as a mixture too.

If x_0 is a mixture of Gaussians, so is x_0 given x_t, and an observation y of A x_0 in Gaussian noise conditions each
component in closed form: ψ_t(x_t) = Σ_k P(k | x_t) N(y; A m_k, Σ_y + A V_k Aᵀ), which is E[r(x_0) | x_t], *exactly*.
The proposal is the kernel moved by the mean of that posterior. For a network about a mixture the components' means move
by what it adds, and ψ_t is *approximate*, but knows where the modes are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .._products import dot, einsum
from .._shapes import Example, Time
from ..denoisers.components import Components
from ..diffusions import require_gaussian
from ..factors import AbstractFactor, LinearGaussian
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep
from .laplace import conditioned_kernel, split


class Level(NamedTuple):
    """What all particles share at one step: each component's law given x_t, but for its mean, and of y.

    Attributes:
        gain: from a residual to x_0, shape (k, m, d), data units.
        whiten: from a residual to white noise, shape (k, m, m): a product with it takes far less time, for many
            particles, than to solve for each.
        log_det: of these, shape (k,).
        variance: of the elements of x_0, averaged over components, shape (d,).
        directions: rows W by whose Wᵀ W the averaged covariance of x_0 is lowered, shape (m, d).
    """

    gain: Float[Array, "k m d"]
    whiten: Float[Array, "k m m"]
    log_det: Float[Array, " k"]
    variance: Float[Array, " d"]
    directions: Float[Array, "m d"]


class MixtureMatched(AbstractTwist):
    """ψ_t(x_t) = Σ_k P(k | x_t) ∫ r(x_0) N(x_0; m_k, V_k) dx_0 of Gaussian observations, for priors with components.

    The components' laws of x_0 given x_t are those of the mixture that the denoiser is exact for, or that its network
    is about: all of them moved by as much as the network moves their mean. *Exact* for the mixture itself: it knows the
    modes of x_0 that `Laplace` and `MomentMatched`, which take x_0 for a Gaussian, do not, and asks for no derivative.

    Raises:
        ValueError: a prior without components, factors other than `Gaussian`, `LinearGaussian` and `Delta`.
    """

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Only for priors with components, and Gaussian observations."""
        require_gaussian(process.diffusion, "twist: MixtureMatched is for a GaussianDiffusion")
        if process.denoiser.components is None:
            raise ValueError(
                f"twist: MixtureMatched needs a prior about a mixture of Gaussians, got {process.denoiser.said}"
            )
        if (rest := split(process, factor)[1]) is not None:
            raise ValueError(f"twist: MixtureMatched is for Gaussian observations, got {type(rest).__name__}")

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """The observation, its rows in the coordinates of each component, and the components."""
        linear, _ = split(process, factor)
        diffusion: Any = process.diffusion
        parts: Any = process.denoiser.components
        assert linear is not None
        parts = parts.standardized(diffusion, process.event_shape)
        scale = jnp.broadcast_to(diffusion.scale, process.event_shape).reshape(-1)
        rows = linear.rows(process.event_shape).reshape(linear.num_observed, -1) * scale
        return linear, parts.turned_rows(rows), parts, scale

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s moved as E[x_0 | x_t, r] is."""
        diffusion: Any = process.diffusion
        linear, rows, parts, scale = shared
        posterior, kernel = process.denoiser.denoise(diffusion, x_t, t, s)
        level = _level(linear, rows, parts, scale, diffusion, t)
        log_share, means = parts.given(diffusion, x_t, t)
        means = means * scale
        mixed = dot(jnp.exp(log_share), means)
        network = (posterior.mean - diffusion.loc).reshape(-1) - mixed  # what it adds
        loc = jnp.broadcast_to(diffusion.loc, process.event_shape)
        residual = jax.vmap(lambda mean: linear.residual(loc + (mean + network).reshape(loc.shape)))(means)
        white = einsum("kij,kj->ki", level.whiten, residual)
        seen = jax.vmap(linear.log_density)(jnp.sum(white**2, 1), level.log_det)
        log_psi = logsumexp(log_share + seen)
        share = jnp.exp(log_share + seen - log_psi)
        shift = dot(share, means + einsum("kmd,km->kd", level.gain, residual)) - mixed
        shape = process.event_shape
        directions = level.directions.reshape(-1, *shape)
        proposal = conditioned_kernel(
            process, kernel, shift.reshape(shape), level.variance.reshape(shape), directions, t, s
        )
        return TwistedStep(log_psi, kernel, proposal)


def _level(linear: LinearGaussian, rows: Array, parts: Components, scale: Array, diffusion: Any, t: Array) -> Level:
    """All of it from the time alone."""
    left = parts.left(diffusion, t)
    covariances = parts.turned_back(rows * left[:, None]) * scale  # A V_k
    totals = jax.vmap(lambda rows, left: linear.covariance(dot(rows * left, rows.T)))(rows, left)
    lower = jnp.linalg.cholesky(totals)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=1, axis2=2)), 1)
    identity = jnp.eye(rows.shape[1], dtype=rows.dtype)
    whiten = jax.vmap(lambda lower: solve_triangular(lower, identity, lower=True))(lower)
    gain = einsum("kij,kil,kld->kjd", whiten, whiten, covariances)
    weights = parts.weights
    whole = jnp.linalg.cholesky(einsum("k,kij->ij", weights, totals))
    directions = solve_triangular(whole, einsum("k,kmd->md", weights, covariances), lower=True)
    variance = dot(weights, parts.variances_of(left)) * scale**2
    return Level(gain, whiten, log_det, variance, directions)
