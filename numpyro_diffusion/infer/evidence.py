"""The error of a log evidence that independent runs estimate."""

import math

import numpy as np
from jax.typing import ArrayLike

# The 97.5% points of Student's t with 1 and 2 degrees of freedom, which has no variance, over that of the normal law.
TOO_FEW = {1: 12.7062 / 1.95996, 2: 4.30265 / 1.95996}
# Above this variance of log evidences, in nats², exp(s²) − 1 is exp(s²) to double precision, and may overflow.
LARGE = 40.0


def evidence_error(log_evidences: ArrayLike) -> float:
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

    Args:
        log_evidences: in nats, shape (n,); −inf where a run found no evidence.

    Returns:
        Nats: NaN for a single island or where one is NaN, inf where some are infinite.
    """
    each = np.asarray(log_evidences, dtype=np.float64).reshape(-1)
    count = each.size
    if count < 2 or np.isnan(each).any():
        return math.nan
    if not np.isfinite(each).all():
        return math.inf
    variance = float(np.var(each, ddof=1))
    if variance < LARGE:
        average = math.log1p(math.expm1(variance) / count)
    else:
        average = variance - math.log(count)
    return math.sqrt(average) * _widening(count - 1)


def _widening(freedom: int) -> float:
    """How much wider than a normal law's the error bar is."""
    return TOO_FEW[freedom] if freedom in TOO_FEW else math.sqrt(freedom / (freedom - 2))
