"""Any factor of bits, classes or columns of several kinds: r averaged over the denoiser's independent ones.

E[r(x_0) | x_t] is a sum over the values of x_0, weighted by its law given x_t, of which the denoiser says the single
elements. Factors of single elements are summed in closed form, the rest over all states where they are few, and
otherwise over fixed draws, for bits and classes from laws that adapt to r. *Exact* where elements of x_0 given x_t are
independent and all states are summed; *approximate* otherwise, but always a positive function of x_t without noise of
its own, so that the evidence of SMC stays unbiased. Nothing here needs a derivative of the denoiser.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Real

from .._checks import check_count
from .._shapes import Example, Time
from ..factors import AbstractFactor, Product, factors_of
from ..laws import Categories, Mixed, Operation, PartlyKnown, bit_logits, bits, categories, class_logits
from ..laws.bits import KINDS as BITS
from ..process import ReverseProcess
from . import classes, draws
from .base import AbstractTwist, TwistedStep
from .bits import average, points

Averages = tuple[Float[Array, ""], dist.Distribution]  # log E[r] in nats, and the law that r leads


class Averaged(AbstractTwist):
    """ψ_t(x_t) = E[r(b)] over the denoiser's independent bits or classes b of x_0 given x_t, for any factor of them.

    `Elementwise` and `Categorical` factors and known elements in r are multiplied in closed form. The rest is averaged
    over all states of up to 10 bits; *exact* where the bits of x_0 given x_t are independent. More bits are averaged
    over 4 `num_draws` fixed draws of laws that adapt to r, so that ψ is a positive function of x_t with no noise of its
    own. The proposal is the kernel for x_0 given x_t with the bits that r wants, as independent ones: at most five from
    the denoiser's in logits, so that no state is excluded. No derivative of the denoiser is taken; r of bits is
    differentiated once. Classes are averaged over all states where these are at most 1,024, a masked element counting
    as one class more, and over draws without any derivative where they are more.

    Columns of several kinds (`MixedDiffusion`) are averaged over 4 `num_draws` fixed draws of all of them, and the
    proposal has the mean of each real column, and the probabilities of each bit and class, that the weighted draws
    say, as far as there are enough effective ones.

    Args:
        num_draws: of each of four laws, for examples of more than 10 bits, or of more than 1,024 states of classes.

    Raises:
        ValueError: a count below 1.
    """

    num_draws: int = eqx.field(static=True)

    def __init__(self, num_draws: int = 32) -> None:
        self.num_draws = check_count("num_draws", num_draws)

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """For laws that can be averaged over: those of bits, of classes, and of columns of several kinds."""
        del factor
        if not averaged.knows(process.terminal()):
            kind = type(process.diffusion).__name__
            raise ValueError(f"twist: Averaged is for bits, classes and mixed columns, got {kind}")

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """The states or fixed uniform numbers at which to look."""
        del factor
        return averaging_points(process.terminal(), self.num_draws)

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s with the values that r wants."""
        posterior, kernel = process.denoiser.denoise(process.diffusion, x_t, t, s)
        log_psi, law, rest = multiplied_out(factor, posterior)
        found, led = averaged(law, rest, shared)
        return TwistedStep(log_psi + found, kernel, process.diffusion.average_bridge(x_t, led, t, s))


@Operation
def averaging_points(law: dist.Distribution, num_draws: int) -> Real[Array, "*draws d"]:
    """Where `averaged` looks: all states of few elements, else fixed uniform numbers for `num_draws` draws each."""
    raise averaging_points.refuse(law)


@Operation
def averaged(
    law: dist.Distribution, factor: AbstractFactor, at: Real[Array, "*draws d"], known: PartlyKnown | None = None
) -> Averages:
    """log E[r] in nats, shape (), and a law of the same family that is close to the law times r.

    Args:
        law: factorised.
        factor: r.
        at: `averaging_points` of such a law.
        known: the law with the elements that are known, if some are; certain elements of the answer then.
    """
    raise averaged.refuse(law)


@averaging_points.register(*BITS)
def _bit_points(law: dist.Distribution, num_draws: int) -> Real[Array, "*draws d"]:
    return points(num_draws, math.prod(law.event_shape))


@averaged.register(*BITS)
def _averaged_bits(
    law: dist.Distribution, factor: AbstractFactor, at: Real[Array, "*draws d"], known: PartlyKnown | None = None
) -> Averages:
    logits = bit_logits(law if known is None else known)
    found = average(lambda b: factor.log_r(b.reshape(logits.shape)), logits.reshape(-1), at)
    return found.log_psi, bits(found.logits.reshape(logits.shape))


@averaging_points.register(Categories)
def _class_points(law: dist.Distribution, num_draws: int) -> Real[Array, "*draws d"]:
    return classes.points(num_draws, math.prod(law.event_shape), class_logits(law).shape[-1])


@averaged.register(Categories)
def _averaged_classes(
    law: dist.Distribution, factor: AbstractFactor, at: Real[Array, "*draws d"], known: PartlyKnown | None = None
) -> Averages:
    logits = class_logits(law if known is None else known)
    flat = logits.reshape(-1, logits.shape[-1])
    found = classes.average(lambda x: factor.log_r(x.reshape(law.event_shape)), flat, at)
    return found.log_psi, categories(found.logits.reshape(logits.shape))


@averaging_points.register(Mixed)
def _mixed_points(law: Mixed, num_draws: int) -> Real[Array, "*draws d"]:
    return draws.points(4 * num_draws, math.prod(law.event_shape))


@averaged.register(Mixed)
def _averaged_mixed(law: Mixed, factor: AbstractFactor, at: Real[Array, "*draws d"]) -> Averages:
    x = jax.vmap(lambda uniform: draws.drawn(law, uniform))(at)
    log_psi, weight, share = draws.average(jax.vmap(factor.log_r)(x))
    return log_psi, draws.led(law, x, weight, share)


@averaged.register(PartlyKnown)
def _averaged_partly_known(law: PartlyKnown, factor: AbstractFactor, at: Real[Array, "*draws d"]) -> Averages:
    return averaged(law.law, factor, at, law)


def multiplied_out(factor: AbstractFactor, law: Any) -> tuple[Float[Array, ""], dist.Distribution, Product]:
    """Multiply what factorises in closed form, known elements last: the integral, the product and what is left."""
    parts = sorted(factors_of(factor), key=lambda part: part.fixes_elements)
    total, rest = jnp.zeros(()), []
    for part in parts:
        product = part.multiply(law) if part.is_elementwise else None
        if product is None:
            rest.append(part)
        else:
            total, law = total + product[0], product[1]
    return total, law, Product(tuple(rest))
