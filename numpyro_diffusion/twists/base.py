"""What a twist answers: ψ_t(x_t) ≈ E[r(x_0) | x_t], and a proposal for the next step that it leads.

The best twist, ψ_t(x_t) = E[r(x_0) | x_t], makes p(x_s | x_t) ψ_s(x_s)/ψ_t(x_t) a kernel that integrates to one: the
posterior's own, with which no weight changes. It is seldom known. Any positive ψ leaves the evidence of SMC unbiased
and its particles consistent; a better one has weights that vary less (Whiteley and Lee 2014; for diffusion models Wu et
al. 2023). A twist answers with ψ_t(x_t), the model's own kernel, and a proposal that is near to the twisted kernel.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import numpyro.distributions as dist
from jaxtyping import Array, Float

from .._shapes import Example, Time
from ..factors import AbstractFactor
from ..process import ReverseProcess


class TwistedStep(NamedTuple):
    """All that a step from x_t needs, from one evaluation of the denoiser.

    Attributes:
        log_psi: log ψ_t(x_t) in nats, shape ().
        kernel: p(x_s | x_t).
        proposal: a law of x_s that is close to p(x_s | x_t) ψ_s(x_s); any error of it is weighted away.
    """

    log_psi: Float[Array, ""]
    kernel: dist.Distribution
    proposal: dist.Distribution


class AbstractTwist(eqx.Module):
    """Chooses r(x_t) at every noise level; written for one unbatched example."""

    @property
    def said(self) -> str:
        """The twist in words."""
        return type(self).__name__

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
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t) and the step to x_s, 1 ≤ s < t."""

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Raise ``ValueError`` where the twist does not fit the family or the factor."""


def check_twist(twist: Any) -> AbstractTwist | None:
    """Return a twist, or the None for which one is chosen.

    Raises:
        TypeError: anything else.
    """
    if twist is not None and not isinstance(twist, AbstractTwist):
        raise TypeError(f"twist: expected one from numpyro_diffusion.twists, got {twist!r:.80}")
    return twist
