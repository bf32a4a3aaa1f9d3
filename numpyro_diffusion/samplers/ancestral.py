"""Ancestral sampling: the reverse chain as it is defined.

x_T is drawn from π, then every x_s from p(x_s | x_t), down to x_0: *exact* draws of the model p (Sohl-Dickstein et al.
2015, §2.2; Ho, Jain and Abbeel 2020, Alg. 2). With fewer steps than T the chain is another one, with the same denoiser
in longer steps: exact for itself, *approximate* for the chain of T steps. A chain of Gaussian steps makes x_0 as a
smooth function of standard normal noise, in which `DiffusionReparam` and `TemperedSMC` move.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Real, Shaped

from .._batching import checkpointed_scan
from .._checks import check_count, check_key, is_number, refusal
from .._shapes import Example
from ..diffusions import require_gaussian
from ..laws import from_noise
from ..process import ReverseProcess
from .base import AbstractSampler


class Ancestral(AbstractSampler):
    """Runs x_T ~ π, x_s ~ p(x_s | x_t), …, x_0 ~ p(x_0 | x_1): *exact* for the model's own law.

    Args:
        num_steps: how many steps to take, spread evenly over 1 … T; T unless given. With fewer the law is that of the
            strided chain: *approximate* for the full one.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> nd.samplers.Ancestral(10).sample(jax.random.key(0), process).shape
        (2,)

    Raises:
        ValueError: `num_steps` is below 2, or above T (when called).
    """

    num_steps: int | None = eqx.field(static=True)

    def __init__(self, num_steps: int | None = None) -> None:
        self.num_steps = None if num_steps is None else check_count("num_steps", num_steps, 2)

    def sample(self, key: PRNGKeyArray, process: ReverseProcess) -> Example:
        """One draw of x_0, shape `event`; the chain is not kept.

        Raises:
            ValueError: a process whose chain needs weights.
        """
        check_normalised(process)
        x_1, _, key = self._run(key, process, keep=False)
        return process.last_kernel(x_1).sample(key)

    def sample_from(self, key: PRNGKeyArray, process: ReverseProcess, x_t: Example, t: float) -> Example:
        """One draw of x_0 from the state `x_t` at time `t`, by those of the sampler's steps that lie below `t`."""
        check_normalised(process)
        inner, last = jax.random.split(check_key("key", key))
        x_1, _ = self._steps(inner, process, x_t, self.times(process, check_start(t, process)), keep=False)
        return process.last_kernel(x_1).sample(last)

    def sample_trajectory(self, key: PRNGKeyArray, process: ReverseProcess) -> Shaped[Array, " steps *event"]:
        """One draw of the chain, x_0 first; shape (num_steps + 1, *event).

        Raises:
            ValueError: a process whose chain needs weights.
        """
        check_normalised(process)
        return self.unweighted(key, process)

    def unweighted(self, key: PRNGKeyArray, process: ReverseProcess) -> Shaped[Array, " steps *event"]:
        """The chain as it runs, x_0 first: for a product of priors, whose weights are left out, no draw of it."""
        x_1, chain, key = self._run(key, process, keep=True)
        x_0 = process.last_kernel(x_1).sample(key)
        return jnp.concatenate([x_0[None], x_1[None], chain[::-1]])

    def chain_steps(self, process: ReverseProcess) -> int | None:
        """Its own number of steps, as far as the chain has so many."""
        return None if self.num_steps is None else min(self.num_steps, process.num_steps)

    def check(self, process: ReverseProcess) -> None:
        """The chain must have as many steps."""
        self.times(process)

    def noise_shape(self, process: ReverseProcess) -> tuple[int, ...]:
        """(steps + 1, *event): one standard normal for x_T and one for each step."""
        return (len(self.times(process)) + 1, *process.event_shape)

    def from_noise(self, noise: Float[Array, " steps *event"], process: ReverseProcess) -> Float[Array, "*event"]:
        """The draw of x_0 that `noise` makes, x_T's noise first; its gradient keeps at most 256, or about 2 √T, states.

        Raises:
            ValueError: the chain's steps are not Gaussian, or the last one rounds to whole numbers.
        """
        require_gaussian(process.diffusion, "process: expected a GaussianDiffusion")
        check_normalised(process)
        if not process.is_smooth:
            raise ValueError("process: expected a last step that is smooth, got one that rounds to whole numbers")
        times = jnp.asarray(self.times(process))

        def step(x_t: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
            noise, t, s = step
            return from_noise(process.inner_kernel(x_t, t, s), noise), None

        x_T = from_noise(process.terminal(), noise[0])
        x_1 = checkpointed_scan(step, x_T, (noise[1:-1], times[:-1], times[1:]))
        return from_noise(process.last_kernel(x_1), noise[-1])

    def times(self, process: ReverseProcess, start: float | None = None) -> Real[np.ndarray, " steps"]:
        """The steps that are visited, from `start` (T unless given) down to 1."""
        count = process.num_steps if self.num_steps is None else self.num_steps
        if count > process.num_steps:
            raise ValueError(f"num_steps: expected at most T = {process.num_steps}, got {count}")
        times = np.round(np.linspace(process.num_steps, 1, count)).astype(int)
        return times if start is None else np.append(start, times[times < start])

    def _run(self, key: PRNGKeyArray, process: ReverseProcess, keep: bool) -> tuple[Example, Any, PRNGKeyArray]:
        """x_1, the states before it (T first) if `keep`, and the key of the last step."""
        first, inner, last = jax.random.split(check_key("key", key), 3)
        return *self._steps(inner, process, process.terminal().sample(first), self.times(process), keep), last

    def _steps(
        self, key: PRNGKeyArray, process: ReverseProcess, x: Array, times: np.ndarray, keep: bool
    ) -> tuple[Array, Any]:
        """The state at the last of the times, and the states before it if `keep`."""

        def step(x_t: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array | None]:
            key, t, s = step
            return process.inner_kernel(x_t, t, s).sample(key), x_t if keep else None

        steps = (jax.random.split(key, len(times) - 1), jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
        return jax.lax.scan(step, x, steps)


def check_normalised(process: ReverseProcess) -> None:
    """Raise ``ValueError`` for a process whose chain needs weights, which a sampler of single chains does not have."""
    if not process.is_normalised:
        raise ValueError(
            "process: expected the chain of one prior, got that of a product or power of priors, whose draws need "
            "weights: sample the product itself (TwistedSMC), or use nd.infer.SMC or nd.infer.ParticleGibbs"
        )


def check_start(t: Any, process: ReverseProcess) -> Any:
    """Return the time `t` at which a chain is taken up.

    Raises:
        TypeError: no number.
        ValueError: one outside [1, T].
    """
    if not is_number(t) or not 1 <= t <= process.num_steps:
        raise refusal(f"t: expected a number in [1, T], T = {process.num_steps}, got {t!r}", is_number(t))
    return t
