"""NumPyro distributions for learned diffusion priors.

The import asks XLA for right sums and enough threads on a CPU (`_compiler`), which it hears only before the first
computation of a process. It stays cheap, since what needs Optax, ArviZ or Matplotlib is loaded on first use: such a
name stands in `_ON_USE` with the module that has it, and once more for type checkers, which do not see the former.
"""

import importlib as _importlib
import typing as _typing

from . import datasets as datasets
from . import denoisers as denoisers
from . import factors as factors
from . import infer as infer
from . import networks as networks
from . import samplers as samplers
from . import schedules as schedules
from . import transforms as transforms
from . import twists as twists
from ._compiler import CompilerWarning as CompilerWarning
from ._compiler import keep_enough_threads as _keep_enough_threads
from ._compiler import keep_wrong_sums_away as _keep_wrong_sums_away
from .checkpoints import CheckpointError as CheckpointError
from .diffusions import AbstractDiffusion as AbstractDiffusion
from .diffusions import BinomialDiffusion as BinomialDiffusion
from .diffusions import CategoricalDiffusion as CategoricalDiffusion
from .diffusions import GaussianDiffusion as GaussianDiffusion
from .diffusions import MixedDiffusion as MixedDiffusion
from .distributions import DiffusionPosterior as DiffusionPosterior
from .distributions import DiffusionPrior as DiffusionPrior
from .distributions import ForwardTrajectory as ForwardTrajectory
from .distributions import ReverseTrajectory as ReverseTrajectory
from .distributions import joint_log_ratio as joint_log_ratio
from .hub import card as card
from .hub import load as load
from .hub import load_diffusers as load_diffusers
from .hub import packaged as packaged
from .hub import save_diffusers as save_diffusers
from .infer import PriorComparison as PriorComparison
from .infer import compare_priors as compare_priors
from .likelihoods import ContinuousBound as ContinuousBound
from .likelihoods import Estimate as Estimate
from .likelihoods import ImportanceWeighted as ImportanceWeighted
from .likelihoods import KBound as KBound
from .likelihoods import PathIntegral as PathIntegral
from .likelihoods import ProbabilityFlow as ProbabilityFlow
from .process import DiscretisedStep as DiscretisedStep
from .process import FixedStep as FixedStep
from .process import ForwardStep as ForwardStep
from .process import LearnedStep as LearnedStep
from .process import MixedStep as MixedStep
from .process import ReverseProcess as ReverseProcess
from .samplers import ReliabilityWarning as ReliabilityWarning

__version__ = "0.1.0"

_keep_wrong_sums_away()
_keep_enough_threads()

# Optax, ArviZ and Matplotlib take a while to import, and a model needs none of them: these names load on first use.
_ON_USE = {
    "diagnostics": "diagnostics",
    "incomplete": "incomplete",
    "plots": "plots",
    "to_arviz": "convert",
    "FitResult": "training",
    "BelowBaselineWarning": "training",
    "TrainingDiverged": "training",
    "fit": "training",
    "fit_prior": "training",
    "fit_prior_from_observations": "incomplete",
    "impute": "incomplete",
    "pool": "incomplete",
    "plan_prior": "training",
}

if _typing.TYPE_CHECKING:
    from . import diagnostics as diagnostics
    from . import incomplete as incomplete
    from . import plots as plots
    from .convert import to_arviz as to_arviz
    from .incomplete import fit_prior_from_observations as fit_prior_from_observations
    from .incomplete import impute as impute
    from .incomplete import pool as pool
    from .training import BelowBaselineWarning as BelowBaselineWarning
    from .training import FitResult as FitResult
    from .training import TrainingDiverged as TrainingDiverged
    from .training import fit as fit
    from .training import fit_prior as fit_prior
    from .training import plan_prior as plan_prior


def __getattr__(name: str) -> _typing.Any:
    if name not in _ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _importlib.import_module(f"{__name__}.{_ON_USE[name]}")
    return module if name == _ON_USE[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_USE})
