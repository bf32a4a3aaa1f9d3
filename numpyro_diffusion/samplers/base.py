"""What a sampler of the reverse process answers."""

from abc import abstractmethod

import equinox as eqx
from jax import Array

from ..factors import AbstractFactor
from ..process import ReverseProcess


class AbstractSampler(eqx.Module):
    """Draws x_0, or the whole chain, from a reverse process; one unbatched example a call."""

    @abstractmethod
    def sample(self, key: Array, process: ReverseProcess) -> Array:
        """One draw of x_0, shape `event`."""

    @abstractmethod
    def sample_from(self, key: Array, process: ReverseProcess, x_t: Array, t: float) -> Array:
        """One draw of x_0 from the state `x_t` at time `t` in [1, T], both of shape `event`: the rest of the chain."""

    @abstractmethod
    def trajectory(self, key: Array, process: ReverseProcess) -> Array:
        """One draw of the chain, ordered by time, x_0 first; shape (steps + 1, *event)."""

    @abstractmethod
    def noise_shape(self, process: ReverseProcess) -> tuple[int, ...]:
        """Shape of the standard-normal noise that `from_noise` takes."""

    @abstractmethod
    def from_noise(self, noise: Array, process: ReverseProcess) -> Array:
        """The draw of x_0 that `noise` makes, shape `event`; for chains of Gaussian steps."""


class AbstractPosteriorSampler(eqx.Module):
    """Draws x_0 from p(x_0) r(x_0)/Z; one unbatched example a call."""

    @abstractmethod
    def sample(self, key: Array, process: ReverseProcess, factor: AbstractFactor) -> Array:
        """One draw of x_0, shape `event`."""
