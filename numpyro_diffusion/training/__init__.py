"""Learning: objectives, the training loop, and a prior from data in one call."""

from ..distributions.report import PriorReport as PriorReport
from .auto import BelowBaselineWarning as BelowBaselineWarning
from .auto import fit_prior as fit_prior
from .holes import DroppedRowsWarning as DroppedRowsWarning
from .loop import fit as fit
from .objectives import bound_loss as bound_loss
from .objectives import hybrid_loss as hybrid_loss
from .objectives import simple_loss as simple_loss
from .plan import PriorPlan as PriorPlan
from .plan import plan_prior as plan_prior
from .results import CheckpointNotWritten as CheckpointNotWritten
from .results import FitResult as FitResult
from .results import TrainingDiverged as TrainingDiverged
from .separable import Separable as Separable
from .separable import chosen_separable as chosen_separable
from .separable import fit_separable as fit_separable
