"""What a training run is reported to be: held-out K beside simple models of the same examples.

K of held-out examples stands beside the *exact* log densities that simple models have of the same examples, with the
same noise between steps where data come in steps. As K is a *lower bound*, a prior that is ahead is better, while one
that is behind may still be as good.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import Transform

from ..distributions.report import Curve, PriorReport, Score
from ..moments import LARGEST_WHOLE
from ._arguments import default_validation
from .baselines import LARGEST, Independent, Mixture, independent, shrunk_gaussian
from .conditional import Told
from .loop import held_out_values
from .plan import PriorPlan
from .results import FitResult
from .run import dequantized
from .separable import Separable, chosen_separable
from .tables import FEWEST

REPEATS = 4  # of the report's K


def simple_models(plan: PriorPlan, train: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Of real values a Gaussian, and for large events a mixture along turned axes; of others independent elements."""
    size, count = int(np.prod(train.shape[1:])), plan.process.diffusion.num_values
    if not len(held_out):
        return {}
    flat, found = train.reshape(len(train), -1), dict[str, Any]()
    if count is not None:
        return {"independent elements": independent(flat, count)} if size <= LARGEST else {}
    if size <= LARGEST:
        found["Gaussian"] = shrunk_gaussian(flat, plan.dequantize**2 / 12)
    if size > LARGEST_WHOLE and len(train) >= FEWEST:
        noisy, noisy_out = (_noisy(x, plan.dequantize) for x in (flat, held_out.reshape(len(held_out), -1)))
        law = chosen_separable(noisy, noisy_out, train.shape[1:])
        found[law.said] = law
    return found


def _noisy(x: np.ndarray, width: float) -> np.ndarray:
    return x + width * (np.random.default_rng(0).random(x.shape) - 0.5)


def report_of(
    plan: PriorPlan,
    result: FitResult,
    transform: Transform | None,
    results: dict[str, FitResult],
    reasons: tuple[str, ...],
    models: Mapping[str, Mixture | Independent | Separable | Told],
    train: np.ndarray,
    held_out: np.ndarray,
    context: Array | None = None,
) -> PriorReport:
    """K and the simple models' log densities of the same held-out examples, with the same noise between steps."""
    steps, validation = result.history["validation_step"], result.history["validation"]
    best_step = int(steps[int(np.argmax(validation))]) if validation else result.steps
    if not len(held_out):
        return PriorReport(None, (), len(train), 0, best_step, reasons, {})
    x, likelihood = jnp.asarray(held_out, float), default_validation(result.process, len(held_out))
    values: dict[str, list[np.ndarray]] = {name: [] for name in ("prior (K)", *models)}
    for key in jax.random.split(jax.random.key(0), REPEATS):  # the program that validation has compiled
        found = held_out_values(likelihood, key, result.process, x, plan.dequantize, transform, context)
        values["prior (K)"].append(np.asarray(found, np.float64))
        noisy = dequantized(jax.random.split(key)[0], x, plan.dequantize)
        flat = np.asarray(noisy, np.float64).reshape(len(x), -1)
        for name, model in models.items():
            values[name].append(model.log_prob(flat))
    means = {name: np.mean(found, axis=0) for name, found in values.items()}
    own, *scores = (_score(name, mean, means["prior (K)"]) for name, mean in means.items())
    curves = {name or "prior": _curve(found) for name, found in results.items()}
    return PriorReport(own, tuple(scores), len(train), len(held_out), best_step, reasons, curves)


def _score(name: str, values: np.ndarray, own: np.ndarray) -> Score:
    error = lambda x: float(x.std() / np.sqrt(len(x)))
    return Score(name, float(values.mean()), error(values), float((own - values).mean()), error(own - values))


def _curve(result: FitResult) -> Curve:
    return {"step": result.history["validation_step"], "validation": result.history["validation"]}
