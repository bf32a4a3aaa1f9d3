r"""Schedules: how fast the forward process forgets the data.

A schedule is a decreasing table of log signal-to-noise ratios
:math:`\lambda_t = \log\bar\alpha_t - \log(1-\bar\alpha_t)` for :math:`t = 0 \dots T`, with
:math:`\lambda_0 = \infty` (the data). Everything else follows from it: :math:`\bar\alpha_t` and
:math:`1-\bar\alpha_t` are its two logistic functions (both exact in float32, however close to 0 or 1), and
:math:`\beta_{t|s} = 1 - \bar\alpha_t/\bar\alpha_s` serves single steps and strides alike. Whole `t` are the
chain's own steps; fractions interpolate between them.
"""

from abc import abstractmethod
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ._checks import check_choice, check_count, check_finite, check_scalar, check_step, check_time, is_concrete

Interpolation = Literal["log_snr", "alpha_bar"]
# A schedule that erases everything ends at −∞, where no integral can; at −16 a signal of 3e-4 is left.
LEAST_LOG_SNR = -16.0
# How much faster the logs of a VarianceSchedule's steps move than the weights beside them: by Adam's steps, which are
# of one size, they would be too slow.
_PACE = 10.0


class AbstractSchedule(eqx.Module):
    """Base of all schedules; `t` is a scalar or array in [0, T], whole or fractional; others raise where known."""

    times: eqx.AbstractVar[Array]
    interpolation: eqx.AbstractVar[Interpolation]

    @property
    @abstractmethod
    def table(self) -> Array:
        """Log-SNR at t = 0 … T, shape (T + 1,), decreasing; the first is infinite."""

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.times.shape[0] - 1

    def log_snr(self, t: ArrayLike) -> Array:
        r""":math:`\lambda(t)`, linear between neighbouring steps where both are finite.

        Where one is not (next to t = 0, or to a step that erases everything), and for schedules that are linear in
        :math:`\bar\alpha`, the neighbours' :math:`\bar\alpha` are mixed instead.
        """
        check_time("t", t, 0, self.num_steps)
        return _log_snr_at(self.table, jnp.asarray(t, dtype=self.times.dtype), self.interpolation)

    def log_alpha_bar(self, t: ArrayLike) -> Array:
        r""":math:`\log\bar\alpha_t`, exactly 0 at t = 0."""
        return jax.nn.log_sigmoid(self.log_snr(t))

    def alpha_bar(self, t: ArrayLike) -> Array:
        r""":math:`\bar\alpha_t`, the share of the signal's variance that is kept at `t`; 1 at t = 0."""
        return jax.nn.sigmoid(self.log_snr(t))

    def noise_variance(self, t: ArrayLike) -> Array:
        r""":math:`1-\bar\alpha_t`, without the rounding of that subtraction."""
        return jax.nn.sigmoid(-self.log_snr(t))

    def beta(self, t: ArrayLike, s: ArrayLike | None = None) -> Array:
        r""":math:`\beta_{t|s} = 1 - \bar\alpha_t/\bar\alpha_s` for s < t; `s` is ``t - 1`` unless given."""
        check_step(t, s, self.num_steps)
        s = jnp.asarray(t) - 1 if s is None else s
        now, before = self.log_snr(t), self.log_snr(s)
        return jax.nn.sigmoid(-now) * -jnp.expm1(now - before)

    def shares(self, t: ArrayLike) -> tuple[Array, Array]:
        r""":math:`\bar\alpha_t` and :math:`1-\bar\alpha_t`, both without rounding."""
        log_snr = self.log_snr(t)
        return jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)

    def time(self, t: ArrayLike) -> Array:
        """What a network is told at step `t`: `t` itself, or the original chain's step after respacing."""
        check_time("t", t, 0, self.num_steps)
        return _time_at(jax.lax.stop_gradient(self.times), jnp.asarray(t, dtype=self.times.dtype))

    def time_at(self, log_snr: ArrayLike) -> Array:
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

    def balance(self, t: Array, kl: Array) -> Array:
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
            ValueError: `num_steps` is not a whole number from 2 to T.
        """
        num_steps = check_count("num_steps", num_steps, 2)
        if num_steps > self.num_steps:
            raise ValueError(f"num_steps: expected at most {self.num_steps}, got {num_steps}")
        kept = np.round(np.linspace(0, self.num_steps, num_steps + 1)).astype(int)
        return Schedule(self.table[kept], self.interpolation, self.times[kept])


class Schedule(AbstractSchedule):
    """A fixed schedule, given by its table.

    Args:
        log_snr: log-SNR at t = 0 … T, shape (T + 1,); the first must be infinite.
        interpolation: what is linear between two steps.
        times: what networks are told at each step, shape (T + 1,); 0 … T unless given.

    Raises:
        ValueError: fewer than 2 steps, or a table that does not decrease.
    """

    log_snr_table: Array
    times: Array
    interpolation: Interpolation = eqx.field(static=True)

    def __init__(
        self, log_snr: ArrayLike, interpolation: Interpolation = "log_snr", times: ArrayLike | None = None
    ) -> None:
        self.log_snr_table = jnp.asarray(log_snr, dtype=float)
        self.interpolation = interpolation
        self.times = jnp.arange(len(self.log_snr_table), dtype=float) if times is None else jnp.asarray(times)

    def __check_init__(self) -> None:
        shape = self.log_snr_table.shape
        if len(shape) != 1 or shape[0] < 3:
            raise ValueError(f"num_steps: expected a table of at least 2 steps (T >= 2), got shape {shape}")
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
    def table(self) -> Array:
        """Log-SNR at t = 0 … T, shape (T + 1,); a constant, never trained."""
        return jax.lax.stop_gradient(self.log_snr_table)


class AbstractLearnedSchedule(AbstractSchedule):
    """A schedule that `fit` trains, in its logits alone."""

    logits: eqx.AbstractVar[Array]


class LearnedSchedule(AbstractLearnedSchedule):
    r""":math:`\beta_2 \dots \beta_T` trainable as logits, :math:`\beta_1` fixed ([2015] §2.4.1).

    The first step is fixed and small "to prevent overfitting"; the others are trained by gradient ascent on K with
    the noise frozen. Only for Gaussian diffusions: samples of bits have no gradient.
    """

    logits: Array
    first_beta: float = eqx.field(static=True)
    times: Array
    interpolation: Interpolation = eqx.field(static=True)

    def __init__(self, beta: ArrayLike) -> None:
        beta = np.asarray(beta, dtype=float)
        self.first_beta = float(beta[0])
        self.logits = jnp.asarray(np.log(beta[1:]) - np.log1p(-beta[1:]))
        self.times = jnp.arange(len(beta) + 1, dtype=float)
        self.interpolation = "log_snr"

    @property
    def table(self) -> Array:
        """Log-SNR at t = 0 … T, shape (T + 1,), differentiable in the logits."""
        steps = jnp.concatenate([jnp.full(1, np.log1p(-self.first_beta)), -jax.nn.softplus(self.logits)])
        log_alpha_bar = jnp.cumsum(steps)
        return jnp.concatenate([jnp.full(1, jnp.inf), log_alpha_bar - jnp.log(-jnp.expm1(log_alpha_bar))])


class VarianceSchedule(AbstractLearnedSchedule):
    r"""Steps in log-SNR between two fixed ends, trained for the least variance of the bound at one random time.

    The bound tends to one that does not depend on the steps between its ends as they shrink (VDM 2021, §5.1), so they
    are free to serve the estimate: its variance is least where the root mean square of a KL term is the same at
    every t. Steps with more than their share are shortened, those with less lengthened, until it is: the optimum of
    VDM's gradient of the squared loss (§5.3), without that gradient.
    """

    logits: Array
    ends: tuple[float, float] = eqx.field(static=True)
    times: Array
    interpolation: Interpolation = eqx.field(static=True)

    def __init__(self, log_snr: ArrayLike) -> None:
        table = np.asarray(log_snr, dtype=float)
        self.logits = jnp.asarray(np.log(-np.diff(table)) / _PACE)
        self.ends = float(table[0]), float(table[-1])
        self.times = jnp.arange(len(table) + 1, dtype=float)
        self.interpolation = "log_snr"

    @property
    def table(self) -> Array:
        """Log-SNR at t = 0 … T, shape (T + 1,); a constant for the bound, which trains the network alone."""
        first, last = self.ends
        steps = jax.nn.softmax(_PACE * jax.lax.stop_gradient(self.logits))
        inner = first + (last - first) * jnp.cumsum(steps[:-1])
        return jnp.concatenate([jnp.array([jnp.inf, first]), inner, jnp.full(1, last)])

    def balance(self, t: Array, kl: Array) -> Array:
        """0, with a gradient in the logits that vanishes where the mean square of a KL term is the same at all t."""
        square = jnp.square(kl)
        excess = jax.lax.stop_gradient(square / jnp.mean(square) - 1)
        pull = jnp.mean(excess * jnp.take(self.logits, jnp.asarray(t, int) - 2))
        return pull - jax.lax.stop_gradient(pull)


def from_beta(beta: ArrayLike) -> Schedule:
    r"""The schedule with steps :math:`\beta_1 \dots \beta_T`, shape (T,), each in (0, 1] and only the last may be 1.

    Raises:
        ValueError: a step outside (0, 1], NaN, or fewer than 2 steps.
    """
    check_finite("beta", beta)
    beta = np.atleast_1d(np.asarray(beta, dtype=np.float64))
    if beta.ndim != 1 or beta.size < 2:
        raise ValueError(f"beta: expected at least 2 steps, shape (T,), got shape {beta.shape}")
    if (beta <= 0).any() or (beta > 1).any():
        raise ValueError(f"beta: expected every step in (0, 1], got values from {beta.min()} to {beta.max()}")
    with np.errstate(divide="ignore"):
        return Schedule(_log_snr(np.cumsum(np.log1p(-beta))))


def linear(num_steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Schedule:
    r""":math:`\beta_t` linear in t ([DDPM 2020] §4), both ends times 1000/T so that every T forgets alike."""
    num_steps = check_count("num_steps", num_steps, 2)
    check_scalar("beta_min", beta_min)
    check_scalar("beta_max", beta_max)
    first, last = np.array([beta_min, beta_max]) * 1000 / num_steps
    return from_beta(np.minimum(np.linspace(first, last, num_steps), 0.999))


def cosine(num_steps: int, offset: float = 0.008, beta_max: float = 0.999) -> Schedule:
    r""":math:`\bar\alpha(t) \propto \cos^2\!\big(\tfrac{t/T+c}{1+c}\tfrac{\pi}{2}\big)`, steps capped at `beta_max`.

    Source: Nichol & Dhariwal 2021, eq. 17.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    angle = (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset) * np.pi / 2
    alpha_bar = np.cos(angle) ** 2
    return from_beta(np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, beta_max))


def log_snr(
    num_steps: int,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    scale: float = 1.0,
    detail: float = 0.05,
) -> Schedule:
    """Log-SNR in equal steps from `maximum` at t = 1 to `minimum` at t = T: the default schedule.

    Ends that are not given are chosen from the data: at T the signal is 1% of the noise's standard deviation (so that
    the chain's prior is missed by less than 1e-4 nats per dimension), at t = 1 the noise is 1/5 of the finest detail.

    Args:
        num_steps: T.
        minimum: log-SNR at T (natural logarithm).
        maximum: log-SNR at t = 1.
        scale: root mean square of the data about the diffusion's `loc`, in units of the diffusion's `scale`.
        detail: the finest standard deviation worth keeping (a grey level, a mode's width), in the same units.

    Raises:
        ValueError: T < 2, ends that are not finite or not decreasing, `scale` or `detail` not positive.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    for name, value in {"minimum": minimum, "maximum": maximum, "scale": scale, "detail": detail}.items():
        if value is not None or name in ("scale", "detail"):
            check_scalar(name, value)
    if not (scale > 0 and detail > 0):
        raise ValueError(f"scale, detail: expected positive numbers, got {scale} and {detail}")
    minimum = 2 * np.log(0.01 / scale) if minimum is None else float(minimum)
    maximum = -2 * np.log(detail / 5) if maximum is None else float(maximum)
    if not (np.isfinite(minimum) and np.isfinite(maximum) and minimum < maximum):
        raise ValueError(f"minimum, maximum: expected finite ends, minimum below maximum, got {minimum}, {maximum}")
    return Schedule(np.concatenate([[np.inf], np.linspace(maximum, minimum, num_steps)]))


def erasing(num_steps: int) -> Schedule:
    r""":math:`\beta_t = 1/(T-t+1)`, so that :math:`\bar\alpha_t = 1-t/T`: each step erases 1/T of the signal.

    Source: [2015] §2.4.1, the binomial schedule. At t = T nothing is left.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    t = np.arange(num_steps + 1)
    with np.errstate(divide="ignore"):
        return Schedule(np.log(num_steps - t) - np.log(t), "alpha_bar")


def learned(
    num_steps: int,
    first_beta: float = 1e-3,
    init: AbstractSchedule | None = None,
    *,
    objective: Literal["bound", "variance"] = "bound",
) -> AbstractLearnedSchedule:
    r"""Trainable :math:`\beta_2 \dots \beta_T` with :math:`\beta_1` = `first_beta` fixed ([2015] §2.4.1).

    Args:
        num_steps: T.
        first_beta: the fixed first step; K − L_null is at most ½ log(1/β₁) nats per dimension with the 2015 last step.
        init: a schedule of the same T whose later steps are the start; log-SNR in equal steps unless given.
        objective: what the steps are trained for while the network is trained on K. ``"bound"``: K itself.
            ``"variance"``: the least variance of K at one random time (VDM 2021, §5.3); the end at T is then fixed
            too, at that of the start.

    Raises:
        ValueError: T < 2, `first_beta` outside (0, 1), `init` of another T, or an unknown objective.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    check_choice("objective", objective, ("bound", "variance"))
    check_scalar("first_beta", first_beta)
    if not 0 < first_beta < 1:
        raise ValueError(f"first_beta: expected a number in (0, 1), got {first_beta}")
    start = log_snr(num_steps, maximum=np.log1p(-first_beta) - np.log(first_beta)) if init is None else init
    if start.num_steps != num_steps:
        raise ValueError(f"init: expected a schedule of {num_steps} steps, got {start.num_steps}")
    beta = np.asarray(start.beta(jnp.arange(1, num_steps + 1)), dtype=np.float64)
    beta = np.concatenate([[first_beta], np.clip(beta[1:], 1e-6, 1 - 1e-6)])
    if objective == "bound":
        return LearnedSchedule(beta)
    return VarianceSchedule(_log_snr(np.cumsum(np.log1p(-beta)))[1:])


def _log_snr(log_alpha_bar: np.ndarray) -> np.ndarray:
    """Log-SNR table with its infinite start from log alpha_bar at t = 1 … T."""
    return np.concatenate([[np.inf], log_alpha_bar - np.log(-np.expm1(log_alpha_bar))])


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
    shares = jax.nn.sigmoid(jnp.stack([pair, -pair]))
    mean = shares[:, 0] * (1 - weight) + shares[:, 1] * weight
    logs = jnp.where(mean > 0, jnp.log(jnp.where(mean > 0, mean, 1.0)), -jnp.inf)
    return logs[0] - logs[1]
