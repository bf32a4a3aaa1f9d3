"""Schedules whose steps are trained with the process.

The K bound depends on the steps β_t, so that they can be trained along with the network. `LearnedSchedule` follows the
gradient of K with the noise frozen and leaves β_1 as it is (Sohl-Dickstein et al. 2015, §2.4.1). `VarianceSchedule`
uses that the bound between two fixed ends depends less and less on the steps as they shrink (Kingma et al. 2021, §5.1):
they are moved until every KL term has the same mean square, where the variance of K estimated at one random time is
least (§5.3 there).
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from .._checks import check_choice, check_count, check_scalar
from .base import AbstractSchedule, Interpolation
from .fixed import log_snr, log_snr_table

# How much faster the logs of a VarianceSchedule's steps move than the weights beside them: by Adam's steps, which are
# of one size, they would be too slow.
_PACE = 10.0


class AbstractLearnedSchedule(AbstractSchedule):
    """A schedule that `fit` trains, in its logits alone."""

    logits: eqx.AbstractVar[Array]

    @property
    def is_learned(self) -> bool:
        """True."""
        return True

    def trainable(self) -> Any:
        """The logits alone."""
        return eqx.tree_at(lambda schedule: schedule.logits, super().trainable(), True)


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
    def table(self) -> Float[Array, " steps"]:
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
    def table(self) -> Float[Array, " steps"]:
        """Log-SNR at t = 0 … T, shape (T + 1,); a constant for the bound, which trains the network alone."""
        first, last = self.ends
        steps = jax.nn.softmax(_PACE * jax.lax.stop_gradient(self.logits))
        inner = first + (last - first) * jnp.cumsum(steps[:-1])
        return jnp.concatenate([jnp.array([jnp.inf, first]), inner, jnp.full(1, last)])

    def balance(self, t: Shaped[Array, " n"], kl: Float[Array, " n"]) -> Float[Array, ""]:
        """0, with a gradient in the logits that vanishes where the mean square of a KL term is the same at all t."""
        square = jnp.square(kl)
        excess = jax.lax.stop_gradient(square / jnp.mean(square) - 1)
        pull = jnp.mean(excess * jnp.take(self.logits, jnp.asarray(t, int) - 2))
        return pull - jax.lax.stop_gradient(pull)


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
        TypeError: `init` is no schedule, `first_beta` no number.
        ValueError: T < 2, `first_beta` outside (0, 1), `init` of another T, or an unknown objective.
    """
    num_steps = check_count("num_steps", num_steps, 2)
    check_choice("objective", objective, ("bound", "variance"))
    check_scalar("first_beta", first_beta)
    if not 0 < first_beta < 1:
        raise ValueError(f"first_beta: expected a number in (0, 1), got {first_beta}")
    start = log_snr(num_steps, maximum=np.log1p(-first_beta) - np.log(first_beta)) if init is None else init
    if not isinstance(start, AbstractSchedule):
        raise TypeError(f"init: expected a schedule from numpyro_diffusion.schedules, got {init!r:.80}")
    if start.num_steps != num_steps:
        raise ValueError(f"init: expected a schedule of {num_steps} steps, got {start.num_steps}")
    beta = np.asarray(start.beta(jnp.arange(1, num_steps + 1)), dtype=np.float64)
    beta = np.concatenate([[first_beta], np.clip(beta[1:], 1e-6, 1 - 1e-6)])
    if objective == "bound":
        return LearnedSchedule(beta)
    return VarianceSchedule(log_snr_table(np.cumsum(np.log1p(-beta)))[1:])
