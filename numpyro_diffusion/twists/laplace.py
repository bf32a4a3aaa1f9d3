"""Any factor: x_0 given x_t as a normal law whose covariance is the prior's own, narrowed by what x_t says.

x_0 given x_t is taken for a normal law with the denoiser's mean and the covariance V_t of the best linear estimate
(`covariance`), so that ψ_t(x_t) = ∫ r(x_0) N(x_0; E[x_0 | x_t], V_t) dx_0. Gaussian observations are integrated in
closed form, all else by Laplace's approximation with importance sampling (`integrals`; Tierney and Kadane 1986).
*Exact* for Gaussian data and Gaussian observations, *approximate* elsewhere, where weights make up for it.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .. import laws
from .._checks import check_count
from .._products import dot, tensordot
from .._shapes import Example, Time
from ..diffusions import require_gaussian
from ..factors import AbstractFactor, LinearGaussian, Product, factors_of
from ..factors.linear import stack
from ..laws import LoweredNormal, normal
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep
from .covariance import Covariance, Observed, covariance_at, observe
from .integrals import integrate, white_draws
from .linear import as_linear
from .tweedie import jacobian_shift


class Laplace(AbstractTwist):
    """ψ_t(x_t) = ∫ r(x_0) N(x_0; E[x_0|x_t], V_t) dx_0 for any factor, V_t from the prior's own covariance.

    V_t = (C⁻¹ + SNR_t)⁻¹ with C the covariance of the prior (`nd.ReverseProcess.moments`), which is at most C and at
    most what a flat prior leaves: no derivative of the denoiser is trusted. Gaussian observations and known elements
    in r are multiplied in closed form (the Wiener filter), everything else by Laplace's approximation, corrected by
    importance sampling with `num_draws` fixed draws; *exact* for Gaussian data and Gaussian observations. Where C is
    not known in full, as for images, V_t is (1 − ᾱ_t)c² and proposals move along the denoiser's Jacobian.

    Args:
        num_draws: of each of the two laws; for examples of up to 32 elements.
        num_newton: Newton steps that look for the mode, at most.

    Raises:
        ValueError: counts below 1.
    """

    num_draws: int = eqx.field(static=True)
    num_newton: int = eqx.field(static=True)

    def __init__(self, num_draws: int = 16, *, num_newton: int = 12) -> None:
        self.num_draws = check_count("num_draws", num_draws)
        self.num_newton = check_count("num_newton", num_newton)

    @property
    def needs_moments(self) -> bool:
        """True."""
        return True

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Only for Gaussian diffusions."""
        require_gaussian(process.diffusion, "twist: Laplace is for a GaussianDiffusion")

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """The linear part of the factor with its rows, the rest, and white draws."""
        linear, rest = split(process, factor)
        rows = None if linear is None else linear.rows(process.event_shape)
        return linear, rows, rest, white_draws(self.num_draws, math.prod(process.event_shape))

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s moved as E[x_0 | x_t, r] is."""
        diffusion: Any = process.diffusion
        linear, rows, rest, noise = shared
        covariance = covariance_at(process, t)
        moments: Any = process.moments
        whole = moments.basis is not None

        def predict(x: Array) -> tuple[Array, Any]:
            posterior, kernel = process.denoiser.denoise(diffusion, x, t, s)
            return posterior.mean, kernel

        if whole:
            mean, kernel = predict(x_t)
        else:
            mean, pull, kernel = jax.vjp(predict, x_t, has_aux=True)
        log_psi, centre, observed = jnp.zeros(()), mean, None
        if linear is not None:
            observed = observe(covariance, linear, rows, root=rest is not None)
            log_psi, centre = _conditioned(linear, observed, mean)
        if rest is not None:
            left = covariance if observed is None else observed.covariance
            found = integrate(rest.log_r, centre, left, noise, self.num_newton)
            log_psi, centre = log_psi + found.log_psi, found.mean
        shift = centre - mean
        if not whole:
            (gradient,) = pull(shift / covariance.variance)
            shift = jacobian_shift(process, gradient, shift, t)
        return TwistedStep(log_psi, kernel, _proposal(process, kernel, shift, covariance, observed, t, s))


def split(process: ReverseProcess, factor: AbstractFactor) -> tuple[LinearGaussian | None, AbstractFactor | None]:
    """The linear-Gaussian part of a factor as one observation, known elements with little noise, and the rest."""
    sizes = [(part, part.observation_size(process.event_shape)) for part in factors_of(factor)]
    linear = tuple(as_linear(process, part) for part, size in sizes if size is not None)
    rest = tuple(part for part, size in sizes if size is None)
    one = None if not linear else linear[0] if len(linear) == 1 else stack(linear)
    return one, None if not rest else rest[0] if len(rest) == 1 else Product(rest)


def _conditioned(linear: LinearGaussian, observed: Observed, mean: Array) -> tuple[Array, Array]:
    """log ∫ of the observation in nats, and E[x_0 | x_t, y]."""
    residual = linear.residual(mean)
    white = solve_triangular(observed.lower, residual, lower=True)
    return linear.log_density(dot(white, white), observed.log_det), mean + tensordot(residual, observed.gain, 1)


def _proposal(
    process: ReverseProcess,
    kernel: Any,
    shift: Array,
    covariance: Covariance,
    observed: Observed | None,
    t: Array,
    s: Array,
) -> dist.Distribution:
    """The kernel moved as x_0 is, and narrower as a kernel of this covariance would become by the observation."""
    if observed is not None:
        return conditioned_kernel(process, kernel, shift, covariance.variance, observed.directions, t, s)
    diffusion: Any = process.diffusion
    return normal(kernel.mean + diffusion.bridge_coefficients(t, s)[0] * shift, laws.variance(kernel))


def conditioned_kernel(
    process: ReverseProcess,
    kernel: Any,
    shift: Float[Array, "*event"],
    variance: Float[Array, "*event"],
    directions: Float[Array, " m *event"],
    t: Time,
    s: Time,
) -> LoweredNormal:
    """The kernel to x_s moved as x_0 is, and narrower as one of this variance of x_0 becomes by an observation.

    Args:
        process: of x.
        kernel: p(x_s | x_t).
        shift: of x_0, shape `event`.
        variance: of the elements of x_0 given x_t, shape `event`.
        directions: rows W by whose Wᵀ W the covariance of x_0 is lowered, shape (m, *event).
        t: from where.
        s: to where.
    """
    diffusion: Any = process.diffusion
    from_data, _, bridge = diffusion.bridge_coefficients(t, s)
    loc = kernel.mean + from_data * shift
    matched = jnp.sqrt(bridge * diffusion.scale**2 + from_data**2 * variance)
    scale = jnp.broadcast_to(jnp.sqrt(laws.variance(kernel)), loc.shape)
    return LoweredNormal(loc, scale, from_data * directions / matched)
