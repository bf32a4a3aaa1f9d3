"""What a run is told of held-out data, and when.

Held-out data are valued by an estimate of K, a *bound* on their log density, with the same noise in every validation,
so that it is weights that are compared and not draws. The weights of the best value are kept. Where contexts are left
out in training, as many are left out here, always the same ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped
from numpyro.distributions.transforms import Transform

from .._batching import batched_map
from .._compiled import compiled
from ..likelihoods import AbstractLikelihood
from ..process import ReverseProcess
from ._arguments import VALIDATION, VALIDATION_TOLD
from .resume import Progress, extended
from .run import Examples, TrainingRun, copied, dequantized, to_latent


def validate(
    run: TrainingRun, key: Array, now: Progress, held_out: Examples, likelihood: AbstractLikelihood
) -> Progress:
    """With an entry for the state as it is, which is kept as the best if it is."""
    state, process = now.state, run.process(now.state.average)
    own = jax.random.fold_in(key, VALIDATION)
    values = held_out_values(likelihood, own, process, held_out[0], run.dequantize, run.transform, held_out[1])
    value = jnp.mean(values)
    error = float(jnp.std(values) / np.sqrt(len(values)))
    entry = {"validation_step": int(state.step), "validation": float(value), "validation_error": error}
    if value > state.best_value:
        best_value = value.astype(state.best_value.dtype)
        best, best_step = copied((state.average, state.step))  # what a step overwrites is in no other place
        state = state._replace(best=best, best_value=best_value, best_step=best_step)
    return now._replace(state=state, history=extended(now.history, entry))


def validation_told(
    run: TrainingRun, key: PRNGKeyArray, context: Shaped[Array, " n ..."] | None
) -> Shaped[Array, " n ..."] | None:
    """The contexts of held-out examples, the run's share of them left out, the same ones in each validation.

    With all of them, the best weights would be those for p(x | c), which may know p(x) badly. Of a few examples, a draw
    with the run's probability might leave out none: the number is the nearest to the share, but at least one of each.

    Args:
        run: the training run.
        key: of the run.
        context: shape (n, *context_shape), or None.
    """
    if context is None or not run.dropout or len(context) < 2:
        return context
    count = min(max(round(run.dropout * len(context)), 1), len(context) - 1)
    order = jax.random.permutation(jax.random.fold_in(key, VALIDATION_TOLD), len(context))
    return run.without(order < count, context)


def held_out_values(
    likelihood: AbstractLikelihood,
    key: PRNGKeyArray,
    process: ReverseProcess,
    data: Shaped[Array, " m ..."],
    dequantize: float,
    transform: Transform | None = None,
    context: Shaped[Array, " m ..."] | None = None,
) -> Float[Array, " m"]:
    """The estimate for each of some held-out data, shape (m,), of x = T(z) if there is a `transform`."""
    # In one form, whatever is left out: another one would be compiled again.
    return _held_out_values(likelihood, key, process, data, dequantize, transform, context)


@compiled
def _held_out_values(
    likelihood: AbstractLikelihood,
    key: Array,
    process: ReverseProcess,
    data: Array,
    dequantize: float,
    transform: Transform | None,
    context: Array | None,
) -> Array:
    noise, draws = jax.random.split(key)
    z, log_volume = to_latent(transform, dequantized(noise, data, dequantize))
    if context is None:
        return likelihood(draws, process, z).value - log_volume
    one = lambda args: likelihood.estimate(args[0], process.given(args[1]), args[2]).value
    together = None if likelihood.chunk is None else max(1, likelihood.chunk // likelihood.calls(process))
    return batched_map(one, (jax.random.split(draws, len(z)), context, z), together) - log_volume


def is_due(now: Progress, max_steps: int, every: int, log_every: int) -> bool:
    """Whether the state as it is should be validated and has not been: also that of a run which was stopped before."""
    step = int(now.state.step)
    if step in now.history["validation_step"][-1:]:
        return False
    before = (step - 1) // log_every * log_every  # the entry of the history before this one
    return step in (0, max_steps) or passed(step, step - before, every)


def passed(step: int, count: int, every: int) -> bool:
    """Whether the last `count` steps came to a multiple of `every`."""
    return step // every > (step - count) // every
