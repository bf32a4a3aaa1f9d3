"""Twists ψ_t(x_t) ≈ E[r(x_0) | x_t]: what r becomes at every noise level."""

from ..laws import tilt as tilt
from .averaged import Averaged as Averaged
from .base import AbstractTwist as AbstractTwist
from .base import TwistedStep as TwistedStep
from .constant import Annealed as Annealed
from .constant import Constant as Constant
from .constant import multiplied as multiplied
from .default import default_twist as default_twist
from .flat import Flat as Flat
from .laplace import Laplace as Laplace
from .last import last_step as last_step
from .law_evidence import law_log_evidence as law_log_evidence
from .linear import MomentMatched as MomentMatched
from .linear import PseudoInverse as PseudoInverse
from .linearized import Linearized as Linearized
from .mixture import MixtureMatched as MixtureMatched
from .tempered import Tempered as Tempered
from .tweedie import Tweedie as Tweedie
