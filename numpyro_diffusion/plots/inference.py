"""Pictures of samplers at work and of whether they are right."""

from typing import Any

import numpy as np
from scipy.stats import binom

from ..diagnostics import Calibration, MutualInformation
from ..infer import SMC
from ..samplers import Particles
from ._axes import BLUE, ORANGE, Axes, axes_array, axes_or_new, plain


def effective_size(result: SMC | Particles, ax: Axes | None = None) -> Axes:
    """Effective number of particles before each step, from noise on the left to data on the right, every island a line.

    Args:
        result: an SMC run, or the particles of one.
        ax: where to draw.
    """
    particles = result.particles if isinstance(result, SMC) else result
    sizes = np.asarray(particles.effective_size)
    count = particles.log_weight.shape[-1]
    ax = axes_or_new(ax, (6.0, 3.2))
    for line in sizes.reshape(-1, sizes.shape[-1]):
        ax.plot(line, color=BLUE, alpha=0.6, linewidth=1)
    ax.axhline(count, color="0.6", linewidth=0.8, linestyle=":")
    ax.set(xlabel="step, from noise to data", ylabel="effective particles", ylim=(0, 1.05 * count))
    return plain(ax)


def mutual_information(result: MutualInformation, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """What the noise leaves of x_0, I(x_0; x_t) against log-SNR, with a band of two standard errors.

    Args:
        result: what `nd.diagnostics.mutual_information` returned.
        ax: where to draw.
        label: of the line, for a legend.
    """
    ax = axes_or_new(ax, (5.0, 3.4))
    information, error = result.information, 2 * result.standard_error
    (line,) = ax.plot(result.log_snr, information, linewidth=1.5, label=label)
    ax.fill_between(
        result.log_snr, information - error, information + error, color=line.get_color(), alpha=0.25, linewidth=0
    )
    ax.set(xlabel="log-SNR, from noise to data", ylabel="I(x_0; x_t), nats")
    return plain(ax)


def ranks(calibration: Calibration, ax: Any = None, *, num_bins: int = 10) -> np.ndarray:
    """Histogram of the ranks of each quantity, all its elements together, with the 99% band of uniform ranks.

    A hump means intervals that are too wide, a bowl too narrow, a slope a bias. The band is that of one element.

    Args:
        calibration: what `nd.diagnostics.calibrate` returned.
        ax: as many Axes as quantities.
        num_bins: of the histogram.

    Returns:
        The Axes, shape (quantities,).
    """
    names = sorted(calibration.ranks)
    axes = axes_array(ax, (1, len(names)), (3.0 * len(names) + 0.4, 2.6)).reshape(-1)
    edges = np.round(np.linspace(0, calibration.num_draws + 1, num_bins + 1)) - 0.5
    for panel, name in zip(axes, names, strict=True):
        values = calibration.ranks[name]
        flat = values.reshape(len(values), -1)
        counts = np.histogram(flat, edges)[0] / flat.shape[1]
        share = np.diff(edges) / (calibration.num_draws + 1)
        low, high = binom.ppf([[0.005], [0.995]], len(values), share)
        panel.bar((edges[1:] + edges[:-1]) / 2, counts, 0.92 * np.diff(edges), color=BLUE)
        panel.stairs(high, edges, baseline=low, fill=True, color="0.6", alpha=0.4, zorder=2)
        panel.stairs(share * len(values), edges, baseline=None, color=ORANGE, linewidth=1, zorder=3)
        panel.set(title=name, xlabel="rank of the truth", ylim=(0, None))
        plain(panel)
    return axes
