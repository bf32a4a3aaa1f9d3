"""Tempered SMC as a sampler of one diffusion law times a factor, where no twist does.

This is what `TemperedSMC` does, for one example of one diffusion law and a factor, with the answer that `TwistedSMC`
gives. Particles begin as draws of the prior and go to the posterior by powers of r, moving in the noise of the whole
chain, so that nothing has to be known of E[r(x_0) | x_t] at high noise. *Consistent as particles grow*; the evidence is
*not unbiased*, since temperatures and moves are chosen from the particles.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Float
from numpyro.handlers import block

from ..distributions import DiffusionPrior
from ..factors import AbstractFactor
from ..process import ReverseProcess
from ..samplers import Ancestral, Particles, TwistedSMC
from .extract import Latent, over_batch
from .noise_moves import Options, run_island
from .tempering import Records, Settings

CHUNK = 128  # particles whose gradients through the whole chain are in memory at once
SETTINGS = Settings(ess=0.6, num_moves=20, max_temperatures=100)
_MAX_LEAPFROGS = 16
# Floating-point operations of one draw of the prior for every particle. Moves make some thousands of them: at the limit
# some minutes of one core, where a network would take hours.
LARGEST_COST = 3e8


class NoiseTempering(eqx.Module):
    """Particles that go from the prior to the posterior by powers of r, in the space of the chain's noise.

    What `TemperedSMC` does, for one example, and with the answer that `TwistedSMC` gives: no twist is involved, and x
    moves as a whole, so that a likelihood for which no twist is right at high noise is no harder than another. It
    needs real values and no known elements. *Consistent as particles grow*; the evidence is *not unbiased*, as
    temperatures and moves are chosen from the same particles.

    Args:
        num_particles: N, at least 2.
        num_steps: how many steps of the chain to take; all unless given.
        chunk: at most so many particles go through the chain at a time.
    """

    num_particles: int = eqx.field(static=True)
    num_steps: int | None = eqx.field(static=True, default=None)
    chunk: int = eqx.field(static=True, default=CHUNK)
    threshold: ClassVar[float] = 1.0  # resampled at every temperature
    devices: ClassVar[None] = None

    @property
    def said(self) -> str:
        """Particles and steps in words."""
        steps = "" if self.num_steps is None else f", {self.num_steps} steps"
        return f"{self.num_particles} particles{steps}; no twist, tempered in the space of the noise"

    def on_one_device(self) -> "NoiseTempering":
        """The same: particles are not shared."""
        return self

    def run(self, key: Array, process: ReverseProcess, factor: AbstractFactor) -> Particles:
        """One run, whose particles have equal weights; see `effective_sizes` for `Particles.effective_size`."""
        options = Options(self.num_particles, "hmc", _MAX_LEAPFROGS, self.chunk, SETTINGS)
        prior = DiffusionPrior(process, sampler=Ancestral(self.num_steps))
        island = run_island(_model, options, key, (prior, factor), {})
        count, stages = self.num_particles, SETTINGS.max_temperatures
        log_weight = jnp.full(count, -jnp.log(float(count)))
        same = jnp.broadcast_to(jnp.arange(count), (stages + 1, count))
        sizes = effective_sizes(island.records, count)
        found = Particles(island.values["x"], log_weight, island.log_evidence, sizes, same)
        return found.beside_law(process, factor)


def effective_sizes(records: Records, count: int) -> Float[Array, " stages"]:
    """Of how many independent particles the particles are worth: at the start, at each temperature, and at the end.

    A temperature's weights leave the share that it keeps. Then moves multiply what is common to particles, the excess
    of a mean's variance over that of independent ones, by the square of their correlation with where they were. Where
    the temperatures were too few, none is left. *Approximate*.

    Args:
        records: of the temperatures.
        count: of the particles.

    Returns:
        Shape (max_temperatures + 2,): before the first temperature, by the weights of each of them, all particles for
        those that were not needed, and after the last one's moves.
    """

    def stage(variance: Array, correlation: Array) -> tuple[Array, Array]:
        weighted, needed = variance / SETTINGS.ess, ~jnp.isnan(correlation)
        moved = 1 + jnp.square(correlation) * (weighted - 1)
        return jnp.where(needed, moved, variance), jnp.where(needed, weighted, 1.0)

    first = jnp.ones(())
    last, weighted = jax.lax.scan(stage, first, records.correlation)
    variances = jnp.concatenate([first[None], weighted, last[None]])
    return jnp.where(records.finished, count / variances, 0.0)


IslandSampler = TwistedSMC | NoiseTempering


def can_temper(found: Latent, num_steps: int | None, num_particles: int) -> bool:
    """Whether `NoiseTempering` takes a site and its factor, and whether so many particles are affordable."""
    costs = []

    def check(sampler: Ancestral, key: Array, module: Any, factor: AbstractFactor) -> Array:
        process = module.process
        smooth = process.is_smooth and not factor.fixes_elements
        costs.append(_cost(process, sampler) if smooth else math.inf)
        return jnp.zeros(())

    jax.eval_shape(lambda key: over_batch(check, Ancestral(num_steps), key, found), jax.random.key(0))
    return math.prod(found.prior.batch_shape) * num_particles * costs[0] <= LARGEST_COST


def _cost(process: ReverseProcess, sampler: Ancestral) -> float:
    """Floating-point operations of a draw of the prior, from those of a chain of two steps, which is not compiled."""
    steps = len(sampler.times(process))
    short = Ancestral(min(2, steps))
    noise = jax.ShapeDtypeStruct(short.noise_shape(process), jnp.zeros(()).dtype)
    leaves, layout = jax.tree.flatten(process)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    draw = jax.jit(lambda noise, leaves: short.from_noise(noise, jax.tree.unflatten(layout, leaves)))
    analysis: Any = draw.lower(noise, shapes).cost_analysis()
    return float(analysis["flops"]) * steps / min(2, steps)


def _model(prior: DiffusionPrior, factor: AbstractFactor) -> None:
    x = numpyro.sample("x", prior)
    with block():  # a factor may run a model of its own, whose sites are none of this one
        log_r = factor.log_r(x)
    numpyro.factor("r", log_r)
