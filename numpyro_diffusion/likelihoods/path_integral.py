r"""The log density of a given point as an integral of denoising errors (McAllester 2023; Kong et al. 2023)."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from .._checks import check_count, check_finite, check_optional_positive, check_positive
from ..process import ReverseProcess
from .base import AbstractLikelihood, Estimate, require_gaussian
from .continuous import warn_if_coarse
from .denoising import draw, log_snr_ends, mean_and_error, num_calls
from .reference import Gaussian


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


class PathIntegral(AbstractLikelihood):
    r"""log p(x_0) of the *population* that the denoiser was made for, from its errors at one point.

    .. math:: -\log p(x_0) = \tfrac12\int_{\lambda_T}^{\lambda_1}
              \mathbb{E}\,\|\varepsilon-\hat\varepsilon(x_\lambda)\|^2\,d\lambda
              + \mathrm{KL}\big(q(x_T|x_0)\,\|\,p_T\big) - \mathbb{E}\log p(x_0|x_1)

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
    def _sizes(self) -> tuple[int, int, int]:
        return self.num_samples, self.num_times, self.num_products

    def check(self, process: ReverseProcess) -> None:
        """Gaussian diffusions only."""
        require_gaussian("PathIntegral", process)

    def calls(self, process: ReverseProcess) -> int:
        """One call for each point and product, and one for each draw of the last step."""
        return num_calls(process, self._sizes)

    def estimate(self, key: Array, process: ReverseProcess, x_0: Array) -> Estimate:
        """log p(x_0) for one example, shape () in nats; smooth in `x_0` for one `key`."""
        diffusion: Any = process.diffusion
        x_0 = jnp.asarray(x_0, diffusion.schedule.times.dtype)
        population = self._population(diffusion)
        draws = draw(key, process, x_0, population, self._sizes, self.chunk)
        mean, error = mean_and_error(draws.reconstruction - draws.integral)
        kl = _terminal_kl(population, diffusion.standardize(x_0), log_snr_ends(diffusion.schedule)[0])
        terms = PathTerms(jnp.mean(draws.integral), jnp.mean(draws.reconstruction), kl)
        return Estimate(mean - kl, error.value, terms, "bound on average", error.degrees_of_freedom)

    def examine(self, key: Array, process: ReverseProcess, x_0: Array, estimate: Estimate) -> None:
        """Warn if T is too small for `accuracy`."""
        if self.accuracy is not None:
            warn_if_coarse("PathIntegral", key, process, x_0, self.accuracy)

    def _population(self, diffusion: Any) -> Gaussian:
        """The moments, standardised."""
        loc = jnp.zeros(()) if self.loc is None else diffusion.standardize(self.loc)
        return Gaussian(loc, jnp.ones(()) if self.scale is None else jnp.square(self.scale / diffusion.scale))


def _terminal_kl(population: Gaussian, z_0: Array, log_snr: Array) -> Array:
    """KL(q(x_T|x_0) ‖ p_T) for Gaussian data with the moments of `population`, exact, shape ()."""
    kept, lost = jnp.exp(-jnp.logaddexp(0.0, -log_snr)), jnp.exp(-jnp.logaddexp(0.0, log_snr))
    spread = kept * population.variance + lost
    square = lost + kept * jnp.square(z_0 - population.loc)
    return 0.5 * jnp.sum(square / spread - 1 + jnp.log(spread / lost))
