"""Pictures of log evidences: of several priors, and of data among those that a model draws.

Both show what `infer.compare_priors` and `diagnostics.surprise` have computed; nothing is estimated here. Log evidences
are in nats, with two standard errors to either side. Probabilities have the result's own 90% intervals, which need not
be symmetric. A data set of evidence 0 has no place in the histogram, but counts in the p-value of the legend.
"""

from typing import Literal

import numpy as np

from .._checks import check_choice
from ..diagnostics import Surprise
from ..infer import PriorComparison
from ._axes import BLUE, ORANGE, Axes, axes_or_new, plain


def prior_comparison(
    result: PriorComparison, ax: Axes | None = None, *, show: Literal["probability", "evidence"] = "probability"
) -> Axes:
    """Posterior probabilities of the priors, with 90% intervals, or their log evidences, with two standard errors.

    Args:
        result: what `nd.compare_priors` returned.
        ax: where to draw.
        show: ``"probability"``: bars, and the probabilities before the data as lines; ``"evidence"``: log evidences, in
            nats.

    Raises:
        ValueError: another `show`.
    """
    check_choice("show", show, ("probability", "evidence"))
    names, place = result.names, np.arange(len(result.names))
    ax = axes_or_new(ax, (1.6 + 0.9 * len(names), 3.2))
    if show == "probability":
        values = np.array(list(result.probabilities.values()))
        ends = np.array(list(result.probability_intervals.values()))
        errors = np.abs(ends - values[:, None]).T
        ax.bar(place, values, 0.6, color=BLUE)
        ax.errorbar(place, values, errors, fmt="none", color="0.2", capsize=3, linewidth=1)
        before = list(result.prior_probabilities.values())
        ax.hlines(before, place - 0.38, place + 0.38, color=ORANGE, linewidth=1.2, label="before the data")
        ax.set(ylabel="posterior probability", ylim=(0, 1.05))
        ax.legend(frameon=False)
    else:
        values = np.array(list(result.log_evidences.values()))
        errors = 2 * np.array(list(result.log_evidence_errors.values()))
        ax.errorbar(place, values, errors, fmt="o", color=BLUE, capsize=3, linewidth=1)
        ax.set(ylabel="log evidence, nats")
    ax.set(xlim=(-0.6, len(names) - 0.4))
    ax.set_xticks(place, names)
    return plain(ax)


def surprise(result: Surprise, ax: Axes | None = None) -> Axes:
    """Histogram of the log evidences of data sets that the model drew, with that of the data as a line.

    Evidences of 0, whose logarithm has no place, are left out.

    Args:
        result: what `nd.diagnostics.surprise` returned.
        ax: where to draw.
    """
    ax = axes_or_new(ax, (5.0, 3.2))
    replicates = result.replicates[np.isfinite(result.replicates)]
    ax.hist(replicates, bins="auto", color=BLUE, label="drawn by the model")
    label = f"the data, p = {result.p_value:.2g}"
    if np.isfinite(result.log_evidence):
        ax.axvline(result.log_evidence, color=ORANGE, linewidth=1.8, label=label)
    ax.set(xlabel="log evidence, nats", ylabel="data sets")
    ax.legend(frameon=False)
    return plain(ax)
