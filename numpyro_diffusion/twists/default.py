"""The twist that fits a prior and a factor, where the user names none."""

from ..factors import AbstractFactor, Delta, Gaussian, LinearGaussian, factors_of
from ..process import ReverseProcess
from .averaged import Averaged
from .base import AbstractTwist
from .flat import Flat
from .laplace import Laplace
from .linear import MomentMatched, PseudoInverse, observation_size

LARGEST_EXACT = 16


def default_twist(process: ReverseProcess, factor: AbstractFactor) -> AbstractTwist:
    """The twist that `TwistedSMC` and `ParticleGibbs` take where the user names none.

    For bits: `MomentMatched` where the factor acts on single bits, else `Averaged`. For real numbers: `MomentMatched`
    for an exact denoiser and Gaussian observations, known elements among them, of up to 16 elements, where its Jacobian
    is the covariance that it is taken for; `PseudoInverse` for Gaussian observations of more than 16 elements with
    nothing beside them, which it takes at a fraction of the cost, and of priors whose covariance is not known in full;
    `Laplace` for everything else. `Flat` where there is no factor.
    """
    parts = factors_of(factor)
    if not parts:
        return Flat()
    if not process.diffusion.is_gaussian:
        return MomentMatched() if all(part.is_elementwise for part in parts) else Averaged()
    size = observation_size(process, factor)
    if size is not None and size <= LARGEST_EXACT and process.denoiser.is_exact:
        return MomentMatched("exact")
    whole = process.has_whole_covariance
    gaussian = [part for part in parts if isinstance(part, Gaussian | LinearGaussian | Delta)]
    seen = sum(observation_size(process, part) or 0 for part in gaussian)
    if gaussian and (not whole or (len(gaussian) == len(parts) and seen > LARGEST_EXACT)):
        return PseudoInverse()
    return Laplace()
