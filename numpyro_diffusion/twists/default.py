"""The twist that is taken where the user names none."""

from ..factors import AbstractFactor
from ..process import ReverseProcess
from .base import AbstractTwist
from .fitting import fitting_twist
from .laplace import Laplace
from .linear import PseudoInverse
from .tempered import Tempered


def default_twist(process: ReverseProcess, factor: AbstractFactor, num_particles: int | None = None) -> AbstractTwist:
    """The twist that `TwistedSMC` and `ParticleGibbs` take where the user names none.

    `Flat` where there is no factor. For bits: `MomentMatched` where the factor acts on single bits, else `Averaged`.
    For real numbers:

    - An exact denoiser and Gaussian observations, known elements among them. A mixture of Gaussians has a twist that is
      exact, `MixtureMatched`, as long as its components and observed elements make it no burden. So has a normal law:
      `MomentMatched` for up to 16 observed elements, `Laplace` for more. Other laws have `Laplace`, tempered to the
      power 0.5, where 16 elements are observed at most, where some are known, or where x has 128 elements at most;
      else, and where the prior's covariance is not known in full, `MomentMatched`, since the Jacobian is the covariance
      that it is taken for: ``"exact"`` for up to 16 observed elements and ``"iterative"`` for more.
    - A normal law and anything else: `Laplace`. Any other exact denoiser and anything else: `Laplace`, `Tempered` to
      the power 0.5.
    - A learned denoiser: `Laplace`, tempered to the power 0.5. Where the prior's covariance is not known in full and
      Gaussian observations are among the factors, `PseudoInverse`, tempered to the power 1; and for Gaussian
      observations of more than 16 elements with nothing beside them, where `num_particles` are fewer than x has
      elements: too few to pay for the decomposition of matrices that they share.
    """
    twist = fitting_twist(process, factor, num_particles)
    if process.denoiser.is_gaussian or not isinstance(twist, Laplace | PseudoInverse):
        return twist
    # Trusted less at high noise, where x_0 given x_t has several modes (examples/benchmarks/twists.py).
    return Tempered(twist, 0.5 if isinstance(twist, Laplace) else 1.0)
