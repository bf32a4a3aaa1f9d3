"""The particle driver: one scan down a twisted chain for every method that has particles.

Particles start at T, step to the data, and are weighted on the way (`TwistedChain`). Methods differ only in what
happens to them between two steps: nothing (`Guided`), resampling (`TwistedSMC`), or resampling that keeps one given
chain (`ParticleGibbs`). Sources: Del Moral 2004 (Feynman–Kac models), Andrieu, Doucet and Holenstein 2010 (conditional
SMC).
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._checks import check_key
from .._devices import share
from .._shapes import Example
from .feynman_kac import Cloud, TwistedChain
from .ordering import curve_order
from .resampling import effective_size, systematic


class Step(NamedTuple):
    """The step that comes next.

    Attributes:
        t: where the particles are, at least 1.
        s: where they go; None for the data.
        known: the state at `s` of the chain that is kept, shape `event`; None where no chain is.
    """

    t: Any
    s: Any
    known: Example | None


Passed = tuple[Cloud, Float[Array, ""], Any]  # who goes on, the gain in log evidence, and what to record


class AbstractBetween(eqx.Module):
    """What happens to particles before each of their steps."""

    @abstractmethod
    def __call__(self, key: PRNGKeyArray, chain: TwistedChain, cloud: Cloud, step: Step) -> Passed:
        """The particles that go on; what they gain in log evidence, in nats, shape (); what to record, a pytree."""


class ParticleRun(NamedTuple):
    """N particles that have come to the data in K steps.

    Attributes:
        x: x_0, shape (N, *event).
        log_weight: unnormalised, since the last resampling, in nats, shape (N,).
        log_evidence: log of an unbiased estimate of ∫ p(x) r(x) dx, in nats, shape ().
        record: what was recorded before each step, from T down, leading shape (K,); None where nothing was.
        key: unused, for what follows.
    """

    x: Shaped[Array, " n *event"]
    log_weight: Float[Array, " n"]
    log_evidence: Float[Array, ""]
    record: Any
    key: PRNGKeyArray


def run_particles(
    key: PRNGKeyArray,
    chain: TwistedChain,
    num_particles: int,
    between: AbstractBetween | None = None,
    known: Shaped[Array, " states *event"] | None = None,
    sharding: NamedSharding | None = None,
) -> ParticleRun:
    """Start, step by step advance, and finish.

    Args:
        key: JAX random key.
        chain: how particles start, step and are weighted.
        num_particles: N.
        between: what happens before each step; nothing unless given.
        known: the chain that the first particle follows, from x_T to x_0, shape (K + 1, *event).
        sharding: how particles lie on devices; where JAX puts them unless given.

    Returns:
        A `ParticleRun`.
    """
    at = lambda k: None if known is None else known[k]
    first, inner, rest = jax.random.split(check_key("key", key), 3)
    keys = jax.random.split(inner, (len(chain.times), 2))

    def take(state: Any, keys: Array, cloud: Cloud, step: Step, move: Any) -> tuple[Any, Any]:
        log_evidence, record = state[1], None
        if between is not None:
            cloud, gain, record = between(keys[0], chain, cloud, step)
            log_evidence = log_evidence + gain
        return (share(move(keys[1], cloud, step.known), sharding), log_evidence), record

    def body(state: Any, xs: Any) -> tuple[Any, Any]:
        keys, t, s, fixed = xs
        x, log_weight = state[0]
        return take(state, keys, chain.weigh(x, log_weight, t, s), Step(t, s, fixed), chain.move)

    # Of all steps but the last one program is made: each begins with the denoiser and ends with a draw.
    times = [jnp.asarray(times) for times in chain.inner]
    steps = (keys[:-1], *times, None if known is None else known[1:-1])
    start = share(chain.start(first, num_particles, at(0)), sharding), jnp.zeros(())
    state, inner_record = jax.lax.scan(body, start, steps)
    end = Step(jnp.asarray(chain.times[-1]), None, at(-1))
    state, record_last = take(state, keys[-1], chain.weigh_last(*state[0]), end, chain.finish)
    (x, log_weight), log_evidence = state

    end_to_end = lambda inner, *ends: jnp.concatenate([inner, *(end[None] for end in ends)])
    record = jax.tree.map(end_to_end, inner_record, record_last)
    return ParticleRun(x, log_weight, log_evidence + log_mean(log_weight), record, rest)


class Resample(AbstractBetween):
    """Systematic resampling where few particles are effective; an antithetic chain's along a curve (`TwistedSMC`).

    It records the effective size before, shape (), and every particle's ancestor, shape (N,).
    """

    threshold: float = eqx.field(static=True)  # as a fraction of the particles

    def __call__(self, key: PRNGKeyArray, chain: TwistedChain, cloud: Cloud, step: Step) -> Passed:
        """Resample if need be."""
        count = len(cloud.log_weight)
        size = effective_size(cloud.log_weight)
        low = size < self.threshold * count
        order = _order(chain, cloud, step) if chain.antithetic else jnp.arange(count)
        ancestors = jnp.where(low, order[systematic(key, cloud.log_weight[order])], order)
        log_weight = jnp.where(low, 0.0, cloud.log_weight[order])
        gain = jnp.where(low, log_mean(cloud.log_weight), 0.0)
        return _descendants(cloud, ancestors, log_weight), gain, (size, ancestors)


class ConditionalResample(AbstractBetween):
    """Multinomial resampling that keeps a known chain in the first particle (`ParticleGibbs`).

    Where particles are resampled, the first one's ancestor is drawn by how well it leads to the known chain (ancestor
    sampling, Lindsten, Jordan and Schön 2014). Without a known chain it is drawn like the others. It records the states
    before the step, shape (N, *event), the effective size, and every particle's ancestor.
    """

    threshold: float = eqx.field(static=True)  # as a fraction of the particles

    def __call__(self, key: PRNGKeyArray, chain: TwistedChain, cloud: Cloud, step: Step) -> Passed:
        """Resample if need be."""
        count = len(cloud.log_weight)
        size = effective_size(cloud.log_weight)
        low = size < self.threshold * count
        others, own = jax.random.split(key)
        drawn = jax.random.categorical(others, cloud.log_weight, shape=(count,))
        if step.known is not None:
            first = jax.random.categorical(own, cloud.log_weight + chain.log_kernel(cloud, step.known))
            drawn = drawn.at[0].set(first)
        ancestors = jnp.where(low, drawn, jnp.arange(count))
        log_weight = jnp.where(low, 0.0, cloud.log_weight)
        gain = jnp.where(low, log_mean(cloud.log_weight), 0.0)
        return _descendants(cloud, ancestors, log_weight), gain, (cloud.x, size, ancestors)


def log_mean(log_weight: Float[Array, " n"]) -> Float[Array, ""]:
    """Log of the mean weight, in nats, shape ()."""
    return logsumexp(log_weight) - jnp.log(float(log_weight.size))


def _descendants(cloud: Cloud, ancestors: Array, log_weight: Array) -> Cloud:
    x, step = jax.tree.map(lambda leaf: leaf[ancestors], (cloud.x, cloud.step))
    return Cloud(x, log_weight, step)


def _order(chain: TwistedChain, cloud: Cloud, step: Step) -> Array:
    """The order in which particles are resampled: that of their predictions along a curve."""
    if step.s is None:
        return curve_order(jax.vmap(lambda step: step.kernel.mean)(cloud.step))
    return curve_order(chain.predictions(cloud, step.t, step.s))
