r"""One integral with two kinds of ends: the continuous bound (VDM 2021) and the path integral (McAllester 2023).

Both are what the K bound tends to as its steps shrink, E log p(x_0|x_1) − ½ ∫ E ‖ε − ε̂‖² dλ − KL at T. The ends of
`ContinuousBound` are the model's own, its noise law and last step, which makes it a bound at every x_0 (Kingma et al.
2021). Those of `PathIntegral` approximate the population's (McAllester 2023; Kong et al. 2023).
"""

# Over 300 lines: both ends of one integral, and what they share.

import math
import warnings
from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Shaped

from .._checks import check_count, check_finite, check_optional_positive, check_positive
from .._shapes import Example
from ..diffusions import GaussianDiffusion
from ..process import ReverseProcess
from ._integral.denoising import Draws, draw, log_snr_ends, mean_and_error, num_calls
from ._integral.reference import NOISE_LAW, GaussianReference
from .base import AbstractLikelihood, Estimate, StandardError, require_gaussian
from .k_bound import KBound, terminal_kl


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


class PathTerms(NamedTuple):
    """The parts of the path integral for one example, in nats, shape () each: value = decoder − integral − kl_terminal.

    Attributes:
        integral: ½ ∫ E ‖ε − ε̂‖² dλ.
        decoder: E_q log p(x_0 | x_1), of a density, or of a probability for whole numbers.
        kl_terminal: KL(q(x_T|x_0) ‖ p_T), p_T the noisy law of Gaussian data with the given moments.
    """

    integral: Array
    decoder: Array
    kl_terminal: Array


class AbstractIntegral(AbstractLikelihood):
    """log p(x_0) from the denoising integral, with ends that a method names.

    Attributes:
        accuracy: in nats per dimension, by which the chain's own K bound may differ without a warning; None for any.
        chunk: at most so many network calls are batched at a time.
    """

    accuracy: eqx.AbstractVar[float | None]

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int, int]:
        """Independent replicates, points (λ, ε) of each, and Jacobian-vector products at each point."""

    @abstractmethod
    def law(self, diffusion: GaussianDiffusion) -> GaussianReference:
        """The Gaussian law of standardised data whose own integral is the control variate."""

    @abstractmethod
    def ends(self, process: ReverseProcess, x_0: Example) -> Float[Array, ""]:
        """What the end at T costs, KL(q(x_T|x_0) ‖ ·) in nats, shape ()."""

    def check(self, process: ReverseProcess) -> None:
        """Gaussian diffusions only."""
        require_gaussian(type(self).__name__, process)

    def calls(self, process: ReverseProcess) -> int:
        """One call for each point and product, and one for each draw of the last step."""
        return num_calls(process, self.sizes)

    def examine(
        self, key: PRNGKeyArray, process: ReverseProcess, x_0: Shaped[Array, "..."], estimate: Estimate
    ) -> None:
        """Warn if T is too small for `accuracy`."""
        if self.accuracy is not None:
            warn_if_coarse(type(self).__name__, key, process, x_0, self.accuracy)

    def _parts(self, key: Array, process: ReverseProcess, x_0: Array) -> tuple[Draws, Array, Array, StandardError]:
        """The replicates, the end's cost, and the estimate with its error."""
        diffusion: Any = process.diffusion
        x_0 = jnp.asarray(x_0, diffusion.schedule.times.dtype)
        draws = draw(key, process, x_0, self.law(diffusion), self.sizes, self.chunk)
        mean, error = mean_and_error(draws.reconstruction - draws.integral)
        kl = self.ends(process, x_0)
        return draws, kl, mean - kl, error


class ContinuousBound(AbstractIntegral):
    r"""The *lower bound* on log p(x_0) at every x_0, of the chain with infinitely many steps.

    .. math:: &\mathbb{E}\log p(x_0|x_1) \\
              &- \tfrac12\int_{\lambda_T}^{\lambda_1}
              \mathbb{E}\,\|\varepsilon-\hat\varepsilon(x_\lambda)\|^2\,d\lambda \\
              &- \mathrm{KL}\big(q(x_T|x_0)\,\|\,\pi\big)

    An equality where the denoiser is exact, but for the chain's two ends. Only the log-SNR at t = 1 and at T matters,
    not the schedule between them. Networks are called at fractional t. For `GaussianDiffusion`; of its reverse
    variances only that of the last step counts, since in the limit there is no choice. Source: VDM 2021, eqs. 11-15.

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

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> nd.ContinuousBound()(jax.random.key(0), process, jnp.zeros((3, 2))).kind
        'lower bound'

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
    def sizes(self) -> tuple[int, int, int]:
        """`num_samples`, `num_times` and `num_products`."""
        return self.num_samples, self.num_times, self.num_products

    def law(self, diffusion: GaussianDiffusion) -> GaussianReference:
        """The noise law."""
        del diffusion
        return NOISE_LAW

    def ends(self, process: ReverseProcess, x_0: Example) -> Float[Array, ""]:
        """KL(q(x_T|x_0) ‖ π), the model's own end."""
        schedule = process.diffusion.schedule
        return terminal_kl(process, x_0, schedule.time_at(log_snr_ends(schedule)[0]))

    def estimate(self, key: PRNGKeyArray, process: ReverseProcess, x_0: Example) -> Estimate:
        """The bound for one example, shape () in nats; smooth in `x_0` for one `key`."""
        draws, kl, value, error = self._parts(key, process, x_0)
        terms = ContinuousTerms(jnp.mean(draws.integral), jnp.mean(draws.reconstruction), kl)
        return Estimate(value, error.value, terms, "lower bound", error.degrees_of_freedom)


class PathIntegral(AbstractIntegral):
    r"""log p(x_0) of the *population* that the denoiser was made for, from its errors at one point.

    .. math:: -\log p(x_0) &= \tfrac12\int_{\lambda_T}^{\lambda_1}
              \mathbb{E}\,\|\varepsilon-\hat\varepsilon(x_\lambda)\|^2\,d\lambda \\
              &+ \mathrm{KL}\big(q(x_T|x_0)\,\|\,p_T\big) \\
              &- \mathbb{E}\log p(x_0|x_1)

    Sources: McAllester 2023, the continuous form of the non-variational identity, and Kong et al. 2023, there without
    the decoder's term, which is kept here: leaving it out costs ½ log of what is not resolved at t = 1. With the exact
    denoiser, an equality at every x_0, up to the Gaussian approximations at the ends. With a learned one a *bound on
    average* over the population's x_0: at one x_0 it may be too high or too low.

    It is the integral of `ContinuousBound`, with the same estimate; the ends differ. That one's are the model's own
    (noise law and last step), which makes it a bound for every x_0; here they approximate the population's. For whole
    numbers, with a `DiscretisedStep`, the value is the log of a probability.

    Args:
        num_samples: independent replicates; from 4 on there is a standard error.
        num_times: points (λ, ε) of each replicate.
        num_products: Jacobian-vector products at each point, for less noise with a denoiser that is exact or nearly so;
            as for `ContinuousBound`.
        loc: the population's mean, scalar or broadcastable to one example, in data units; the noise law's unless given.
            With `scale` it makes p_T, and the law of the control variate.
        scale: the population's standard deviation, likewise.
        accuracy: in nats per dimension; as for `ContinuousBound`.
        chunk: at most so many network calls are batched at a time, forward and backward.

    Raises:
        ValueError: counts that are not whole numbers of at least 1, `loc` or `scale` not finite, `scale` or `accuracy`
            not positive; bits (when used).
    """

    num_samples: int = eqx.field(static=True)
    num_times: int = eqx.field(static=True)
    loc: Array | None
    scale: Array | None
    accuracy: float | None = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    num_products: int = eqx.field(static=True, default=0)

    def __init__(
        self,
        num_samples: int = 4,
        num_times: int = 32,
        *,
        num_products: int = 0,
        loc: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        accuracy: float | None = None,
        chunk: int | None = None,
    ) -> None:
        self.num_samples = check_count("num_samples", num_samples)
        self.num_times = check_count("num_times", num_times)
        for name, value in (("loc", loc), ("scale", scale)):
            if value is not None:
                check_finite(name, value)
        if scale is not None:
            check_positive("scale", scale)
        self.loc = None if loc is None else jnp.asarray(loc, dtype=float)
        self.scale = None if scale is None else jnp.asarray(scale, dtype=float)
        self.accuracy = check_optional_positive("accuracy", accuracy)
        self.chunk = None if chunk is None else check_count("chunk", chunk)
        self.num_products = check_count("num_products", num_products, 0)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """`num_samples`, `num_times` and `num_products`."""
        return self.num_samples, self.num_times, self.num_products

    def law(self, diffusion: GaussianDiffusion) -> GaussianReference:
        """The moments, standardised."""
        loc = jnp.zeros(()) if self.loc is None else diffusion.standardize(self.loc)
        return GaussianReference(loc, jnp.ones(()) if self.scale is None else jnp.square(self.scale / diffusion.scale))

    def ends(self, process: ReverseProcess, x_0: Example) -> Float[Array, ""]:
        """KL(q(x_T|x_0) ‖ p_T) for Gaussian data with the population's moments, exact."""
        diffusion: Any = process.diffusion
        population, log_snr = self.law(diffusion), log_snr_ends(diffusion.schedule)[0]
        return _terminal_kl(population, diffusion.standardize(x_0), log_snr)

    def estimate(self, key: PRNGKeyArray, process: ReverseProcess, x_0: Example) -> Estimate:
        """log p(x_0) for one example, shape () in nats; smooth in `x_0` for one `key`."""
        draws, kl, value, error = self._parts(key, process, x_0)
        terms = PathTerms(jnp.mean(draws.integral), jnp.mean(draws.reconstruction), kl)
        return Estimate(value, error.value, terms, "bound on average", error.degrees_of_freedom)


def step_gap(
    key: PRNGKeyArray, process: ReverseProcess, x_0: Shaped[Array, "..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
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


def warn_if_coarse(
    name: str, key: PRNGKeyArray, process: ReverseProcess, x_0: Shaped[Array, "..."], accuracy: float
) -> None:
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


def _terminal_kl(population: GaussianReference, z_0: Array, log_snr: Array) -> Array:
    """KL(q(x_T|x_0) ‖ p_T) for Gaussian data with the moments of `population`, exact, shape ()."""
    alpha_bar, noise_variance = jnp.exp(-jnp.logaddexp(0.0, -log_snr)), jnp.exp(-jnp.logaddexp(0.0, log_snr))
    marginal = alpha_bar * population.variance + noise_variance
    square = noise_variance + alpha_bar * jnp.square(z_0 - population.loc)
    return 0.5 * jnp.sum(square / marginal - 1 + jnp.log(marginal / noise_variance))
