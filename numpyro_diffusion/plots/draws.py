"""Pictures of draws: of a few elements in pairs, of series, and of data that a model would draw.

Sets are compared by eye: nothing here is a test. Bands are central quantiles of the draws, of a series place by place,
and in a predictive check those of the draws' distribution functions value by value, so that a curve may leave a band
somewhere by chance. With a statistic the check also says the share of data sets below the observed one, those that
equal it by half. Axes reach between quantiles, with a margin, and of many points a part is shown, evenly spread, so
that neither a few far points nor the number of all hide the rest; quantiles and shares are of all draws.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from ._axes import BLUE, ORANGE, Axes, axes_array, axes_or_new, plain
from ._draws import pooled, shown, shown_by_name

COLOURS = (BLUE, ORANGE, "#5a9e5a", "#8a63a8", "0.4")
LARGEST_CORNER = 8  # elements
MOST_POINTS = 500
ENDS = (0.5, 99.5)  # percentiles between which axes reach


def corner(
    sets: Mapping[str, ArrayLike],
    ax: Any = None,
    *,
    names: Sequence[str] | None = None,
    truth: ArrayLike | None = None,
) -> np.ndarray:
    """Each element's histogram and each pair's points, of several sets at once: data, prior and posterior, say.

    Ranges reach from the 0.5% to the 99.5% quantile of the sets together, so that a few far points hide nothing. Of a
    set of more than 500 points as many are shown, evenly spread; histograms are of all.

    Args:
        sets: draws by name, each of shape (n, d), d at most 8.
        ax: Axes of shape (d, d); those above the diagonal are switched off.
        names: of the elements; numbers unless given.
        truth: shape (d,), drawn as lines.

    Example:
        >>> data, posterior = jax.random.normal(jax.random.key(0), (2, 100, 3))
        >>> axes = nd.plots.corner({"data": data, "posterior": 0.3 * posterior}, names=["a", "b", "c"])
        >>> axes.shape
        (3, 3)

    Returns:
        The Axes, shape (d, d).

    Raises:
        TypeError: no arrays by name; an array with hidden values.
        ValueError: no set, shapes that do not fit each other, more than 8 elements.
    """
    arrays = shown_by_name("sets", sets, float)
    shapes = {value.shape[1:] for value in arrays.values()}
    if len(shapes) != 1 or any(value.ndim != 2 or len(value) < 2 for value in arrays.values()):
        raise ValueError(f"sets: expected arrays of one shape (n, d), n >= 2, got {[v.shape for v in arrays.values()]}")
    (size,) = shapes.pop()
    if not 1 <= size <= LARGEST_CORNER:
        raise ValueError(f"sets: expected 1 to {LARGEST_CORNER} elements, got {size}; choose some, as x[:, :4]")
    labels = [f"x[{i}]" for i in range(size)] if names is None else [*map(str, names)]
    marks = None if truth is None else shown("truth", truth, float)
    for name, length in (("names", len(labels)), ("truth", size if marks is None else marks.size)):
        if length != size:
            raise ValueError(f"{name}: expected {size}, one an element, got {length}")
    axes = axes_array(ax, (size, size), (1.9 * size + 1.2, 1.7 * size + 0.6))
    ranges = [_range([value[:, i] for value in arrays.values()]) for i in range(size)]
    for row, column in np.ndindex(size, size):
        panel: Axes = axes[row, column]
        if column > row:
            panel.set_axis_off()
            continue
        for colour, (name, value) in zip(_colours(len(arrays)), arrays.items(), strict=True):
            if row == column:
                panel.hist(
                    value[:, row], 40, range=ranges[row], density=True, histtype="step", color=colour, label=name
                )
            else:
                some = value[np.linspace(0, len(value) - 1, min(len(value), MOST_POINTS)).astype(int)]
                panel.plot(some[:, column], some[:, row], ".", color=colour, markersize=2, alpha=0.5)
                panel.set_ylim(ranges[row])
        panel.set_xlim(ranges[column])
        _mark(panel, marks, row, column)
        panel.set_xlabel(labels[column] if row == size - 1 else "")
        panel.set_ylabel(labels[row] if row != column and column == 0 else "density" if row == column == 0 else "")
        plain(panel)
    where = axes[0, 0] if size == 1 else axes[0, -1]
    handles, said = axes[0, 0].get_legend_handles_labels()
    where.legend(handles, said, frameon=False, fontsize=9, loc="upper right")
    return axes


def bands(
    draws: Any,
    ax: Axes | None = None,
    *,
    x: ArrayLike | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    observed: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    site: str | None = None,
) -> Axes:
    """A series' median and central bands, place by place, with what was observed and the truth.

    Args:
        draws: shape (n, length); or an `MCMC`, an `SMC`, or an ArviZ container that holds them.
        ax: where to draw.
        x: places of the series, shape (length,); 0, 1, … unless given.
        levels: shares of the draws that the bands hold, in (0, 1).
        observed: shape (length,), drawn as dots; NaN where nothing was.
        truth: shape (length,), drawn as a dashed line.
        site: which one of a run or container; the only one of series unless given.

    Example:
        >>> draws = jax.random.normal(jax.random.key(0), (100, 24)).cumsum(1)
        >>> ax = nd.plots.bands(draws, truth=draws[0])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['90% of the draws', '50% of the draws', 'median', 'truth']

    Raises:
        ValueError: another shape, a level outside (0, 1), a site that is not there.
    """
    values = pooled(draws, 1, site)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"draws: expected shape (n, length) with n >= 2, got {values.shape}")
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels: expected numbers in (0, 1), got {levels}")
    places = np.arange(values.shape[1]) if x is None else shown("x", x)
    for name, series in (("x", places), ("observed", observed), ("truth", truth)):
        if series is not None and np.shape(series) != values.shape[1:]:
            raise ValueError(f"{name}: expected shape {values.shape[1:]} as draws has, got {np.shape(series)}")
    ax = axes_or_new(ax, (6.0, 3.2))
    for inner, level in enumerate(sorted(levels, reverse=True)):
        low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        shade = min(0.25 + 0.2 * inner, 0.9)
        ax.fill_between(places, low, high, color=BLUE, alpha=shade, linewidth=0, label=f"{level:.0%} of the draws")
    ax.plot(places, np.median(values, axis=0), color=BLUE, linewidth=1.2, label="median")
    if truth is not None:
        ax.plot(places, shown("truth", truth), color="0.2", linestyle="--", linewidth=1, label="truth")
    if observed is not None:
        ax.plot(places, shown("observed", observed, float), "o", color=ORANGE, markersize=3, label="observed")
    ax.set(xlabel="place in the series", ylabel="value" if site is None else site)
    ax.legend(frameon=False, fontsize=8)
    return plain(ax)


def predictive(
    replicates: Mapping[str, ArrayLike],
    observed: ArrayLike,
    ax: Axes | None = None,
    *,
    statistic: Callable[[np.ndarray], float] | None = None,
) -> Axes:
    """A prior or posterior predictive check: what was observed, among data that the model draws.

    Args:
        replicates: data sets by name, ``"prior"`` and ``"posterior"``, say, n of the shape of `observed` each, as
            NumPyro's `Predictive` draws them.
        observed: the data.
        ax: where to draw.
        statistic: of one data set. Histograms are of the statistic then, with the share of data sets below that of the
            data; unless given, bands hold the distribution functions of 90% of the data sets, value by value.

    Example:
        >>> observed = jax.random.normal(jax.random.key(0), (30,))
        >>> wide, narrow = jax.random.normal(jax.random.key(1), (2, 50, 30))
        >>> ax = nd.plots.predictive({"prior": 3 * wide, "posterior": narrow}, observed)
        >>> ax.get_ylabel()
        'share of values below'

    Raises:
        ValueError: no data sets, or of another shape.
    """
    seen, drawn = shown("observed", observed), shown_by_name("replicates", replicates)
    for name, value in drawn.items():
        if value.shape[1:] != seen.shape or len(value) < 2:
            raise ValueError(f"replicates: expected shape (n, {str(seen.shape)[1:]} for {name!r}, got {value.shape}")
    if not drawn:
        raise ValueError("replicates: expected some data sets, got none")
    ax = axes_or_new(ax, (5.0, 3.2))
    colours = _colours(len(drawn))
    if statistic is None:
        grid = np.linspace(*_range([seen, *drawn.values()]), 200)
        for colour, (name, value) in zip(colours, drawn.items(), strict=True):
            shares = np.stack([_distribution(each, grid) for each in value])
            low, high = np.quantile(shares, [0.05, 0.95], axis=0)
            ax.fill_between(grid, low, high, color=colour, alpha=0.3, linewidth=0, label=f"{name}, 90%")
        ax.plot(grid, _distribution(seen, grid), color="0.1", linewidth=1.2, label="observed")
        ax.set(xlabel="value", ylabel="share of values below", ylim=(0, 1))
    else:
        found, here = {name: np.array([statistic(each) for each in v]) for name, v in drawn.items()}, statistic(seen)
        reach = _range([np.atleast_1d(here), *found.values()])
        for colour, (name, value) in zip(colours, found.items(), strict=True):
            share = (value < here).mean() + (value == here).mean() / 2
            label = f"{name}: {share:.0%} below"
            ax.hist(value, 40, range=reach, density=True, histtype="stepfilled", color=colour, alpha=0.45, label=label)
        ax.axvline(here, color="0.1", linewidth=1.4, label="observed")
        ax.set(xlabel="statistic", ylabel="density")
    ax.legend(frameon=False, fontsize=8)
    return plain(ax)


def _distribution(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(values, axis=None), grid, side="right") / values.size


def _range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Between quantiles, with a margin."""
    ends = np.array([np.percentile(each, ENDS) for each in values])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _mark(panel: Axes, truth: np.ndarray | None, row: int, column: int) -> None:
    if truth is not None:
        panel.axvline(truth[column], color="0.2", linewidth=0.8, linestyle="--")
        if row != column:
            panel.axhline(truth[row], color="0.2", linewidth=0.8, linestyle="--")
