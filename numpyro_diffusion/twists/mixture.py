"""A twist for priors that are about a mixture of Gaussians: x_0 given x_t as a mixture too.

If x_0 is a mixture of Gaussians, so is x_0 given x_t, and an observation y of A x_0 in Gaussian noise conditions each
component in closed form: ψ_t(x_t) = Σ_k P(k | x_t) N(y; A m_k, Σ_y + A V_k Aᵀ), which is E[r(x_0) | x_t], *exactly*.
Any other r is integrated over each component by Laplace's approximation (`integrals`). The proposal is the kernel moved
by the mean of that posterior. For a network about a mixture the components' means move by what it adds, and ψ_t is
*approximate*, but knows where the modes are.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .. import laws
from .._checks import check_count
from .._products import dot, einsum
from .._shapes import Example, Time
from ..denoisers.components import Components
from ..diffusions import require_gaussian
from ..factors import AbstractFactor, LinearGaussian
from ..laws import normal
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep
from .covariance import Covariance
from .integrals import integrate, white_draws
from .laplace import conditioned_kernel, split


class Level(NamedTuple):
    """What all particles share at one step of a linear observation: each component's law given x_t, but for its mean.

    Attributes:
        gain: from a residual to x_0, shape (k, m, d), data units.
        whiten: from a residual to white noise, shape (k, m, m): a product with it takes far less time, for many
            particles, than to solve for each.
        log_det: of these, shape (k,).
        variance: of the elements of x_0, averaged over components, shape (d,).
        directions: rows W by whose Wᵀ W the averaged covariance of x_0 is lowered, shape (m, d).
        left: rows H by which I − Hᵀ H of the whitened covariance of a component is left, shape (k, m, d).
    """

    gain: Float[Array, "k m d"]
    whiten: Float[Array, "k m m"]
    log_det: Float[Array, " k"]
    variance: Float[Array, " d"]
    directions: Float[Array, "m d"]
    left: Float[Array, "k m d"]


class Shared(NamedTuple):
    """What all particles and steps share.

    Attributes:
        linear: the linear part of r, or None.
        rows: of it, in the coordinates of each component, shape (k, m, d).
        rest: of r, or None.
        parts: the components in units of the noise law.
        scale: of the noise law, shape (d,).
        noise: white draws for the integral of the rest.
    """

    linear: LinearGaussian | None
    rows: Float[Array, "k m d"] | None
    rest: AbstractFactor | None
    parts: Components
    scale: Float[Array, " d"]
    noise: Float[Array, "draws d"]


class MixtureMatched(AbstractTwist):
    """ψ_t(x_t) = Σ_k P(k | x_t) ∫ r(x_0) N(x_0; m_k, V_k) dx_0, for priors with components.

    The components' laws of x_0 given x_t are those of the mixture that the denoiser is exact for, or that its network
    is about: all of them moved by as much as the network moves their mean. Gaussian observations and known elements are
    *exact* for the mixture itself, everything else is integrated over each component as `Laplace` does over one law. It
    knows the modes of x_0, and how wide each is, which `Laplace` and `MomentMatched`, that take x_0 for a Gaussian, do
    not; and it asks for no derivative of the denoiser.

    Args:
        num_draws: of each of two laws, for what is not Gaussian, of examples of up to 32 elements.
        num_newton: Newton steps that look for the mode of it, at most. Where too few make an end of the search, ψ_t is
            poor in a way that hardly shows (`tests/denoisers/test_separable.py` has a case that needs more than six).

    Raises:
        ValueError: a prior without components; counts below 1.
    """

    num_draws: int = eqx.field(static=True)
    num_newton: int = eqx.field(static=True)

    def __init__(self, num_draws: int = 8, *, num_newton: int = 12) -> None:
        self.num_draws = check_count("num_draws", num_draws)
        self.num_newton = check_count("num_newton", num_newton)

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Only for priors with components."""
        require_gaussian(process.diffusion, "twist: MixtureMatched is for a GaussianDiffusion")
        if process.denoiser.components is None:
            raise ValueError(
                f"twist: MixtureMatched needs a prior about a mixture of Gaussians, got {process.denoiser.said}"
            )

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Shared:
        """The parts of r, and the components."""
        linear, rest = split(process, factor)
        diffusion: Any = process.diffusion
        parts: Any = process.denoiser.components
        parts = parts.standardized(diffusion, process.event_shape)
        scale = jnp.broadcast_to(diffusion.scale, process.event_shape).reshape(-1)
        rows = None
        if linear is not None:
            flat = linear.rows(process.event_shape).reshape(linear.num_observed, -1)
            rows = parts.turned_rows(flat * scale)
        return Shared(linear, rows, rest, parts, scale, white_draws(self.num_draws, math.prod(process.event_shape)))

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Shared, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s moved as E[x_0 | x_t, r] is."""
        diffusion: Any = process.diffusion
        linear, parts, scale, shape = shared.linear, shared.parts, shared.scale, process.event_shape
        posterior, kernel = process.denoiser.denoise(diffusion, x_t, t, s)
        left = parts.left(diffusion, t)
        log_share, means = parts.given(diffusion, x_t, t)
        means, mean = means * scale, posterior.mean.reshape(-1)
        centres = mean + means - dot(jnp.exp(log_share), means)  # a network moves all of them
        level, log_each = None, log_share
        if linear is not None:
            level = _level(linear, shared.rows, parts, scale, left)
            residual = jax.vmap(lambda centre: linear.residual(centre.reshape(shape)))(centres)
            white = einsum("kij,kj->ki", level.whiten, residual)
            log_each = log_each + jax.vmap(linear.log_density)(jnp.sum(white**2, 1), level.log_det)
            centres = centres + einsum("kmd,km->kd", level.gain, residual)
        if shared.rest is not None:
            log_psi, centres = self._integrated(shared, _roots(parts, left, scale, level), centres, shape)
            log_each = log_each + log_psi
        log_psi = logsumexp(log_each)
        shift = (dot(jnp.exp(log_each - log_psi), centres) - mean).reshape(shape)
        return TwistedStep(log_psi, kernel, _proposal(process, kernel, shift, level, t, s))

    def _integrated(self, shared: Shared, roots: Array, centres: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Of the rest of r over each component: log of the integral in nats, and the mean."""
        assert shared.rest is not None
        log_r = shared.rest.log_r

        def of_one(centre: Array, root: Array) -> tuple[Array, Array]:
            law = Covariance(root, shape)
            found = integrate(log_r, centre.reshape(shape), law, shared.noise, self.num_newton)
            return found.log_psi, found.mean.reshape(-1)

        return jax.vmap(of_one)(centres, roots)


def _proposal(
    process: ReverseProcess, kernel: Any, shift: Array, level: Level | None, t: Time, s: Time
) -> dist.Distribution:
    """The kernel moved as x_0 is, and narrower where an observation lowers the covariance."""
    diffusion: Any = process.diffusion
    if level is None:
        return normal(kernel.mean + diffusion.bridge_coefficients(t, s)[0] * shift, laws.variance(kernel))
    directions = level.directions.reshape(-1, *shift.shape)
    return conditioned_kernel(process, kernel, shift, level.variance.reshape(shift.shape), directions, t, s)


def _level(linear: LinearGaussian, rows: Any, parts: Components, scale: Array, left: Array) -> Level:
    """All of it from the time alone."""
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
    half = einsum("kij,kjd->kid", whiten, rows * jnp.sqrt(left)[:, None])
    return Level(gain, whiten, log_det, variance, directions, half)


def _roots(parts: Components, left: Array, scale: Array, level: Level | None) -> Array:
    """L of the covariance L Lᵀ of each component in data units, shape (k, d, d), or (k, d) for diagonal ones."""
    deviation = jnp.sqrt(left)
    if level is None:
        if parts.bases is None:
            return deviation * scale
        return parts.bases * deviation[:, None] * scale[:, None]
    own = jnp.eye(len(scale)) - einsum("kmd,kme->kde", level.left, level.left)
    values, vectors = jnp.linalg.eigh(own)
    roots = deviation[:, :, None] * vectors * jnp.sqrt(jnp.clip(values, 0.0))[:, None]
    return parts.turned_roots(roots) * scale[:, None]
