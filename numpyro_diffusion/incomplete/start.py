"""Where learning from observations begins: a Gaussian, by expectation maximisation on the observations themselves.

Before the first lap the prior is a Gaussian, learned by expectation maximisation on the observations. Where these are
linear with Gaussian noise its posterior is a closed form, so that few particles draw from the right law and laps are
cheap. The laps share their noise, so that they end at the maximum up to that noise: *approximate*, as is the shrinkage
of the covariance where observations are few.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ..distributions import DiffusionPrior
from ..moments import LARGEST_WHOLE
from ..training.assemble import chain_of
from ..training.baselines import Mixture
from ..training.posterior_draws import Current, Effort, draw
from ..twists import Laplace
from .reading import Observed, Unknowns
from .shared import improved

LARGEST = LARGEST_WHOLE
LAPS = 40
MOST = 2048  # observations it looks at
PARTICLES, DRAWS = 8, 4
LEAST_GAIN = 2e-3  # nats an observation and lap


class Start(NamedTuple):
    """The Gaussian before the first lap.

    Attributes:
        event_shape: of x.
        loc: its mean.
        scale: its standard deviation.
    """

    event_shape: tuple[int, ...]
    loc: float
    scale: float

    @property
    def law(self) -> Mixture:
        """As a mixture of one component, of flat examples."""
        size = int(np.prod(self.event_shape))
        return Mixture(np.ones(1), np.full((1, size), self.loc), self.scale**2 * np.eye(size)[None])

    @property
    def prior(self) -> DiffusionPrior:
        """Its chain."""
        return chain_of(self.law, self.event_shape)


def gaussian_start(
    key: Array,
    begin: Start,
    observed: Observed,
    shared: Unknowns,
    observations: Any,
    tell: Callable[[str], object],
) -> Current:
    """Laps with the same noise in each, so that they end where expectation maximisation does, up to that noise.

    A Gaussian prior has draws of the right law from few particles where observations are linear with Gaussian noise.
    """
    count = min(MOST, len(jax.tree.leaves(observations)[0]))
    some = jax.tree.map(lambda leaf: leaf[:count], observations)
    effort = Effort(PARTICLES, None, 1, Laplace())
    law, now = begin.law, Current(begin.prior, shared.first)
    last = -np.inf
    for lap in range(LAPS):
        draws = draw(key, now, some, observed, effort, DRAWS)
        value = float(draws.log_evidence.mean())
        if lap and value < last + LEAST_GAIN:
            break
        last = value
        params = improved(key, observed, shared, now, some, draws.x[:, 0])
        law = _maximised(draws.x.reshape(count * DRAWS, -1).astype(np.float64), count)
        now = Current(chain_of(law, begin.event_shape), params)
    tell(f"Gaussian: {lap} laps of expectation maximisation on {count} observations")
    return now


def _maximised(x: np.ndarray, count: int) -> Mixture:
    """Mean and covariance of draws given `count` observations, correlations shrunk by d/(n + d)."""
    whole = np.cov(x.T, ddof=0).reshape(x.shape[1], x.shape[1])
    own = np.diag(np.diag(whole))
    shrunk = whole + x.shape[1] / (count + x.shape[1]) * (own - whole)
    return Mixture(np.ones(1), x.mean(0)[None], shrunk[None])
