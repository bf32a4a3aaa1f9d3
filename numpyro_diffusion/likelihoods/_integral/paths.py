r"""The integral of the denoising error along straight paths from x_0 into one noise, with the Jacobian's trace.

With the same ε at all λ, x_λ is a path, and by Stein's identity, E ε·g(ε) = E div g(ε),

.. math:: \tfrac12\int\mathbb{E}\,\|\varepsilon-\hat\varepsilon\|^2\,d\lambda
          = \tfrac12\,\mathbb{E}\int \hat\varepsilon\cdot(\hat\varepsilon-\varepsilon)
            - \operatorname{div}_\varepsilon(\hat\varepsilon-\varepsilon)\,d\lambda

for any denoiser. Where ε̂ is the score's, the Fokker-Planck equation makes the integrand on the right the total
derivative of −log p(x_λ) along the path, but for a constant: its integral is then the same for every ε, but for what
the path's ends say, which `draw_paths` cancels. What noise is left is that of the sum over λ and of the trace.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..._batching import batched_map
from ..._products import dot
from ..._shapes import Example
from ...process import ReverseProcess
from ..k_bound import reconstruction
from .reference import GaussianReference, last_control

# How much of a direction is random: what keeps directions apart where the Jacobian makes no new ones.
_STIR = 1e-3


def draw_paths(
    key: PRNGKeyArray,
    process: ReverseProcess,
    x_0: Example,
    reference: GaussianReference | None,
    sizes: tuple[int, int, int],
    ends: tuple[Float[Array, ""], Float[Array, ""]],
    chunk: int | None,
) -> tuple[Float[Array, " samples"], Float[Array, " samples"]]:
    """The integral and the last step's term along independent paths, shape (num_samples,) each, in nats.

    Args:
        key: JAX random key.
        process: a Gaussian diffusion's.
        x_0: one example.
        reference: the control variate's law; None for none.
        sizes: how many paths, points on each, and Jacobian-vector products at each point.
        ends: the least and greatest log-SNR.
        chunk: at most so many network calls at a time.
    """
    num_samples, num_times, num_products = sizes
    (low, high) = ends
    diffusion: Any = process.diffusion
    keys = jax.random.split(key, num_samples)
    shifts = jax.random.uniform(jax.random.fold_in(key, 0), (num_samples,), x_0.dtype)
    noise = jax.vmap(lambda key: diffusion.marginal_noise(jax.random.fold_in(key, 0), x_0.shape))(keys)

    def error(pair: tuple[Array, Array]) -> Array:
        path, index = pair
        log_snr = high - (index + shifts[path]) / num_times * (high - low)
        key = jax.random.fold_in(keys[path], 1 + index)
        return path_error(key, process, x_0, reference, log_snr, noise[path], num_products)

    pairs = jnp.repeat(jnp.arange(num_samples), num_times), jnp.tile(jnp.arange(num_times), num_samples)
    together = None if chunk is None else max(1, chunk // (1 + min(num_products, x_0.size)))
    excess = batched_map(error, pairs, together).reshape(num_samples, num_times)

    def last(noise: Array) -> Array:
        # The path's own noise: what ½ ‖ε‖² leaves then cancels against the integral's.
        control = 0.0 if reference is None else last_control(process, x_0, reference, noise)
        return reconstruction(process, x_0, noise) + control

    known = 0.0 if reference is None else reference.integral(diffusion.standardize(x_0), low, high)
    if process.last_step.has_expectation:
        terms = jnp.broadcast_to(reconstruction(process, x_0, jnp.zeros_like(x_0)), (num_samples,))
    else:
        terms = batched_map(last, noise, chunk)
    return known + (high - low) * jnp.mean(excess, axis=1), terms


def path_error(
    key: PRNGKeyArray,
    process: ReverseProcess,
    x_0: Example,
    reference: GaussianReference | None,
    log_snr: Float[Array, ""],
    noise: Float[Array, "*event"],
    num_products: int,
) -> Float[Array, ""]:
    """½ (ε̂·(ε̂ − ε) − div (ε̂ − ε)) of the process less that of the reference, at one point, shape ()."""
    diffusion: Any = process.diffusion
    t, z_0 = diffusion.schedule.time_at(log_snr), diffusion.standardize(x_0)
    log_snr = diffusion.schedule.log_snr(t)

    def gap(noise: Array) -> Array:
        x_t = diffusion.marginal_from_noise(noise, x_0, t)
        return jnp.exp(0.5 * log_snr) * (z_0 - diffusion.standardize(process.predict(x_t, t)))

    here, push = jax.linearize(gap, noise)
    error = 0.5 * (jnp.sum((noise + here) * here) - trace(key, push, here, num_products))
    return error if reference is None else error - reference.path_error(z_0, log_snr, noise)


def trace(
    key: PRNGKeyArray,
    push: Callable[[Float[Array, "*event"]], Float[Array, "*event"]],
    start: Float[Array, "*event"],
    num_products: int,
) -> Float[Array, ""]:
    """The trace of a linear map, without bias, by Jacobian-vector products, shape ().

    Exact with as many products as elements. With fewer, all but one go along directions in which the map is large,
    found by applying it again and again to `start` (a Krylov space); the last along a random direction that stands for
    all others, as the sketch and the rest of Hutch++ do (Meyer et al. 2021). The directions count as constants in
    gradients, since the trace does not depend on them: those of the estimate are then free of bias too.

    Args:
        key: JAX random key.
        push: the map, from the shape of `start` to itself.
        start: the first direction.
        num_products: at least 1.
    """
    size = start.size
    if num_products >= size:
        unit = jnp.eye(size, dtype=start.dtype).reshape(-1, *start.shape)
        return jnp.sum(jax.vmap(lambda v: jnp.sum(v * push(v)))(unit))
    random = jax.random.normal(key, (num_products, size), start.dtype)
    others = size - num_products + 1

    def step(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], Array]:
        basis, found = carry
        wanted = found / jnp.maximum(jnp.linalg.norm(found), jnp.finfo(found.dtype).tiny)
        last = index == num_products - 1
        wanted = jnp.where(last, 0.0, wanted) + jnp.where(last, 1.0, _STIR / size**0.5) * random[index]
        for _ in range(2):  # once leaves rounding errors of a vector that is nearly among them
            wanted = wanted - dot(basis.T, dot(basis, wanted))
        direction = wanted / jnp.linalg.norm(wanted)
        answer = push(direction.reshape(start.shape)).reshape(-1)
        share = jnp.sum(direction * answer) * jnp.where(last, others, 1)
        return (basis.at[index].set(direction), jax.lax.stop_gradient(answer)), share

    carry = jnp.zeros((num_products, size), start.dtype), jax.lax.stop_gradient(start).reshape(-1)
    return jnp.sum(jax.lax.scan(step, carry, jnp.arange(num_products))[1])
