"""The chain as a code that is read step by step: what each step costs, and what is known of x_0 after it.

A chain is a code that sends x_T, x_{T−1}, … in turn; step t costs its KL term of K, and the receiver's best guess is
E[x_0 | x_t] (Ho, Jain and Abbeel 2020, §4.3, Algs. 3-4). Rates are closed forms given x_t, so that means over draws are
*unbiased*; they add up to −K, a length that an ideal coder would reach for bits, classes and levels. For real numbers
they are those of a density.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .._batching import batched_map
from .._checks import check_count, check_event, check_key, check_sizes
from .._compiled import compiled
from .._numbers import check_told_apart
from ..distributions import DiffusionPrior
from ..laws import event_kl
from ..likelihoods import bits_per_dim, reconstruction, terminal_kl
from ..process import ReverseProcess
from ..samplers import Ancestral


class ProgressiveCode(NamedTuple):
    """Rate and distortion along the chain, ordered by time; averages over examples make the curve of [DDPM 2020] §4.3.

    Attributes:
        step: t = 1 … T, shape (T,).
        rate: bits per dimension of a code for x_t, KL(q(x_T|x_0) ‖ π) and the KL terms of the steps from T down to t,
            shape (*batch, T).
        distortion: root-mean-square error of x̂_0(x_t) over the elements of an example, in data units, (*batch, T).
        last: bits per dimension of the last step, −E log p(x_0 | x_1), shape (*batch,).
    """

    step: Array
    rate: Array
    distortion: Array
    last: Array

    @property
    def total(self) -> Array:
        """−K in bits per dimension, all steps and the last one, shape (*batch,)."""
        return self.rate[..., 0] + self.last

    def table(self, steps: Sequence[int] | None = None) -> str:
        """Means over the examples, one row a step: of the whole chain in tenths unless given, T first."""
        rate, distortion = (np.mean(np.reshape(part, (-1, len(self.step))), 0) for part in (self.rate, self.distortion))
        count = len(self.step)
        chosen = np.unique(np.round(np.linspace(1, count, 11)).astype(int)) if steps is None else np.unique(steps)
        rows = [f"{t:6d}  {rate[t - 1]:15.5f}  {distortion[t - 1]:10.5f}" for t in reversed(chosen)]
        ends = f"last step {np.mean(self.last):.5f}, total {np.mean(self.total):.5f} bits/dim"
        return "\n".join(["     t  rate (bits/dim)  distortion", *rows, ends])


def progressive_coding(
    key: Array,
    prior: DiffusionPrior | ReverseProcess,
    x_0: ArrayLike,
    *,
    num_samples: int = 1,
    chunk: int | None = None,
) -> ProgressiveCode:
    """How many bits it takes to send x_T … x_t, and how well x_0 is known then.

    Source: [DDPM 2020] Alg. 3-4, Table 4. Rates are the KL terms of K, in closed form given x_t, from one network call
    for each t; x_t is drawn from its marginal, so that means over examples are estimated without bias. Any family: of
    bits, the distortion is that of their probabilities.

    Args:
        key: JAX random key.
        prior: a prior, or its reverse process.
        x_0: data, shape (*batch, *event).
        num_samples: draws of x_t for each example and t.
        chunk: at most so many network calls are batched at a time.

    Raises:
        TypeError: `x_0` is an array with hidden values, or none of numbers.
        ValueError: `x_0` does not end in the event shape, is not finite or not of the process's whole numbers, or the
            float type cannot tell its examples apart.
    """
    process = _process(prior)
    check_told_apart("x_0", x_0, len(process.event_shape), getattr(process.diffusion, "scale", 0.0))
    x_0 = jnp.asarray(x_0)
    batch = check_event("x_0", x_0.shape, process.event_shape)
    process.check_values("x_0", x_0)
    flat = jnp.repeat(x_0.reshape((-1, *process.event_shape)), check_count("num_samples", num_samples), axis=0)
    parts = _code(check_key("key", key), process, flat, None if chunk is None else check_count("chunk", chunk))
    rate, distortion, last = (part.reshape(*batch, num_samples, *part.shape[1:]).mean(len(batch)) for part in parts)
    return ProgressiveCode(jnp.arange(1, process.num_steps + 1), rate, distortion, last)


def progressive_generation(
    key: Array, prior: DiffusionPrior | ReverseProcess, sample_shape: tuple[int, ...] = (), num_steps: int | None = None
) -> Array:
    """The prediction x̂_0(x_t) along draws of the reverse chain: coarse features first.

    Source: [DDPM 2020] Fig. 6.

    Args:
        key: JAX random key.
        prior: a prior, or its reverse process.
        sample_shape: how many chains.
        num_steps: steps of the chain, as for `samplers.Ancestral`.

    Returns:
        Shape (*sample_shape, steps + 1, *event), ordered by time: the draw of x_0 comes first, the prediction from
        noise last. Rows of `nd.plots.samples` show it.
    """
    process, shape = _process(prior), check_sizes("sample_shape", sample_shape)
    keys = jax.random.split(check_key("key", key), math.prod(shape))
    chains = _predictions(keys, process, Ancestral(num_steps))
    return chains.reshape(shape + chains.shape[1:])


def _process(prior: DiffusionPrior | ReverseProcess) -> ReverseProcess:
    if isinstance(prior, DiffusionPrior) and prior.transform is not None:
        raise ValueError("prior: expected one without a transform; give its process, and data in its coordinates")
    process = prior.process if isinstance(prior, DiffusionPrior) else prior
    if not isinstance(process, ReverseProcess):
        raise TypeError(f"prior: expected a DiffusionPrior or a ReverseProcess, got {prior!r}")
    return process


@compiled
def _code(key: Array, process: ReverseProcess, x_0: Array, chunk: int | None) -> tuple[Array, Array, Array]:
    """Rates and distortions, shape (n, T) each, and bits of the last step, shape (n,)."""
    diffusion, examples = process.diffusion, jnp.arange(len(x_0))

    def noise(t: Array | int, index: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, t), index)
        return diffusion.marginal_noise(own, process.event_shape)

    def step(t: Array) -> tuple[Array, Array]:
        def one(pair: tuple[Array, Array]) -> tuple[Array, Array]:
            x_t = diffusion.marginal_from_noise(noise(t, pair[0]), pair[1], t)
            posterior, kernel = process.denoiser.denoise(diffusion, x_t, t, t - 1)
            bridge = diffusion.bridge(x_t, pair[1], t, t - 1)
            return event_kl(bridge, kernel), _distance(pair[1], posterior.mean)

        return batched_map(one, (examples, x_0), chunk)

    def last(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        own = noise(1, pair[0])
        x_1 = diffusion.marginal_from_noise(own, pair[1], 1.0)
        mean = process.denoiser.posterior(diffusion, x_1, 1.0).mean
        return reconstruction(process, pair[1], own), _distance(pair[1], mean)

    kl, far = jax.lax.map(step, jnp.arange(2, process.num_steps + 1))
    log_prob, near = batched_map(last, (examples, x_0), chunk)
    end = jax.vmap(lambda x: terminal_kl(process, x))(x_0)
    rate = jnp.cumsum(jnp.concatenate([end[None], kl[::-1]]), axis=0)[::-1]
    distortion = jnp.concatenate([near[None], far])
    shape = process.event_shape
    return bits_per_dim(-rate, shape).T, distortion.T, bits_per_dim(log_prob, shape)


def _distance(x_0: Array, prediction: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x_0 - prediction)))


@compiled
def _predictions(keys: Array, process: ReverseProcess, sampler: Ancestral) -> Array:
    times = jnp.asarray(sampler.times(process)[::-1])
    chains = jax.vmap(lambda key: sampler.sample_trajectory(key, process))(keys)
    predict = lambda pair: process.predict(pair[0], pair[1])
    later = jax.lax.map(predict, (jnp.moveaxis(chains[:, 1:], 1, 0), times))
    return jnp.concatenate([chains[:, :1], jnp.moveaxis(later, 0, 1)], axis=1)
