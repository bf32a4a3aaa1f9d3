"""A learned diffusion prior times a factor, as a NumPyro distribution.

p(x) r(x), the posterior where r is a likelihood (Sohl-Dickstein et al. 2015, §2.5). The density is known but for a
constant, and but for the gap of the *bound* K; draws and the constant, the evidence, come from twisted SMC under the
prior's own chain, *consistent as particles grow*, the evidence *unbiased*. Products and powers of priors are posteriors
too, with kernels whose constants the weights count (`pool`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Real, Shaped
from numpyro.distributions import constraints

from .._checks import check_count, check_event, check_key, is_concrete
from ..factors import AbstractFactor, factors_of, pull_back, with_known
from ..process import ReverseProcess
from ..samplers import AbstractPosteriorSampler, Particles, TwistedSMC, reliability
from ..samplers.base import following
from .base import ModuleDistribution, check_kind
from .parts import PosteriorParts, PriorParts, run_islands
from .pool import check_power, pool_parts
from .prior import DiffusionPrior


class DiffusionPosterior(ModuleDistribution):
    """p(x) r(x), a prior times a factor: what ``prior * factor`` makes, and ``prior * prior`` and ``prior ** beta``.

    `sample` runs the posterior sampler once for each draw, so that draws are independent; with the default `TwistedSMC`
    it is *consistent as particles grow*. `log_prob` is the prior's (K bound, frozen key) plus log r: *unnormalised*,
    its missing constant is minus the log evidence, which `smc` estimates. Usable as a site of a NumPyro model; there,
    as everywhere in HMC, the constant does not matter. Where it depends on another unknown of the model, such as the
    factor's own scale, the model's density is prior times factor, as if r were one more statement. With known
    coordinates (`Delta`) `log_prob` is −inf off them, and HMC has nowhere to go: `nd.infer.SMC` and
    `nd.infer.ParticleGibbs` take such a site.

    Priors of real numbers with one diffusion multiply too, and have powers: Π p_i(x)^{β_i} r(x). `sample` and `smc` are
    then *consistent as particles grow* for the product of the chains' densities of whole paths, whose x_0 has the law
    of the product where the chains invert the diffusion exactly (as for Gaussian data), and else as nearly as the
    bounds K are tight (`numpyro_diffusion.distributions.pool`). `smc` estimates the log normalising constant.

    Args:
        prior: a prior of batch shape ().
        factor: r(x), from `numpyro_diffusion.factors`.
        sampler: of the posterior; ``TwistedSMC(64)`` unless given.
        validate_args: NumPyro's validation switch.

    Example:
        >>> known = jnp.arange(8) < 4  # four columns of each row, exactly
        >>> posterior = nd.load("digits") * nd.factors.Delta(jnp.zeros((8, 8)), jnp.broadcast_to(known, (8, 8)))
        >>> posterior.event_shape, posterior.log_prob(jnp.ones((8, 8)))  # what is known is 0
        ((8, 8), Array(-inf, dtype=float32))

    Raises:
        ValueError: a part of the wrong kind, a factor that does not fit the prior's examples, a prior with a batch.
    """

    def __init__(
        self,
        prior: DiffusionPrior,
        factor: AbstractFactor,
        sampler: AbstractPosteriorSampler | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        sampler = TwistedSMC() if sampler is None else sampler
        check_kind("prior", prior, DiffusionPrior)
        check_kind("factor", factor, AbstractFactor)
        check_kind("sampler", sampler, AbstractPosteriorSampler)
        if prior.batch_shape:
            raise ValueError(f"prior: expected batch shape (), got {prior.batch_shape}; expand the posterior instead")
        factor.check(prior.event_shape, prior.process.diffusion.data_support)
        pull_back(factor, prior.transform, prior.event_shape)  # known values off the support are refused here
        parts = PosteriorParts(prior.module, factor, sampler)
        super().__init__(parts, prior.event_shape, validate_args=validate_args)

    @property
    def process(self) -> ReverseProcess:
        """The prior's reverse process."""
        return self.module.prior.process

    @property
    def prior(self) -> DiffusionPrior:
        """p(x), without the factor."""
        return self._like(lambda parts: _prior(parts.prior, self._validate_args))

    def _facts(self) -> dict[str, object]:
        module = self.module
        return super()._facts() | module.prior.process.facts() | {
            "factor": " * ".join(type(part).__name__ for part in factors_of(module.factor)),
            "sampler": type(module.sampler).__name__,
        }  # fmt: skip

    @property
    def factor(self) -> AbstractFactor:
        """r(x)."""
        return self.module.factor

    @property
    def sampler(self) -> AbstractPosteriorSampler:
        """The sampler behind `sample`."""
        return self.module.sampler

    @property
    def support(self) -> constraints.Constraint:
        """The prior's."""
        return self.module.prior.support

    @property
    def has_rsample(self) -> bool:
        """False, as draws jump where particles are resampled, and a gradient through them is not that of their law."""
        return False

    def with_(
        self,
        *,
        factor: AbstractFactor | None = None,
        sampler: AbstractPosteriorSampler | None = None,
        **prior: Any,
    ) -> "DiffusionPosterior":
        """The same posterior with another factor or sampler, or of the prior with another `likelihood` or `key`."""
        validate = self._validate_args
        change = lambda parts: _prior(parts.prior, validate).with_(**prior)
        choose = lambda parts: (factor or parts.factor, sampler or parts.sampler)
        return self._like(lambda parts: DiffusionPosterior(change(parts), *choose(parts), validate_args=validate))

    def log_r(self, value: Shaped[ArrayLike, "..."]) -> Real[Array, "..."]:
        """log r of values of shape (*lead, *event_shape), in nats, shape (*lead,)."""
        value = jnp.asarray(value)
        lead = jnp.broadcast_shapes(check_event("value", value.shape, self.event_shape), self.batch_shape)
        return self._over_values(DiffusionPosterior._log_r_one, value, lead)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Shaped[Array, "..."]:
        """Draws of shape (*sample_shape, *batch_shape, *event_shape).

        Raises:
            ValueError: draws that are no numbers, where they are known: r is 0 at all particles.
        """
        draws = super().sample(key, sample_shape)
        if is_concrete(draws) and np.isnan(np.asarray(draws, dtype=float)).any():
            raise ValueError("factor: expected r > 0 at some of the sampler's particles, got 0 (or no number) at all")
        return draws

    def smc(self, key: Array, num_islands: int = 1) -> Particles:
        """The particles of independent SMC runs, with their log evidence; leading shape (num_islands,).

        Warns, with the numbers, where the effective size on the way, the tail of the weights or the islands' evidences
        speak against the answer (`nd.samplers.reliability`).

        Raises:
            ValueError: the sampler is no `TwistedSMC`, or the posterior has a batch shape; r is 0 at all particles.
        """
        if not isinstance(self.sampler, TwistedSMC) or self.batch_shape:
            kind = type(self.sampler).__name__
            raise ValueError(f"smc: expected a TwistedSMC sampler and no batch, got {kind} and {self.batch_shape}")
        keys = jax.random.split(check_key("key", key), check_count("num_islands", num_islands))
        particles = run_islands(self.module, keys)
        if is_concrete(particles.log_evidence):
            if not np.isfinite(np.asarray(particles.log_evidence)).any():
                raise ValueError("factor: expected r > 0 at some particle, got 0 (or no number) at all of them")
            reliability(particles).warn(
                "More particles, or another twist, may help; nd.infer.SMC tries some by itself."
            )
        return particles

    def as_posterior(self) -> "DiffusionPosterior":
        """Itself."""
        return self

    def __mul__(self, other: "AbstractFactor | DiffusionPrior | DiffusionPosterior") -> "DiffusionPosterior":
        """Times another factor, prior or product of priors, unnormalised.

        Raises:
            ValueError: priors that do not fit together: other diffusions, shapes or transforms; a batch shape.
        """
        if isinstance(other, AbstractFactor):
            return self._like(lambda parts: self._made(parts.prior, parts.factor * other, parts.sampler))
        if not isinstance(other, DiffusionPrior | DiffusionPosterior):
            return NotImplemented
        theirs = other.as_posterior()
        if self.batch_shape or theirs.batch_shape:
            shapes = f"{self.batch_shape} and {theirs.batch_shape}"
            raise ValueError(f"prior: expected batch shape () to multiply, got {shapes}; expand the product instead")
        ours, others = self.module, theirs.module
        parts, volume = pool_parts((ours.prior, others.prior), jnp.ones(2))
        return self._made(parts, ours.factor * others.factor * volume, ours.sampler)

    __rmul__ = __mul__

    def __pow__(self, beta: ArrayLike) -> "DiffusionPosterior":
        """``posterior ** beta`` is `tempered`."""
        return self.tempered(beta)

    def tempered(self, beta: ArrayLike) -> "DiffusionPosterior":
        """p(x)^β, unnormalised, of priors and products of priors without a factor; see `DiffusionPrior.tempered`.

        Raises:
            TypeError: no number.
            ValueError: not positive; a factor, which may be multiplied by afterwards.
        """
        if self.factor.parts:
            raise ValueError("tempered: expected a product of priors without a factor, which comes after, got one with")
        power = check_power(beta)

        def made(parts: PosteriorParts) -> DiffusionPosterior:
            return self._made(*pool_parts((parts.prior,), power[None]), parts.sampler)

        return self._like(made)

    def _made(
        self, parts: PriorParts, factor: AbstractFactor, sampler: AbstractPosteriorSampler
    ) -> "DiffusionPosterior":
        validate = self._validate_args
        return DiffusionPosterior(_prior(parts, validate), factor, sampler, validate_args=validate)

    def _sample_one(self, module: Any, key: Array) -> Array:
        prior = module.prior
        factor, _ = pull_back(module.factor, prior.transform, self.event_shape)
        draw = following(module.sampler, prior.sampler, prior.process).sample(key, prior.process, factor)
        return with_known(module.factor, prior.to_data(draw))

    def _log_r_one(self, module: Any, value: Array) -> Array:
        return module.factor.log_r(value)

    def _log_prob_one(self, module: Any, value: Array) -> Array:
        prior = module.prior
        return prior.estimate(prior.key, value).value + module.factor.log_r(value)


def _prior(parts: PriorParts, validate_args: bool | None) -> DiffusionPrior:
    return DiffusionPrior(
        parts.process,
        parts.likelihood,
        parts.sampler,
        parts.key,
        transform=parts.transform,
        validate_args=validate_args,
    )


# What `prior * factor` makes: the module of the prior, on which this one stands, cannot import it.
DiffusionPrior.posterior_class = DiffusionPosterior
