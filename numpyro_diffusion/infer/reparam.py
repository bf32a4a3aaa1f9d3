"""A diffusion site as a deterministic function of standard-normal noise."""

import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer.reparam import Reparam

from ..distributions import DiffusionPrior


class DiffusionReparam(Reparam):
    """Replaces a `DiffusionPrior` site by its sampler's standard-normal noises and the reverse chain they drive.

    Use it as any NumPyro reparameterisation, ``numpyro.handlers.reparam(model, config={"x": DiffusionReparam()})``.
    NUTS then samples the noises: the site `<name>_noise`, of shape (*batch, *prior.noise_shape), while the site itself
    becomes deterministic. This is *exact* for the law of the prior's sampler, no bound is involved, and the geometry
    is that of standard normals, which chains cross easily where the density of x_0 has many modes. A gradient costs
    one network call per step of the prior's sampler, forward and backward: fewer steps
    (``prior.with_(sampler=nd.samplers.Ancestral(25))``) are cheaper, and exact for the strided chain.
    `nd.samplers.SDE(0.0, …)` and `nd.samplers.DDIM` with η = 0 need two noises in all, of x_T and of the last step.
    """

    def __call__(self, name: str, fn: dist.Distribution, obs: Array | None) -> tuple[None, Array]:
        """Reparameterise one site.

        Args:
            name: of the site.
            fn: its distribution, a `DiffusionPrior`, also expanded or made an event.
            obs: must be None.

        Returns:
            (None, the value of the site), as NumPyro expects.

        Raises:
            ValueError: the site is observed, or is not a Gaussian `DiffusionPrior`.
        """
        if obs is not None:
            raise ValueError(f"{name}: expected a latent site for DiffusionReparam, got an observed one")
        prior, expand_shape, _ = self._unwrap(fn)
        if not isinstance(prior, DiffusionPrior):
            raise ValueError(f"{name}: expected a DiffusionPrior for DiffusionReparam, got {type(prior).__name__}")
        shape = prior.noise_shape
        noise = dist.Normal(0.0, 1.0).expand((*expand_shape, *shape)).to_event(len(shape) + _extra(fn, prior))
        return None, prior.from_noise(numpyro.sample(f"{name}_noise", noise))


def _extra(fn: dist.Distribution, prior: DiffusionPrior) -> int:
    """Batch dimensions of the prior that `to_event` has made part of the event."""
    return fn.event_dim - prior.event_dim
