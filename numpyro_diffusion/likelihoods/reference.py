"""A Gaussian law of the data as a control variate: its denoiser's errors are known point by point and on average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..process import LearnedStep, ReverseProcess


class Gaussian(NamedTuple):
    """A Gaussian law of standardised data, element by element.

    Attributes:
        loc: mean, broadcastable to one example.
        variance: likewise, positive.
    """

    loc: Array | float
    variance: Array | float

    def error(self, z_0: Array, log_snr: Array, noise: Array) -> Array:
        """½ ‖ε − ε̂‖² of this law's exact denoiser, shape ()."""
        kept, lost = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        spread = kept * self.variance + lost
        gap = jnp.sqrt(kept * lost) * (z_0 - self.loc) - kept * self.variance * noise
        return 0.5 * jnp.sum(jnp.square(gap / spread))

    def mean_error(self, z_0: Array, log_snr: Array) -> Array:
        """`error` averaged over standard normal noise, exact, shape ()."""
        kept, lost = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        spread = kept * self.variance + lost
        square = kept * lost * jnp.square(z_0 - self.loc) + jnp.square(kept * self.variance)
        return 0.5 * jnp.sum(square / jnp.square(spread))

    def path_error(self, z_0: Array, log_snr: Array, noise: Array) -> Array:
        """½ (ε̂·(ε̂ − ε) − div (ε̂ − ε)) of this law's exact denoiser, of mean `mean_error`, shape ()."""
        kept, lost = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        spread = kept * self.variance + lost
        share = jnp.broadcast_to(kept * self.variance / spread, noise.shape)
        gap = jnp.sqrt(kept * lost) * (z_0 - self.loc) / spread - share * noise
        return 0.5 * jnp.sum((noise + gap) * gap + share)

    def integral(self, z_0: Array, low: Array, high: Array) -> Array:
        """`mean_error` integrated over log-SNR from `low` to `high`, exact, shape ()."""
        return self._antiderivative(z_0, high) - self._antiderivative(z_0, low)

    def _antiderivative(self, z_0: Array, log_snr: Array) -> Array:
        scaled = log_snr + jnp.log(self.variance)
        square = jnp.square(z_0 - self.loc) / self.variance
        return 0.5 * jnp.sum(jax.nn.softplus(scaled) + (1 - square) * jax.nn.sigmoid(-scaled))


NOISE_LAW = Gaussian(0.0, 1.0)  # of no dtype, so that it serves single and double precision in one session


def step_control(process: ReverseProcess, x_0: Array, t: Array, noise: Array) -> Array:
    """What `step_kl` would be for data that are noise, less its average over `noise`; shape (), mean 0."""
    diffusion: Any = process.diffusion
    schedule, z_0 = diffusion.schedule, diffusion.standardize(x_0)
    kept, lost = schedule.shares(t)
    # Of the noise law's error, which is ᾱ times this square, ᾱ/(1 − β) is ᾱ a step earlier: no division by 0 at β = 1.
    square = jnp.square(jnp.sqrt(lost) * z_0 - jnp.sqrt(kept) * noise)
    weight = schedule.beta(t) * schedule.alpha_bar(t - 1) / lost
    return 0.5 * weight * jnp.sum(square - lost * jnp.square(z_0) - kept)


def last_control(process: ReverseProcess, x_0: Array, reference: Gaussian, noise: Array) -> Array:
    """About what `reconstruction` has too little for this `noise`; shape (), mean 0 for any process."""
    diffusion: Any = process.diffusion
    log_snr, z_0 = diffusion.schedule.log_snr(1.0), diffusion.standardize(x_0)
    excess = reference.error(z_0, log_snr, noise) - reference.mean_error(z_0, log_snr)
    log_scale = process.last_step.log_scale if isinstance(process.last_step, LearnedStep) else None
    return excess if log_scale is None else excess * jnp.mean(jnp.exp(-2 * log_scale - log_snr))
