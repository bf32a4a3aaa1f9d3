"""A twist for Gaussian observations of transformed elements, as of positive columns whose logarithms have the prior.

If a prior has coordinates z of its own, x = T(z), a linear observation of x is none of z. For each component of the
mixture that the prior is about, T is replaced by its best linear fit under the law of z given x_t (statistical
linearisation; Gelb 1974), and again about the posterior to which that leads (García-Fernández et al. 2015). Each
component is then conditioned in closed form, and ψ_t is the sum over components: *approximate* but for affine T, and
corrected by weights.
"""

from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .. import laws
from .._checks import check_count
from .._products import dot
from .._shapes import Example, Time
from .._structure import is_affine, is_elementwise
from ..diffusions import require_gaussian
from ..factors import AbstractFactor, LinearGaussian, factors_of
from ..factors.base import PulledBack
from ..factors.linear import stack
from ..laws import normal
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep
from .linear import as_linear

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_SHARES = (_WEIGHTS / _WEIGHTS.sum())[:, None]
_LEAST = -1e18  # log ψ where the arithmetic overflows: still a weight, so that some particle is left


class Observation(NamedTuple):
    """A Gaussian observation A T(u) of u = W z + b, with T on single elements: none are the identity.

    Attributes:
        linear: y, A and the noise.
        affine: from z to u.
        warp: from u to T(u).
    """

    linear: LinearGaussian
    affine: Callable[[Array], Array]
    warp: Callable[[Array], Array] | None


class LinearFit(NamedTuple):
    """T(u) ≈ value + slope (u − point) + noise of this variance, element by element, shape (d,) each."""

    value: Float[Array, " d"]
    slope: Float[Array, " d"]
    left: Float[Array, " d"]


class Linearized(AbstractTwist):
    """ψ_t(x_t) = Σ_k P(k | x_t) ∫ r(z) N(z; m_k, V_k) dz, with r of T(z) linearised for each component k.

    For Gaussian observations of T(z), where the transform T, of a prior in coordinates of its own (``transform=``),
    acts on single elements, such as ``exp``. The mean and the slope of T under each component's law of z given x_t are
    those of the best linear fit (statistical linearisation, Gelb 1974), by Gauss-Hermite quadrature, made again about
    the posterior (García-Fernández et al. 2015). The components are those that `MixtureMatched` takes. *Approximate*,
    as all twists of such factors are: weights make up for what it gets wrong.

    Args:
        num_rounds: linearisations; the first one is about the law without the observation.

    Raises:
        ValueError: a prior without components, other factors; a count below 1.
    """

    num_rounds: int = eqx.field(static=True)

    def __init__(self, num_rounds: int = 3) -> None:
        self.num_rounds = check_count("num_rounds", num_rounds)

    def check(self, process: ReverseProcess, factor: AbstractFactor) -> None:
        """Only for priors with components, and Gaussian observations of transformed elements."""
        require_gaussian(process.diffusion, "twist: Linearized is for a GaussianDiffusion")
        if process.denoiser.components is None:
            raise ValueError(
                f"twist: Linearized needs a prior about a mixture of Gaussians, got {process.denoiser.said}"
            )
        if observations(process, factor) is None:
            said = ", ".join(type(part).__name__ for part in factors_of(factor))
            raise ValueError(f"twist: Linearized is for Gaussian observations of transformed elements, got {said}")

    def prepare(self, process: ReverseProcess, factor: AbstractFactor) -> Any:
        """The observations as one, their rows, the components, and u from the coordinates of each."""
        diffusion: Any = process.diffusion
        parts: Any = process.denoiser.components
        parts = parts.standardized(diffusion, process.event_shape)
        scale = jnp.broadcast_to(diffusion.scale, process.event_shape).reshape(-1)
        seen = _observations(process, factor)
        rows = [each.linear.rows(process.event_shape).reshape(each.linear.num_observed, -1) for each in seen]
        jacobians = [parts.turned_rows(jax.jacfwd(each.affine)(jnp.zeros_like(scale)) * scale) for each in seen]
        return stack(tuple(each.linear for each in seen)), rows, jacobians, parts, scale

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """ψ_t(x_t), and the kernel to x_s moved as E[z | x_t, r] is."""
        diffusion: Any = process.diffusion
        joint, rows, jacobians, parts, scale = shared
        seen = _observations(process, factor)
        posterior, kernel = process.denoiser.denoise(diffusion, x_t, t, s)
        log_share, means = parts.given(diffusion, x_t, t)
        means = means * scale
        mixed = dot(jnp.exp(log_share), means)
        network = posterior.mean.reshape(-1) - mixed  # what it adds, and the noise law's location
        one = lambda mean, left, jacobian: self._component(
            joint, [_in_component(*each, mean + network, left) for each in zip(seen, rows, jacobian, strict=True)], left
        )
        found, shifts = jax.vmap(one)(means, parts.left(diffusion, t), jacobians)
        log_psi = logsumexp(log_share + found)
        fine = jnp.isfinite(log_psi)
        share = jnp.exp(jnp.where(fine, log_share + found - log_psi, log_share))
        shift = dot(share, means + jnp.where(fine, parts.turned_back(shifts[:, None])[:, 0] * scale, 0.0)) - mixed
        loc = kernel.mean + diffusion.bridge_coefficients(t, s)[0] * shift.reshape(process.event_shape)
        return TwistedStep(jnp.where(fine, log_psi, _LEAST), kernel, normal(loc, laws.variance(kernel)))

    def _component(self, joint: LinearGaussian, within: list["InComponent"], left: Array) -> tuple[Array, Array]:
        """log ∫ r(z) N(z; mean, V) dz in nats, and how far the mean moves, in the component's basis."""
        log_r, shift, directions = _conditioned(joint, within, [(each.mean, each.variance) for each in within], left)
        for _ in range(self.num_rounds - 1):
            about = [each.given(shift, directions) for each in within]
            log_r, shift, directions = _conditioned(joint, within, about, left)
        return log_r, shift


class InComponent(NamedTuple):
    """An observation, and the law of u = W z + b in one component.

    Attributes:
        seen: the observation.
        rows: A, shape (m, d).
        jacobian: of u by coordinates in the component's basis, shape (d, d).
        mean: of u, shape (d,).
        variance: of its elements, shape (d,).
    """

    seen: Observation
    rows: Float[Array, "m d"]
    jacobian: Float[Array, "d d"]
    mean: Float[Array, " d"]
    variance: Float[Array, " d"]

    def given(
        self, shift: Float[Array, " d"], directions: Float[Array, "m d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Mean and variance of u, by how the law in the basis is moved and lowered."""
        gone = jnp.sum(dot(directions, self.jacobian.T) ** 2, 0)
        return self.mean + dot(self.jacobian, shift), jnp.maximum(self.variance - gone, 1e-4 * self.variance)


def _in_component(seen: Observation, rows: Array, jacobian: Array, mean: Array, left: Array) -> InComponent:
    return InComponent(seen, rows, jacobian, seen.affine(mean), dot(jacobian**2, left))


def _conditioned(
    joint: LinearGaussian, within: list[InComponent], about: list[tuple[Array, Array]], left: Array
) -> tuple[Array, Array, Array]:
    """log N(y; …) in nats, and in the component's basis the mean's move and rows W by whose Wᵀ W the law is lowered."""
    ahead, turned, noise = [], [], []
    for each, (point, variance) in zip(within, about, strict=True):
        fit = _linear(each.seen.warp, point, variance)
        slopes = each.rows * fit.slope
        ahead.append(dot(each.rows, fit.value) + dot(slopes, each.mean - point))
        turned.append(dot(slopes, each.jacobian))
        noise.append(dot(each.rows * fit.left, each.rows.T))
    rows = jnp.concatenate(turned)
    total = joint.covariance(dot(rows * left, rows.T) + jax.scipy.linalg.block_diag(*noise))
    lower = jnp.linalg.cholesky(total)
    residual = (joint.observation.reshape(-1) - jnp.concatenate(ahead)) * joint.seen
    both = solve_triangular(lower, jnp.column_stack([residual, rows * left]), lower=True)
    white, directions = both[:, 0], both[:, 1:]
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    return joint.log_density(dot(white, white), log_det), dot(white, directions), directions


def observations(process: ReverseProcess, factor: AbstractFactor) -> tuple[Observation, ...] | None:
    """The Gaussian observations, of transformed elements or not, that a factor consists of; None if of others too."""
    found = [_seen(process, part) for part in factors_of(factor)]
    return None if any(each is None for each in found) else tuple(each for each in found if each is not None)


def _observations(process: ReverseProcess, factor: AbstractFactor) -> tuple[Observation, ...]:
    found = observations(process, factor)
    assert found is not None
    return found


def _seen(process: ReverseProcess, part: AbstractFactor) -> Observation | None:
    chain, shape = [], process.event_shape
    while isinstance(part, PulledBack):
        chain.append(part.transform)
        part = part.factor
    if part.observation_size(shape) is None:
        return None
    origin = jnp.zeros(shape)
    affine = list(takewhile(lambda transform: is_affine(transform, origin), chain))
    warps = chain[len(affine) :]
    if not all(is_elementwise(transform, origin) for transform in warps):
        return None
    return Observation(as_linear(process, part), _composed(affine, shape), _composed(warps, shape) if warps else None)


def _composed(transforms: list[Any], shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """Of flat examples, the first one first."""

    def composed(flat: Array) -> Array:
        x = flat.reshape(shape)
        for transform in transforms:
            x = transform(x)
        return x.reshape(-1)

    return composed


def _linear(warp: Callable[[Array], Array] | None, point: Array, variance: Array) -> LinearFit:
    """The best linear fit to T under N(point, variance), element by element."""
    if warp is None:
        return LinearFit(point, jnp.ones_like(point), jnp.zeros_like(point))
    deviation = jnp.sqrt(variance)
    nodes, shares = jnp.asarray(_NODES, point.dtype)[:, None], jnp.asarray(_SHARES, point.dtype)
    values = jax.vmap(warp)(point + nodes * deviation)
    value = jnp.sum(shares * values, 0)
    steep = jnp.sum(shares * nodes * values, 0)
    left = jnp.sum(shares * (values - value) ** 2, 0) - steep**2
    return LinearFit(value, steep / deviation, jnp.maximum(left, 0.0))
