"""A second opinion on an evidence that shares nothing with twists: reweighted draws of the prior, or tempering.

An evidence may be estimated in more than one way. Draws of the prior weighted by the likelihood are *unbiased*, without
any twist, and reliable where enough of them count: a Pareto k̂ of at most 0.7 (Vehtari et al. 2024) and 100 effective
draws. Where they do not suffice, tempering in the space of the prior's noise is *consistent as particles grow*
(`tempered`). That two methods with no approximation in common agree within their errors says more than the diagnostics
of one.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .._batching import batched_map
from .._compiled import compiled
from .._display import shown_as_text
from ..samplers import Ancestral
from ..samplers.reliability import LARGEST_KHAT, pareto_khat
from .extract import Latent, extract, over_batch
from .tempered import TemperedSMC

LEAST_DRAWS = 100.0  # effective draws of the prior that suffice for a comparison
_CHUNK = 4096
_FAR = 3.0  # standard errors
_CLOSE = 0.05  # nats that no comparison of this kind tells apart


@shown_as_text
class CrossCheck(NamedTuple):
    """Two estimates of one log evidence.

    Attributes:
        method: ``"prior draws"`` or ``"tempering"``, what the second one comes from.
        log_evidence: the second opinion, in nats.
        error: its standard error, in nats.
        difference: the first estimate less the second, in nats.
        difference_error: its standard error, in nats.
    """

    method: str
    log_evidence: float
    error: float
    difference: float
    difference_error: float

    @property
    def agrees(self) -> bool:
        """Whether the two differ by at most three standard errors, or 0.05 nats."""
        return abs(self.difference) <= max(_FAR * self.difference_error, _CLOSE)

    def __str__(self) -> str:
        verdict = "agree" if self.agrees else "DISAGREE"
        return (
            f"log evidence by {self.method} {self.log_evidence:.3f} ± {self.error:.3f} nats; the two {verdict}: "
            f"difference {self.difference:+.3f} ± {self.difference_error:.3f}"
        )


def cross_check(
    key: Array,
    model: Callable[..., Any],
    site: str,
    num_steps: int | None,
    first: tuple[float, float],
    num_draws: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> CrossCheck:
    """See `SMC.cross_check`."""
    found = extract(model, site, args, kwargs).in_latent()
    draw, temper = jax.random.split(key)
    value, error, enough = reweighted(draw, found, num_steps, num_draws)
    if enough or found.prior.is_discrete:
        return compared("prior draws", first, value, error)
    run = TemperedSMC(model).run(temper, *args, **kwargs)
    return compared("tempering", first, run.log_evidence, run.log_evidence_error)


def compared(method: str, first: tuple[float, float], value: float, error: float) -> CrossCheck:
    """A log evidence with its error, `first`, and another one by some method."""
    return CrossCheck(method, value, error, first[0] - value, math.hypot(first[1], error))


def reweighted(key: Array, found: Latent, num_steps: int | None, num_draws: int) -> tuple[float, float, bool]:
    """Log evidence from reweighted draws of the prior, its standard error in nats, and whether they were enough.

    *Unbiased* in the evidence. Enough is a Pareto k̂ of at most 0.7, and 100 effective draws, for every element of the
    site's batch.
    """
    log_r = np.asarray(_log_r(key, found, Ancestral(num_steps), num_draws)).reshape(-1, num_draws)
    value, error, enough = mean_weight(log_r)
    return value + float(found.log_constant), error, enough


def mean_weight(log_weight: ArrayLike) -> tuple[float, float, bool]:
    """Log of the product of the rows' mean weights, its standard error in nats, and whether draws were enough for it.

    Args:
        log_weight: in nats, shape (rows, draws).
    """
    log_r = np.asarray(log_weight, dtype=np.float64)
    largest = log_r.max(1, keepdims=True)
    weight = np.exp(log_r - np.where(np.isfinite(largest), largest, 0.0))
    total = weight.mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.sum(np.log(total) + largest[:, 0]))
        relative = weight.std(1, ddof=1) / total / math.sqrt(log_r.shape[1])
        size = weight.sum(1) ** 2 / np.sum(weight**2, axis=1)
    enough = all(pareto_khat(row) <= LARGEST_KHAT for row in log_r) and bool((size >= LEAST_DRAWS).all())
    return value, float(np.sqrt(np.sum(relative**2))), enough


@compiled
def _log_r(key: Array, found: Latent, sampler: Ancestral, num_draws: int) -> Array:
    """log r of draws of the prior, shape (*batch, num_draws)."""

    def each(sampler: Ancestral, key: Array, module: Any, factor: Any) -> Array:
        one = partial(_one, sampler, module.process, factor)
        return batched_map(one, jax.random.split(key, num_draws), _CHUNK)

    return over_batch(each, sampler, key, found)


def _one(sampler: Ancestral, process: Any, factor: Any, key: Array) -> Array:
    return jnp.asarray(factor.log_r(sampler.sample(key, process)), dtype=float)
