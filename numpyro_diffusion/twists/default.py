"""The twist that is taken where the user names none.

Any positive twist leaves SMC right, so that the choice is one of variance and cost alone. The rule goes by what is
known of x_0 given x_t, such as exactness, components or a covariance, and by what r is, and tempers a twist that may be
too sure at high noise. It is *empirical*: `examples/benchmarks/twists.py` compares the choices.
"""

from ..factors import AbstractFactor
from ..process import ReverseProcess
from .base import AbstractTwist
from .fitting import fitting_twist
from .laplace import Laplace
from .linear import PseudoInverse
from .linearized import Linearized
from .mixture import MixtureMatched
from .tempered import Tempered

# Trusted less at high noise, where x_0 given x_t has modes that a twist does not know (examples/benchmarks/twists.py).
POWERS: dict[type[AbstractTwist], float] = {Laplace: 0.5, Linearized: 0.5, MixtureMatched: 0.5, PseudoInverse: 1.0}


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
    - A normal law and anything else: `Laplace`. A mixture of up to four Gaussians, or a learned denoiser about one, and
      anything else: `MixtureMatched`, tempered to the power 0.5. Any other exact denoiser and anything else: `Laplace`,
      `Tempered` to the power 0.5.
    - A learned denoiser about a mixture of several Gaussians, as `fit_prior` makes them of tables, and Gaussian
      observations or known elements: `MixtureMatched`, tempered to the power 0.5, within the same limits.
    - A denoiser of or about one Gaussian or a mixture, in coordinates that a transform makes elements of x from one by
      one, as logarithms of positive columns are, and Gaussian observations of x: `Linearized`, tempered to the power
      0.5, as long as components and observed elements are not too many.
    - Any other learned denoiser, and any other factors: `Laplace`, tempered to the power 0.5. Where the prior's
      covariance is not known in full and Gaussian observations are among the factors, `PseudoInverse`, tempered to the
      power 1; and for Gaussian observations of more than 16 elements with nothing beside them, where `num_particles`
      are fewer than x has elements: too few to pay for the decomposition of matrices that they share.
    """
    twist = fitting_twist(process, factor, num_particles)
    is_exact = isinstance(twist, MixtureMatched) and process.denoiser.is_exact
    is_exact = is_exact and factor.observation_size(process.event_shape) is not None
    power = None if process.denoiser.is_gaussian or is_exact else POWERS.get(type(twist))
    return twist if power is None else Tempered(twist, power)
