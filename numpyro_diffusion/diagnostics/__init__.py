"""Is an inference right on average, and where along the chain does a model spend its bits?"""

from .calibration import OBSERVED_KWARG as OBSERVED_KWARG
from .calibration import Calibration as Calibration
from .calibration import calibrate as calibrate
from .progressive import ProgressiveCode as ProgressiveCode
from .progressive import progressive_coding as progressive_coding
from .progressive import progressive_generation as progressive_generation
