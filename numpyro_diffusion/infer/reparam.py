"""A diffusion site as a deterministic function of standard-normal noise.

The prior's sampler makes x as a deterministic function of standard normal noise. With the noise as the site and x as
that function the law of the model is the same, *exact* for the sampler's chain and without a bound, but NUTS moves
among independent standard normals: the non-centred form of a model (Papaspiliopoulos, Roberts and Sköld 2007). Modes of
x that are far apart may be close in the noise. A gradient goes through every step of the chain.
"""

import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer.reparam import Reparam

from ..distributions import DiffusionPosterior, DiffusionPrior


class DiffusionReparam(Reparam):
    """Replaces a `DiffusionPrior` site by its sampler's standard-normal noises and the reverse chain they drive.

    Use it as any NumPyro reparameterisation, ``numpyro.handlers.reparam(model, config={"x": DiffusionReparam()})``.
    NUTS then samples the noises: the site `<name>_noise`, of shape (*batch, *prior.noise_shape), while the site itself
    becomes deterministic. This is *exact* for the law of the prior's sampler, no bound is involved, and the geometry
    is that of standard normals, which chains cross easily where the density of x_0 has many modes. A gradient costs
    one network call per step of the prior's sampler, forward and backward: fewer steps
    (``prior.with_(sampler=nd.samplers.Ancestral(25))``) are cheaper, and exact for the strided chain.
    `nd.samplers.SDE(0.0, …)` and `nd.samplers.DDIM` with η = 0 need two noises in all, of x_T and of the last step.

    Of a `DiffusionPosterior` the prior is reparameterised, and log r becomes the site `<name>_factor`: *exact* for the
    prior's sampler times r.

    Example:
        >>> prior = nd.load("digits")
        >>> def model():
        ...     return numpyro.sample("x", prior)
        >>> of_noise = numpyro.handlers.reparam(model, config={"x": nd.infer.DiffusionReparam()})
        >>> numpyro.handlers.seed(of_noise, 0)().shape
        (8, 8)
    """

    def __call__(self, name: str, fn: dist.Distribution, obs: Array | None) -> tuple[None, Array]:
        """Reparameterise one site.

        Args:
            name: of the site.
            fn: its distribution, a `DiffusionPrior` or `DiffusionPosterior`, also expanded or made an event.
            obs: must be None.

        Returns:
            (None, the value of the site), as NumPyro expects.

        Raises:
            ValueError: the site is observed, or is no Gaussian `DiffusionPrior`, also times a factor; a factor with
                known coordinates (`Delta`), which no smooth function of noise hits.
        """
        if obs is not None:
            raise ValueError(f"{name}: expected a latent site for DiffusionReparam, got an observed one")
        law, expand_shape, _ = self._unwrap(fn)
        if not isinstance(law, DiffusionPrior | DiffusionPosterior):
            raise ValueError(f"{name}: expected a DiffusionPrior for DiffusionReparam, got {type(law).__name__}")
        shape = law.prior.noise_shape
        extra = fn.event_dim - law.event_dim  # batch dimensions that became part of the event
        noise = dist.Normal(0.0, 1.0).expand((*expand_shape, *shape)).to_event(len(shape) + extra)
        x = law.prior.from_noise(numpyro.sample(f"{name}_noise", noise))
        if law.factor.fixes_elements:
            raise ValueError(f"{name}: expected a factor without known coordinates for DiffusionReparam, got Delta")
        if law.factor.parts:
            log_r = law.as_posterior().log_r(x)
            numpyro.factor(f"{name}_factor", log_r.sum(tuple(range(log_r.ndim - extra, log_r.ndim))))
        return None, x
