"""The evidence of the law that a denoiser is exact for.

A chain of normal steps has a law of its own, which tends to that of the data as they become many. SMC answers for the
chain. Far out in the tails the two may be nats apart although all weights are well: where the data's law is a mixture
of Gaussians and the observation is linear, ∫ p(x) r(x) dx is a closed form, and shows by how much.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .._products import dot
from ..factors import AbstractFactor
from ..process import ReverseProcess
from .fitting import has_few_components
from .mixture import MixtureMatched


def law_log_evidence(process: ReverseProcess, factor: AbstractFactor) -> Float[Array, ""] | None:
    """log ∫ p(x) r(x) dx in nats, shape (), for the mixture of Gaussians p that the denoiser is exact for.

    None where there is no closed form: denoisers without components, bits or grey levels, known elements, factors that
    are no Gaussian observation, or no factor at all; or where there are too many components to find it in passing.
    """
    size = factor.observation_size(process.event_shape)
    if not size or factor.fixes_elements or not (process.is_smooth and process.denoiser.is_exact):
        return None
    if not has_few_components(process, size):
        return None
    diffusion: Any = process.diffusion
    shared = MixtureMatched().prepare(process, factor)
    linear, rows, parts, scale = shared.linear, shared.rows, shared.parts, shared.scale
    assert linear is not None and rows is not None
    means = diffusion.loc + (parts.locs * scale).reshape(-1, *process.event_shape)

    def of_one(mean: Array, rows: Array, variance: Array) -> Array:
        lower = jnp.linalg.cholesky(linear.covariance(dot(rows * variance, rows.T)))
        white = solve_triangular(lower, linear.residual(mean), lower=True)
        return linear.log_density(dot(white, white), 2 * jnp.sum(jnp.log(jnp.diagonal(lower))))

    return logsumexp(jnp.log(parts.weights) + jax.vmap(of_one)(means, rows, parts.variances))
