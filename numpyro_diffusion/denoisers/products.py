"""An exact denoiser for columns of several kinds, whose law is a mixture of independent columns.

Given its component all columns of a row are independent (a latent class model), so that x_0 given x_t is a mixture of
products: normal laws for real columns, probabilities for bits and classes. A component's weight given x_t is a product
over columns of all kinds, through which one kind informs the other. The answer for each column is exact; reverse
kernels take columns as independent given x_t, and approach the true ones as steps shrink.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, Shaped

from .._checks import check_finite, check_real, checked_location, checked_scale, is_concrete
from .._numbers import check_rounding
from .._products import dot
from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion, MixedDiffusion, require_mixed
from ..laws import IMPOSSIBLE, Mixed, elements, log_or_impossible, normal, one_hot
from .base import AbstractDenoiser
from .exact import check_weights, condition


class ProductMixture(AbstractDenoiser):
    """Exact for data whose columns are independent given one of k components: a latent class model.

    Real columns are N(loc, scale²) in each component, bits and classes have probabilities in each: through the
    component all columns depend on one another. `posterior` has the exact law of each bit and class given x_t, and the
    exact mean and variance of each real column; reverse steps are the best factorised ones, approached by the true ones
    as steps shrink. With one component columns are independent.

    Args:
        locs: means of real columns, shape (k, d); anything finite for the others.
        scales: their standard deviations, likewise, positive.
        probabilities: of the values 0 … m − 1 of bits and classes, shape (k, d, m), m the largest number of values of
            any column; 0 for values that a column does not have, and anything finite for real columns.
        weights: shape (k,), not negative, adding up to 1 (to 1e-4); equal unless given.

    Raises:
        ValueError: shapes that do not fit, `scales` not positive, `weights` that are no probabilities, `locs` that the
            float type rounds by more than a tenth of `scales`; when called, a diffusion that is not mixed or has other
            columns.
    """

    locs: Float[Array, "k d"]
    scales: Float[Array, "k d"]
    probabilities: Float[Array, "k d m"]
    weights: Float[Array, " k"]

    def __init__(
        self, locs: ArrayLike, scales: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
    ) -> None:
        self.locs, self.scales = checked_location("locs", locs), checked_scale("scales", scales)
        check_finite("probabilities", probabilities)
        self.probabilities = jnp.asarray(probabilities, dtype=float)
        if self.locs.ndim != 2 or self.scales.shape != self.locs.shape:
            raise ValueError(
                f"scales: expected locs and scales of one shape (k, d), got {self.locs.shape} and {self.scales.shape}"
            )
        check_rounding("locs", locs, self.scales)
        if self.probabilities.shape[:-1] != self.locs.shape:
            raise ValueError(f"probabilities: expected shape {(*self.locs.shape, 'm')}, got {self.probabilities.shape}")
        if is_concrete(probabilities) and (np.asarray(probabilities) < 0).any():
            raise ValueError(f"probabilities: expected none below 0, got {np.min(np.asarray(probabilities)):.3g}")
        count = len(self.locs)
        if weights is not None:
            check_real("weights", weights)
        self.weights = jnp.asarray(np.full(count, 1 / count) if weights is None else weights, dtype=float)
        if self.weights.shape != (count,):
            raise ValueError(f"weights: expected shape {(count,)}, got {self.weights.shape}")
        check_weights(self.weights)

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The exact law of each bit and class, a normal one of exact mean and variance of each real column."""
        mixed = self._checked(diffusion)
        groups = [(own, np.array(places), x_t[np.array(places)])
                  for own, places in zip(mixed.diffusions, mixed.columns, strict=True)]  # fmt: skip
        found = [self._values(*group, t) if group[0].num_values else self._reals(*group, t) for group in groups]
        log_share = jax.nn.log_softmax(log_or_impossible(self.weights) + sum(seen for *_, seen in found))
        share = jnp.exp(log_share)
        laws: list[dist.Distribution] = []
        for (own, _, x), (one, two, _) in zip(groups, found, strict=True):
            if own.num_values is None:
                mean = dot(share, one)
                laws.append(normal(mean, dot(share, two + jnp.square(one - mean))))
            else:
                laws.append(own.posterior_of_values(logsumexp(log_share[:, None, None] + one, axis=0), x))
        return Mixed(laws, mixed.columns)

    def log_prob(self, diffusion: AbstractDiffusion, x_0: Shaped[Array, " d"]) -> Float[Array, ""]:
        """Exact log density of one example in nats, shape (): of real columns, times probabilities of the others."""
        mixed, total = self._checked(diffusion), log_or_impossible(self.weights)
        for own, places in zip(mixed.diffusions, mixed.columns, strict=True):
            at = np.array(places)
            if own.num_values is None:
                each = dist.Normal(self.locs[:, at], self.scales[:, at]).log_prob(x_0[at])
            else:
                is_value = one_hot(x_0[at], self.probabilities.shape[-1])
                each = jnp.sum(jnp.where(is_value, log_or_impossible(self.probabilities[:, at]), 0.0), -1)
            total = total + jnp.sum(each, 1)
        return logsumexp(total)

    def _reals(self, own: Any, at: np.ndarray, x_t: Example, t: AnyTime) -> tuple[Array, Array, Array]:
        """Of each component: means and variances of x_0 given x_t, shape (k, n), and log q(x_t), shape (k,)."""
        one = lambda loc, scale: condition(own, loc, scale, x_t, t)
        means, variances, log_evidence = jax.vmap(one)(self.locs[:, at], self.scales[:, at])
        return means, variances, jnp.sum(log_evidence, 1)

    def _values(self, own: Any, at: np.ndarray, x_t: Example, t: AnyTime) -> tuple[Array, Array, Array]:
        """Of each component: log probabilities of x_0 given x_t, shape (k, n, m); itself; log q(x_t), shape (k,)."""
        seen = []
        for value in range(own.num_values):
            fits = jnp.broadcast_to(own.data_support(jnp.full(x_t.shape, value)), x_t.shape)
            log_prob = elements(own.marginal(jnp.where(fits, value, 0), t)).log_prob(x_t)
            seen.append(jnp.where(fits, jnp.maximum(log_prob, IMPOSSIBLE), IMPOSSIBLE))
        both = log_or_impossible(self.probabilities[:, at, : own.num_values]) + jnp.stack(seen, -1)
        log_evidence = logsumexp(both, axis=-1)
        given = jax.nn.log_softmax(both, axis=-1)
        return given, given, jnp.sum(log_evidence, 1)

    def _checked(self, diffusion: AbstractDiffusion) -> MixedDiffusion:
        mixed = require_mixed(diffusion, "diffusion: ProductMixture is for a MixedDiffusion")
        most = max(own.num_values or 0 for own in mixed.diffusions)
        if most > self.probabilities.shape[-1]:
            raise ValueError(f"probabilities: expected some of {most} values, got {self.probabilities.shape[-1]}")
        if mixed.size != self.locs.shape[1]:
            raise ValueError(f"locs: expected {mixed.size} columns, as the diffusion has, got {self.locs.shape[1]}")
        return mixed
