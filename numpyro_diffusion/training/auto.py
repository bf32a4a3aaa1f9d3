"""A prior from data in one call: what to train is chosen from the data's shape and values, and said."""

from os import PathLike
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .. import schedules
from .._checks import check_choice, check_count, check_finite, check_key, checked_location, checked_scale
from .._numbers import check_resolution
from ..denoisers import Network
from ..diffusions import BinomialDiffusion, GaussianDiffusion
from ..distributions import DiffusionPrior
from ..moments import LARGEST_WHOLE, moments_of_draws
from ..networks import MLP
from ..process import ReverseProcess
from ..samplers import having_moments
from ..schedules import AbstractSchedule
from ._arguments import check_number, check_numbers
from .loop import fit

Family = Literal["gaussian", "binomial"]

SAMPLED = 1_000_000  # values that are sorted to find the spacing


class PriorPlan(NamedTuple):
    """What `fit_prior` will train, and the reasons, one line each; `print` it.

    Attributes:
        process: the untrained reverse process.
        num_steps: optimiser steps.
        dequantize: width of the uniform noise added to data that come in steps; 0 for none.
        reasons: what was chosen, and from what.
    """

    process: ReverseProcess
    num_steps: int
    dequantize: float
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def plan_prior(
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
) -> PriorPlan:
    """Choose family, scaling, schedule, network and training length for some data; every choice can be overridden.

    Args:
        key: JAX random key, for the network's first weights.
        data: shape (n, *event), finite, not constant.
        family: ``"gaussian"`` or ``"binomial"``; binomial for data of nothing but 0 and 1.
        loc: location of the Gaussian noise law; the mean (of each element, for events of rank 1).
        scale: its scale; the standard deviation, one constant for images, one per element for events of rank 1.
        schedule: log-SNR in equal steps; its ends from the data's scale and finest detail.
        network: a callable fn(x_t, t), predicting the velocity, or the logits of bits; an `MLP` sized by the event.
        dequantize: width of the uniform noise added to the data, in their units; their spacing if they come in equal
            steps (whole numbers, k/255), otherwise 0.
        num_steps: optimiser steps.

    Returns:
        A `PriorPlan`.

    Raises:
        ValueError: data that are empty, not finite or constant, or a choice that does not fit them.
    """
    array = _checked(data)
    event_shape, size = array.shape[1:], int(np.prod(array.shape[1:]))
    binary = bool(((array == 0) | (array == 1)).all())
    if family is None:
        family = "binomial" if binary else "gaussian"
    check_choice("family", family, ("gaussian", "binomial"))
    check_key("key", key)
    _check_overrides(family, binary, schedule, network, dequantize)
    steps = check_count("num_steps", (10_000 if size <= 32 else 20_000) if num_steps is None else num_steps)
    reasons = [f"family: {family} ({'only 0 and 1' if binary else 'real values'} in the data)"]
    diffusion: BinomialDiffusion | GaussianDiffusion
    if family == "binomial":
        if loc is not None or scale is not None:
            name, value = ("loc", loc) if loc is not None else ("scale", scale)
            raise ValueError(f"{name}: expected None for the binomial family, got {value!r}")
        diffusion, width = _for_bits(array, schedule, reasons), 0.0
    else:
        diffusion, width = _for_reals(array, loc, scale, schedule, dequantize, reasons)
    hidden = 128 if size <= 8 else 256 if size <= 128 else 512
    fn: Any = MLP(key, event_shape, num_steps=diffusion.num_steps, width=hidden) if network is None else network
    reasons.append(f"network: MLP of width {hidden}" if network is None else f"network: {type(fn).__name__} (given)")
    reasons.append(f"training: {steps} steps{_given(num_steps)}")
    denoiser = Network(fn, "logits" if family == "binomial" else "velocity")
    return PriorPlan(ReverseProcess(diffusion, denoiser, event_shape), steps, width, tuple(reasons))


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
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
) -> DiffusionPrior:
    """Learn a prior from data: `plan_prior`, then `fit` of the K bound.

    A tenth of the data is held out. With 100 examples or more, training stops after five validations (1,000 steps
    apart) without a better K, and the best weights are kept.

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
        batch_size: see `fit`.
        learning_rate: see `fit`.
        checkpoint: see `fit`.
        progress: whether to print the plan and show a progress bar.

    Returns:
        The `DiffusionPrior`, in the data's own units. Where data in steps were dequantised, its K bounds the density
        of data with that noise.

    Raises:
        ValueError: see `plan_prior` and `fit`.
    """
    first, second = jax.random.split(check_key("key", key))
    data = check_numbers("data", data)
    plan = plan_prior(
        first, data, family=family, loc=loc, scale=scale, schedule=schedule, network=network,
        dequantize=dequantize, num_steps=num_steps,
    )  # fmt: skip
    if progress:
        print(plan)
    result = fit(
        second, plan.process, data, num_steps=plan.num_steps, batch_size=batch_size,
        learning_rate=learning_rate, dequantize=plan.dequantize, checkpoint=checkpoint, progress=progress,
        # A tenth of the data is held out; from so few that this is noise, there is nothing to stop by.
        patience=5 if len(np.asarray(data)) >= 100 else None,
    )  # fmt: skip
    return DiffusionPrior(_with_moments(result.process, np.asarray(data)))


def _with_moments(process: ReverseProcess, data: np.ndarray) -> ReverseProcess:
    """The process with its data's covariance, which twists rely on; as it is for bits, and for large events."""
    size = int(np.prod(process.event_shape))
    if not isinstance(process.diffusion, GaussianDiffusion) or size > LARGEST_WHOLE:
        return process
    moments = moments_of_draws(process.diffusion.standardize(data).reshape(len(data), -1))
    return having_moments(process, moments)


def _checked(data: ArrayLike) -> np.ndarray:
    array = check_numbers("data", data)
    if array.ndim < 2 or array.shape[0] < 2 or array.size == 0:
        raise ValueError(
            f"data: expected shape (n, *event) with n >= 2 and an event of rank 1 or more, got {array.shape}"
        )
    check_finite("data", array)
    check_resolution("data", array)
    array = array.astype(np.float64)
    if (array == array[:1]).all():
        raise ValueError(f"data: expected examples that differ, got {array.shape[0]} equal ones (constant data)")
    return array


def _check_overrides(family: Family, binary: bool, schedule: object, network: object, dequantize: Any) -> None:
    """Raise ``ValueError`` for a choice of the wrong kind, or one that does not fit the family."""
    if family == "binomial" and not binary:
        raise ValueError("family: expected 'gaussian' for data with other values than 0 and 1, got 'binomial'")
    if schedule is not None and not isinstance(schedule, AbstractSchedule):
        raise ValueError(f"schedule: expected a schedule from numpyro_diffusion.schedules, got {schedule!r}")
    if network is not None and not callable(network):
        raise ValueError(f"network: expected a callable fn(x_t, t), got {network!r}")
    if dequantize is not None:
        bits = family == "binomial"
        fits = lambda width: width == 0 or (width > 0 and not bits)
        check_number("dequantize", dequantize, "a width of at least 0 (0 for bits)", fits)


def _for_bits(array: np.ndarray, schedule: AbstractSchedule | None, reasons: list[str]) -> BinomialDiffusion:
    rate = float(np.clip(array.mean(), 0.01, 0.99))
    reasons.append(f"noise law: Bernoulli({rate:.4g}), the data's mean activity")
    if schedule is None:
        schedule = schedules.erasing(_bit_steps(int(np.prod(array.shape[1:]))))
        reasons.append(f"schedule: {schedule.num_steps} steps, each erasing an equal share of the signal")
    else:
        reasons.append(f"schedule: {schedule.num_steps} steps (given)")
    return BinomialDiffusion(schedule, rate)


def _for_reals(
    array: np.ndarray,
    loc: ArrayLike | None,
    scale: ArrayLike | None,
    schedule: AbstractSchedule | None,
    dequantize: float | None,
    reasons: list[str],
) -> tuple[GaussianDiffusion, float]:
    """The diffusion, and the width of the noise that fills the gaps of data that come in steps."""
    width = _spacing(array) if dequantize is None else float(dequantize)
    # An element of a vector may vary less than the noise that fills the gaps; images are scaled by a constant.
    noise = width / np.sqrt(12) if array.ndim == 2 else 0.0
    used_loc, used_scale = _scaling(array, loc, scale, noise)
    law = _said(used_loc, used_scale)
    reasons.append(f"noise law: {law}; {_source('mean', loc)}, {_source('standard deviation', scale)}")
    found = "the data's spacing" if width else "the data do not come in equal steps"
    reasons.append(f"dequantize: {width:.4g}{_given(dequantize) or f', {found}'}")
    standardized = (array - used_loc) / used_scale
    if schedule is None:
        detail = _detail(standardized, width / float(np.max(used_scale)))
        size = np.sqrt(np.mean(np.square(standardized)) + np.mean(np.square(noise / used_scale)))
        schedule = schedules.log_snr(100, scale=float(size), detail=detail)
        first, last = float(schedule.log_snr(1)), float(schedule.log_snr(schedule.num_steps))
        ends = f"log-SNR {first:.3g} to {last:.3g}, finest detail {detail:.3g} of the scale"
        reasons.append(f"schedule: {schedule.num_steps} steps, {ends}")
    else:
        reasons.append(f"schedule: {schedule.num_steps} steps (given)")
    return GaussianDiffusion(schedule, used_loc, used_scale), width


def _scaling(
    array: np.ndarray, loc: ArrayLike | None, scale: ArrayLike | None, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale: per element for vectors (none may be constant), one constant for arrays of higher rank."""
    if array.ndim == 2:
        default_loc, default_scale = array.mean(axis=0), np.hypot(array.std(axis=0), noise)
        constant = np.flatnonzero(np.ptp(array, axis=0) == 0)
        if scale is None and constant.size:
            raise ValueError(f"data: expected every element to vary, got constant ones at {constant[:8].tolist()}; "
                             "leave them out, or give a scale")  # fmt: skip
    else:
        default_loc, default_scale = np.asarray(array.mean()), np.asarray(array.std())
    used_loc = default_loc if loc is None else _element("loc", loc, array.shape[1:])
    used_scale = default_scale if scale is None else _element("scale", scale, array.shape[1:])
    checked_location("loc", used_loc)
    checked_scale("scale", used_scale)
    return used_loc, used_scale


def _element(name: str, value: ArrayLike, event_shape: tuple[int, ...]) -> np.ndarray:
    """`value` as finite numbers that broadcast to one example."""
    array = check_numbers(name, value).astype(np.float64)
    check_finite(name, array)
    try:
        fits = np.broadcast_shapes(array.shape, event_shape) == event_shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: expected a shape that broadcasts to {event_shape}, got {array.shape}")
    return array


def _spacing(array: np.ndarray) -> float:
    """The step of data that come in equal steps (up to 65,536 over their range), otherwise 0.

    Whole numbers are as far apart as their differences' greatest common divisor. For others the candidate is the
    smallest gap between distinct values, of which there may be 1024; all data must be on its grid, up to the rounding
    of float32. Two distinct values are always on one: each must occur twice.
    """
    flat = array.reshape(-1)
    if flat.size > SAMPLED:  # at random, or a stride might see the same pixels only
        flat = flat[np.random.default_rng(0).integers(0, flat.size, SAMPLED)]
    values, counts = np.unique(flat, return_counts=True)
    rounding = 4 * float(np.finfo(np.float32).eps) * np.abs(values).max()
    gaps = np.diff(values)
    gaps = gaps[gaps > rounding]
    if gaps.size == 0 or (values.size == 2 and counts.min() < 2):
        return 0.0
    whole = rounding < 0.1 and bool((values == np.round(values)).all())
    step = float(np.gcd.reduce(gaps.astype(int)) if whole else gaps.min())
    count = round((values[-1] - values[0]) / step)
    if count > 65_536 or not (whole or values.size <= 1024):
        return 0.0
    step = float(values[-1] - values[0]) / count
    steps = (array - values[0]) / step
    off = np.abs(steps - np.round(steps)).max()
    return step if off <= min(1e-5 + rounding / step, 0.1) else 0.0


def _detail(standardized: np.ndarray, step: float) -> float:
    """The finest scale worth keeping: a grey level's spread, or half the typical distance to the nearest neighbour."""
    if step:
        return float(max(step / np.sqrt(12), 1e-3))
    sample = standardized.reshape(len(standardized), -1)[:1000]
    square = np.square(sample).sum(1)
    distance = square[:, None] + square[None] - 2 * sample @ sample.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.sqrt(np.maximum(distance.min(axis=1), 0) / sample.shape[1])
    return float(np.clip(np.median(nearest) / 2, 2e-3, 0.3))


def _bit_steps(size: int) -> int:
    return int(np.clip(10 * size, 100, 1000))


def _said(loc: np.ndarray, scale: np.ndarray) -> str:
    if loc.ndim or scale.ndim:
        return f"N(loc, scale²) for each element, scales {scale.min():.4g} to {scale.max():.4g}"
    return f"N({loc:.4g}, {scale:.4g}²)"


def _source(what: str, given: object) -> str:
    return f"the data's {what}" if given is None else f"the {what} given"


def _given(value: object) -> str:
    return "" if value is None else " (given)"
