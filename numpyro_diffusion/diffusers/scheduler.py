"""The configuration of a `DDPMScheduler` or `DDIMScheduler`, as a chain of ours and back.

The library counts steps from 0, we from 1: its step t is our t + 1, with the same β. Its images are in [-1, 1].
Schedules come from exact β, while the library rounds β and their products to float32. A schedule is written by its name
where the named one, with ends of at most five digits, has the very same table, and else as the list of its β. How to
sample in fewer steps is a sampler's business and passed over.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np

from .. import schedules
from ..denoisers import Network
from ..denoisers.network import Predicts, Variance
from ..diffusions import GaussianDiffusion
from ..schedules import AbstractSchedule
from .config import Config, complete, count, number, require

# What both constructors take together, with their defaults. A pipeline that has changed its scheduler keeps the fields
# of the first one in the file of the second.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        "set_alpha_to_one": True,
        # of the first versions
        "predict_epsilon": None,
        "timestep_values": None,
        "tensor_format": None,
    }
)
_PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity"}
_VARIANCES = {
    "fixed_small": "beta_tilde",
    "fixed_small_log": "beta_tilde",
    "fixed_large": "beta",
    "learned_range": "learned",
}
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_NOT_OF_DDPM = ("set_alpha_to_one", "predict_epsilon", "timestep_values", "tensor_format")
_SUPPORTED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "prediction_type": tuple(_PREDICTS),
        "variance_type": tuple(_VARIANCES),
        "thresholding": (False,),
        "rescale_betas_zero_snr": (False,),
        "timestep_values": (None,),
    }
)


class Chain(NamedTuple):
    """What a scheduler's configuration says of the chain; `clip` is in the library's units."""

    schedule: AbstractSchedule
    predicts: Predicts
    variance: Variance
    clip: float | None


def read_scheduler(config: Mapping[str, Any]) -> Chain:
    """Return the chain that a configuration describes.

    A `DDIMScheduler` is read as its chain with η = 1, whose variance is β̃. What says how to sample in fewer steps
    (`timestep_spacing`, `steps_offset`, `set_alpha_to_one`) is passed over: a sampler's business here.

    Raises:
        ValueError: a field that is unknown, unsupported or of the wrong kind; it is named.
    """
    config = complete(config, ("DDPMScheduler", "DDIMScheduler"), DEFAULTS)
    if config["predict_epsilon"] is not None:  # what became `prediction_type`
        config["prediction_type"] = "epsilon" if config["predict_epsilon"] else "sample"
    if config["_class_name"] == "DDIMScheduler":
        config["variance_type"] = "fixed_small"  # its own formula, DDIM eq. 16, at η = 1
    require(config, _SUPPORTED)
    return Chain(
        _schedule(config),
        cast(Predicts, _PREDICTS[config["prediction_type"]]),
        cast(Variance, _VARIANCES[config["variance_type"]]),
        number(config, "clip_sample_range") if config["clip_sample"] else None,
    )


def write_scheduler(diffusion: GaussianDiffusion, denoiser: Network) -> Config:
    """Return the configuration of a `DDPMScheduler` for this chain.

    Raises:
        ValueError: a setting for which it has no place.
    """
    heads = {ours: theirs for theirs, ours in _PREDICTS.items()}
    variances = {"beta": "fixed_large", "beta_tilde": "fixed_small", "learned": "learned_range"}
    if denoiser.predicts not in heads:
        raise ValueError(f"predicts: expected {' or '.join(map(repr, heads))}, got {denoiser.predicts!r}")
    clip = _their_clip(diffusion, denoiser.clip)
    return {
        **{name: value for name, value in DEFAULTS.items() if name not in _NOT_OF_DDPM},
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.num_steps,
        **_write_betas(diffusion.schedule),
        "variance_type": variances[denoiser.variance],
        "prediction_type": heads[denoiser.predicts],
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
    }


def _schedule(config: Config) -> AbstractSchedule:
    """The schedule that the fields name, from exact β (the library rounds β and its products to float32)."""
    steps = count(config, "num_train_timesteps", 2)
    if config["trained_betas"] is not None:
        if np.shape(config["trained_betas"]) != (steps,):
            shape = np.shape(config["trained_betas"])
            raise ValueError(f"trained_betas: expected as many as num_train_timesteps, {steps}, got shape {shape}")
        return _from_beta("trained_betas", config["trained_betas"])
    require(config, {"beta_schedule": _BETA_SCHEDULES})
    return _named(config["beta_schedule"], steps, number(config, "beta_start"), number(config, "beta_end"))


def _named(kind: str, steps: int, first: float, last: float) -> AbstractSchedule:
    if kind == "squaredcos_cap_v2":
        return schedules.cosine(steps)
    if not 0 < first <= last <= 1:
        raise ValueError(f"beta_start, beta_end: expected 0 < beta_start <= beta_end <= 1, got {first} and {last}")
    power = 1.0 if kind == "linear" else 0.5
    return _from_beta("beta_start, beta_end", np.linspace(first**power, last**power, steps) ** (1 / power))


def _from_beta(name: str, beta: Any) -> AbstractSchedule:
    try:
        return schedules.from_beta(beta)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _write_betas(schedule: AbstractSchedule) -> Config:
    """The name of the schedule if it has one, else its β."""
    steps, table = schedule.num_steps, np.asarray(schedule.table, dtype=np.float64)
    if not np.array_equal(schedule.times, np.arange(steps + 1)):
        raise ValueError("schedule: expected a network that is told 0 ... T, got a respaced schedule")
    log_alpha_bar = -np.logaddexp(0, -table)
    beta = -np.expm1(np.diff(log_alpha_bar))
    for kind in _BETA_SCHEDULES:
        for digits in (2, 3, 4, 5):  # the table is rounded, its ends were not meant to be
            first, last = (float(f"{beta[end]:.{digits}g}") for end in (0, -1))
            if 0 < first <= last <= 1 and np.array_equal(_named(kind, steps, first, last).table, schedule.table):
                ends = {} if kind == "squaredcos_cap_v2" else {"beta_start": first, "beta_end": last}
                return {"beta_schedule": kind, **ends}
    return {"trained_betas": beta.tolist()}


def _their_clip(diffusion: GaussianDiffusion, clip: tuple[float, float] | None) -> float | None:
    """The range [-r, r] in standardised units, as its r."""
    if clip is None:
        return None
    low, high = (float(diffusion.standardize(end)) for end in clip)
    if not np.isclose(low, -high, rtol=1e-5, atol=0):
        raise ValueError(f"clip: expected a range about loc, which DDPMScheduler has, got {clip}")
    return round(high, 6)
