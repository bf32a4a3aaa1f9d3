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
# Of examples of more elements a tempered `Laplace` learns too late which mode of an exact mixture the observations are
# of (examples/benchmarks/many_observations.py); of fewer it has more effective particles than the iterative solution.
LARGEST_TEMPERED = 128


def fitting_twist(process: ReverseProcess, factor: AbstractFactor, num_particles: int | None = None) -> AbstractTwist:
    """The twist of `default_twist`, untempered."""
    parts = factors_of(factor)
    if not parts:
        return Flat()
    if not process.diffusion.is_gaussian:
        return MomentMatched() if all(part.is_elementwise for part in parts) else Averaged()
    size, whole, exact = observation_size(process, factor), process.has_whole_covariance, process.denoiser.is_exact
    elements, known = math.prod(process.event_shape), any(isinstance(part, Delta) for part in parts)
    by_laplace = whole and (process.denoiser.is_gaussian or known or elements <= LARGEST_TEMPERED)
    if exact and size is not None and (size <= LARGEST_EXACT or not by_laplace):
        return MomentMatched("exact" if size <= LARGEST_EXACT else "iterative")
    closed = [part for part in parts if isinstance(part, Gaussian | LinearGaussian | Delta)]
    if not closed or (whole and exact):
        return Laplace()
    # The matrices of `Laplace` are shared by all particles: few of them do not pay for these.
    few = num_particles is not None and num_particles < elements
    many = size is not None and size > LARGEST_EXACT and not known
    return PseudoInverse() if not whole or (few and many) else Laplace()
