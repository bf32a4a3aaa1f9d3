"""An exact denoiser for a kernel density: equal round Gaussians about many examples.

A kernel density is a mixture with one component for each example (Parzen 1962), and so is the law of x_0 given x_t. As
all kernels have one width, the components' weights are a softmax of inner products of x_t with the examples, and mean
and variance are weighted averages over examples: both exact for that density, up to rounding. Nothing is trained but
the width, which is chosen elsewhere (`nd.fit_prior`).
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from .._checks import checked_location, checked_scale
from .._numbers import check_rounding, check_told_apart
from .._products import dot
from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion, GaussianDiffusion
from ..laws import normal
from .base import AbstractDenoiser
from .full import of_one_scale


class KernelDensity(AbstractDenoiser):
    """Exact posterior mean and variance of examples that are a mixture of k equal Gaussians with one scale for all.

    It says what `GaussianMixture` says of them, by two products with a matrix of shape (k, d) in place of a law for
    each component: with hundreds of kernels several times as fast. Elements that are a thousand scales apart are too
    much for that in float32: the variance then has an error of a tenth.

    Args:
        locs: the kernels' means, shape (k, *event), in data units.
        scale: their standard deviation, a positive number.

    Example:
        >>> examples = jax.random.normal(jax.random.key(0), (300, 2))
        >>> exact = nd.denoisers.KernelDensity(examples, 0.3)
        >>> process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(20)), exact, 2)
        >>> process.predict(jnp.zeros(2), 20).shape  # E[x_0 | x_20 = 0]
        (2,)

    Raises:
        ValueError: `locs` not finite, no list of examples, or numbers that the float type cannot tell apart, `scale`
            not one positive number; when called, a diffusion whose scale differs between elements.
    """

    locs: Float[Array, " k *event"]
    scale: Float[Array, ""]

    def __init__(self, locs: ArrayLike, scale: ArrayLike) -> None:
        self.locs, self.scale = checked_location("locs", locs), checked_scale("scale", scale)
        if not self.locs.ndim or not len(self.locs):
            raise ValueError(f"locs: expected shape (k, *event) with k >= 1, got {self.locs.shape}")
        if self.scale.ndim:
            raise ValueError(f"scale: expected one number, got shape {self.scale.shape}")
        check_told_apart("locs", locs, self.locs.ndim - 1, self.scale)
        check_rounding("locs", locs, self.scale)

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """Normal with the exact element-wise mean and variance of x_0 given x_t."""
        diffusion = of_one_scale(diffusion)
        alpha_bar, noise_variance = diffusion.schedule.signal_and_noise(t)
        root, own = jnp.sqrt(alpha_bar), jnp.square(self.scale / diffusion.scale)
        marginal = alpha_bar * own + noise_variance
        centre, apart = self._flat(diffusion)
        square = jnp.square(apart)
        # About the centre of all, so that few digits cancel. ‖z‖² is the same for all kernels.
        z = diffusion.standardize(x_t).reshape(-1) - root * centre
        share = jax.nn.softmax((root * dot(apart, z) - alpha_bar / 2 * jnp.sum(square, 1)) / marginal)
        mean, remaining = dot(share, apart), noise_variance / marginal
        between = jnp.maximum(dot(share, square) - jnp.square(mean), 0.0)
        mean = diffusion.unstandardize((centre + remaining * mean + root * own / marginal * z).reshape(jnp.shape(x_t)))
        variance = (remaining * own + remaining**2 * between) * diffusion.scale**2
        return normal(mean, variance.reshape(jnp.shape(x_t)))

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """That of the data: within kernels and between them."""
        del event_shape
        gaussian = of_one_scale(diffusion)
        _, apart = self._flat(gaussian)
        return jnp.square(self.scale / gaussian.scale) * jnp.eye(apart.shape[1]) + dot(apart.T, apart) / len(apart)

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def data(self, event_shape: tuple[int, ...] | None = None) -> dist.Distribution:
        """The law of the data that this denoiser is exact for, with its exact `log_prob`."""
        del event_shape
        count = len(self.locs)
        kernels = dist.Normal(self.locs, self.scale).to_event(self.locs.ndim - 1)
        return dist.MixtureSameFamily(dist.Categorical(probs=jnp.full(count, 1 / count)), kernels)

    def _flat(self, diffusion: GaussianDiffusion) -> tuple[Float[Array, " d"], Float[Array, "k d"]]:
        """The mean of the kernels' means, flat and in units of the noise law, and what they are apart from it."""
        locs = diffusion.standardize(self.locs).reshape(len(self.locs), -1)
        centre = jnp.mean(locs, 0)
        return centre, locs - centre
