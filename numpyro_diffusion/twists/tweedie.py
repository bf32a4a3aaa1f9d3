"""r at the denoised state.

ψ_t(x_t) = r(E[x_0 | x_t]): r at the denoised state, which by Tweedie's formula is a step along the score of x_t (DPS;
Chung et al. 2023, and as a twist Wu et al. 2023). *Approximate*, and too sure at high noise, as the variance of x_0
given x_t is ignored. The gradient of log ψ_t, one pass back through the denoiser, moves the kernel's mean, and tilts
the log-odds of bits. As a learned Jacobian may be anything, no element of E[x_0] moves by more than a standard
deviation of data of the noise law.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._shapes import Example, Time
from ..diffusions import GaussianDiffusion
from ..factors import AbstractFactor
from ..laws import normal, tilt, variance
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep


class Tweedie(AbstractTwist):
    """ψ_t(x_t) = r(E[x_0 | x_t]) (DPS, Chung et al. 2023; as a twist, Wu et al. 2023). Any differentiable factor.

    A baseline. It ignores the variance of x_0 given x_t, so it is too sure at high noise: one gradient through the
    denoiser a step. E[x_0] moves by at most the standard deviation that data of the noise law would have, element by
    element.
    For bits the factor is evaluated at the bits' probabilities. Not for `Delta`, which is 0 almost everywhere,
    nor for classes.
    """

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Not for known coordinates, nor for classes, between which r has no slope."""
        if not tilt.knows(process.terminal()):
            kind = type(process.diffusion).__name__
            raise ValueError(f"twist: Tweedie needs a slope of r, got {kind}; take MomentMatched or Averaged")
        if factor.fixes_elements:
            raise ValueError("twist: Tweedie has no gradient for a Delta factor; take PseudoInverse or MomentMatched")

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s led by the gradient of log ψ_t."""
        del shared

        def predict(x: Array) -> tuple[Array, Any]:
            posterior, kernel = process.denoiser.denoise(process.diffusion, x, t, s)
            return posterior.mean, (posterior, kernel)

        diffusion: Any = process.diffusion
        if not diffusion.is_gaussian:
            mean, (posterior, kernel) = predict(x_t)
            log_psi, gradient = jax.value_and_grad(factor.log_r)(mean)
            bridge = diffusion.average_bridge(x_t, tilt(posterior, gradient), t, s)
            return TwistedStep(log_psi, kernel, bridge)
        mean, pull, (_, kernel) = jax.vjp(predict, x_t, has_aux=True)
        log_psi, outer = jax.value_and_grad(factor.log_r)(mean)
        (gradient,) = pull(outer)
        shift = covariance_factor(diffusion, t) * diffusion.scale**2 * gradient
        claimed = jnp.sqrt(diffusion.schedule.noise_variance(t)) * diffusion.scale
        return TwistedStep(log_psi, kernel, shifted(process, kernel, jnp.clip(shift, -claimed, claimed), t, s))


def shifted(process: ReverseProcess, kernel: Any, shift: Float[Array, "*event"], t: Time, s: Time) -> Any:
    """The kernel with its mean moved as E[x_0] is, its variance as it is."""
    diffusion: Any = process.diffusion
    from_data, _, _ = diffusion.bridge_coefficients(t, s)
    return normal(kernel.mean + from_data * shift, variance(kernel))


def jacobian_shift(
    process: ReverseProcess, gradient: Float[Array, "*event"], claimed: Float[Array, "*event"], t: Time
) -> Float[Array, "*event"]:
    """Cov[x_0 | x_t] ∇ log ψ by the denoiser's Jacobian, (1 − ᾱ_t)/√ᾱ_t c² ∇_{x_t} log ψ_t, of bounded length.

    A learned Jacobian may be anything. Its answer is held within what a flat prior leaves, and within the total
    variance of d elements as wide as the noise law, relative to what (1 − ᾱ_t)c² makes of the same gradient.

    Args:
        process: the prior's.
        gradient: of log ψ_t in x_t, shape `event`.
        claimed: (1 − ᾱ_t)c² times its gradient in E[x_0 | x_t], shape `event`.
        t: time.
    """
    diffusion: Any = process.diffusion
    alpha_bar, noise_variance = diffusion.schedule.signal_and_noise(t)
    along = covariance_factor(diffusion, t) * diffusion.scale**2 * gradient
    ratio = jnp.minimum(1 / jnp.maximum(alpha_bar, 1e-12), along.size / jnp.maximum(noise_variance, 1e-12))
    limit, length = ratio * jnp.linalg.norm(claimed), jnp.linalg.norm(along)
    return along * jnp.minimum(1.0, limit / jnp.where(length > 0, length, 1.0))


def covariance_factor(diffusion: GaussianDiffusion, t: Time) -> Float[Array, ""]:
    """(1 − ᾱ_t)/√ᾱ_t: Cov[x_0 | x_t] v is it times ∂E[x_0 | x_t]/∂x_t (c² v), c the diffusion's scale."""
    signal = jnp.sqrt(jnp.maximum(diffusion.schedule.alpha_bar(t), 1e-12))
    return diffusion.schedule.noise_variance(t) / signal
