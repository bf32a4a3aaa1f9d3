"""The noise law and the schedule that suit some data, by family.

K loses KL(q(x_T | x_0) ‖ π) at the noisy end, and at the clean end whatever the last step cannot resolve, so that the
noise law takes its location and scale, or its rate, from the data, and the schedule goes from where the signal is lost
to below the finest detail. Bits are tossed at their own rate, as Sohl-Dickstein et al. (2015, App. D.1.2) have it;
classes are masked (Austin et al. 2021). Real data in steps get uniform noise as wide as a step: a density could
concentrate on the steps without end.
"""

import numpy as np
from jax.typing import ArrayLike

from .. import schedules
from ..diffusions import BinomialDiffusion, CategoricalDiffusion, GaussianDiffusion
from ..schedules import AbstractSchedule
from .scaling import detail_of, location_and_scale, spacing


def for_classes(array: np.ndarray, schedule: AbstractSchedule | None, reasons: list[str]) -> CategoricalDiffusion:
    """Absorbing noise; classes as the codes say."""
    counts = 1 + array.max(0 if array.ndim == 2 else None).astype(int)
    least, most = int(counts.min()), int(counts.max())
    reasons.append(f"noise law: absorbing, of {most if least == most else f'{least} to {most}'} classes")
    schedule = _erasing(array, schedule, reasons)
    return CategoricalDiffusion(schedule, most if least == most else counts, "absorbing")


def for_bits(array: np.ndarray, schedule: AbstractSchedule | None, reasons: list[str]) -> BinomialDiffusion:
    """Bits tossed anew as often as the data's are 1."""
    rate = float(np.clip(array.mean(), 0.01, 0.99))
    reasons.append(f"noise law: Bernoulli({rate:.4g}), the data's mean activity")
    return BinomialDiffusion(_erasing(array, schedule, reasons), rate)


def _erasing(array: np.ndarray, schedule: AbstractSchedule | None, reasons: list[str]) -> AbstractSchedule:
    if schedule is not None:
        reasons.append(f"schedule: {schedule.num_steps} steps (given)")
        return schedule
    size = int(np.prod(array.shape[1:]))
    reasons.append(f"schedule: {_value_steps(size)} steps, each erasing an equal share of the signal")
    return schedules.erasing(_value_steps(size))


def for_reals(
    array: np.ndarray,
    loc: ArrayLike | None,
    scale: ArrayLike | None,
    schedule: AbstractSchedule | None,
    dequantize: float | None,
    reasons: list[str],
) -> tuple[GaussianDiffusion, float]:
    """The diffusion, and the width of the noise that fills the gaps of data that come in steps."""
    width = spacing(array) if dequantize is None else float(dequantize)
    # An element of a vector may vary less than the noise that fills the gaps; images are scaled by a constant.
    noise = width / np.sqrt(12) if array.ndim == 2 else 0.0
    used_loc, used_scale = location_and_scale(array, loc, scale, noise)
    law = _said(used_loc, used_scale)
    reasons.append(f"noise law: {law}; {_source('mean', loc)}, {_source('standard deviation', scale)}")
    found = "the data's spacing" if width else "the data do not come in equal steps"
    reasons.append(f"dequantize: {width:.4g}{given_or_not(dequantize) or f', {found}'}")
    standardized = (array - used_loc) / used_scale
    if schedule is None:
        detail = detail_of(standardized, width / float(np.max(used_scale)))
        size = np.sqrt(np.mean(np.square(standardized)) + np.mean(np.square(noise / used_scale)))
        schedule = schedules.log_snr(100, scale=float(size), detail=detail)
        first, last = float(schedule.log_snr(1)), float(schedule.log_snr(schedule.num_steps))
        ends = f"log-SNR {first:.3g} to {last:.3g}, finest detail {detail:.3g} of the scale"
        reasons.append(f"schedule: {schedule.num_steps} steps, {ends}")
    else:
        reasons.append(f"schedule: {schedule.num_steps} steps (given)")
    return GaussianDiffusion(schedule, used_loc, used_scale), width


def _value_steps(size: int) -> int:
    return int(np.clip(10 * size, 100, 1000))


def _said(loc: np.ndarray, scale: np.ndarray) -> str:
    if loc.ndim or scale.ndim:
        return f"N(loc, scale²) for each element, scales {scale.min():.4g} to {scale.max():.4g}"
    return f"N({loc:.4g}, {scale:.4g}²)"


def _source(what: str, given: object) -> str:
    return f"the data's {what}" if given is None else f"the {what} given"


def given_or_not(value: object) -> str:
    """Words for a choice of the user's own."""
    return "" if value is None else " (given)"
