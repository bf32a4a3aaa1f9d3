"""Pictures of samplers at work and of whether they are right.

R-hat is that of halves of chains (Gelman et al. 2013), the effective size that of Geyer's sequences, as NumPyro has
them. Ranks of a calibration are shown beside uniform ones, as a histogram or as the distribution function of each
element less the uniform one (Säilynoja et al. 2022). The band holds at least 99% of a binomial law, that of one element
in one bin or at one place for independent replicates, *exactly*: of many, some leave it by chance. The histogram is the
mean over a quantity's elements, for which this band is wide unless they agree. Effective numbers of particles, log
evidences and mutual information are drawn as they were computed, the last two with bands of two standard errors.
"""

from typing import Any, Literal

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy.stats import binom

from .._checks import check_choice
from ..diagnostics import Calibration, MutualInformation
from ..infer import SMC, TemperedSMC
from ..samplers import Particles
from ._axes import BLUE, ORANGE, Axes, axes_array, axes_or_new, colour_bar, draw_image, plain
from ._draws import draws_of

BAND = "99% of uniform ranks"


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
    for number, line in enumerate(sizes.reshape(-1, sizes.shape[-1])):
        ax.plot(line, color=BLUE, alpha=0.6, linewidth=1, label=None if number else "an island")
    ax.axhline(count, color="0.6", linewidth=0.8, linestyle=":", label="all particles")
    ax.set(xlabel="step, from noise to data", ylabel="effective particles", ylim=(0, 1.05 * count))
    ax.legend(frameon=False, fontsize=8)
    return plain(ax)


def islands(result: SMC | TemperedSMC, ax: Axes | None = None) -> Axes:
    """The log evidence of every island, and that of all with a band of two standard errors.

    Args:
        result: a finished run.
        ax: where to draw.
    """
    each, error = np.asarray(result.log_evidences), 2 * result.log_evidence_error
    ax = axes_or_new(ax, (4.0, 2.8))
    ax.axhline(result.log_evidence, color=BLUE, linewidth=1.2, label="all islands")
    if np.isfinite(error):
        band = (result.log_evidence - error, result.log_evidence + error)
        ax.axhspan(*band, color=BLUE, alpha=0.2, linewidth=0, label="± 2 standard errors")
    ax.plot(np.arange(1, len(each) + 1), each, "o", color=ORANGE, label="one island")
    ax.set(xlabel="island", ylabel="log evidence, nats", xlim=(0.4, len(each) + 0.6))
    ax.set_xticks(np.arange(1, len(each) + 1))
    ax.legend(frameon=False, fontsize=8)
    return plain(ax)


def maps(draws: Any, ax: Any = None, *, site: str | None = None) -> np.ndarray:
    """R-hat and bulk effective sample size of every pixel of an image, so that one sees where chains disagree.

    R-hat is that of halves of chains (Gelman et al. 2013), the effective size that of Geyer's sequences, as NumPyro has
    them. Islands of an `SMC` stand for chains: their R-hat says whether they agree, while their effective size takes
    copies of one particle for different draws.

    Args:
        draws: shape (chains, n, height, width); or an `MCMC`, an `SMC`, or an ArviZ container that holds them.
        ax: two Axes.
        site: which one of a run or container; the only one of images unless given.

    Returns:
        The Axes, shape (2,).

    Raises:
        ValueError: another shape, fewer than four draws of a chain, a site that is not there.
    """
    array = draws_of(draws, 2, site)
    if array.ndim != 4 or array.shape[1] < 4:
        raise ValueError(f"draws: expected shape (chains, n, height, width) with n >= 4, got {array.shape}")
    axes = axes_array(ax, (1, 2), (6.2, 2.8)).reshape(-1)
    apart, effective = np.asarray(split_gelman_rubin(array)), np.asarray(effective_sample_size(array))
    greatest = max(1.1, float(np.nanmax(apart, initial=1.0)))
    found = (("R-hat", apart, (1.0, greatest, "magma")), ("effective draws", effective, (0.0, None, "viridis")))
    for panel, (title, image, colours) in zip(axes, found, strict=True):
        colour_bar(draw_image(panel, image, *colours), panel)
        panel.set_title(title, fontsize=9)
    return axes


def mutual_information(result: MutualInformation, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """What the noise leaves of x_0, I(x_0; x_t) against log-SNR, with a band of two standard errors.

    Args:
        result: what `nd.diagnostics.mutual_information` returned.
        ax: where to draw.
        label: of the line, in a legend; no legend unless given.
    """
    ax = axes_or_new(ax, (5.0, 3.4))
    information, error = result.information, 2 * result.standard_error
    (line,) = ax.plot(result.log_snr, information, linewidth=1.5, label=label)
    ax.fill_between(
        result.log_snr, information - error, information + error, color=line.get_color(), alpha=0.25, linewidth=0
    )
    ax.set(xlabel="log-SNR, from noise to data", ylabel="$I(x_0; x_t)$, nats")
    if label is not None:
        ax.legend(frameon=False)
    return plain(ax)


def ranks(
    calibration: Calibration, ax: Any = None, *, num_bins: int = 10, show: Literal["histogram", "ecdf"] = "histogram"
) -> np.ndarray:
    """The ranks of each quantity, with the 99% band of uniform ranks.

    As a histogram of all its elements together: a hump means intervals that are too wide, a bowl too narrow, a slope a
    bias. As the empirical distribution function of each element less the uniform one (Säilynoja et al. 2022), which
    has no bins: an S that falls first means intervals too wide, one that rises first too narrow, an arch a bias. The
    band is that of one element at one place.

    Args:
        calibration: what `nd.diagnostics.calibrate` returned.
        ax: as many Axes as quantities.
        num_bins: of the histogram.
        show: ``"histogram"`` or ``"ecdf"``.

    Returns:
        The Axes, shape (quantities,).

    Raises:
        ValueError: another `show`.
    """
    check_choice("show", show, ("histogram", "ecdf"))
    names = sorted(calibration.ranks)
    axes = axes_array(ax, (1, len(names)), (3.0 * len(names) + 0.4, 2.6)).reshape(-1)
    edges = np.round(np.linspace(0, calibration.num_draws + 1, num_bins + 1)) - 0.5
    for panel, name in zip(axes, names, strict=True):
        values = calibration.ranks[name]
        flat = values.reshape(len(values), -1)
        if show == "ecdf":
            _differences(panel, name, flat, calibration.num_draws)
            continue
        counts = np.histogram(flat, edges)[0] / flat.shape[1]
        share = np.diff(edges) / (calibration.num_draws + 1)
        low, high = binom.ppf([[0.005], [0.995]], len(values), share)
        panel.stairs(high, edges, baseline=low, fill=True, color="0.85", zorder=1, label=BAND)
        panel.bar((edges[1:] + edges[:-1]) / 2, counts, 0.6 * np.diff(edges), color=BLUE, zorder=2)
        panel.stairs(share * len(values), edges, baseline=None, color=ORANGE, linewidth=1, zorder=3, label="uniform")
        panel.set(title=name, xlabel="rank of the truth", ylim=(0, 1.25 * max(counts.max(), high.max())))
        plain(panel)
    if show == "histogram":
        axes[0].set_ylabel("replicates")
    axes[0].legend(frameon=False, fontsize=7, loc="upper center", ncols=2)
    return axes


def _differences(panel: Axes, name: str, ranks: np.ndarray, num_draws: int) -> None:
    """Distribution functions of ranks, shape (replicates, elements), less that of uniform ones."""
    expected = np.arange(1, num_draws + 2) / (num_draws + 1)
    for element in ranks.T:
        found = np.searchsorted(np.sort(element), np.arange(num_draws + 1), side="right") / len(element)
        panel.plot(expected, found - expected, color=BLUE, alpha=0.6, linewidth=1)
    low, high = binom.ppf([[0.005], [0.995]], len(ranks), expected) / len(ranks) - expected
    panel.fill_between(expected, low, high, color="0.6", alpha=0.4, linewidth=0, label=BAND)
    panel.axhline(0.0, color=ORANGE, linewidth=1, label="uniform")
    panel.set(title=name, xlabel="rank of the truth, as a share", ylabel="share below, less the uniform", xlim=(0, 1))
    panel.margins(y=0.15)
    plain(panel)
