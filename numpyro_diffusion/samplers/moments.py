"""The covariance of a prior, found where nobody has said it.

Twists that take x_0 given x_t for a normal law need the covariance of x_0. An exact denoiser knows it, training keeps
that of the data, and for any other prior of up to 256 elements it is estimated from draws with a fixed key. The
estimate is *approximate*, and no answer is wrong for it: with any positive twist the evidence is unbiased, so that a
poor covariance costs particles alone.
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..moments import LARGEST_WHOLE, Moments, moments_of_covariance, moments_of_draws, unit_moments
from ..process import ReverseProcess
from .ancestral import Ancestral

_DRAWS = 1024
_STEPS = 32


def with_moments(process: ReverseProcess) -> ReverseProcess:
    """The process with its `moments`: its own, its exact denoiser's, or for up to 256 elements those of its draws.

    1,024 draws of at most 32 steps, by a fixed key: *approximate*, which makes no sampler wrong, as any twist is right.
    """
    if process.moments is not None or not process.diffusion.is_gaussian:
        return process
    return having_moments(process, _moments(process))


def having_moments(process: ReverseProcess, moments: Moments | None) -> ReverseProcess:
    """The process with these `moments`."""
    return eqx.tree_at(lambda p: p.moments, process, moments, is_leaf=lambda leaf: leaf is None)


def _moments(process: ReverseProcess) -> Moments:
    size = int(np.prod(process.event_shape))
    diffusion: Any = process.diffusion
    if size > LARGEST_WHOLE:
        return unit_moments(size)
    covariance = process.denoiser.covariance(diffusion, process.event_shape)
    if covariance is not None:
        return moments_of_covariance(covariance)
    sampler = Ancestral(min(_STEPS, process.num_steps))
    x = jax.vmap(lambda key: sampler.unweighted(key, process)[0])(jax.random.split(jax.random.key(0), _DRAWS))
    return moments_of_draws(diffusion.standardize(x).reshape(_DRAWS, -1))
