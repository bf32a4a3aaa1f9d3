"""Pictures of training and of schedules.

The loss of training and −K on held-out data are in nats per example and share an axis, whose scale leaves out the first
tenth of the losses, as the first steps would flatten the rest. Log densities of single examples are shown of several
sets, those learned and those held out, since a mean over either alone does not show a prior that has learned its
examples by heart; the means in the legend have standard errors. A schedule is its log-SNR, log(ᾱ_t/(1 − ᾱ_t)), which is
infinite at the data and left out there.
"""

import itertools
from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from ..schedules import AbstractSchedule
from ..training import FitResult
from ._axes import BLUE, ORANGE, Axes, axes_or_new, plain
from ._draws import shown_by_name


def history(result: FitResult, ax: Axes | None = None) -> Axes:
    """Training loss, and −K on held-out data with its standard error, against the step.

    The scale is that of the last nine tenths of the run: the first steps may leave the picture at the top.

    Args:
        result: what `fit` returned.
        ax: where to draw.

    Raises:
        ValueError: a history without entries.
    """
    record = result.history
    if not record["step"]:
        raise ValueError("result: expected a history with at least one entry, got none")
    ax = axes_or_new(ax, (6.0, 3.5))
    ax.plot(record["step"], record["loss"], color=BLUE, alpha=0.5, linewidth=1, label="training loss")
    if record["validation_step"]:
        bound = -np.asarray(record["validation"])
        ax.errorbar(record["validation_step"], bound, record["validation_error"], color=ORANGE,
                    marker="o", markersize=3, linewidth=1.5, label="−K, held-out")  # fmt: skip
    settled = np.concatenate([record["loss"][len(record["loss"]) // 10 :], -np.asarray(record["validation"])])
    margin = 0.05 * float(np.ptp(settled)) or 0.1
    ax.set(xlabel="step", ylabel="nats per example", ylim=(settled.min() - margin, settled.max() + margin))
    ax.legend(frameon=False, loc="upper right")
    return plain(ax)


def log_prob(
    values: Mapping[str, ArrayLike], ax: Axes | None = None, *, levels: Mapping[str, float] | None = None
) -> Axes:
    """Log densities of single examples, of several sets: of what was learned and of what was held out, say.

    Where those learned are far above those held out, the prior has learned them by heart.

    Args:
        values: by name, shape (n,), in nats, as ``prior.log_prob(x)`` has them.
        ax: where to draw.
        levels: of simple models by name, in nats, drawn as lines.

    Raises:
        ValueError: no values, or none that are finite.
    """
    arrays = {name: np.ravel(value) for name, value in shown_by_name("values", values, float).items()}
    finite = {name: value[np.isfinite(value)] for name, value in arrays.items()}
    if not finite or not all(map(len, finite.values())):
        raise ValueError(f"values: expected finite log densities by name, got {[*map(len, finite.values())]} of them")
    ax = axes_or_new(ax, (5.0, 3.2))
    low, high = (np.quantile(np.concatenate([*finite.values()]), level) for level in (0.002, 1.0))
    for colour, (name, value) in zip(itertools.cycle((BLUE, ORANGE, "#5a9e5a")), finite.items()):
        label = f"{name}: {value.mean():.2f} ± {value.std() / len(value) ** 0.5:.2f}"
        ax.hist(value, 40, range=(low, high), density=True, histtype="stepfilled", color=colour, alpha=0.4, label=label)
        ax.axvline(value.mean(), color=colour, linewidth=1.2)
    for name, level in (levels or {}).items():
        ax.axvline(level, color="0.3", linestyle=":", linewidth=1.2, label=f"{name}: {level:.2f}")
    ax.set(xlabel="log p of an example, nats", ylabel="density")
    ax.legend(frameon=False, fontsize=8)
    return plain(ax)


def schedule(schedule: AbstractSchedule, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """Log signal-to-noise ratio against t, where it is finite; call again with `ax` to compare schedules.

    Args:
        schedule: any schedule.
        ax: where to draw.
        label: its name in the legend; no legend unless given.
    """
    ax = axes_or_new(ax, (5.0, 3.5))
    log_snr = np.asarray(schedule.table)
    ax.plot(np.flatnonzero(np.isfinite(log_snr)), log_snr[np.isfinite(log_snr)], label=label)
    ax.set(xlabel="t", ylabel=r"log-SNR, $\log\,\bar\alpha_t/(1-\bar\alpha_t)$")
    if label is not None:
        ax.legend(frameon=False)
    return plain(ax)
