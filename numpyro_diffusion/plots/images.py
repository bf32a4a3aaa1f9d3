"""Pictures of images and of posteriors over images.

What is in the units of the data shares one colour scale, that of the truth where it is known, so that panels can be
compared; the standard deviation and the ranks have scales and bars of their own. Means, standard deviations (with
n − 1) and quantiles are taken pixel by pixel, and do not say how pixels vary together, for which single draws are
shown. The rank of the truth is that of simulation-based calibration (Talts et al. 2018), as a share of the draws, those
that equal the truth by half. Colours are cut off at 0 and 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from .._checks import check_count
from ._axes import Axes, axes_array, axes_or_new, colour_bar, draw_image
from ._draws import pooled, shown

RANK = "rank of the truth"


def samples(
    images: ArrayLike,
    ax: Axes | None = None,
    *,
    columns: int | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = "gray",
    units: str | None = None,
) -> Axes:
    """Images side by side in one grid, all on one colour scale.

    Args:
        images: shape (n, height, width), or (n, height, width, 3) with colours in [0, 1].
        ax: where to draw.
        columns: images in a row; as many as make the grid about square unless given.
        limits: values drawn as the two ends of the colour map; the least and the greatest unless given.
        cmap: a colour map, for images of one channel.
        units: what the values are, such as ``"grey level"``, for a bar of the colours; no bar unless given.

    Raises:
        ValueError: an array of another shape.
    """
    array = shown("images", images)
    if array.ndim not in (3, 4) or array.size == 0 or array.shape[3:] not in ((), (3,)):
        raise ValueError(f"images: expected shape (n, height, width) or (n, height, width, 3), got {array.shape}")
    count, height, width = array.shape[:3]
    columns = math.ceil(math.sqrt(count)) if columns is None else min(check_count("columns", columns), count)
    rows, gap = math.ceil(count / columns), max(1, height // 14)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *array.shape[3:]), np.nan)
    for index, image in enumerate(array):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    ax = axes_or_new(ax, (6.0, 6.0 * grid.shape[0] / grid.shape[1]))
    low, high = (np.nanmin(array), np.nanmax(array)) if limits is None else limits
    if array.ndim == 4:
        grid = np.nan_to_num(np.clip(grid, 0, 1), nan=1.0)
    drawn = draw_image(ax, grid, low, high, cmap, hidden="white")
    if units is not None and array.ndim == 3:
        colour_bar(drawn, ax, units)
    return ax


def posterior(
    truth: ArrayLike | None,
    observation: ArrayLike,
    draws: Any,
    ax: Sequence[Axes] | np.ndarray | None = None,
    *,
    known: ArrayLike | None = None,
    quantiles: Sequence[float] = (),
    ranks: bool = False,
    num_draws: int = 4,
    limits: tuple[float, float] | None = None,
    cmap: str = "gray",
    site: str | None = None,
    units: str | None = None,
) -> np.ndarray:
    """One row: truth, observation, posterior mean and standard deviation, quantiles, ranks, some posterior draws.

    All but the standard deviation and the ranks share one colour scale. Its bar stands beside the last of them, unless
    Axes are given, whose rows may share one. What was not observed is shown in a colour of
    its own. A rank is the share of draws below the truth: over all elements, uniform on [0, 1] where the posterior is
    right, so that patches at either end show where it is not.

    Args:
        truth: shape (height, width); None leaves the panel out.
        observation: shape (height, width); NaN where nothing was observed.
        draws: shape (n, height, width), n ≥ 2; or an `MCMC`, an `SMC`, or an ArviZ container that holds them.
        ax: as many Axes as there are panels.
        known: True where the observation is one, shape (height, width); everywhere unless given.
        quantiles: element by element, of these levels in [0, 1]; a panel each.
        ranks: whether to map the rank of the truth among the draws.
        num_draws: how many of the draws are shown, spread evenly over them.
        limits: values drawn as the two ends of the colour map; those of the truth (or the draws) unless given.
        cmap: a colour map.
        site: which one of a run or container; the only one of images unless given.
        units: what the values are, such as ``"grey level"``, for the bars of the colours.

    Example:
        >>> draws = jax.random.uniform(jax.random.key(0), (50, 8, 8))
        >>> seen = draws[0].at[4:].set(jnp.nan)  # the lower half is hidden
        >>> axes = nd.plots.posterior(draws[0], seen, draws, num_draws=1, units="grey level")
        >>> [panel.get_title() for panel in axes]
        ['truth', 'observation', 'posterior mean', 'posterior sd', 'draw 1']

    Returns:
        The Axes, shape (panels,).

    Raises:
        ValueError: shapes that do not fit, a level outside [0, 1], ranks without a truth, or too few or many Axes.
    """
    sampled, seen = np.asarray(pooled(draws, 2, site), dtype=float), shown("observation", observation, float).copy()
    truth = None if truth is None else shown("truth", truth)
    if sampled.ndim != 3 or len(sampled) < 2:
        raise ValueError(f"draws: expected shape (n, height, width) with n >= 2, got {sampled.shape}")
    for name, value in (("observation", observation), ("truth", truth), ("known", known)):
        if value is not None and np.shape(value) != sampled.shape[1:]:
            raise ValueError(f"{name}: expected shape {sampled.shape[1:]} as draws has, got {np.shape(value)}")
    if not all(0 <= level <= 1 for level in quantiles):
        raise ValueError(f"quantiles: expected levels in [0, 1], got {quantiles}")
    if ranks and truth is None:
        raise ValueError("ranks: expected False where truth is None, got True")
    if known is not None:
        seen[~np.asarray(known, dtype=bool)] = np.nan
    count = min(check_count("num_draws", num_draws, 0), len(sampled))
    picked = np.round(np.linspace(0, len(sampled) - 1, count)).astype(int)
    scale = _scale(sampled if truth is None else np.asarray(truth), limits, cmap)
    panels: list[tuple[str, np.ndarray, Any]] = [] if truth is None else [("truth", np.asarray(truth, float), scale)]
    panels += [("observation", seen, scale), ("posterior mean", sampled.mean(0), scale)]
    panels += [("posterior sd", sampled.std(0, ddof=1), (0.0, None, "viridis"))]
    panels += [(f"{level:.0%} quantile", np.quantile(sampled, level, axis=0), scale) for level in quantiles]
    if ranks:
        panels += [(RANK, _ranks(np.asarray(truth, float), sampled), (0.0, 1.0, "RdBu_r"))]
    panels += [(f"draw {i + 1}", sampled[index], scale) for i, index in enumerate(picked)]
    axes = axes_array(ax, (1, len(panels)), (1.5 * len(panels) + 0.4, 1.9)).reshape(-1)
    last = max(place for place, (_, _, colours) in enumerate(panels) if colours is scale)
    for place, (panel, (title, image, colours)) in enumerate(zip(axes, panels, strict=True)):
        drawn = draw_image(panel, image, *colours)
        if colours is not scale or (place == last and (ax is None or units is not None)):
            colour_bar(drawn, panel, None if title == RANK else units)
        panel.set_title(title, fontsize=9)
    return axes


def _scale(values: np.ndarray, limits: tuple[float, float] | None, cmap: str) -> tuple[float, float, str]:
    low, high = (values.min(), values.max()) if limits is None else limits
    return low, high, cmap


def _ranks(truth: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Share of draws below the truth; half of those that equal it count."""
    return (draws < truth).mean(0) + (draws == truth).mean(0) / 2
