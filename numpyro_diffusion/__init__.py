"""NumPyro distributions for learned diffusion priors.

The import itself asks XLA for right sums and enough threads on a CPU (`_compiler`), which it hears only before the
first computation of a process, and loads nothing else: not even JAX, so that the command line answers at once. Every
public name is loaded on first use. It stands in `_ON_USE` with the module that has it, and once more for type checkers,
which do not see the former; a test holds the two alike.
"""

import importlib as _importlib
import typing as _typing

from ._compiler import CompilerWarning as CompilerWarning
from ._compiler import keep_enough_threads as _keep_enough_threads
from ._compiler import keep_wrong_sums_away as _keep_wrong_sums_away

__version__ = "0.1.0"

_keep_wrong_sums_away()
_keep_enough_threads()

_MODULES = """
    checkpoints datasets denoisers diagnostics diffusers diffusions distributions factors hub incomplete infer
    last_steps laws likelihoods moments networks plots process samplers schedules training transforms twists
""".split()
_NAMES = {
    "checkpoints": "CheckpointError",
    "convert": "to_arviz",
    "diffusions": "AbstractDiffusion BinomialDiffusion CategoricalDiffusion GaussianDiffusion MixedDiffusion",
    "distributions": "DiffusionPosterior DiffusionPrior ForwardTrajectory ReverseTrajectory joint_log_ratio",
    "hub": "card load load_diffusers packaged save_diffusers",
    "incomplete": "fit_prior_from_observations impute pool",
    "infer": "PriorComparison compare_priors",
    "likelihoods": "ContinuousBound Estimate ImportanceWeighted KBound PathIntegral ProbabilityFlow",
    "process": "DiscretisedStep FixedStep ForwardStep LearnedStep MixedStep ReverseProcess",
    "samplers": "ReliabilityWarning",
    "training": "BelowBaselineWarning FitResult TrainingDiverged fit fit_prior plan_prior",
}
# Of each name, the module that has it; a module has itself.
_ON_USE = {name: name for name in _MODULES} | {
    name: module for module, names in _NAMES.items() for name in names.split()
}

if _typing.TYPE_CHECKING:
    from . import checkpoints as checkpoints
    from . import datasets as datasets
    from . import denoisers as denoisers
    from . import diagnostics as diagnostics
    from . import diffusers as diffusers
    from . import diffusions as diffusions
    from . import distributions as distributions
    from . import factors as factors
    from . import hub as hub
    from . import incomplete as incomplete
    from . import infer as infer
    from . import last_steps as last_steps
    from . import laws as laws
    from . import likelihoods as likelihoods
    from . import moments as moments
    from . import networks as networks
    from . import plots as plots
    from . import process as process
    from . import samplers as samplers
    from . import schedules as schedules
    from . import training as training
    from . import transforms as transforms
    from . import twists as twists
    from .checkpoints import CheckpointError as CheckpointError
    from .convert import to_arviz as to_arviz
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
    from .incomplete import fit_prior_from_observations as fit_prior_from_observations
    from .incomplete import impute as impute
    from .incomplete import pool as pool
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
    from .training import BelowBaselineWarning as BelowBaselineWarning
    from .training import FitResult as FitResult
    from .training import TrainingDiverged as TrainingDiverged
    from .training import fit as fit
    from .training import fit_prior as fit_prior
    from .training import plan_prior as plan_prior

else:  # that a name is misspelt, type checkers could not see beside this function
    __all__ = ["CompilerWarning", *_ON_USE]

    def __getattr__(name: str) -> _typing.Any:
        if name not in _ON_USE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _importlib.import_module(f"{__name__}.{_ON_USE[name]}")
        if name == _ON_USE[name]:  # Python keeps modules itself, once they are whole
            return module
        found = globals()[name] = getattr(module, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ON_USE})
