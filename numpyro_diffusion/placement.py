"""Where along the noise are a chain's steps needed? A schedule of as many steps, placed there.

Reverse kernels have independent elements, so that each step loses against the true one what x_0 given x_t has of
correlations: a loss in proportion to the square of the step's length in log-SNR. The sum over steps is least where all
lose the same (`place_steps`). To the leading order in the length, *approximate*: the correlations are estimated by
random directions and the denoiser's Jacobian. K has this loss too.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import laws
from ._batching import batched_map
from ._checks import check_count, check_event, check_key
from ._compiled import compiled
from ._numbers import check_told_apart
from .diffusions import GaussianDiffusion, require_gaussian
from .process import ReverseProcess
from .schedules import LEAST_LOG_SNR, AbstractSchedule, Schedule

# This share of the steps is spread evenly in log-SNR: the estimate holds for small ones, and none may grow without end.
_EVEN = 0.1
# Below this root of a loss over δ², for one element, kernels are exact and rounding is what is left.
_NOTHING = 5e-4


def place_steps(
    key: Array,
    process: ReverseProcess,
    data: ArrayLike,
    num_steps: int | None = None,
    *,
    num_times: int = 64,
    chunk: int | None = 4096,
) -> Schedule:
    r"""The schedule between the same ends whose steps all lose the same, so that together they lose least.

    A reverse kernel is Gaussian, with a variance v for each element and no correlations. A step of length δ in log-SNR
    loses against the true p(x_s | x_t), to the leading order in δ and in standardised units,

    .. math:: \mathbb{E}\,\mathrm{KL} = \tfrac14\,\delta^2\,\mathrm{SNR}^2\;
              \mathbb{E}\,\|\mathrm{Cov}[x_0|x_t] - \mathrm{diag}(v)\|_F^2

    nats. The sum over T steps is least where all terms are equal: where steps are as dense as the root of what δ²
    multiplies. That is large where modes part that differ in many elements at once. The norm is estimated by products
    of random vectors with the denoiser's Jacobian, one an example and level: *approximate*. A tenth of the steps is
    spread evenly. Nothing but the prior is looked at, so that any factor may follow.

    Args:
        key: JAX random key.
        process: a Gaussian reverse process. Networks are called at fractional t.
        data: examples of shape (n, *event), such as draws of the prior or training data; 100 are plenty.
        num_steps: T of the new schedule, at least 2; that of the process unless given.
        num_times: times, evenly spaced in log-SNR between the ends, at which the loss is estimated; at least 2.
        chunk: at most so many network calls at a time; None for all.

    Returns:
        A fixed `Schedule`; networks are told the old one's time. Runs in compiled code too.

    Raises:
        ValueError: a process of bits, fewer than 2 steps or times, data of another shape, not finite, or that
            the float type cannot tell apart.
    """
    num_steps = process.num_steps if num_steps is None else check_count("num_steps", num_steps, 2)
    return placement(key, process, data, num_times=num_times, chunk=chunk).schedule(num_steps)


class Placement(eqx.Module):
    """How much steps at each level of noise lose, whatever their number.

    Attributes:
        old: the schedule that they are between the ends of.
        levels: of log-SNR, from the lowest, shape (n,).
        root: of what δ² multiplies in a step's loss of nats, at each level, shape (n,).
        size: elements of an example.
    """

    old: AbstractSchedule
    levels: Array
    root: Array
    size: int = eqx.field(static=True)

    def schedule(self, num_steps: int) -> Schedule:
        """So many steps, as dense as the root, but for a tenth."""
        table, times = self._placed_together(num_steps)
        return Schedule(table, self.old.interpolation, times)

    def loss(self, num_steps: int) -> Float[Array, ""]:
        """What so many placed steps lose together, in nats, to the leading order in their length; shape ()."""
        table, _ = self._placed(num_steps)
        length, middle = table[1:-1] - table[2:], (table[1:-1] + table[2:]) / 2
        return jnp.sum(jnp.square(length * jnp.interp(middle, self.levels, self.root)))

    @compiled
    def _placed_together(self, num_steps: int) -> tuple[Array, Array]:
        return self._placed(num_steps)

    def _placed(self, num_steps: int) -> tuple[Array, Array]:
        """The new table, and what networks are told at it."""
        least = _NOTHING * jnp.sqrt(float(self.size))
        density = (1 - _EVEN) * self.root / jnp.maximum(jnp.mean(self.root), least) + _EVEN
        share = jnp.append(0.0, jnp.cumsum((density[1:] + density[:-1]) / 2))
        low = self.old.log_snr(float(self.old.num_steps))
        table = jnp.interp(jnp.linspace(1.0, 0.0, num_steps), share / share[-1], self.levels).at[-1].set(low)
        times = jnp.append(0.0, self.old.time(self.old.time_at(table)))
        return jnp.append(jnp.inf, table), times


def placement(
    key: Array, process: ReverseProcess, data: ArrayLike, *, num_times: int = 64, chunk: int | None = 4096
) -> Placement:
    """What `place_steps` places steps by; see there."""
    diffusion = require_gaussian(process.diffusion, "process: expected a GaussianDiffusion")
    check_count("num_times", num_times, 2)
    check_told_apart("data", data, len(process.event_shape), diffusion.scale)
    x_0 = jnp.asarray(data, dtype=float)
    if len(check_event("data", x_0.shape, process.event_shape)) != 1:
        raise ValueError(f"data: expected shape (n, *{process.event_shape}), got {x_0.shape}")
    together = None if chunk is None else max(1, check_count("chunk", chunk) // len(x_0))
    levels, root = _losses(check_key("key", key), process, x_0, num_times, together)
    return Placement(process.diffusion.schedule, levels, root, math.prod(process.event_shape))


@compiled
def _losses(key: Array, process: Any, x_0: Array, num_times: int, together: int | None) -> tuple[Array, Array]:
    """Levels of log-SNR, and the root of what δ² multiplies there."""
    diffusion, old = process.diffusion, process.diffusion.schedule
    low, high = old.log_snr(jnp.asarray([old.num_steps, 1.0]))
    levels = jnp.linspace(jnp.where(jnp.isfinite(low), low, LEAST_LOG_SNR), high, num_times)

    def root(pair: tuple[Array, Array]) -> Array:
        key, level = pair
        keys = jax.random.split(key, len(x_0))
        t = old.time_at(level)
        return jnp.sqrt(jnp.mean(jax.vmap(lambda key, x: _loss(key, process, diffusion, x, t))(keys, x_0))) / 2

    return levels, batched_map(root, (jax.random.split(key, num_times), levels), together)


def _loss(key: Array, process: ReverseProcess, diffusion: GaussianDiffusion, x_0: Array, t: Array) -> Array:
    """What δ²/4 multiplies, for one draw of x_t and one random direction, shape ()."""
    noise, probe = jax.random.split(key)
    x_t = diffusion.marginal_from_noise(diffusion.marginal_noise(noise, x_0.shape), x_0, t)
    direction = jax.random.rademacher(probe, x_0.shape, dtype=x_t.dtype)

    def predict(x: Array) -> tuple[Array, Array]:
        law = process.denoiser.posterior(diffusion, x, t)
        return law.mean, laws.variance(law)

    _, push, variance = jax.jvp(predict, (x_t,), (diffusion.scale * direction,), has_aux=True)
    alpha_bar, noise_variance = diffusion.schedule.signal_and_noise(t)
    # SNR · Cov[x_0 | x_t] v is √ᾱ ∂E[x_0 | x_t]/∂x_t v in standardised units.
    gap = (
        jnp.sqrt(alpha_bar) * push / diffusion.scale
        - alpha_bar / noise_variance * variance / diffusion.scale**2 * direction
    )
    return jnp.sum(jnp.square(gap))
