"""Factors r(x) that multiply a prior."""

from .base import AbstractFactor as AbstractFactor
from .base import Product as Product
from .base import factors_of as factors_of
from .callable import Factor as Factor
from .delta import Delta as Delta
from .elementwise import Categorical as Categorical
from .elementwise import Elementwise as Elementwise
from .elementwise import by_value as by_value
from .gaussian import Gaussian as Gaussian
from .linear import LinearGaussian as LinearGaussian
from .pulled_back import pull_back as pull_back
from .pulled_back import with_known as with_known
from .simplify import simplify as simplify
