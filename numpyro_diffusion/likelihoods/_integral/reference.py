"""A Gaussian law of the data as a control variate: its denoiser's errors are known point by point and on average.

For Gaussian data the exact denoiser's squared error is a known function of x_0, noise and λ, with a known mean over the
noise and a known integral over λ. Taking it off an estimate and adding its mean (a control variate) is free of bias
whatever the prior, and takes out most of the noise where the prior is near to such a law. The integral is that of Guo,
Shamai and Verdú (2005), with a Gaussian reference as in Kong, Brekelmans and Ver Steeg (2023).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._products import dot
from ..._shapes import Example, Time
from ...moments import LARGEST_WHOLE, Moments
from ...process import ReverseProcess


class GaussianReference(NamedTuple):
    """A Gaussian law of standardised data, element by element.

    Attributes:
        loc: mean, broadcastable to one example.
        variance: likewise, positive.
    """

    loc: Float[Array, "..."] | float
    variance: Float[Array, "..."] | float

    def error(
        self, z_0: Float[Array, "*event"], log_snr: Float[Array, ""], noise: Float[Array, "*event"]
    ) -> Float[Array, ""]:
        """½ ‖ε − ε̂‖² of this law's exact denoiser, shape ()."""
        alpha_bar, noise_variance = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        marginal = alpha_bar * self.variance + noise_variance
        gap = jnp.sqrt(alpha_bar * noise_variance) * (z_0 - self.loc) - alpha_bar * self.variance * noise
        return 0.5 * jnp.sum(jnp.square(gap / marginal))

    def mean_error(self, z_0: Float[Array, "*event"], log_snr: Float[Array, ""]) -> Float[Array, ""]:
        """`error` averaged over standard normal noise, exact, shape ()."""
        alpha_bar, noise_variance = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        marginal = alpha_bar * self.variance + noise_variance
        square = alpha_bar * noise_variance * jnp.square(z_0 - self.loc) + jnp.square(alpha_bar * self.variance)
        return 0.5 * jnp.sum(square / jnp.square(marginal))

    def path_error(
        self, z_0: Float[Array, "*event"], log_snr: Float[Array, ""], noise: Float[Array, "*event"]
    ) -> Float[Array, ""]:
        """½ (ε̂·(ε̂ − ε) − div (ε̂ − ε)) of this law's exact denoiser, of mean `mean_error`, shape ()."""
        alpha_bar, noise_variance = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        marginal = alpha_bar * self.variance + noise_variance
        share = jnp.broadcast_to(alpha_bar * self.variance / marginal, noise.shape)
        gap = jnp.sqrt(alpha_bar * noise_variance) * (z_0 - self.loc) / marginal - share * noise
        return 0.5 * jnp.sum((noise + gap) * gap + share)

    def integral(self, z_0: Float[Array, "*event"], low: Float[Array, ""], high: Float[Array, ""]) -> Float[Array, ""]:
        """`mean_error` integrated over log-SNR from `low` to `high`, exact, shape ()."""
        return self._antiderivative(z_0, high) - self._antiderivative(z_0, low)

    def _antiderivative(self, z_0: Array, log_snr: Array) -> Array:
        scaled = log_snr + jnp.log(self.variance)
        square = jnp.square(z_0 - self.loc) / self.variance
        return 0.5 * jnp.sum(jax.nn.softplus(scaled) + (1 - square) * jax.nn.sigmoid(-scaled))


NOISE_LAW = GaussianReference(0.0, 1.0)  # of no dtype, so that it serves single and double precision in one session


class _Turned(NamedTuple):
    """Data and noise along the axes of the prior's covariance, flat and in units of the noise law.

    Attributes:
        law: the Gaussian law of the prior's variances along them, about the noise law's location.
        z_0: the data, shape (d,).
        noise: shape (d,).
    """

    law: GaussianReference
    z_0: Float[Array, " d"]
    noise: Float[Array, " d"]


def step_control(process: ReverseProcess, x_0: Example, t: Time, noise: Float[Array, "*event"]) -> Float[Array, ""]:
    """About what `step_kl` has too much for this `noise`; shape (), mean 0 for any process.

    It is what `step_kl` would be for Gaussian data with the prior's covariance (`known_moments`), less its average over
    `noise`. Kernels have the exact variance for an exact denoiser, otherwise β_t, a network's default.
    """
    diffusion: Any = process.diffusion
    schedule, (law, z_0, noise) = diffusion.schedule, _turned(process, x_0, noise)
    (alpha_bar, noise_variance), before, beta = (
        schedule.signal_and_noise(t),
        schedule.alpha_bar(t - 1),
        schedule.beta(t),
    )
    marginal = alpha_bar * law.variance + noise_variance
    own = law.variance / marginal if process.denoiser.is_exact else 1.0
    # Of the law's error, which is ᾱ times this square, ᾱ/(1 − β) is ᾱ a step earlier: no division by 0 at β = 1.
    weight = before * beta / ((1 - before + before * beta * own) * jnp.square(marginal))
    square = jnp.square(jnp.sqrt(noise_variance) * z_0 - jnp.sqrt(alpha_bar) * law.variance * noise)
    mean = noise_variance * jnp.square(z_0) + alpha_bar * jnp.square(law.variance)
    return 0.5 * jnp.sum(weight * (square - mean))


def moment_last_control(process: ReverseProcess, x_0: Example, noise: Float[Array, "*event"]) -> Float[Array, ""]:
    """`last_control` with the prior's covariance (`known_moments`) in place of a given law; shape (), mean 0."""
    diffusion: Any = process.diffusion
    log_snr, (law, z_0, noise) = diffusion.schedule.log_snr(1.0), _turned(process, x_0, noise)
    log_scale = process.last_step.own_log_scale
    share = jnp.ones_like(z_0)
    if log_scale is not None:
        share = share * jnp.mean(jnp.exp(-2 * log_scale - log_snr))
    elif process.denoiser.is_exact:  # the kernel's variance is that of x_0 given x_1
        share = 1 + jnp.exp(-log_snr) / law.variance
    excess = jax.vmap(lambda law, z, e: law.error(z, log_snr, e) - law.mean_error(z, log_snr))
    return jnp.sum(share * excess(GaussianReference(jnp.zeros_like(z_0), law.variance), z_0, noise))


def known_moments(process: ReverseProcess, dtype: Any) -> Moments:
    """The covariance of x_0, as far as it is known without work.

    The process's own; else the variances of an exact denoiser's elements, up to 256 of them; else the noise law's.
    """
    if process.moments is not None:
        return jax.lax.stop_gradient(process.moments)  # kept with the process, never trained
    size, covariance = math.prod(process.event_shape), None
    if size <= LARGEST_WHOLE:
        covariance = process.denoiser.covariance(process.diffusion, process.event_shape)
    return Moments(jnp.ones(size, dtype) if covariance is None else jnp.diagonal(covariance))


def _turned(process: ReverseProcess, x_0: Array, noise: Array) -> _Turned:
    diffusion: Any = process.diffusion
    z_0, noise = diffusion.standardize(x_0).reshape(-1), noise.reshape(-1)
    moments = known_moments(process, noise.dtype)
    if moments.basis is not None:
        z_0, noise = dot(z_0, moments.basis), dot(noise, moments.basis)
    return _Turned(GaussianReference(0.0, moments.variances), z_0, noise)


def last_control(
    process: ReverseProcess, x_0: Example, reference: GaussianReference, noise: Float[Array, "*event"]
) -> Float[Array, ""]:
    """About what `reconstruction` has too little for this `noise`; shape (), mean 0 for any process."""
    diffusion: Any = process.diffusion
    log_snr, z_0 = diffusion.schedule.log_snr(1.0), diffusion.standardize(x_0)
    excess = reference.error(z_0, log_snr, noise) - reference.mean_error(z_0, log_snr)
    log_scale = process.last_step.own_log_scale
    return excess if log_scale is None else excess * jnp.mean(jnp.exp(-2 * log_scale - log_snr))
