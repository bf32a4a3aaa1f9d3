"""The twist that fits a factor, where the user names none."""

from ..diffusions import GaussianDiffusion
from ..factors import AbstractFactor, Delta, Elementwise, Gaussian, LinearGaussian, Product
from ..process import ReverseProcess
from .base import AbstractTwist
from .linear import MomentMatched
from .tweedie import Tweedie


def default_twist(process: ReverseProcess, factor: AbstractFactor) -> AbstractTwist:
    """`MomentMatched` for factors that multiply a factorised law in closed form, `Tweedie` for any other."""
    parts = factor.factors if isinstance(factor, Product) else (factor,)
    gaussian = isinstance(process.diffusion, GaussianDiffusion)
    closed = (Gaussian, Delta) if gaussian else (Elementwise, Delta)
    if all(isinstance(part, closed) for part in parts) or (gaussian and isinstance(factor, LinearGaussian)):
        return MomentMatched()
    return Tweedie()
