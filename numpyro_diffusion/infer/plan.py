"""How `SMC` goes about a model: chosen by rule, changed where a run shows that the choice was poor."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..factors import simplify
from ..samplers import TwistedSMC
from ..samplers.reliability import Reliability
from ..twists import AbstractTwist, Flat, Laplace, Tempered, default_twist
from .extract import Latent

# A run is taken as it is from this many effective particles on, and up to this standard deviation of islands, in nats.
GOOD_SIZE = 16.0
GOOD_DEVIATION = 0.25
MORE_PARTICLES = 4


class Plan(NamedTuple):
    """What an `SMC` run took, and why.

    Attributes:
        sampler: with its twist, particles and steps.
        num_islands: independent runs.
        reason: why this twist.
    """

    sampler: TwistedSMC
    num_islands: int
    reason: str

    def __str__(self) -> str:
        sampler = self.sampler
        steps = "" if sampler.num_steps is None else f", {sampler.num_steps} steps"
        opposite = ", antithetic" if sampler.antithetic else ""
        twist = type(sampler.twist).__name__
        if isinstance(sampler.twist, Tempered):
            twist = f"Tempered({type(sampler.twist.twist).__name__}, power={sampler.twist.power:g})"
        return f"{self.num_islands} × {sampler.num_particles} particles{steps}{opposite}; twist {twist}, {self.reason}"


def first_plan(found: Latent, sampler: TwistedSMC, num_islands: int) -> Plan:
    """The user's choices, and the twist by rule where there is none."""
    if sampler.twist is not None:
        return Plan(sampler, num_islands, "as asked for")
    return Plan(dataclasses.replace(sampler, twist=_ruled(found)), num_islands, "chosen by rule")


def alternatives(found: Latent, plan: Plan) -> list[Plan]:
    """Other twists to try where the rule's was poor: trusted less at high noise, with another covariance, none."""
    ruled: Any = plan.sampler.twist
    others: list[AbstractTwist] = [Tempered(ruled, 1.0), Flat()]
    if not found.prior.is_discrete and not isinstance(ruled, Laplace):
        others.insert(1, Laplace())
    sampler = lambda twist: dataclasses.replace(plan.sampler, twist=twist)
    return [plan._replace(sampler=sampler(twist), reason="chosen by trial") for twist in others]


def with_more(plan: Plan, times: int = MORE_PARTICLES) -> Plan:
    """The same with more particles."""
    more = dataclasses.replace(plan.sampler, num_particles=times * plan.sampler.num_particles)
    return plan._replace(sampler=more)


def is_good(found: Reliability) -> bool:
    """Whether a run needs no other try."""
    return not found.complaints and found.least_size >= GOOD_SIZE and found.deviation <= GOOD_DEVIATION


def badness(found: Reliability) -> float:
    """To compare poor runs by: the islands' gap in nats, and how far the least effective size is below enough."""
    return found.gap + max(0.0, GOOD_SIZE / max(found.least_size, 1e-3) - 1)


def _ruled(found: Latent) -> AbstractTwist:
    """`default_twist`, asked for one element of the site's batch."""
    chosen: list[AbstractTwist] = []

    def check(module: Any, factor: Any) -> Any:
        process = module.process
        chosen.append(Flat() if factor is None else default_twist(process, simplify(factor, process.event_shape)))
        return jnp.zeros(())

    jax.eval_shape(lambda: found.prior.map_batch(check, found.factor))
    return chosen[0]
