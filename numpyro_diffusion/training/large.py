"""Plans for events of real values that are too large for covariances, such as pictures.

Their network learns what a mixture of Gaussians leaves whose coefficients along turned axes do not correlate
(`separable`); zero network = the mixture. Held-out examples choose basis and number of components, so that a prior is
as good as that simple model before anything is learned, but for what the chain's steps lose: kernels of independent
elements know nothing of the correlations of x_0 given x_t, and lose in inverse proportion to their number.
"""

from typing import Any

import numpy as np
from jax import Array

from .. import schedules
from ..denoisers import Residual
from ..diffusions import GaussianDiffusion
from ..placement import placement
from ..process import ReverseProcess
from ..schedules import AbstractSchedule
from .kinds import KINDS, Kind, Sizes, hidden_width
from .noise import given_or_not
from .scaling import spacing
from .separable import COMPONENTS, Separable, chosen_separable

MORE_TIMES = (200, 400)  # T: the first that loses less than LEAST_LOSS nats an element
LEAST_LOSS = 0.01
LOOKED_AT, LEVELS, CHUNK = 24, 32, 64  # examples, levels of noise and calls at a time, to place steps by
MOST_UNEQUAL = 10.0  # ratio of standard deviations of a vector's elements that one scale may serve
FEWEST = 20  # examples
DETAILS = (1e-3, 0.3)  # of the scale


def suits_a_mixture(array: np.ndarray) -> bool:
    """Whether there are some examples, and one scale serves all elements: of images always, of vectors if alike."""
    if len(array) < FEWEST:
        return False
    spread = array.std(0)
    return array.ndim > 2 or bool(spread.max() < MOST_UNEQUAL * spread.min())


def large_process(
    key: Array,
    array: np.ndarray,
    kind: Kind,
    schedule: AbstractSchedule | None,
    dequantize: float | None,
    reasons: list[str],
) -> tuple[ReverseProcess, float]:
    """The untrained process about one Gaussian of all examples, and the width of the noise that fills their gaps."""
    event_shape, width = array.shape[1:], spacing(array) if dequantize is None else float(dequantize)
    loc, scale = array.mean(), np.hypot(array.std(), width / np.sqrt(12))
    law = chosen_separable(_noisy(array, width), np.empty((0, 0)), event_shape)
    given, schedule = schedule, _schedule_of(law, scale) if schedule is None else schedule
    sizes = Sizes(schedule.num_steps, hidden_width(event_shape), outputs=2)
    fn: Any = KINDS[kind].network(key, event_shape, sizes)
    found = "the data's spacing" if width else "the data do not come in equal steps"
    ends = f"log-SNR {float(schedule.log_snr(1)):.3g} to {float(schedule.log_snr(schedule.num_steps)):.3g}"
    reasons += [
        f"noise law: N({loc:.4g}, {scale:.4g}²), the data's mean and standard deviation",
        f"dequantize: {width:.4g}{given_or_not(dequantize) or f', {found}'}",
        f"schedule: {schedule.num_steps} steps, {ends}{given_or_not(given)}",
        f"baseline: a Gaussian or mixtures of up to {COMPONENTS[-1]}, uncorrelated along turned axes, as validation "
        "decides; the network learns the rest",
        f"network: {fn.said}",
    ]
    diffusion = GaussianDiffusion(schedule, loc, scale)
    return ReverseProcess(diffusion, Residual(fn, law.denoiser()), event_shape), width


def about_best(
    key: Array, process: ReverseProcess, train: np.ndarray, held_out: np.ndarray, width: float, is_placed: bool
) -> tuple[ReverseProcess, Separable, list[str]]:
    """The process about the simple model that is best on held-out examples, that model, and what was chosen.

    Steps may be placed where the model's kernels lose most, as many as lose little.
    """
    shape = process.event_shape
    law = chosen_separable(_noisy(train, width), _noisy(held_out, width), shape)
    denoiser: Any = process.denoiser
    diffusion: Any = process.diffusion
    said = [f"baseline chosen: {law.said}"]
    if is_placed:
        diffusion = GaussianDiffusion(_schedule_of(law, float(diffusion.scale)), diffusion.loc, diffusion.scale)
        about = ReverseProcess(diffusion, law.denoiser(), shape)
        x = _noisy(train[:LOOKED_AT], width).reshape(-1, *shape).astype(np.float32)
        found = placement(key, about, x, num_times=LEVELS, chunk=CHUNK)
        losses = [float(found.loss(count)) for count in MORE_TIMES]
        which = int(np.argmax([*(lost < LEAST_LOSS * x[0].size for lost in losses[:-1]), True]))
        diffusion = GaussianDiffusion(found.schedule(MORE_TIMES[which]), diffusion.loc, diffusion.scale)
        where = f"placed where the baseline's kernels lose most, {losses[which]:.2g} nats"
        said.append(f"steps: {MORE_TIMES[which]}, {where}")
    return ReverseProcess(diffusion, Residual(denoiser.fn, law.denoiser()), shape), law, said


def _schedule_of(law: Separable, scale: float) -> AbstractSchedule:
    """Down to the noise of the least coefficients, but for a twentieth of them."""
    detail = np.sqrt(np.quantile(law.variances, 0.05)) / scale
    return schedules.log_snr(MORE_TIMES[0], detail=float(np.clip(detail, *DETAILS)))


def _noisy(x: np.ndarray, width: float) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    return flat + width * (np.random.default_rng(0).random(flat.shape) - 0.5)
