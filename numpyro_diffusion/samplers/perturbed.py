"""The 2015 paper's posterior chain, as printed: multiply every reverse step by r(x_t).

Samplers that multiply r, or what a twist makes of it, into every reverse step, and weigh nothing: all of them are
*approximate*. `Perturbed` is the chain of Sohl-Dickstein et al. (2015, §2.5, eq. 22), which with constant r tends to
the law of p·r², and not of p·r, for Gaussian data as steps become many. `Replacement` noises known values, with the
jumps of Lugmayr et al. (2022). `Guided` draws from a twist's proposals, with `Tweedie` as Chung et al. (2023) do.
`TwistedSMC` and `ParticleGibbs` correct what these leave.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray

from .._checks import check_choice, check_count, check_key
from .._shapes import Example
from ..factors import AbstractFactor, Delta, simplify
from ..process import ReverseProcess
from ..twists import AbstractTwist, multiplied
from ..twists.base import check_twist
from .ancestral import Ancestral
from .base import AbstractPosteriorSampler
from .feynman_kac import TwistedChain
from .particles import run_particles

Choice = Literal["constant", "annealed"]


class Perturbed(AbstractPosteriorSampler):
    r"""p̃(x_s | x_t) ∝ p(x_s | x_t) r(x_s), step by step. *Approximate*.

    r is multiplied in closed form where it can be, otherwise the kernel is perturbed by ∇ log r at its mean. The
    normalisers that the paper's eq. 21 has and its eq. 22 leaves out add up: with constant r on data N(0, 1) and an
    observation of noise 1 the chain ends with variance 1/3, that of p·r², not the posterior's 1/2; inpainting with
    clamped clean values underestimates correlations. `TwistedSMC` and `ParticleGibbs` are right. Source: [2015] §2.5,
    eq. 22, Table App. 1.

    Args:
        choice: ``"constant"``: r(x_t) = r(x_0) (eq. 23). ``"annealed"``: its power (T − t)/T.
        num_steps: how many steps to take, as for `Ancestral`.
    """

    choice: Choice = eqx.field(static=True)
    num_steps: int | None = eqx.field(static=True)

    def __init__(self, choice: Choice = "constant", *, num_steps: int | None = None) -> None:
        self.choice = check_choice("choice", choice, ("constant", "annealed"))
        self.num_steps = None if num_steps is None else check_count("num_steps", num_steps, 2)

    def sample(self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor) -> Example:
        """One draw, shape `event`."""
        factor.check(process.event_shape, process.diffusion.data_support)
        factor = simplify(factor, process.event_shape)
        times = Ancestral(self.num_steps).times(process)
        first, inner, last = jax.random.split(check_key("key", key), 3)

        def step(x_t: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
            key, t, s = step
            return self._multiply(process, factor, process.inner_kernel(x_t, t, s), s).sample(key), None

        x_T = self._multiply(process, factor, process.terminal(), jnp.asarray(float(process.num_steps))).sample(first)
        steps = (jax.random.split(inner, len(times) - 1), jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
        x_1, _ = jax.lax.scan(step, x_T, steps)
        return self._multiply(process, factor, process.last_kernel(x_1), jnp.zeros(())).sample(last)

    def _multiply(self, process: ReverseProcess, factor: AbstractFactor, kernel: dist.Distribution, s: Array) -> Any:
        power = None if self.choice == "constant" else 1 - jnp.asarray(s, dtype=float) / process.num_steps
        return multiplied(factor, kernel, power)


class Replacement(AbstractPosteriorSampler):
    """Inpainting by replacement: known elements follow q(x_t | their values), the others the reverse chain.

    *Approximate*: unlike clean clamping the known elements are noised to level t, but the unknown ones learn of them
    only from the denoiser. Jumping back and forth helps (RePaint, Lugmayr et al. 2022); `TwistedSMC` with a `Delta`
    factor is right.

    Args:
        num_jumps: how often each step is taken: after all but the last, x_s is noised back to level t.
        num_steps: how many steps to take, as for `Ancestral`.
    """

    num_jumps: int = eqx.field(static=True)
    num_steps: int | None = eqx.field(static=True)

    def __init__(self, num_jumps: int = 1, *, num_steps: int | None = None) -> None:
        self.num_jumps = check_count("num_jumps", num_jumps)
        self.num_steps = None if num_steps is None else check_count("num_steps", num_steps, 2)

    def sample(self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor) -> Example:
        """One draw, shape `event`.

        Raises:
            ValueError: a factor other than `Delta`.
        """
        if not isinstance(factor, Delta):
            raise ValueError(f"factor: Replacement is for a Delta factor, got {type(factor).__name__}")
        mask, values = factor.mask, factor.values
        factor.check(process.event_shape, process.diffusion.data_support)
        times = Ancestral(self.num_steps).times(process)
        first, inner, last = jax.random.split(check_key("key", key), 3)

        def known(key: Array, x: Array, t: Array) -> Array:
            return jnp.where(mask, process.diffusion.marginal(values, t).sample(key), x)

        def once(x_t: Array, key: Array, t: Array, s: Array) -> Array:
            down, noise = jax.random.split(key)
            return known(noise, process.inner_kernel(x_t, t, s).sample(down), s)

        def step(x_t: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
            key, t, s = step
            keys = jax.random.split(key, (self.num_jumps, 2))
            again = lambda i, x: once(process.diffusion.step(x, t, s).sample(keys[i, 0]), keys[i, 1], t, s)
            return jax.lax.fori_loop(1, self.num_jumps, again, once(x_t, keys[0, 1], t, s)), None

        start, noise = jax.random.split(first)
        x_T = known(noise, process.terminal().sample(start), jnp.asarray(float(process.num_steps)))
        steps = (jax.random.split(inner, len(times) - 1), jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
        x_1, _ = jax.lax.scan(step, x_T, steps)
        x_0 = process.last_kernel(x_1).sample(last)
        return jnp.where(mask, values.astype(x_0.dtype), x_0)


class Guided(AbstractPosteriorSampler):
    """The reverse chain led by a twist, not weighted. *Approximate*; with `nd.twists.Tweedie` this is DPS.

    The same proposals as `TwistedSMC`'s, without its correction: *exact* only where no weight would change (Gaussian
    data and a linear observation with `nd.twists.MomentMatched`).

    Args:
        twist: ψ_t; chosen from the factor unless given.
        num_steps: how many steps to take, as for `Ancestral`.
    """

    twist: AbstractTwist | None
    num_steps: int | None = eqx.field(static=True)

    def __init__(self, twist: AbstractTwist | None = None, *, num_steps: int | None = None) -> None:
        self.twist = check_twist(twist)
        self.num_steps = None if num_steps is None else check_count("num_steps", num_steps, 2)

    def sample(self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor) -> Example:
        """One draw, shape `event`."""
        return run_particles(key, TwistedChain(process, factor, self.twist, self.num_steps, num_particles=1), 1).x[0]
