"""A prior from data in one call: what to train is chosen from the data's shape and values, and said."""

from os import PathLike
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .. import schedules
from .._checks import check_choice, check_count, check_finite
from ..denoisers import Network
from ..diffusions import BinomialDiffusion, GaussianDiffusion
from ..distributions import DiffusionPrior
from ..networks import MLP
from ..process import ReverseProcess
from ..schedules import AbstractSchedule
from .fit import fit

Family = Literal["gaussian", "binomial"]


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
        dequantize: width of the uniform noise added to the data; their spacing, if they come in equal steps.
        num_steps: optimiser steps.

    Returns:
        A `PriorPlan`.

    Raises:
        ValueError: data that are empty, not finite or constant, or a choice that does not fit them.
    """
    array = _checked(data)
    event_shape, size = array.shape[1:], int(np.prod(array.shape[1:]))
    binary = bool(((array == 0) | (array == 1)).all())
    family = ("binomial" if binary else "gaussian") if family is None else family
    check_choice("family", family, ("gaussian", "binomial"))
    reasons = [f"family: {family} ({'only 0 and 1' if binary else 'real values'} in the data)"]
    if family == "binomial":
        if not binary:
            raise ValueError("family: expected only 0 and 1 in binomial data, got other values")
        rate = float(np.clip(array.mean(), 0.01, 0.99))
        schedule = schedules.erasing(_bit_steps(size)) if schedule is None else schedule
        diffusion: BinomialDiffusion | GaussianDiffusion = BinomialDiffusion(schedule, rate)
        reasons.append(f"noise law: Bernoulli({rate:.4g}), the data's mean activity")
        reasons.append(f"schedule: {schedule.num_steps} steps, equal shares of the signal erased unless given")
        dequantize = 0.0
    else:
        loc, chosen_scale = _scaling(array, loc, scale)
        dequantize = _spacing(array) if dequantize is None else dequantize
        detail = _detail((array - loc) / chosen_scale, dequantize / np.max(chosen_scale))
        reach = float(np.sqrt(np.mean(np.square((array - loc) / chosen_scale))))
        schedule = schedules.log_snr(100, scale=reach, detail=detail) if schedule is None else schedule
        diffusion = GaussianDiffusion(schedule, loc, chosen_scale)
        reasons.append(f"noise law: {_said(loc, chosen_scale)}, from the data's mean and standard deviation")
        reasons.append(f"dequantize: {dequantize:.4g}, the data's spacing (0: no steps found)")
        ends = float(schedule.log_snr(1)), float(schedule.log_snr(schedule.num_steps))
        reasons.append(f"schedule: {schedule.num_steps} steps, log-SNR {ends[0]:.3g} to {ends[1]:.3g}; "
                       f"finest detail {detail:.3g} of the scale")  # fmt: skip
    width = 128 if size <= 8 else 256 if size <= 128 else 512
    net = MLP(key, event_shape, num_steps=schedule.num_steps, width=width) if network is None else network
    reasons.append(f"network: {type(net).__name__}{f' of width {width}' if network is None else ''}")
    denoiser = Network(net, "logits" if family == "binomial" else "velocity")
    steps = check_count("num_steps", (10_000 if size <= 32 else 20_000) if num_steps is None else num_steps)
    reasons.append(f"training: {steps} steps")
    return PriorPlan(ReverseProcess(diffusion, denoiser, event_shape), steps, float(dequantize), tuple(reasons))


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
        The `DiffusionPrior`, in the data's own units.

    Raises:
        ValueError: see `plan_prior` and `fit`.
    """
    first, second = jax.random.split(key)
    plan = plan_prior(
        first, data, family=family, loc=loc, scale=scale, schedule=schedule, network=network,
        dequantize=dequantize, num_steps=num_steps,
    )  # fmt: skip
    if progress:
        print(plan)
    result = fit(
        second, plan.process, jnp.asarray(data, dtype=float), num_steps=plan.num_steps, batch_size=batch_size,
        learning_rate=learning_rate, dequantize=plan.dequantize, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    return DiffusionPrior(result.process)


def _checked(data: ArrayLike) -> np.ndarray:
    array = np.asarray(data)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"data: expected numbers, got dtype {array.dtype}")
    if array.ndim < 2 or array.shape[0] < 2 or array.size == 0:
        raise ValueError(f"data: expected shape (n, *event) with n >= 2 and an event of rank 1 or more, got {array.shape}")
    check_finite("data", array)
    array = array.astype(np.float64)
    if (array == array[:1]).all():
        raise ValueError(f"data: expected examples that differ, got {array.shape[0]} equal ones (constant data)")
    return array


def _scaling(array: np.ndarray, loc: ArrayLike | None, scale: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale: per element for vectors (none may be constant), one constant for arrays of higher rank."""
    if array.ndim == 2:
        default_loc, default_scale = array.mean(axis=0), array.std(axis=0)
        constant = np.flatnonzero(default_scale == 0)
        if scale is None and constant.size:
            raise ValueError(f"data: expected every element to vary, got constant ones at {constant[:8].tolist()}")
    else:
        default_loc, default_scale = np.asarray(array.mean()), np.asarray(array.std())
    return (
        default_loc if loc is None else np.asarray(loc, dtype=np.float64),
        default_scale if scale is None else np.asarray(scale, dtype=np.float64),
    )


def _spacing(array: np.ndarray) -> float:
    """The step of data that come in equal steps (up to 1024 of them), otherwise 0."""
    values = np.unique(array.reshape(-1)[:1_000_000])
    if not 2 <= values.size <= 1024:
        return 0.0
    gaps = np.diff(values)
    step = gaps.min()
    multiples = gaps / step
    return float(step) if np.abs(multiples - np.round(multiples)).max() < 1e-3 else 0.0


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
