"""One step of training, and many of them as one program.

A step draws a batch, noise and times from the key and its own number, and moves the weights against a stochastic
gradient of the objective; the exponential average of the weights is what is used later (as in Ho, Jain and Abbeel
2020). Many steps are one compiled program. The gradient of a batch may be the mean of those of its parts, which is the
same number but for rounding. A step that is not finite is not taken.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Shaped
from numpyro.distributions.transforms import Transform

from .._compiled import compiled
from .._devices import agree, hold_parts, share
from ..process import ReverseProcess, trainable
from .objectives import Part

Examples = tuple[Any, Array | None]  # with their contexts


class State(NamedTuple):
    """What a step changes: weights, their average, the best of the averages, and the optimiser."""

    params: Any
    average: Any
    best: Any
    optimizer: Any
    best_value: Array
    best_step: Array
    step: Array


class TrainingRun(eqx.Module):
    """What a training run does at every step; equal runs share their compiled code."""

    params: Any
    rest: Any
    optimizer: optax.GradientTransformation
    loss: Callable[..., Array]
    ema: float
    dequantize: float
    batch_size: int
    sharding: NamedSharding | None
    transform: Transform | None
    dropout: float
    accumulate: int
    shard_weights: bool

    def __init__(
        self,
        process: ReverseProcess,
        optimizer: optax.GradientTransformation,
        loss: Callable[..., Array],
        ema: float,
        dequantize: float,
        batch_size: int,
        sharding: NamedSharding | None = None,
        transform: Transform | None = None,
        dropout: float = 0.0,
        accumulate: int = 1,
        shard_weights: bool = False,
    ) -> None:
        params, self.rest = eqx.partition(process, trainable(process))
        if not jax.tree.leaves(params):
            raise ValueError("process: expected something to train (a network with array parameters), got none")
        # Explicit dtypes, since weakly typed arrays would become strong in the first scan and compile it twice.
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), params)
        self.optimizer, self.loss = optimizer, loss
        self.ema, self.dequantize, self.batch_size = float(ema), float(dequantize), batch_size
        self.sharding, self.transform, self.dropout = sharding, transform, float(dropout)
        self.accumulate, self.shard_weights = accumulate, shard_weights

    def start(self) -> State:
        """The state before the first step; every array in it has a place of its own, which `advance` may take."""
        params, worst, zero = self.params, jnp.full((), -jnp.inf, float), jnp.zeros((), int)
        return copied(State(params, params, params, self.optimizer.init(params), worst, zero, zero))

    def process(self, params: Any) -> ReverseProcess:
        """The process with these weights."""
        return eqx.combine(params, self.rest)

    def scan(
        self, key: Array, state: State, data: Array, context: Array | None, size: Int[Array, ""], count: int
    ) -> tuple[State, Float[Array, " count"]]:
        """The state `count` steps on, and their losses, shape (count,); a step that is not finite stops the state.

        Args:
            key: of the run.
            state: before.
            data: examples, of which the first `size` are learned from.
            context: of them, or None.
            size: how many.
            count: of the steps.
        """

        def step(state: State, _: None) -> tuple[State, Float[Array, ""]]:
            index = chosen(key, state.step, self.batch_size, size)
            return self.step(key, state, data[index], None if context is None else context[index])

        return jax.lax.scan(step, state, None, length=count)

    def step(self, key: Array, state: State, batch: Array, context: Array | None) -> tuple[State, Float[Array, ""]]:
        """One step, and its loss."""
        keys = _keys(key, state.step)
        batch = share(batch, self.sharding)
        told = () if context is None else (share(self._told(keys[0], context), self.sharding),)
        z, log_volume = to_latent(self.transform, dequantized(keys[1], batch, self.dequantize))
        loss, grad = self._gradient(keys[2], state.params, z, *told)
        loss = loss + jnp.mean(log_volume)
        updates, optimizer = self.optimizer.update(grad, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(self.ema, (1 + state.step) / (10 + state.step)) if self.ema else 0.0
        average = optax.incremental_update(params, state.average, 1 - decay)
        new = state._replace(params=params, average=average, optimizer=optimizer, step=state.step + 1)
        # A bad step changes nothing, nor do those after it: the same step, with the same noise, is bad again.
        finite = jnp.isfinite(loss) & jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
        place = hold_parts if self.shard_weights else agree
        return place(jax.lax.cond(finite, lambda: new, lambda: state), self.sharding), loss

    def _gradient(self, key: Array, params: Any, *batch: Array) -> tuple[Array, Any]:
        """The loss and its gradient; the mean of those of the batch's parts, one after the other, if there are some."""
        count = self.accumulate
        # Weights that are divided are brought together for the loss, and the gradient is divided again.
        process = lambda p: self.process(agree(p, self.sharding) if self.shard_weights else p)
        if count == 1:
            return jax.value_and_grad(lambda p: self.loss(key, process(p), *batch))(params)
        context = None if len(batch) == 1 else batch[1]

        def add(total: Any, index: Array) -> tuple[Any, None]:
            loss = lambda p: self.loss(key, process(p), batch[0], context, Part(index, count))
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params)), None

        like = jax.eval_shape(lambda: add((jnp.zeros(()), params), jnp.zeros((), int))[0])
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, _ = jax.lax.scan(add, zero, jnp.arange(count))
        return jax.tree.map(lambda leaf: leaf / count, total)

    def _told(self, key: Array, context: Array) -> Array:
        """The contexts of a batch, some left out."""
        if not self.dropout:
            return context
        left_out = jax.random.bernoulli(jax.random.fold_in(key, 0), self.dropout, (len(context),))
        return self.without(left_out, context)

    def without(
        self, left_out: Bool[Array, " n"], context: Shaped[Array, " n *context"]
    ) -> Shaped[Array, " n *context"]:
        """The contexts, shape (n, *context_shape), as unknown ones where `left_out`, shape (n,), is true."""
        left_out = left_out.reshape((-1,) + (1,) * (context.ndim - 1))
        return jnp.where(left_out, self.rest.denoiser.wanted.unknown, context)


def _advance(given: tuple[TrainingRun, Array, Array, Array | None, Array, int], state: State) -> tuple[State, Array]:
    """`TrainingRun.scan`, whose new state is written where the old one was.

    Args:
        given: the run, its key, examples and their contexts, how many of them there are, and how many steps.
        state: gone afterwards, on whatever platform.
    """
    run, key, data, context, size, count = given
    return run.scan(key, state, data, context, size, count)


def _advance_once(given: tuple[TrainingRun, Array, Array, Array | None, Array], state: State) -> tuple[State, Array]:
    """One step with the batch that it is given.

    Args:
        given: the run, its key, the batch and its contexts, and the step that they are for: where an earlier one was
            not finite the state is at another, and stays as it is.
        state: gone afterwards.
    """
    run, key, batch, context, place = given
    step = lambda state: run.step(key, state, batch, context)
    return jax.lax.cond(state.step == place, step, lambda state: (state, jnp.full((), jnp.nan)), state)


Advance = Callable[[tuple[Any, ...], State], tuple[State, Array]]
advance: Advance = compiled(_advance, "all-except-first")
advance_once: Advance = compiled(_advance_once, "all-except-first")


def chosen(key: Array, step: Int[Array, ""], batch_size: int, count: Int[Array, ""] | int) -> Int[Array, " batch"]:
    """Which of `count` examples a step learns from, shape (batch_size,)."""
    return jax.random.randint(_keys(key, step)[0], (batch_size,), 0, count)


def _keys(key: Array, step: Array) -> Array:
    return jax.random.split(jax.random.fold_in(key, step), 3)


def copied(tree: Any) -> Any:
    """The same with every array in a place of its own."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.tree.map(jnp.copy, arrays), rest)


def dequantized(key: Array, batch: Shaped[Array, "*batch"], width: float) -> Shaped[Array, "*batch"]:
    """The batch with uniform noise of that width."""
    if not width:
        return batch
    return batch + width * (jax.random.uniform(key, batch.shape, dtype=batch.dtype) - 0.5)


def to_latent(
    transform: Transform | None, x: Shaped[Array, " n *event"]
) -> tuple[Shaped[Array, " n *event"], Shaped[Array, " n"]]:
    """The z with x = T(z), and log |det dx/dz| of each example, shape (n,); x itself and 0 where there is no T."""
    if transform is None:
        return x, jnp.zeros(len(x), x.dtype)
    z = transform.inv(x)
    log_volume = transform.log_abs_det_jacobian(z, x)
    return z, log_volume.reshape(len(x), -1).sum(1)
