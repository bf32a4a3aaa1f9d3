"""The covariance of what a process learns from, which stands for that of its draws.

A process that has learned well draws what has the covariance of its data, so that nothing need be drawn to find it.
Twists rely on it, and are right whatever it is (`numpyro_diffusion.moments`).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions.transforms import Transform

from ..diffusions import require_gaussian
from ..moments import LARGEST_WHOLE, moments_of_data
from ..process import ReverseProcess
from ..samplers import having_moments
from .run import to_latent

LEAST_EXAMPLES = 20  # from which a covariance is taken


def with_data_moments(
    process: ReverseProcess, transform: Transform | None, data: Any, dequantize: float
) -> ReverseProcess:
    """With the covariance of the data; as it is for bits, for large events, and where few or constant data say nothing.

    Args:
        process: that learns, or has learned.
        transform: from its coordinates to those of the data, or None.
        data: examples, shape (n, *event_shape).
        dequantize: width of the uniform noise that training adds to them: without it what is the same in all examples
            would be taken for certain.
    """
    if not process.diffusion.is_gaussian or int(np.prod(process.event_shape)) > LARGEST_WHOLE:
        return process
    if len(data) < LEAST_EXAMPLES:
        return process
    noise = dequantize * np.random.default_rng(0).uniform(-0.5, 0.5, np.shape(data))
    z, _ = to_latent(transform, jnp.asarray(np.asarray(data) + noise, float))
    flat = np.asarray(require_gaussian(process.diffusion).standardize(z)).reshape(len(data), -1)
    return process if (np.ptp(flat, axis=0) == 0).any() else having_moments(process, moments_of_data(flat))
