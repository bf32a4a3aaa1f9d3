"""SMC for a NumPyro model with a latent diffusion site, and perhaps other unknowns.

Twisted SMC for x (`samplers.smc`), density-tempered marginalised SMC for other unknowns (Duan and Fulop 2015).
"""

# Over 300 lines: one class, a third of it the documentation of its arguments.

import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_callable, check_count, check_key, check_optional_positive, check_path, check_site
from .._devices import Devices
from .._display import Described, evidence_of, model_name
from ..samplers import Particles, Reliability, ReliabilityWarning, TwistedSMC
from ..twists import AbstractTwist
from .cross_check import CrossCheck
from .doubling import doublings
from .extract import Latent, extract
from .islands import Alone, IslandsRun, check_evidence
from .mixtures import Labelled, Labels, Mixture
from .others import others_of
from .plan import NUM_DRAWS, NUM_INNER, NUM_PARTICLES, Plan, best_run, first_plan, log_mean_evidence
from .resume import settings_of
from .several import one_site
from .shorthand import sampler_of
from .sites import mixture_at
from .summary import table
from .tempering import by_island
from .whole_run import Whole, WholeReliability, WholeRun


class SMC(Described):
    """Samples all unknowns of a model with a diffusion site and estimates its log evidence, by runs of `TwistedSMC`.

    *Consistent as particles grow*; where x alone is unknown and a twist leads the particles, the evidence estimate is
    unbiased at any number of them. Independent runs, the islands, give the standard error, and are the chains in ArviZ.

    Other latent sites, on which the prior of x may depend, are drawn along: each island has `num_draws` draws of them,
    each with a run of its own for x, which estimates the likelihood without x, and never a bound. From draws of their
    prior these go to the posterior by powers of that estimate, with resampling and pseudo-marginal Metropolis moves:
    *consistent as draws grow*, for any number of particles. Sites may be continuous, or have single elements of a few
    values; moves are made for some ten numbers. `reliability` is then that of the moves and of the estimates.

    What is not given is chosen, and said by `plan`: the twist by rule (`nd.twists.default_twist`); where that run has
    few effective particles, noisy weights or islands apart, other twists are tried, the best of them is kept, and if
    need be run again with four times as many particles. Where that is no better and the prior's chain is cheap, as with
    an exact denoiser, no twist leads the particles at last: they are tempered as by `TemperedSMC`. What then still
    speaks against the answer is a warning with its numbers (`reliability`). `cross_check` needs no twist.

    The site's law may be a mixture of priors, ``dist.MixtureGeneral(dist.Categorical(probs), [prior_a, prior_b])``:
    each is run with as many particles, and counts by its evidence; `labels` has the labels' probabilities.

    Args:
        model: the NumPyro model.
        site: name of the diffusion site; None for the only one, which is found when run, or for several, of different
            priors with one schedule, which are then one state.
        num_particles: in each island, at least 2; 512 unless given, or 2,048 where these are too few. With other
            unknowns in each run for x; 8 unless given, or 32 or 128 where these are too few.
        num_islands: independent runs; a standard error needs 2.
        sampler: of every island, ``nd.samplers.TwistedSMC(512)`` unless given; where it names no twist, twists are
            tried in turn, see above, and where it names no steps, the prior's own sampler does.
        twist: like `num_particles`, `num_steps`, `threshold`, `chunk`, `antithetic` and `devices` an argument of
            `TwistedSMC`, which says what they are: shorthand for a `sampler`, and not to be given along with one.
        num_steps: see `twist`.
        threshold: see `twist`.
        chunk: see `twist`.
        antithetic: see `twist`.
        devices: see `twist`; they share the islands where their number divides among them, and the particles of each
            island where it does not. Also those of several processes, which then all return the whole answer.
        num_draws: with other unknowns, draws of them in each island; 256 unless given, 1,024 where these are few.
        target_log_evidence_sd: double the particles, or the draws of other unknowns, until the standard deviation of
            the islands' log evidences is at most this, in nats, or `max_particles` is reached, which gives a warning.
        max_particles: the budget of `target_log_evidence_sd`, particles, or draws, of one island.
        checkpoint: file of the last finished run of `target_log_evidence_sd`. With the same key, arguments and settings
            a run goes on from there, also with a greater `max_particles` or another target, to the same numbers.
        progress_bar: whether `target_log_evidence_sd` shows one.

    Example:
        >>> prior = nd.load("digits")
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).sum(), 1.0), obs=y)  # the sum of 64 pixels
        >>> nd.infer.SMC(model, num_particles=64, num_steps=20).run(jax.random.key(0), 19.0).get_samples()["x"].shape
        (256, 8, 8)

    Raises:
        TypeError: a `sampler` that is no `TwistedSMC`.
        ValueError: counts below their minimum; a sampler along with keywords that make one; when run, what
            `extract_factor` raises, and a factor that is 0 at all particles.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        site: str | None = None,
        num_particles: int | None = None,
        num_islands: int = 4,
        *,
        sampler: TwistedSMC | None = None,
        twist: AbstractTwist | None = None,
        num_steps: int | None = None,
        threshold: float | None = None,
        chunk: int | None = None,
        antithetic: bool | None = None,
        devices: Devices | None = None,
        num_draws: int | None = None,
        target_log_evidence_sd: float | None = None,
        max_particles: int = 2**14,
        checkpoint: str | PathLike[str] | None = None,
        progress_bar: bool = True,
    ) -> None:
        self.model, self._asked = check_callable("model", model), check_site(site)
        self._model: Any = model
        self.site: Any = site
        self.num_islands = check_count("num_islands", num_islands)
        shorthand = {
            "num_particles": num_particles, "twist": twist, "num_steps": num_steps, "threshold": threshold,
            "chunk": chunk, "antithetic": antithetic, "devices": devices,
        }  # fmt: skip
        self._sampler = sampler_of(TwistedSMC, sampler, shorthand, NUM_PARTICLES)
        self._may_grow = num_particles is None and sampler is None and num_draws is None
        self._says_particles = num_particles is not None or sampler is not None
        self.num_draws = None if num_draws is None else check_count("num_draws", num_draws, 2)
        check_optional_positive("target_log_evidence_sd", target_log_evidence_sd)
        if target_log_evidence_sd is not None and self.num_islands < 2:
            raise ValueError("num_islands: expected at least 2 with target_log_evidence_sd, got 1")
        if checkpoint is not None and target_log_evidence_sd is None:
            raise ValueError(f"checkpoint: expected None without target_log_evidence_sd, got {checkpoint!r}")
        self.checkpoint = check_path("checkpoint", checkpoint)
        self.target_log_evidence_sd, self.progress_bar = target_log_evidence_sd, progress_bar
        self.max_particles = check_count("max_particles", max_particles, 2)
        self._result: IslandsRun | WholeRun | None = None
        self._target: Any = None  # `Alone` or `Whole`
        self._plan: Plan | None = None
        self._key: Array | None = None
        self._mixture: Mixture | None = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def run(self, key: Array, *args: Any, **kwargs: Any) -> "SMC":
        """Run, with the model's arguments; returns itself."""
        key, self._key = jax.random.split(check_key("key", key))
        self.args, self.kwargs = args, kwargs
        # Outside of compiled code, where values can be checked.
        whole = others_of(self.model, args, kwargs)
        given = self.model if whole is None else whole.given
        self._model, self.site = one_site(given, self._asked, args, kwargs)
        self._mixture = mixture_at(self._model, self.site, args, kwargs)
        model = self._model if self._mixture is None else Labelled(self._model, self.site, self._mixture.laws[0])
        found = extract(model, self.site, args, kwargs).in_latent()
        self._plan = first_plan(found, self._sampler, self.num_islands)
        if whole is None and self.num_draws is not None:
            raise ValueError(f"num_draws: expected None for a model in which x alone is unknown, got {self.num_draws}")
        if whole is None:
            self._target = Alone(self._model, self.site, args, kwargs)
        else:
            smooth = not found.prior.is_discrete and not whole.is_discrete
            self._target = Whole(self.model, self._asked, args, kwargs, smooth)
            self._plan = self._of_whole(self._plan)
        if self.target_log_evidence_sd is None:
            self._adapt(key, found)
        else:
            settings = settings_of(self.checkpoint, key, (args, kwargs, found), self.plan, self._sampler)
            wanted, limit, bar = self.target_log_evidence_sd, self.max_particles, self.progress_bar
            for run in doublings(key, self._target, self.plan, wanted, limit, self.checkpoint, settings, bar):
                self._keep(run)
        check_evidence(self.log_evidences, self.num_particles)
        more = "particles" if self.plan.num_draws is None else "draws (num_draws), more particles for each"
        self.reliability.warn(
            f"More {more} or another twist may help; cross_check() and nd.infer.TemperedSMC give a second opinion."
        )
        return self

    def _adapt(self, key: Array, found: Latent) -> None:
        """Run by rule; where that is poor and nothing else was asked for, try other twists, then more particles."""
        once = lambda count, plan: self._once(jax.random.fold_in(key, count) if count else key, plan)
        self._keep(best_run(once, self.plan, found, self._sampler.twist is None, self._may_grow))

    def _of_whole(self, plan: Plan) -> Plan:
        """With draws of the other unknowns, and as many particles as a run for each needs."""
        plan = plan if self._says_particles else plan.with_particles(NUM_INNER)
        return plan._replace(num_draws=NUM_DRAWS if self.num_draws is None else self.num_draws)

    def _facts(self) -> dict[str, object]:
        asked = {"model": model_name(self.model), "num_islands": self.num_islands}
        if self._result is None:
            return asked | {"log_evidence": "not run"}
        found = {"site": self.site, "diagnostics": self._done().said, "plan": self.plan}
        return asked | evidence_of(self) | found

    @property
    def plan(self) -> Plan:
        """What was run, and why, with its twist, particles, islands and steps."""
        if self._plan is None:
            raise ValueError("SMC: expected a finished run; call run(key, …) first")
        return self._plan

    @property
    def num_particles(self) -> int:
        """Particles of one island, of the last run if there is one."""
        return (self._sampler if self._plan is None else self._plan.sampler).num_particles

    @property
    def reliability(self) -> Reliability | WholeReliability:
        """What speaks against the answer, as effective sizes and gaps; with other unknowns of moves and estimates."""
        return self._done().reliability

    @property
    def particles(self) -> Particles:
        """The particles of every island, leading shape (num_islands, *batch) of every array, where x alone is unknown.

        Raises:
            ValueError: other unknowns, whose draws have particles each.
        """
        return self._of("particles", Alone, "in which x alone is unknown; get_samples() has the draws").particles

    @property
    def temperatures(self) -> list[np.ndarray]:
        """With other unknowns, the powers of the estimated likelihood in every island, growing to 1."""
        return by_island(self._of("temperatures", Whole, "with other unknowns than x").island.records, "temperatures")

    @property
    def acceptance_rates(self) -> list[np.ndarray]:
        """With other unknowns, mean acceptance probability of the moves at each of the temperatures, by island."""
        return by_island(self._of("acceptance_rates", Whole, "with other unknowns than x").island.records, "acceptance")

    @property
    def log_evidences(self) -> Float[Array, " islands"]:
        """Log evidence of every island, all observed sites counted, in nats, shape (num_islands,)."""
        return self._done().log_evidences

    @property
    def log_evidence(self) -> float:
        """Log of the islands' mean evidence, in nats."""
        return log_mean_evidence(self._done())

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence` in nats, from the variation between islands and of weights; NaN from one."""
        return self._done().log_evidence_error

    @property
    def labels(self) -> Labels:
        """Posterior probabilities of the labels of a site with a mixture of priors, *consistent as particles grow*."""
        run = self._done()
        if self._mixture is None:
            raise ValueError("site: expected one with a mixture of priors (MixtureGeneral), got one of one prior")
        return run.labels(len(self._mixture.laws))

    def cross_check(self, key: Array, num_draws: int = 2**15) -> CrossCheck:
        """Compare the log evidence with an estimate that shares nothing with twists, and warn where they disagree.

        Draws of the prior are reweighted by the likelihood, where these suffice (Pareto k̂ at most 0.7, 100 effective
        draws); otherwise `TemperedSMC` runs in the space of the prior's noise. Bits have no such space: few effective
        draws then show as a large standard error.

        Args:
            key: JAX random key.
            num_draws: of the prior.

        Returns:
            A `CrossCheck`, which prints as one line.

        Raises:
            ValueError: no finished run; what `TemperedSMC` raises.
        """
        first = (self.log_evidence, self.log_evidence_error)
        found = self._target.second_opinion(key, self.plan, first, num_draws)
        if not found.agrees:
            warnings.warn(f"this evidence may be wrong: {found}", ReliabilityWarning, stacklevel=2)
        return found

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Array]:
        """Equally weighted draws, as many as particles, or as `num_draws` of other unknowns, by systematic resampling.

        Args:
            group_by_chain: keep the islands apart, each resampled by its own weights. Otherwise all particles are
                resampled together, islands weighted by their evidence, for every element of the site's batch.

        Returns:
            The site's draws, shape (num_islands, num_particles, *batch, *event) or with the first two as one; of all
            sites that were one state, by name. With other unknowns also theirs, and the deterministic sites.
        """
        run = self._done()
        return self._target.draws(run, self._key, group_by_chain)

    def print_summary(self, prob: float = 0.9) -> None:
        """Print the posterior's summary, the log evidence, what speaks for and against both, and the plan.

        Args:
            prob: of the intervals, from quantile to quantile.
        """
        print(table(self.get_samples(), prob))
        print(f"log evidence {self.log_evidence:.3f} ± {self.log_evidence_error:.3f} nats")
        print("islands: " + ", ".join(f"{each:.3f}" for each in np.asarray(self.log_evidences)))
        print(self._done().said)
        print(f"plan: {self.plan}")

    def _done(self) -> Any:
        if self._result is None:
            raise ValueError("SMC: expected a finished run; call run(key, …) first")
        return self._result

    def _of(self, name: str, kind: type, expected: str) -> Any:
        """The run, if it is of this kind."""
        run = self._done()
        if not isinstance(self._target, kind):
            raise ValueError(f"{name}: expected a run {expected}")
        return run

    def _once(self, key: Array, plan: Plan) -> Any:
        return self._target.run(key, plan)

    def _keep(self, run: IslandsRun | WholeRun) -> None:
        self._plan, self._result = run.plan, run
