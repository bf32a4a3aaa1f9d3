r"""Schedules: how fast the forward process forgets the data.

A schedule is a decreasing table of log signal-to-noise ratios
:math:`\lambda_t = \log\bar\alpha_t - \log(1-\bar\alpha_t)` for :math:`t = 0 \dots T`, with
:math:`\lambda_0 = \infty` (the data). Everything else follows from it: :math:`\bar\alpha_t` and
:math:`1-\bar\alpha_t` are its two logistic functions (both exact in float32, however close to 0 or 1), and
:math:`\beta_{t|s} = 1 - \bar\alpha_t/\bar\alpha_s` serves single steps and strides alike. Whole `t` are the
chain's own steps; fractions interpolate between them.
"""

from .base import LEAST_LOG_SNR as LEAST_LOG_SNR
from .base import AbstractSchedule as AbstractSchedule
from .base import Interpolation as Interpolation
from .base import Schedule as Schedule
from .fixed import cosine as cosine
from .fixed import erasing as erasing
from .fixed import from_beta as from_beta
from .fixed import linear as linear
from .fixed import log_snr as log_snr
from .learned import AbstractLearnedSchedule as AbstractLearnedSchedule
from .learned import LearnedSchedule as LearnedSchedule
from .learned import VarianceSchedule as VarianceSchedule
from .learned import learned as learned
