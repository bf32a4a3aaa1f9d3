"""How `SMC` goes about a model: chosen by rule, changed where a run shows that the choice was poor.

Twists and numbers of particles decide how noisy SMC is, and not to what it converges, so that they may be chosen by
looking at runs: first by rule, then, where a run is poor, by other twists, more particles, and no twist at all.
Estimates of an evidence are positive and right on average, so that they are seldom far too large (Markov's inequality)
but may be far too small: of two that contradict each other the larger is believed. The rules are *empirical*, and error
bars do not count that runs were chosen.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from .._display import shown_as_text
from ..factors import AbstractFactor, Product, simplify
from ..process import ReverseProcess
from ..samplers import TwistedSMC
from ..samplers.reliability import Reliability
from ..twists import AbstractTwist, Flat, Laplace, MixtureMatched, Tempered, default_twist
from ..twists.fitting import has_few_components
from .extract import Latent
from .noise_sampler import CHUNK, IslandSampler, NoiseTempering, can_temper

Answer = TypeVar("Answer")

# A run is taken as it is from this many effective particles on, up to this standard deviation of islands, in nats, and
# this distance between the mean of x in an island and in the others, in posterior standard deviations.
GOOD_SIZE = 16.0
GOOD_DEVIATION = 0.25
GOOD_MEAN_GAP = 0.75
# And up to this standard deviation of an island's log evidence by its weights, in nats. A twist that is wrong at every
# level has particles resampled at every third step, and now and then one that outweighs all others: few runs see it, so
# that islands agree and most are too low. It shows in how often weights were uneven, though never by much.
GOOD_NOISE = 0.15
MORE = 4
# A try is not believed where another one finds an evidence that is larger by so many standard errors; where it is so
# many, both are tried with more particles.
REFUTED, DOUBTED = 2.0, 1.0
# Particles where x alone is unknown, and the most that are taken; then those of each run for x, and draws of the other
# unknowns, where there are some.
NUM_PARTICLES, MOST_PARTICLES = 512, 2048
NUM_INNER, MOST_INNER = 8, 128
NUM_DRAWS, MOST_DRAWS = 256, 1024


@shown_as_text
class Plan(NamedTuple):
    """What an `SMC` run took, and why.

    Attributes:
        sampler: with its particles and steps; a `TwistedSMC` with its twist, where any was well enough.
        num_islands: independent runs.
        reason: why this twist.
        num_draws: of the other unknowns in each island, each with a run of `sampler`; None where x alone is unknown.
    """

    sampler: IslandSampler
    num_islands: int
    reason: str
    num_draws: int | None = None

    def __str__(self) -> str:
        draws = "" if self.num_draws is None else f"{self.num_draws} draws of the other unknowns × "
        return f"{self.num_islands} × {draws}{self.sampler.said}, {self.reason}"

    @property
    def size(self) -> int:
        """Draws of the other unknowns, or particles where there are none; what grows where more is asked for."""
        return self.sampler.num_particles if self.num_draws is None else self.num_draws

    def with_size(self, size: int) -> "Plan":
        """The same of another size."""
        return self.with_particles(size) if self.num_draws is None else self._replace(num_draws=size)

    def larger(self, of_draws: bool) -> "Plan | None":
        """With four times the draws, or particles; None for one that has as many as are taken at most."""
        if of_draws:
            return None if self.size >= MOST_DRAWS else self.with_size(MORE * self.size)
        count, most = self.sampler.num_particles, MOST_PARTICLES if self.num_draws is None else MOST_INNER
        return None if count >= most else self.with_particles(MORE * count)

    def with_particles(self, count: int) -> "Plan":
        """The same with so many particles."""
        return self._replace(sampler=dataclasses.replace(self.sampler, num_particles=count))


def first_plan(found: Latent, sampler: TwistedSMC, num_islands: int) -> Plan:
    """The user's choices, and the twist by rule where there is none."""
    if sampler.twist is not None:
        return Plan(sampler, num_islands, "as asked for")
    return Plan(dataclasses.replace(sampler, twist=_ruled(found, sampler.num_particles)), num_islands, "chosen by rule")


def alternatives(found: Latent, plan: Plan) -> list[Plan]:
    """Other twists to try where the rule's was poor: trusted less at high noise, with another covariance, none."""
    first = cast(TwistedSMC, plan.sampler)
    ruled: Any = first.twist
    plain = ruled.twist if isinstance(ruled, Tempered) else ruled
    of_numbers: list[AbstractTwist] = [] if found.prior.is_discrete else [Tempered(Laplace(), 0.5), Laplace()]
    of_components: list[AbstractTwist] = [Tempered(MixtureMatched(), 0.5)] if _has_components(found) else []
    others = [*of_components, *of_numbers[:1], Tempered(plain, 1.0), *of_numbers[1:], Flat()]
    sampler = lambda twist: dataclasses.replace(first, twist=twist)
    return [plan._replace(sampler=sampler(twist), reason="chosen by trial") for twist in others if twist != ruled]


def without_twist(found: Latent, plan: Plan) -> Plan | None:
    """The same by `NoiseTempering`, where that can be and does not cost too much; else None."""
    count, chunk, steps = plan.sampler.num_particles, plan.sampler.chunk, plan.sampler.num_steps
    if not can_temper(found, steps, plan.num_islands * count):
        return None
    tempering = NoiseTempering(count, steps, CHUNK if chunk is None else min(chunk, CHUNK))
    return plan._replace(sampler=tempering, reason="chosen by trial")


def best_run(once: Callable[[int, Plan], Any], plan: Plan, found: Latent, may_try: bool, may_grow: bool) -> Any:
    """A run of the plan; where that is poor, of other twists, then with more particles, and then without a twist.

    Args:
        once: the run of a plan, and how many there were before.
        plan: the first one.
        found: what it is about.
        may_try: whether there may be other twists, or none.
        may_grow: whether there may be more particles.
    """
    tried = [once(0, plan)]
    if may_try and not tried[0].is_good:
        for other in tried[0].alternatives(found):
            tried.append(once(len(tried), other))
            if tried[-1].is_good:
                break
    best, count = most_credible(tried), len(tried)
    while may_grow and not best.is_good and best.more is not None:
        larger = [run.more for run in tried if run is best or contradicted(best, [run], DOUBTED)]
        tried = [once(count + k, plan) for k, plan in enumerate(larger)]
        best, count = most_credible(tried), count + len(tried)
    without = None if best.is_good or not may_try else best.without_twist(found, plan)
    return best if without is None else most_credible([best, once(count, without)])


def most_credible(runs: Sequence[Any]) -> Any:
    """Of several tries the least bad one whose log evidence no other contradicts."""
    return min((run for run in runs if not contradicted(run, runs)), key=lambda run: run.badness)


def contradicted(run: Any, others: Sequence[Any], errors: float = REFUTED) -> bool:
    """Whether another try found an evidence that is larger by more than so many standard errors.

    Every estimate of an evidence is positive and right on average, so that it is seldom many times too large (Markov's
    inequality), but often too small: where particles miss something. Of two that differ the larger one is believed.
    """
    gap = lambda other: log_mean_evidence(other) - log_mean_evidence(run) if other is not run else 0.0
    error = lambda other: math.hypot(run.log_evidence_error, other.log_evidence_error)
    return any(gap(other) == math.inf or gap(other) > errors * error(other) for other in others)


def log_mean_evidence(run: Any) -> float:
    """Log of the mean evidence of a run's islands, in nats."""
    each = np.asarray(run.log_evidences, dtype=np.float64)
    return float(logsumexp(each) - math.log(len(each)))


def is_good(found: Reliability, noise: float) -> bool:
    """Whether a run needs no other try.

    Args:
        found: what is known of it.
        noise: standard deviation of an island's log evidence by its weights, in nats.
    """
    few_or_apart = found.least_size < GOOD_SIZE or found.deviation > GOOD_DEVIATION or _excess(found) > 0
    return not found.complaints_of_weights and not few_or_apart and noise <= GOOD_NOISE


def badness(found: Reliability, noise: float) -> float:
    """To compare poor runs by: the islands' gaps, of evidence in nats and of means, the noise, and few particles."""
    few = max(0.0, GOOD_SIZE / max(found.least_size, 1e-3) - 1)
    return found.gap + _excess(found) + few + max(0.0, noise / GOOD_NOISE - 1)


def _excess(found: Reliability) -> float:
    """How far the islands' means are apart beyond what is well, in posterior standard deviations."""
    return max(0.0, found.mean_gap - max(GOOD_MEAN_GAP, found.noise_of_means))


def _ruled(found: Latent, num_particles: int) -> AbstractTwist:
    """`default_twist`, asked for one element of the site's batch."""
    return _asked(found, lambda process, factor: default_twist(process, factor, num_particles))


def _has_components(found: Latent) -> bool:
    """Whether `MixtureMatched` may be tried."""

    def ask(process: ReverseProcess, factor: AbstractFactor) -> bool:
        size = factor.observation_size(process.event_shape) or 0
        return process.diffusion.is_gaussian and has_few_components(process, size)

    return _asked(found, ask)


def _asked(found: Latent, question: Callable[[ReverseProcess, AbstractFactor], Answer]) -> Answer:
    """What a question about the process and the factor answers for one element of the site's batch."""
    answers: list[Answer] = []

    def ask(module: Any, factor: Any) -> Any:
        process = module.process
        answers.append(question(process, Product(()) if factor is None else simplify(factor, process.event_shape)))
        return jnp.zeros(())

    jax.eval_shape(lambda: found.prior.map_batch(ask, found.factor))
    return answers[0]
