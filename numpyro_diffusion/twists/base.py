"""What a twist answers: ψ_t(x_t) ≈ E[r(x_0) | x_t], and a proposal for the next step that it leads."""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.discrete import BernoulliLogits

from ..denoisers.base import normal
from ..diffusions.binomial import posterior_logits
from ..diffusions.gaussian import variance_of
from ..discretised import DiscretisedNormal
from ..factors import AbstractFactor
from ..process import ReverseProcess

# The farthest that a gradient may move a proposal, in standard deviations of the kernel.
FARTHEST = 5.0


class TwistedStep(NamedTuple):
    """All that a step from x_t needs, from one evaluation of the denoiser.

    Attributes:
        log_psi: log ψ_t(x_t) in nats, shape ().
        kernel: p(x_s | x_t).
        proposal: a law of x_s that is close to p(x_s | x_t) ψ_s(x_s); any error of it is weighted away.
    """

    log_psi: Array
    kernel: dist.Distribution
    proposal: dist.Distribution


class AbstractTwist(eqx.Module):
    """Chooses r(x_t) at every noise level; written for one unbatched example."""

    @property
    def needs_moments(self) -> bool:
        """Whether `step` uses the prior's own covariance, `process.moments`."""
        return False

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """What all particles and steps share, computed once: arrays, passed on to `step`."""
        del process, factor
        return None

    @abstractmethod
    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Array, t: Array, s: Array
    ) -> TwistedStep:
        """ψ_t(x_t) and the step to x_s, 1 ≤ s < t."""

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Raise ``ValueError`` where the twist does not fit the family or the factor."""


def tilt(kernel: dist.Distribution, gradient: Array) -> dist.Distribution:
    """kernel(x) · exp(gradient · x), normalised: a normal's mean moves by Σ·gradient, bits' logits by the gradient.

    By at most five standard deviations, or five in logits, since a gradient is true near where it was taken only. A
    rounded normal law is tilted before it is rounded: *approximate*.
    """
    if isinstance(kernel.base_dist, BernoulliLogits):
        logits = posterior_logits(kernel) + jnp.clip(gradient, -FARTHEST, FARTHEST)
        return BernoulliLogits(logits, validate_args=False).to_event(jnp.ndim(logits))
    if isinstance(each := kernel.base_dist, DiscretisedNormal):
        # Of the normal law that is rounded: every level keeps some mass, so that weights can correct the rest.
        loc = each.loc + each.scale * jnp.clip(each.scale * gradient, -FARTHEST, FARTHEST)
        return DiscretisedNormal(loc, each.scale, each.num_levels, validate_args=False).to_event(jnp.ndim(loc))
    scale = jnp.sqrt(variance_of(kernel))
    return normal(kernel.mean + scale * jnp.clip(scale * gradient, -FARTHEST, FARTHEST), jnp.square(scale))
