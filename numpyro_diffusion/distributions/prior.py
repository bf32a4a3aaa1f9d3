"""A learned diffusion prior, and its product with a factor, as NumPyro distributions."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from .._checks import check_count, check_event, check_key, check_real, is_concrete
from ..checkpoints import write_module
from ..diffusers import write_process
from ..factors import AbstractFactor, pull_back, with_known
from ..likelihoods import AbstractLikelihood, Estimate, KBound
from ..process import ReverseProcess
from ..samplers import AbstractPosteriorSampler, AbstractSampler, Ancestral, Particles, TwistedSMC, reliability
from ..samplers.base import following
from .base import ModuleDistribution, check_kind
from .given import Conditioned
from .parts import PosteriorParts, PriorParts, check_transform, key_parts, run_islands
from .report import Reported
from .trajectory import ReverseTrajectory


class DiffusionPrior(Conditioned, Reported, ModuleDistribution):
    """A diffusion model over x_0, for use as a site of a NumPyro model.

    `sample` runs the reverse chain (*exact* for the model with the default sampler). `log_prob` is the likelihood
    estimator with a frozen key: with the default, a `KBound`, a *bound* on log p(x_0), estimated, and one smooth
    deterministic function of the value, so that HMC and SVI can use it. Values are in the data's own units.

    Args:
        process: the reverse process.
        likelihood: the estimator behind `log_prob`; ``KBound(low_discrepancy=True)`` unless given, whose noise, the
            same for all values, is a few hundredths of a nat a dimension or less (docs/likelihoods.md).
        sampler: the sampler behind `sample`.
        key: freezes the estimator's noise; ``jax.random.key(0)`` unless given.
        transform: T, a NumPyro transform: the process is one of z, and the data are x = T(z). Draws, densities (with
            ``log |det dx/dz|``), factors and samplers are about x; linear observations and known elements keep closed
            forms where T is affine (`nd.factors.pull_back`). Process, noise and an estimate's terms stay those of z.
        validate_args: NumPyro's validation switch.

    Raises:
        TypeError: a transform that is none of NumPyro's.
        ValueError: a part of the wrong kind; a likelihood for another family; a `key` that is not one JAX key; a
            transform that does not fit.
    """

    def __init__(
        self,
        process: ReverseProcess,
        likelihood: AbstractLikelihood | None = None,
        sampler: AbstractSampler | None = None,
        key: Array | None = None,
        *,
        transform: Transform | None = None,
        validate_args: bool | None = None,
    ) -> None:
        likelihood = KBound(low_discrepancy=True) if likelihood is None else likelihood
        sampler = Ancestral() if sampler is None else sampler
        check_kind("process", process, ReverseProcess)
        check_kind("likelihood", likelihood, AbstractLikelihood)
        check_kind("sampler", sampler, AbstractSampler)
        likelihood.check(process)
        check_transform(transform, process)
        own_key = key_parts(jax.random.key(0) if key is None else key)
        parts = PriorParts(process, likelihood, sampler, *own_key, transform)
        super().__init__(parts, process.event_shape, validate_args=validate_args)

    @property
    def process(self) -> ReverseProcess:
        """The reverse process; with `process.denoiser` and `process.diffusion.schedule`."""
        return self.module.process

    @property
    def likelihood(self) -> AbstractLikelihood:
        """The estimator behind `log_prob`."""
        return self.module.likelihood

    @property
    def sampler(self) -> AbstractSampler:
        """The sampler behind `sample`."""
        return self.module.sampler

    @property
    def key(self) -> Array:
        """The key that freezes the estimator's noise."""
        return self.module.key

    @property
    def transform(self) -> Transform | None:
        """From the process's coordinates to the data's; None where they are the same."""
        return self.module.transform

    @property
    def support(self) -> constraints.Constraint:
        """Real, binary or whole numbers, with the event's rank; with a transform what it maps to."""
        return self.module.support

    @property
    def trajectory(self) -> ReverseTrajectory:
        """The joint distribution of the whole chain, in the process's own coordinates."""
        return self._like(lambda parts: ReverseTrajectory(parts.process, validate_args=self._validate_args))

    def sample_trajectory(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of the chain, x_0 first; shape (*sample_shape, *batch_shape, steps + 1, *event_shape)."""
        return self._draw(key, sample_shape, DiffusionPrior._trajectory_one)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard-normal noise that makes one draw: (n, *event_shape), steps + 1 for `Ancestral`."""
        return self.sampler.noise_shape(self.process)

    def from_noise(self, noise: ArrayLike) -> Array:
        """The draw of x_0 that standard-normal noise makes: smooth, and *exact* in law for the sampler's chain.

        Args:
            noise: shape (*lead, *noise_shape), `lead` broadcastable with the batch shape.

        Returns:
            Shape (*lead, *event_shape).

        Raises:
            ValueError: another shape, or a chain of bits, whose draws are no smooth function of noise.
        """
        check_real("noise", noise)
        noise, shape = jnp.asarray(noise), self.noise_shape
        lead = jnp.broadcast_shapes(check_event("noise", noise.shape, shape), self.batch_shape)
        return self._over_values(DiffusionPrior._from_noise_one, noise, lead, shape)

    def estimate(self, value: ArrayLike, key: Array | None = None) -> Estimate:
        """The estimate behind `log_prob`, with its standard error and its terms.

        Args:
            value: shape (*lead, *event_shape), `lead` broadcastable with the batch shape.
            key: fresh noise for each value from this key; the frozen key, the same for all, unless given.

        Returns:
            An `Estimate` of leading shape `lead` broadcast with the batch shape, in nats.
        """
        check_real("value", value)
        value = jnp.asarray(value)
        lead = jnp.broadcast_shapes(check_event("value", value.shape, self.event_shape), self.batch_shape)
        if self.support.is_discrete and is_concrete(value) and not np.all(self.support(value)):
            raise ValueError(f"value: expected values on the support, {self.support}, got others")
        if key is None:
            return self._over_values(DiffusionPrior._estimate_one, value, lead)
        if self.batch_shape:
            raise ValueError(f"key: expected None for a prior of batch shape {self.batch_shape}, got a key")
        z = self.module.to_latent(value)
        shifted = self.module.shifted
        for _ in lead:
            shifted = jax.vmap(shifted)
        return shifted(self.likelihood(key, self.process, z), z)

    def with_(
        self,
        *,
        likelihood: AbstractLikelihood | None = None,
        sampler: AbstractSampler | None = None,
        key: Array | None = None,
    ) -> "DiffusionPrior":
        """The same prior with another estimator, sampler or frozen key."""
        return self._like(
            lambda parts: DiffusionPrior(
                parts.process,
                parts.likelihood if likelihood is None else likelihood,
                parts.sampler if sampler is None else sampler,
                parts.key if key is None else key,
                transform=parts.transform,
                validate_args=self._validate_args,
            )
        )

    def save(
        self,
        path: str | PathLike[str],
        *,
        dtype: Literal["float16", "float32"] | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the prior to one safetensors file: its arrays, and a readable description; atomic.

        Args:
            path: the file; one that exists is replaced.
            dtype: how floating arrays are stored (they come back as float32); exactly as they are unless given.
            card: what JSON can hold about the prior (data, licence, command, recorded numbers).

        Raises:
            TypeError: a part that no file can describe, such as a network that is a plain function; it is named.
            FileNotFoundError: the folder does not exist.
            ValueError: the prior has a batch shape, for which a file has no place.
        """
        if self.batch_shape:
            raise ValueError(f"save: expected a prior of batch shape (), got {self.batch_shape}")
        write_module(path, self.module, metadata=self._metadata(card), dtype=dtype)

    def save_diffusers(self, folder: str | PathLike[str]) -> None:
        """Write the process as a `DDPMPipeline` that the `diffusers` library can load, without that library.

        That has no place for the scale of the last step, the likelihood, the sampler and the key. Where `loc` and
        `scale` are 127.5, as for pixels in 0 … 255, they are those of the pipeline's own last line.

        Args:
            folder: made if it does not exist; files in it that have the names of the pipeline's are replaced.

        Raises:
            ValueError: a part that `diffusers` has no place for, by name: a network that is no `networks.UNet`, another
                head than ``"noise"``, ``"data"``, ``"velocity"``, other units, a respaced schedule, batch or transform.
        """
        if self.batch_shape:
            raise ValueError(f"save_diffusers: expected a prior of batch shape (), got {self.batch_shape}")
        if self.transform is not None:
            raise ValueError("save_diffusers: expected a prior without a transform, which diffusers has no place for")
        write_process(folder, self.process)

    def __mul__(self, factor: AbstractFactor) -> "DiffusionPosterior":
        if not isinstance(factor, AbstractFactor):
            return NotImplemented
        return DiffusionPosterior(self, factor)

    __rmul__ = __mul__

    def _sample_one(self, module: Any, key: Array) -> Array:
        return module.to_data(module.sampler.sample(key, module.process))

    def _trajectory_one(self, module: Any, key: Array) -> Array:
        return module.to_data(module.sampler.trajectory(key, module.process))

    def _from_noise_one(self, module: Any, noise: Array) -> Array:
        return module.to_data(module.sampler.from_noise(noise, module.process))

    def _log_prob_one(self, module: Any, value: Array) -> Array:
        return self._estimate_one(module, value).value

    def _estimate_one(self, module: Any, value: Array) -> Estimate:
        return module.estimate(module.key, value)


class DiffusionPosterior(ModuleDistribution):
    """p(x) r(x), a prior times a factor: what ``prior * factor`` makes.

    `sample` runs the posterior sampler once for each draw, so that draws are independent; with the default `TwistedSMC`
    it is *consistent as particles grow*. `log_prob` is the prior's (K bound, frozen key) plus log r: *unnormalised*,
    its missing constant is minus the log evidence, which `smc` estimates. Usable as a site of a NumPyro model; there,
    as everywhere in HMC, the constant does not matter. Where it depends on another unknown of the model, such as the
    factor's own scale, the model's density is prior times factor, as if r were one more statement. With known
    coordinates (`Delta`) `log_prob` is −inf off them, and HMC has nowhere to go: `nd.infer.SMC` and
    `nd.infer.ParticleGibbs` take such a site.

    Args:
        prior: a prior of batch shape ().
        factor: r(x), from `numpyro_diffusion.factors`.
        sampler: of the posterior; ``TwistedSMC(64)`` unless given.
        validate_args: NumPyro's validation switch.

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
        factor.check(prior.event_shape, prior.process.diffusion.element_support.is_discrete)
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
        """False: draws jump where particles are resampled, so that a gradient through them is not that of their law."""
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

    def log_r(self, value: ArrayLike) -> Array:
        """log r of values of shape (*lead, *event_shape), in nats, shape (*lead,)."""
        value = jnp.asarray(value)
        lead = jnp.broadcast_shapes(check_event("value", value.shape, self.event_shape), self.batch_shape)
        return self._over_values(DiffusionPosterior._log_r_one, value, lead)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
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

    def __mul__(self, factor: AbstractFactor) -> "DiffusionPosterior":
        if not isinstance(factor, AbstractFactor):
            return NotImplemented
        return self._like(
            lambda parts: DiffusionPosterior(
                _prior(parts.prior, self._validate_args), parts.factor * factor, parts.sampler
            )
        )

    __rmul__ = __mul__

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
