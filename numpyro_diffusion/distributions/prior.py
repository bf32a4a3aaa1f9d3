"""A learned diffusion prior as a NumPyro distribution.

A reverse process as the law of x_0. Draws are *exact* for the model. The density of x_0 is an integral over the chain
without a closed form, so that `log_prob` is an estimate, of the *bound* K unless another estimator is chosen. With a
frozen key it is one smooth deterministic function of the value, as HMC and variational inference need; what has no
bound in it is in `nd.infer`.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from .._checks import check_event, check_real, is_concrete
from .._compiler import check_sums
from ..checkpoints import write_module
from ..factors import AbstractFactor, Product
from ..likelihoods import AbstractLikelihood, Estimate, KBound
from ..process import ReverseProcess
from ..samplers import AbstractSampler, Ancestral
from .base import ModuleDistribution, check_kind
from .given import Conditioned
from .parts import PriorParts, check_transform, key_parts
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

    Example:
        >>> prior = nd.load("digits").with_(sampler=nd.samplers.Ancestral(10))  # ten steps of the hundred
        >>> prior.sample(jax.random.key(0), (3,)).shape
        (3, 8, 8)

    Raises:
        TypeError: a part of the wrong kind; a `key` that is none; a transform that is none of NumPyro's.
        ValueError: a likelihood for another family; several keys; a transform that does not fit.
    """

    # `DiffusionPosterior`, set by its own module, which stands on this one.
    posterior_class: ClassVar[Callable[..., Any]]

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
        check_sums()
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

    def _facts(self) -> dict[str, object]:
        module = self.module
        name = lambda part: type(part).__name__
        transform = {} if module.transform is None else {"transform": name(module.transform)}
        return super()._facts() | module.process.facts() | transform | {
            "sampler": name(module.sampler), "likelihood": name(module.likelihood)
        }  # fmt: skip

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

    @property
    def prior(self) -> "DiffusionPrior":
        """Itself, so that priors and posteriors, which have a prior and a factor, are asked alike."""
        return self

    @property
    def factor(self) -> AbstractFactor:
        """r(x) = 1, the product of no factors, whose `parts` are empty."""
        return Product(())

    def sample_trajectory(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Shaped[Array, "..."]:
        """Draws of the chain, x_0 first; shape (*sample_shape, *batch_shape, steps + 1, *event_shape)."""
        return self._draw(key, sample_shape, DiffusionPrior._trajectory_one)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard-normal noise that makes one draw, (n, *event_shape), n = steps + 1 for `Ancestral`."""
        batch = self.batch_shape
        # Asked of one element of the batch, as a schedule of many has its steps on another axis.
        noise = lambda module, _: jnp.zeros(module.sampler.noise_shape(module.process))
        return jax.eval_shape(lambda: self.map_batch(noise, jnp.zeros(batch))).shape[len(batch) :]

    def from_noise(self, noise: Shaped[ArrayLike, "..."]) -> Float[Array, "..."]:
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

    def estimate(self, value: ArrayLike, *, key: Array | None = None) -> Estimate:
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
        return shifted(self.likelihood(key, self.process, z), z, value)

    def with_(
        self,
        *,
        likelihood: AbstractLikelihood | None = None,
        sampler: AbstractSampler | None = None,
        key: Array | None = None,
    ) -> "DiffusionPrior":
        """The same prior with another estimator, sampler or frozen key."""
        return self._like(lambda parts: self._made(parts, likelihood, sampler, key))

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
            OSError: the folder does not exist, or `path` is itself a folder, a device or a pipe.
            ValueError: the prior has a batch shape, for which a file has no place.
        """
        if self.batch_shape:
            raise ValueError(f"save: expected a prior of batch shape (), got {self.batch_shape}")
        write_module(path, self.module, metadata=self._metadata(card), dtype=dtype)

    def as_posterior(self) -> Any:
        """The prior with no factor, as a `DiffusionPosterior`."""
        validate = self._validate_args
        nothing = Product(())
        return self._like(lambda parts: self.posterior_class(self._made(parts), nothing, validate_args=validate))

    def __mul__(self, other: "AbstractFactor | DiffusionPrior") -> Any:
        """``prior * factor`` or ``prior * other``: p(x) r(x) or p(x) p'(x), unnormalised, as a `DiffusionPosterior`.

        Raises:
            ValueError: priors that do not fit together: other diffusions, shapes or transforms; a batch shape.
        """
        if isinstance(other, AbstractFactor):
            return self.posterior_class(self, other, validate_args=self._validate_args)
        return self.as_posterior() * other if isinstance(other, DiffusionPrior) else NotImplemented

    __rmul__ = __mul__

    def __pow__(self, beta: ArrayLike) -> Any:
        """``prior ** beta`` is `tempered`."""
        return self.tempered(beta)

    def tempered(self, beta: ArrayLike) -> Any:
        """p(x)^β, unnormalised, as a `DiffusionPosterior`: ``prior ** beta``; β may be another unknown of a model.

        Flatter for β < 1, steeper for β > 1. `DiffusionPosterior` says what is drawn; its `smc` gives log ∫ p(x)^β dx.

        Raises:
            TypeError: no number.
            ValueError: not positive; a prior of bits or grey levels.
        """
        return self.as_posterior().tempered(beta)

    def _made(self, parts: Any, likelihood: Any = None, sampler: Any = None, key: Array | None = None) -> Any:
        """The prior of one element's parts, with another estimator, sampler or key."""
        return DiffusionPrior(
            parts.process,
            parts.likelihood if likelihood is None else likelihood,
            parts.sampler if sampler is None else sampler,
            parts.key if key is None else key,
            transform=parts.transform,
            validate_args=self._validate_args,
        )

    def _sample_one(self, module: Any, key: Array) -> Array:
        return module.to_data(module.sampler.sample(key, module.process))

    def _trajectory_one(self, module: Any, key: Array) -> Array:
        return module.to_data(module.sampler.sample_trajectory(key, module.process))

    def _from_noise_one(self, module: Any, noise: Array) -> Array:
        return module.to_data(module.sampler.from_noise(noise, module.process))

    def _log_prob_one(self, module: Any, value: Array) -> Array:
        return self._estimate_one(module, value).value

    def _estimate_one(self, module: Any, value: Array) -> Estimate:
        return module.estimate(module.key, value)
