"""What the reverse SDE and DDIM share: chains whose every state is a smooth function of standard noise.

A chain of steps that are deterministic, or have normal noise of their own, makes x_0 as one smooth function of standard
normal noise. The base class runs such chains from one level of log-SNR to the next, down to t = 1, and takes the
process's own last step from there to the data; a gradient keeps only some of the states, and computes the others again.
The law is that of the chain with its finite steps, *approximate* for the process that it discretises.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._batching import checkpointed_scan
from .._checks import check_key
from .._shapes import Example
from ..diffusions import GaussianDiffusion, require_gaussian
from ..laws import from_noise
from ..process import ReverseProcess
from .ancestral import check_normalised, check_start
from .base import AbstractSampler


class Level(NamedTuple):
    """Points of a chain, all of one shape.

    Attributes:
        t: times, whole or fractional.
        log_snr: log ᾱ/(1 − ᾱ) there.
    """

    t: Float[Array, "*steps"]
    log_snr: Float[Array, "*steps"]

    @property
    def signal(self) -> Float[Array, "*steps"]:
        """√ᾱ."""
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr))

    @property
    def variance(self) -> Float[Array, "*steps"]:
        """1 − ᾱ."""
        return jax.nn.sigmoid(-self.log_snr)

    @property
    def noise_scale(self) -> Float[Array, "*steps"]:
        """√(1 − ᾱ)."""
        return jnp.sqrt(self.variance)


class State(NamedTuple):
    """Where a chain is, in units in which the noise law is N(0, 1).

    Attributes:
        z: the state x_t, standardised.
        memory: what the sampler carries from step to step beside it.
    """

    z: Float[Array, "*event"]
    memory: Any


class Move(NamedTuple):
    """One step.

    Attributes:
        now: the level of the state.
        to: the level to go to.
        before: by how much the step before this one raised the log-SNR; infinite for the first.
    """

    now: Level
    to: Level
    before: Float[Array, "*steps"]


Predict = Callable[[Float[Array, "*event"], Level], Float[Array, "*event"]]
Noise = Float[Array, "#*event"]  # a single 0 where a step has none


class AbstractSmoothSampler(AbstractSampler):
    """Steps from level to level, down to t = 1, and the process's own last step from there to the data."""

    @property
    @abstractmethod
    def is_deterministic(self) -> bool:
        """Whether the inner steps need no noise."""

    @abstractmethod
    def levels(self, process: ReverseProcess, start: float | None = None) -> Level:
        """The levels that are visited, from `start` (T unless given) down to 1; shape (steps,)."""

    @abstractmethod
    def step(self, predict: Predict, state: State, move: Move, noise: Noise) -> State:
        """One step; `predict(z, level)` is E[x_0 | x_t], standardised, `noise` a standard normal or unused."""

    def begin(self, z: Float[Array, "*event"]) -> State:
        """The state before the first step."""
        return State(z, None)

    def sample(self, key: PRNGKeyArray, process: ReverseProcess) -> Example:
        """One draw of x_0, shape `event`; the chain is not kept.

        Raises:
            ValueError: the process is not Gaussian.
        """
        diffusion = self._diffusion(process)
        first, rest = jax.random.split(check_key("key", key))
        return self._down(rest, process, diffusion.marginal_noise(first, process.event_shape), self.levels(process))

    def sample_from(self, key: PRNGKeyArray, process: ReverseProcess, x_t: Example, t: float) -> Example:
        """One draw of x_0 from the state `x_t` at time `t`, both of shape `event`.

        Raises:
            ValueError: `t` is not in [1, T], or the process is not Gaussian.
        """
        z = self._diffusion(process).standardize(x_t)
        return self._down(key, process, z, self.levels(process, check_start(t, process)))

    def sample_trajectory(self, key: PRNGKeyArray, process: ReverseProcess) -> Shaped[Array, " steps *event"]:
        """One draw of the chain, x_0 first; shape (steps + 1, *event)."""
        diffusion = self._diffusion(process)
        first, inner, last = jax.random.split(check_key("key", key), 3)
        levels, step = self.levels(process), self._step(process, self._draw(process))
        start = self.begin(diffusion.marginal_noise(first, process.event_shape))
        keep = lambda state, xs: (step(state, xs)[0], state.z)
        end, chain = jax.lax.scan(keep, start, (_moves(levels), jax.random.split(inner, len(levels.t) - 1)))
        x = jax.vmap(diffusion.unstandardize)(jnp.concatenate([end.z[None], chain[::-1]]))
        return jnp.concatenate([process.last_kernel(x[0]).sample(last)[None], x])

    def noise_shape(self, process: ReverseProcess) -> tuple[int, ...]:
        """(n, *event): a standard normal for x_T, one for each inner step if these need any, one for the last step."""
        self._diffusion(process)
        count = jax.eval_shape(lambda: self.levels(process)).t.shape[0]
        return (2 if self.is_deterministic else count + 1, *process.event_shape)

    def from_noise(self, noise: Float[Array, " steps *event"], process: ReverseProcess) -> Float[Array, "*event"]:
        """The draw of x_0 that `noise` makes, x_T's noise first; its gradient keeps at most 256, or about 2 √n, states.

        Raises:
            ValueError: the process is not Gaussian.
        """
        diffusion, levels = self._diffusion(process), self.levels(process)
        inner = jnp.zeros(len(levels.t) - 1) if self.is_deterministic else noise[1:-1]
        z_1 = self.run(process, noise[0], levels, inner, lambda noise: noise)
        return from_noise(process.last_kernel(diffusion.unstandardize(z_1)), noise[-1])

    def run(
        self,
        process: ReverseProcess,
        z: Float[Array, "*event"],
        levels: Level,
        source: Shaped[Array, "steps ..."],
        draw: Callable[[Array], Noise],
    ) -> Float[Array, "*event"]:
        """The state at the last of the levels, standardised; each step's noise is `draw` of its `source`."""
        step = self._step(process, draw)
        return checkpointed_scan(step, self.begin(z), (_moves(levels), source)).z

    def _down(self, key: PRNGKeyArray, process: ReverseProcess, z: Array, levels: Level) -> Array:
        inner, last = jax.random.split(check_key("key", key))
        z_1 = self.run(process, z, levels, jax.random.split(inner, len(levels.t) - 1), self._draw(process))
        return process.last_kernel(self._diffusion(process).unstandardize(z_1)).sample(last)

    def _draw(self, process: ReverseProcess) -> Callable[[Array], Array]:
        if self.is_deterministic:
            return lambda key: jnp.zeros(())
        return lambda key: process.diffusion.marginal_noise(key, process.event_shape)

    def _step(self, process: ReverseProcess, draw: Callable[[Array], Array]) -> Any:
        diffusion = self._diffusion(process)

        def predict(z: Array, level: Level) -> Array:
            posterior = process.denoiser.posterior(diffusion, diffusion.unstandardize(z), level.t)
            return diffusion.standardize(posterior.mean)

        return lambda state, xs: (self.step(predict, state, xs[0], draw(xs[1])), None)

    def _diffusion(self, process: ReverseProcess) -> GaussianDiffusion:
        """The Gaussian diffusion, or an error that names the samplers that serve others."""
        expected = f"process: expected a GaussianDiffusion for {type(self).__name__}"
        hint = ", which Ancestral, and for posteriors TwistedSMC, serve"
        check_normalised(process)
        return require_gaussian(process.diffusion, expected, hint)


def mixed(
    z: Float[Array, "*event"],
    prediction: Float[Array, "*event"],
    move: Move,
    noise: Noise,
    fresh: Float[Array, ""] | None,
) -> Float[Array, "*event"]:
    """√ᾱ_s x̂_0 + √(1−ᾱ_s) (√(1−f) ε̂ + √f ε), f = `fresh` or 0: the steps that are exact for a known x_0."""
    direction = (z - move.now.signal * prediction) / move.now.noise_scale
    if fresh is not None:
        direction = jnp.sqrt(1 - fresh) * direction + jnp.sqrt(fresh) * noise
    return move.to.signal * prediction + move.to.noise_scale * direction


def _moves(levels: Level) -> Move:
    """The steps between the levels."""
    now, to = (Level(*(part[where] for part in levels)) for where in (slice(None, -1), slice(1, None)))
    raised = to.log_snr - now.log_snr
    return Move(now, to, jnp.concatenate([jnp.full(1, jnp.inf), raised])[: len(raised)])
