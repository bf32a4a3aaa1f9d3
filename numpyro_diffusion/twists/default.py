"""The twist that fits a factor, where the user names none."""

from ..diffusions import GaussianDiffusion
from ..factors import AbstractFactor, Delta, Elementwise, Gaussian, LinearGaussian, factors_of
from ..process import ReverseProcess
from .base import AbstractTwist
from .linear import MomentMatched, PseudoInverse, observation_size
from .tweedie import Tweedie

LARGEST_EXACT = 16


def default_twist(process: ReverseProcess, factor: AbstractFactor) -> AbstractTwist:
    """The twist that `TwistedSMC` and `ParticleGibbs` take where the user names none.

    For bits: `MomentMatched` where the factor acts on single bits. For real numbers: `MomentMatched` for one Gaussian
    observation of up to 16 elements, which costs as many Jacobian-vector products, and `PseudoInverse`, one gradient,
    for larger ones and for products with one. `Tweedie` for everything else.
    """
    parts = factors_of(factor)
    if not isinstance(process.diffusion, GaussianDiffusion):
        return MomentMatched() if all(isinstance(part, Elementwise | Delta) for part in parts) else Tweedie()
    size = observation_size(process, factor)
    if size is not None and size <= LARGEST_EXACT:
        return MomentMatched("exact")
    observed = any(isinstance(part, Gaussian | LinearGaussian | Delta) for part in parts)
    return PseudoInverse() if observed else Tweedie()
