"""Whole trajectories as NumPyro distributions, forward and reverse, with exact joint densities.

Unlike x_0 alone a whole chain has a density in closed form: q(x_1 … x_T | x_0) is a product of forward steps, and p(x_0
… x_T) one of π and the reverse kernels (Sohl-Dickstein et al. 2015, eqs. 4-5). Draws and densities are *exact*, but for
a product of priors, whose density is unnormalised and whose draws lack their weights. The mean over q of the log ratio
of the two is K, that of the ratio itself p(x_0) (eq. 9 there).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions import constraints

from .._checks import check_event, check_real, is_concrete, refusal
from ..diffusions import AbstractDiffusion
from ..laws import log_excess
from ..process import ReverseProcess
from ..samplers import Ancestral
from .base import ModuleDistribution, check_kind


class _Start(eqx.Module):
    diffusion: AbstractDiffusion
    x_0: Array


class ForwardTrajectory(ModuleDistribution):
    """q(x_1, …, x_T | x_0): the noising chain from given data; `log_prob` is *exact*, in nats.

    Args:
        diffusion: the forward process.
        x_0: data, shape (*batch, *event).
        event_dim: number of dimensions of one example; all of `x_0` unless given.
        validate_args: NumPyro's validation switch.

    The event shape is (T, *event): index 0 is x_1, the last is x_T. Source: [2015] eq. 3.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> noising = nd.ForwardTrajectory(diffusion, jnp.array([0.5, -1.0]))
        >>> noising.sample(jax.random.key(0)).shape  # x_1 … x_20
        (20, 2)

    Raises:
        TypeError: no diffusion.
        ValueError: `x_0` off the support; `event_dim` larger than the number of its dimensions.
    """

    def __init__(
        self,
        diffusion: AbstractDiffusion,
        x_0: ArrayLike,
        *,
        event_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_kind("diffusion", diffusion, AbstractDiffusion)
        check_real("x_0", x_0)
        x_0 = jnp.asarray(x_0)
        inside = diffusion.data_support(x_0)  # under `jit` a tracer even where x_0 is not
        if is_concrete(inside) and not np.all(inside):
            raise ValueError(f"x_0: expected values on the support {diffusion.data_support}, got some off it")
        event_dim = x_0.ndim if event_dim is None else event_dim
        right_type = isinstance(event_dim, int | np.integer)
        if not right_type or not 0 <= event_dim <= x_0.ndim:
            message = f"event_dim: expected a number from 0 to {x_0.ndim} (x_0 has {x_0.shape}), got {event_dim}"
            raise refusal(message, right_type)
        split = x_0.ndim - event_dim
        super().__init__(
            _Start(diffusion, x_0),
            (diffusion.num_steps, *x_0.shape[split:]),
            batched="x_0",
            batch_shape=x_0.shape[:split],
            validate_args=validate_args,
        )

    @property
    def support(self) -> constraints.Constraint:
        """That of the diffusion, for every step."""
        return constraints.independent(self.module.diffusion.element_support, len(self.event_shape))

    def _facts(self) -> dict[str, object]:
        return super()._facts() | {"diffusion": type(self.module.diffusion).__name__}

    def _sample_one(self, module: Any, key: Array) -> Array:
        def step(x_s: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            key, t = step
            x_t = module.diffusion.step(x_s, t).sample(key)
            return x_t, x_t

        keys = jax.random.split(key, module.diffusion.num_steps)
        x_1 = module.diffusion.step(module.x_0, 1).sample(keys[0])
        later = jnp.arange(2, module.diffusion.num_steps + 1)
        return jnp.concatenate([x_1[None], jax.lax.scan(step, x_1, (keys[1:], later))[1]])

    def _log_prob_one(self, module: Any, value: Array) -> Array:
        before = jnp.concatenate([module.x_0[None], value[:-1]])
        times = jnp.arange(1, module.diffusion.num_steps + 1)
        return jnp.sum(jax.vmap(lambda x_s, x_t, t: module.diffusion.step(x_s, t).log_prob(x_t))(before, value, times))


class _DataThenNoise(constraints.Constraint):
    """The first entry along the time axis in `data`, the others in `noise`."""

    is_discrete = True

    def __init__(self, data: constraints.Constraint, noise: constraints.Constraint) -> None:
        self.data, self.noise = data, noise
        self.event_dim = noise.event_dim

    def __call__(self, x: Any) -> Any:
        return self.data(x[_first(x, self.event_dim)]) & self.noise(x)

    def __repr__(self) -> str:
        return f"{self.data} for x_0, {self.noise} after"

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        if not isinstance(other, _DataThenNoise):
            return False
        return self.data.eq(other.data, static=static) & self.noise.eq(other.noise, static=static)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)

    def tree_flatten(self) -> Any:
        return (self.data, self.noise), (("data", "noise"), {"event_dim": self.event_dim})


def _first(x: Any, event_dim: int) -> tuple[Any, ...]:
    return (..., 0, *[slice(None)] * (event_dim - 1))


class _Chain(eqx.Module):
    process: ReverseProcess
    num_steps: int | None = eqx.field(static=True)


class ReverseTrajectory(ModuleDistribution):
    """p(x_0, …, x_T): the generative chain as a joint distribution; `log_prob` is *exact*, in nats.

    `sample` runs the reverse chain in one scan. The event shape is (T + 1, *event), ordered by time: index 0 is the
    data. Source: [2015] eqs. 4-5. For a product of priors `log_prob` is that of its target on paths,
    unnormalised, and `sample` runs the chain without its weights, as a start for samplers.

    Args:
        process: the reverse process.
        num_steps: of the strided chain that `Ancestral` takes, whose event shape is (num_steps + 1, *event); T, all of
            them, unless given.
        validate_args: NumPyro's validation switch.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> nd.ReverseTrajectory(process).sample(jax.random.key(0)).shape  # x_0 … x_20
        (21, 2)

    Raises:
        TypeError: no reverse process.
        ValueError: `num_steps` is not from 2 to T.
    """

    def __init__(
        self, process: ReverseProcess, num_steps: int | None = None, *, validate_args: bool | None = None
    ) -> None:
        check_kind("process", process, ReverseProcess)
        event_shape = (len(Ancestral(num_steps).times(process)) + 1, *process.event_shape)
        super().__init__(_Chain(process, num_steps), event_shape, validate_args=validate_args)

    def _facts(self) -> dict[str, object]:
        return super()._facts() | self.module.process.facts()

    @property
    def process(self) -> ReverseProcess:
        """The reverse process."""
        return self.module.process

    @property
    def support(self) -> constraints.Constraint:
        """That of the data for x_0, and that of the noise for the other steps; mostly they are the same."""
        noise, data = self.process.diffusion.element_support, self.process.support
        if data == constraints.independent(noise, len(self.process.event_shape)):
            return constraints.independent(noise, len(self.event_shape))
        return _DataThenNoise(data, constraints.independent(noise, len(self.event_shape)))

    def _sample_one(self, module: Any, key: Array) -> Array:
        return Ancestral(module.num_steps).unweighted(key, module.process)

    def _log_prob_one(self, module: Any, value: Array) -> Array:
        process, times = module.process, jnp.asarray(Ancestral(module.num_steps).times(module.process)[::-1])
        density = lambda law, x: law.log_prob(x) + log_excess(law, x)
        inner = jax.vmap(lambda x_t, x_s, t, s: density(process.inner_kernel(x_t, t, s), x_s))
        steps = jnp.sum(inner(value[2:], value[1:-1], times[1:], times[:-1]))
        last = density(process.last_kernel(value[1]), value[0])
        return density(process.terminal(), value[-1]) + steps + last


def joint_log_ratio(process: ReverseProcess, trajectory: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
    """log p(x_0, …, x_T) − log q(x_1, …, x_T | x_0) in nats: its mean over q is K, its exponential's is p(x_0).

    Args:
        process: the reverse process.
        trajectory: shape (*batch, T + 1, *event), x_0 first.

    Returns:
        Shape (*batch,). Source: [2015] eqs. 9-10.
    """
    check_kind("process", process, ReverseProcess)
    check_real("trajectory", trajectory)
    trajectory = jnp.asarray(trajectory)
    check_event("trajectory", trajectory.shape, (process.num_steps + 1, *process.event_shape))
    split = trajectory.ndim - len(process.event_shape) - 1
    x_0, rest = jnp.take(trajectory, 0, axis=split), jax.lax.slice_in_dim(trajectory, 1, None, axis=split)
    forward = ForwardTrajectory(process.diffusion, x_0, event_dim=len(process.event_shape))
    return ReverseTrajectory(process).log_prob(trajectory) - forward.log_prob(rest)
