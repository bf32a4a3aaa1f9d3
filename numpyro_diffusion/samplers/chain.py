"""Whole chains, and the standard-normal noise that makes each: one to one, for chains of Gaussian steps.

With Gaussian steps, x_s = mean(x_t) + scale · ε maps noises to chains x_T … x_0 one to one, given the denoiser. Both
directions are here, *exact* up to rounding. They let a Gibbs sampler hold the noise while it moves other unknowns on
which the prior depends, and the chain follow (interweaving; Yu and Meng 2011).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..laws import from_noise
from ..process import ReverseProcess
from .ancestral import Ancestral

Chain = Float[Array, " steps *event"]


def noise_of_chain(process: ReverseProcess, chain: Chain, num_steps: int | None = None) -> Chain:
    """The noise from which `Ancestral.from_noise` makes a chain of Gaussian steps; *exact*.

    Args:
        process: the reverse process.
        chain: x_0 first, shape (num_steps + 1, *event).
        num_steps: of the strided chain; all unless given.

    Returns:
        The noise, x_T's first, shape (num_steps + 1, *event).
    """
    times = jnp.asarray(Ancestral(num_steps).times(process))
    states = chain[::-1]  # from x_T to x_0
    back = lambda kernel, x: (x - kernel.base_dist.loc) / kernel.base_dist.scale
    inner = jax.vmap(lambda x_t, x_s, t, s: back(process.inner_kernel(x_t, t, s), x_s))
    first = back(process.terminal(), states[0])
    last = back(process.last_kernel(states[-2]), states[-1])
    return jnp.concatenate([first[None], inner(states[:-2], states[1:-1], times[:-1], times[1:]), last[None]])


def chain_of_noise(process: ReverseProcess, noise: Chain, num_steps: int | None = None) -> Chain:
    """The chain, x_0 first, that `Ancestral.from_noise` goes through; shapes as in `noise_of_chain`."""
    times = jnp.asarray(Ancestral(num_steps).times(process))

    def step(x_t: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        noise, t, s = step
        return from_noise(process.inner_kernel(x_t, t, s), noise), x_t

    first = from_noise(process.terminal(), noise[0])
    x_1, before = jax.lax.scan(step, first, (noise[1:-1], times[:-1], times[1:]))
    x_0 = from_noise(process.last_kernel(x_1), noise[-1])
    return jnp.concatenate([x_0[None], x_1[None], before[::-1]])
