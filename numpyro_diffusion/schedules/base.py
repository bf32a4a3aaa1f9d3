"""What a schedule answers, and one that is given by its table.

A schedule is a decreasing table of log signal-to-noise ratios λ_t = log ᾱ_t − log(1 − ᾱ_t), with λ_0 = ∞ for the data.
ᾱ_t, 1 − ᾱ_t and β_{t|s} = 1 − ᾱ_t/ᾱ_s follow from it without cancellation, however close to 0 or 1 they are. Between
whole steps either λ or ᾱ is interpolated linearly, so that samplers and integrals that take fractional times have one
path to follow; the chain itself is defined by the whole steps alone. That continuous-time methods see a schedule only
through its log-SNR is in Kingma et al. (2021).
"""

from abc import abstractmethod
from functools import partial
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from .._checks import check_choice, check_count, check_finite, check_real, check_step, check_time, is_concrete

Interpolation = Literal["log_snr", "alpha_bar"]
# A schedule that erases everything ends at −∞, where no integral can; at −16 a signal of 3e-4 is left.
LEAST_LOG_SNR = -16.0


class AbstractSchedule(eqx.Module):
    """Base of all schedules; `t` is a scalar or array in [0, T], whole or fractional; others raise where known."""

    times: eqx.AbstractVar[Array]
    interpolation: eqx.AbstractVar[Interpolation]

    @property
    @abstractmethod
    def table(self) -> Float[Array, " steps"]:
        """Log-SNR at t = 0 … T, shape (T + 1,), decreasing; the first is infinite."""

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.times.shape[0] - 1

    @property
    def is_learned(self) -> bool:
        """Whether training changes it."""
        return False

    def trainable(self) -> Any:
        """A tree of booleans like the schedule: which arrays training may change."""
        return jax.tree.map(lambda _: False, self)

    def log_snr(self, t: Shaped[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        r""":math:`\lambda(t)`, linear between neighbouring steps where both are finite.

        Where one is not (next to t = 0, or to a step that erases everything), and for schedules that are linear in
        :math:`\bar\alpha`, the neighbours' :math:`\bar\alpha` are mixed instead.
        """
        check_time("t", t, 0, self.num_steps)
        times = jnp.asarray(t)
        if jnp.issubdtype(times.dtype, jnp.integer):  # nothing to interpolate, so little to compile
            return jnp.take(self.table, times, mode="clip")
        return _log_snr_at(self.table, times.astype(self.times.dtype), self.interpolation)

    def log_alpha_bar(self, t: Shaped[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        r""":math:`\log\bar\alpha_t`, exactly 0 at t = 0."""
        return jax.nn.log_sigmoid(self.log_snr(t))

    def alpha_bar(self, t: Shaped[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        r""":math:`\bar\alpha_t`, the share of the signal's variance that is kept at `t`; 1 at t = 0."""
        return jax.nn.sigmoid(self.log_snr(t))

    def noise_variance(self, t: Shaped[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        r""":math:`1-\bar\alpha_t`, without the rounding of that subtraction."""
        return jax.nn.sigmoid(-self.log_snr(t))

    def beta(self, t: Shaped[ArrayLike, "#*t"], s: Shaped[ArrayLike, "#*t"] | None = None) -> Float[Array, "*t"]:
        r""":math:`\beta_{t|s} = 1 - \bar\alpha_t/\bar\alpha_s` for s < t; `s` is ``t - 1`` unless given."""
        check_step(t, s, self.num_steps)
        s = jnp.asarray(t) - 1 if s is None else s
        now, before = self.log_snr(t), self.log_snr(s)
        return jax.nn.sigmoid(-now) * -jnp.expm1(now - before)

    def signal_and_noise(self, t: Shaped[ArrayLike, "*t"]) -> tuple[Float[Array, "*t"], Float[Array, "*t"]]:
        r""":math:`\bar\alpha_t` and :math:`1-\bar\alpha_t`, both without rounding."""
        log_snr = self.log_snr(t)
        return jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)

    def time(self, t: Shaped[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """What a network is told at step `t`: `t` itself, or the original chain's step after respacing."""
        check_time("t", t, 0, self.num_steps)
        return _time_at(jax.lax.stop_gradient(self.times), jnp.asarray(t, dtype=self.times.dtype))

    def time_at(self, log_snr: Shaped[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        r"""The t in [0, T] at which :math:`\lambda(t)` is `log_snr`; its inverse, of the same shape.

        Beyond the table's ends it is 0 or T.
        """
        log_snr = jnp.asarray(log_snr, dtype=self.times.dtype)
        low = jnp.clip(jnp.searchsorted(-self.table, -log_snr, side="left") - 1, 0, self.num_steps - 1)
        left, right = self.table[low], self.table[low + 1]
        # Of alpha_bar and 1 − alpha_bar the smaller one is interpolated: it has the digits.
        sign = jnp.where(log_snr < 0, 1, -1)
        start, end, here = jax.nn.sigmoid(sign * left), jax.nn.sigmoid(sign * right), jax.nn.sigmoid(sign * log_snr)
        mixed = (here - start) / (end - start)
        if self.interpolation == "alpha_bar":
            return low + jnp.clip(mixed, 0, 1)
        finite = jnp.isfinite(left) & jnp.isfinite(right)
        straight = (jnp.where(finite, left, 1.0) - log_snr) / jnp.where(finite, left - right, 1.0)
        return low + jnp.clip(jnp.where(finite, straight, mixed), 0, 1)

    def balance(self, t: Shaped[Array, " n"], kl: Float[Array, " n"]) -> Float[Array, ""]:
        """What training adds to −K for the steps' own sake: 0, without a gradient unless a schedule says more.

        Args:
            t: steps from 2 to T, drawn uniformly, shape (n,).
            kl: the KL terms at them, in nats, shape (n,).

        Returns:
            Shape ().
        """
        del t
        return jnp.zeros((), kl.dtype)

    def respace(self, num_steps: int) -> "Schedule":
        """The same path in fewer steps, spread evenly; networks are still told the original step.

        Raises:
            ValueError: `num_steps` is not from 2 to T.
        """
        num_steps = check_count("num_steps", num_steps, 2)
        if num_steps > self.num_steps:
            raise ValueError(f"num_steps: expected at most {self.num_steps}, got {num_steps}")
        steps = np.round(np.linspace(0, self.num_steps, num_steps + 1)).astype(int)
        return Schedule(self.table[steps], self.interpolation, self.times[steps])


class Schedule(AbstractSchedule):
    """A fixed schedule, given by its table.

    Args:
        log_snr: log-SNR at t = 0 … T, shape (T + 1,); the first must be infinite.
        interpolation: what is linear between two steps.
        times: what networks are told at each step, shape (T + 1,); 0 … T unless given.

    Raises:
        TypeError: `log_snr` or `times` of no numbers.
        ValueError: fewer than 2 steps, a table that does not decrease, an unknown interpolation, or `times` of another
            shape or not finite.
    """

    log_snr_table: Array
    times: Array
    interpolation: Interpolation = eqx.field(static=True)

    def __init__(
        self, log_snr: ArrayLike, interpolation: Interpolation = "log_snr", times: ArrayLike | None = None
    ) -> None:
        check_real("log_snr", log_snr)
        self.log_snr_table = jnp.asarray(log_snr, dtype=float)
        self.interpolation = check_choice("interpolation", interpolation, get_args(Interpolation))
        if times is not None:
            check_finite("times", times)
        self.times = jnp.arange(self.log_snr_table.size, dtype=float) if times is None else jnp.asarray(times)

    def __check_init__(self) -> None:
        shape = self.log_snr_table.shape
        if len(shape) != 1 or shape[0] < 3:
            raise ValueError(f"num_steps: expected a table of at least 2 steps (T >= 2), got shape {shape}")
        if self.times.shape != shape:
            raise ValueError(f"times: expected shape {shape}, that of log_snr, got {self.times.shape}")
        if is_concrete(self.log_snr_table):
            table = np.asarray(self.log_snr_table)
            if table[0] != np.inf:
                raise ValueError(f"schedule: expected alpha_bar(0) = 1, got log-SNR {table[0]} at t = 0")
            bad = np.flatnonzero(~(table[1:] < table[:-1]))
            if bad.size:
                t = int(bad[0]) + 1
                raise ValueError(
                    "schedule: expected alpha_bar to decrease at every step (0 < beta_t <= 1), "
                    f"got log-SNR {table[t - 1]:.6g} at t = {t - 1} and {table[t]:.6g} at t = {t}"
                )

    @property
    def table(self) -> Float[Array, " steps"]:
        """Log-SNR at t = 0 … T, shape (T + 1,); a constant, never trained."""
        return jax.lax.stop_gradient(self.log_snr_table)


# Compiled as wholes: called outside of compiled code too, and traced once for all the calls inside of it.
@partial(jax.jit, static_argnames="interpolation")
def _log_snr_at(table: Array, t: Array, interpolation: str) -> Array:
    pair, weight = _around(table, t)
    mixed = _mixed(pair, weight)
    if interpolation == "alpha_bar":
        return mixed
    finite = jnp.isfinite(pair).all(0)
    pair = jnp.where(finite, pair, 0.0)
    return jnp.where(finite, pair[0] * (1 - weight) + pair[1] * weight, mixed)


@jax.jit
def _time_at(times: Array, t: Array) -> Array:
    pair, weight = _around(times, t)
    return pair[0] * (1 - weight) + pair[1] * weight


def _around(table: Array, t: Array) -> tuple[Array, Array]:
    """The entries of a table next to `t`, shape (2, *t.shape), and the weight of the second."""
    low = jnp.clip(jnp.floor(t), 0, table.shape[0] - 2)
    index = jnp.stack([low, low + 1]).astype(int)
    return jnp.take(table, index, mode="clip"), t - low


def _mixed(pair: Array, weight: Array) -> Array:
    """Log-SNR at the weighted mean of two ᾱ that are given by their log-SNR, either of which may be infinite."""
    parts = jax.nn.sigmoid(jnp.stack([pair, -pair]))
    mean = parts[:, 0] * (1 - weight) + parts[:, 1] * weight
    logs = jnp.where(mean > 0, jnp.log(jnp.where(mean > 0, mean, 1.0)), -jnp.inf)
    return logs[0] - logs[1]
