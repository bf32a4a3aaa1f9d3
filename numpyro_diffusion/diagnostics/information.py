"""What does the noise leave of the data? Mutual information, and the entropy of the data.

The information of x_t about x_0 grows with the signal-to-noise ratio γ by half the error of the best denoiser, dI/dγ =
½ E‖x_0 − E[x_0 | x_t]‖² (Guo, Shamai and Verdú 2005), so that errors of a denoiser integrate to I(x_0; x_t), and to the
entropy of the data (McAllester 2023; Kong, Brekelmans and Ver Steeg 2023). A learned denoiser's error is larger, which
makes both *bounds* from above, estimated; they are exact for an exact denoiser but for the ends and the rule.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .._batching import batched_map
from .._checks import check_count, check_event, check_key
from .._compiled import compiled
from .._display import shown_by_facts
from .._numbers import check_told_apart
from ..diffusions import require_gaussian
from ..likelihoods import terminal_kl
from ..process import ReverseProcess
from ..samplers import Ancestral


@shown_by_facts
class MutualInformation(NamedTuple):
    """What is left of x_0 in x_t, and the entropy of x_0, in nats.

    Attributes:
        t: times from T down to 1, shape (levels,).
        log_snr: log-SNR there, shape (levels,).
        information: I(x_0; x_t), shape (levels,), growing.
        standard_error: of `information`, over the examples, shape (levels,).
        entropy: h(x_0), shape ().
        entropy_error: its standard error, shape ().
    """

    t: np.ndarray
    log_snr: np.ndarray
    information: np.ndarray
    standard_error: np.ndarray
    entropy: float
    entropy_error: float

    def _facts(self) -> dict[str, object]:
        information = f"{self.information[0]:.2f} to {self.information[-1]:.2f} nats"
        return {
            "levels": len(self.t),
            "information": information,
            "entropy": f"{self.entropy:.2f} ± {self.entropy_error:.2f} nats",
        }


def mutual_information(
    key: Array, process: ReverseProcess, data: ArrayLike | int, *, num_times: int = 100, chunk: int | None = 4096
) -> MutualInformation:
    r"""I(x_0; x_t) at every noise level and h(x_0), by the I-MMSE relation (Guo, Shamai & Verdú 2005).

    With :math:`\gamma` the signal-to-noise ratio, dI/dγ = ½ E‖z_0 − E[z_0 | x_t]‖²: an integral over log-SNR, by the
    trapezoidal rule, of half the squared error of the predicted noise, plus E KL(q(x_T | x_0) ‖ π) for the rest.
    h(x_0) is I(x_0; x_1) plus the mean of −log p(x_0 | x_1) (McAllester 2023; Kong et al. 2023).

    A *bound* from above, both, estimated: a denoiser's error is at least that of the exact one, π is not quite the law
    of x_T, nor p(x_0 | x_1) the exact last step. For an exact denoiser they are exact but for these two and the rule.

    Args:
        key: JAX random key.
        process: a Gaussian reverse process.
        data: examples of shape (n, *event), n ≥ 2, or the number n of draws to take from the process itself.
        num_times: points of the rule, evenly spaced in log-SNR; at least 2.
        chunk: at most so many network calls at a time; None for all.

    Returns:
        A `MutualInformation`; `nd.plots.mutual_information` draws it.

    Raises:
        ValueError: a process of bits, fewer than 2 examples or times, data of another shape, not finite, or that
            the float type cannot tell apart.
    """
    diffusion = require_gaussian(process.diffusion, "process: expected a GaussianDiffusion")
    check_count("num_times", num_times, 2)
    draw, noise = jax.random.split(check_key("key", key))
    if np.ndim(data) == 0:
        x_0 = _draws(jax.random.split(draw, check_count("data", data, 2)), process)
    else:
        check_told_apart("data", data, len(process.event_shape), diffusion.scale)
        x_0 = jnp.asarray(data, dtype=float)
        if len(check_event("data", x_0.shape, process.event_shape)) != 1 or len(x_0) < 2:
            raise ValueError(f"data: expected shape (n, *{process.event_shape}) with n >= 2, got {x_0.shape}")
    together = None if chunk is None else max(1, check_count("chunk", chunk) // num_times)
    t, log_snr, parts = _information(noise, process, x_0, num_times, together)
    means, errors = (np.asarray(f(parts, axis=0)) for f in (jnp.mean, partial(jnp.std, ddof=1)))
    errors = errors / np.sqrt(len(x_0))
    return MutualInformation(
        np.asarray(t), np.asarray(log_snr), means[:-1], errors[:-1], float(means[-1]), float(errors[-1])
    )


@compiled
def _draws(keys: Array, process: ReverseProcess) -> Array:
    return jax.vmap(lambda key: Ancestral().sample(key, process))(keys)


@compiled
def _information(key: Array, process: Any, x_0: Array, count: int, chunk: int | None) -> tuple[Array, Array, Array]:
    """Times, log-SNRs, and for each example the integral up to every level and its part of the entropy."""
    diffusion, schedule = process.diffusion, process.diffusion.schedule
    low, high = schedule.log_snr(jnp.asarray([process.num_steps, 1.0]))
    log_snr = jnp.linspace(jnp.maximum(low, -16.0), high, count)  # finite where x_T keeps nothing at all
    times = schedule.time_at(log_snr)

    def one(pair: tuple[Array, Array]) -> Array:
        key, x_0 = pair
        # New noise at every level: the errors of neighbours then average out.
        noise = jax.vmap(lambda key: diffusion.marginal_noise(key, x_0.shape))(jax.random.split(key, count))
        x_t = jax.vmap(lambda noise, t: diffusion.marginal_from_noise(noise, x_0, t))(noise, times)
        error = jax.vmap(process.predict)(x_t, times) - x_0
        square = jnp.square(error / diffusion.scale).reshape(count, -1).sum(1)
        rate = 0.5 * jnp.exp(log_snr) * square
        gained = jnp.cumsum((rate[1:] + rate[:-1]) / 2 * jnp.diff(log_snr))
        information = jnp.append(0.0, gained) + terminal_kl(process, x_0)
        return jnp.append(information, information[-1] - process.last_kernel(x_t[-1]).log_prob(x_0))

    return times, log_snr, batched_map(one, (jax.random.split(key, len(x_0)), x_0), chunk)
