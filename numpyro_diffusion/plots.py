"""Pictures of data, chains, schedules, training and posteriors; every function draws on `ax` and returns it.

Without `ax` a figure is made. Matplotlib is imported only when something is drawn.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ._checks import check_count
from .process import ReverseProcess
from .samplers import Ancestral
from .schedules import AbstractSchedule
from .training import FitResult

Axes: TypeAlias = Any
"""`matplotlib.axes.Axes`, which is not imported for its name alone."""

_BLUE, _ORANGE, _HIDDEN = "#2b6ca3", "#d9762b", "#e8b9a0"


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
    ax = _axes(ax, (6.0, 3.5))
    ax.plot(record["step"], record["loss"], color=_BLUE, alpha=0.5, linewidth=1, label="training loss")
    if record["validation_step"]:
        bound = -np.asarray(record["validation"])
        ax.errorbar(record["validation_step"], bound, record["validation_error"], color=_ORANGE,
                    marker="o", markersize=3, linewidth=1.5, label="−K, held-out")  # fmt: skip
    settled = np.concatenate([record["loss"][len(record["loss"]) // 10 :], -np.asarray(record["validation"])])
    margin = 0.05 * float(np.ptp(settled)) or 0.1
    ax.set(xlabel="step", ylabel="nats per example", ylim=(settled.min() - margin, settled.max() + margin))
    ax.legend(frameon=False, loc="upper right")
    return _plain(ax)


def schedule(schedule: AbstractSchedule, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """Log signal-to-noise ratio against t, where it is finite; call again with `ax` to compare schedules.

    Args:
        schedule: any schedule.
        ax: where to draw.
        label: its name in the legend; no legend unless given.
    """
    ax = _axes(ax, (5.0, 3.5))
    log_snr = np.asarray(schedule.table)
    ax.plot(np.flatnonzero(np.isfinite(log_snr)), log_snr[np.isfinite(log_snr)], label=label)
    ax.set(xlabel="t", ylabel=r"log-SNR, $\log\,\bar\alpha_t/(1-\bar\alpha_t)$")
    if label is not None:
        ax.legend(frameon=False)
    return _plain(ax)


def samples(
    images: ArrayLike,
    ax: Axes | None = None,
    *,
    columns: int | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = "gray",
) -> Axes:
    """Images side by side in one grid, all on one colour scale.

    Args:
        images: shape (n, height, width), or (n, height, width, 3) with colours in [0, 1].
        ax: where to draw.
        columns: images in a row; as many as make the grid about square unless given.
        limits: values drawn as the two ends of the colour map; the least and the greatest unless given.
        cmap: a colour map, for images of one channel.

    Raises:
        ValueError: an array of another shape.
    """
    array = np.asarray(images)
    if array.ndim not in (3, 4) or array.size == 0 or array.shape[3:] not in ((), (3,)):
        raise ValueError(f"images: expected shape (n, height, width) or (n, height, width, 3), got {array.shape}")
    count, height, width = array.shape[:3]
    columns = math.ceil(math.sqrt(count)) if columns is None else min(check_count("columns", columns), count)
    rows, gap = math.ceil(count / columns), max(1, height // 14)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *array.shape[3:]), np.nan)
    for index, image in enumerate(array):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    ax = _axes(ax, (6.0, 6.0 * grid.shape[0] / grid.shape[1]))
    low, high = (np.nanmin(array), np.nanmax(array)) if limits is None else limits
    if array.ndim == 4:
        grid = np.nan_to_num(np.clip(grid, 0, 1), nan=1.0)
    _image(ax, grid, low, high, cmap, hidden="white")
    return ax


def posterior(
    truth: ArrayLike | None,
    observation: ArrayLike,
    draws: ArrayLike,
    ax: Sequence[Axes] | np.ndarray | None = None,
    *,
    known: ArrayLike | None = None,
    num_draws: int = 4,
    limits: tuple[float, float] | None = None,
    cmap: str = "gray",
) -> np.ndarray:
    """One row: truth, observation, posterior mean, posterior standard deviation, some posterior draws.

    All but the standard deviation share one colour scale. What was not observed is shown in a colour of its own.

    Args:
        truth: shape (height, width); None leaves the panel out.
        observation: shape (height, width); NaN where nothing was observed.
        draws: shape (n, height, width), n ≥ 2.
        ax: as many Axes as there are panels.
        known: True where the observation is one, shape (height, width); everywhere unless given.
        num_draws: how many of the draws are shown, spread evenly over them.
        limits: values drawn as the two ends of the colour map; those of the truth (or the draws) unless given.
        cmap: a colour map.

    Returns:
        The Axes, shape (panels,).

    Raises:
        ValueError: shapes that do not fit, or another number of Axes than of panels.
    """
    sampled, seen = np.asarray(draws, dtype=float), np.array(observation, dtype=float)
    if sampled.ndim != 3 or len(sampled) < 2:
        raise ValueError(f"draws: expected shape (n, height, width) with n >= 2, got {sampled.shape}")
    for name, value in (("observation", observation), ("truth", truth), ("known", known)):
        if value is not None and np.shape(value) != sampled.shape[1:]:
            raise ValueError(f"{name}: expected shape {sampled.shape[1:]} as draws has, got {np.shape(value)}")
    if known is not None:
        seen[~np.asarray(known, dtype=bool)] = np.nan
    shown = min(check_count("num_draws", num_draws, 0), len(sampled))
    picked = np.round(np.linspace(0, len(sampled) - 1, shown)).astype(int)
    panels = [] if truth is None else [("truth", np.asarray(truth, dtype=float))]
    panels += [("observation", seen), ("posterior mean", sampled.mean(0)), ("posterior sd", sampled.std(0, ddof=1))]
    panels += [(f"draw {i + 1}", sampled[index]) for i, index in enumerate(picked)]
    axes = _axes_array(ax, (1, len(panels)), (1.5 * len(panels) + 0.4, 1.9)).reshape(-1)
    reference = sampled if truth is None else np.asarray(truth)
    low, high = (reference.min(), reference.max()) if limits is None else limits
    for panel, (title, image) in zip(axes, panels, strict=True):
        if title == "posterior sd":
            drawn = _image(panel, image, 0.0, None, "viridis")
            bar = panel.figure.colorbar(drawn, ax=panel, fraction=0.05, pad=0.03)
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_visible(False)
        else:
            _image(panel, image, low, high, cmap)
        panel.set_title(title, fontsize=9)
    return axes


def trajectory(
    key: Array,
    process: ReverseProcess,
    data: ArrayLike,
    ax: np.ndarray | None = None,
    *,
    times: Sequence[int] | None = None,
) -> np.ndarray:
    """Both chains of a diffusion over the plane: data turning into noise, noise into data, and the drift between.

    Rows: draws of the forward process at `times`, begun at `data`; as many of the reverse process, begun in noise; and
    the drift d(x) = E[x_{t-1} given x_t = x] − x of the reverse process, as arrows d/(‖d‖ + m), m the median of ‖d‖ in
    the panel, so that far away, where it is largest, it does not hide the rest. Where t < 2 the drift of step 2 is
    shown, since the step to the data may be fixed. After Figure 1 of Sohl-Dickstein et al. 2015.

    Args:
        key: JAX random key.
        process: of event shape (2,).
        data: shape (n, 2).
        ax: Axes of shape (3, len(times)).
        times: steps in [0, T]; 0, T/2 and T unless given.

    Returns:
        The Axes, shape (3, len(times)).

    Raises:
        ValueError: an event shape other than (2,), data of another shape, times outside [0, T], or Axes of another
            shape.
    """
    points = jnp.asarray(data, dtype=float)
    if process.event_shape != (2,) or points.ndim != 2 or points.shape[1:] != (2,) or not len(points):
        raise ValueError(f"data: expected a process of event shape (2,) and data of shape (n, 2), "
                         f"got {process.event_shape} and {points.shape}")  # fmt: skip
    last = process.num_steps
    steps = [0, last // 2, last] if times is None else [check_count("times", t, 0) for t in times]
    if not steps or max(steps) > last:
        raise ValueError(f"times: expected steps from 0 to T = {last}, got {steps}")
    axes = _axes_array(ax, (3, len(steps)), (2.3 * len(steps) + 0.4, 7.0))
    forward, backward = jax.random.split(key)
    reverse = eqx.filter_jit(jax.vmap(lambda key: Ancestral().trajectory(key, process)))
    chains = np.asarray(reverse(jax.random.split(backward, len(points))))
    bound = 1.1 * float(max(np.abs(points).max(), np.quantile(np.abs(chains), 0.999)))
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-bound, bound, 17)] * 2), -1).reshape(-1, 2)
    for column, t in enumerate(steps):
        noise = process.diffusion.marginal_noise(jax.random.fold_in(forward, t), points.shape)
        noised = points if t == 0 else process.diffusion.marginal_from_noise(noise, points, t)
        step = max(t, 2)
        drift = np.asarray(process.kernel(grid, step).mean - grid)
        length = np.linalg.norm(drift, axis=1, keepdims=True)
        arrows = drift / (length + np.median(length) + np.finfo(drift.dtype).tiny)
        axes[0, column].scatter(*np.asarray(noised).T, s=2, color=_BLUE, alpha=0.5, linewidths=0)
        axes[1, column].scatter(*chains[:, t].T, s=2, color=_ORANGE, alpha=0.5, linewidths=0)
        axes[2, column].quiver(*np.asarray(grid).T, *arrows.T, angles="xy", scale=14, color="0.25", width=0.005)
        axes[0, column].set_title(f"t = {t}", fontsize=10)
        for panel in axes[:, column]:
            panel.set(xlim=(-bound, bound), ylim=(-bound, bound), aspect="equal", xticks=[], yticks=[])
    for panel, name in zip(axes[:, 0], ("forward process", "reverse process", "drift"), strict=True):
        panel.set_ylabel(name, fontsize=10)
    return axes


def _figure(size: tuple[float, float]) -> Any:
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return _figure(size).add_subplot() if ax is None else ax


def _axes_array(ax: Any, shape: tuple[int, int], size: tuple[float, float]) -> np.ndarray:
    if ax is None:
        return _figure(size).subplots(*shape, squeeze=False)
    axes = np.asarray(ax, dtype=object)
    if axes.size != shape[0] * shape[1] or (shape[0] > 1 and axes.shape != shape):
        raise ValueError(f"ax: expected Axes of shape {shape if shape[0] > 1 else shape[1:]}, got {axes.shape}")
    return axes.reshape(shape)


def _image(ax: Axes, image: np.ndarray, low: float, high: float | None, cmap: str, hidden: str = _HIDDEN) -> Any:
    """Draw one image without ticks; NaN in the colour `hidden`."""
    import matplotlib

    ax.set_axis_off()
    colors = matplotlib.colormaps[cmap].with_extremes(bad=hidden)
    return ax.imshow(image, vmin=low, vmax=high, cmap=colors, interpolation="nearest")


def _plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
