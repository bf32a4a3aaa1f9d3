"""Where pictures are drawn. Matplotlib is imported only when something is drawn.

A picture draws on the Axes that it is given, and makes a figure of its own size only where there are none. Several Axes
are taken as an array: as many as there are panels, and of their very shape where the panels have several rows; others
are refused before anything is drawn. Images are drawn without interpolation, so that each square is one number, and NaN
has a colour of its own, so that what was not observed does not look like a value.
"""

from typing import Any, TypeAlias

import numpy as np

Axes: TypeAlias = Any
"""`matplotlib.axes.Axes`, which is not imported for its name alone."""

BLUE, ORANGE, HIDDEN = "#2b6ca3", "#d9762b", "#e8b9a0"


def figure(size: tuple[float, float]) -> Any:
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return figure(size).add_subplot() if ax is None else ax


def axes_array(ax: Any, shape: tuple[int, int], size: tuple[float, float]) -> np.ndarray:
    if ax is None:
        return figure(size).subplots(*shape, squeeze=False)
    axes = np.asarray(ax, dtype=object)
    if axes.size != shape[0] * shape[1] or (shape[0] > 1 and axes.shape != shape):
        raise ValueError(f"ax: expected Axes of shape {shape if shape[0] > 1 else shape[1:]}, got {axes.shape}")
    return axes.reshape(shape)


def draw_image(ax: Axes, image: np.ndarray, low: float, high: float | None, cmap: str, hidden: str = HIDDEN) -> Any:
    """Draw one image without ticks; NaN in the colour `hidden`."""
    import matplotlib

    ax.set_axis_off()
    colors = matplotlib.colormaps[cmap].with_extremes(bad=hidden)
    return ax.imshow(image, vmin=low, vmax=high, cmap=colors, interpolation="nearest")


def colour_bar(drawn: Any, ax: Axes, label: str | None = None) -> Any:
    """A bar of the colours of what was drawn, inside of the place of `ax`."""
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.05, pad=0.03)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    if label is not None:
        bar.set_label(label, fontsize=8)
    return bar


def plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
