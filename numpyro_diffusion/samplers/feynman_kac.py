"""The twisted chain: how particles start, step and are weighted.

The twisted chain is a Feynman–Kac model (Del Moral 2004): targets p(x_T … x_t) ψ_t(x_t) for t ≥ 1 and p(x_T … x_0)
r(x_0) at the end, reached by proposals that the twist leads. The incremental weight, p(x_s | x_t) ψ_s(x_s) over
proposal(x_s) ψ_t(x_t), makes up for what twist and proposal get wrong, so that normalising constants are *unbiased* for
every positive ψ. The samplers that share this class differ only in what happens between steps.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from .._batching import batched_map
from .._checks import check_count, check_scalar
from .._shapes import Example, Time
from ..factors import AbstractFactor, simplify
from ..laws import log_ahead, log_excess, mirrored
from ..process import ReverseProcess
from ..twists import AbstractTwist, TwistedStep, default_twist, last_step
from ..twists.base import check_twist
from .ancestral import Ancestral
from .moments import with_moments

Weighted = tuple[Shaped[Array, " n *event"], Float[Array, " n"]]  # particles and their log weights


class Cloud(NamedTuple):
    """Particles at one step t ≥ 1.

    Attributes:
        x: states, shape (N, *event).
        log_weight: unnormalised, ψ_t counted in, in nats, shape (N,).
        step: what each needs for its next step, leading shape (N,).
    """

    x: Shaped[Array, " n *event"]
    log_weight: Float[Array, " n"]
    step: TwistedStep


class TwistedChain(eqx.Module):
    """A process, a factor and a twist made ready: how particles start, step and are weighted.

    The targets are p(x_T … x_t) ψ_t(x_t) for t ≥ 1, and p(x_T … x_0) r(x_0) in the end: every positive twist is right,
    and a good one has weights that vary little. The denoiser is evaluated once for each particle and step. Kernels may
    not integrate to one, as those of a product of priors: `laws.log_excess` counts in p, `laws.log_ahead` in ψ_t.

    With `antithetic` particles 0 and 1, 2 and 3, … draw with opposite noise at every step but the one to the data,
    after which nothing is decided any more. The law of each, given the particles before, is the same.
    """

    process: ReverseProcess
    factor: AbstractFactor
    twist: AbstractTwist
    shared: Any
    times: tuple[int, ...] = eqx.field(static=True)
    ends_exactly: bool = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    antithetic: bool = eqx.field(static=True)

    def __init__(
        self,
        process: ReverseProcess,
        factor: AbstractFactor,
        twist: AbstractTwist | None = None,
        num_steps: int | None = None,
        chunk: int | None = None,
        antithetic: bool = False,
        num_particles: int | None = None,
    ) -> None:
        if not isinstance(factor, AbstractFactor):
            raise TypeError(f"factor: expected one from numpyro_diffusion.factors, got {factor!r}")
        factor.check(process.event_shape, process.diffusion.data_support)
        factor = simplify(factor, process.event_shape)
        twist = default_twist(process, factor, num_particles) if twist is None else twist
        process = with_moments(process) if twist.needs_moments else process
        twist.check(process, factor)
        self.process, self.factor, self.twist = process, factor, twist
        self.shared = twist.prepare(process, factor)
        self.times = tuple(int(t) for t in Ancestral(num_steps).times(process))
        kernel = lambda: process.last_kernel(jnp.zeros(process.event_shape))
        self.ends_exactly = jax.eval_shape(lambda: factor.multiply(kernel())) is not None
        self.chunk = None if chunk is None else check_count("chunk", chunk)
        self.antithetic = antithetic

    @property
    def inner(self) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
        """The steps t → s to s ≥ 1, as their t and their s."""
        times = np.array(self.times, dtype=int)
        return times[:-1], times[1:]

    def start(self, key: PRNGKeyArray, count: int, known: Example | None = None) -> Weighted:
        """`count` particles at T, the first of them `known`, if given; and their log weights, without ψ_T."""
        law = self.process.terminal()
        x = jax.vmap(lambda noise: self._draw(law, noise))(self._noise(key, count))
        x = x if known is None else x.at[0].set(known.astype(x.dtype))
        return x, jax.vmap(lambda x: log_excess(law, x))(x)

    def weigh(self, x: Shaped[Array, " n *event"], log_weight: Float[Array, " n"], t: Time, s: Time) -> Cloud:
        """Particles at t ≥ 2 with ψ_t and what a step to s needs: the one evaluation of denoiser and twist at t."""
        return self._weigh(x, log_weight, lambda x: self.twist.step(self.process, self.factor, self.shared, x, t, s))

    def weigh_last(self, x: Shaped[Array, " n *event"], log_weight: Float[Array, " n"]) -> Cloud:
        """Particles at t = 1 with ψ_1 and what the step to the data needs."""
        return self._weigh(x, log_weight, lambda x: last_step(self.process, self.factor, x))

    def move(self, key: PRNGKeyArray, cloud: Cloud, known: Example | None = None) -> Weighted:
        """The step to s ≥ 1: particles there, and their log weights, without ψ_s."""

        def one(args: tuple[Any, TwistedStep, Array | None]) -> tuple[Array, Array]:
            noise, step, known = args
            x = self._draw(step.proposal, noise) if known is None else known
            return x, _ratio(step, x)

        x, gain = self._each(one, self._noise(key, len(cloud.x)), cloud.step, known)
        return x, _finite(cloud.log_weight + gain)

    def finish(self, key: PRNGKeyArray, cloud: Cloud, known: Example | None = None) -> Weighted:
        """The step to the data: x_0 and the final log weights."""

        def one(args: tuple[Array, TwistedStep, Array | None]) -> tuple[Array, Array]:
            key, step, known = args
            x = step.proposal.sample(key) if known is None else known
            return x, self.factor.log_r(x) + _ratio(step, x)

        x, gain = self._each(one, jax.random.split(key, len(cloud.x)), cloud.step, known)
        return x, cloud.log_weight if self.ends_exactly else _finite(cloud.log_weight + gain)

    def predictions(self, cloud: Cloud, t: Time, s: Time) -> Float[Array, " n *event"]:
        """The part of each particle's kernel mean that its prediction of x_0 makes, for the step from t to s ≥ 1.

        Shape (N, *event). Unlike x_t itself it has no noise of its own.
        """
        nothing = jnp.zeros(self.process.event_shape)
        rest = lambda x: self.process.diffusion.bridge(x, nothing, t, s).mean
        return jax.vmap(lambda x, step: step.kernel.mean - rest(x))(cloud.x, cloud.step)

    def log_kernel(self, cloud: Cloud, x_s: Example) -> Float[Array, " n"]:
        """log p(x_s | x_t) − log ψ_t(x_t) from every particle to one state, shape (N,)."""
        return jax.vmap(lambda step: _log_kernel(step, x_s) - step.log_psi)(cloud.step)

    def _weigh(self, x: Array, log_weight: Array, step_at: Any) -> Cloud:
        step = batched_map(lambda x: _led(step_at(x)), x, self.chunk)
        return Cloud(x, _finite(log_weight + step.log_psi), step)

    def _noise(self, key: Array, count: int) -> Any:
        """What `_draw` takes for each of `count` particles: a key, and with `antithetic` whether to mirror."""
        if not self.antithetic:
            return jax.random.split(key, count)
        index = jnp.arange(count)
        return jax.random.split(key, (count + 1) // 2)[index // 2], index % 2 == 1

    def _draw(self, law: dist.Distribution, noise: Any) -> Array:
        return mirrored(law, *noise) if self.antithetic else law.sample(noise)

    def _each(self, one: Any, noise: Any, step: TwistedStep, known: Array | None) -> Any:
        """`one` for every particle; with `known`, the state of the first particle is taken and not drawn."""
        if known is None:
            return batched_map(lambda pair: one((*pair, None)), (noise, step), self.chunk)
        is_known = jnp.arange(step.log_psi.shape[0]) == 0

        def maybe(args: tuple[Any, TwistedStep, Array]) -> Any:
            noise, step, fixed = args
            drawn = self._draw(step.proposal, noise)
            return one((noise, step, jnp.where(fixed, known.astype(drawn.dtype), drawn)))

        return batched_map(maybe, (noise, step, is_known), self.chunk)


class ParticleSampler(eqx.Module):
    """The arguments of `TwistedSMC` and `ParticleGibbs`, and the chain they make of a process and a factor."""

    num_particles: int = eqx.field(static=True)
    twist: AbstractTwist | None
    num_steps: int | None = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        num_particles: int,
        twist: AbstractTwist | None = None,
        *,
        num_steps: int | None = None,
        threshold: float = 0.5,
        chunk: int | None = None,
    ) -> None:
        self.num_particles = check_count("num_particles", num_particles, 2)
        self.twist = check_twist(twist)
        self.num_steps = None if num_steps is None else check_count("num_steps", num_steps, 2)
        check_scalar("threshold", threshold)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a fraction in [0, 1], got {threshold}")
        self.threshold = float(threshold)
        self.chunk = None if chunk is None else check_count("chunk", chunk)

    def chain(self, process: ReverseProcess, factor: AbstractFactor, antithetic: bool = False) -> TwistedChain:
        """The twisted chain, checked and ready."""
        return TwistedChain(process, factor, self.twist, self.num_steps, self.chunk, antithetic, self.num_particles)


def _ratio(step: TwistedStep, x: Array) -> Array:
    """log p(x | x_t) − log proposal(x | x_t) − log ψ_t(x_t)."""
    return _log_kernel(step, x) - step.proposal.log_prob(x) - step.log_psi


def _log_kernel(step: TwistedStep, x: Array) -> Array:
    """log p(x | x_t)."""
    return step.kernel.log_prob(x) + log_excess(step.kernel, x)


def _led(step: TwistedStep) -> TwistedStep:
    """The step whose ψ_t knows what kernels that do not integrate to one are about to add."""
    return step._replace(log_psi=step.log_psi + log_ahead(step.kernel))


def _finite(log_weight: Array) -> Array:
    """A weight that is no number is none: 0 · ∞ arises where ψ or r vanishes."""
    return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
