"""The error of a log evidence that independent runs estimate.

The variation between runs is right on average, but from four of them it is now and then ten times too small. What the
weights of each run say of its variance is known far better, and right up to a factor: both are put together as an
inverse gamma law of the variance, with the weights' value as its scale, is updated by normal data (Gelman et al. 2013,
"Bayesian Data Analysis", §2.6).
"""

import math

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

# The 97.5% points of Student's t with 1 and 2 degrees of freedom, which has no variance, over that of the normal law.
TOO_FEW = {1: 12.7062 / 1.95996, 2: 4.30265 / 1.95996}
# Above this variance of log evidences, in nats², exp(s²) − 1 is exp(s²) to double precision, and may overflow.
LARGE = 40.0
# What the weights' variance counts, in degrees of freedom, what the runs' is of it, typically, and at how many times as
# much it counts nothing. Chosen on groups 100 to 139 of examples/benchmarks/random_problems.py.
FREEDOM, FACTOR, MOST = 3, 0.5, 2.0


def weight_variance(effective_size: ArrayLike, num_particles: int, threshold: float) -> Float[np.ndarray, "..."]:
    r"""Variance of the log evidence of one run of SMC by its weights, in nats², as if particles were independent.

    The sum of (N / ESS − 1) / N over the steps at which particles were resampled, and the end: of the mean of N
    independent weights that is the squared coefficient of variation (Kong 1992). *Approximate*: opposite noise and
    systematic resampling make the variance smaller, a twist that is wrong in places makes it larger.

    Args:
        effective_size: before each step and at the end, shape (…, K + 1).
        num_particles: N.
        threshold: of resampling, as a fraction of N.

    Returns:
        Shape (…).
    """
    sizes = np.asarray(effective_size, dtype=np.float64)
    counts = np.concatenate([sizes[..., :-1] < threshold * num_particles, np.ones((*sizes.shape[:-1], 1))], -1)
    return np.sum(counts * (num_particles / sizes - 1), -1) / num_particles


def evidence_error(log_evidences: ArrayLike, expected: float | None = None) -> float:
    r"""Standard error, in nats, of the log of the mean evidence of n independent runs (islands).

    From s², the sample variance of the n log evidences, as if evidences were lognormal:

    .. math:: \sqrt{v \, w}, \qquad v = \log\Big(1 + \frac{e^{s^2} - 1}{n}\Big)

    v is the variance of the log of a lognormal with the mean and variance of an average of n lognormals (Fenton 1960,
    "The sum of log-normal probability distributions in scatter transmission systems"). Where islands agree, say
    s ≤ 0.5, that is s²/n, the delta method; where they do not, √v goes to s, as the average is then that of one island.
    The delta method alone is at most 1 nat there, whatever s: it takes the largest evidence for the truth.

    w widens the error for a standard deviation from few islands. From 4 islands on w = ν/(ν − 2), the variance of
    Student's t with ν = n − 1 degrees of freedom: where islands agree, errors in units of this one have unit variance.
    For 2 and 3 islands t has no variance, and √w is the ratio of the 97.5% points of t and of the normal law, 6.5 and
    2.2: twice the standard error covers the truth in 95 of 100 runs. *Approximate*: where islands differ by more than
    about 1 nat the error is an order of magnitude, still too small on average.

    With the variance that the weights make one expect, s² is pooled with half of it, which counts as 3 degrees of
    freedom, unless s² is more than twice as large as it.

    Args:
        log_evidences: in nats, shape (n,); −inf where a run found no evidence.
        expected: `weight_variance`, in nats²; s² alone counts unless given.

    Returns:
        Nats: NaN for a single island or where one is NaN, inf where some are infinite.
    """
    each = np.asarray(log_evidences, dtype=np.float64).reshape(-1)
    count = each.size
    if count < 2 or np.isnan(each).any():
        return math.nan
    if not np.isfinite(each).all():
        return math.inf
    variance, freedom = float(np.var(each, ddof=1)), count - 1
    if expected is not None and variance <= MOST * expected:
        variance = (freedom * variance + FREEDOM * FACTOR * expected) / (freedom + FREEDOM)
        freedom += FREEDOM
    if variance < LARGE:
        average = math.log1p(math.expm1(variance) / count)
    else:
        average = variance - math.log(count)
    return math.sqrt(average) * _widening(freedom)


def _widening(freedom: int) -> float:
    """How much wider than a normal law's the error bar is."""
    return TOO_FEW[freedom] if freedom in TOO_FEW else math.sqrt(freedom / (freedom - 2))
