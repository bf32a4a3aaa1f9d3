"""Fixed schedules by their formulas.

Each function fills the table of a `Schedule` by a formula, in double precision: β_t linear in t (Ho, Jain and Abbeel
2020, §4), ᾱ_t a squared cosine (Nichol and Dhariwal 2021, eq. 17), log-SNR in equal steps, and ᾱ_t linear in t, where
each step erases 1/T of the signal (Sohl-Dickstein et al. 2015, §2.4.1). The forward process is exact with any of them;
the schedule decides how well T reverse kernels of one family can invert it.
"""

import numpy as np
from jax.typing import ArrayLike

from .._checks import check_count, check_finite, check_positive, check_scalar
from .base import Schedule


def from_beta(beta: ArrayLike) -> Schedule:
    r"""The schedule with steps :math:`\beta_1 \dots \beta_T`, shape (T,), each in (0, 1] and only the last may be 1.

    Raises:
        ValueError: a step outside (0, 1], NaN, or fewer than 2 steps.
    """
    check_finite("beta", beta)
    beta = np.atleast_1d(np.asarray(beta, dtype=np.float64))
    if beta.ndim != 1 or beta.size < 2:
        raise ValueError(f"beta: expected at least 2 steps, shape (T,), got shape {beta.shape}")
    if (beta <= 0).any() or (beta > 1).any():
        raise ValueError(f"beta: expected every step in (0, 1], got values from {beta.min()} to {beta.max()}")
    with np.errstate(divide="ignore"):
        return Schedule(log_snr_table(np.cumsum(np.log1p(-beta))))


def linear(num_steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    r""":math:`\beta_t` linear in t ([DDPM 2020] §4), both ends times 1000/T so that every T forgets alike.

    Raises:
        TypeError: an end that is no number.
        ValueError: T < 2, an end that is not positive and finite.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    for name, value in {"beta_min": beta_min, "beta_max": beta_max}.items():
        _check_number(name, value)
    first, last = np.array([beta_min, beta_max]) * 1000 / num_steps
    return from_beta(np.minimum(np.linspace(first, last, num_steps), 0.999))


def cosine(num_steps: int, offset: float = 0.008, beta_max: float = 0.999) -> Schedule:
    r""":math:`\bar\alpha(t) \propto \cos^2\!\big(\tfrac{t/T+c}{1+c}\tfrac{\pi}{2}\big)`, steps capped at `beta_max`.

    Source: Nichol & Dhariwal 2021, eq. 17.

    Raises:
        TypeError: `offset` or `beta_max` is no number.
        ValueError: T < 2, `offset` or `beta_max` not positive and finite, or no schedule with them.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    for name, value in {"offset": offset, "beta_max": beta_max}.items():
        _check_number(name, value)
    angle = (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset) * np.pi / 2
    alpha_bar = np.cos(angle) ** 2
    return from_beta(np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, beta_max))


def log_snr(
    num_steps: int,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    scale: float = 1.0,
    detail: float = 0.05,
) -> Schedule:
    """Log-SNR in equal steps from `maximum` at t = 1 to `minimum` at t = T: the default schedule.

    Ends that are not given are chosen from the data: at T the signal is 1% of the noise's standard deviation (so that
    the chain's prior is missed by less than 1e-4 nats per dimension), at t = 1 the noise is 1/5 of the finest detail.

    Args:
        num_steps: T.
        minimum: log-SNR at T (natural logarithm).
        maximum: log-SNR at t = 1.
        scale: root mean square of the data about the diffusion's `loc`, in units of the diffusion's `scale`.
        detail: the finest standard deviation worth keeping (a grey level, a mode's width), in the same units.

    Example:
        >>> schedule = nd.schedules.log_snr(50)
        >>> float(schedule.alpha_bar(0)), schedule.num_steps
        (1.0, 50)

    Raises:
        ValueError: T < 2, ends that are not finite or not decreasing, `scale` or `detail` not positive.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    for name, value in {"minimum": minimum, "maximum": maximum, "scale": scale, "detail": detail}.items():
        if value is not None or name in ("scale", "detail"):
            check_scalar(name, value)
    if not (0 < scale < np.inf and 0 < detail < np.inf):
        raise ValueError(f"scale, detail: expected positive numbers, got {scale} and {detail}")
    minimum = 2 * np.log(0.01 / scale) if minimum is None else float(minimum)
    maximum = -2 * np.log(detail / 5) if maximum is None else float(maximum)
    if not (np.isfinite(minimum) and np.isfinite(maximum) and minimum < maximum):
        raise ValueError(f"minimum, maximum: expected finite ends, minimum below maximum, got {minimum}, {maximum}")
    return Schedule(np.concatenate([[np.inf], np.linspace(maximum, minimum, num_steps)]))


def erasing(num_steps: int) -> Schedule:
    r""":math:`\beta_t = 1/(T-t+1)`, so that :math:`\bar\alpha_t = 1-t/T`: each step erases 1/T of the signal.

    Source: [2015] §2.4.1, the binomial schedule. At t = T nothing is left.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    t = np.arange(num_steps + 1)
    with np.errstate(divide="ignore"):
        return Schedule(np.log(num_steps - t) - np.log(t), "alpha_bar")


def _check_number(name: str, value: float) -> None:
    """Raise unless `value` is one positive, finite number."""
    check_scalar(name, value)
    check_finite(name, value)
    check_positive(name, value)


def log_snr_table(log_alpha_bar: np.ndarray) -> np.ndarray:
    """Log-SNR table with its infinite start from log alpha_bar at t = 1 … T."""
    return np.concatenate([[np.inf], log_alpha_bar - np.log(-np.expm1(log_alpha_bar))])
