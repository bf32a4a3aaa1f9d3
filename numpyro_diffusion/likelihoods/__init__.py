"""Estimators of log p(x_0) under a reverse process, and bounds on it."""

from .base import AbstractLikelihood as AbstractLikelihood
from .base import Estimate as Estimate
from .k_bound import KBound as KBound
from .k_bound import KTerms as KTerms
