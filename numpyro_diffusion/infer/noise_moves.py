"""Tempered SMC of one island in the space of the noise: see `TemperedSMC`.

Particles are positions in the noise of a model (`noise_model`), and move by the rotations of `rotation`, with kicks
along the gradient (``"hmc"``) or without (``"pcn"``). Every move leaves prior × likelihood^temperature *exactly*
invariant, given the reference law; a density that is no number counts as 0. `tempering` leads from the prior to the
posterior.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from .._batching import batched_map
from .._compiled import compiled
from .noise_model import NoiseModel
from .rotation import Point, Reference, move, reference
from .tempering import AbstractMoves, Records, Settings, anneal

Move = Literal["hmc", "pcn"]


class Options(NamedTuple):
    """Settings of a run, all static; see `TemperedSMC`."""

    num_particles: int
    move: Move
    max_leapfrogs: int
    chunk: int | None
    settings: Settings


class Island(NamedTuple):
    """One island's result.

    Attributes:
        values: draws of latent and deterministic sites, each with the particles in front.
        log_evidence: in nats, shape (); −inf where no particle had a likelihood.
        records: of temperatures and moves.
    """

    values: dict[str, Array]
    log_evidence: Array
    records: Records


@compiled
def run_island(
    model: Callable[..., Any], options: Options, key: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Island:
    """Run one island, compiled; see `TemperedSMC`."""
    noise_model = NoiseModel(model, args, kwargs)
    moves = NoiseMoves(noise_model, options)
    first, key = jax.random.split(key)
    keys = jax.random.split(first, options.num_particles)
    z = batched_map(lambda key: ravel_pytree(noise_model.start(key))[0], keys, options.chunk)
    points = moves.points_at(z, jnp.zeros(()))
    points, log_evidence, records = anneal(key, moves, points, options.settings)
    values = batched_map(lambda z: noise_model.values(moves.unravel(z)), points.z, options.chunk)
    return Island(values, log_evidence, records)


class NoiseMoves(AbstractMoves):
    """Rotations, with kicks along the gradient for ``"hmc"``."""

    def __init__(self, model: NoiseModel, options: Options) -> None:
        self.model, self.options = model, options
        _, self.unravel = ravel_pytree(model.example)
        self.is_noise, _ = ravel_pytree(model.is_noise)
        self.wanted = {"hmc": 0.8, "pcn": 0.3}[options.move]

    def points_at(self, z: Float[Array, "n d"], temperature: Float[Array, ""]) -> Point:
        """The densities at positions of shape (n, D)."""
        return batched_map(lambda z: self._point_at(z, temperature), z, self.options.chunk)

    def at(self, points: Point, temperature: Float[Array, ""]) -> Point:
        """With the slope of this temperature."""
        return self.points_at(points.z, temperature)

    def law(self, points: Point) -> Reference:
        """The normal reference of the rotations."""
        return reference(points.z, self.is_noise)

    def move(
        self, key: PRNGKeyArray, points: Point, temperature: Float[Array, ""], angle: Float[Array, ""], law: Reference
    ) -> tuple[Point, Float[Array, " n"]]:
        """As many rotations as make a quarter turn, after which a draw of the reference is a new one."""
        count = jnp.asarray(1)
        if self.options.move == "hmc":
            count = jnp.clip(jnp.ceil(math.pi / 2 / angle), 1, self.options.max_leapfrogs).astype(int)
        one = lambda pair: move(pair[0], self._point_at, pair[1], temperature, angle, count, law)
        return batched_map(one, (jax.random.split(key, len(points.z)), points), self.options.chunk)

    def _point_at(self, z: Array, temperature: Array) -> Point:
        """A density that is no number counts as 0, and such a slope too."""

        def target(z: Array) -> tuple[Array, Any]:
            found = self.model.log_densities(self.unravel(z))
            return found.log_base + temperature * found.log_likelihood, found

        slope = jnp.zeros(())
        if self.options.move == "hmc":
            (_, found), slope = jax.value_and_grad(target, has_aux=True)(z)
            slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
        else:
            _, found = target(z)
        both = (found.log_base, found.log_likelihood)
        bad = [jnp.isnan(value) | jnp.isposinf(value) for value in both]
        base, likelihood = (jnp.where(bad[0] | bad[1], -jnp.inf, value) for value in both)
        return Point(z, base, likelihood, bad[0] | bad[1], found.features, slope)
