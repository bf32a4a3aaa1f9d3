"""Is an inference right on average, do data surprise a model, what does noise leave, and where are bits spent?"""

from ..placement import place_steps as place_steps
from .calibration import OBSERVED_KWARG as OBSERVED_KWARG
from .calibration import Calibration as Calibration
from .calibration import calibrate as calibrate
from .information import MutualInformation as MutualInformation
from .information import mutual_information as mutual_information
from .parzen import Parzen as Parzen
from .parzen import parzen as parzen
from .progressive import ProgressiveCode as ProgressiveCode
from .progressive import progressive_coding as progressive_coding
from .progressive import progressive_generation as progressive_generation
from .surprise import Surprise as Surprise
from .surprise import surprise as surprise
