"""The twist whose approximation fits a prior and a factor."""

import math

from ..factors import AbstractFactor, Delta, Gaussian, LinearGaussian, factors_of
from ..process import ReverseProcess
from .averaged import Averaged
from .base import AbstractTwist
from .flat import Flat
from .laplace import Laplace
from .linear import MomentMatched, PseudoInverse, observation_size

LARGEST_EXACT = 16


def fitting_twist(process: ReverseProcess, factor: AbstractFactor, num_particles: int | None = None) -> AbstractTwist:
    """The twist of `default_twist`, untempered."""
    parts = factors_of(factor)
    if not parts:
        return Flat()
    if not process.diffusion.is_gaussian:
        return MomentMatched() if all(part.is_elementwise for part in parts) else Averaged()
    size, whole, exact = observation_size(process, factor), process.has_whole_covariance, process.denoiser.is_exact
    if exact and size is not None and (size <= LARGEST_EXACT or not (whole and process.denoiser.is_gaussian)):
        return MomentMatched("exact" if size <= LARGEST_EXACT else "iterative")
    closed = [part for part in parts if isinstance(part, Gaussian | LinearGaussian | Delta)]
    if not closed or (whole and exact):
        return Laplace()
    # The matrices of `Laplace` are shared by all particles: few of them do not pay for these.
    few = num_particles is not None and num_particles < math.prod(process.event_shape)
    many = size is not None and size > LARGEST_EXACT and not any(isinstance(part, Delta) for part in parts)
    return PseudoInverse() if not whole or (few and many) else Laplace()
