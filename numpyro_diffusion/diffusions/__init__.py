"""Forward processes q: how data become noise."""

from .base import AbstractDiffusion as AbstractDiffusion
from .base import AbstractDiscreteDiffusion as AbstractDiscreteDiffusion
from .binomial import BinomialDiffusion as BinomialDiffusion
from .categorical import CategoricalDiffusion as CategoricalDiffusion
from .gaussian import GaussianDiffusion as GaussianDiffusion
from .gaussian import require_gaussian as require_gaussian
from .mixed import MixedDiffusion as MixedDiffusion
from .mixed import require_mixed as require_mixed
