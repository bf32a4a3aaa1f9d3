"""Particle Gibbs: a Markov kernel on whole chains x_T … x_0 that leaves the posterior invariant.

Conditional SMC forces one of its particles through a given chain x_T … x_0, and then draws one of the lineages: a
Markov kernel that leaves p(x_T … x_0) r(x_0)/Z *exactly* invariant for 2 particles or more (Andrieu, Doucet and
Holenstein 2010). Ancestor sampling draws the past of the given chain anew at every step, so that not all lineages end
in it (Lindsten, Jordan and Schön 2014). More particles and a better twist make it mix faster.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._checks import check_event
from ..factors import AbstractFactor
from ..process import ReverseProcess
from ..twists import AbstractTwist
from .feynman_kac import ParticleSampler, TwistedChain
from .particles import ConditionalResample, run_particles


class Path(NamedTuple):
    """A chain, and how it was found.

    Attributes:
        x: the states at the steps taken, x_0 first, shape (K + 1, *event).
        log_r: log r(x_0) in nats, shape ().
        effective_size: the smallest effective number of particles of any step, shape ().
        changed: the share of states that are not those of the chain before, shape ().
    """

    x: Shaped[Array, " states *event"]
    log_r: Float[Array, ""]
    effective_size: Float[Array, ""]
    changed: Float[Array, ""]


class ParticleGibbs(ParticleSampler):
    """Conditional SMC with ancestor sampling (Andrieu et al. 2010; Lindsten et al. 2014) on the twisted chain.

    One `step` keeps p(x_T … x_0) r(x_0)/Z *exactly* invariant for any number of particles of at least 2; more of them,
    and a better twist, move further. `TwistedSMC` says what the arguments are.

    Raises:
        ValueError: fewer than 2 particles.
    """

    def __init__(
        self,
        num_particles: int = 16,
        twist: AbstractTwist | None = None,
        *,
        num_steps: int | None = None,
        threshold: float = 0.5,
        chunk: int | None = None,
    ) -> None:
        super().__init__(num_particles, twist, num_steps=num_steps, threshold=threshold, chunk=chunk)

    def init(self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor) -> Path:
        """A first chain: one of a plain SMC run's particles, traced back."""
        chain = self.chain(process, factor)
        return self._run(key, chain, None)

    def step(
        self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor, path: Shaped[Array, "..."]
    ) -> Path:
        """The next chain.

        Args:
            key: JAX random key.
            process: the prior's reverse process.
            factor: r.
            path: the chain now, x_0 first, shape (K + 1, *event).

        Returns:
            A `Path`.

        Raises:
            ValueError: a path of another shape; a factor or twist that does not fit.
        """
        chain = self.chain(process, factor)
        expected = (len(chain.times) + 1, *process.event_shape)
        if check_event("path", path.shape, expected):
            raise ValueError(f"path: expected shape {expected}, got {path.shape}")
        return self._run(key, chain, path)

    def _run(self, key: Array, chain: TwistedChain, path: Array | None) -> Path:
        known = None if path is None else path[::-1]  # from x_T to x_0
        run = run_particles(key, chain, self.num_particles, ConditionalResample(self.threshold), known)
        states, sizes, ancestors = run.record
        states = jnp.concatenate([states, run.x[None]])
        index = jax.random.categorical(run.key, run.log_weight)
        _, lineage = jax.lax.scan(lambda i, back: (back[i], back[i]), index, ancestors, reverse=True)
        lineage = jnp.append(lineage, index)
        x = states[jnp.arange(len(states)), lineage]
        changed = jnp.mean(lineage != 0) if known is not None else jnp.ones(())
        return Path(x[::-1], chain.factor.log_r(x[-1]), jnp.min(sizes), changed)
