"""Rubin's rules: one answer from those of several completed tables.

The pooled estimate of m completed tables is the mean of theirs, its variance the mean of theirs plus 1 + 1/m times the
variance between them, and its degrees of freedom are m − 1 over the square of the share that the latter has (Rubin
1987, §3.1). The rules are *approximate*: for estimates that are about normal, and for imputation that is proper.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from .._numbers import as_numbers


class Pooled(NamedTuple):
    """An estimate from several completed tables.

    Attributes:
        mean: of the estimates, shape (*event).
        variance: within tables on average, plus (1 + 1/m) times that between them, shape (*event).
        degrees: of freedom of Student's t for intervals; infinite where tables agree, shape (*event).
        missing: the share of `variance` that is due to missing cells, in [0, 1], shape (*event).
    """

    mean: np.ndarray
    variance: np.ndarray
    degrees: np.ndarray
    missing: np.ndarray


def pool(estimates: ArrayLike, variances: ArrayLike) -> Pooled:
    """Pool estimates from m imputations (Rubin 1987, §3.1).

    Args:
        estimates: of each completed table, shape (m, *event), m ≥ 2.
        variances: their squared standard errors, the same shape.

    Example:
        >>> pooled = nd.pool([1.0, 1.5, 0.5], [0.04, 0.05, 0.06])
        >>> float(pooled.mean), round(float(pooled.variance), 3)
        (1.0, 0.383)

    Raises:
        ValueError: other shapes, fewer than two, a negative variance, values that are not finite.
    """
    each, own = (as_numbers(*pair).astype(np.float64) for pair in (("estimates", estimates), ("variances", variances)))
    if each.ndim == 0 or len(each) < 2:
        raise ValueError(f"estimates: expected shape (m, *event) with m >= 2, got {each.shape}")
    if own.shape != each.shape:
        raise ValueError(f"variances: expected the shape of estimates, {each.shape}, got {own.shape}")
    if not np.isfinite(each).all():
        raise ValueError("estimates: expected finite numbers, got others")
    if not (np.isfinite(own).all() and (own >= 0).all()):
        raise ValueError("variances: expected finite numbers of at least 0, got others")
    count, within, between = len(each), own.mean(0), each.var(0, ddof=1)
    added = (1 + 1 / count) * between
    total = within + added
    with np.errstate(divide="ignore", invalid="ignore"):
        missing = np.where(total > 0, added / total, 0.0)
        degrees = np.where(missing > 0, (count - 1) / missing**2, np.inf)
    return Pooled(each.mean(0), total, degrees, missing)
