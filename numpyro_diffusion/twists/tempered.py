"""Any twist, trusted less at high noise."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.discrete import BernoulliLogits

from ..denoisers.base import normal
from ..diffusions.binomial import posterior_logits
from ..factors import AbstractFactor
from ..factors.low_rank import LoweredNormal
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep
from .default import default_twist


class Tempered(AbstractTwist):
    """ψ_t(x_t) to the power ((T − t)/T)^power: another twist, trusted fully only near the data.

    `MomentMatched` and `PseudoInverse` take x_0 given x_t for a Gaussian. Where it is not, they can be too sure at high
    noise: particles are led away from what the data turn out to want, and few are left. Tempering follows annealed r
    ([2015] §2.5), applied to E[r(x_0) | x_t] in place of r(x_t). As with every twist, weights make up for it. It costs
    where the twist was right, as for Gaussian priors.

    Args:
        twist: ψ_t; chosen from the factor unless given (`nd.twists.default_twist`).
        power: 0 or more; 0 is the twist itself, larger ones trust it later. The 2015 paper's annealing has 1.

    Raises:
        ValueError: no twist; `power` negative or not finite.
    """

    twist: AbstractTwist | None
    power: float = eqx.field(static=True)

    def __init__(self, twist: AbstractTwist | None = None, power: float = 0.5) -> None:
        if twist is not None and not isinstance(twist, AbstractTwist):
            raise ValueError(f"twist: expected one from numpyro_diffusion.twists, got {twist!r}")
        if not (np.isfinite(power) and power >= 0):
            raise ValueError(f"power: expected a finite number of at least 0, got {power}")
        self.twist, self.power = twist, float(power)

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
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Array, t: Array, s: Array
    ) -> TwistedStep:
        """The twist's step, its ψ_t tempered, and a proposal as far from the kernel as ψ_s is tempered."""
        step = self._inner(process, factor).step(process, factor, shared, x_t, t, s)
        share = lambda t: (1 - jnp.asarray(t, dtype=float) / process.num_steps) ** self.power
        return TwistedStep(share(t) * step.log_psi, step.kernel, between(step.kernel, step.proposal, share(s)))

    def _inner(self, process: ReverseProcess, factor: AbstractFactor) -> AbstractTwist:
        return default_twist(process, factor) if self.twist is None else self.twist


def between(kernel: Any, proposal: Any, share: Array) -> dist.Distribution:
    """kernel^(1 − share) · proposal^share, normalised: kernel · ψ^share, if the proposal is kernel · ψ.

    Args:
        kernel: a factorised law of one event, `Normal` or `Bernoulli`.
        proposal: a law of the same family, or a `LoweredNormal` of the kernel's scale.
        share: in [0, 1], shape ().
    """
    if isinstance(proposal, LoweredNormal):
        # In the kernel's own coordinates: precision 1 across, 1/kept along the rows of the basis.
        shift, axes = (proposal.loc - kernel.mean) / proposal.scale, jnp.ndim(kernel.mean)
        along = jnp.tensordot(proposal.basis, shift, axes)
        mixed = share + (1 - share) * proposal.kept
        moved = share * (shift + jnp.tensordot(along * (1 / mixed - 1), proposal.basis, 1))
        rows = jnp.sqrt(jnp.maximum(share * (1 - proposal.kept) / mixed, 0.0))
        directions = rows.reshape((-1,) + (1,) * axes) * proposal.basis
        return LoweredNormal(kernel.mean + proposal.scale * moved, proposal.scale, directions)
    if isinstance(kernel.base_dist, BernoulliLogits):
        own, led = posterior_logits(kernel), posterior_logits(proposal)
        return BernoulliLogits(own + share * (led - own), validate_args=False).to_event(jnp.ndim(own))
    # Precisions mix; multiplied out, so that a variance of 0 stays one.
    weight, own = share * kernel.variance, (1 - share) * proposal.variance
    total = jnp.where(weight + own > 0, weight + own, 1.0)
    mean = jnp.where(weight + own > 0, (weight * proposal.mean + own * kernel.mean) / total, proposal.mean)
    return normal(mean, kernel.variance * proposal.variance / total)
