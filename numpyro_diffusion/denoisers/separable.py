"""An exact denoiser for mixtures of Gaussians whose elements do not correlate once each axis has been turned.

A covariance of all pixels of an image has too many numbers to be estimated, kept or multiplied. Along the axes of an
event, cosines for height and width, say, and principal colours, pixels of pictures hardly correlate; then a component
of a mixture has a mean and a variance for each coefficient and nothing else, and x_0 given x_t goes coefficient by
coefficient. Mean and variance of every element are exact for the mixture; the basis is a product of one orthogonal
matrix for each axis, so that no matrix of all elements is ever made.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from .._checks import check_finite, is_concrete
from .._products import dot, tensordot
from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion
from ..laws import normal
from ..moments import LARGEST_WHOLE
from .base import AbstractDenoiser
from .components import Components
from .exact import check_weights
from .full import of_one_scale

Bases = tuple[Float[Array, "_ _"], ...]


def turned(x: Any, bases: Any, product: Any = dot, moved: Any = jnp.moveaxis) -> Any:
    """Coefficients of arrays of shape (*batch, *event) along the columns of one matrix for each axis of an event.

    Args:
        x: shape (*batch, *event).
        bases: of shape (n, n) for an axis of n elements.
        product: of matrices; NumPy's, with its `moveaxis`, for arrays on the host.
        moved: moves an axis.
    """
    for axis, basis in enumerate(bases, start=-len(bases)):
        x = moved(product(moved(x, axis, -1), basis), -1, axis)
    return x


class SeparableMixture(AbstractDenoiser):
    r"""Exact posterior mean and variance of examples that are a mixture of k Gaussians, diagonal in a separable basis.

    A component's covariance is :math:`B \operatorname{diag}(v_k) B^\top`, B the Kronecker product of the `bases`. As
    with other mixtures, `posterior` has the exact mean and variance of each element, and reverse steps are the best
    Gaussian ones without correlations. A call multiplies k + 3 arrays of an event's shape by each of the bases.

    Args:
        locs: means, shape (k, *event), in data units.
        variances: of the coefficients, shape (k, *event), positive, in squared data units.
        bases: one orthogonal matrix for each axis of an event of n elements, shape (n, n), whose columns are the
            basis.
        weights: shape (k,), not negative, adding up to 1 (to 1e-4); equal unless given.

    Example:
        >>> colours, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (3, 3)))
        >>> bases = jnp.eye(8), jnp.eye(8), colours
        >>> exact = nd.denoisers.SeparableMixture(jnp.zeros((2, 8, 8, 3)), jnp.ones((2, 8, 8, 3)), bases)
        >>> process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(20)), exact, (8, 8, 3))
        >>> process.predict(jnp.zeros((8, 8, 3)), 20).shape  # E[x_0 | x_20 = 0]
        (8, 8, 3)

    Raises:
        ValueError: shapes that do not fit, matrices that are not orthogonal, variances that are not positive, weights
            that are no probabilities; a diffusion whose scale differs between elements (when called).
    """

    keeps_precision: ClassVar[bool] = True  # half a digit less in a basis is more than the noise of the last step

    coefficients: Float[Array, " k *event"]
    variances: Float[Array, " k *event"]
    bases: Bases
    weights: Float[Array, " k"]

    def __init__(self, locs: ArrayLike, variances: ArrayLike, bases: Any, weights: ArrayLike | None = None) -> None:
        check_finite("locs", locs)
        shape = np.shape(locs)
        if len(shape) < 2 or not shape[0]:
            raise ValueError(
                f"locs: expected shape (k, *event) with k >= 1 and an event of rank 1 or more, got {shape}"
            )
        if np.shape(variances) != shape:
            raise ValueError(f"variances: expected shape {shape}, got {np.shape(variances)}")
        if is_concrete(variances) and not (np.asarray(variances) > 0).all():
            raise ValueError(f"variances: expected positive numbers, got {np.min(np.asarray(variances))}")
        self.bases = tuple(jnp.asarray(basis, float) for basis in bases)
        _check_bases(self.bases, shape[1:])
        self.variances = jnp.asarray(variances, float)
        if is_concrete(locs):  # in double precision, as a sum over an axis may be many standard deviations long
            exact = [np.asarray(array, np.float64) for array in (locs, *bases)]
            self.coefficients = jnp.asarray(turned(exact[0], exact[1:], np.matmul, np.moveaxis), float)
        else:
            self.coefficients = turned(jnp.asarray(locs, float), self.bases)
        self.weights = jnp.asarray(np.full(shape[0], 1 / shape[0]) if weights is None else weights, float)
        if self.weights.shape != shape[:1]:
            raise ValueError(f"weights: expected shape {shape[:1]}, got {self.weights.shape}")
        check_weights(self.weights)

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """Normal with the exact element-wise mean and variance of x_0 given x_t."""
        diffusion = of_one_scale(diffusion)
        alpha_bar, noise = diffusion.schedule.signal_and_noise(t)
        root, event = jnp.sqrt(alpha_bar), tuple(range(1, self.variances.ndim))
        loc = turned(jnp.broadcast_to(diffusion.loc, jnp.shape(x_t)), self.bases)
        locs, own = (self.coefficients - loc) / diffusion.scale, self.variances / diffusion.scale**2
        marginal = alpha_bar * own + noise
        apart = turned(diffusion.standardize(x_t), self.bases) - root * locs
        log_share = jnp.log(self.weights) - 0.5 * jnp.sum(jnp.square(apart) / marginal + jnp.log(marginal), event)
        share = jax.nn.softmax(log_share)
        mix = lambda each: tensordot(share, each, 1)
        means = locs + root * own / marginal * apart
        mean, backwards = mix(means), tuple(basis.T for basis in self.bases)
        within = turned(mix(own * noise / marginal), tuple(jnp.square(basis) for basis in backwards))
        between = mix(jnp.square(turned(means - mean, backwards)))
        mean = diffusion.unstandardize(turned(mean, backwards))
        return normal(mean, (within + between) * diffusion.scale**2)

    @property
    def components(self) -> Components | None:
        """The mixture, of examples of so few elements that a matrix of all of them is no burden; else None."""
        size = self.variances[0].size
        if size > LARGEST_WHOLE:
            return None
        whole = functools.reduce(jnp.kron, self.bases)
        flat = lambda each: each.reshape(-1, size)
        locs = turned(self.coefficients, tuple(basis.T for basis in self.bases))
        bases = jnp.broadcast_to(whole, (len(self.weights), size, size))
        return Components(flat(locs), flat(self.variances), bases, self.weights)

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """That of the data, of few elements."""
        del event_shape
        parts = self.components
        return None if parts is None else parts.covariance() / of_one_scale(diffusion).scale ** 2

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def data(self, event_shape: tuple[int, ...] | None = None) -> dist.Distribution:
        """The law of the data that this denoiser is exact for, with its exact `log_prob`."""
        del event_shape
        rank = len(self.bases)
        components = dist.Normal(self.coefficients, jnp.sqrt(self.variances)).to_event(rank)
        mixture = dist.MixtureSameFamily(dist.Categorical(probs=self.weights), components)
        return dist.TransformedDistribution(mixture, _Back(self.bases))


class _Back(Transform[Any]):
    """From coefficients to elements, by orthogonal matrices."""

    def __init__(self, bases: Bases) -> None:
        self.bases = bases

    @property
    def domain(self) -> Any:
        """Arrays of an event's rank."""
        return constraints.independent(constraints.real, len(self.bases))

    codomain = domain

    def __call__(self, x: Any) -> Any:
        return turned(x, tuple(basis.T for basis in self.bases))

    def _inverse(self, y: Any) -> Any:
        return turned(y, self.bases)

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Array:
        """0."""
        return jnp.zeros(jnp.shape(x)[: jnp.ndim(x) - len(self.bases)])

    def tree_flatten(self) -> Any:
        """The matrices, and their name."""
        return (self.bases,), (("bases",), {})


def _check_bases(bases: Bases, event_shape: tuple[int, ...]) -> None:
    shapes, wanted = [basis.shape for basis in bases], [(size, size) for size in event_shape]
    if shapes != wanted:
        raise ValueError(f"bases: expected a matrix for each axis of an event, of shapes {wanted}, got {shapes}")
    for axis, basis in enumerate(bases):
        if is_concrete(basis):
            exact = np.asarray(basis, np.float64)
            off = float(np.abs(exact.T @ exact - np.eye(len(exact))).max())
            if not off < 1e-4:
                raise ValueError(f"bases: expected orthogonal matrices, got one of axis {axis} that is {off:.2g} off")
