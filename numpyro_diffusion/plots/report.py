"""How good a learned prior is, in one figure.

Scores and training curves are those that `fit_prior` recorded with the prior, and a file keeps; only draws are made
here. The score of the prior is its bound K, those of the simple models are *exact* log densities, in nats per example:
a prior that is ahead by more than the errors is better, while one that is behind may still be as good
(`distributions.report`). Draws are shown over data for the elements that vary most, in the data's own units, for the
eye and not as a test.
"""

from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from ..distributions import DiffusionPrior
from ._axes import BLUE, ORANGE, Axes, axes_array, plain
from ._draws import shown

MOST_ELEMENTS = 3


def report(
    prior: DiffusionPrior,
    data: ArrayLike | None = None,
    ax: np.ndarray | None = None,
    *,
    key: jax.Array | None = None,
    names: list[str] | None = None,
    num_draws: int = 500,
) -> np.ndarray:
    """The scores and the training curves of a prior that `fit_prior` made, and its draws over data.

    Panels: mean log density of the held-out examples under the prior (its bound K) and under simple models, with
    standard errors; validation K by training step, of all coordinates and baselines that were tried; and, with `data`,
    histograms of the elements that vary most, and two of them in pairs, of the data and of draws.

    Args:
        prior: what `fit_prior` returned, or `nd.load` read from a file of it.
        data: examples, shape (n, *event), best ones that were not trained on.
        ax: where to draw: 2 Axes, or with data 2 more and one for each of up to 3 elements.
        key: JAX random key for the draws; a fixed one unless given.
        names: names of the elements, flattened, for the labels; those of the frame that was learned from, or
            ``x[0]`` and so on, unless given.
        num_draws: how many draws to show beside the data.

    Returns:
        The Axes, shape (panels,).

    Raises:
        ValueError: a prior without a report, or data of another shape.
    """
    found = prior.report()
    panels: list[Any] = [_scores, _curves]
    if data is not None:
        x = shown("data", data, float)
        if x.shape[1:] != prior.event_shape or len(x) < 2:
            raise ValueError(f"data: expected shape (n, *{prior.event_shape}) with n >= 2, got {x.shape}")
        draws = prior.sample(jax.random.key(0) if key is None else key, (num_draws,))
        seen, drawn = (np.asarray(values, float).reshape(len(values), -1) for values in (x, draws))
        labels = list(names or found.columns or _labels(prior.event_shape))
        if len(labels) != seen.shape[1]:
            raise ValueError(f"names: expected {seen.shape[1]} names, one an element, got {len(labels)}")
        chosen = np.sort(np.argsort(-seen.std(0), kind="stable")[:MOST_ELEMENTS])
        panels += [lambda ax, _, i=i: _histogram(ax, seen, drawn, i, labels[i]) for i in chosen]
        if len(chosen) > 1:
            panels.append(lambda ax, _: _pairs(ax, seen, drawn, chosen[:2], labels))
    axes = axes_array(ax, (1, len(panels)), (3.2 * len(panels), 3.0)).reshape(-1)
    for panel, draw in zip(axes, panels, strict=True):
        draw(panel, found)
        plain(panel)
    return axes


def _scores(ax: Axes, found: Any) -> None:
    scores = [score for score in (found.prior, *found.baselines) if score is not None]
    if not scores:
        ax.set_title("no example held out", fontsize=9)
        return
    y = np.arange(len(scores))[::-1]
    colours = [ORANGE] + [BLUE] * (len(scores) - 1)
    for level, score, colour in zip(y, scores, colours, strict=True):
        ax.errorbar(score.value, level, xerr=score.error, color=colour, marker="o", capsize=3)
    ax.set_yticks(y, [score.name for score in scores])
    ax.set(xlabel="held-out log density, nats per example", ylim=(-0.5, len(scores) - 0.5))


def _curves(ax: Axes, found: Any) -> None:
    for name, curve in found.curves.items():
        ax.plot(curve["step"], curve["validation"], marker=".", linewidth=1, label=name)
    ax.set(xlabel="training step", ylabel="validation K, nats per example")
    values = np.concatenate([curve["validation"] for curve in found.curves.values()] or [[]])
    if len(values):
        low, high = np.quantile(values, 0.1), values.max()
        margin = 0.1 * (high - low) or 0.1
        ax.set_ylim(low - margin, high + margin)
        ax.legend(frameon=False, fontsize=6, loc="best")


def _histogram(ax: Axes, data: np.ndarray, draws: np.ndarray, index: int, label: str) -> None:
    both = np.concatenate([data[:, index], draws[:, index]])
    low, high = np.quantile(both, [0.002, 0.998])
    bins = np.linspace(low, high, 31)
    for values, colour, name in ((data, BLUE, "data"), (draws, ORANGE, "draws")):
        ax.hist(values[:, index], bins, density=True, histtype="step", color=colour, linewidth=1.5, label=name)
    ax.set(xlabel=label, yticks=[])
    ax.legend(frameon=False, fontsize=7)


def _pairs(ax: Axes, data: np.ndarray, draws: np.ndarray, chosen: np.ndarray, labels: list[str]) -> None:
    one, two = chosen
    for values, colour in ((data, BLUE), (draws, ORANGE)):
        ax.scatter(values[:500, one], values[:500, two], s=6, color=colour, alpha=0.6, linewidths=0)
    limits = np.quantile(np.concatenate([data, draws])[:, chosen], [0.002, 0.998], axis=0).T
    margins = 0.05 * np.diff(limits, axis=1) * [[-1, 1]]
    ax.set(xlabel=labels[one], ylabel=labels[two], xlim=(limits + margins)[0], ylim=(limits + margins)[1])


def _labels(event_shape: tuple[int, ...]) -> list[str]:
    return [f"x[{','.join(map(str, index))}]" for index in np.ndindex(*event_shape)]
