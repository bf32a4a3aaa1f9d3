"""Tempered SMC of one island: from draws of the prior to draws of the posterior, by powers of the likelihood."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp

from .._batching import batched_map
from ..samplers.resampling import effective_size, systematic
from .noise_model import NoiseModel
from .rotation import Evaluate, Point, move, reference

Move = Literal["hmc", "pcn"]
# Acceptance rates that the angle aims at.
WANTED = {"hmc": 0.8, "pcn": 0.3}
# Moves go on until particles' correlation with where they were, when the temperature changed, is at most this.
CORRELATION = 0.1
HALVINGS = 60


class Options(NamedTuple):
    """Settings of a run, all static; see `TemperedSMC`."""

    num_particles: int
    move: Move
    ess: float
    num_moves: int
    max_leapfrogs: int
    max_temperatures: int
    chunk: int | None


class Island(NamedTuple):
    """One island's result.

    Attributes:
        values: draws of latent and deterministic sites, each with the particles in front.
        log_evidence: in nats, shape (); −inf where no particle had a likelihood.
        stages: how many temperatures, shape ().
        finished: whether the step to temperature 1 kept the effective size, shape ().
        temperatures: shape (max_temperatures,), NaN from `stages` on.
        acceptance: mean acceptance probability at each of them, likewise.
        moves: how many moves there, 0 from `stages` on.
        undefined: at how many of the prior's draws the densities were no number, shape ().
    """

    values: dict[str, Array]
    log_evidence: Array
    stages: Array
    finished: Array
    temperatures: Array
    acceptance: Array
    moves: Array
    undefined: Array


class _State(NamedTuple):
    key: Array
    points: Point
    temperature: Array
    log_evidence: Array
    angle: Array
    stage: Array
    finished: Array
    temperatures: Array
    acceptance: Array
    moves: Array


@eqx.filter_jit
def run_island(
    model: Callable[..., Any], options: Options, key: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Island:
    """Run one island, compiled; see `TemperedSMC`."""
    noise_model = NoiseModel(model, args, kwargs)
    _, unravel = ravel_pytree(noise_model.example)
    is_noise, _ = ravel_pytree(noise_model.is_noise)
    evaluate = _evaluator(noise_model, unravel, options.move)
    first, key = jax.random.split(key)
    keys = jax.random.split(first, options.num_particles)
    z = batched_map(lambda key: ravel_pytree(noise_model.start(key))[0], keys, options.chunk)
    every = lambda z, temperature: batched_map(lambda z: evaluate(z, temperature), z, options.chunk)
    points = every(z, jnp.zeros(()))
    undefined = jnp.sum(points.undefined)

    def stage(state: _State) -> _State:
        key, pick, again = jax.random.split(state.key, 3)
        state, log_weight = _heat(state, options)
        z = state.points.z[systematic(pick, log_weight)]
        points = every(z, state.temperature)
        return _mix(again, state._replace(key=key, points=points), evaluate, options, is_noise)

    going = lambda state: (state.temperature < 1) & jnp.isfinite(state.log_evidence)
    last = jax.lax.while_loop(going, stage, _first(key, points, options.max_temperatures))
    values = batched_map(lambda z: noise_model.values(unravel(z)), last.points.z, options.chunk)
    records = (last.stage, last.finished, last.temperatures, last.acceptance, last.moves)
    return Island(values, last.log_evidence, *records, undefined)


def _evaluator(model: NoiseModel, unravel: Callable[[Array], Any], kind: Move) -> Evaluate:
    """(z, temperature) → `Point`: a density that is no number counts as 0, and such a slope too."""

    def target(z: Array, temperature: Array) -> tuple[Array, Any]:
        found = model.evaluate(unravel(z))
        return found.log_base + temperature * found.log_likelihood, found

    def evaluate(z: Array, temperature: Array) -> Point:
        slope = jnp.zeros(())
        if kind == "hmc":
            (_, found), slope = jax.value_and_grad(target, has_aux=True)(z, temperature)
            slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
        else:
            _, found = target(z, temperature)
        both = (found.log_base, found.log_likelihood)
        bad = [jnp.isnan(value) | jnp.isposinf(value) for value in both]
        base, likelihood = (jnp.where(bad[0] | bad[1], -jnp.inf, value) for value in both)
        return Point(z, base, likelihood, bad[0] | bad[1], found.features, slope)

    return evaluate


def _first(key: Array, points: Point, size: int) -> _State:
    none = jnp.full(size, jnp.nan)
    zero, true = jnp.zeros(()), jnp.asarray(True)
    return _State(key, points, zero, zero, jnp.ones(()), jnp.asarray(0), true, none, none, jnp.zeros(size, dtype=int))


def _heat(state: _State, options: Options) -> tuple[_State, Array]:
    """The next temperature, and the log weights that lead to it."""
    log_likelihood = state.points.log_likelihood
    rest = 1 - state.temperature
    step = _increment(log_likelihood, rest, options.ess)
    forced = (state.stage == options.max_temperatures - 1) & (step < rest)
    step = jnp.where(forced, rest, step)
    log_weight = step * log_likelihood
    temperature = jnp.where(step >= rest, 1.0, state.temperature + step)
    log_evidence = state.log_evidence + logsumexp(log_weight) - math.log(options.num_particles)
    return state._replace(temperature=temperature, log_evidence=log_evidence, finished=~forced), log_weight


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


def _mix(key: Array, state: _State, evaluate: Evaluate, options: Options, is_noise: Array) -> _State:
    """Move the particles at one temperature until they have forgotten where they were, or for `num_moves` moves."""
    law, begin = reference(state.points.z, is_noise), state.points

    def moving(carry: Any) -> Array:
        done, _, _, _, correlation, _ = carry
        return (done < options.num_moves) & ~(correlation <= CORRELATION)

    def once(carry: Any) -> Any:
        done, key, points, angle, _, total = carry
        key, own = jax.random.split(key)
        count = _leapfrogs(angle, options)
        one = lambda pair: move(pair[0], evaluate, pair[1], state.temperature, angle, count, law)
        keys = jax.random.split(own, options.num_particles)
        points, accepted = batched_map(one, (keys, points), options.chunk)
        rate = accepted.mean()
        return done + 1, key, points, _adapt(angle, rate, options.move), _correlation(begin, points), total + rate

    start = (jnp.asarray(0), key, begin, state.angle, jnp.ones(()), jnp.zeros(()))
    done, _, points, angle, _, total = jax.lax.while_loop(moving, once, start)
    at = state.stage
    return state._replace(
        points=points,
        angle=angle,
        stage=at + 1,
        temperatures=state.temperatures.at[at].set(state.temperature),
        acceptance=state.acceptance.at[at].set(total / done),
        moves=state.moves.at[at].set(done),
    )


def _leapfrogs(angle: Array, options: Options) -> Array:
    """As many rotations as make a quarter turn, after which a draw of the reference is a new one."""
    if options.move == "pcn":
        return jnp.asarray(1)
    return jnp.clip(jnp.ceil(math.pi / 2 / angle), 1, options.max_leapfrogs).astype(int)


def _adapt(angle: Array, rate: Array, kind: Move) -> Array:
    """The angle of the next move, from the share of this one's proposals that were accepted."""
    change = jnp.clip((rate - WANTED[kind]) / (1 - WANTED[kind]), -1.0, 1.0)
    return jnp.clip(angle * jnp.exp(change), 1e-4, math.pi / 2)


def _correlation(begin: Point, now: Point) -> Array:
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
