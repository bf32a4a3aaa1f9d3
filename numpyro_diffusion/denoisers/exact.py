"""Denoisers that are exact for a known law of the data: oracles for tests, and priors in their own right.

For data of a known law the law of x_0 given x_t follows by Bayes' rule: for Gaussians and mixtures of them by
conditioning each component, for bits and classes by a sum over listed states. Means, variances and probabilities of
single elements are exact. Reverse kernels made of them have independent elements, which is exact for independent
Gaussian elements, and otherwise approaches the true kernels as steps shrink.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from .._checks import check_finite, check_real, checked_location, checked_scale, is_concrete
from .._numbers import check_rounding
from .._products import dot, tensordot
from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion, require_gaussian
from ..laws import IMPOSSIBLE, log_or_impossible, normal
from .base import AbstractDenoiser
from .components import Components


class Gaussian(AbstractDenoiser):
    """Exact for data N(loc, scale²), element by element; its reverse kernels are exact too.

    Args:
        loc: mean, scalar or broadcastable to one example, in data units.
        scale: standard deviation, likewise, positive.

    Raises:
        ValueError: `loc` not finite, or rounded by more than a tenth of `scale`; `scale` not positive.
    """

    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(self, loc: ArrayLike, scale: ArrayLike) -> None:
        self.loc, self.scale = _location_scale(loc, scale)
        check_rounding("loc", loc, self.scale)

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """N(E[x_0 | x_t], Var[x_0 | x_t]), exact."""
        mean, variance, _ = condition(diffusion, self.loc, self.scale, x_t, t)
        return normal(mean, variance)

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """That of the data."""
        gaussian = require_gaussian(diffusion)
        return jnp.diag(jnp.broadcast_to(jnp.square(self.scale / gaussian.scale), event_shape).reshape(-1))

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    @property
    def is_gaussian(self) -> bool:
        """True."""
        return True

    def data(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        """The law of the data that this denoiser is exact for."""
        return normal(jnp.broadcast_to(self.loc, event_shape), jnp.square(self.scale))


class GaussianMixture(AbstractDenoiser):
    """Exact posterior mean and variance for a mixture of k Gaussians with diagonal covariances.

    The posterior of x_0 is a mixture; `posterior` is its element-wise Gaussian fit, so the mean and the variance are
    exact and reverse steps are the best Gaussian ones, approached by the true ones as steps shrink.

    Args:
        locs: means, shape (k, *event).
        scales: standard deviations, shape (k,) or (k, *event), positive.
        weights: shape (k,), not negative, adding up to 1 (to 1e-4).

    Example:
        >>> locs, weights = [[-2.0, 0.0], [2.0, 0.0]], [0.25, 0.75]
        >>> exact = nd.denoisers.GaussianMixture(locs, scales=[0.5, 0.5], weights=weights)
        >>> process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(20)), exact, 2)
        >>> process.predict(jnp.zeros(2), 20).shape  # E[x_0 | x_20 = 0]
        (2,)

    Raises:
        ValueError: shapes that do not fit, `scales` not positive, `weights` that are no probabilities, `locs` that the
            float type rounds by more than a tenth of `scales`.
    """

    locs: Float[Array, " k *event"]
    scales: Float[Array, " k *event"]
    weights: Float[Array, " k"]

    def __init__(self, locs: ArrayLike, scales: ArrayLike, weights: ArrayLike) -> None:
        self.locs, scales = _location_scale(locs, scales, "locs", "scales")
        check_real("weights", weights)
        self.weights = jnp.asarray(weights, dtype=float)
        if self.locs.ndim < 1 or self.weights.shape != self.locs.shape[:1]:
            raise ValueError(f"weights: expected shape {self.locs.shape[:1]} as locs has, got {self.weights.shape}")
        if scales.shape == self.weights.shape:
            scales = scales.reshape(scales.shape + (1,) * (self.locs.ndim - 1))
        elif scales.shape != self.locs.shape:
            raise ValueError(f"scales: expected shape {self.weights.shape} or {self.locs.shape}, got {scales.shape}")
        self.scales = jnp.broadcast_to(scales, self.locs.shape)
        check_rounding("locs", locs, self.scales)
        check_weights(self.weights)

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """Normal with the exact element-wise mean and variance of x_0 given x_t."""
        means, variances, log_evidence = jax.vmap(lambda loc, scale: condition(diffusion, loc, scale, x_t, t))(
            self.locs, self.scales
        )
        share = jax.nn.softmax(jnp.log(self.weights) + log_evidence.reshape(log_evidence.shape[0], -1).sum(-1))
        mean = tensordot(share, means, 1)
        return normal(mean, tensordot(share, variances + jnp.square(means - mean), 1))

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """That of the data: within components and between them."""
        gaussian = require_gaussian(diffusion)
        scale = jnp.broadcast_to(gaussian.scale, event_shape)
        locs, variances = (self.locs / scale).reshape(len(self.locs), -1), jnp.square(self.scales / scale)
        apart = locs - dot(self.weights, locs)
        within = dot(self.weights, variances.reshape(len(locs), -1))
        return jnp.diag(within) + dot((apart * self.weights[:, None]).T, apart)

    @property
    def components(self) -> Components:
        """The mixture."""
        flat = lambda x: x.reshape(len(self.weights), -1)
        return Components(flat(self.locs), flat(jnp.square(self.scales)), None, self.weights)

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def data(self, event_shape: tuple[int, ...] | None = None) -> dist.Distribution:
        """The law of the data that this denoiser is exact for, with its exact `log_prob`."""
        del event_shape
        components = dist.Normal(self.locs, self.scales).to_event(self.locs.ndim - 1)
        return dist.MixtureSameFamily(dist.Categorical(probs=self.weights), components)


class Enumerated(AbstractDenoiser):
    """Exact for bits or classes that take one of k listed states; reverse steps are the best factorised ones.

    Where no listed state can have become x_t, as may be with absorbing noise after a step that no data make, every
    state counts as it did before.

    Args:
        states: the possible data, shape (k, *event), whole numbers from 0.
        probabilities: shape (k,), adding up to 1; equal unless given.

    Raises:
        ValueError: states that are no whole numbers, probabilities of another shape or no probabilities; when called,
            a diffusion of other values.
    """

    states: Int[Array, " k *event"]
    probabilities: Float[Array, " k"]

    def __init__(self, states: ArrayLike, probabilities: ArrayLike | None = None) -> None:
        check_finite("states", states)
        if is_concrete(states) and ((found := np.asarray(states)) != np.maximum(np.round(found), 0)).any():
            raise ValueError(f"states: expected whole numbers of at least 0, got {found!s:.80}")
        self.states = jnp.asarray(states, dtype=int)
        if self.states.ndim < 1:
            raise ValueError(f"states: expected shape (k, *event), got {self.states.shape}")
        count = self.states.shape[0]
        if probabilities is not None:
            check_real("probabilities", probabilities)
        self.probabilities = jnp.asarray(
            jnp.full(count, 1 / count) if probabilities is None else probabilities, dtype=float
        )
        if self.probabilities.shape != (count,):
            raise ValueError(f"probabilities: expected shape {(count,)}, got {self.probabilities.shape}")
        check_weights(self.probabilities, "probabilities")

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """Independent elements with the exact P(x_0 | x_t) of each."""
        if diffusion.num_values is None:
            raise ValueError(f"diffusion: Enumerated is for bits or classes, got {type(diffusion).__name__}")
        diffusion.check_values("states", self.states)
        seen = jax.vmap(lambda state: diffusion.marginal(state, t).log_prob(x_t))(self.states)
        seen = jnp.where(jnp.isfinite(jnp.max(seen)), jnp.maximum(seen, IMPOSSIBLE), 0.0)
        log_share = log_or_impossible(self.probabilities) + seen
        each = log_share.reshape((-1,) + (1,) * jnp.ndim(x_t))
        log_probs = [_log_sum(each, self.states == value) for value in range(diffusion.num_values)]
        return diffusion.posterior_of_values(jnp.stack(log_probs, -1), x_t)

    def log_prob(self, x_0: Shaped[ArrayLike, "*event"]) -> Float[Array, ""]:
        """Exact log probability of one example in nats, −inf off the listed states."""
        same = jnp.all(self.states == jnp.asarray(x_0), axis=tuple(range(1, self.states.ndim)))
        return jnp.log(jnp.sum(jnp.where(same, self.probabilities, 0.0)))


def _log_sum(log_share: Array, keep: Array) -> Array:
    """Log of the sum over states where `keep`; a floor in place of −inf, as are the shares: else gradients are NaN."""
    floor = jnp.log(jnp.finfo(log_share.dtype).tiny)
    total = logsumexp(log_share, axis=0)
    return jnp.maximum(logsumexp(jnp.broadcast_to(log_share, keep.shape), axis=0, where=keep), total + floor)


def condition(
    diffusion: AbstractDiffusion,
    loc: Float[Array, "..."],
    scale: Float[Array, "..."],
    x_t: Shaped[Array, "*event"],
    t: AnyTime,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Mean and variance of x_0 given x_t for x_0 ~ N(loc, scale²), and log q(x_t), element by element."""
    diffusion = require_gaussian(diffusion, "diffusion: Gaussian oracles are for GaussianDiffusion")
    alpha_bar, noise_variance = diffusion.schedule.signal_and_noise(t)
    mean, scale, z = diffusion.standardize(loc), scale / diffusion.scale, diffusion.standardize(x_t)
    marginal = alpha_bar * scale**2 + noise_variance
    residual = z - jnp.sqrt(alpha_bar) * mean
    posterior_mean = mean + jnp.sqrt(alpha_bar) * scale**2 / marginal * residual
    log_evidence = -0.5 * (residual**2 / marginal + jnp.log(2 * jnp.pi * marginal)) - jnp.log(diffusion.scale)
    return (
        diffusion.unstandardize(posterior_mean),
        scale**2 * noise_variance / marginal * diffusion.scale**2,
        log_evidence,
    )


def _location_scale(
    loc: ArrayLike, scale: ArrayLike, loc_name: str = "loc", scale_name: str = "scale"
) -> tuple[Array, Array]:
    return checked_location(loc_name, loc), checked_scale(scale_name, scale)


def check_weights(weights: Float[Array, " k"], name: str = "weights") -> None:
    """Raise ``ValueError`` unless `weights`, where they are known, are probabilities."""
    if is_concrete(weights):
        array = np.asarray(weights)
        if not ((array >= 0).all() and abs(array.sum() - 1) < 1e-4):
            raise ValueError(f"{name}: expected probabilities that add up to 1, got {array}, sum {array.sum():.6g}")
