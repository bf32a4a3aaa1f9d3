"""Gaussian diffusion: variance-preserving noise around a location, in the units of the data.

In units in which the noise law is N(0, 1) the marginal is q(x_t | x_0) = N(√ᾱ_t x_0, 1 − ᾱ_t), and the bridge is normal
with a mean that is linear in x_0 and x_t and the variance β̃_{t|s} (Sohl-Dickstein et al. 2015, Table App. 1; Ho, Jain
and Abbeel 2020, eqs. 4, 6 and 7). All of it is exact but the averaged bridge, which is the normal law with the mean and
variance of each element: exact where x_0 given x_t is normal with independent elements, the best such fit elsewhere.
The variance-exploding form of McAllester (2023) is the same process with x_t rescaled.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Real, Shaped
from numpyro.distributions import constraints

from .. import laws
from .._checks import check_real, check_step, checked_location, checked_scale
from .._shapes import AnyExample, AnyTime, Example
from ..schedules import AbstractSchedule
from .base import AbstractDiffusion

LARGEST_CHANGE = 4.0  # of the log variance, that a network may make


class GaussianDiffusion(AbstractDiffusion):
    r""":math:`x_t - m = \sqrt{\bar\alpha_t}\,(x_0 - m) + \sqrt{1-\bar\alpha_t}\,c\,\varepsilon`, with π = N(m, c²).

    This is the chain of [2015] Table App. 1 and [DDPM 2020] eq. 4 run on standardised data (x − m)/c and written in
    the data's own units, so that every density and entropy counts the scaling's Jacobian by itself.

    Args:
        schedule: how fast the data are forgotten.
        loc: m, the data's location; scalar or broadcastable to one example.
        scale: c, the data's scale; scalar or broadcastable to one example, positive. The defaults are the papers'.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20), loc=10.0, scale=2.0)
        >>> x_0 = jnp.array([9.0, 12.0, 10.5])
        >>> diffusion.marginal(x_0, 5).sample(jax.random.key(0)).shape  # x_5 given x_0
        (3,)

    Raises:
        ValueError: `loc` not finite, `scale` not positive, or so large or small that its square overflows.
    """

    schedule: AbstractSchedule
    _loc: Array
    _scale: Array

    def __init__(self, schedule: AbstractSchedule, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> None:
        if not isinstance(schedule, AbstractSchedule):
            raise TypeError(f"schedule: expected a schedule from numpyro_diffusion.schedules, got {schedule!r}")
        self.schedule = schedule
        self._loc, self._scale = checked_location("loc", loc), checked_scale("scale", scale)

    @property
    def loc(self) -> Float[Array, "..."]:
        """Location of the noise law; a constant, never trained."""
        return jax.lax.stop_gradient(self._loc)

    @property
    def scale(self) -> Float[Array, "..."]:
        """Standard deviation of the noise law; a constant, never trained."""
        return jax.lax.stop_gradient(self._scale)

    @property
    def element_support(self) -> constraints.Constraint:
        """Real numbers."""
        return constraints.real

    def description(self) -> dict[str, Array | str]:
        """``"gaussian"``, `loc` and `scale`."""
        return {"family": "gaussian", "loc": self.loc, "scale": self.scale}

    @property
    def is_gaussian(self) -> bool:
        """True."""
        return True

    def check_values(self, name: str, x: ArrayLike) -> None:
        """Real numbers, of any size."""
        check_real(name, x)

    @property
    def heads(self) -> Mapping[str, int]:
        """Three that predict a point, and the pair of [2015]."""
        return {"noise": 1, "data": 1, "velocity": 1, "mean": 2}

    def network_input(self, x_t: AnyExample) -> Float[Array, "*event"]:
        """Standardised."""
        return self.standardize(x_t)

    def kernel_from_heads(
        self,
        output: tuple[Float[Array, "..."], Float[Array, "..."]],
        x_t: Example,
        t: AnyTime,
        s: AnyTime | None = None,
    ) -> dist.Distribution:
        """Σ = σ(o^Σ + σ⁻¹(β_t)) and μ = (z − o^μ)√(1−Σ) + o^μ, standardised. Source: [2015] eqs. 64-65."""
        beta, z = self.schedule.beta(t, s), self.standardize(x_t)
        shift, log_odds = output
        variance = jax.nn.sigmoid(log_odds + jnp.log(beta) - jnp.log1p(-beta))
        pull = variance / (1 + jnp.sqrt(1 - variance))  # 1 − √(1−Σ), exact for small Σ too
        return laws.normal(self.unstandardize(z + pull * (shift - z)), variance * self.scale**2)

    def implied_posterior(self, kernel: dist.Distribution, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The x_0 whose bridge has the kernel's mean; its variance from the kernel's, at least 0."""
        from_data, from_noise, variance = self.bridge_coefficients(t)
        mean = (self.standardize(kernel.mean) - from_noise * self.standardize(x_t)) / from_data
        excess = kernel.variance / self.scale**2 - variance
        left = jnp.maximum(excess, 0.0) / from_data**2
        return laws.normal(self.unstandardize(mean), left * self.scale**2)

    def corrected(
        self, posterior: dist.Distribution, output: tuple[Float[Array, "..."], Float[Array, "..."]], x_t: Example
    ) -> dist.Distribution:
        """Mean m − s·o and variance s² exp(v), v between ±4, where m and s are the law's own and (o, v) the output."""
        del x_t
        mean, variance = laws.mean_and_variance(posterior)
        grown = variance * jnp.exp(LARGEST_CHANGE * jnp.tanh(output[1] / LARGEST_CHANGE))
        return laws.normal(mean - jnp.sqrt(variance) * output[0], grown)

    def simple_loss(self, posterior: dist.Distribution, x_0: Example, t: AnyTime) -> Float[Array, ""]:
        """‖ε − ε̂‖², of the noise that the prediction of x_0 implies, shape ()."""
        error = self.standardize(x_0) - self.standardize(posterior.mean)
        return jnp.exp(self.schedule.log_snr(t)) * jnp.sum(jnp.square(error))

    def standardize(self, x: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
        """From data units to units in which the noise law is N(0, 1)."""
        check_real("x", x)
        return (jnp.asarray(x) - self.loc) / self.scale

    def unstandardize(self, z: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
        """From units in which the noise law is N(0, 1) to data units."""
        return self.loc + self.scale * z

    def to_exploding(self, x_t: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        r"""The same state in the variance-exploding form: :math:`m + (x_t - m)/\sqrt{\bar\alpha_t}`, shape of `x_t`.

        It is :math:`x_0 + \sigma_t c\,\varepsilon` with :math:`\sigma_t^2 = (1-\bar\alpha_t)/\bar\alpha_t`, the time
        of McAllester (2023), who lets the noise grow and leaves the data as they are.
        """
        return self.unstandardize(self.standardize(x_t) / jnp.sqrt(self.schedule.alpha_bar(t)))

    def from_exploding(self, y_t: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        """The inverse of `to_exploding`, shape of `y_t`."""
        return self.unstandardize(self.standardize(y_t) * jnp.sqrt(self.schedule.alpha_bar(t)))

    def step(self, x_s: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_t | x_s), exact; event shape that of `x_s`."""
        beta = self.schedule.beta(t, s)
        return self._normal(jnp.sqrt(1 - beta) * self.standardize(x_s), beta)

    def marginal(self, x_0: AnyExample, t: AnyTime) -> dist.Distribution:
        """q(x_t | x_0), exact; event shape that of `x_0`."""
        alpha_bar, noise_variance = self.schedule.signal_and_noise(t)
        return self._normal(jnp.sqrt(alpha_bar) * self.standardize(x_0), noise_variance)

    def bridge(self, x_t: AnyExample, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_s | x_t, x_0), exact; event shape that of `x_t`. Source: [DDPM 2020] eqs. 6-7."""
        from_data, from_noise, variance = self.bridge_coefficients(t, s)
        return self._normal(from_data * self.standardize(x_0) + from_noise * self.standardize(x_t), variance)

    def average_bridge(
        self, x_t: AnyExample, posterior: dist.Distribution, t: AnyTime, s: AnyTime | None = None
    ) -> dist.Distribution:
        """The Gaussian with the mean and variance of the bridge averaged over `posterior`.

        Exact when x_0 given x_t has the law that `posterior` says; where that is only its mean and variance, the best
        Gaussian fit element by element.

        Raises:
            TypeError: a posterior of another law than a normal one.
        """
        own_mean, own_variance = laws.mean_and_variance(posterior)
        from_data, from_noise, variance = self.bridge_coefficients(t, s)
        mean = from_data * self.standardize(own_mean) + from_noise * self.standardize(x_t)
        return self._normal(mean, variance + from_data**2 * own_variance / self.scale**2)

    def bridge_coefficients(
        self, t: Real[ArrayLike, "#*t"], s: Real[ArrayLike, "#*t"] | None = None
    ) -> tuple[Float[Array, "*t"], Float[Array, "*t"], Float[Array, "*t"]]:
        """Weights of x_0 and x_t in the bridge's mean, and its variance, in standardised units."""
        check_step(t, s, self.num_steps)
        schedule, s = self.schedule, jnp.asarray(t) - 1 if s is None else s
        now, before = schedule.log_snr(t), schedule.log_snr(s)
        signal_t, noise_t, signal_s, noise_s = (jax.nn.sigmoid(ratio) for ratio in (now, -now, before, -before))
        gained = -jnp.expm1(now - before)  # β_{t|s} / (1 − ᾱ_t)
        return jnp.sqrt(signal_s) * gained, jnp.sqrt(signal_t / signal_s) * noise_s / noise_t, noise_s * gained

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        """N(loc, scale²) on every element; event shape `event_shape`."""
        return self._normal(jnp.zeros(event_shape), jnp.ones(()))

    def reverse_prior_step(self, x_t: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """N(√α x_t, β): the chain is reversible under π, so this is `step` with its ends exchanged."""
        return self.step(x_t, t, s)

    def marginal_noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Standard normal noise."""
        return jax.random.normal(key, shape, dtype=self.schedule.times.dtype)

    def noise_from_uniform(self, uniform: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Standard normal noise."""
        return jax.scipy.special.ndtri(uniform).astype(self.schedule.times.dtype)

    def mirror_noise(self, noise: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Minus the noise."""
        return -noise

    def marginal_from_noise(self, noise: Float[Array, "*event"], x_0: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        """Reparameterised draw from q(x_t | x_0): differentiable in x_0 and in a learned schedule."""
        alpha_bar, noise_variance = self.schedule.signal_and_noise(t)
        return self.unstandardize(jnp.sqrt(alpha_bar) * self.standardize(x_0) + jnp.sqrt(noise_variance) * noise)

    def marginal_entropy(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """½ Σ log 2πe(1 − ᾱ_t)c² nats."""
        return self._entropy(x_0, self.schedule.noise_variance(t))

    def step_entropy(self, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> Float[Array, ""]:
        """½ Σ log 2πe β_t c² nats."""
        return self._entropy(x_0, self.schedule.beta(t, s))

    def expected_log_terminal(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """E log π(X^t) given x_0: a Gaussian's second moment, in nats."""
        alpha_bar, noise_variance = self.schedule.signal_and_noise(t)
        square = alpha_bar * self.standardize(x_0) ** 2 + noise_variance
        return -0.5 * jnp.sum(square + jnp.log(2 * jnp.pi) + 2 * jnp.log(self.scale))

    def terminal_entropy(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """½ Σ log 2πe c² nats."""
        return self._entropy(jnp.zeros(event_shape), jnp.ones(()))

    def _entropy(self, x: ArrayLike, variance: Array) -> Array:
        per_element = 0.5 * jnp.log(2 * jnp.pi * jnp.e * variance) + jnp.log(self.scale)
        return jnp.sum(jnp.broadcast_to(per_element, jnp.shape(x)))

    def _normal(self, mean: Array, variance: Array) -> dist.Distribution:
        """Normal with standardised `mean` and `variance`, in data units, one event."""
        scale = self.scale * jnp.sqrt(variance)  # not broadcast: its logarithm is then taken once, not per element
        return dist.Normal(self.unstandardize(mean), scale, validate_args=False).to_event(jnp.ndim(mean))


def require_gaussian(
    diffusion: AbstractDiffusion, expected: str = "diffusion: expected a GaussianDiffusion", hint: str = ""
) -> GaussianDiffusion:
    """Return `diffusion` if it is a Gaussian one; `expected` names the argument, `hint` what serves other families.

    Raises:
        ValueError: another family.
    """
    if not isinstance(diffusion, GaussianDiffusion):
        raise ValueError(f"{expected}, got {type(diffusion).__name__}{hint}")
    return diffusion
