"""Laws of one example with independent elements: what steps, posteriors and noise are made of, and what can be done.

A law is a NumPyro distribution of one event. `operations` are generic functions of it, each file beside it is one law
of single elements with its rules; a new family adds a file.
"""

from .bits import bits as bits
from .categories import IMPOSSIBLE as IMPOSSIBLE
from .categories import Categories as Categories
from .categories import categories as categories
from .categories import log_or_impossible as log_or_impossible
from .categories import one_hot as one_hot
from .levels import DiscretisedNormal as DiscretisedNormal
from .levels import levels as levels
from .lowered import LoweredNormal as LoweredNormal
from .mass import Backward as Backward
from .mass import UnnormalisedNormal as UnnormalisedNormal
from .mass import drawn_as as drawn_as
from .mass import pooled as pooled
from .mixed import ByColumns as ByColumns
from .mixed import Columns as Columns
from .mixed import Mixed as Mixed
from .mixed import apart as apart
from .mixed import together as together
from .normal import FARTHEST as FARTHEST
from .normal import normal as normal
from .operations import Operation as Operation
from .operations import UnknownLaw as UnknownLaw
from .operations import between as between
from .operations import bit_logits as bit_logits
from .operations import certain as certain
from .operations import chosen as chosen
from .operations import class_logits as class_logits
from .operations import elements as elements
from .operations import event_kl as event_kl
from .operations import from_noise as from_noise
from .operations import is_factorised as is_factorised
from .operations import log_ahead as log_ahead
from .operations import log_excess as log_excess
from .operations import lowered as lowered
from .operations import mean_and_variance as mean_and_variance
from .operations import mirrored as mirrored
from .operations import observed as observed
from .operations import rounded as rounded
from .operations import tilt as tilt
from .operations import variance as variance
from .operations import weighted as weighted
from .partly_known import PartlyKnown as PartlyKnown
from .partly_known import known as known
