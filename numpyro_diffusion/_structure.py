"""What a function of x is, read off its traced program: whether it is affine in x, or acts on single elements.

Closed forms hang on the answers: a function is called affine or elementwise only where that is certain. A program is
followed equation by equation, by what each value has of x: nothing, a slope, or steps; through loops until nothing
changes. A function is affine where its tangent does not use x and it takes no steps of x. An operation that is not
known is taken to use all that goes in, and to keep no element apart. Where JAX gains one that is constant between
steps, it has to be named in `_STEPWISE`, since its tangent is 0 and shows nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Literal

# Primitives that map arrays element by element, and those among them that only add, scale or select.
LINEAR = {"add", "sub", "mul", "div", "neg", "convert_element_type", "select_n", "add_any", "copy", "copy_p"}
ELEMENTWISE = LINEAR | {
    *("exp", "exp2", "log", "log1p", "expm1", "logistic", "tanh", "sqrt", "rsqrt", "abs", "sign", "max", "min", "pow"),
    *("integer_pow", "square", "lgamma", "digamma", "erf", "erfc", "erf_inv", "floor", "ceil", "round", "clamp"),
    *("is_finite", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor", "stop_gradient", "nextafter", "rem"),
}


def depends(function: Callable[[Array], Any], x: Array) -> Any:
    """For every output, whether the program of `function` uses x for it."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(x)
    given = [_SMOOTH] * len(closed.jaxpr.invars)
    return jax.tree.unflatten(jax.tree.structure(shape), [use > _NOT for use in _uses(closed.jaxpr, given)])


def is_affine(function: Callable[[Array], Array], x: Array) -> bool:
    """Whether `function` is affine in x for certain: its tangent does not use x, and it rounds nothing of x.

    This is the one way in which the package decides it. The traced program is read, and no number computed: the answer
    is the same inside compiled and batched code, where values cannot be compared, in every precision, and for functions
    with steps (``round``, comparisons, indices), which probes at a few points can miss. Loops are followed value by
    value. What cannot be followed, as code outside of JAX, counts as not affine.
    """

    def tangent(x: Array, v: Array) -> Array:
        return jax.jvp(function, (x,), (v,))[1]

    try:
        own = jax.make_jaxpr(function)(x).jaxpr
        along = jax.make_jaxpr(tangent)(x, x).jaxpr
    except (TypeError, ValueError):  # has no tangent
        return False
    steps = max(_uses(own, [_SMOOTH] * len(own.invars)), default=_NOT)
    return steps < _STEPS and max(_uses(along, [_SMOOTH, _NOT]), default=_NOT) == _NOT


# How a value uses x: not at all, by functions that have a slope, or by some that are constant between steps.
_NOT, _SMOOTH, _STEPS = 0, 1, 2
_STEPWISE = {"floor", "ceil", "round", "sign", "nextafter", "stop_gradient"}


def _uses(jaxpr: Any, given: list[int]) -> list[int]:
    """For every output of a program, how it uses x, if its inputs use it as `given`."""
    state: dict[Any, int] = dict(zip(jaxpr.invars, given, strict=True))
    read = lambda var: _NOT if isinstance(var, Literal) else state.get(var, _NOT)
    for eqn in jaxpr.eqns:
        using = [read(var) for var in eqn.invars]
        outs = _eqn_uses(eqn, using) if any(using) else [_NOT] * len(eqn.outvars)
        # Whole numbers and booleans made of x are steps, whatever becomes of them.
        stepwise = [eqn.primitive.name in _STEPWISE or not _is_real(var.aval) for var in eqn.outvars]
        state.update(
            (var, _STEPS if out and step else out) for var, out, step in zip(eqn.outvars, outs, stepwise, strict=True)
        )
    return [read(var) for var in jaxpr.outvars]


def _eqn_uses(eqn: Any, using: list[int]) -> list[int]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        first, last = scan_ends(params)
        return _loop_uses(params["jaxpr"].jaxpr, using[:first], using[first:last], using[last:])
    if name == "while":
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        carry = _loop_uses(params["body_jaxpr"].jaxpr, using[first:second], using[second:], [])
        counted = any(_uses(params["cond_jaxpr"].jaxpr, using[:first] + carry))
        return [_STEPS] * len(carry) if counted else carry
    if name == "cond":
        branches = [_uses(branch.jaxpr, using[1:]) for branch in params["branches"]]
        return [_STEPS if using[0] else max(outs) for outs in zip(*branches, strict=True)]
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    if inner is not None and len(inner.invars) == len(using) and len(inner.outvars) == len(eqn.outvars):
        return _uses(inner, using)
    return [max(using)] * len(eqn.outvars)


def scan_ends(params: dict[str, Any]) -> tuple[int, int]:
    """Where the constants of a `jax.lax.scan` end among its operands, and where what it carries does."""
    if "num_consts" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from JAX 0.12 on
    count = len(list(consts))
    return count, count + len(list(carry))


def _loop_uses(body: Any, consts: list[int], carry: list[int], xs: list[int]) -> list[int]:
    """The outputs of a loop, once what it carries uses no more of x than a round before."""
    while True:
        outs = _uses(body, consts + carry + xs)
        grown = [max(pair) for pair in zip(carry, outs[: len(carry)], strict=True)]
        if grown == carry:
            return grown + outs[len(carry) :]
        carry = grown


def _is_real(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def is_elementwise(function: Callable[[Array], Array], x: Array) -> bool:
    """Whether each element of the result uses the same element of x and no other, for certain.

    In between there may be more axes behind those of x, as rows of a table that x picks have.
    """
    closed = jax.make_jaxpr(function)(x)
    (out,) = _carriers(closed.jaxpr, [True], x.shape)
    return out is True and closed.out_avals[0].shape == x.shape


def _carriers(jaxpr: Any, given: list[bool], shape: tuple[int, ...]) -> list[bool | None]:
    """For every output: True if it carries x, place by place, False if it does not use x, None if neither."""
    state: dict[Any, bool | None] = dict(zip(jaxpr.invars, given, strict=True))
    read = lambda var: False if isinstance(var, Literal) else state.get(var, False)
    for eqn in jaxpr.eqns:
        using = [read(var) for var in eqn.invars]
        if not any(use is not False for use in using):
            continue
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if eqn.primitive.name in ("jit", "pjit", "closed_call", "custom_jvp_call") and None not in using:
            outs = _carriers(getattr(inner, "jaxpr", inner), [use is True for use in using], shape)
        else:
            fine = None not in using and _keeps_place(eqn, using, shape)
            outs = [True if fine else None] * len(eqn.outvars)
        state.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


_REDUCING = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}


def _keeps_place(eqn: Any, using: list[bool | None], shape: tuple[int, ...]) -> bool:
    """Whether what an operation makes has x's axes first, each place made from the same place of what carries x."""
    name, params, places = eqn.primitive.name, eqn.params, tuple(range(len(shape)))
    behind = lambda axes: all(axis >= len(shape) for axis in axes)
    if any(var.aval.shape[: len(shape)] != shape for var in eqn.outvars):
        return False
    if name in ELEMENTWISE or name == "reshape":  # an operand of another shape is broadcast; places stay in order
        return True
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][: len(shape)] == places
    if name in _REDUCING:
        return behind(params["axes"])
    if name in ("concatenate", "squeeze"):
        return behind([params["dimension"]] if name == "concatenate" else params["dimensions"])
    if name == "gather":
        numbers = params["dimension_numbers"]
        pairs = [dims[: len(shape)] for dims in (numbers.operand_batching_dims, numbers.start_indices_batching_dims)]
        return behind(numbers.offset_dims) and (using[0] is False or pairs == [places, places])
    if name == "dot_general":
        (contracted, _), (together, _) = params["dimension_numbers"]
        return using[1] is False and not together and behind(contracted)
    return False
