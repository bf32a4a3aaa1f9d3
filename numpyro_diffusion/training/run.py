"""One step of training, and many of them as one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding
from numpyro.distributions.transforms import Transform

from .._devices import agree, share
from ..process import ReverseProcess, trainable


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
    spread: NamedSharding | None
    transform: Transform | None
    dropout: float

    def __init__(
        self,
        process: ReverseProcess,
        optimizer: optax.GradientTransformation,
        loss: Callable[..., Array],
        ema: float,
        dequantize: float,
        batch_size: int,
        spread: NamedSharding | None = None,
        transform: Transform | None = None,
        dropout: float = 0.0,
    ) -> None:
        params, self.rest = eqx.partition(process, trainable(process))
        if not jax.tree.leaves(params):
            raise ValueError("process: expected something to train (a network with array parameters), got none")
        # Explicit dtypes, since weakly typed arrays would become strong in the first scan and compile it twice.
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), params)
        self.optimizer, self.loss = optimizer, loss
        self.ema, self.dequantize, self.batch_size = float(ema), float(dequantize), batch_size
        self.spread, self.transform, self.dropout = spread, transform, float(dropout)

    def start(self) -> State:
        """The state before the first step."""
        params, worst, zero = self.params, jnp.full((), -jnp.inf, float), jnp.zeros((), int)
        return State(params, params, params, self.optimizer.init(params), worst, zero, zero)

    def process(self, params: Any) -> ReverseProcess:
        """The process with these weights."""
        return eqx.combine(params, self.rest)

    @eqx.filter_jit
    def steps(
        self, key: Array, state: State, data: Array, count: int, context: Array | None = None
    ) -> tuple[State, Array]:
        """The state `count` steps on, and their losses, shape (count,); a step that is not finite stops the state."""
        return jax.lax.scan(lambda state, _: self._step(key, state, data, context), state, None, length=count)

    def _step(self, key: Array, state: State, data: Array, context: Array | None) -> tuple[State, Array]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
        chosen = jax.random.randint(keys[0], (self.batch_size,), 0, len(data))
        batch = share(data[chosen], self.spread)
        told = () if context is None else (share(self._told(keys[0], context[chosen]), self.spread),)
        z, log_volume = to_latent(self.transform, dequantized(keys[1], batch, self.dequantize))
        loss, grad = jax.value_and_grad(lambda p: self.loss(keys[2], self.process(p), z, *told))(state.params)
        loss = loss + jnp.mean(log_volume)
        updates, optimizer = self.optimizer.update(grad, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(self.ema, (1 + state.step) / (10 + state.step)) if self.ema else 0.0
        average = optax.incremental_update(params, state.average, 1 - decay)
        new = state._replace(params=params, average=average, optimizer=optimizer, step=state.step + 1)
        # A bad step changes nothing, nor do those after it: the same step, with the same noise, is bad again.
        finite = jnp.isfinite(loss) & jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
        return agree(jax.lax.cond(finite, lambda: new, lambda: state), self.spread), loss

    def _told(self, key: Array, context: Array) -> Array:
        """The contexts of a batch, some left out."""
        if not self.dropout:
            return context
        left_out = jax.random.bernoulli(jax.random.fold_in(key, 0), self.dropout, (len(context),))
        left_out = left_out.reshape((-1,) + (1,) * (context.ndim - 1))
        return jnp.where(left_out, self.rest.denoiser.wanted.unknown, context)


def dequantized(key: Array, batch: Array, width: float) -> Array:
    """The batch with uniform noise of that width."""
    if not width:
        return batch
    return batch + width * (jax.random.uniform(key, batch.shape, dtype=batch.dtype) - 0.5)


def to_latent(transform: Transform | None, x: Array) -> tuple[Array, Array]:
    """The z with x = T(z), and log |det dx/dz| of each example, shape (n,); x itself and 0 where there is no T."""
    if transform is None:
        return x, jnp.zeros(len(x), x.dtype)
    z = transform.inv(x)
    log_volume = transform.log_abs_det_jacobian(z, x)
    return z, log_volume.reshape(len(x), -1).sum(1)
