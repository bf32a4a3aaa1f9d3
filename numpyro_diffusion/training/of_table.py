"""Training on a table: several coordinates and baselines for some steps, the best for more, and again on all rows.

Coordinates and baselines for a table are chosen by trying: every candidate is trained for some steps, K of held-out
examples compares them, and the best one that has a network goes on, unless another is better beyond errors. What is
chosen is trained again on all examples where they are few, and kept if those that were held out do not speak against
it. That examples chose it makes its own held-out figure slightly too good.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..distributions import DiffusionPrior
from ..distributions.report import LEAST
from ._arguments import default_validation
from .assemble import assembled
from .loop import fit, held_out_values
from .placing import with_placed_steps
from .plan import PriorPlan
from .reporting import report_of
from .results import FitResult
from .resume import History
from .tables import Candidate, Table, candidates, simplified, table, table_width

REFITTED = 2_000  # examples up to which the chosen prior is fitted again to all of them


class Finish(NamedTuple):
    """What becomes of a prior once everything about it is chosen.

    Attributes:
        check: adds checks by held-out examples to its report.
        whole: all examples, shape (n, *event), to which it is fitted again where they are few; None to leave it.
    """

    check: Callable[[DiffusionPrior], DiffusionPrior] = lambda prior: prior
    whole: np.ndarray | None = None


UNCHECKED = Finish()


def learn_table(
    keys: tuple[Array, Array],
    plan: PriorPlan,
    train: np.ndarray,
    held_out: np.ndarray,
    finish: Finish,
    options: dict[str, Any],
    checkpoint: Any,
    pilot: int,
    copies: bool = False,
) -> DiffusionPrior:
    """Try all candidates for some steps, and go on with the best that has a network, unless another is better.

    Args:
        keys: of the networks' first weights, and of the runs.
        plan: its `max_steps` is the most that are taken.
        train: examples, shape (n, *event).
        held_out: others, shape (m, *event).
        finish: what becomes of the prior.
        options: of `fit`.
        checkpoint: of what is tried first, with others beside it; None for none.
        pilot: steps by which candidates are chosen.
        copies: see `table`.
    """
    data = _best_bounds(plan, train, held_out, copies)
    width = table_width(len(train) + len(held_out), data.train.shape[1])
    tried, placed = candidates(keys[0], data, width, train.shape[1:], plan.schedule, plan.kind), "steps: as given"
    if plan.schedule is None:
        tried, placed = with_placed_steps(keys[0], tried, data)
    short = min(plan.max_steps, pilot) if len(tried) > 1 else plan.max_steps

    def run(candidate: Candidate, x: np.ndarray, steps: int, place: Path, **more: Any) -> FitResult:
        if not candidate.is_trained:
            return _judged(keys[1], candidate, plan, held_out)
        return fit(keys[1], candidate.process, x, transform=candidate.transform, max_steps=steps, checkpoint=place,
                   **options | more)  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "run" if checkpoint is None else Path(checkpoint)
        places = [start, *(start.with_name(f"{start.name}.{i}") for i in range(1, len(tried)))]
        known = {"validation": held_out}
        results = [run(c, train, short, place, **known) for c, place in zip(tried, places, strict=True)]
        best = _promising(tried, results)
        if short < plan.max_steps:
            results[best] = run(tried[best], train, plan.max_steps, places[best], **known)
        best = int(np.argmax([max(result.history["validation"]) for result in results]))
        chosen, result = tried[best], results[best]
        reasons = (*plan.reasons, *_said(plan, data), placed, _compared(tried, results, best))
        curves = {candidate.name: found for candidate, found in zip(tried, results, strict=True)}
        models = _models(plan, data, train, held_out)
        report = report_of(plan, result, chosen.transform, curves, reasons, models, train, held_out)
        process, transform = simplified(chosen, result.process)
        prior = assembled(process, transform, train, plan.dequantize).with_report(report)
        prior, whole = finish.check(prior), finish.whole
        if whole is None or len(whole) > REFITTED:
            return prior
        all_of_it = table(_flat(whole), _flat(whole)[:0], plan.dequantize, data.bounds, whole.shape[1:], data.recipe)
        again = candidates(keys[0], all_of_it, width, whole.shape[1:], plan.schedule, plan.kind)[best]
        again = again.of_schedule(chosen.process.diffusion.schedule)
        count = report.steps
        place = start.with_name(f"{start.name}.all")
        # In laps of as many steps as lay between validations, so that one program is compiled.
        alone = {"validation": 0.0, "patience": None, "log_every": min(count, options["validate_every"], 100)}
        process = run(again, whole, count, place, **alone).process if count else again.process
    return _better(plan, prior, chosen, result, again, process, whole, held_out)


def _judged(key: Array, candidate: Candidate, plan: PriorPlan, held_out: np.ndarray) -> FitResult:
    """What `fit` returns before the first step."""
    likelihood, x = default_validation(candidate.process, len(held_out)), jnp.asarray(held_out, float)
    values = held_out_values(likelihood, key, candidate.process, x, plan.dequantize, candidate.transform)
    value, error = float(jnp.mean(values)), float(jnp.std(values) / np.sqrt(len(values)))
    history: History = {"validation_step": [0.0], "validation": [value], "validation_error": [error]}
    return FitResult(candidate.process, {"step": [], "loss": []} | history, 0, "finished")


def _promising(tried: list[Candidate], results: list[FitResult]) -> int:
    """The best that is trained, which more steps may make better, unless another is better by more than errors."""
    values = np.array([max(result.history["validation"]) for result in results])
    best = int(np.argmax(values))
    trained = int(np.argmax(np.where([candidate.is_trained for candidate in tried], values, -np.inf)))
    one, other = (results[i].history["validation_error"][-1] for i in (best, trained))
    return trained if values[best] - values[trained] < 2 * np.hypot(one, other) else best


def _best_bounds(plan: PriorPlan, train: np.ndarray, held_out: np.ndarray, copies: bool) -> Table:
    """The simple models without bounds, or with those that are proposed, by held-out density; with those given."""
    options = (plan.bounds,) if plan.bounds is None or plan.bounds_given else (None, plan.bounds)
    parts = _flat(train), _flat(held_out), plan.dequantize
    found = (table(*parts, bounds, train.shape[1:], copies=copies) for bounds in options)
    return max(found, key=lambda each: each.value)


def _models(plan: PriorPlan, data: Table, train: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """The simple models that the report compares with: the Gaussian of the data's own coordinates is among them."""
    if data.bounds is None:
        return data.models
    free = table(_flat(train), _flat(held_out), plan.dequantize, None, train.shape[1:])
    return {"Gaussian": free.gaussian} | data.models


def _said(plan: PriorPlan, data: Table) -> tuple[str, ...]:
    structure = f"covariance: {data.recipe.structure}"
    if plan.bounds is None or plan.bounds_given:
        return (structure,)
    verdict = "better" if data.bounds is not None else "no better"
    return structure, f"bounds: {plan.bounds.said} {verdict} on held-out examples, by simple models"


def _compared(tried: list[Candidate], results: list[FitResult], best: int) -> str:
    pairs = zip(tried, results, strict=True)
    values = ", ".join(f"{candidate.name} {max(result.history['validation']):.2f}" for candidate, result in pairs)
    return f"chosen: {tried[best].name} (validation K, in nats: {values})"


def _better(
    plan: PriorPlan,
    prior: DiffusionPrior,
    chosen: Candidate,
    result: FitResult,
    again: Candidate,
    process: Any,
    whole: np.ndarray,
    held_out: np.ndarray,
) -> DiffusionPrior:
    """The prior of all examples, unless it is worse on those that were held out before: something is wrong."""
    x, key = jnp.asarray(held_out, float), jax.random.key(0)
    likelihood = default_validation(process, len(held_out))
    pairs = ((result.process, chosen.transform), (process, again.transform))
    before, after = (held_out_values(likelihood, key, own, x, plan.dequantize, transform) for own, transform in pairs)
    gain, report = np.asarray(after - before, np.float64), prior.report()
    if not gain.mean() > -LEAST - 2 * gain.std() / np.sqrt(len(gain)):
        said = (
            f"all examples: worse on those held out before, by {-gain.mean():.2f} nats, so that the first fit is kept"
        )
        return prior.with_report(report._replace(reasons=(*report.reasons, said)))
    said = f"all examples: fitted again to {len(whole)}, in {report.steps} steps; the scores are of the fit before"
    own, transform = simplified(again, process)
    report = report._replace(reasons=(*report.reasons, said))
    return assembled(own, transform, whole, plan.dequantize).with_report(report)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
