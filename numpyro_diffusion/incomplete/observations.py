"""A prior where no clean data exist: from noisy, blurred or incomplete observations.

Where only observations of x exist, the prior is learned by expectation maximisation (Dempster, Laird and Rubin 1977): x
is drawn given each observation under the current prior, by SMC and so *consistent as particles grow*, and the prior
learns from the draws, along with parameters that the observations share. Rozet et al. (2024) do so with draws that no
weight corrects. Laps are *approximate* steps of EM; the held-out log evidence scores them. What no observation sees,
the likelihood leaves open.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from tqdm.auto import tqdm

from .._checks import check_callable, check_count, check_key, check_scalar, check_site, check_sizes
from .._display import shown_by_facts
from ..checkpoints import digest
from ..distributions import DiffusionPrior
from ..distributions.report import PriorReport, Score
from ..infer.sites import only_site
from ..training import BelowBaselineWarning, fit, fit_prior
from ..training.assemble import assembled
from ..training.laps import Climb, History, climb
from ..training.posterior_draws import Current, Draws, Effort, draw, effort_for, scored
from ..twists import AbstractTwist
from .reading import Observed, Unknowns, unknowns
from .shared import improved
from .start import LARGEST, Start, gaussian_start

FRESH = (1, 2, 4, 8, 16, 32)  # laps in which coordinates and simple model are chosen anew
MANY = 4_000  # draws of a lap at least, if need be several of each observation
MOST_HELD_OUT = 512
RUNS = 4  # independent runs of SMC that score a lap


@shown_by_facts
class ObservationsFit(NamedTuple):
    """What `fit_prior_from_observations` returns.

    Attributes:
        prior: of the best lap, with its `report()`.
        params: the model's other unknowns, at their values of that lap.
        history: held-out log evidence by lap, in nats per observation, the Gaussian start first: `score`, `error`.
    """

    prior: DiffusionPrior
    params: dict[str, np.ndarray]
    history: History

    def _facts(self) -> dict[str, object]:
        kept, laps = self.history.best, len(self.history.score) - 1
        evidence = f"{self.history.score[kept]:.3f} ± {self.history.error[kept]:.3f} nats, held out"
        params = {
            name: np.array2string(np.asarray(value), precision=4, threshold=8) for name, value in self.params.items()
        }
        return {"prior": self.prior, **params, "laps": f"{kept} kept of {laps}", "log_evidence": evidence}


def fit_prior_from_observations(
    key: Array,
    model: Callable[..., Any],
    observations: Any,
    *,
    event_shape: Any,
    site: str | None = None,
    loc: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    start: DiffusionPrior | None = None,
    num_laps: int = 16,
    patience: int = 3,
    first_steps: int = 2_000,
    lap_steps: int = 1_000,
    num_particles: int | None = None,
    num_steps: int | None = None,
    twist: AbstractTwist | None = None,
    corrected: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    on_lap: Callable[[int, DiffusionPrior, dict[str, Array]], object] | None = None,
    progress_bar: bool = True,
    **options: Any,
) -> ObservationsFit:
    """Learn a prior of x from observations of x, each with an operator, a mask and noise of its own.

    Expectation maximisation: in every lap x is drawn given each observation under the current prior by SMC (*consistent
    as particles grow*), the prior learns from the draws, and what else the observations share (``numpyro.param`` sites
    of the model, such as a noise scale or a blur) moves to where the draws make the observations likeliest. The first
    laps have a Gaussian prior, and are many. A tenth of the observations, 512 at most, is held out; their log evidence
    is the score of a lap, and the best lap is kept. Rozet et al. (2024) do the same with draws that no weight corrects.

    Args:
        key: JAX random key.
        model: ``model(prior, observation)``, the NumPyro model of one observation, with the site ``x ~ prior`` as its
            only latent one; observed values are given by ``obs=``.
        observations: pytree of arrays with a common leading axis, finite; one observation is what they hold at a place
            of it.
        event_shape: of x.
        site: name of the site; None for the only one.
        loc: mean of the Gaussian that the first laps begin with; a number.
        scale: its standard deviation; a number.
        start: a prior to begin with in place of a Gaussian; needed for events of more than 256 elements.
        num_laps: at most, after those with a Gaussian.
        patience: stop after so many laps that are not better.
        first_steps: training steps of `fit_prior`, in the laps 1, 2, 4, 8, … in which it chooses coordinates anew.
        lap_steps: training steps in the laps between.
        num_particles: of SMC, for each observation; unless given, 16 to 64, as the number of observations allows.
        num_steps: of the prior's chain that SMC takes; unless given all, or 16 or more for many observations.
        twist: that leads SMC, chosen by rule unless given.
        corrected: False leaves SMC's weights away: the draws of a twist alone, which is *approximate*, for comparison.
        checkpoint: file to resume from if it exists, and to save to after each lap.
        on_lap: is called after each lap with its number, the prior and the shared unknowns.
        progress_bar: whether to print each lap's score, and to show progress bars.
        **options: of `fit_prior`: network, schedule, batch_size, learning_rate, …

    Returns:
        An `ObservationsFit`.

    Raises:
        ValueError: a model with other latent sites, observations that do not fit one another, are fewer than 8 or not
            finite; an event of more than 256 elements without a `start`; what `extract_factor` and `fit_prior` raise.
        TypeError: an option that `fit_prior` does not have, or that is decided here.
        CheckpointError: the checkpoint is damaged, or of another run.
    """
    key, model = check_key("key", key), check_callable("model", model)
    shape = check_sizes("event_shape", (event_shape,) if isinstance(event_shape, int) else event_shape)
    counts = {"num_laps": num_laps, "patience": patience, "first_steps": first_steps, "lap_steps": lap_steps}
    for name, value in counts.items():
        check_count(name, value)
    for name, some in (("num_particles", num_particles), ("num_steps", num_steps)):
        if some is not None:
            check_count(name, some, 2)
    check_scalar("loc", loc)
    check_scalar("scale", scale)
    _check_options(options)
    if start is None and int(np.prod(shape)) > LARGEST:
        raise ValueError(f"start: expected a prior to begin with for events of more than {LARGEST} elements, got None")
    observations, total = _checked(observations)
    begin = Start(shape, float(np.asarray(loc)), float(np.asarray(scale)))
    first = begin.prior if start is None else start
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), observations)
    name = only_site(model, (first, one), {}) if check_site(site) is None else str(site)
    observed = Observed(model, name)
    shared = unknowns(model, name, first, one)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), total))
    held = min(MOST_HELD_OUT, round(max(0.1, min(0.25, 25 / total)) * total))
    train, out = (
        jax.tree.map(lambda leaf, rows=rows: leaf[rows], observations) for rows in (order[held:], order[:held])
    )
    say = functools.partial(print, flush=True) if progress_bar else lambda line: None
    now = Current(first, shared.first)
    if start is None:
        now = gaussian_start(jax.random.fold_in(key, 1), begin, observed, shared, train, say)
    effort = _effort(now, total - held, num_particles, num_steps)._replace(twist=twist)
    each = max(1, min(8, MANY // (total - held)))  # draws
    learn = _Learner(observed, shared, train, total - held, shape, first_steps, lap_steps, options, progress_bar,
                     effort._replace(corrected=corrected), each)  # fmt: skip
    score = lambda key, now: scored(key, now, out, observed, effort, each, RUNS)
    opening = score(jax.random.fold_in(key, 2), now)
    history = History([], []).then(opening.log_evidence)
    say(f"start: held-out log evidence {history.score[0]:.3f} nats")
    settings = {"key": digest(key), "observations": digest(observations), "corrected": corrected} | counts

    def tell(climb: Climb) -> None:
        values = "".join(f", {name} {np.asarray(value)}" for name, value in climb.now.params.items() if value.ndim == 0)
        say(f"lap {climb.laps}: held-out log evidence {climb.history.score[-1]:.3f} nats{values}")
        if on_lap is not None:
            on_lap(climb.laps, *climb.now)

    found = climb(key, Climb(now, now, opening.log_evidence, history), learn.lap, score, num_laps=num_laps,
                  patience=patience, opening=opening, checkpoint=checkpoint, settings=settings, tell=tell)  # fmt: skip
    report = _report(found, opening.log_evidence, total - held)
    if progress_bar:
        print(report)
    params = {name: np.asarray(value) for name, value in found.best.params.items()}
    return ObservationsFit(found.best.prior.with_report(report), params, found.history)


class _Learner(NamedTuple):
    """One lap: draws given the observations to train on, and learning from them."""

    observed: Observed
    shared: Unknowns
    train: Any
    total: int
    event_shape: tuple[int, ...]
    first_steps: int
    lap_steps: int
    options: dict[str, Any]
    progress_bar: bool
    effort: Effort
    each: int

    def lap(self, key: Array, lap: int, now: Current, held_out: Draws) -> Current:
        """What is learned."""
        own, run, rest = jax.random.split(key, 3)
        with tqdm(total=self.total, disable=not self.progress_bar, desc=f"lap {lap}", unit="obs", leave=False) as bar:
            x = draw(own, now, self.train, self.observed, self.effort, self.each, bar.update).x
        params = improved(rest, self.observed, self.shared, now, self.train, x[:, 0])
        flat = np.swapaxes(x, 0, 1).reshape(-1, *self.event_shape)  # all first draws, then all second ones, …
        if lap in FRESH:
            own_network = self.options.get("network") is not None
            usual = {"dequantize": 0.0} | ({} if own_network else {"kind": "vector"})  # convolutions draw slowly
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BelowBaselineWarning)  # the held-out evidence is the judge
                prior = fit_prior(run, flat, max_steps=self.first_steps, progress_bar=False, **usual | self.options)
            return Current(prior, params)
        result = fit(run, now.prior.process, flat, transform=now.prior.transform, max_steps=self.lap_steps,
                     validation=held_out.x[:, 0], ema=0.99, patience=10, progress_bar=False,
                     batch_size=self.options.get("batch_size") or 256,
                     learning_rate=self.options.get("learning_rate", 1e-3))  # fmt: skip
        return Current(assembled(result.process, now.prior.transform, flat, 0.0), params)


def _check_options(options: dict[str, Any]) -> None:
    """Before anything is drawn, as the first lap's training comes late."""
    ours = {"key", "data", "max_steps", "context", "context_dropout", "resample", "checkpoint", "progress_bar"}
    for name in options:
        if name not in set(inspect.signature(fit_prior).parameters) - ours:
            hint = " (the optimiser's steps are first_steps and lap_steps)" if name == "max_steps" else ""
            raise TypeError(f"options: expected those of fit_prior that are not decided here{hint}, got {name!r}")


def _effort(now: Current, count: int, num_particles: int | None, num_steps: int | None) -> Effort:
    """As the number of observations allows, unless asked for."""
    whole = now.prior.process.num_steps
    effort = effort_for(count, whole)
    if num_particles is not None:
        effort = effort._replace(num_particles=num_particles)
    if num_steps is not None:
        effort = effort._replace(num_steps=num_steps)
    return effort


def _checked(observations: Any) -> tuple[Any, int]:
    """The observations as NumPy arrays, and how many there are."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(observations)]
    if not leaves:
        raise ValueError("observations: expected a pytree of arrays, got none")
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(lengths) > 1 or None in lengths:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"observations: expected arrays with a common leading axis, got shapes {shapes}")
    if any(leaf.dtype.kind not in "biuf" for leaf in leaves):
        raise TypeError(f"observations: expected arrays of numbers, got {[str(leaf.dtype) for leaf in leaves]}")
    if any(leaf.dtype.kind == "f" and not np.isfinite(leaf).all() for leaf in leaves):
        raise ValueError("observations: expected finite values, got others; hide what is missing by a mask of its own")
    total = len(leaves[0])
    if total < 8:
        raise ValueError(f"observations: expected at least 8 of them, got {total}")
    single = lambda leaf: np.asarray(leaf, np.float32) if np.asarray(leaf).dtype == np.float64 else np.asarray(leaf)
    return jax.tree.map(single, observations), total


def _report(found: Climb, start: np.ndarray, count: int) -> PriorReport:
    history = found.history
    said = ", ".join(f"{score:.3f}" for score in history.score)
    reasons: tuple[str, ...] = (
        f"laps: {found.laps}, of which {history.best} is kept (0: the start); held-out log evidence {said} nats",
    )
    reasons += tuple(
        f"{name}: {np.asarray(value)}" for name, value in found.best.params.items() if np.asarray(value).size <= 8
    )
    error = lambda x: float(x.std() / np.sqrt(len(x)))
    own = Score("prior (log evidence)", float(found.values.mean()), error(found.values))
    gain = found.values - start
    simple = Score("start", float(start.mean()), error(start), float(gain.mean()), error(gain))
    laps = {"score": history.score, "error": history.error}
    return PriorReport(own, (simple,), count, len(start), 0, reasons, {}, laps=laps)
