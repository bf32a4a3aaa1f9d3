"""What training maximises: one random time per example, the times of a batch stratified."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from ..diffusions import BinomialDiffusion, GaussianDiffusion
from ..likelihoods import reconstruction, step_kl, terminal_kl
from ..process import ForwardStep, ReverseProcess

Objective = Literal["bound", "simple"]


def bound_loss(key: Array, process: ReverseProcess, batch: Array) -> Array:
    """−K averaged over a batch, estimated without bias from one KL term per example ([2015] eq. 14).

    The examples' times are a stratified sample of 2 … T. The last step, unless it is the fixed forward kernel, is
    estimated on an eighth of the batch, chosen at random.

    Args:
        key: JAX random key.
        process: the process that is trained.
        batch: shape (n, *event).

    Returns:
        −K in nats, shape ().
    """
    keys = jax.random.split(key, 4)
    terms = process.num_steps - 1
    t = 2 + _stratified_times(keys[0], len(batch), terms)
    kl = jax.vmap(lambda x_0, t, noise: step_kl(process, x_0, t, noise))(batch, t, _noise(keys[1], process, batch))
    few = batch if isinstance(process.last_step, ForwardStep) else _eighth(keys[3], batch)
    last = jax.vmap(lambda x_0, noise: reconstruction(process, x_0, noise))(few, _noise(keys[2], process, few))
    end = jax.vmap(lambda x_0: terminal_kl(process, x_0))(batch)
    return terms * jnp.mean(kl) - jnp.mean(last) + jnp.mean(end)


def simple_loss(key: Array, process: ReverseProcess, batch: Array) -> Array:
    """The unweighted loss: squared error of the noise, or cross-entropy of the bits of x_0.

    Gaussian: E‖ε − ε̂‖², t uniform on 1 … T ([DDPM 2020] eq. 14). Bits: −E log p(x_0 | x_t), all bits given the
    prediction at x_t. A last step with a scale of its own is fitted beside it, without touching the denoiser.

    Args:
        key: JAX random key.
        process: the process that is trained.
        batch: shape (n, *event).

    Returns:
        The loss, shape (): summed over the elements of an example, averaged over the batch.
    """
    keys = jax.random.split(key, 4)
    t = 1 + _stratified_times(keys[0], len(batch), process.num_steps)
    noise = _noise(keys[1], process, batch)
    loss = jnp.mean(jax.vmap(lambda *args: _denoising_loss(process, *args))(batch, t, noise))
    if not jax.tree.leaves(eqx.filter(process.last_step, eqx.is_inexact_array)):
        return loss
    frozen = eqx.tree_at(lambda p: p.denoiser, process, _stop_gradient(process.denoiser))
    few = _eighth(keys[3], batch)
    last = jax.vmap(lambda x_0, noise: reconstruction(frozen, x_0, noise))(few, _noise(keys[2], process, few))
    return loss - jnp.mean(last)


OBJECTIVES = {"bound": bound_loss, "simple": simple_loss}


def _denoising_loss(process: ReverseProcess, x_0: Array, t: Array, noise: Array) -> Array:
    diffusion = process.diffusion
    x_t = diffusion.marginal_from_noise(noise, x_0, t)
    posterior = process.denoiser.posterior(diffusion, x_t, t)
    if isinstance(diffusion, BinomialDiffusion):
        return -posterior.log_prob(x_0)
    assert isinstance(diffusion, GaussianDiffusion)
    error = diffusion.standardize(x_0) - diffusion.standardize(posterior.mean)
    return jnp.exp(diffusion.schedule.log_snr(t)) * jnp.sum(jnp.square(error))


def _stratified_times(key: Array, count: int, choices: int) -> Array:
    """`count` whole numbers below `choices`, one from each of `count` equal strata; each is uniform by itself."""
    turn, within = jax.random.split(key)
    place = (_turned(turn, count) + jax.random.uniform(within, (count,))) / count
    return jnp.minimum(jnp.floor(place * choices), choices - 1).astype(int)


def _eighth(key: Array, batch: Array) -> Array:
    """An eighth of the examples, in which each is equally likely to be."""
    return jnp.take(batch, _turned(key, len(batch))[: max(1, len(batch) // 8)], axis=0)


def _turned(key: Array, count: int) -> Array:
    """0 … count − 1, started anywhere: enough for examples in random order, and no sort to compile."""
    return (jnp.arange(count) + jax.random.randint(key, (), 0, count)) % count


def _noise(key: Array, process: ReverseProcess, batch: Array) -> Array:
    return process.diffusion.marginal_noise(key, (len(batch), *process.event_shape))


def _stop_gradient(module: eqx.Module) -> eqx.Module:
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jax.lax.stop_gradient, arrays), static)
