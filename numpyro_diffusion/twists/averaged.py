"""Any factor of bits: r averaged over the denoiser's independent bits."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.discrete import BernoulliLogits

from .._checks import check_count
from ..diffusions import BinomialDiffusion
from ..diffusions.binomial import posterior_logits
from ..factors import AbstractFactor, Delta, Elementwise, Gaussian, Product, factors_of
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep
from .bits import average, points


class Averaged(AbstractTwist):
    """ψ_t(x_t) = E[r(b)] over the denoiser's independent bits b of x_0 given x_t, for any factor of bits.

    `Elementwise` factors and known bits in r are multiplied in closed form. The rest is averaged over all states of up
    to 10 bits; *exact* where the bits of x_0 given x_t are independent. More bits are averaged over 4 `num_draws`
    fixed draws of laws that adapt to r, so that ψ is a positive function of x_t with no noise of its own. The proposal
    is the kernel for x_0 given x_t with the bits that r wants, as independent ones: at most five from the denoiser's in
    logits, so that no state is excluded. No derivative of the denoiser is taken; r is differentiated once.

    Args:
        num_draws: of each of four laws, for examples of more than 10 bits.

    Raises:
        ValueError: a count below 1.
    """

    num_draws: int = eqx.field(static=True)

    def __init__(self, num_draws: int = 32) -> None:
        self.num_draws = check_count("num_draws", num_draws)

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """For bits only."""
        del factor
        if not isinstance(process.diffusion, BinomialDiffusion):
            kind = type(process.diffusion).__name__
            raise ValueError(f"twist: Averaged is for a BinomialDiffusion, got {kind}")

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """The states or fixed uniform numbers at which to look."""
        del factor
        return points(self.num_draws, math.prod(process.event_shape))

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Array, t: Array, s: Array
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s with the bits that r wants."""
        posterior, kernel = process.denoiser.denoise(process.diffusion, x_t, t, s)
        log_psi, law, rest = multiplied_out(factor, posterior)
        found, logits = averaged_bits(rest, law, shared)
        bits = BernoulliLogits(logits, validate_args=False).to_event(jnp.ndim(logits))
        return TwistedStep(log_psi + found, kernel, process.diffusion.average_bridge(x_t, bits, t, s))


def averaged_bits(factor: AbstractFactor, law: Any, at: Array) -> tuple[Array, Array]:
    """log E[r] in nats over independent bits, some perhaps known, and the logits that r wants, shape `event`."""
    logits = posterior_logits(law)
    found = average(lambda b: factor.log_r(b.reshape(logits.shape)), logits.reshape(-1), at)
    return found.log_psi, found.logits.reshape(logits.shape)


def multiplied_out(factor: AbstractFactor, law: Any) -> tuple[Array, dist.Distribution, Product]:
    """Multiply what factorises in closed form, known elements last: the integral, the product and what is left."""
    parts = sorted(factors_of(factor), key=lambda part: isinstance(part, Delta))
    total, rest = jnp.zeros(()), []
    for part in parts:
        product = part.multiply(law) if isinstance(part, Elementwise | Gaussian | Delta) else None
        if product is None:
            rest.append(part)
        else:
            total, law = total + product[0], product[1]
    return total, law, Product(tuple(rest))
