"""What a sampler of the reverse process answers."""

from abc import abstractmethod

import equinox as eqx
from jax import Array

from ..process import ReverseProcess


class AbstractSampler(eqx.Module):
    """Draws x_0, or the whole chain, from a reverse process; one unbatched example a call."""

    @abstractmethod
    def sample(self, key: Array, process: ReverseProcess) -> Array:
        """One draw of x_0, shape `event`."""

    @abstractmethod
    def trajectory(self, key: Array, process: ReverseProcess) -> Array:
        """One draw of the chain, ordered by time, x_0 first; shape (steps + 1, *event)."""
