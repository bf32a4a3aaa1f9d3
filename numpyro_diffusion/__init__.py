"""NumPyro distributions for learned diffusion priors."""

from . import datasets as datasets
from . import denoisers as denoisers
from . import networks as networks
from . import samplers as samplers
from . import schedules as schedules
from .diffusions import BinomialDiffusion as BinomialDiffusion
from .diffusions import GaussianDiffusion as GaussianDiffusion
from .distributions import DiffusionPrior as DiffusionPrior
from .distributions import ForwardTrajectory as ForwardTrajectory
from .distributions import ReverseTrajectory as ReverseTrajectory
from .likelihoods import Estimate as Estimate
from .likelihoods import KBound as KBound
from .process import ReverseProcess as ReverseProcess

__version__ = "0.1.0"
