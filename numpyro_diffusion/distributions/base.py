"""How an Equinox module becomes a NumPyro distribution: batching, validation and the pytree contract, once."""

import math
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.batch_util import promote_batch_shape

from .._checks import check_event, is_concrete


class _Layout(NamedTuple):
    """The static part of a module: hashable, so that equal layouts share compiled code."""

    treedef: Any
    static: tuple[Any, ...]
    ndims: tuple[int, ...]


class ModuleDistribution(dist.Distribution):
    """A distribution whose parameters are the arrays of an Equinox module.

    Subclasses write `_sample_one` and `_log_prob_one` for one unbatched example; batch and sample dimensions, checks
    and validation are added here. The module's arrays are the distribution's pytree leaves, its static part is
    auxiliary data. A leaf with more dimensions than it had when the distribution was made has been batched (by a
    `jax.vmap` that returned the distribution, say): the batch shape is read off it.

    Args:
        module: the parameters, an Equinox module.
        event_shape: shape of one example.
        batched: leaves of `module` (by the attribute's name) that carry `batch_shape` in front.
        batch_shape: shape of the batch.
        validate_args: NumPyro's switch; with it, `log_prob` raises for values off the support.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("_leaves",)
    pytree_aux_fields = ("_layout",)
    _leaves: tuple[Array, ...]
    _layout: _Layout

    def __init__(
        self,
        module: eqx.Module,
        event_shape: tuple[int, ...],
        *,
        batched: str | None = None,
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        module = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, module)
        paths, treedef = jax.tree_util.tree_flatten_with_path(module)
        is_array = [eqx.is_array(leaf) for _, leaf in paths]
        extra = [len(batch_shape) if batched and path[0].name == batched else 0 for path, _ in paths]
        self._leaves = tuple(leaf for (_, leaf), keep in zip(paths, is_array, strict=True) if keep)
        self._layout = _Layout(
            treedef,
            tuple(None if keep else leaf for (_, leaf), keep in zip(paths, is_array, strict=True)),
            tuple(leaf.ndim - n for (_, leaf), n, keep in zip(paths, extra, is_array, strict=True) if keep),
        )
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def module(self) -> Any:
        """The parameters as the module they came as."""
        return _rebuild(self._layout, self._leaves)

    @property
    def has_rsample(self) -> bool:
        """Whether `sample` is differentiable: for real values, not for bits."""
        return not self.is_discrete

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape (*sample_shape, *batch_shape, *event_shape)."""
        if key is None:
            raise ValueError("key: expected a JAX random key, got None")
        return self._draw(key, tuple(sample_shape), self._sample_one)

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats, shape (*sample_shape, *batch_shape); see the class for whether it is exact.

        Raises:
            ValueError: `value` does not end in the event shape; with validation on, a value off the support.
        """
        del intermediates
        value = jnp.asarray(value)
        lead = jnp.broadcast_shapes(check_event("value", value.shape, self.event_shape), self.batch_shape)
        log_prob = self._over_values(self._log_prob_one, value, lead)
        return self._validated(value, log_prob) if self._validate_args else log_prob

    def _sample_one(self, module: Any, key: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__} does not implement sample")

    def _log_prob_one(self, module: Any, value: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__} does not implement log_prob")

    def _over_values(self, fn: Any, value: Array, lead: tuple[int, ...]) -> Any:
        """`fn(module, value)` over every leading dimension of the value; results of leading shape `lead`."""
        value = jnp.broadcast_to(value, lead + self.event_shape)
        out = self._batched(fn)(value.reshape((-1, self._batch_size, *self.event_shape)))
        return jax.tree.map(lambda leaf: leaf.reshape(lead + leaf.shape[2:]), out)

    def _draw(self, key: Array, sample_shape: tuple[int, ...], fn: Any) -> Array:
        """`fn(module, key)` for every element of the sample and batch shapes, each with a key of its own."""
        lead = sample_shape + self.batch_shape
        keys = jax.random.split(key, math.prod(lead)).reshape((-1, self._batch_size, *jnp.shape(key)))
        out = self._batched(fn)(keys)
        return out.reshape(lead + out.shape[2:])

    @property
    def _batch_size(self) -> int:
        return math.prod(self.batch_shape)

    def _batched(self, fn: Any) -> Any:
        """`fn(module, x)` for x of leading shape (samples, batch), the module's batched leaves following the batch."""
        pairs = list(zip(self._leaves, self._layout.ndims, strict=True))
        axes = tuple(0 if leaf.ndim > ndim else None for leaf, ndim in pairs)
        flat = tuple(leaf.reshape((-1, *leaf.shape[leaf.ndim - n :])) if leaf.ndim > n else leaf for leaf, n in pairs)
        one = lambda leaves, x: fn(_rebuild(self._layout, leaves), x)
        if all(axis is None for axis in axes):
            return jax.vmap(jax.vmap(lambda x: one(flat, x)))
        return jax.vmap(lambda xs: jax.vmap(one, in_axes=(axes, 0))(flat, xs))

    def _validated(self, value: Array, log_prob: Array) -> Array:
        inside = self.support(value)
        if is_concrete(inside) and not np.all(inside):
            raise ValueError(
                f"value: expected values on the support of {type(self).__name__}, {self.support}, got "
                f"{int(np.sum(~np.asarray(inside)))} of {np.size(inside)} examples off it (NaN, infinite or not 0/1)"
            )
        return jnp.where(inside, log_prob, -jnp.inf)

    @classmethod
    def tree_unflatten(cls, aux_data: tuple[Any, ...], params: tuple[Any, ...]) -> Self:
        """Rebuild from leaves; the batch shape is what they have beyond their own dimensions."""
        new = super().tree_unflatten(aux_data, params)
        leaves, ndims = new._leaves, new._layout.ndims
        if isinstance(leaves, tuple) and all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves):
            shapes = [np.shape(leaf)[: max(np.ndim(leaf) - n, 0)] for leaf, n in zip(leaves, ndims, strict=True)]
            new._batch_shape = jnp.broadcast_shapes(*shapes) if shapes else ()
        return new


@promote_batch_shape.register
def _promote(distribution: ModuleDistribution) -> ModuleDistribution:
    """NumPyro asks for the batch shape after a `vmap`; ours already has it."""
    return distribution


def _rebuild(layout: _Layout, leaves: tuple[Array, ...]) -> Any:
    remaining = iter(leaves)
    count = layout.treedef.num_leaves
    filled = [next(remaining) if layout.static[i] is None else layout.static[i] for i in range(count)]
    return jax.tree.unflatten(layout.treedef, filled)
