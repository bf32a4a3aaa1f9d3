"""NumPyro distributions for learned diffusion priors."""

from . import datasets as datasets
from . import denoisers as denoisers
from . import infer as infer
from . import networks as networks
from . import samplers as samplers
from . import schedules as schedules
from .checkpoints import CheckpointError as CheckpointError
from .diffusions import BinomialDiffusion as BinomialDiffusion
from .diffusions import GaussianDiffusion as GaussianDiffusion
from .distributions import DiffusionPrior as DiffusionPrior
from .distributions import ForwardTrajectory as ForwardTrajectory
from .distributions import ReverseTrajectory as ReverseTrajectory
from .distributions import joint_log_ratio as joint_log_ratio
from .library import card as card
from .library import load as load
from .library import packaged as packaged
from .likelihoods import Estimate as Estimate
from .likelihoods import KBound as KBound
from .process import ForwardStep as ForwardStep
from .process import LearnedStep as LearnedStep
from .process import ReverseProcess as ReverseProcess
from .training import FitResult as FitResult
from .training import TrainingDiverged as TrainingDiverged
from .training import fit as fit
from .training import fit_prior as fit_prior
from .training import plan_prior as plan_prior

__version__ = "0.1.0"
