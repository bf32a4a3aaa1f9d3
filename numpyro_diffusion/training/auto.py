"""A prior from data in one call."""

import functools
import tempfile
import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.transforms import Transform

from .._checks import check_key
from ..diffusions import GaussianDiffusion
from ..distributions import DiffusionPrior
from ..distributions.report import Curve, PriorReport, Score
from ..schedules import AbstractSchedule
from ._arguments import cadence, check_data, check_numbers, default_validation, split
from .assemble import assembled
from .baselines import LARGEST, Mixture, shrunk_gaussian
from .loop import FitResult, fit, held_out_values
from .missing import Laps, find_gaps, learn_with_gaps
from .plan import Family, PriorPlan, plan_prior, table_width
from .run import dequantized
from .tables import Candidate, candidates, simplified, table

PILOT = 1_000  # steps by which coordinates and baseline are chosen
FIRST_LAP, FIRST_PILOT = 2_000, 500  # steps in all, and to choose by, before missing cells are drawn again
REPEATS = 4  # of the report's K
WEIGHT_DECAY = 0.01


class PoorPriorWarning(UserWarning):
    """A prior that is worse on held-out examples than a simple model of them."""


def fit_prior(
    key: Array,
    data: ArrayLike,
    *,
    family: Family | None = None,
    loc: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    schedule: AbstractSchedule | None = None,
    network: object = None,
    dequantize: float | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
) -> DiffusionPrior:
    """Learn a prior from data: `plan_prior`, then `fit` of the K bound, with the best weights on held-out examples.

    A tenth of the examples is held out, more where they are few. Validation begins before the first step and is as
    frequent as their number asks for. Examples of up to 256 real values start as an exact Gaussian or Gaussian
    mixture, vectors in whitened or elementwise coordinates, and the network learns what that leaves: see `plan_prior`.

    Cells that are NaN are taken as missing at random, and no row is dropped: by expectation maximisation, from a
    Gaussian or a mixture fitted by EM to the known cells, the missing ones are drawn given the known ones by SMC
    (*consistent as particles grow*), and the prior learns from the completed rows, lap by lap, as long as the log
    evidence of held-out rows' known cells rises.

    Args:
        key: JAX random key.
        data: shape (n, *event); see `plan_prior`, also for the arguments up to `num_steps`. Real values may be NaN, in
            examples of up to 256 of them. Of a frame the report keeps the columns' names.
        family: see `plan_prior`.
        loc: see `plan_prior`.
        scale: see `plan_prior`.
        schedule: see `plan_prior`.
        network: see `plan_prior`.
        dequantize: see `plan_prior`.
        num_steps: see `plan_prior`.
        batch_size: see `fit`; 256 unless given, 128 for a table of at most 2,000 examples.
        learning_rate: see `fit`.
        checkpoint: see `fit`; of a table, that of what is tried first, with others beside it, ``checkpoint.1`` and on;
            with missing cells, one file of the last finished lap.
        progress: whether to print the plan and the report, and to show a progress bar.

    Returns:
        The `DiffusionPrior`, in the data's own units, with its `report()`. Where data in steps were dequantised, its K
        bounds the density of data with that noise.

    Raises:
        ValueError: see `plan_prior` and `fit`; with missing cells, bits, more than 256 elements, a column all missing.

    Warns:
        DroppedRowsWarning: rows with no known cell.
        PoorPriorWarning: K on the held-out examples is below the log density of a simple model, beyond errors.
    """
    first, second = jax.random.split(check_key("key", key))
    columns = tuple(map(str, getattr(data, "columns", ())))
    data = check_numbers("data", data)
    choose = functools.partial(
        plan_prior, first, family=family, loc=loc, scale=scale, schedule=schedule, network=network, num_steps=num_steps
    )
    learn = functools.partial(_learned, first, second, batch_size, learning_rate, progress)
    if np.isnan(data).any():
        laps = _in_laps(batch_size, learning_rate, num_steps)
        first_lap = functools.partial(learn, None, pilot=FIRST_PILOT)
        prior = learn_with_gaps(second, find_gaps(data, dequantize), choose, first_lap, laps,
                                checkpoint=checkpoint, tell=print if progress else _silent)  # fmt: skip
        said = ""
    else:
        plan = choose(data, dequantize=dequantize)
        if progress:
            print(plan)
        train, held_out = (np.asarray(part, np.float64) for part in _parts(second, np.asarray(data), plan))
        prior, said = learn(checkpoint, plan, train, held_out), "\n".join(plan.reasons)
    prior = prior.with_report(prior.report()._replace(columns=columns))
    if progress:
        print(f"{prior.report()}".removeprefix(said).strip())
    if prior.report().is_worse:
        warnings.warn(f"fit_prior: {prior.report().verdict}", PoorPriorWarning, stacklevel=2)
    return prior


def _silent(line: str) -> None:
    """Say nothing."""


def _learned(
    first: Array,
    second: Array,
    batch_size: int | None,
    learning_rate: float,
    progress: bool,
    checkpoint: str | PathLike[str] | None,
    plan: PriorPlan,
    train: np.ndarray,
    held_out: np.ndarray,
    pilot: int = PILOT,
) -> DiffusionPrior:
    """A prior, with its report, of examples to train on and others held out."""
    if batch_size is None:
        batch_size = 128 if plan.is_table and len(train) <= 2_000 else 256
    options: dict[str, Any] = {"batch_size": batch_size, "dequantize": plan.dequantize, "progress": progress}
    if not plan.num_steps:
        report = PriorReport(None, (), len(train), 0, 0, plan.reasons, {})
        return DiffusionPrior(plan.process, transform=plan.transform).with_report(report)
    if plan.is_table:
        rate = _warmed_up(float(learning_rate)) if learning_rate > 0 else learning_rate
        options |= {"learning_rate": rate, "weight_decay": WEIGHT_DECAY}
        return _of_table(first, second, plan, train, held_out, options, checkpoint, pilot)
    patience = _patience(len(train), plan.num_steps) if len(held_out) else None
    options |= {"learning_rate": learning_rate, "checkpoint": checkpoint, "patience": patience}
    result = fit(second, plan.process, train, num_steps=plan.num_steps, validation=held_out, **options)
    models = _simple_models(plan, train, held_out)
    report = _report(plan, result, None, {"": result}, plan.reasons, models, train, held_out)
    return assembled(result.process, None, train).with_report(report)


def _in_laps(batch_size: int | None, learning_rate: float, num_steps: int | None) -> Laps:
    """How a prior of incomplete data is trained."""
    rate: Any = _warmed_up(float(learning_rate)) if learning_rate > 0 else learning_rate
    options = {"learning_rate": rate, "weight_decay": WEIGHT_DECAY, "ema": 0.99, "patience": 10}
    options |= {"batch_size": 128 if batch_size is None else batch_size}
    return Laps(FIRST_LAP if num_steps is None else num_steps, options)


def _parts(key: Array, data: np.ndarray, plan: PriorPlan) -> tuple[Array, Array]:
    """To train on and to hold out: a tenth, but 25 examples or a quarter of them where they are few."""
    array = check_data("data", data, plan.process)
    share = 0.0 if not plan.num_steps else max(0.1, min(0.25, 25 / len(array)))
    return split(key, array, share, plan.process)


def _of_table(
    key: Array,
    run_key: Array,
    plan: PriorPlan,
    train: np.ndarray,
    held_out: np.ndarray,
    options: dict[str, Any],
    checkpoint: str | PathLike[str] | None,
    pilot: int,
) -> DiffusionPrior:
    """Try all candidates for some steps, and go on with the best."""
    flat, flat_out = (part.reshape(len(part), -1) for part in (train, held_out))
    data = table(flat, flat_out, plan.dequantize)
    tried = candidates(key, data, table_width(len(flat) + len(flat_out), flat.shape[1]), train.shape[1:])
    short = min(plan.num_steps, pilot)
    options |= {"ema": 0.99 if len(train) <= 4_000 else 0.998, "validation": held_out}
    options |= {"patience": _patience(len(train), plan.num_steps)}

    def run(candidate: Candidate, steps: int, place: Path) -> FitResult:
        return fit(run_key, candidate.process, train, transform=candidate.transform, num_steps=steps, checkpoint=place,
                   **options)  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "run" if checkpoint is None else Path(checkpoint)
        places = [start, *(start.with_name(f"{start.name}.{i}") for i in range(1, len(tried)))]
        results = [run(candidate, short, place) for candidate, place in zip(tried, places, strict=True)]
        best = int(np.argmax([max(result.history["validation"]) for result in results]))
        if short < plan.num_steps:
            results[best] = run(tried[best], plan.num_steps, places[best])
    process, transform = simplified(tried[best], results[best].process)
    prior = assembled(process, transform, train)
    curves = {candidate.name: result for candidate, result in zip(tried, results, strict=True)}
    values = ", ".join(f"{name} {max(result.history['validation']):.2f}" for name, result in curves.items())
    reasons = (*plan.reasons, f"chosen: {tried[best].name} (validation K, in nats: {values})")
    models = {"Gaussian": data.gaussian}
    if len(data.mixture.weights) > 1:
        models[f"mixture of {len(data.mixture.weights)} Gaussians"] = data.mixture
    trained, own = results[best], tried[best].transform
    return prior.with_report(_report(plan, trained, own, curves, reasons, models, train, held_out))


def _simple_models(plan: PriorPlan, train: np.ndarray, held_out: np.ndarray) -> dict[str, Mixture]:
    """The Gaussian of real values, where it is not too large."""
    size = int(np.prod(train.shape[1:]))
    real = isinstance(plan.process.diffusion, GaussianDiffusion)
    if not real or size > LARGEST or not len(held_out):
        return {}
    return {"Gaussian": shrunk_gaussian(train.reshape(len(train), -1), plan.dequantize**2 / 12)}


def _report(
    plan: PriorPlan,
    result: FitResult,
    transform: Transform | None,
    results: dict[str, FitResult],
    reasons: tuple[str, ...],
    models: dict[str, Mixture],
    train: np.ndarray,
    held_out: np.ndarray,
) -> PriorReport:
    """K and the simple models' log densities of the same held-out examples, with the same noise between steps."""
    steps, validation = result.history["validation_step"], result.history["validation"]
    kept = int(steps[int(np.argmax(validation))]) if validation else result.steps
    if not len(held_out):
        return PriorReport(None, (), len(train), 0, kept, reasons, {})
    x, likelihood = jnp.asarray(held_out, float), default_validation(result.process, len(held_out))
    values: dict[str, list[np.ndarray]] = {name: [] for name in ("prior (K)", *models)}
    for key in jax.random.split(jax.random.key(0), REPEATS):  # the program that validation has compiled
        found = held_out_values(likelihood, key, result.process, x, plan.dequantize, transform)
        values["prior (K)"].append(np.asarray(found, np.float64))
        noisy = dequantized(jax.random.split(key)[0], x, plan.dequantize)
        flat = np.asarray(noisy, np.float64).reshape(len(x), -1)
        for name, model in models.items():
            values[name].append(model.log_prob(flat))
    means = {name: np.mean(found, axis=0) for name, found in values.items()}
    own, *scores = (_score(name, mean, means["prior (K)"]) for name, mean in means.items())
    curves = {name or "prior": _curve(found) for name, found in results.items()}
    return PriorReport(own, tuple(scores), len(train), len(held_out), kept, reasons, curves)


def _score(name: str, values: np.ndarray, own: np.ndarray) -> Score:
    error = lambda x: float(x.std() / np.sqrt(len(x)))
    return Score(name, float(values.mean()), error(values), float((own - values).mean()), error(own - values))


def _curve(result: FitResult) -> Curve:
    return {"step": result.history["validation_step"], "validation": result.history["validation"]}


def _patience(count: int, num_steps: int) -> int:
    """Validations without a better one: a tenth of the training, 500 steps at least."""
    return max(5, -(-max(500, num_steps // 10) // cadence(count)))


@functools.lru_cache(maxsize=32)
def _warmed_up(rate: float) -> Callable[[Any], Any]:
    """A learning rate that does not depend on how long training lasts, so that a run may go on."""
    return lambda step: rate * jnp.minimum(1.0, (step + 1) / 50) / jnp.sqrt(1 + step / 2_000)
