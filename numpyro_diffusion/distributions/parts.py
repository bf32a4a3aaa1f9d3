"""What a prior is made of: a process in coordinates of its own, and the way from there to the data.

A prior is modelled in coordinates z in which its data are simple, and pushed forward by x = T(z). By the change of
variables log p(x) = log p(z) − log |det dx/dz|, for a bound as for a density, and draws are mapped: all of it *exact*.
The parts are one Equinox module, which is also what a file holds.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, Shaped
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from .._checks import refusal
from .._compiled import compiled
from .._shapes import Example
from ..factors import AbstractFactor, pull_back, with_known
from ..likelihoods import AbstractLikelihood, Estimate
from ..process import ReverseProcess
from ..samplers import AbstractPosteriorSampler, AbstractSampler, Particles
from ..samplers.base import following


class PriorParts(eqx.Module):
    """What a `DiffusionPrior` is made of, and what a prior file holds.

    The process is one of z; the data are x = T(z), with T the `transform`, and z itself without one.
    """

    process: ReverseProcess
    likelihood: AbstractLikelihood
    sampler: AbstractSampler
    key_data: Array
    key_impl: Any = eqx.field(static=True)
    transform: Any = None

    @property
    def key(self) -> Array:
        """The random key, in the form it was given."""
        return self.key_data if self.key_impl is None else jax.random.wrap_key_data(self.key_data, impl=self.key_impl)

    @property
    def support(self) -> constraints.Constraint:
        """Of the data."""
        if self.transform is None:
            return self.process.support
        codomain, rank = self.transform.codomain, len(self.process.event_shape)
        extra = rank - codomain.event_dim
        return constraints.independent(codomain, extra) if extra else codomain

    def to_data(self, z: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """T(z), any leading dimensions."""
        return z if self.transform is None else self.transform(z)

    def to_latent(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """T⁻¹(x), any leading dimensions."""
        return x if self.transform is None else self.transform.inv(x)

    def estimate(self, key: PRNGKeyArray, x: Example) -> Estimate:
        """The likelihood's estimate for one example x: of the density of z, less ``log |det dx/dz|``."""
        z = self.to_latent(x)
        return self.shifted(self.likelihood.estimate(key, self.process, z), z, x)

    def shifted(self, estimate: Estimate, z: Example, x: Example) -> Estimate:
        """An estimate about one z as one about x, −inf off the support; its terms stay those of z."""
        if self.transform is None:
            return estimate
        log_det = jnp.sum(self.transform.log_abs_det_jacobian(z, self.transform(z)))
        value = jnp.where(jnp.all(self.support(x)), estimate.value - log_det, -jnp.inf)
        return eqx.tree_at(lambda found: found.value, estimate, value)


def check_transform(transform: Any, process: ReverseProcess) -> None:
    """Raise unless `transform` maps the process's examples one to one, to examples of the same shape.

    Raises:
        TypeError: no NumPyro transform.
        ValueError: a process of bits or whole numbers; another domain than all real numbers; another shape.
    """
    if transform is None:
        return
    if not isinstance(transform, Transform):
        raise TypeError(f"transform: expected a numpyro.distributions.transforms.Transform, got {transform!r}")
    if process.is_discrete:
        raise ValueError("transform: expected None for a prior of bits or whole numbers, got a transform")
    shape, domain = process.event_shape, transform.domain
    if domain.event_dim > len(shape):
        raise ValueError(f"transform: expected one of examples of shape {shape}, got {domain.event_dim} dimensions")
    size = int(np.prod(shape))
    with jax.ensure_compile_time_eval():
        inside = bool(np.all(domain(jnp.asarray(np.linspace(-3.0, 3.0, max(size, 2))[:size]).reshape(shape))))
    if transform.forward_shape(shape) != shape or not inside:
        got = f"{transform.forward_shape(shape)} from a domain {domain}"
        raise ValueError(f"transform: expected one of all real numbers that keeps the shape {shape}, got {got}")


def key_parts(key: Array) -> tuple[Array, str | None]:
    """A key's raw bits, an ordinary array leaf as NumPyro's handling of arguments expects, and its kind."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        data, impl = jax.random.key_data(key), str(jax.random.key_impl(key))
    else:
        data, impl = key, None
    of_keys = isinstance(data, jax.Array | np.ndarray) and data.dtype == jnp.uint32
    if not of_keys or data.ndim != 1:
        raise refusal(f"key: expected one JAX key, as from jax.random.key(0), got {key!r:.80}", of_keys)
    return data, impl


class PosteriorParts(eqx.Module):
    """What a `DiffusionPosterior` is made of."""

    prior: PriorParts
    factor: AbstractFactor
    sampler: AbstractPosteriorSampler


@compiled
def run_islands(parts: PosteriorParts, keys: Array) -> Particles:
    """The particles of an independent SMC run for each key."""
    prior = parts.prior
    sampler: Any = following(parts.sampler, prior.sampler, prior.process)
    factor, constant = pull_back(parts.factor, prior.transform, prior.process.event_shape)
    particles = jax.vmap(lambda key: sampler.run(key, prior.process, factor))(keys)
    x = with_known(parts.factor, prior.to_data(particles.x))
    return particles._replace(x=x, log_evidence=particles.log_evidence + constant)
