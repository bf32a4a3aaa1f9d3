"""Estimators of log p(x_0) under a reverse process, and bounds on it."""

from .base import AbstractLikelihood as AbstractLikelihood
from .base import Estimate as Estimate
from .base import bits_per_dim as bits_per_dim
from .importance import ImportanceTerms as ImportanceTerms
from .importance import ImportanceWeighted as ImportanceWeighted
from .integral import ContinuousBound as ContinuousBound
from .integral import ContinuousTerms as ContinuousTerms
from .integral import PathIntegral as PathIntegral
from .integral import PathTerms as PathTerms
from .integral import step_gap as step_gap
from .k_bound import KBound as KBound
from .k_bound import KTerms as KTerms
from .k_bound import reconstruction as reconstruction
from .k_bound import step_kl as step_kl
from .k_bound import terminal_kl as terminal_kl
from .probability_flow import FlowTerms as FlowTerms
from .probability_flow import ProbabilityFlow as ProbabilityFlow
