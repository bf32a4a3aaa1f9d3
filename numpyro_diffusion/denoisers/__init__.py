"""Denoisers: the law of clean data given noisy data, learned or exact."""

from .base import AbstractDenoiser as AbstractDenoiser
from .exact import Enumerated as Enumerated
from .exact import Gaussian as Gaussian
from .exact import GaussianMixture as GaussianMixture
from .full import FullGaussianMixture as FullGaussianMixture
from .network import Network as Network
from .residual import Residual as Residual
