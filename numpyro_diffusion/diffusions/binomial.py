"""Binomial diffusion: bits that are replaced by fresh coin tosses, one by one.

With probability β_t a bit is tossed anew with P(1) = ρ, so that q(x_t = 1 | x_0) = ᾱ_t x_0 + (1 − ᾱ_t) ρ, and the
bridge follows by Bayes' rule, bit by bit (Sohl-Dickstein et al. 2015, §2.4.1 and Table App. 1). Step, marginal, bridge
and entropies are exact. A reverse kernel averages the bridge over independent bits x_0: exact for each bit, while what
the bits of one state say of one another is left to the number of steps.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.nn import log_sigmoid
from jax.scipy.special import entr, xlog1py, xlogy
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from .._checks import check_binary, check_real, is_concrete
from .._shapes import AnyExample, AnyTime, Example
from ..laws import bit_logits, bits
from ..schedules import AbstractSchedule
from .base import AbstractDiscreteDiffusion


class BinomialDiffusion(AbstractDiscreteDiffusion):
    r"""Each bit is kept with probability :math:`1-\beta_t`, and otherwise tossed anew with P(1) = `rate`.

    Source: [2015] Table App. 1, which prints rate ½; the paper's heartbeat run used the data's own rate, 0.2.
    Everything is computed with logits, so that bits that are nearly certain keep their precision.

    Args:
        schedule: how fast the data are forgotten.
        rate: ρ, the probability of a one under the noise law π = Bernoulli(ρ), in (0, 1).

    Example:
        >>> diffusion = nd.BinomialDiffusion(nd.schedules.erasing(20), rate=0.2)
        >>> diffusion.marginal(jnp.array([0, 1, 1]), 5).sample(jax.random.key(0)).shape  # x_5 given x_0
        (3,)

    Raises:
        ValueError: `rate` outside (0, 1).
    """

    schedule: AbstractSchedule
    _rate: Array

    def __init__(self, schedule: AbstractSchedule, rate: ArrayLike = 0.5) -> None:
        if not isinstance(schedule, AbstractSchedule):
            raise TypeError(f"schedule: expected a schedule from numpyro_diffusion.schedules, got {schedule!r}")
        check_real("rate", rate)
        if is_concrete(rate) and not ((0 < np.asarray(rate)) & (np.asarray(rate) < 1)).all():
            raise ValueError(f"rate: expected a probability strictly between 0 and 1, got {rate}")
        self.schedule = schedule
        self._rate = jnp.asarray(rate, dtype=float)

    @property
    def rate(self) -> Float[Array, "..."]:
        """P(1) under the noise law; a constant, never trained."""
        return jax.lax.stop_gradient(self._rate)

    @property
    def element_support(self) -> constraints.Constraint:
        """0 or 1."""
        return constraints.boolean

    @property
    def num_values(self) -> int:
        """2."""
        return 2

    def description(self) -> dict[str, Array | str]:
        """``"binomial"`` and `rate`."""
        return {"family": "binomial", "rate": self.rate}

    def check_values(self, name: str, x: ArrayLike) -> None:
        """Only 0 and 1."""
        check_binary(name, x)

    @property
    def heads(self) -> Mapping[str, int]:
        """Log-odds of x_0, and those that [2015] adds to the forward kernel's."""
        return {"logits": 1, "mean": 1}

    def network_input(self, x_t: AnyExample) -> Float[Array, "*event"]:
        """0.0 and 1.0."""
        return jnp.asarray(x_t, dtype=self.schedule.times.dtype)

    def posterior_from_logits(self, logits: Float[Array, "*event"], x_t: Example) -> dist.Distribution:
        """Independent bits."""
        del x_t
        return bits(logits)

    def posterior_of_values(self, log_probs: Float[Array, "*event values"], x_t: Example) -> dist.Distribution:
        """Independent bits."""
        del x_t
        return bits(log_probs[..., 1] - log_probs[..., 0])

    def corrected(
        self, posterior: dist.Distribution, output: tuple[Float[Array, "..."], Float[Array, "..."]], x_t: Example
    ) -> dist.Distribution:
        """The first output, added to the law's log-odds."""
        del x_t
        return bits(bit_logits(posterior) + output[0])

    def kernel_from_heads(
        self,
        output: tuple[Float[Array, "..."], Float[Array, "..."]],
        x_t: Example,
        t: AnyTime,
        s: AnyTime | None = None,
    ) -> dist.Distribution:
        """The forward kernel with the first output added to its log-odds."""
        return bits(bit_logits(self.reverse_prior_step(x_t, t, s)) + output[0])

    def implied_posterior(self, kernel: dist.Distribution, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The bits x_0 whose averaged bridge is the kernel."""
        on = self.bridge(x_t, jnp.ones_like(kernel.mean), t).mean
        off = self.bridge(x_t, jnp.zeros_like(kernel.mean), t).mean
        one = jnp.clip((kernel.mean - off) / (on - off), 1e-6, 1 - 1e-6)
        return bits(jnp.log(one) - jnp.log1p(-one))

    def step(self, x_s: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_t | x_s), exact; event shape that of `x_s`."""
        check_binary("x_s", x_s)
        return bits(self._stay_logits(x_s, self.schedule.beta(t, s)))

    def marginal(self, x_0: AnyExample, t: AnyTime) -> dist.Distribution:
        """q(x_t | x_0), exact; event shape that of `x_0`."""
        check_binary("x_0", x_0)
        return bits(self._stay_logits(x_0, self.schedule.noise_variance(t)))

    def bridge(self, x_t: AnyExample, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_s | x_t, x_0), exact and factorised over bits; event shape that of `x_t`."""
        check_binary("x_t", x_t)
        check_binary("x_0", x_0)
        s = jnp.asarray(t) - 1 if s is None else s
        log_odds = self._stay_logits(x_0, self.schedule.noise_variance(s))
        return bits(log_odds + self._step_log_ratio(x_t, t, s))

    def average_bridge(
        self, x_t: AnyExample, posterior: dist.Distribution, t: AnyTime, s: AnyTime | None = None
    ) -> dist.Distribution:
        """The bridge averaged over independent bits x_0: exact for each bit, factorised over bits."""
        logits = bit_logits(posterior)
        on = bit_logits(self.bridge(x_t, jnp.ones_like(logits), t, s))
        off = bit_logits(self.bridge(x_t, jnp.zeros_like(logits), t, s))
        one = jnp.logaddexp(log_sigmoid(logits) + log_sigmoid(on), log_sigmoid(-logits) + log_sigmoid(off))
        zero = jnp.logaddexp(log_sigmoid(logits) + log_sigmoid(-on), log_sigmoid(-logits) + log_sigmoid(-off))
        return bits(one - zero)

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        """Bernoulli(rate) on every bit; event shape `event_shape`."""
        logits = jnp.log(self.rate) - jnp.log1p(-self.rate)
        return bits(jnp.broadcast_to(logits, event_shape))

    def reverse_prior_step(self, x_t: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """The chain is reversible under π, so this is `step` with its ends exchanged."""
        return self.step(x_t, t, s)

    def marginal_from_noise(self, noise: Float[Array, "*event"], x_0: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        """Draw from q(x_t | x_0): ones where the noise is below their probability."""
        one = jnp.where(jnp.asarray(x_0) > 0.5, 1.0, 0.0)
        toss = self.schedule.noise_variance(t)
        return (noise < one * (1 - toss) + toss * self.rate).astype(noise.dtype)

    def marginal_entropy(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """Σ h(ᾱ_t x_0 + (1 − ᾱ_t)ρ) nats; depends on x_0 unless ρ = ½."""
        return jnp.sum(_entropy(self._activity(x_0, t)))

    def step_entropy(self, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> Float[Array, ""]:
        """Σ [m h(1 − β + ρβ) + (1 − m) h(ρβ)] nats, m the probability of a one at `s`."""
        s = jnp.asarray(t) - 1 if s is None else s
        beta, active = self.schedule.beta(t, s), self._activity(x_0, s)
        return jnp.sum(active * _entropy(beta * (1 - self.rate)) + (1 - active) * _entropy(beta * self.rate))

    def expected_log_terminal(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """E log π(X^t) given x_0, in nats."""
        active = self._activity(x_0, t)
        return jnp.sum(xlogy(active, self.rate) + xlog1py(1 - active, -self.rate))

    def terminal_entropy(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """Σ h(ρ) nats."""
        return jnp.sum(jnp.broadcast_to(_entropy(self.rate), event_shape))

    def _activity(self, x_0: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        toss = self.schedule.noise_variance(t)
        return jnp.asarray(x_0) * (1 - toss) + toss * self.rate

    def _stay_logits(self, x: ArrayLike, toss: Array) -> Array:
        """Logits of a bit that was `x` and has been tossed anew with probability `toss`."""
        on = jnp.log1p(-toss * (1 - self.rate)) - jnp.log(toss * (1 - self.rate))
        off = jnp.log(toss * self.rate) - jnp.log1p(-toss * self.rate)
        return jnp.where(jnp.asarray(x) > 0.5, on, off)

    def _step_log_ratio(self, x_t: AnyExample, t: AnyTime, s: ArrayLike) -> Array:
        """log q(x_t | x_s = 1) − log q(x_t | x_s = 0), per bit."""
        beta = self.schedule.beta(t, s)
        one = jnp.log1p(-beta * (1 - self.rate)) - jnp.log(beta * self.rate)
        zero = jnp.log(beta * (1 - self.rate)) - jnp.log1p(-beta * self.rate)
        return jnp.where(jnp.asarray(x_t) > 0.5, one, zero)


def _entropy(probability: Array) -> Array:
    return entr(probability) + entr(1 - probability)
