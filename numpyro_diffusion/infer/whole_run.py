"""Runs of SMC with other unknowns than x, what speaks against them, and a second opinion.

What `SMC` asks of a run in which more than x is unknown: its evidence with an error, what speaks against it, and what
to try next. Beside the gaps between islands the noise of the estimates of p(y | θ) counts: up to a standard deviation
of about one nat moves are hardly slower than with the exact likelihood, and far above it they hardly move (Doucet,
Pitt, Deligiannidis and Kohn 2015). The signs are *approximate*; the second opinion draws all unknowns from the prior,
or tempers all of them.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..samplers import TwistedSMC
from ..samplers.reliability import LARGEST_GAP, FarthestMean, differences, farthest_mean, warn_of
from ..samplers.resampling import systematic
from ..twists import Flat
from .cross_check import CrossCheck, compared, mean_weight
from .evidence import evidence_error
from .extract import Latent
from .mixtures import Labels
from .plan import GOOD_DEVIATION, Plan, alternatives
from .tempered import TemperedSMC
from .tempering import by_island
from .whole import Island, prior_weights, run_whole

# Standard deviation, in nats, of the estimates of log p(y | other unknowns): up to the first, moves are hardly slower
# than with the exact likelihood (Doucet, Pitt, Deligiannidis and Kohn 2015); above the second they hardly move.
GOOD_NOISE, LARGEST_NOISE = 1.0, 2.5
LOW_ACCEPTANCE = 0.05
HIGH_CORRELATION = 0.5
_EACH = 16  # draws of x for each of the other unknowns in a second opinion


@dataclasses.dataclass(frozen=True)
class WholeReliability:
    """Diagnostics of independent runs of SMC with other unknowns than x.

    Attributes:
        noise: standard deviation of the estimates of log p(y | other unknowns) at the posterior, in nats, the largest
            of any island.
        least_size: effective particles of x at their fewest in a run, for the median draw of the worst island.
        acceptance: the least mean acceptance probability of moves at any temperature.
        correlation: the largest of draws with where they were before the moves at one temperature.
        gap: between the largest and the least of the islands' log evidences, in nats; 0 for one island.
        deviation: their standard deviation, in nats; 0 for one island.
        undefined: the share of the prior's draws at which the model's density is no number.
        unfinished: islands in which the temperatures were too few.
        farthest: the site whose mean in one island is farthest from the others', and how far.
    """

    noise: float
    least_size: float
    acceptance: float
    correlation: float
    gap: float
    deviation: float
    undefined: float
    unfinished: int
    farthest: FarthestMean

    @property
    def complaints(self) -> list[str]:
        """What speaks against the answer, with its numbers; empty where nothing does."""
        said = []
        if not self.noise <= LARGEST_NOISE:
            said.append(
                f"the likelihood given the other unknowns is estimated with a noise of {self.noise:.2f} nats (above "
                f"{LARGEST_NOISE})"
            )
        if not self.acceptance >= LOW_ACCEPTANCE:
            said.append(f"moves were accepted with a mean probability of {self.acceptance:.3g} at one temperature")
        if not self.correlation <= HIGH_CORRELATION:
            said.append(f"draws correlate by {self.correlation:.2f} with where they were before all moves")
        if not self.gap <= LARGEST_GAP:
            said.append(f"the islands' log evidences differ by up to {self.gap:.2f} nats")
        if apart := self.farthest.complaint:
            said.append(apart)
        if self.undefined:
            said.append(f"the model's density is no number at {self.undefined:.1%} of the prior's draws, where it is 0")
        if self.unfinished:
            said.append(f"the temperatures were too few for {self.unfinished} islands")
        return said

    def warn(self, remedy: str, stacklevel: int = 3) -> None:
        """A `ReliabilityWarning` that names every complaint, if there is one."""
        warn_of(self.complaints, remedy, stacklevel + 1)

    @property
    def said(self) -> str:
        """The diagnostics in words."""
        return (
            f"noise of log p(y | other unknowns) {self.noise:.2f} nats; effective particles of x: at least "
            f"{self.least_size:.0f}; acceptance at least {self.acceptance:.2f}"
        )


class WholeRun(NamedTuple):
    """One try of a plan; `island` has the islands in front of every array."""

    plan: Plan
    island: Island

    @property
    def reliability(self) -> WholeReliability:
        """What speaks against it."""
        island, evidence = self.island, np.asarray(self.log_evidences, dtype=np.float64)
        each = lambda name: np.concatenate([*by_island(island.records, name), [np.nan]])
        return WholeReliability(
            float(np.max(island.noise)),
            float(np.min(island.least_size)),
            float(np.nanmin(each("acceptance"), initial=1.0)),
            float(np.nanmax(each("correlation"), initial=0.0)),
            *differences(evidence),
            float(np.mean(island.records.undefined)) / int(self.plan.num_draws or 1),
            int(np.sum(~np.asarray(island.records.finished))),
            farthest_mean(island.values),
        )

    @property
    def log_evidences(self) -> Float[Array, " islands"]:
        """Of every island, in nats, shape (num_islands,)."""
        return self.island.log_evidence

    @property
    def log_evidence_error(self) -> float:
        """Standard error of the log of the islands' mean evidence, in nats; NaN from one island."""
        return evidence_error(self.log_evidences)

    @property
    def is_good(self) -> bool:
        """Whether it needs no other try."""
        found = self.reliability
        return not found.complaints and found.noise <= GOOD_NOISE and found.deviation <= GOOD_DEVIATION

    @property
    def badness(self) -> float:
        """The islands' gap in nats, and how far noise and correlation are above what is good, to compare poor runs by.

        Where it is not a number, as of an island without any evidence, it is infinite.
        """
        found = self.reliability
        sum_ = found.gap + max(0.0, found.noise / GOOD_NOISE - 1) + max(0.0, found.correlation / HIGH_CORRELATION - 1)
        return sum_ if sum_ == sum_ else float("inf")

    @property
    def more(self) -> Plan | None:
        """More particles of x where its likelihood is noisy, more draws where not; None after that."""
        return self.plan.larger(of_draws=self.reliability.noise <= GOOD_NOISE)

    @property
    def said(self) -> str:
        """The diagnostics in words."""
        return self.reliability.said

    def alternatives(self, found: Latent) -> list[Plan]:
        """Other twists to try, where the likelihood is so noisy that more particles would not do."""
        return alternatives(found, self.plan) if self.reliability.noise > LARGEST_NOISE else []

    def without_twist(self, found: Latent, plan: Plan) -> None:
        """Nothing: runs for many values of the other unknowns would cost too much."""
        del found, plan

    def labels(self, count: int) -> Labels:
        """The labels' posterior probabilities: islands weighted by their evidence."""
        del count
        label_probs: Any = self.island.label_probs
        island = jax.nn.softmax(self.log_evidences).reshape((-1,) + (1,) * (label_probs.ndim - 1))
        error = jnp.std(label_probs, axis=0, ddof=1) / jnp.sqrt(float(len(label_probs)))
        return Labels(jnp.sum(label_probs * island, 0), error)


class Whole(NamedTuple):
    """A model of which more than x is unknown; `site` as it was asked for; `is_smooth` where nothing is discrete."""

    model: Any
    site: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_smooth: bool

    def run(self, key: Array, plan: Plan) -> WholeRun:
        """Run a plan, the islands one after the other in one compiled program."""
        sampler = cast(TwistedSMC, plan.sampler)
        one = lambda key: run_whole(
            self.model, self.site, sampler, int(plan.num_draws or 0), key, self.args, self.kwargs
        )
        islands = [one(own) for own in jax.random.split(key, plan.num_islands)]
        return WholeRun(plan, jax.tree.map(lambda *leaves: jnp.stack(leaves), *islands))

    def restored(self, plan: Plan, arrays: Any) -> WholeRun:
        """A run from a checkpoint, all but its plan."""
        return WholeRun(plan, *arrays)

    def draws(self, run: WholeRun, key: Any, group_by_chain: bool) -> dict[str, Array]:
        """Equally weighted draws by site, see `SMC.get_samples`."""
        values = run.island.values
        if group_by_chain:
            return dict(values)
        pick, mix = jax.random.split(key)
        # The order of systematic resampling is that of the draws; mixed, they are exchangeable.
        index = jax.random.permutation(mix, systematic(pick, jnp.repeat(run.log_evidences, int(run.plan.size))))
        return {name: value.reshape((-1, *value.shape[2:]))[index] for name, value in values.items()}

    def second_opinion(self, key: Array, plan: Plan, first: tuple[float, float], num_draws: int) -> CrossCheck:
        """See `SMC.cross_check`: draws of the other unknowns and of x from the prior, or tempering of both."""
        draw, temper = jax.random.split(key)
        each = TwistedSMC(_EACH, Flat(), num_steps=plan.sampler.num_steps, chunk=plan.sampler.chunk, antithetic=False)
        count = max(2, num_draws // _EACH)
        log_weight = prior_weights(self.model, self.site, each, count, draw, self.args, self.kwargs)
        value, error, enough = mean_weight(log_weight[None])
        if enough or not self.is_smooth:
            return compared("prior draws", first, value, error)
        run = TemperedSMC(self.model).run(temper, *self.args, **self.kwargs)
        return compared("tempering", first, run.log_evidence, run.log_evidence_error)
