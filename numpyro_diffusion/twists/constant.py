"""The 2015 paper's two choices: r of the noisy state itself.

Sohl-Dickstein et al. (2015, §2.5) make two choices for r at noise level t: r(x_t) itself (eq. 23), and
r(x_t)^{(T−t)/T}, with which the chain starts from noise. Both are *approximate* as E[r(x_0) | x_t], since x_t is not
x_0, so that as twists they need many particles. The product of a kernel with r itself is exact where there is a closed
form; otherwise, and for powers of r, the kernel is perturbed by ∇ log r at its mean (Table App. 1 there).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from .._shapes import Example, Time
from ..factors import AbstractFactor
from ..laws import elements, tilt
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep


class Constant(AbstractTwist):
    """ψ_t(x_t) = r(x_t): constant r, multiplied as in `nd.samplers.Perturbed`.

    Cheap, no gradient through the denoiser; far from E[r(x_0) | x_t] at high noise, so that weights vary much.
    Source: [2015] §2.5, eq. 23.
    """

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s times r(x_s)."""
        del shared
        kernel = process.inner_kernel(x_t, t, s)
        log_psi = factor.log_r(jnp.asarray(x_t, dtype=process.diffusion.value_type))
        return TwistedStep(log_psi, kernel, multiplied(factor, kernel))


class Annealed(AbstractTwist):
    """ψ_t(x_t) = r(x_t)^{(T−t)/T}, so that the chain starts from noise itself ([2015] §2.5)."""

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s times r(x_s)^{(T−s)/T}."""
        del shared
        power = lambda t: 1 - jnp.asarray(t, dtype=float) / process.num_steps
        kernel = process.inner_kernel(x_t, t, s)
        log_psi = power(t) * factor.log_r(jnp.asarray(x_t, dtype=process.diffusion.value_type))
        return TwistedStep(log_psi, kernel, multiplied(factor, kernel, power(s)))


def multiplied(
    factor: AbstractFactor, kernel: dist.Distribution, power: Float[Array, ""] | None = None
) -> dist.Distribution:
    """The kernel times r^power: in closed form for r itself where there is one.

    Otherwise it is perturbed by ∇ log r at its mean, which needs r to be smooth on the scale of the kernel. Source:
    [2015] Table App. 1.

    Raises:
        ValueError: no closed form, and a law without a rule for a slope, as that of classes.
    """
    product = factor.multiply(kernel) if power is None else None
    if product is not None:
        return product[1]
    if not tilt.knows(kernel):
        got = f"{'' if power is None else 'a power of '}{type(factor).__name__}"
        kind = type(elements(kernel)).__name__
        raise ValueError(f"factor: expected a closed form of r times a law of {kind}, which no slope tilts, got {got}")
    gradient = jax.grad(factor.log_r)(kernel.mean)
    return tilt(kernel, gradient if power is None else power * gradient)
