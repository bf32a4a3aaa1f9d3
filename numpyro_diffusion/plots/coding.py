"""Pictures of a model as a progressive code."""

import numpy as np

from ..diagnostics import ProgressiveCode
from ._axes import BLUE, Axes, axes_or_new, plain


def rate_distortion(code: ProgressiveCode, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """Distortion against rate, means over the examples: what is known of x_0 for so many bits.

    Source: [DDPM 2020] Fig. 5.

    Args:
        code: what `nd.diagnostics.progressive_coding` returned.
        ax: where to draw; call again with it to compare models.
        label: a name in the legend; no legend unless given.
    """
    rate, distortion = (np.reshape(part, (-1, len(code.step))).mean(0) for part in (code.rate, code.distortion))
    ax = axes_or_new(ax, (5.0, 3.5))
    ax.plot(rate, distortion, color=BLUE if label is None else None, label=label)
    ax.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE)", ylim=(0, None))
    if label is not None:
        ax.legend(frameon=False)
    return plain(ax)
