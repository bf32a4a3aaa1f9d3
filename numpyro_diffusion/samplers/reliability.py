"""What the weights of particles say about whether their answer can be trusted.

Weighted particles may be wrong without looking so; these are the signs that show. A small effective size on the way
means that few particles decided the rest. The shape k̂ of a Pareto law fitted to the largest weights says whether means
over weights can be trusted, up to 0.7 (Vehtari et al. 2024). Independent runs, the islands, that differ in evidence or
in means have missed something. All of these are *approximate* and none proves an answer right, as all islands may have
missed the same.
"""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Shaped
from numpyro.infer.importance import _psis_khat

from .smc import Particles

# Effective particles: fewer at any step, and few particles decide the rest. One in 25, between these two.
FEWEST_SIZE, LEAST_SIZE, SHARE = 5.0, 10.0, 1 / 25
LARGEST_KHAT = 0.7  # above it, means over weights are those of their tail (Vehtari et al. 2024)
_EQUAL = 0.9  # the effective share from which weights are about equal
LARGEST_GAP = 1.0  # nats between the log evidences of two islands
LARGEST_EXCESS = 1.0  # nats between the log evidence of the chain and that of the law that its denoiser is exact for
# Between an island's mean and the others', in posterior standard deviations: at least the first; more where few
# effective particles make means noisy, each with an error of one over the root of their number, of which so many count.
LARGEST_MEAN_GAP, MEAN_ERRORS = 1.0, 5.0
_LEAST_SCALE = 0.25  # of the standard deviation of all islands together: a posterior is not narrower than that


class ReliabilityWarning(UserWarning):
    """An answer that may be wrong, with the numbers that say so.

    ``warnings.simplefilter("error", nd.ReliabilityWarning)`` makes it an exception.
    """


class Reliability(NamedTuple):
    """Diagnostics of independent runs of SMC.

    Attributes:
        least_size: the least effective number of particles of any island at any step.
        final_size: the least effective number at the end.
        khat: Pareto k̂ of the final weights of all islands together; 0 where they are about equal.
        gap: between the largest and the least of the islands' log evidences, in nats; 0 for one island.
        deviation: their standard deviation, in nats; 0 for one island.
        least_allowed: the effective number of particles below which `least_size` speaks against the answer.
        mean_gap: how far the mean of an element of x in one island is from the median island's, in posterior standard
            deviations, the largest; 0 for one island.
        excess: by how much the log evidence is above that of the law that the denoiser is exact for, in nats, where
            that is known: the largest in size, less three standard errors, or a nat of one island; else 0.
    """

    least_size: float
    final_size: float
    khat: float
    gap: float
    deviation: float
    least_allowed: float = LEAST_SIZE
    mean_gap: float = 0.0
    excess: float = 0.0

    @property
    def noise_of_means(self) -> float:
        """The `mean_gap` that so few effective particles explain."""
        return float(MEAN_ERRORS / np.sqrt(max(self.least_size, 1.0)))

    @property
    def complaints(self) -> list[str]:
        """What speaks against the answer, with its numbers; empty where nothing does."""
        said = self.complaints_of_weights
        if self.excess > LARGEST_EXCESS:
            said.append(
                f"the chain's log evidence is at least {self.excess:.1f} nats above that of the law that its denoiser "
                "is exact for: where the data are, a chain needs more steps"
            )
        return said

    @property
    def complaints_of_weights(self) -> list[str]:
        """Those that more particles or another twist may answer."""
        said = []
        if self.excess < -LARGEST_EXCESS:
            said.append(
                f"the log evidence is at least {-self.excess:.1f} nats below that of the law that the denoiser is "
                "exact for: all islands may have missed a mode, or the chain needs more steps"
            )
        if not self.least_size >= self.least_allowed:
            said.append(f"the least effective number of particles on the way is {self.least_size:.1f}")
        if not self.khat <= LARGEST_KHAT:
            said.append(f"the weights have a heavy tail, Pareto k̂ = {self.khat:.3f} (above {LARGEST_KHAT})")
        if not self.gap <= LARGEST_GAP:
            said.append(f"the islands' log evidences differ by up to {self.gap:.2f} nats")
        if not self.mean_gap <= max(LARGEST_MEAN_GAP, self.noise_of_means):
            said.append(f"an island's mean of x is {self.mean_gap:.1f} posterior standard deviations from the others'")
        return said

    def warn(self, remedy: str, stacklevel: int = 3) -> None:
        """A `ReliabilityWarning` that names every complaint, if there is one, and a remedy for those of weights."""
        warn_of(self.complaints, remedy if self.complaints_of_weights else "", stacklevel + 1)


def warn_of(complaints: list[str], remedy: str, stacklevel: int = 2) -> None:
    """A `ReliabilityWarning` that names every complaint, if there is one."""
    if complaints:
        message = f"this posterior may be wrong: {'; '.join(complaints)}. {remedy}".rstrip()
        warnings.warn(message, ReliabilityWarning, stacklevel=stacklevel)


def reliability(particles: Particles) -> Reliability:
    """Diagnostics of particles of leading shape (islands, *batch), the worst of the batch counted.

    Islands are compared in each element of the batch.
    """
    sizes, evidence = np.asarray(particles.effective_size), np.asarray(particles.log_evidence, dtype=np.float64)
    # Of all islands together, each as its evidence counts it: few weights make a noisy k̂.
    weights = np.asarray(particles.log_weight, dtype=np.float64) + evidence[..., None]
    khat = max(pareto_khat(each) for each in np.moveaxis(weights, 0, -2).reshape(-1, len(evidence) * weights.shape[-1]))
    least, final, allowed = float(sizes.min()), float(sizes[..., -1].min()), least_allowed(weights.shape[-1])
    gaps = *differences(evidence), allowed, mean_gap(particles), excess(particles.excess)
    return Reliability(least, final, khat, *gaps)


def excess(each: Float[ArrayLike, "islands ..."] | None) -> float:
    """`Reliability.excess` of the islands' own, shape (islands, *batch)."""
    if each is None:
        return 0.0
    values = np.asarray(each, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # an island may have found no mass at all
        mean = np.logaddexp.reduce(values, 0) - np.log(len(values))
        error = 3 * values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 1.0
        left = np.nan_to_num(np.sign(mean) * np.maximum(np.abs(mean) - error, 0.0), posinf=0.0, neginf=0.0)
    return float(left.flat[np.argmax(np.abs(left))])


def mean_gap(particles: Particles) -> float:
    """`gap_of_means` of particles of leading shape (islands, *batch)."""
    weight = np.exp(np.asarray(particles.log_weight, dtype=np.float64))
    return gap_of_means(particles.x, weight, float(np.asarray(particles.effective_size)[..., -1].min()))


def gap_of_means(
    draws: Shaped[ArrayLike, "islands ..."],
    weight: Shaped[ArrayLike, "islands ..."],
    size: float,
) -> float:
    """How far the mean of an element in one island is from the median island's, the largest; 0 for one island.

    In posterior standard deviations: the median of those of the islands, since one island that has lost itself would
    make any other too large, but at least a quarter of that of all islands together, or what chance makes of it in one
    of many elements. That sees what evidences do not: an island with a few hundredths of its mass where there is none,
    which hardly change the evidence, but every moment.

    Args:
        draws: shape (islands, *batch, N, *event).
        weight: normalised, shape (islands, *batch, N).
        size: how many independent draws an island counts as: of a rare value some have none, and some a few.
    """
    weights = np.asarray(weight, dtype=np.float32)
    count = len(weights)
    if count == 1:
        return 0.0
    each = weights.reshape(-1, weights.shape[-1])
    x = np.asarray(draws).astype(np.float32).reshape(*each.shape, -1)
    mean = np.stack([w @ some for w, some in zip(each, x, strict=True)])
    square = np.stack([w @ np.square(some - loc) for w, some, loc in zip(each, x, mean, strict=True)])
    mean, square = (found.reshape(count, -1).astype(np.float64) for found in (mean, square))
    whole = np.sqrt(square.mean(0) + mean.var(0))
    least = max(_LEAST_SCALE, MEAN_ERRORS / np.sqrt(max(size, 1.0)))
    scale = np.maximum(np.median(np.sqrt(square), axis=0), least * whole)
    rounding = 1e-5 * np.abs(mean).max(0) + np.finfo(np.float32).tiny
    return float(np.max(np.abs(mean - np.median(mean, axis=0)) / (scale + rounding)))


class FarthestMean(NamedTuple):
    """The site whose mean in one island is farthest from the others', and how far, in posterior standard deviations."""

    site: str
    gap: float

    @property
    def complaint(self) -> str | None:
        """What it says against the answer, if anything."""
        if self.gap <= LARGEST_MEAN_GAP:
            return None
        return f"an island's mean of {self.site!r} is {self.gap:.1f} posterior standard deviations from the others'"


def farthest_mean(values: Mapping[str, Shaped[ArrayLike, "islands n ..."]]) -> FarthestMean:
    """Of equally weighted draws of sites that were resampled and moved, each of shape (islands, N, *event).

    One in four counts as independent. A site with values that are no numbers is left out.
    """
    gaps = {"": 0.0}
    for name, each in values.items():
        count = np.shape(each)[1]
        gap = gap_of_means(each, np.full(np.shape(each)[:2], 1 / count), count / 4) if np.size(each) else 0.0
        gaps[name] = 0.0 if np.isnan(gap) else gap
    site = max(gaps, key=lambda name: gaps[name])
    return FarthestMean(site, gaps[site])


def least_allowed(num_particles: int) -> float:
    """The effective number of so many particles below which a few of them decide the rest."""
    return min(LEAST_SIZE, max(FEWEST_SIZE, SHARE * num_particles))


def differences(log_evidence: Float[np.ndarray, "islands ..."]) -> tuple[float, float]:
    """How far islands are apart, shape (islands, *batch): the largest gap and standard deviation; 0 for one island."""
    if len(log_evidence) == 1:
        return 0.0, 0.0
    with np.errstate(invalid="ignore"):
        return float(np.ptp(log_evidence, axis=0).max()), float(np.std(log_evidence, axis=0, ddof=1).max())


def pareto_khat(log_weight: Shaped[ArrayLike, " n"]) -> float:
    """Shape k̂ of the Pareto law that fits the largest weights (Vehtari et al. 2024); 0 for fewer than 25 weights.

    About equal weights, of an effective size of 0.9 of their number, have no tail that could matter: 0 too.

    Args:
        log_weight: shape (N,), normalised or not.
    """
    array = np.asarray(log_weight, dtype=np.float64)
    array = array[np.isfinite(array)]
    if len(array) < 25:
        return 0.0
    weight = np.exp(array - array.max())
    if weight.sum() ** 2 >= _EQUAL * len(array) * np.sum(weight**2):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(_psis_khat(array))
