r"""Products and powers of priors: Π p_i(x)^{β_i}, as one chain with weights.

The chains of all priors go through the same noise, so that the densities of one path x_0 … x_T multiply:

.. math:: \gamma(x_0 \dots x_T) = \prod_i p_i(x_0 \dots x_T)^{\beta_i}\, q(x_1 \dots x_T | x_0)^{1 - \sum \beta_i}

is the target, step by step a normal kernel times a mass. Its marginal in x_0 is Π p_i(x_0)^{β_i} times the mean over q
of Π (p_i(x_1 … x_T | x_0)/q(x_1 … x_T | x_0))^{β_i}: 1 where the reverse chains invert q exactly, and nearer to it the
tighter the bounds K of the priors are. Skreta et al. 2025 weigh the same products in continuous time (Feynman–Kac).
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .. import laws
from .._checks import alike, is_concrete
from .._shapes import AnyTime, Example
from ..denoisers import AbstractDenoiser
from ..diffusions import AbstractDiffusion
from ..factors import AbstractFactor, Product
from ..last_steps import AbstractLastStep
from ..likelihoods import AbstractLikelihood, Estimate
from ..process import ReverseProcess
from .parts import PriorParts


class Pool(AbstractDenoiser):
    """The denoisers of several priors with one diffusion, multiplied: kernels are normal laws with a mass.

    Args:
        parts: what is multiplied.
        powers: β_i, positive, shape (len(parts),).
    """

    parts: tuple[PriorParts, ...]
    powers: Array

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The normal law of x_0 given x_t that the priors' laws make together."""
        return self._pooled_posterior(diffusion, [part.posterior(diffusion, x_t, t) for part in self._each], x_t, t)

    def denoise(
        self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime, s: AnyTime | None = None
    ) -> tuple[dist.Distribution, dist.Distribution]:
        """Posterior and kernel together; the kernel is an `UnnormalisedNormal`."""
        both = [part.denoise(diffusion, x_t, t, s) for part in self._each]
        s = jnp.asarray(t) - 1 if s is None else s
        posterior = self._pooled_posterior(diffusion, [posterior for posterior, _ in both], x_t, t)
        kernel = laws.pooled([kernel for _, kernel in both], self.powers, backward(diffusion, x_t, t, s))
        # The chain of the product itself, if x_0 given x_t were normal: then all weights are equal.
        led = diffusion.average_bridge(x_t, posterior, t, s)
        return posterior, laws.drawn_as(kernel, led, laws.log_ahead(posterior))

    def terminal(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> dist.Distribution:
        """The priors' terminal laws, multiplied; drawn as π."""
        product = laws.pooled([part.terminal(diffusion, event_shape) for part in self._each], self.powers)
        return laws.drawn_as(product, diffusion.terminal(event_shape), jnp.zeros(()))

    @property
    def is_normalised(self) -> bool:
        """False."""
        return False

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """That of the product of normal laws with the priors' covariances, if all are known; *approximate*."""
        found = [each for part in self.parts if (each := _covariance(part.process, diffusion)) is not None]
        if len(found) < len(self.parts):
            return None
        return jnp.linalg.inv(jnp.tensordot(self.powers, jnp.linalg.inv(jnp.stack(found)), 1))

    @property
    def _each(self) -> tuple[AbstractDenoiser, ...]:
        return tuple(part.process.denoiser for part in self.parts)

    def _pooled_posterior(
        self, diffusion: Any, posteriors: list[dist.Distribution], x_t: Array, t: ArrayLike
    ) -> dist.Distribution:
        # Where a denoiser knows no variance, that of data which vary as the noise law does.
        usual = (1 - diffusion.schedule.alpha_bar(t)) * diffusion.scale**2
        filled = [laws.normal(law.mean, jnp.where(law.variance > 0, law.variance, usual)) for law in posteriors]
        return laws.pooled(filled, self.powers, backward(diffusion, x_t, t, 0.0), least=1.0)


class PooledStep(AbstractLastStep):
    """The last steps of the priors of a `Pool`, multiplied."""

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """The normal law of x_0 given x_1 with its mass."""
        pool: Any = denoiser
        kernels = [part.process.last_kernel(x_1) for part in pool.parts]
        return laws.pooled(kernels, pool.powers, backward(diffusion, x_1, 1.0, 0.0))


class PooledLikelihood(AbstractLikelihood):
    """Σ β_i log p_i(x_0), each by its own estimator; the product's own normalising constant is left out."""

    chunk: int | None = eqx.field(static=True, default=None)

    def estimate(self, key: PRNGKeyArray, process: ReverseProcess, x_0: Example) -> Estimate:
        """The estimate for one unbatched example; its standard error is the most that the parts' errors add up to."""
        pool: Any = process.denoiser
        found = [part.likelihood.estimate(key, part.process, x_0) for part in pool.parts]
        value = pool.powers @ jnp.stack([each.value for each in found])
        error = pool.powers @ jnp.stack([each.standard_error for each in found])
        freedom = jnp.min(jnp.stack([jnp.asarray(each.degrees_of_freedom, dtype=float) for each in found]))
        return Estimate(value, error, tuple(found), degrees_of_freedom=freedom)


class Volume(AbstractFactor):
    """|det dx/dz|^{−power} at x = T(z): what the density of a product of x is more than one of z."""

    transform: Any
    power: Array

    def log_r(self, x: Example) -> Float[Array, ""]:
        """Its log in nats, shape ()."""
        z = self.transform.inv(x)
        return -self.power * jnp.sum(self.transform.log_abs_det_jacobian(z, x))


def pool_parts(parts: tuple[PriorParts, ...], powers: Float[Array, " priors"]) -> tuple[PriorParts, AbstractFactor]:
    """What a product of priors is made of, and the factor that its coordinates need.

    Raises:
        ValueError: priors that do not go together.
    """
    first = parts[0]
    for part in parts:
        _check_together(first, part)
    process, (key_data, key_impl) = first.process, (first.key_data, first.key_impl)
    denoiser = Pool(parts, powers)
    whole = ReverseProcess(process.diffusion, denoiser, process.event_shape, last_step=PooledStep())
    made = PriorParts(whole, PooledLikelihood(), first.sampler, key_data, key_impl, first.transform)
    if first.transform is None:
        return made, Product(())
    return made, Volume(first.transform, jnp.sum(powers) - 1)


def check_power(power: Any) -> Float[Array, ""]:
    """A power as an array of shape ().

    Raises:
        TypeError: no number.
        ValueError: an array of several; a known one that is not positive and finite.
    """
    if isinstance(power, bool | str) or not jnp.issubdtype(jnp.result_type(power), jnp.number):
        raise TypeError(f"beta: expected a positive number, got {power!r}")
    power = jnp.asarray(power, dtype=float)
    if power.shape != ():
        raise ValueError(f"beta: expected one number, got shape {power.shape}; expand the power instead")
    if is_concrete(power) and not 0 < float(np.asarray(power)) < np.inf:
        raise ValueError(f"beta: expected a positive number, got {power}")
    return power


def backward(diffusion: Any, x_t: Example, t: AnyTime, s: AnyTime) -> laws.Backward:
    """q(x_t | x_s) as a function of x_s."""
    beta = diffusion.schedule.beta(t, s)
    residual = lambda x_s: x_t - diffusion.step(x_s, t, s).mean
    return laws.Backward(jnp.sqrt(1 - beta), beta * diffusion.scale**2, residual)


def _covariance(process: ReverseProcess, diffusion: AbstractDiffusion) -> Array | None:
    moments = process.moments
    if moments is None:
        return process.denoiser.covariance(diffusion, process.event_shape)
    if moments.basis is None:
        return None
    return (moments.basis * moments.variances) @ moments.basis.T


def _check_together(first: PriorParts, other: PriorParts) -> None:
    ours, theirs = first.process, other.process
    for process in (ours, theirs):
        if not process.diffusion.is_gaussian or process.is_discrete:
            got = "grey levels" if process.diffusion.is_gaussian else type(process.diffusion).__name__
            raise ValueError(f"prior: expected priors of real numbers to multiply, got one of {got}")
        if process.denoiser.wanted is not None and process.denoiser.wanted.value is None:
            raise ValueError("prior: expected priors that have their context to multiply, got one to be given one")
    if ours.event_shape != theirs.event_shape:
        raise ValueError(
            f"prior: expected priors of one event shape to multiply, got {ours.event_shape} and {theirs.event_shape}"
        )
    if not alike(ours.diffusion, theirs.diffusion):
        raise ValueError(
            "prior: expected priors of one diffusion to multiply, with the same schedule, steps, loc and scale, got "
            "two; nd.fit learns several priors with one GaussianDiffusion"
        )
    if not alike(first.transform, other.transform):
        raise ValueError(f"prior: expected one transform, got {first.transform!r} and {other.transform!r}")
    steps = [part.sampler.chain_steps(part.process) for part in (first, other)]
    if steps[0] != steps[1]:
        raise ValueError(f"prior: expected samplers of as many steps to multiply, got {steps[0]} and {steps[1]}")
