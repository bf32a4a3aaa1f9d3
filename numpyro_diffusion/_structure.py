"""What a function of x is, read off its traced program: whether it is affine in x, or acts on single elements."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import Literal
from numpyro.ops.provenance import eval_provenance

# Primitives that map arrays element by element, and those among them that only add, scale or select.
LINEAR = {"add", "sub", "mul", "div", "neg", "convert_element_type", "select_n", "add_any", "copy", "copy_p"}
ELEMENTWISE = LINEAR | {
    *("exp", "exp2", "log", "log1p", "expm1", "logistic", "tanh", "sqrt", "rsqrt", "abs", "sign", "max", "min", "pow"),
    *("integer_pow", "square", "lgamma", "digamma", "erf", "erfc", "erf_inv", "floor", "ceil", "round", "clamp"),
    *("is_finite", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor", "stop_gradient", "nextafter", "rem"),
}


def depends(function: Callable[[Array], Any], x: Array) -> Any:
    """For every output, whether the program of `function` uses x for it."""
    return jax.tree.map(lambda found: "x" in found, eval_provenance(lambda x: function(x), x=x), is_leaf=_is_set)


def is_affine(function: Callable[[Array], Array], x: Array) -> bool:
    """Whether `function` is affine in x for certain: its tangent does not use x."""
    tangent = lambda x, v: jax.jvp(function, (x,), (v,))[1]
    return "x" not in eval_provenance(tangent, x=x, v=x)


def is_elementwise(function: Callable[[Array], Array], x: Array) -> bool:
    """Whether each element of the result uses the same element of x and no other, for certain."""
    closed = jax.make_jaxpr(function)(x)
    (out,) = _carriers(closed.jaxpr, [True], x.shape)
    return out is True and closed.out_avals[0].shape == x.shape


def _carriers(jaxpr: Any, given: list[bool], shape: tuple[int, ...]) -> list[bool | None]:
    """For every output: True if it carries x element by element, False if it does not use x, None if neither."""
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
            fine = None not in using and _keeps_place(eqn, shape)
            outs = [True if fine else None] * len(eqn.outvars)
        state.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _keeps_place(eqn: Any, shape: tuple[int, ...]) -> bool:
    same = all(var.aval.shape == shape for var in eqn.outvars)
    if eqn.primitive.name == "broadcast_in_dim":
        return (
            same
            and eqn.invars[0].aval.shape == shape
            and eqn.params["broadcast_dimensions"] == tuple(range(len(shape)))
        )
    if eqn.primitive.name == "reshape":
        return same and eqn.invars[0].aval.shape == shape
    # An operand of another shape is broadcast, which keeps x's elements where they are.
    return same and eqn.primitive.name in ELEMENTWISE


def _is_set(value: Any) -> bool:
    return isinstance(value, frozenset)
