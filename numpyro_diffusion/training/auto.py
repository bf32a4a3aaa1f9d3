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
from ..diffusions import require_gaussian
from ..distributions import DiffusionPrior
from ..distributions.report import Curve, PriorReport, Score
from ..moments import LARGEST_WHOLE, moments_of_draws
from ..process import ReverseProcess
from ..samplers import having_moments
from ..schedules import AbstractSchedule
from ._arguments import cadence, check_data, check_numbers, default_validation, split
from .baselines import LARGEST, Mixture, shrunk_gaussian
from .loop import FitResult, fit, held_out_values
from .plan import Family, PriorPlan, plan_prior, table_width
from .run import dequantized, to_latent
from .tables import Candidate, candidates, simplified, table

PILOT = 1_000  # steps by which coordinates and baseline are chosen
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

    Args:
        key: JAX random key.
        data: shape (n, *event); see `plan_prior`, also for the arguments up to `num_steps`.
        family: see `plan_prior`.
        loc: see `plan_prior`.
        scale: see `plan_prior`.
        schedule: see `plan_prior`.
        network: see `plan_prior`.
        dequantize: see `plan_prior`.
        num_steps: see `plan_prior`.
        batch_size: see `fit`; 256 unless given, 128 for a table of at most 2,000 examples.
        learning_rate: see `fit`.
        checkpoint: see `fit`; of a table, that of what is tried first, with others beside it, ``checkpoint.1`` and on.
        progress: whether to print the plan and the report, and to show a progress bar.

    Returns:
        The `DiffusionPrior`, in the data's own units, with its `report()`. Where data in steps were dequantised, its K
        bounds the density of data with that noise.

    Raises:
        ValueError: see `plan_prior` and `fit`.

    Warns:
        PoorPriorWarning: K on the held-out examples is below the log density of a simple model, beyond errors.
    """
    first, second = jax.random.split(check_key("key", key))
    data = check_numbers("data", data)
    plan = plan_prior(
        first, data, family=family, loc=loc, scale=scale, schedule=schedule, network=network,
        dequantize=dequantize, num_steps=num_steps,
    )  # fmt: skip
    if progress:
        print(plan)
    train, held_out = (np.asarray(part, np.float64) for part in _parts(second, np.asarray(data), plan))
    if batch_size is None:
        batch_size = 128 if plan.is_table and len(train) <= 2_000 else 256
    options: dict[str, Any] = {"batch_size": batch_size, "dequantize": plan.dequantize, "progress": progress}
    if not plan.num_steps:
        report = PriorReport(None, (), len(train), 0, 0, plan.reasons, {})
        prior = DiffusionPrior(plan.process, transform=plan.transform).with_report(report)
    elif plan.is_table:
        rate = _warmed_up(float(learning_rate)) if learning_rate > 0 else learning_rate
        options |= {"learning_rate": rate, "weight_decay": WEIGHT_DECAY}
        prior = _of_table(first, second, plan, train, held_out, options, checkpoint)
    else:
        patience = _patience(len(train), plan.num_steps) if len(held_out) else None
        options |= {"learning_rate": learning_rate, "checkpoint": checkpoint, "patience": patience}
        result = fit(second, plan.process, train, num_steps=plan.num_steps, validation=held_out, **options)
        models = _simple_models(plan, train, held_out)
        report = _report(plan, result, None, {"": result}, plan.reasons, models, train, held_out)
        prior = _prior(result.process, None, train).with_report(report)
    if progress:
        print(f"{prior.report()}".removeprefix("\n".join(plan.reasons)).strip())
    if prior.report().is_worse:
        warnings.warn(f"fit_prior: {prior.report().verdict}", PoorPriorWarning, stacklevel=2)
    return prior


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
) -> DiffusionPrior:
    """Try all candidates for some steps, and go on with the best."""
    flat, flat_out = (part.reshape(len(part), -1) for part in (train, held_out))
    data = table(flat, flat_out, plan.dequantize)
    tried = candidates(key, data, table_width(len(flat) + len(flat_out), flat.shape[1]), train.shape[1:])
    short = min(plan.num_steps, PILOT)
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
    prior = _prior(process, transform, train)
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
    real = plan.process.diffusion.is_gaussian
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


def _prior(process: ReverseProcess, transform: Transform | None, data: np.ndarray) -> DiffusionPrior:
    """With the covariance of the data, which twists rely on; without it for bits, and for large events."""
    size = int(np.prod(process.event_shape))
    if process.diffusion.is_gaussian and size <= LARGEST_WHOLE:
        diffusion = require_gaussian(process.diffusion)
        z, _ = to_latent(transform, jnp.asarray(data, float))
        moments = moments_of_draws(diffusion.standardize(z).reshape(len(data), -1))
        process = having_moments(process, moments)
    return DiffusionPrior(process, transform=transform)


def _patience(count: int, num_steps: int) -> int:
    """Validations without a better one: a tenth of the training, 500 steps at least."""
    return max(5, -(-max(500, num_steps // 10) // cadence(count)))


@functools.lru_cache(maxsize=32)
def _warmed_up(rate: float) -> Callable[[Any], Any]:
    """A learning rate that does not depend on how long training lasts, so that a run may go on."""
    return lambda step: rate * jnp.minimum(1.0, (step + 1) / 50) / jnp.sqrt(1 + step / 2_000)
