r"""The integral of the denoising error over log-SNR, which the continuous bound and the path integral share.

With ε̂ the noise that a denoiser's prediction stands for, x_λ the data with noise at log-SNR λ,

.. math:: \tfrac12\int_{\lambda_T}^{\lambda_1}\mathbb{E}\,\|\varepsilon-\hat\varepsilon(x_\lambda)\|^2\,d\lambda .

λ runs over a grid with a random shift, ε over randomised Sobol points beside it, or along straight paths of one ε
(`paths`). The same integral for a Gaussian law of the data is known in closed form for every x_0, and is a control
variate: its error is subtracted point by point and its integral added back.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..._batching import batched_map
from ..._shapes import Example
from ...process import ReverseProcess
from ...schedules import LEAST_LOG_SNR, AbstractSchedule
from ..base import StandardError, standard_error
from ..k_bound import reconstruction
from .low_discrepancy import low_discrepancy_point
from .paths import draw_paths
from .reference import GaussianReference, last_control


class Draws(NamedTuple):
    """What the replicates of the estimate say, shape (num_samples,) each, in nats.

    Attributes:
        integral: the integral, with its control variate.
        reconstruction: log p(x_0 | x_1), likewise.
    """

    integral: Float[Array, " samples"]
    reconstruction: Float[Array, " samples"]


def log_snr_ends(schedule: AbstractSchedule) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The log-SNR at T and at t = 1; a small finite one in place of −∞ for a chain that erases everything."""
    table = schedule.table
    return jnp.where(jnp.isfinite(table[-1]), table[-1], LEAST_LOG_SNR), table[1]


def num_last(process: ReverseProcess, num_times: int, num_products: int = 0) -> int:
    """How many draws of the last step each replicate takes; none where its average is known."""
    if process.last_step.has_expectation:
        return 0
    return 1 if num_products else -(-num_times // 8)


def num_calls(process: ReverseProcess, sizes: tuple[int, int, int]) -> int:
    """How many network calls and Jacobian-vector products `draw` makes with these `sizes`."""
    num_samples, num_times, num_products = sizes
    products = min(num_products, math.prod(process.event_shape))
    return num_samples * (num_times * (1 + products) + num_last(process, num_times, num_products))


def draw(
    key: PRNGKeyArray,
    process: ReverseProcess,
    x_0: Example,
    reference: GaussianReference | None,
    sizes: tuple[int, int, int],
    chunk: int | None,
) -> Draws:
    """Independent replicates of the integral and of the last step's term, for one example.

    Args:
        key: JAX random key.
        process: a Gaussian diffusion's.
        x_0: one example.
        reference: the control variate's law; None for none.
        sizes: how many replicates, how many points in (λ, ε) each of them takes, and how many Jacobian-vector products
            at each point; with none, every point has an ε of its own.
        chunk: at most so many network calls at a time.

    Returns:
        `Draws`.
    """
    num_samples, num_times, num_products = sizes
    # Where whole numbers can be told apart no error is left; a density's, half a nat a dimension, is no control.
    reference = None if process.is_discrete else reference
    diffusion: Any = process.diffusion
    (low, high), z_0 = log_snr_ends(diffusion.schedule), diffusion.standardize(x_0)
    if num_products:
        return Draws(*draw_paths(key, process, x_0, reference, sizes, (low, high), chunk))
    keys = jax.random.split(key, num_samples)
    shifts = jax.random.uniform(jax.random.fold_in(key, 0), (num_samples,), x_0.dtype)

    def error(pair: tuple[Array, Array]) -> Array:
        point = low_discrepancy_point(keys[pair[0]], pair[1], num_times, x_0.size)
        noise = diffusion.noise_from_uniform(point.reshape(x_0.shape))
        place = (pair[1] + shifts[pair[0]]) / num_times
        return noise_error(process, x_0, reference, high - place * (high - low), noise)

    excess = batched_map(error, _pairs(num_samples, num_times), chunk).reshape(num_samples, num_times)
    known = 0.0 if reference is None else reference.integral(z_0, low, high)
    integral = known + (high - low) * jnp.mean(excess, axis=1)
    count = num_last(process, num_times)
    if not count:
        return Draws(integral, jnp.broadcast_to(reconstruction(process, x_0, jnp.zeros_like(x_0)), (num_samples,)))

    def last(pair: tuple[Array, Array]) -> Array:
        point = low_discrepancy_point(jax.random.fold_in(keys[pair[0]], 1), pair[1], count, x_0.size)
        noise = diffusion.noise_from_uniform(point.reshape(x_0.shape))
        control = 0.0 if reference is None else last_control(process, x_0, reference, noise)
        return reconstruction(process, x_0, noise) + control

    terms = batched_map(last, _pairs(num_samples, count), chunk).reshape(num_samples, count)
    return Draws(integral, jnp.mean(terms, axis=1))


def noise_error(
    process: ReverseProcess,
    x_0: Example,
    reference: GaussianReference | None,
    log_snr: Float[Array, ""],
    noise: Float[Array, "*event"],
) -> Float[Array, ""]:
    """½ ‖ε − ε̂‖² of the process less that of the reference, at one point, shape ()."""
    diffusion: Any = process.diffusion
    t, z_0 = diffusion.schedule.time_at(log_snr), diffusion.standardize(x_0)
    log_snr = diffusion.schedule.log_snr(t)
    x_t = diffusion.marginal_from_noise(noise, x_0, t)
    gap = diffusion.standardize(process.predict(x_t, t)) - z_0
    error = 0.5 * jnp.exp(log_snr) * jnp.sum(jnp.square(gap))
    return error if reference is None else error - reference.error(z_0, log_snr, noise)


def _pairs(num_samples: int, count: int) -> tuple[Array, Array]:
    return jnp.repeat(jnp.arange(num_samples), count), jnp.tile(jnp.arange(count), num_samples)


def mean_and_error(replicates: Float[Array, " n"]) -> tuple[Float[Array, ""], StandardError]:
    """The mean of independent replicates and its standard error (NaN from one), shape () each."""
    return jnp.mean(replicates), standard_error(replicates[:, None])
