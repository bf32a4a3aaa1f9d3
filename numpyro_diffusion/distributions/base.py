"""How an Equinox module becomes a NumPyro distribution: batching, validation and the pytree contract, once.

A module is written for one example and is a pytree of its arrays; a distribution has batch, event and sample shapes.
This class makes one of the other and changes no law: what is exact or a bound, its subclasses say.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.util import find_stack_level

from .._checks import check_event, check_key, check_real, check_sizes, is_concrete
from .._display import Described
from .._functions import FUNCTIONS, name_of


class _Layout(NamedTuple):
    """The static part of a module: hashable, so that equal layouts share compiled code."""

    treedef: Any
    static: tuple[Any, ...]
    ndims: tuple[int, ...]  # of each leaf, for one unbatched example
    batch_ndims: tuple[int, ...]  # how many dimensions of `batch_shape`, the last ones, each leaf carries in front
    batch_shape: tuple[int, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Layout":
        """Itself: it is immutable, and the structure's marks for what is missing are compared by identity."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """To be pickled, the structure goes as a module with numbers in place of its leaves, for the same reason."""
        skeleton = jax.tree.unflatten(self.treedef, range(self.treedef.num_leaves))
        names = [name_of(leaf) for leaf in self.static]
        unnamed = [leaf if name is None else None for leaf, name in zip(self.static, names, strict=True)]
        return _unpickled, (skeleton, names, unnamed, *self[2:])


def _unpickled(skeleton: Any, names: list[str | None], unnamed: list[Any], *rest: Any) -> _Layout:
    static = (leaf if name is None else FUNCTIONS[name] for leaf, name in zip(unnamed, names, strict=True))
    return _Layout(jax.tree.structure(skeleton), tuple(static), *rest)


class ModuleDistribution(Described, dist.Distribution):
    """A distribution whose parameters are the arrays of an Equinox module.

    Subclasses write `_sample_one` and `_log_prob_one` for one unbatched example; batch and sample dimensions, checks
    and validation are added here. The module's arrays are the distribution's pytree leaves, its static part is
    auxiliary data. A leaf with more dimensions than it had when the distribution was made has been batched (by a
    `jax.vmap` that returned the distribution, say): the batch shape is read off it. `expand` adds to the batch shape
    without copying a leaf, and keeps the class.

    Args:
        module: the parameters, an Equinox module.
        event_shape: shape of one example.
        batched: leaves of `module` (by the attribute's name) that carry `batch_shape` in front.
        batch_shape: shape of the batch.
        validate_args: NumPyro's switch; with it, `log_prob` warns of values off the support, and is −inf there.
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
            tuple(n for n, keep in zip(extra, is_array, strict=True) if keep),
            tuple(batch_shape),
        )
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def module(self) -> Any:
        """The parameters as the module they came as."""
        return _rebuild(self._layout, self._leaves)

    def _facts(self) -> dict[str, object]:
        batch = {"batch_shape": self.batch_shape} if self.batch_shape else {}
        return {"event_shape": self.event_shape} | batch

    @property
    def has_rsample(self) -> bool:
        """Whether `sample` is differentiable, as it is for real values and not for bits."""
        return not self.is_discrete

    @property
    def has_own_parameters(self) -> bool:
        """Whether a parameter differs between elements of the batch, as far as its shape can say."""
        return any(leaf.ndim != n for leaf, n in zip(self._leaves, self._layout.ndims, strict=True))

    def expand(self, batch_shape: Sequence[int]) -> Self:
        """The same distribution with its batch dimensions broadcast to `batch_shape`; no parameter is copied.

        Raises:
            ValueError: `batch_shape` is not one that the distribution's own broadcasts to.
        """
        batch_shape = check_sizes("batch_shape", batch_shape)
        if batch_shape == self.batch_shape:
            return self
        leading = batch_shape[max(len(batch_shape) - len(self.batch_shape), 0) :]
        pairs = zip(leading, self.batch_shape, strict=False)
        if len(leading) < len(self.batch_shape) or any(size not in (1, wanted) for wanted, size in pairs):
            shapes = f"{self.batch_shape} to shape {batch_shape}"
            raise ValueError(f"batch_shape: Cannot broadcast distribution of shape {shapes}")
        return self._of_batch(batch_shape)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Refused: shapes of arguments do not say the event shape, which the process has.

        Raises:
            NotImplementedError: always, as for NumPyro's distributions of whose arguments the same is true.
        """
        raise NotImplementedError(
            f"{cls.__name__}.infer_shapes: the event shape is the process's; make one, and ask it"
        )

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Shaped[Array, "..."]:
        """Draws of shape (*sample_shape, *batch_shape, *event_shape)."""
        if key is None:
            raise TypeError("key: expected a JAX random key, got None")
        return self._draw(key, sample_shape, type(self)._sample_one)

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Float[Array, "..."]:
        """Log density in nats, shape (*sample_shape, *batch_shape); see the class for whether it is exact.

        With validation on it is −inf off the support, with a warning where that is known, as for NumPyro's own.

        Raises:
            ValueError: `value` does not end in the event shape.
            TypeError: complex numbers, or an array with hidden values.
        """
        del intermediates
        check_real("value", value)
        value = jnp.asarray(value)
        lead = jnp.broadcast_shapes(check_event("value", value.shape, self.event_shape), self.batch_shape)
        log_prob = self._over_values(type(self)._log_prob_one, value, lead)
        return self._validated(value, log_prob) if self._validate_args and value.size else log_prob

    def map_batch(self, fn: Callable[[Any, Any], Any], x: Any) -> Any:
        """``fn(module, x)`` for every element of the batch; the arrays of `x` have leading shape `batch_shape`."""
        return self._batched(fn)(x)

    def _sample_one(self, module: Any, key: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__} does not implement sample")

    def _log_prob_one(self, module: Any, value: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__} does not implement log_prob")

    def _over_values(self, fn: Any, value: Array, lead: tuple[int, ...], one: tuple[int, ...] | None = None) -> Any:
        """`fn(self, module, value)` over every leading dimension of the value; results of leading shape `lead`.

        The shape of one example is `one`, the event shape unless given.
        """
        one = self.event_shape if one is None else one
        wide = self.expand(lead[len(lead) - len(self.batch_shape) :])  # a batch of size 1 may meet more values
        return wide._run(fn, jnp.broadcast_to(value, lead + one), lead)

    def _draw(self, key: Array, sample_shape: tuple[int, ...], fn: Any) -> Array:
        """`fn(self, module, key)` for every element of the sample and batch shapes, each with a key of its own."""
        check_key("key", key)
        lead = check_sizes("sample_shape", sample_shape) + self.batch_shape
        keys = jax.random.split(key, math.prod(lead))
        return self._run(fn, keys.reshape(lead + jnp.shape(key)), lead)

    def _run(self, fn: Any, xs: Array, lead: tuple[int, ...]) -> Any:
        """`fn(self, module, x)` for every x of leading shape `lead`, which ends in the batch shape.

        A batch in which no parameter differs is only so many more values, and shares their compiled program.
        """
        one = self if self.has_own_parameters else self._unexpanded()
        batch = one.batch_shape
        draws = math.prod(lead[: len(lead) - len(batch)])
        out = _compiled(one, fn, xs.reshape((draws, *batch, *xs.shape[len(lead) :])))
        return jax.tree.map(lambda leaf: leaf.reshape(lead + leaf.shape[1 + len(batch) :]), out)

    def _of_batch(self, batch_shape: tuple[int, ...]) -> Self:
        """The same with what its leaves are batched by as its own batch; a `jax.vmap` adds more to the left of it."""
        new = copy.copy(self)
        new._leaves = self._aligned()
        carried = tuple(leaf.ndim - n for leaf, n in zip(new._leaves, self._layout.ndims, strict=True))
        new._layout = self._layout._replace(batch_ndims=carried, batch_shape=batch_shape)
        new._batch_shape = batch_shape
        return new

    def _unexpanded(self) -> Self:
        """The distribution of one element of a batch in which no parameter differs."""
        new = copy.copy(self)
        new._layout, new._batch_shape = self._layout._replace(batch_shape=()), ()
        return new

    def _like(self, make: Callable[[Any], "ModuleDistribution"]) -> Any:
        """The distribution `make(module)` with the batch of this one."""
        if not self.has_own_parameters:
            return make(self.module).expand(self.batch_shape)
        return self._batched(lambda module, _: make(module))(jnp.zeros(self.batch_shape))

    def _batched(self, fn: Any) -> Any:
        """`fn(module, x)` for x of leading shape `batch_shape`; what the batch does not change is not copied."""
        ndims, leaves = self._layout.ndims, self._aligned()
        whole = (1,) * len(self.batch_shape)
        leads = [leaf.shape[: leaf.ndim - n] or whole for leaf, n in zip(leaves, ndims, strict=True)]
        own = [leaf.shape[leaf.ndim - n :] for leaf, n in zip(leaves, ndims, strict=True)]
        sizes = [(*(size for size in lead if size != 1), *shape) for lead, shape in zip(leads, own, strict=True)]
        mapped = lambda leaves, x: fn(_rebuild(self._layout, leaves), x)
        for dim in reversed(range(len(whole))):
            mapped = jax.vmap(mapped, in_axes=(tuple(None if lead[dim] == 1 else 0 for lead in leads), 0))
        narrow = tuple(leaf.reshape(shape) for leaf, shape in zip(leaves, sizes, strict=True))
        return lambda x: mapped(narrow, x)

    def _added_ndims(self) -> list[int]:
        """How many dimensions each leaf has been given since the distribution was made."""
        layout = self._layout
        parts = zip(self._leaves, layout.ndims, layout.batch_ndims, strict=True)
        return [max(len(leaf.shape) - own - carried, 0) for leaf, own, carried in parts]

    def _aligned(self) -> tuple[Array, ...]:
        """The leaves, those that are batched with one dimension, of size 1 if need be, for each of the batch."""
        added, leaves = self._added_ndims(), []
        for leaf, count, own, carried in zip(
            self._leaves, added, self._layout.ndims, self._layout.batch_ndims, strict=True
        ):
            front, missing = (1,) * (max(added) - count), (1,) * (len(self._layout.batch_shape) - carried)
            shape = (*front, *leaf.shape[:count], *missing, *leaf.shape[count:])
            leaves.append(leaf.reshape(shape) if leaf.ndim > own else leaf)
        return tuple(leaves)

    def _validated(self, value: Array, log_prob: Array) -> Array:
        inside = self.support(value)
        if is_concrete(inside) and not np.all(inside):
            warnings.warn(
                f"value: expected values on the support of {type(self).__name__}, {self.support}, got "
                f"{int(np.sum(~np.asarray(inside)))} of {np.size(inside)} examples off it; log_prob is -inf there",
                stacklevel=find_stack_level(),
            )
        return jnp.where(inside, log_prob, -jnp.inf)

    @classmethod
    def tree_unflatten(cls, aux_data: tuple[Any, ...], params: tuple[Any, ...]) -> Self:
        """Rebuild from leaves; the batch shape is what they have beyond their own dimensions."""
        new = super().tree_unflatten(aux_data, params)
        kinds = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
        if isinstance(new._leaves, tuple) and all(isinstance(leaf, kinds) for leaf in new._leaves):
            shapes = [leaf.shape[:count] for leaf, count in zip(new._leaves, new._added_ndims(), strict=True)]
            new._batch_shape = jnp.broadcast_shapes((), *shapes) + new._layout.batch_shape
        return new


@promote_batch_shape.register
def _promote(distribution: ModuleDistribution) -> ModuleDistribution:
    """NumPyro asks for the batch shape after a `vmap`; ours already has it."""
    return distribution


@partial(jax.jit, static_argnums=1)
def _compiled(distribution: ModuleDistribution, fn: Any, xs: Array) -> Any:
    """`fn(distribution, module, x)` over samples and batch, compiled once for equal layouts; `fn` a plain function."""
    return jax.vmap(distribution._batched(partial(fn, distribution)))(xs)


def _rebuild(layout: _Layout, leaves: tuple[Array, ...]) -> Any:
    remaining = iter(leaves)
    count = layout.treedef.num_leaves
    filled = [next(remaining) if layout.static[i] is None else layout.static[i] for i in range(count)]
    return jax.tree.unflatten(layout.treedef, filled)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raise ``TypeError`` if `value` is not a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}, got {value!r}")
