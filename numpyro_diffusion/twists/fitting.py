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
    size, whole = observation_size(process, factor), process.has_whole_covariance
    exact, normal = process.denoiser.is_exact, process.denoiser.is_gaussian
    if exact and size is not None and size <= LARGEST_EXACT:
        return MomentMatched("exact")
    # Of many elements of a normal law `Laplace` has the covariance itself; and it does not count noise where known
    # elements have none.
    known = any(isinstance(part, Delta) for part in parts)
    if exact and size is not None and not (whole and (normal or known)):
        return MomentMatched("iterative")
    closed = [part for part in parts if isinstance(part, Gaussian | LinearGaussian | Delta)]
    if not closed or (whole and exact):
        return Laplace()
    # The matrices of `Laplace` are shared by all particles: few of them are faster without, and as good.
    few = num_particles is not None and num_particles < math.prod(process.event_shape)
    many = size is not None and size > LARGEST_EXACT and not known
    return PseudoInverse() if not whole or (few and many) else Laplace()
