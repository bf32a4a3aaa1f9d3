"""What a sampler of the reverse process answers.

A sampler of the prior draws x_0, or the chain, from the reverse process p, and for chains of Gaussian steps makes the
same draw of given standard normal noise, so that inference may move in the noise. A sampler of posteriors draws from
p(x_0) r(x_0)/Z for a factor r. Whether draws are exact, consistent as particles grow or approximate, each class says.
"""

import dataclasses
from abc import abstractmethod
from typing import Any, TypeVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._shapes import Example
from ..factors import AbstractFactor
from ..process import ReverseProcess

Posterior = TypeVar("Posterior", bound=Any)


class AbstractSampler(eqx.Module):
    """Draws x_0, or the whole chain, from a reverse process; one unbatched example a call."""

    @abstractmethod
    def sample(self, key: PRNGKeyArray, process: ReverseProcess) -> Example:
        """One draw of x_0, shape `event`."""

    @abstractmethod
    def sample_from(self, key: PRNGKeyArray, process: ReverseProcess, x_t: Example, t: float) -> Example:
        """One draw of x_0 from the state `x_t` at time `t` in [1, T], both of shape `event`: the rest of the chain."""

    @abstractmethod
    def sample_trajectory(self, key: PRNGKeyArray, process: ReverseProcess) -> Shaped[Array, " steps *event"]:
        """One draw of the chain, ordered by time, x_0 first; shape (steps + 1, *event)."""

    def chain_steps(self, process: ReverseProcess) -> int | None:
        """How many of the chain's steps a posterior is about whose prior has this sampler; None for all of them."""
        del process
        return None

    def check(self, process: ReverseProcess) -> None:
        """Raise ``ValueError`` where the chain is too short for the sampler's steps."""
        del process

    @abstractmethod
    def noise_shape(self, process: ReverseProcess) -> tuple[int, ...]:
        """Shape of the standard-normal noise that `from_noise` takes."""

    @abstractmethod
    def from_noise(self, noise: Float[Array, " steps *event"], process: ReverseProcess) -> Float[Array, "*event"]:
        """The draw of x_0 that `noise` makes, shape `event`; for chains of Gaussian steps."""


class AbstractPosteriorSampler(eqx.Module):
    """Draws x_0 from p(x_0) r(x_0)/Z; one unbatched example a call."""

    @abstractmethod
    def sample(self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor) -> Example:
        """One draw of x_0, shape `event`."""


def following(sampler: Posterior, prior_sampler: AbstractSampler, process: ReverseProcess) -> Posterior:
    """A posterior's sampler with as many steps as it says itself, or else as the prior's own sampler takes."""
    if getattr(sampler, "num_steps", 0) is not None:
        return sampler
    return dataclasses.replace(sampler, num_steps=prior_sampler.chain_steps(process))
