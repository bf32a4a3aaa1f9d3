"""Between two examples: mix them at a noise level, and let the reverse chain make data of the mixtures.

Two examples are noised to a level t and mixed there, and the reverse chain makes data of the mixtures (Ho, Jain and
Abbeel 2020, §4.3 and Fig. 8). A small t mixes details, a large one invents what lies between. *Approximate*, as a
mixture of two noisy states does not have the law of x_t: the linear mixture of independent noises has too little
variance, the spherical one keeps it.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._checks import check_choice, check_event, check_finite, check_key
from ..diffusions import require_gaussian
from ..process import ReverseProcess
from .ancestral import Ancestral, check_start
from .base import AbstractSampler

Mix = Literal["linear", "spherical"]


def interpolate(
    key: PRNGKeyArray,
    process: ReverseProcess,
    x_a: ArrayLike,
    x_b: ArrayLike,
    weights: ArrayLike,
    t: float,
    *,
    sampler: AbstractSampler | None = None,
    mix: Mix = "linear",
) -> Float[Array, " n *event"]:
    """Draws of x_0 from mixtures of two diffused examples, x̄_t = (1 − w) x_t + w x_t'.

    Source: [DDPM 2020] §4.3, Fig. 8. The paper's formula prints x_0 where it means x_t. All weights share the noise of
    x_t, of x_t' and of the reverse chain, so that the draws change smoothly with w. A small `t` mixes details only, a
    large one invents new examples between the two. *Approximate*: a mixture does not have the law of x_t, least of all
    in the middle, where the noise of the linear one is too weak by √½; the spherical one keeps it, and mixes signals
    with weights that add up to more than 1 where the two are not alike.

    Args:
        key: JAX random key.
        process: a Gaussian reverse process.
        x_a: one example, of shape `event`.
        x_b: another one.
        weights: w, shape (n,): 0 leads back to (a draw near) `x_a`, 1 to `x_b`.
        t: the time at which they are mixed, in [1, T].
        sampler: of the reverse chain from `t`; ``Ancestral()`` unless given.
        mix: ``"linear"``, or ``"spherical"`` along the great circle around the noise law's location (Song et al. 2021,
            appendix D.5).

    Returns:
        Shape (n, *event).

    Raises:
        ValueError: examples of another shape, weights that are no finite vector, `t` outside [1, T], a process of bits.
    """
    diffusion = require_gaussian(process.diffusion, "process: expected a GaussianDiffusion to interpolate in")
    check_choice("mix", mix, ("linear", "spherical"))
    x_a, x_b, weights = (jnp.asarray(x, dtype=float) for x in (x_a, x_b, weights))
    for name, x in (("x_a", x_a), ("x_b", x_b)):
        if check_event(name, x.shape, process.event_shape):
            raise ValueError(f"{name}: expected one example, of shape {process.event_shape}, got {x.shape}")
    if mix == "spherical" and x_a.size < 2:
        raise ValueError("mix: expected 'linear' for examples of one element, which have no great circle")
    if weights.ndim != 1:
        raise ValueError(f"weights: expected shape (n,), got {weights.shape}")
    check_finite("weights", weights)
    sampler, t = Ancestral() if sampler is None else sampler, check_start(t, process)
    first, second, rest = jax.random.split(check_key("key", key), 3)
    a, b = (diffusion.standardize(diffusion.marginal(x, t).sample(noise)) for noise, x in ((first, x_a), (second, x_b)))
    middle = diffusion.unstandardize(_mixed(a, b, weights, mix))
    return jax.vmap(lambda x_t: sampler.sample_from(rest, process, x_t, t))(middle)


def _mixed(a: Array, b: Array, weights: Array, mix: Mix) -> Array:
    weights = weights.reshape((-1,) + (1,) * np.ndim(a))
    if mix == "linear":
        return (1 - weights) * a + weights * b
    cosine = jnp.sum(a * b) / (jnp.linalg.norm(jnp.ravel(a)) * jnp.linalg.norm(jnp.ravel(b)))
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))
    return (jnp.sin((1 - weights) * angle) * a + jnp.sin(weights * angle) * b) / jnp.sin(angle)
