"""What training maximises: one random time per example, the times of a batch stratified.

Each objective is a mean over examples at one random time for each, the times of a batch stratified, which keeps it
*unbiased* and lowers its variance (Kingma et al. 2021 have evenly spaced times). The bound's is −K (Sohl-Dickstein et
al. 2015, eq. 14). The simple one, the squared error of the noise (Ho, Jain and Abbeel 2020, eq. 14) or a cross-entropy
for values, is no bound: it weights times alike. The hybrid one adds a little of the bound for the sake of learned
variances (Nichol and Dhariwal 2021, eq. 16).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from .._checks import check_key
from ..laws import event_kl
from ..likelihoods import reconstruction, step_kl, terminal_kl
from ..process import ReverseProcess

Objective = Literal["bound", "simple", "hybrid"]


class Part(NamedTuple):
    """One of some equal parts of a batch, with every `parts`-th example; the whole unless said otherwise.

    Attributes:
        place: from 0.
        parts: how many. The mean of their losses is the whole batch's loss, with the same noise.
    """

    place: Array | int = 0
    parts: int = 1

    def of(self, *arrays: Any) -> tuple[Any, Callable[[Array], Array]]:
        """The part's examples, and what takes the mean of a number for each; averaged over parts, the batch's mean.

        A part with one example less than others has one of no weight.
        """
        if self.parts == 1:
            return arrays, jnp.mean
        size = len(jax.tree.leaves(arrays)[0])
        places = self.place + self.parts * jnp.arange(-(-size // self.parts))
        chosen, weight = jnp.minimum(places, size - 1), jnp.where(places < size, self.parts / size, 0.0)
        mean = lambda values: jnp.sum(weight.astype(values.dtype) * values)
        return jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=0), arrays), mean


WHOLE = Part()

# λ of Nichol & Dhariwal 2021, eq. 16.
BOUND_WEIGHT = 0.001


def bound_loss(
    key: PRNGKeyArray,
    process: ReverseProcess,
    batch: Shaped[Array, " batch *event"],
    context: Shaped[Array, " batch ..."] | None = None,
    part: Part = WHOLE,
) -> Float[Array, ""]:
    """−K averaged over a batch, estimated without bias from one KL term per example.

    The examples' times are a stratified sample of 2 … T. The last step, unless it is the fixed forward kernel, is
    estimated on an eighth of the batch, chosen at random. Source: [2015] eq. 14.

    Args:
        key: JAX random key.
        process: the process that is trained.
        batch: shape (n, *event).
        context: of each example, for p(x | c).
        part: of the batch, for its share of the loss; the whole of it unless given.

    Returns:
        −K in nats, shape ().
    """
    keys = jax.random.split(check_key("key", key), 4)
    terms = process.num_steps - 1
    t = 2 + _stratified_times(keys[0], len(batch), terms)
    whole = process.last_step.has_expectation
    few, few_told = (batch, context) if whole else _eighth(keys[3], (batch, context))
    (told, x_0, t, noise), mean = part.of(context, batch, t, _noise(keys[1], process, batch))
    kl = _each(process, step_kl, told)(x_0, t, noise)
    (few_told, few, noise), few_mean = part.of(few_told, few, _noise(keys[2], process, few))
    last = _each(process, reconstruction, few_told)(few, noise)
    end = jax.vmap(lambda x_0: terminal_kl(process, x_0))(x_0)
    return terms * mean(kl) - few_mean(last) + mean(end) + process.diffusion.schedule.balance(t, kl)


def simple_loss(
    key: PRNGKeyArray,
    process: ReverseProcess,
    batch: Shaped[Array, " batch *event"],
    context: Shaped[Array, " batch ..."] | None = None,
    part: Part = WHOLE,
) -> Float[Array, ""]:
    """The unweighted loss: squared error of the noise, or cross-entropy of the bits of x_0.

    Gaussian: E‖ε − ε̂‖², t uniform on 1 … T ([DDPM 2020] eq. 14). Bits: −E log p(x_0 | x_t), all bits given the
    prediction at x_t. A last step with a scale of its own is fitted beside it, without touching the denoiser.

    Args:
        key: JAX random key.
        process: the process that is trained.
        batch: shape (n, *event).
        context: of each example, for p(x | c).
        part: of the batch, for its share of the loss; the whole of it unless given.

    Returns:
        The loss, shape (): summed over the elements of an example, averaged over the batch.
    """
    keys = jax.random.split(check_key("key", key), 4)
    (told, x_0, t, noise), mean = _at_any_step(keys[:2], process, batch, context, part)
    loss = mean(_each(process, _denoising_loss, told)(x_0, t, noise))
    if not jax.tree.leaves(eqx.filter(process.last_step, eqx.is_inexact_array)):
        return loss
    frozen = eqx.tree_at(lambda p: p.denoiser, process, _stop_gradient(process.denoiser))
    return loss - _mean_last(keys[2:], frozen, batch, context, part, reconstruction)


def hybrid_loss(
    key: PRNGKeyArray,
    process: ReverseProcess,
    batch: Shaped[Array, " batch *event"],
    context: Shaped[Array, " batch ..."] | None = None,
    part: Part = WHOLE,
) -> Float[Array, ""]:
    """The unweighted loss for the mean, and a thousandth of −K for a learned variance.

    L_simple + 0.001 L_vlb, where L_vlb is −K in nats, estimated as by `bound_loss`, and sees the kernels' variances
    alone: their means, and the last step's, count as constants in it. One network call serves both terms; the last step
    is estimated on an eighth of the batch. For Gaussian networks with ``variance="learned"``.
    Source: Nichol & Dhariwal 2021, eq. 16.

    Args:
        key: JAX random key.
        process: the process that is trained.
        batch: shape (n, *event).
        context: of each example, for p(x | c).
        part: of the batch, for its share of the loss; the whole of it unless given.

    Returns:
        The loss, shape (): summed over the elements of an example, averaged over the batch.
    """
    keys = jax.random.split(check_key("key", key), 4)
    (told, x_0, t, noise), mean = _at_any_step(keys[:2], process, batch, context, part)
    simple, kl = _each(process, _hybrid_terms, told)(x_0, t, noise)
    bound = process.num_steps * mean(kl)
    bound -= _mean_last(keys[2:], process, batch, context, part, _last_of_fixed_mean)
    bound += mean(jax.vmap(lambda x_0: terminal_kl(process, x_0))(x_0))
    return mean(simple) + BOUND_WEIGHT * bound


OBJECTIVES = {"bound": bound_loss, "simple": simple_loss, "hybrid": hybrid_loss}


def _denoising_loss(process: ReverseProcess, x_0: Array, t: Array, noise: Array) -> Array:
    diffusion = process.diffusion
    x_t = diffusion.marginal_from_noise(noise, x_0, t)
    return diffusion.simple_loss(process.denoiser.posterior(diffusion, x_t, t), x_0, t)


def _hybrid_terms(process: ReverseProcess, x_0: Array, t: Array, noise: Array) -> tuple[Array, Array]:
    """‖ε − ε̂‖² and the KL term of the step from t, 0 for t = 1, at one x_t."""
    diffusion = process.diffusion
    x_t = diffusion.marginal_from_noise(noise, x_0, t)
    s = jnp.maximum(t - 1, 1)  # the step from 1 has no bridge; where it is drawn, any other serves
    t_kl = s + 1
    posterior, kernel = process.denoiser.denoise(diffusion, x_t, t)
    kl = event_kl(diffusion.bridge(x_t, x_0, t_kl, s), _of_fixed_mean(kernel))
    return diffusion.simple_loss(posterior, x_0, t), jnp.where(t > 1, kl, 0.0)


def _at_any_step(
    keys: Array, process: ReverseProcess, batch: Array, context: Array | None, part: Part
) -> tuple[Any, Callable[[Array], Array]]:
    """The part's contexts, x_0, t in 1 … T and noise that makes x_t, and how a mean over the part is taken."""
    t = 1 + _stratified_times(keys[0], len(batch), process.num_steps)
    return part.of(context, batch, t, _noise(keys[1], process, batch))


def _each(process: ReverseProcess, function: Callable[..., Any], context: Array | None) -> Callable[..., Any]:
    """``function(process, x_0, …)`` over the examples of a batch, the process told each example's context."""
    if context is None:
        return jax.vmap(lambda *args: function(process, *args))
    told = jax.vmap(lambda context, *args: function(process.given(context), *args))
    return lambda *args: told(context, *args)


def _mean_last(
    keys: Array,
    process: ReverseProcess,
    batch: Array,
    context: Array | None,
    part: Part,
    log_prob: Callable[..., Array],
) -> Array:
    """The mean of log p(x_0 | x_1) over an eighth of the batch, of `log_prob` of x_0 and the noise that makes x_1."""
    few, told = _eighth(keys[1], (batch, context))
    (told, few, noise), mean = part.of(told, few, _noise(keys[0], process, few))
    return mean(_each(process, log_prob, told)(few, noise))


def _last_of_fixed_mean(process: ReverseProcess, x_0: Array, noise: Array) -> Array:
    """log p(x_0 | x_1), the kernel's location taken as a constant."""
    x_1 = process.diffusion.marginal_from_noise(noise, x_0, 1.0)
    return _of_fixed_mean(process.last_kernel(x_1)).log_prob(x_0)


def _of_fixed_mean(kernel: dist.Distribution) -> dist.Distribution:
    return eqx.tree_at(lambda law: law.base_dist.loc, kernel, replace_fn=jax.lax.stop_gradient)


def _stratified_times(key: Array, count: int, choices: int) -> Array:
    """`count` whole numbers below `choices`, one from each of `count` equal strata; each is uniform by itself."""
    turn, within = jax.random.split(key)
    place = (_turned(turn, count) + jax.random.uniform(within, (count,))) / count
    return jnp.minimum(jnp.floor(place * choices), choices - 1).astype(int)


def _eighth(key: Array, batch: Any) -> Any:
    """An eighth of the examples, in which each is equally likely to be, in all arrays alike."""
    count = len(jax.tree.leaves(batch)[0])
    chosen = _turned(key, count)[: max(1, count // 8)]
    return jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=0), batch)


def _turned(key: Array, count: int) -> Array:
    """0 … count − 1, started anywhere: enough for examples in random order, and no sort to compile."""
    return (jnp.arange(count) + jax.random.randint(key, (), 0, count)) % count


def _noise(key: Array, process: ReverseProcess, batch: Array) -> Array:
    return process.diffusion.marginal_noise(key, (len(batch), *process.event_shape))


def _stop_gradient(module: eqx.Module) -> eqx.Module:
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jax.lax.stop_gradient, arrays), static)
