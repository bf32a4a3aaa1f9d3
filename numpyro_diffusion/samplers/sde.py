"""The reverse SDE at any noise level, from the deterministic flow to more noise than the forward process has.

In the variance-exploding form all processes with drift (1 + λ²)/2 · (x̂_0 − v) and noise λ have one law at every time:
λ = 0 is the probability flow (Song et al. 2021), λ = 1 the reversal of the forward process (McAllester 2023, whose
slides print (1 + λ)/2). Draws are *approximate* by the length of the steps. Exponential steps solve all but the change
of x̂_0 in closed form; the multistep ones extrapolate x̂_0 from the step before (Lu et al. 2022).
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from .._checks import check_choice, check_count, check_event, check_real, is_number, refusal
from ..process import ReverseProcess
from ..schedules import LEAST_LOG_SNR, AbstractSchedule
from .smooth import AbstractSmoothSampler, Level, Move, Noise, Predict, State, mixed

Method = Literal["euler", "heun", "exponential", "multistep"]
Form = Literal["preserving", "exploding"]
Grid = Literal["log_snr", "steps"]

_METHODS: tuple[Method, ...] = ("euler", "heun", "exponential", "multistep")


class SDE(AbstractSmoothSampler):
    r"""The family of reverse processes with one and the same law at every time, of noise level λ ≥ 0.

    In time u = −log-SNR, running down, with σ² = exp u, the variance-exploding state v = x_0 + σ ε and the prediction
    x̂_0 = E[x_0 | x_t] obey dv = (1 + λ²)/2 · (x̂_0 − v) dτ + λ σ dB (McAllester 2023; his slides print (1 + λ)/2, which
    is right for λ = 0 and 1 only). λ = 0 is the probability flow, λ = 1 the reversal of the forward process, larger
    ones forget errors faster. The state keeps the variance as √ᾱ v.

    *Approximate* by its steps (and by p(x_T) = π): exact as they shrink. They go from T to 1, through fractional t;
    the process's own last step leads to the data, as for `Ancestral`. Gaussian diffusions only. With λ = 0 a draw is
    a smooth function of two noises, those of x_T and of the last step, which is what `DiffusionReparam` then samples.

    Args:
        noise: λ, at least 0.
        num_steps: how many steps, the last one to the data included; T unless given. May be more than T.
        method: how a step is taken.

            * ``"euler"``: Euler–Maruyama, of first order;
            * ``"heun"``: of second order (weakly), at two calls of the denoiser; steps that are too long for much noise
              diverge, as Euler's do;
            * ``"exponential"``: exact where x̂_0 does not change, of first order: DDIM's step for λ = 0, the bridge's
              (variance β̃) for λ = 1, and stable for steps of any length;
            * ``"multistep"``: the same with x̂_0 extrapolated from the step before (DPM-Solver++ 2M of Lu et al. 2022,
              SA-Solver of Xue et al. 2023): of second order for one call, and as stable.
        grid: ``"log_snr"`` spaces the levels evenly in log-SNR, ``"steps"`` in t; or the times themselves, decreasing
            from T to 1.
        form: ``"preserving"`` or ``"exploding"``: in which form of the process ``"euler"`` and ``"heun"`` step. The
            others step alike in both.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> nd.samplers.SDE(0.0, 10).sample(jax.random.key(0), process).shape  # a deterministic flow
        (2,)

    Raises:
        TypeError: `noise` is no number.
        ValueError: `noise` negative, an unknown name, `num_steps` below 2, a grid that does not decrease;
            when called, a grid that does not lead from T to 1, or a process of bits.
    """

    noise: float = eqx.field(static=True)
    num_steps: int | None = eqx.field(static=True)
    method: Method = eqx.field(static=True)
    grid: Grid | tuple[float, ...] = eqx.field(static=True)
    form: Form = eqx.field(static=True)

    def __init__(
        self,
        noise: float = 1.0,
        num_steps: int | None = None,
        method: Method = "multistep",
        grid: Grid | Sequence[float] = "log_snr",
        *,
        form: Form = "preserving",
    ) -> None:
        self.noise = check_share("noise", noise, np.inf)
        self.num_steps = None if num_steps is None else check_count("num_steps", num_steps, 2)
        self.method = check_choice("method", method, _METHODS)
        self.grid = _checked_grid(grid, self.num_steps)
        self.form = check_choice("form", form, ("preserving", "exploding"))

    @property
    def pull(self) -> float:
        """(1 + λ²)/2, the weight of x̂_0 − v in the drift."""
        return (1 + self.noise**2) / 2

    def chain_steps(self, process: ReverseProcess) -> int | None:
        """Its own number of steps, as far as the chain has so many."""
        return None if self.num_steps is None else min(self.num_steps, process.num_steps)

    @property
    def is_deterministic(self) -> bool:
        """Whether λ = 0."""
        return self.noise == 0

    def encode(self, process: ReverseProcess, x_0: Shaped[ArrayLike, "*example"]) -> Float[Array, "*example"]:
        """The noise x_T that the flow (λ = 0) leads to x_0: the inverse of `decode`, up to the error of the steps.

        The flow is that of the data with the noise of t = 1 added, of variance σ_1² c², and starts there: x_0 is taken
        as a point of that law.

        Args:
            process: a Gaussian reverse process.
            x_0: shape (*batch, *event), in data units.

        Returns:
            x_T in data units, of the shape of `x_0`.

        Raises:
            ValueError: λ > 0, `x_0` of another shape, or a process of bits.
        """
        return self._flow(process, "x_0", x_0, up=True)

    def decode(self, process: ReverseProcess, x_T: Shaped[ArrayLike, "*example"]) -> Float[Array, "*example"]:
        """The data that the flow (λ = 0) leads from x_T; draws of π become draws of the law that `encode` speaks of.

        Args:
            process: a Gaussian reverse process.
            x_T: shape (*batch, *event), in data units.

        Returns:
            x_0 in data units, of the shape of `x_T`.

        Raises:
            ValueError: λ > 0, `x_T` of another shape, or a process of bits.
        """
        return self._flow(process, "x_T", x_T, up=False)

    def levels(self, process: ReverseProcess, start: float | None = None) -> Level:
        """The levels that are visited, from `start` (T unless given) down to 1; shape (steps,)."""
        schedule, last = process.diffusion.schedule, process.num_steps
        first = float(last if start is None else start)
        if isinstance(self.grid, tuple):
            if self.grid[0] != last or self.grid[-1] != 1:
                raise ValueError(f"grid: expected times from T = {last} to 1, got {self.grid[0]} to {self.grid[-1]}")
            t = np.asarray([first, *(time for time in self.grid if time < first)])
            return Level(jnp.asarray(t), _log_snr(schedule, t))
        count = last if self.num_steps is None else self.num_steps
        count = 1 + ceil((count - 1) * (first - 1) / (last - 1))  # from later on, fewer steps of the same length
        t = np.linspace(1, first, count)[::-1]
        if self.grid == "steps":
            return Level(jnp.asarray(t), _log_snr(schedule, t))
        noisiest, cleanest = _log_snr(schedule, np.asarray([first, 1.0]))
        log_snr = jnp.linspace(cleanest, noisiest, count)[::-1]
        return Level(schedule.time_at(log_snr), log_snr)

    def begin(self, z: Float[Array, "*event"]) -> State:
        """The state before the first step; several steps of one kind remember the last prediction."""
        return State(z, jnp.zeros_like(z) if self.method == "multistep" else None)

    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        """One step, up or down."""
        prediction = predict(state.z, move.now)
        if self.method == "exponential":
            return State(self._exponential(state.z, prediction, 0.0, move, noise), None)
        if self.method == "multistep":
            slope = (prediction - state.memory) / move.before
            return State(self._exponential(state.z, prediction, slope, move, noise), prediction)
        return State(self._classical(predict, state.z, prediction, move, noise), None)

    def _exponential(self, z: Array, prediction: Array, slope: Array | float, move: Move, noise: Array) -> Array:
        """The solution for a prediction that changes linearly in log-SNR; its noise is exact."""
        length = move.to.log_snr - move.now.log_snr
        fresh = None if self.is_deterministic else -jnp.expm1(-(self.noise**2) * length)
        gained = length + jnp.expm1(-self.pull * length) / self.pull
        return mixed(z, prediction, move, noise, fresh) + move.to.signal * gained * slope

    def _classical(self, predict: Predict, z: Array, prediction: Array, move: Move, noise: Array) -> Array:
        """Euler–Maruyama, or Heun with the same noise in both stages."""
        now, to = move.now, move.to
        length = to.log_snr - now.log_snr
        drift, rate, unit = self._drift(z, prediction, now), self._rate(now), self._unit(to)
        if self.method == "heun":
            rate = (rate + self._rate(to)) / 2
        kick = 0.0 if self.is_deterministic else self.noise * jnp.sqrt(rate * length) * noise
        y = z / self._unit(now) + kick
        new = (y + length * drift) * unit
        if self.method == "euler":
            return new
        return (y + length / 2 * (drift + self._drift(new, predict(new, to), to))) * unit

    def _unit(self, level: Level) -> Array | float:
        """By what the state in the form that is stepped in is multiplied to be the variance-preserving one."""
        return 1.0 if self.form == "preserving" else level.signal

    def _rate(self, level: Level) -> Array:
        """Variance of the forward noise per unit of log-SNR, in that form."""
        return jnp.square(level.noise_scale / self._unit(level))

    def _drift(self, z: Array, prediction: Array, level: Level) -> Array:
        """Drift per unit of log-SNR, in that form."""
        toward = self.pull * (level.signal * prediction - z)
        return toward + 0.5 * level.variance * z if self.form == "preserving" else toward / level.signal

    def _flow(self, process: ReverseProcess, name: str, x: ArrayLike, up: bool) -> Array:
        if not self.is_deterministic:
            raise ValueError(f"noise: expected 0, the deterministic flow, to encode or decode, got {self.noise:g}")
        diffusion, x = self._diffusion(process), jnp.asarray(x, dtype=float)
        batch, levels = check_event(name, x.shape, process.event_shape), self.levels(process)
        levels = jax.tree.map(lambda part: part[::-1], levels) if up else levels
        idle = jnp.zeros(len(levels.t) - 1)

        def one(x: Array) -> Array:
            x = diffusion.from_exploding(x, 1.0) if up else x
            z = self.run(process, diffusion.standardize(x), levels, idle, lambda noise: noise)
            x = diffusion.unstandardize(z)
            return x if up else diffusion.to_exploding(x, 1.0)

        for _ in batch:
            one = jax.vmap(one)
        return one(x)


def check_share(name: str, value: Any, greatest: float) -> float:
    """Return a finite number from 0 to `greatest`.

    Raises:
        TypeError: no number.
        ValueError: any other number.
    """
    if not (is_number(value) and 0 <= value <= greatest and np.isfinite(float(value))):
        wanted = "a finite number of at least 0" if np.isinf(greatest) else f"a number in [0, {greatest:g}]"
        raise refusal(f"{name}: expected {wanted}, got {value!r}", is_number(value))
    return float(value)


def _log_snr(schedule: AbstractSchedule, t: np.ndarray) -> Array:
    return jnp.maximum(schedule.log_snr(t), LEAST_LOG_SNR)


def _checked_grid(grid: Any, num_steps: int | None) -> Grid | tuple[float, ...]:
    if isinstance(grid, str):
        names: tuple[Grid, ...] = ("log_snr", "steps")
        return check_choice("grid", grid, names)
    check_real("grid", grid)
    times = np.asarray(grid, dtype=float)
    if times.ndim != 1 or len(times) < 2 or not (np.isfinite(times).all() and (np.diff(times) < 0).all()):
        raise ValueError(f"grid: expected 'log_snr', 'steps' or times that decrease from T to 1, got {grid!r}")
    if num_steps not in (None, len(times)):
        raise ValueError(f"num_steps: expected None or the grid's {len(times)}, got {num_steps}")
    return tuple(times.tolist())
