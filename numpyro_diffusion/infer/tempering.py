"""Tempered SMC: from draws of the prior to draws of the posterior, by powers of the likelihood.

Sequential Monte Carlo over temperatures: weights by a step of the likelihood's power, resampling, and moves that leave
the tempered law invariant (Del Moral, Doucet and Jasra 2006). A step is the largest that keeps a given effective size
(Jasra et al. 2011; Zhou, Johansen and Aston 2016), and moves go on until positions and likelihoods hardly correlate
with where they were (Kantas, Beskos and Jasra 2014). The product of mean incremental weights estimates the evidence:
*consistent as particles grow*, and *not unbiased* for all that adapts.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from ..samplers.resampling import effective_size, systematic

# Moves go on until particles' correlation with where they were, when the temperature changed, is at most this.
CORRELATION = 0.1
HALVINGS = 60


class AbstractMoves(ABC):
    """What is tempered: Markov moves of particles, which leave prior × likelihood^temperature invariant.

    Particles are a pytree with their number in front, of which the fields `log_likelihood` and `undefined`, shape (n,),
    and `features`, shape (n, k), whose mixing counts, are looked at here.
    """

    wanted: float  # acceptance rate that the angle aims at

    @abstractmethod
    def at(self, points: Any, temperature: Float[Array, ""]) -> Any:
        """The same particles at another temperature."""

    @abstractmethod
    def law(self, points: Any) -> Any:
        """A law near the target, from equally weighted particles, for the moves at one temperature."""

    @abstractmethod
    def move(
        self, key: PRNGKeyArray, points: Any, temperature: Float[Array, ""], angle: Float[Array, ""], law: Any
    ) -> tuple[Any, Float[Array, " n"]]:
        """One move of each particle, and the probabilities with which the proposals were accepted, shape (n,)."""


class Settings(NamedTuple):
    """Settings of `anneal`, all static.

    Attributes:
        ess: the effective share of particles that each temperature keeps.
        num_moves: at most so many moves at each temperature.
        max_temperatures: after as many, the last step goes to 1 at once.
    """

    ess: float
    num_moves: int
    max_temperatures: int


class Records(NamedTuple):
    """How it went.

    Attributes:
        stages: how many temperatures, shape ().
        finished: whether the step to temperature 1 kept the effective size, shape ().
        temperatures: shape (max_temperatures,), NaN from `stages` on.
        acceptance: mean acceptance probability at each of them, likewise.
        moves: how many moves there, 0 from `stages` on.
        correlation: that of particles with where they were, after the moves; NaN from `stages` on.
        undefined: at how many draws of the prior the densities were no number, shape ().
    """

    stages: Array
    finished: Array
    temperatures: Array
    acceptance: Array
    moves: Array
    correlation: Array
    undefined: Array


def by_island(records: Records, name: str) -> list[np.ndarray]:
    """One of the records of each island, of which there are several in front, as long as there were temperatures."""
    counts = np.asarray(records.stages)
    return [np.asarray(row)[:count] for row, count in zip(getattr(records, name), counts, strict=True)]


class _State(NamedTuple):
    key: Array
    points: Any
    blank: Array
    temperature: Array
    log_evidence: Array
    angle: Array
    records: Records


def anneal(
    key: PRNGKeyArray, moves: AbstractMoves, points: Any, settings: Settings, blank: bool = False
) -> tuple[Any, Float[Array, ""], Records]:
    """From draws of the prior to equally weighted draws of the posterior, inside a compiled program.

    Each step of the temperature is as long as the effective size allows (Jasra et al. 2011; Zhou, Johansen and Aston
    2016), particles are resampled, and moves draw them apart (Del Moral, Doucet and Jasra 2006).

    Args:
        key: JAX random key.
        moves: of the particles.
        points: draws of the prior, with the likelihood at each.
        settings: see `Settings`.
        blank: whether the points are mere zeros instead, which one move at temperature 0 makes draws of the prior; so
            a program has the likelihood once.

    Returns:
        The particles at temperature 1, the log evidence in nats, shape (), −inf where no particle had a likelihood, and
        the records.
    """

    def stage(state: _State) -> _State:
        key, pick, again = jax.random.split(state.key, 3)
        state, log_weight = _heat(state, settings)
        ancestors = systematic(pick, log_weight)
        points = jax.tree.map(lambda leaf: leaf[ancestors], state.points)
        return _mix(again, state._replace(key=key, points=moves.at(points, state.temperature)), moves, settings)

    going = lambda state: (state.temperature < 1) & jnp.isfinite(state.log_evidence)
    last = jax.lax.while_loop(going, stage, _first(key, points, blank, settings.max_temperatures))
    return last.points, last.log_evidence, last.records


def _first(key: Array, points: Any, blank: bool, size: int) -> _State:
    none, zero, undefined = jnp.full(size, jnp.nan), jnp.zeros(()), jnp.sum(points.undefined)
    records = Records(jnp.asarray(0), jnp.asarray(True), none, none, jnp.zeros(size, dtype=int), none, undefined)
    return _State(key, points, jnp.asarray(blank), zero, zero, jnp.ones(()), records)


def _heat(state: _State, settings: Settings) -> tuple[_State, Array]:
    """The next temperature, and the log weights that lead to it."""
    log_likelihood = state.points.log_likelihood
    rest = 1 - state.temperature
    step = _increment(log_likelihood, rest, settings.ess)
    forced = (state.records.stages == settings.max_temperatures - 1) & (step < rest)
    step = jnp.where(state.blank, 0.0, jnp.where(forced, rest, step))
    log_weight = step * log_likelihood
    temperature = jnp.where(step >= rest, 1.0, state.temperature + step)
    log_evidence = state.log_evidence + logsumexp(log_weight) - math.log(len(log_weight))
    records = state.records._replace(finished=~forced)
    return state._replace(temperature=temperature, log_evidence=log_evidence, records=records), log_weight


def _increment(log_likelihood: Array, rest: Array, ess: float) -> Array:
    """The largest step of the temperature, up to `rest`, that keeps the effective size, by bisection.

    The size is that of the particles with a positive likelihood: no step, however small, keeps the others.
    """
    wanted = ess * jnp.sum(jnp.isfinite(log_likelihood))
    enough = lambda step: effective_size(step * log_likelihood) >= wanted

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        fine = enough(middle)
        return jnp.where(fine, middle, low), jnp.where(fine, high, middle)

    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(rest), rest))
    return jnp.where(enough(rest), rest, jnp.where(low > 0, low, high))


def _mix(key: Array, state: _State, moves: AbstractMoves, settings: Settings) -> _State:
    """Move the particles at one temperature until they have forgotten where they were, or for `num_moves` moves."""
    begin = state.points
    law = moves.law(begin)

    def moving(carry: Any) -> Array:
        done, _, _, _, correlation, _ = carry
        return (done < jnp.where(state.blank, 1, settings.num_moves)) & ~(correlation <= CORRELATION)

    def once(carry: Any) -> Any:
        done, key, points, angle, _, total = carry
        key, own = jax.random.split(key)
        points, accepted = moves.move(own, points, state.temperature, angle, law)
        rate = accepted.mean()
        return done + 1, key, points, _adapt(angle, rate, moves.wanted), _correlation(begin, points), total + rate

    start = (jnp.asarray(0), key, begin, state.angle, jnp.ones(()), jnp.zeros(()))
    done, _, points, angle, correlation, total = jax.lax.while_loop(moving, once, start)
    records, at = state.records, state.records.stages
    records = records._replace(
        stages=jnp.where(state.blank, at, at + 1),
        temperatures=records.temperatures.at[at].set(state.temperature),
        acceptance=records.acceptance.at[at].set(total / done),
        moves=records.moves.at[at].set(done),
        correlation=records.correlation.at[at].set(correlation),
        undefined=jnp.where(state.blank, jnp.sum(points.undefined), records.undefined),
    )
    angle = jnp.where(state.blank, state.angle, angle)
    return state._replace(points=points, blank=jnp.asarray(False), angle=angle, records=records)


def _adapt(angle: Array, rate: Array, wanted: float) -> Array:
    """The angle of the next move, from the share of this one's proposals that were accepted."""
    change = jnp.clip((rate - wanted) / (1 - wanted), -1.0, 1.0)
    return jnp.clip(angle * jnp.exp(change), 1e-4, math.pi / 2)


def _correlation(begin: Any, now: Any) -> Array:
    """How much particles still depend on where they were: of the features, and of the log likelihood, the larger.

    Correlations come from the sum of squared jumps, as in Kantas, Beskos and Jasra 2014, and the features' root mean
    square is taken, less what n independent particles would show. The likelihood is what a mirror image does not
    change, and what the evidence is made of.
    """
    both = lambda point: jnp.concatenate([point.features, point.log_likelihood[:, None]], 1)
    old, new = both(begin), both(now)
    variance, later = old.var(0), new.var(0)
    jump = jnp.mean(jnp.square(new - old), 0) / (2 * jnp.where(variance > 0, variance, 1.0))
    constant = jnp.where(later > 0, 1.0, 0.0)  # all particles in one place: nothing to forget, or not yet apart
    square = jnp.where(variance > 0, jnp.square(1 - jump), constant)
    excess = lambda square: jnp.sqrt(jnp.maximum(square - 2 / len(old), 0.0))
    return jnp.maximum(excess(square[:-1].mean()), excess(square[-1]))
