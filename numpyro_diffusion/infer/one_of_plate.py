"""A program of all elements of a plate as the program of one of them, so that each costs what it needs and no more.

The program is traced for the whole plate, and its equations are run for one element, with arrays whose axes of the
plate have length 1 (`plate_rules` says which these are). What does not depend on the elements is computed as it stands
and cut to the one where it meets it. Derivatives that functions have of their own (`jax.custom_jvp`) are kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from .._structure import scan_ends
from .plate_rules import Axes, Inseparable, rule

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}


class _Own(NamedTuple):
    """An array of one element: the plate's axes, in the order of its dimensions, have length 1."""

    value: Array
    axes: Axes


class OneOfPlate:
    """A function of a whole plate as one of a single element.

    `is_separable` says whether the traced program could be run for one element. Where not (a primitive without a rule,
    a loop of unknown length), all of the plate is set to the example, the whole is run, and one of the results is
    taken: right where elements are independent, at the price of the whole plate.

    Args:
        function: from an array of shape `shape` to one with the plate's dimensions in front.
        shape: of all elements together, the plate's dimensions first.
        batch: how many of them are the plate's.
        dtype: of the array.
    """

    def __init__(self, function: Callable[[Array], Array], shape: tuple[int, ...], batch: int, dtype: Any) -> None:
        self._function, self._shape, self._batch, self._dtype = function, shape, batch, dtype
        self._program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype))
        self.is_separable = self._can_be_separated()

    def _can_be_separated(self) -> bool:
        """Whether the program and, of real numbers, its derivative can be run for one element."""
        one, example = lambda x: self._one(0, x), jax.ShapeDtypeStruct(self._shape[self._batch :], self._dtype)
        program: Any = one
        if jnp.issubdtype(self._dtype, jnp.floating):
            program = lambda x: jax.jvp(one, (x,), (x,))
        try:
            jax.eval_shape(program, example)
        except (Inseparable, KeyError, AttributeError):  # the last two: programs of a JAX that is written otherwise
            return False
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> "OneOfPlate":
        """Itself: it is immutable, and the variables of a program are told apart by identity."""
        return self

    def __call__(self, index: Array, x: Array) -> Array:
        """The result for element number `index` with the value `x`, shape `event`."""
        if self.is_separable:
            return self._one(index, x)
        out = self._function(jnp.broadcast_to(x, self._shape))
        return out.reshape((-1, *out.shape[self._batch :]))[index]

    def _one(self, index: Any, x: Array) -> Array:
        sizes, front = self._shape[: self._batch], tuple(range(self._batch))
        own = _Own(x.astype(self._dtype).reshape((1,) * self._batch + self._shape[self._batch :]), front)
        where = tuple(jnp.unravel_index(jnp.asarray(index), sizes))
        (out,) = _run(self._program.jaxpr, self._program.consts, [own], where)
        if not isinstance(out, _Own):  # the same function of x for no element
            return out.reshape((-1, *out.shape[self._batch :]))[index]
        if out.axes != front:
            raise Inseparable("the plate's dimensions are not in front")
        return out.value.reshape(out.value.shape[self._batch :])


def _run(jaxpr: Any, consts: Any, args: list[Any], where: tuple[Array, ...]) -> list[Any]:
    """The results of a program of which some arguments are `_Own`, for the element at `where`."""
    state: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda var: var.val if isinstance(var, Literal) else state[var]
    for eqn in _needed(jaxpr):
        outs = _equation(jaxpr, eqn, [read(var) for var in eqn.invars], where)
        state.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that results come from; others, of other sites say, may join elements as they like."""
    used, equations = {var for var in jaxpr.outvars if not isinstance(var, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if used & set(eqn.outvars):
            equations.append(eqn)
            used.update(var for var in eqn.invars if not isinstance(var, Literal))
    return equations[::-1]


def _equation(jaxpr: Any, eqn: Any, values: list[Any], where: tuple[Array, ...]) -> list[Any]:
    """The results of one equation of the program."""
    name, whole = eqn.primitive.name, _alone(jaxpr, eqn)
    if not any(isinstance(value, _Own) for value in values):
        return whole(*values)
    if name in _CALLS:
        inner = eqn.params[_CALLS[name]]
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values, where)
    if name == "custom_jvp_call":
        return _with_own_derivative(eqn, whole, values, where)
    if name == "scan":
        return _loop(eqn, values, where)
    if name == "cond":
        return _choice(eqn, values, where)
    found = rule(eqn, [value.axes if isinstance(value, _Own) else None for value in values])
    operands = [_cut(value, axes, where) for value, axes in zip(values, found.operands, strict=True)]
    outs = eqn.primitive.bind(*operands, **eqn.params | found.params)
    outs = outs if eqn.primitive.multiple_results else [outs]
    return [_Own(out, axes) for out, axes in zip(outs, found.results, strict=True)]


def _alone(jaxpr: Any, eqn: Any) -> Callable[..., list[Any]]:
    """One equation of a program as a function of its operands, for the whole plate."""
    variables = dict.fromkeys(var for var in eqn.invars if not isinstance(var, Literal))
    one = jaxpr.replace(constvars=[], invars=[*variables], outvars=eqn.outvars, eqns=[eqn])
    program = jaxpr_as_fun(ClosedJaxpr(one, []))

    def run(*values: Any) -> list[Any]:
        named = {var: value for var, value in zip(eqn.invars, values, strict=True) if not isinstance(var, Literal)}
        return program(*(named[var] for var in variables))

    return run


def _cut(value: Any, axes: Axes | None, where: tuple[Array, ...]) -> Any:
    """One element of an array that holds all of them; what is one element already stays so."""
    if isinstance(value, _Own):
        return value.value
    for axis, index in zip(axes or (), where, strict=False):
        value = jax.lax.dynamic_index_in_dim(value, index, axis, keepdims=True)
    return value


def _loop(eqn: Any, values: list[Any], where: tuple[Array, ...]) -> list[Any]:
    """A `jax.lax.scan` of one element; what it carries is one element's once a step makes it so."""
    params, inner = eqn.params, eqn.params["jaxpr"]
    count, end = scan_ends(params)
    if (
        count == end
        and len(where) == 1
        and all(
            not isinstance(value, _Own) or (place >= end and value.axes == (0,)) for place, value in enumerate(values)
        )
    ):
        return _one_turn(inner, values, end, where)
    if any(isinstance(value, _Own) and 0 in value.axes for value in values[end:]):
        raise Inseparable("a loop over the elements")
    places = [value.axes if isinstance(value, _Own) else None for value in values]
    places[end:] = [None if axes is None else tuple(axis - 1 for axis in axes) for axes in places[end:]]
    consts = [value.value if isinstance(value, _Own) else value for value in values[:count]]
    made: list[Axes | None] = []

    def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = _run(inner.jaxpr, inner.consts, _wrapped([*consts, *carry, *xs], places), where)
        made[:] = [out.axes if isinstance(out, _Own) else None for out in outs]
        carried = [*places[count:end], *made[end - count :]]
        if any(None not in (old, new) and old != new for old, new in zip(carried, made, strict=True)):
            raise Inseparable("elements that change their place")
        plain = [_cut(out, axes, where) for out, axes in zip(outs, carried, strict=True)]
        return plain[: end - count], plain[end - count :]

    def operands() -> tuple[list[Any], list[Any]]:
        cut = [
            value.value if isinstance(value, _Own) else _cut(value, axes, where)
            for value, axes in zip(values[count:end], places[count:end], strict=True)
        ]
        return cut, [value.value if isinstance(value, _Own) else value for value in values[end:]]

    steps = {name: params[name] for name in ("length", "reverse", "unroll")}
    while True:  # at most as often as there are carried values
        carry, xs = operands()
        example = [jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)) for x in xs]
        jax.eval_shape(body, carry, example)
        gained = [index for index in range(count, end) if places[index] is None and made[index - count] is not None]
        if not gained:
            break
        for index in gained:
            places[index] = made[index - count]
    carry, ys = jax.lax.scan(body, carry, xs, **steps)
    stacked = [None if axes is None else tuple(axis + 1 for axis in axes) for axes in made[end - count :]]
    return _wrapped([*carry, *ys], [*places[count:end], *stacked])


def _one_turn(inner: Any, values: list[Any], end: int, where: tuple[Array, ...]) -> list[Any]:
    """A loop over the elements that carries nothing from one to the next, as `jax.lax.map`: the turn of one element."""
    own = [_cut(value, (0,), where)[0] for value in values[end:]]
    return [_Own(out[None], (0,)) for out in jaxpr_as_fun(inner)(*values[:end], *own)]


def _choice(eqn: Any, values: list[Any], where: tuple[Array, ...]) -> list[Any]:
    """A `jax.lax.cond` or `switch` by what is the same for all elements; a result of one branch is that of each."""
    index, *operands = values
    places = [value.axes if isinstance(value, _Own) else None for value in operands]
    plain = [value.value if isinstance(value, _Own) else value for value in operands]
    run = lambda inner, given: _run(inner.jaxpr, inner.consts, _wrapped([*given], places), where)
    found: list[list[Axes | None]] = []

    def look(inner: Any, *given: Any) -> list[Any]:
        outs = run(inner, given)
        found.append([out.axes if isinstance(out, _Own) else None for out in outs])
        return [_cut(out, None, where) for out in outs]

    for inner in eqn.params["branches"]:
        jax.eval_shape(partial(look, inner), *plain)
    axes: list[Axes | None] = []
    for each in zip(*found, strict=True):
        own = set(each) - {None}
        if len(own) > 1:
            raise Inseparable("elements that lie elsewhere in another branch")
        axes.append(next(iter(own), None))
    cut = lambda inner, *given: [_cut(out, to, where) for out, to in zip(run(inner, given), axes, strict=True)]
    return _wrapped(jax.lax.switch(index, [partial(cut, inner) for inner in eqn.params["branches"]], *plain), axes)


def _wrapped(values: list[Any], places: list[Axes | None]) -> list[Any]:
    """Values, those that are one element's as such."""
    return [value if axes is None else _Own(value, axes) for value, axes in zip(values, places, strict=True)]


def _with_own_derivative(eqn: Any, whole: Any, values: list[Any], where: tuple[Array, ...]) -> list[Any]:
    """A function with a `jax.custom_jvp`: its program for one element, and that of its derivative."""
    inner, shapes = eqn.params["call_jaxpr"], [var.aval for var in eqn.invars]
    places = [value.axes if isinstance(value, _Own) else None for value in values]
    if any(not jnp.issubdtype(shape.dtype, jnp.floating) for shape in shapes):
        raise Inseparable("a derivative of whole numbers")
    wrap = lambda values: _wrapped([*values], places)
    results: list[Axes] = []

    def one(where: Any, *values: Array) -> list[Array]:
        outs = _run(inner.jaxpr, inner.consts, wrap(values), where)
        if not all(isinstance(out, _Own) for out in outs):
            raise Inseparable("a result that is the same for all elements")
        results[:] = [out.axes for out in outs]
        return [out.value for out in outs]

    def derivative(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Array], list[Array]]:
        where, *given = primals
        tangent = lambda given, moved: jax.jvp(lambda *given: tuple(whole(*given)), given, moved)[1]
        program = jax.make_jaxpr(tangent)(tuple(shapes), tuple(shapes))
        moved = _run(program.jaxpr, program.consts, [*wrap(given), *wrap(tangents[1:])], where)
        outs = [_cut(out, axes, where) for out, axes in zip(moved, results, strict=True)]
        return one(where, *given), outs

    plain = [value.value if isinstance(value, _Own) else value for value in values]
    jax.eval_shape(one, where, *plain)  # for where the elements lie in its results
    program = jax.custom_jvp(one)
    program.defjvp(derivative)
    return [_Own(out, axes) for out, axes in zip(program(where, *plain), results, strict=True)]
