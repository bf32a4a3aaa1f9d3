"""Several independent draws of one prior as one state, for what a model says of them together.

Draws of one prior that a statement ties together, such as the sum of a plate's elements, have to be sampled together.
Copies of independent draws are one state whose prior is the product of theirs: noise, denoiser and kernels act copy by
copy, as *exactly* as for one of them, and the factor alone couples them. Which dimensions still keep their elements
apart is read off the plates of the sites that depend on this one.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.batch_util import promote_batch_shape

from .._shapes import AnyTime, Example
from ..denoisers import AbstractDenoiser
from ..diffusions import AbstractDiffusion
from ..distributions import DiffusionPrior
from ..laws import elements
from ..process import ReverseProcess
from .sites import Site


class Copies(AbstractDenoiser):
    """A denoiser of states of shape (*copies, *event): each copy by itself, in one batched evaluation."""

    denoiser: AbstractDenoiser
    ndims: int = eqx.field(static=True)  # how many dimensions count the copies

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The product of the copies' laws of x_0."""
        return self._merged(self._each(lambda x: self.denoiser.posterior(diffusion, x, t))(x_t))

    def denoise(
        self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime, s: AnyTime | None = None
    ) -> tuple[dist.Distribution, dist.Distribution]:
        """The products of the copies' laws of x_0 and of their kernels."""
        posterior, kernel = self._each(lambda x: self.denoiser.denoise(diffusion, x, t, s))(x_t)
        return self._merged(posterior), self._merged(kernel)

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """Block by block that of one copy."""
        one = self.denoiser.covariance(diffusion, event_shape[self.ndims :])
        return None if one is None else jnp.kron(jnp.eye(math.prod(event_shape[: self.ndims])), one)

    @property
    def is_exact(self) -> bool:
        """As the copy's."""
        return self.denoiser.is_exact

    @property
    def is_gaussian(self) -> bool:
        """As the copy's."""
        return self.denoiser.is_gaussian

    def _each(self, fn: Any) -> Any:
        for _ in range(self.ndims):
            fn = jax.vmap(fn)
        return fn

    def _merged(self, law: dist.Distribution) -> dist.Distribution:
        each = elements(promote_batch_shape(law))
        return each.to_event(len(each.batch_shape))


def independent_ndims(site: Site, used: list[Any]) -> int:
    """How many of the first dimensions of the site's batch keep their elements apart.

    Those left of every dimension that is no plate's, or a plate's that a site which depends on this one is outside of.

    Args:
        site: the diffusion site.
        used: the messages of the sites that depend on it.
    """
    shape, outer = site.law.batch_shape, site.plate_ndims
    plates = {frame.dim + outer: frame for frame in site.frames}
    everywhere = [frame for frame in site.frames if all(frame in msg["cond_indep_stack"] for msg in used)]
    apart = [dim in plates and plates[dim] in everywhere for dim in range(len(shape))]
    together = [dim for dim, size in enumerate(shape) if not apart[dim] and (size > 1 or dim in plates or dim >= outer)]
    if not together:
        return len(shape)
    return max((dim + 1 for dim in range(together[0]) if apart[dim]), default=0)


def as_one_state(site: Site, name: str, independent: int) -> DiffusionPrior:
    """The prior of batch shape ``batch_shape[:independent]`` whose events hold all of the other batch dimensions.

    Raises:
        ValueError: the elements have parameters of their own, or a factor.
    """
    law = site.law
    copies = law.batch_shape[independent:]
    if not copies:
        return site.prior
    where = f"the elements of {name!r}, which other sites use together, to be"
    if law.factor.parts or not law.process.is_normalised:
        raise ValueError(f"site: expected {where} draws of a DiffusionPrior, got one times a factor, or a power of one")
    prior = law.prior
    if prior.has_own_parameters:
        raise ValueError(f"site: expected {where} draws of one prior, got parameters with a batch; use a site for each")
    process = prior.process
    denoiser, event = Copies(process.denoiser, len(copies)), (*copies, *process.event_shape)
    whole = ReverseProcess(process.diffusion, denoiser, event, last_step=process.last_step)
    return DiffusionPrior(whole, sampler=prior.sampler, transform=prior.transform).expand(law.batch_shape[:independent])


def plate_first(array: Array, independent: int, total: int, event: int) -> Array:
    """Move the first `independent` of the last `total` batch dimensions to the front."""
    start = array.ndim - event - total
    axes = list(range(array.ndim))
    return array.transpose(axes[start : start + independent] + axes[:start] + axes[start + independent :])


def numbered(shape: tuple[int, ...]) -> Any:
    """The number of every element of a batch, in its shape."""
    return jnp.arange(math.prod(shape)).reshape(shape)
