"""SMC for a NumPyro model with one latent diffusion site."""

import dataclasses
import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from tqdm.auto import tqdm

from .._checks import check_callable, check_count, check_key, check_site
from .._devices import Devices
from ..checkpoints import digest
from ..samplers import Particles, Reliability, ReliabilityWarning, TwistedSMC, reliability
from ..twists import AbstractTwist
from .cross_check import CrossCheck, cross_check
from .evidence import evidence_error
from .extract import Latent, extract
from .islands import IslandsRun, check_evidence, equally_weighted, run_islands
from .mixtures import Labelled, Labels, Mixture, labels_of
from .plan import Plan, alternatives, badness, first_plan, is_good, with_more
from .resume import read_run, save_run, saved_particles
from .several import one_site, values_by_site
from .shorthand import sampler_of
from .sites import mixture_at
from .summary import table


class SMC:
    """Samples one diffusion site and estimates the model's log evidence, by independent runs of `TwistedSMC`.

    *Consistent as particles grow*; the evidence estimate is unbiased at any number. The site must be the model's only
    latent one, or the others must have values (`numpyro.handlers.substitute`). The independent runs, called islands,
    give the standard error and are the chains in ArviZ.

    What is not given is chosen, and said by `plan`: the twist by rule (`nd.twists.default_twist`); where that run has
    few effective particles on the way, or islands apart, other twists are tried, the best of them is kept, and if need
    be run again with four times as many particles. What then still speaks against the answer is a warning with its
    numbers (`reliability`). `cross_check` compares with what needs no twist.

    The site's law may be a mixture of priors, ``dist.MixtureGeneral(dist.Categorical(probs), [prior_a, prior_b])``:
    each is run with as many particles, and counts by its evidence; `labels` has the labels' probabilities.

    Args:
        model: the NumPyro model.
        site: name of the diffusion site; None for the only one, which is found when run, or for several, of different
            priors with one schedule, which are then one state.
        num_particles: in each island, at least 2; 512 unless given, or 2,048 where these are too few.
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
        target_log_evidence_sd: double the particles until the standard deviation of the islands' log evidences is at
            most this, in nats, or `max_particles` is reached, which gives a warning.
        max_particles: the budget of `target_log_evidence_sd`, particles of one island.
        checkpoint: file of the last finished run of `target_log_evidence_sd`. With the same key, arguments and settings
            a run goes on from there, also with a greater `max_particles` or another target, to the same numbers.
        progress_bar: whether `target_log_evidence_sd` shows one.

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
        self._sampler = sampler_of(TwistedSMC, sampler, shorthand, 512)
        self._may_grow = num_particles is None and sampler is None
        if target_log_evidence_sd is not None and not target_log_evidence_sd > 0:
            raise ValueError(f"target_log_evidence_sd: expected a positive number, got {target_log_evidence_sd}")
        if target_log_evidence_sd is not None and self.num_islands < 2:
            raise ValueError("num_islands: expected at least 2 with target_log_evidence_sd, got 1")
        if checkpoint is not None and target_log_evidence_sd is None:
            raise ValueError(f"checkpoint: expected None without target_log_evidence_sd, got {checkpoint!r}")
        self.checkpoint = checkpoint
        self.target_log_evidence_sd, self.progress_bar = target_log_evidence_sd, progress_bar
        self.max_particles = check_count("max_particles", max_particles, 2)
        self._result: tuple[Particles, Array] | None = None
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
        self._model, self.site = one_site(self.model, self._asked, args, kwargs)
        self._mixture = mixture_at(self._model, self.site, args, kwargs)
        model = self._model if self._mixture is None else Labelled(self._model, self.site, self._mixture.laws[0])
        found = extract(model, self.site, args, kwargs).in_latent()
        self._plan = first_plan(found, self._sampler, self.num_islands)
        if self.target_log_evidence_sd is None:
            self._adapt(key, found)
        else:
            self._double(key, found, self.target_log_evidence_sd)
        check_evidence(self.log_evidences, self.num_particles)
        self.reliability.warn(
            "More particles or another twist may help; cross_check() and nd.infer.TemperedSMC give a second opinion."
        )
        return self

    def _adapt(self, key: Array, found: Latent) -> None:
        """Run by rule; where that is poor and nothing else was asked for, try other twists, then more particles."""
        tried = [self._once(key, self.plan)]
        if self._sampler.twist is None and not is_good(tried[0].reliability):
            for plan in alternatives(found, self.plan):
                tried.append(self._once(jax.random.fold_in(key, len(tried)), plan))
                if is_good(tried[-1].reliability):
                    break
        best = min(tried, key=lambda run: badness(run.reliability))
        if self._may_grow and not is_good(best.reliability):
            best = self._once(jax.random.fold_in(key, len(tried)), with_more(best.plan))
        self._keep(best)

    def _double(self, key: Array, found: Latent, wanted: float) -> None:
        """Double the particles until the islands agree as asked for, from the run in the checkpoint if there is one."""
        settings = self._settings(key, found)
        run = self._resumed(key, settings)
        bar = tqdm(disable=not self.progress_bar, desc="SMC", unit="run")
        while True:
            if run is None:
                run = self._once(jax.random.fold_in(key, self.num_particles), self.plan)
                save_run(self.checkpoint, self.num_particles, run[1:], settings)
            self._keep(run)
            run = None
            bar.update()
            bar.set_postfix(particles=self.num_particles, sd=f"{self._spread:.3f}")
            if self._spread <= wanted:
                break
            if 2 * self.num_particles > self.max_particles:
                warnings.warn(
                    f"the islands' log evidences differ by a standard deviation of {self._spread:.3g} nats at "
                    f"{self.num_particles} particles, more than target_log_evidence_sd = {wanted}; max_particles = "
                    f"{self.max_particles} allows no more",
                    ReliabilityWarning,
                    stacklevel=3,
                )
                break
            self._plan = with_more(self.plan, 2)
        bar.close()

    def _settings(self, key: Array, found: Latent) -> dict[str, Any]:
        """What a checkpoint must agree with, in JSON."""
        if self.checkpoint is None:
            return {}
        arguments = digest((self.args, self.kwargs, found))
        sampler = {"threshold": self._sampler.threshold, "chunk": self._sampler.chunk}
        return {"key": digest(key), "arguments": arguments, "plan": str(self.plan)} | sampler

    def _resumed(self, key: Array, settings: dict[str, Any]) -> IslandsRun | None:
        """The run in the checkpoint, if there is one."""
        count = saved_particles(self.checkpoint, settings)
        if count is None:
            return None
        sampler = dataclasses.replace(self.plan.sampler, num_particles=count)
        self._plan = self.plan._replace(sampler=sampler)
        keys = jax.random.split(key, self.num_islands)
        like = eqx.filter_eval_shape(run_islands, self._model, self.site, sampler, keys, self.args, self.kwargs)
        return IslandsRun(self.plan, *read_run(self.checkpoint, like))

    @property
    def plan(self) -> Plan:
        """What was run, and why: twist, particles, islands, steps."""
        if self._plan is None:
            raise ValueError("SMC: expected a finished run; call run(key, …) first")
        return self._plan

    @property
    def num_particles(self) -> int:
        """Particles of one island, of the last run if there is one."""
        return (self._sampler if self._plan is None else self._plan.sampler).num_particles

    @property
    def reliability(self) -> Reliability:
        """Least and final effective size, Pareto k̂ and how far apart the islands are."""
        return reliability(self.particles)

    @property
    def particles(self) -> Particles:
        """The particles of every island, leading shape (num_islands, *batch) of every array."""
        return self._done()[0]

    @property
    def log_evidences(self) -> Array:
        """Log evidence of every island, all observed sites counted, in nats, shape (num_islands,)."""
        particles, constant = self._done()
        each = particles.log_evidence
        return each.reshape(self.num_islands, -1).sum(-1) + constant

    @property
    def log_evidence(self) -> float:
        """Log of the islands' mean evidence, in nats."""
        return float(logsumexp(self.log_evidences) - jnp.log(float(self.num_islands)))

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence` in nats, from the spread of the islands (`evidence_error`); NaN from one."""
        return evidence_error(self.log_evidences)

    @property
    def labels(self) -> Labels:
        """Posterior probabilities of the labels of a site with a mixture of priors: *consistent as particles grow*."""
        particles, _ = self._done()
        if self._mixture is None:
            raise ValueError("site: expected one with a mixture of priors (MixtureGeneral), got one of one prior")
        return labels_of(particles, len(self._mixture.laws))

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
        first, steps = (self.log_evidence, self.log_evidence_error), self.plan.sampler.num_steps
        found = cross_check(key, self._model, self.site, steps, first, num_draws, self.args, self.kwargs)
        if not found.agrees:
            warnings.warn(f"this evidence may be wrong: {found}", ReliabilityWarning, stacklevel=2)
        return found

    def get_samples(self, group_by_chain: bool = False) -> dict[str, Array]:
        """Equally weighted draws, as many as particles, by systematic resampling.

        Args:
            group_by_chain: keep the islands apart, each resampled by its own weights. Otherwise all particles are
                resampled together, islands weighted by their evidence, for every element of the site's batch.

        Returns:
            The site's draws, shape (num_islands, num_particles, *batch, *event) or with the first two as one; of all
            sites that were one state, by name.
        """
        particles, _ = self._done()
        draws = equally_weighted(self._key, particles, group_by_chain)
        return values_by_site(self._model, self.site, draws, self.args, self.kwargs)

    def print_summary(self, prob: float = 0.9) -> None:
        """Print the posterior's summary, the log evidence, what speaks for and against both, and the plan.

        Args:
            prob: of the intervals, from quantile to quantile.
        """
        print(table(self.get_samples(), prob))
        found = self.reliability
        print(f"log evidence {self.log_evidence:.3f} ± {self.log_evidence_error:.3f} nats")
        print("islands: " + ", ".join(f"{each:.3f}" for each in np.asarray(self.log_evidences)))
        print(
            f"effective particles of {self.num_particles} an island: at least {found.least_size:.0f} on the way, "
            f"{found.final_size:.0f} at the end; Pareto k̂ {found.khat:.2f}"
        )
        print(f"plan: {self.plan}")

    @property
    def _spread(self) -> float:
        return float(np.std(np.asarray(self.log_evidences), ddof=1)) if self.num_islands > 1 else float("nan")

    def _done(self) -> tuple[Particles, Array]:
        if self._result is None:
            raise ValueError("SMC: expected a finished run; call run(key, …) first")
        return self._result

    def _once(self, key: Array, plan: Plan) -> IslandsRun:
        keys = jax.random.split(key, self.num_islands)
        particles, constant = run_islands(self._model, self.site, plan.sampler, keys, self.args, self.kwargs)
        return IslandsRun(plan, particles, constant)

    def _keep(self, run: IslandsRun) -> None:
        self._plan, self._result = run.plan, (run.particles, run.constant)
