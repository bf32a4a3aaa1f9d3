"""Priors of trained processes, and of simple models.

What was trained in coordinates of its own becomes a prior of the data, with the covariance that twists rely on. A
simple model is a prior without any network: the chain about its exact denoiser, whose law is the model itself for a
Gaussian, *exactly* where coordinates are whitened, and near to it for a mixture.
"""

import numpy as np
from numpyro.distributions.transforms import Transform

from ..denoisers import FullGaussianMixture
from ..diffusions import GaussianDiffusion
from ..distributions import DiffusionPrior
from ..process import ReverseProcess
from ..schedules import AbstractSchedule, log_snr
from .baselines import Mixture
from .coordinates import to_data_of
from .data_moments import with_data_moments
from .tables import NUM_TIMES


def assembled(
    process: ReverseProcess, transform: Transform | None, data: np.ndarray, dequantize: float
) -> DiffusionPrior:
    """With the covariance of the data, which twists rely on; see `with_data_moments`."""
    return DiffusionPrior(with_data_moments(process, transform, data, dequantize), transform=transform)


def chain_of(law: Mixture, event_shape: tuple[int, ...], schedule: AbstractSchedule | None = None) -> DiffusionPrior:
    """The chain about a Gaussian, whose law it is, or about a mixture, without a network; for vectors whitened.

    Args:
        law: of flat examples.
        event_shape: of one example.
        schedule: of the noise; unless given log-SNR in equal steps.
    """
    schedule = log_snr(NUM_TIMES) if schedule is None else schedule
    centre = law.weights @ law.means
    deviations = law.means - centre
    whole = np.einsum("k,kij->ij", law.weights, law.covariances) + (deviations * law.weights[:, None]).T @ deviations
    if len(event_shape) != 1:
        diffusion = GaussianDiffusion(schedule, centre.mean(), np.sqrt(np.trace(whole) / len(whole)))
        own, transform = law, None
    else:
        root = np.linalg.cholesky(whole)
        inverse = np.linalg.inv(root)
        own, transform = law.affine(inverse, -inverse @ centre), to_data_of(centre, root)
        diffusion = GaussianDiffusion(schedule)
    denoiser = FullGaussianMixture(own.means, own.covariances, own.weights)
    return DiffusionPrior(ReverseProcess(diffusion, denoiser, event_shape), transform=transform)
