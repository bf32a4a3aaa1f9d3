"""Any twist, trusted less at high noise.

A twist that takes x_0 given x_t for a normal law can be too sure at high noise, where the true law has several modes.
ψ_t to a power that falls to 0 at t = T takes the confidence back, as r(x_t)^{(T−t)/T} does in Sohl-Dickstein et al.
(2015, §2.5), and the proposal goes back towards the kernel by the same share. SMC stays unbiased, as with any positive
twist; particles are wasted where the twist was right.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._checks import check_scalar
from .._shapes import Example, Time
from ..factors import AbstractFactor
from ..laws import between
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep, check_twist
from .fitting import fitting_twist


class Tempered(AbstractTwist):
    """ψ_t(x_t) to the power ((T − t)/T)^power: another twist, trusted fully only near the data.

    `MomentMatched` and `PseudoInverse` take x_0 given x_t for a Gaussian. Where it is not, they can be too sure at high
    noise: particles are led away from what the data turn out to want, and few are left. Tempering follows annealed r
    ([2015] §2.5), applied to E[r(x_0) | x_t] in place of r(x_t). As with every twist, weights make up for it. It costs
    where the twist was right, as for Gaussian priors.

    Args:
        twist: ψ_t; chosen from the factor unless given, as `nd.twists.default_twist` does.
        power: 0 or more; 0 is the twist itself, larger ones trust it later. The 2015 paper's annealing has 1.

    Raises:
        TypeError: no twist; `power` is no number.
        ValueError: `power` negative or not finite.

    Example:
        >>> nd.samplers.TwistedSMC(64, nd.twists.Tempered(nd.twists.Laplace(), 0.5)).twist.power
        0.5
    """

    twist: AbstractTwist | None
    power: float = eqx.field(static=True)

    def __init__(self, twist: AbstractTwist | None = None, power: float = 0.5) -> None:
        check_twist(twist)
        check_scalar("power", power)
        if not (np.isfinite(power) and power >= 0):
            raise ValueError(f"power: expected a finite number of at least 0, got {power}")
        self.twist, self.power = twist, float(power)

    @property
    def said(self) -> str:
        """Of what, and the power."""
        inner = "" if self.twist is None else f"{self.twist.said}, "
        return f"Tempered({inner}power={self.power:g})"

    @property
    def needs_moments(self) -> bool:
        """As the twist does; one that is chosen may."""
        return self.twist is None or self.twist.needs_moments

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """What the twist shares."""
        return self._inner(process, factor).prepare(process, factor)

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """As the twist does."""
        self._inner(process, factor).check(process, factor)

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """The twist's step, its ψ_t tempered, and a proposal as far from the kernel as ψ_s is tempered."""
        step = self._inner(process, factor).step(process, factor, shared, x_t, t, s)
        # Compiled, 1 − T/T may come out below 0: a multiplication by 1/T, fused with the difference.
        left = lambda t: jnp.maximum(1 - jnp.asarray(t, dtype=float) / process.num_steps, 0.0)
        share = lambda t: left(t) ** self.power
        return TwistedStep(share(t) * step.log_psi, step.kernel, between(step.proposal, step.kernel, share(s)))

    def _inner(self, process: ReverseProcess, factor: AbstractFactor) -> AbstractTwist:
        return fitting_twist(process, factor) if self.twist is None else self.twist
