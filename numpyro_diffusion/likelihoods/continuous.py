r"""The bound of Kingma et al. 2021 (VDM): what the K bound tends to as its steps shrink."""

import math
import warnings
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from .._checks import check_count, check_optional_positive
from ..process import ReverseProcess
from .base import AbstractLikelihood, Estimate, require_gaussian
from .denoising import draw, log_snr_ends, mean_and_error, num_calls
from .k_bound import KBound, terminal_kl
from .reference import NOISE_LAW


class ContinuousTerms(NamedTuple):
    """The parts of the bound for one example, in nats, shape () each: value = reconstruction − integral − kl_terminal.

    Attributes:
        integral: ½ ∫ E ‖ε − ε̂‖² dλ, the loss between the ends.
        reconstruction: E_q log p(x_0 | x_1).
        kl_terminal: KL(q(x_T|x_0) ‖ π).
    """

    integral: Array
    reconstruction: Array
    kl_terminal: Array


class ContinuousBound(AbstractLikelihood):
    r"""The *lower bound* on log p(x_0) at every x_0, of the chain with infinitely many steps (VDM 2021, eqs. 11-15).

    .. math:: \mathbb{E}\log p(x_0|x_1)
              - \tfrac12\int_{\lambda_T}^{\lambda_1}\mathbb{E}\,\|\varepsilon-\hat\varepsilon(x_\lambda)\|^2\,d\lambda
              - \mathrm{KL}\big(q(x_T|x_0)\,\|\,\pi\big)

    An equality where the denoiser is exact, but for the chain's two ends. Only the log-SNR at t = 1 and at T matters,
    not the schedule between them. Networks are called at fractional t. For `GaussianDiffusion`; of its reverse
    variances only that of the last step counts, since in the limit there is no choice.

    The estimate is unbiased: each replicate is an average over randomised low-discrepancy points in (λ, ε), with the
    noise law's own integral, which is known, as a control variate.

    Args:
        num_samples: independent replicates; from 4 on there is a standard error.
        num_times: points (λ, ε) of each replicate.
        num_products: Jacobian-vector products at each point, by which most of the noise is taken out if the denoiser
            is exact or nearly so: each replicate is then the integral along a straight path of one ε, on which it
            hardly depends. With as many as elements the Jacobian's trace is exact; of more elements take some five.
            Gradients hold the products' directions fixed, and are free of bias. None, and an ε for every point, unless
            given: better for a learned denoiser of many elements.
        accuracy: in nats per dimension. If given, a call on arrays (not in compiled code) warns when the chain's own
            K bound is further than this below, which is what its finite T costs.
        chunk: at most so many network calls are batched at a time, forward and backward.

    Raises:
        ValueError: counts that are not whole numbers of at least 1, `accuracy` not positive; bits (when used).
    """

    num_samples: int = eqx.field(static=True)
    num_times: int = eqx.field(static=True)
    accuracy: float | None = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    num_products: int = eqx.field(static=True, default=0)

    def __init__(
        self,
        num_samples: int = 4,
        num_times: int = 32,
        *,
        num_products: int = 0,
        accuracy: float | None = None,
        chunk: int | None = None,
    ) -> None:
        self.num_samples = check_count("num_samples", num_samples)
        self.num_times = check_count("num_times", num_times)
        self.accuracy = check_optional_positive("accuracy", accuracy)
        self.chunk = None if chunk is None else check_count("chunk", chunk)
        self.num_products = check_count("num_products", num_products, 0)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.num_samples, self.num_times, self.num_products

    def check(self, process: ReverseProcess) -> None:
        """Gaussian diffusions only."""
        require_gaussian("ContinuousBound", process)

    def calls(self, process: ReverseProcess) -> int:
        """One call for each point and product, and one for each draw of the last step."""
        return num_calls(process, self._sizes)

    def estimate(self, key: Array, process: ReverseProcess, x_0: Array) -> Estimate:
        """The bound for one example, shape () in nats; smooth in `x_0` for one `key`."""
        x_0 = jnp.asarray(x_0, process.diffusion.schedule.times.dtype)
        draws = draw(key, process, x_0, NOISE_LAW, self._sizes, self.chunk)
        mean, error = mean_and_error(draws.reconstruction - draws.integral)
        schedule = process.diffusion.schedule
        kl = terminal_kl(process, x_0, schedule.time_at(log_snr_ends(schedule)[0]))
        terms = ContinuousTerms(jnp.mean(draws.integral), jnp.mean(draws.reconstruction), kl)
        return Estimate(mean - kl, error.value, terms, "lower bound", error.degrees_of_freedom)

    def examine(self, key: Array, process: ReverseProcess, x_0: Array, estimate: Estimate) -> None:
        """Warn if T is too small for `accuracy`."""
        if self.accuracy is not None:
            warn_if_coarse("ContinuousBound", key, process, x_0, self.accuracy)


def step_gap(key: Array, process: ReverseProcess, x_0: Array) -> tuple[Array, Array]:
    """What finite T costs: the continuous bound less the K bound, in nats, averaged over examples.

    Args:
        key: JAX random key.
        process: a Gaussian diffusion's.
        x_0: shape (*batch, *event).

    Returns:
        The mean over the batch and its Monte-Carlo standard error, shape () each; some 2000 network calls an example.
    """
    count = min(process.num_steps - 1, 64)
    fine, coarse = ContinuousBound(16, 64, chunk=4096), KBound(16, count, low_discrepancy=True, chunk=4096)
    one, two = (bound(key, process, x_0) for bound in (fine, coarse))
    variance = jnp.square(one.widened_error) + jnp.square(two.widened_error)
    return jnp.mean(one.value - two.value), jnp.sqrt(jnp.sum(variance)) / variance.size


def warn_if_coarse(name: str, key: Array, process: ReverseProcess, x_0: Array, accuracy: float) -> None:
    """Warn, with the measured gap, if the chain has too few steps for its K bound to be within `accuracy`."""
    gap, error = (part / _size(process) for part in step_gap(key, process, x_0))
    if gap - 2 * error > accuracy:
        warnings.warn(
            f"{name}: T = {process.num_steps} is too small for accuracy={accuracy:g}: the chain's K bound is "
            f"{gap:.2g} ± {error:.1g} nats per dimension below the continuous-time value; take more steps",
            stacklevel=4,
        )


def _size(process: ReverseProcess) -> int:
    return max(1, math.prod(process.event_shape))
