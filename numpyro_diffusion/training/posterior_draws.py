"""Draws given each of many observations, by SMC under the current prior: what expectation maximisation learns from.

The expectation step of EM with a prior that has no closed form: x is drawn given each observation by SMC under the
current prior, and systematic resampling makes the draws equally weighted. *Consistent as particles grow*. With many
observations few particles are taken for each, as the noise of the draws averages out over observations (Monte Carlo EM;
Wei and Tanner 1990).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from .._compiled import compiled
from ..distributions import DiffusionPrior
from ..factors import AbstractFactor, Delta, pull_back, with_known
from ..samplers import TwistedSMC, with_moments
from ..samplers.base import following
from ..samplers.resampling import systematic
from ..twists import AbstractTwist, default_twist

CALLS = 4096  # particles that go through the denoiser at once
BUDGET = 1_500_000  # calls of the denoiser for all observations of a lap


class Reading(NamedTuple):
    """What one observation says about x.

    Attributes:
        factor: of z, the coordinates of the prior's process.
        constant: what belongs to its logarithm, in nats, shape ().
        of_data: the factor of x, whose known elements draws are given.
    """

    factor: AbstractFactor
    constant: Array
    of_data: AbstractFactor


class Current(NamedTuple):
    """What expectation maximisation has learned so far.

    Attributes:
        prior: of x.
        params: other unknowns that all observations share, by name.
    """

    prior: DiffusionPrior
    params: dict[str, Array]


Read = Callable[[Current, Any], Reading]  # of one observation


class Draws(NamedTuple):
    """Draws given each of n observations.

    Attributes:
        x: shape (n, m, *event).
        log_evidence: of each observation, in nats, shape (n,).
        least_size: the least effective number of particles on the way, shape (n,).
        log_weight: of all islands' particles, as the islands' evidences count them, shape (n, islands · N).
        islands: each island's log evidence, in nats, shape (n, islands).
    """

    x: np.ndarray
    log_evidence: np.ndarray
    least_size: np.ndarray
    log_weight: np.ndarray
    islands: np.ndarray


class Effort(NamedTuple):
    """How much SMC does for each observation.

    Attributes:
        num_particles: of one island.
        num_steps: of the chain; None for those that the prior's own sampler takes.
        num_islands: independent runs.
        twist: chosen by rule unless given.
        corrected: whether draws are weighted; without weights they are the twist's proposals, *approximate*.
    """

    num_particles: int
    num_steps: int | None = None
    num_islands: int = 1
    twist: AbstractTwist | None = None
    corrected: bool = True


def read_cells(now: Current, observation: Any) -> Reading:
    """A pair (values, known): the known cells of one row."""
    values, known = observation
    prior, delta = now.prior, Delta(values, known)
    return Reading(*pull_back(delta, prior.transform, prior.event_shape), delta)


def effort_for(count: int, num_steps: int) -> Effort:
    """About a million and a half calls of the denoiser: fewer particles and steps of the chain for many rows."""
    steps = int(np.clip(BUDGET // (16 * count), min(16, num_steps), num_steps))
    particles = int(np.clip(BUDGET // (steps * count), 16, 64))
    return Effort(particles, None if steps == num_steps else steps)


def draw(
    key: Array,
    now: Current,
    observations: Any,
    read: Read,
    effort: Effort,
    num_draws: int = 1,
    tick: Callable[[int], object] = lambda count: None,
) -> Draws:
    """Draws of x given each observation, equally weighted: *consistent as particles grow*.

    Observations go through one compiled program in blocks of one size, the last one filled up.

    Args:
        key: JAX random key.
        now: the current prior, and what else the observations share.
        observations: pytree of arrays with a common leading axis.
        read: makes the factor of one observation.
        effort: of SMC.
        num_draws: of each observation.
        tick: is told how many observations are done since it was last told.
    """
    leaves = jax.tree.leaves(observations)
    total = len(leaves[0])
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), observations)
    sampler = TwistedSMC(
        effort.num_particles, _twist(now, first, read, effort.num_particles) if effort.twist is None else effort.twist,
        num_steps=effort.num_steps, threshold=0.5 if effort.corrected else 0.0, antithetic=effort.num_particles >= 32,
    )  # fmt: skip
    size = max(1, CALLS // (effort.num_particles * effort.num_islands))  # the same for all: one compiled program
    keys, found = jax.random.split(key, total), []
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        block = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), observations)
        out = _block(keys[rows], now, sampler, read, block, effort, num_draws)
        count = min(size, total - start)
        found.append([np.asarray(part)[:count] for part in out])
        tick(count)
    return Draws(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def scored(
    key: Array, now: Current, observations: Any, read: Read, effort: Effort, num_draws: int, repeats: int
) -> Draws:
    """As `draw` does, with log evidences that are those of several runs together: by the program that `draw` has."""
    total = len(jax.tree.leaves(observations)[0])
    many = jax.tree.map(lambda leaf: np.concatenate([np.asarray(leaf)] * repeats), observations)
    found = draw(key, now, many, read, effort, num_draws)
    evidence = found.log_evidence.reshape(repeats, total).astype(np.float64)
    mean = np.logaddexp.reduce(evidence, axis=0) - np.log(repeats)
    return Draws(*(part[:total] for part in found))._replace(log_evidence=mean)


def _twist(now: Current, observation: Any, read: Read, num_particles: int) -> AbstractTwist:
    """By rule, asked of one observation."""
    chosen: list[AbstractTwist] = []

    def check(observation: Any) -> Array:
        chosen.append(default_twist(now.prior.process, read(now, observation).factor, num_particles))
        return jnp.zeros(())

    jax.eval_shape(check, observation)
    return chosen[0]


@compiled
def _block(
    keys: Array, now: Current, sampler: TwistedSMC, read: Read, observations: Any, effort: Effort, count: int
) -> tuple[Array, ...]:
    prior, islands = now.prior, effort.num_islands
    process, own = with_moments(prior.process), following(sampler, prior.sampler, prior.process)

    def one(key: Array, observation: Any) -> tuple[Array, ...]:
        run, pick, mix = jax.random.split(key, 3)
        reading = read(now, observation)
        found = jax.vmap(lambda key: own.run(key, process, reading.factor))(jax.random.split(run, islands))
        weight = (found.log_weight + found.log_evidence[:, None]).reshape(-1)
        weight = jnp.where(jnp.isfinite(weight).any() & effort.corrected, weight, 0.0)
        # Where there are more draws than particles they are drawn again and again, as they are where weights say so.
        picked = jax.random.permutation(mix, _systematic(pick, weight, count))
        z = found.x.reshape(-1, *process.event_shape)[picked]
        x = with_known(reading.of_data, prior.module.to_data(z))
        evidence = logsumexp(found.log_evidence) - jnp.log(float(islands)) + reading.constant
        return x, evidence, found.effective_size.min(), weight, found.log_evidence

    return jax.vmap(one)(keys, observations)


def _systematic(key: Array, log_weight: Array, count: int) -> Array:
    """`count` numbers of particles, by systematic resampling."""
    if count == len(log_weight):
        return systematic(key, log_weight)
    total = jnp.cumsum(jax.nn.softmax(log_weight))
    points = (jnp.arange(count) + jax.random.uniform(key)) / count
    return jnp.minimum(jnp.searchsorted(total, points * total[-1], side="right"), len(log_weight) - 1)
