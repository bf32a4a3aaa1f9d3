"""Denoisers: the law of clean data given noisy data, learned or exact."""

from .base import AbstractDenoiser as AbstractDenoiser
from .exact import Enumerated as Enumerated
from .exact import Gaussian as Gaussian
from .exact import GaussianMixture as GaussianMixture
from .network import Network as Network
