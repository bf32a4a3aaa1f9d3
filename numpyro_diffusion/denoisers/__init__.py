"""Denoisers: the law of clean data given noisy data, learned or exact."""

from .base import AbstractDenoiser as AbstractDenoiser
from .context import Conditional as Conditional
from .context import Context as Context
from .context import LogVariances as LogVariances
from .context import Regression as Regression
from .exact import Enumerated as Enumerated
from .exact import Gaussian as Gaussian
from .exact import GaussianMixture as GaussianMixture
from .full import FullGaussianMixture as FullGaussianMixture
from .kernels import KernelDensity as KernelDensity
from .network import Network as Network
from .products import ProductMixture as ProductMixture
from .residual import Residual as Residual
from .separable import SeparableMixture as SeparableMixture
