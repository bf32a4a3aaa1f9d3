"""Particle Gibbs: a Markov kernel on whole chains x_T … x_0 that leaves the posterior invariant."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .._checks import check_event
from ..factors import AbstractFactor
from ..process import ReverseProcess
from ..twists import AbstractTwist
from .feynman_kac import Cloud, ParticleSampler, TwistedChain
from .resampling import effective_size


class Path(NamedTuple):
    """A chain, and how it was found.

    Attributes:
        x: the states at the steps taken, x_0 first, shape (K + 1, *event).
        log_r: log r(x_0) in nats, shape ().
        effective_size: the smallest effective number of particles of any step, shape ().
        changed: the share of states that are not those of the chain before, shape ().
    """

    x: Array
    log_r: Array
    effective_size: Array
    changed: Array


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

    def init(self, key: Array, process: ReverseProcess, factor: AbstractFactor) -> Path:
        """A first chain: one of a plain SMC run's particles, traced back."""
        chain = self.chain(process, factor)
        return self._run(key, chain, None)

    def step(self, key: Array, process: ReverseProcess, factor: AbstractFactor, path: Array) -> Path:
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
        at = lambda k: None if known is None else known[k]
        first, inner, one, last, pick = jax.random.split(key, 5)
        cloud = chain.first(first, self.num_particles, at(0))

        def step(cloud: Cloud, xs: tuple[Array, Array, Array, Array | None]) -> tuple[Cloud, Any]:
            key, s, after, fixed = xs
            pick, move = jax.random.split(key)
            picked, size, ancestors = self._resample(pick, chain, cloud, fixed)
            return chain.advance(move, picked, s, after, fixed), (cloud.x, size, ancestors)

        times, after = chain.inner
        middle = None if known is None else known[1:-2]
        steps = (jax.random.split(inner, len(times)), jnp.asarray(times), jnp.asarray(after), middle)
        cloud, (states, sizes, ancestors) = jax.lax.scan(step, cloud, steps)
        keys = jax.random.split(one), jax.random.split(last)
        picked, size_one, ancestors_one = self._resample(keys[0][0], chain, cloud, at(-2))
        cloud_one = chain.reach_one(keys[0][1], picked, at(-2))
        picked, size_last, ancestors_last = self._resample(keys[1][0], chain, cloud_one, at(-1))
        x_0, log_weight = chain.finish(keys[1][1], picked, at(-1))

        states = jnp.concatenate([states, cloud.x[None], cloud_one.x[None], x_0[None]])
        ancestors = jnp.concatenate([ancestors, ancestors_one[None], ancestors_last[None]])
        index = jax.random.categorical(pick, log_weight)
        _, lineage = jax.lax.scan(lambda i, back: (back[i], back[i]), index, ancestors, reverse=True)
        lineage = jnp.append(lineage, index)
        x = states[jnp.arange(len(states)), lineage]
        smallest = jnp.minimum(jnp.min(sizes, initial=jnp.inf), jnp.minimum(size_one, size_last))
        changed = jnp.mean(lineage != 0) if known is not None else jnp.ones(())
        return Path(x[::-1], chain.factor.log_r(x[-1]), smallest, changed)

    def _resample(
        self, key: Array, chain: TwistedChain, cloud: Cloud, known: Array | None
    ) -> tuple[Cloud, Array, Array]:
        """Resample if need be, the first particle's ancestor by how well it leads to the chain that is kept."""
        size, count = effective_size(cloud.log_weight), self.num_particles
        others, own = jax.random.split(key)
        drawn = jax.random.categorical(others, cloud.log_weight, shape=(count,))
        if known is not None:
            lead = jax.random.categorical(own, cloud.log_weight + chain.log_kernel(cloud, known))
            drawn = drawn.at[0].set(lead)
        poor = self.poor(size)
        ancestors = jnp.where(poor, drawn, jnp.arange(count))
        taken = jax.tree.map(lambda leaf: leaf[ancestors], (cloud.x, cloud.step))
        return Cloud(taken[0], jnp.where(poor, 0.0, cloud.log_weight), taken[1]), size, ancestors
