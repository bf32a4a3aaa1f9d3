"""How primitives act on an array that holds all elements of a plate: along which of its axes the elements lie.

A rule answers for one equation of a traced program. It is given where the elements lie in each operand, and says where
they lie in the results, where an operand that is the same for all elements (data, say) must be cut to one of them, and
which parameters make the primitive act on one element, the axes of the plate having length 1. `Inseparable` is raised
where the primitive joins elements, and where no rule is known.
"""

import math
from typing import Any, NamedTuple

from .._structure import ELEMENTWISE

Axes = tuple[int, ...]  # of each of the plate's dimensions in one array

_BY_ELEMENT = ELEMENTWISE | {
    *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "cbrt"),
    *("real", "imag", "conj", "complex", "igamma", "igammac", "bessel_i0e", "bessel_i1e", "polygamma", "zeta"),
    *("reduce_precision", "population_count", "shift_left", "shift_right_logical", "shift_right_arithmetic"),
    *("stop_gradient", "optimization_barrier", "regularized_incomplete_beta"),
}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}
_CUMULATIVE = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
_MATRICES = {"cholesky", "eigh", "lu", "qr", "svd"}


class Inseparable(Exception):
    """Elements of the plate that a program joins, or that it may join."""


class Rule(NamedTuple):
    """What a primitive does with the elements of a plate.

    Attributes:
        operands: for every operand the axes along which it is cut to one element, None where it is taken whole.
        results: the axes of the elements in every result.
        params: those parameters that are others for one element.
    """

    operands: list[Axes | None]
    results: list[Axes]
    params: dict[str, Any]


def rule(eqn: Any, given: list[Axes | None]) -> Rule:
    """The rule of an equation, some of whose operands hold elements.

    Args:
        eqn: the equation.
        given: where the elements lie in each operand, None where it holds none.
    """
    name = eqn.primitive.name
    if name in _BY_ELEMENT:
        axes = _common(given)
        operands = [axes if var.aval.ndim else None for var in eqn.invars]
        return Rule(operands, [axes] * len(eqn.outvars), {})
    for names, separate in _RULES:
        if name in names:
            operands, axes, changed = separate(eqn, eqn.params, given)
            return Rule(operands, [axes] * len(eqn.outvars), changed)
    raise Inseparable(f"no rule for {name}")


def _common(given: list[Axes | None]) -> Axes:
    """The axes that all operands with elements agree on."""
    (axes, *others) = {axes for axes in given if axes is not None}
    return axes if not others else _no()


def _no(why: str = "elements meet") -> Any:
    raise Inseparable(why)


def _need(fine: bool) -> None:
    if not fine:
        _no()


def _without(axes: Axes, removed: Any) -> Axes:
    """Where axes are once others are removed."""
    removed = tuple(removed)
    _need(not set(axes) & set(removed))
    return tuple(axis - sum(other < axis for other in removed) for axis in axes)


def _one(sizes: Any, axes: Axes) -> tuple[int, ...]:
    """Sizes of which those of the plate are 1."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(sizes))


def _first_only(eqn: Any, axes: Axes) -> list[Axes | None]:
    return [axes, *[None] * (len(eqn.invars) - 1)]


def _broadcast(eqn: Any, params: Any, given: Any) -> Any:
    old, shape = eqn.invars[0].aval.shape, params["shape"]
    axes = tuple(params["broadcast_dimensions"][axis] for axis in given[0])
    _need(all(old[before] == shape[after] for before, after in zip(given[0], axes, strict=True)))
    return [given[0]], axes, {"shape": _one(shape, axes)}


def _reshape(eqn: Any, params: Any, given: Any) -> Any:
    """An axis survives where as many elements come before it as did, and it is as long as it was."""
    old, new = eqn.invars[0].aval.shape, params["new_sizes"]
    _need(params.get("dimensions") is None)
    axes = []
    for axis in given[0]:
        before, size = math.prod(old[:axis]), old[axis]
        found = [at for at, length in enumerate(new) if math.prod(new[:at]) == before and length == size]
        axes.append(found[0] if found and found[0] not in axes else _no())
    return [given[0]], tuple(axes), {"new_sizes": _one(new, tuple(axes))}


def _squeeze(eqn: Any, params: Any, given: Any) -> Any:
    return [given[0]], _without(given[0], params["dimensions"]), {}


def _transpose(eqn: Any, params: Any, given: Any) -> Any:
    return [given[0]], tuple(params["permutation"].index(axis) for axis in given[0]), {}


def _reduce(eqn: Any, params: Any, given: Any) -> Any:
    return [given[0]], _without(given[0], params["axes"]), {}


def _along(name: str) -> Any:
    """For primitives that act along one axis, or some, and keep all of them."""

    def separate(eqn: Any, params: Any, given: Any) -> Any:
        along, axes = params[name], _common(given)
        _need(not set(axes) & set(along if isinstance(along, tuple) else (along,)))
        return [axes] * len(eqn.invars), axes, {}

    return separate


def _pad(eqn: Any, params: Any, given: Any) -> Any:
    _need(given[0] is not None and given[1] is None)
    _need(all(tuple(params["padding_config"][axis]) == (0, 0, 0) for axis in given[0]))
    return [given[0], None], given[0], {}


def _slice(eqn: Any, params: Any, given: Any) -> Any:
    shape, strides = eqn.invars[0].aval.shape, params["strides"]
    for axis in given[0]:
        _need(params["start_indices"][axis] == 0 and params["limit_indices"][axis] == shape[axis])
        _need(strides is None or strides[axis] == 1)
    return [given[0]], given[0], {"limit_indices": _one(params["limit_indices"], given[0])}


def _dynamic_slice(eqn: Any, params: Any, given: Any) -> Any:
    _need(given[0] is not None and all(axes is None for axes in given[1:]))
    shape, sizes = eqn.invars[0].aval.shape, params["slice_sizes"]
    _need(all(sizes[axis] == shape[axis] for axis in given[0]))
    return _first_only(eqn, given[0]), given[0], {"slice_sizes": _one(sizes, given[0])}


def _gather(eqn: Any, params: Any, given: Any) -> Any:
    """Elements of each example, by indices that are the same for all of the plate, or by each example's own."""
    _need(given[0] is not None)
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    paired = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    _need(not set(given[0]) & set(numbers.start_index_map))
    if set(given[0]) <= set(paired):
        indices: Any = tuple(paired[axis] for axis in given[0])
        _need(given[1] is None or given[1] == indices)
        counted = [axis for axis in range(eqn.outvars[0].aval.ndim) if axis not in numbers.offset_dims]
        return [given[0], indices], tuple(counted[axis] for axis in indices), {}
    _need(given[1] is None and not set(given[0]) & set(paired))
    _need(all(sizes[axis] == eqn.invars[0].aval.shape[axis] for axis in given[0]))
    within = _without(given[0], (*numbers.collapsed_slice_dims, *paired))
    axes = tuple(numbers.offset_dims[axis] for axis in within)
    return [given[0], None], axes, {"slice_sizes": _one(sizes, given[0])}


def _product(eqn: Any, params: Any, given: Any) -> Any:
    """A product of arrays: elements may lie along an axis that both have, or along one that is in the result alone."""
    contracted, shared = params["dimension_numbers"]
    held = 0 if given[0] is not None else 1
    _need(not set(given[held]) & set(contracted[held]))
    free = [
        [axis for axis in range(var.aval.ndim) if axis not in (*contracted[side], *shared[side])]
        for side, var in enumerate(eqn.invars)
    ]
    axes: list[int] = []
    partner: list[int] = []
    for axis in given[held]:
        if axis in shared[held]:
            axes.append(list(shared[held]).index(axis))
            partner.append(shared[1 - held][axes[-1]])
        else:
            axes.append(len(shared[0]) + held * len(free[0]) + free[held].index(axis))
    other: Any = tuple(partner)
    if given[1 - held] is not None:
        _need(given[1 - held] == other)
    elif 0 < len(other) < len(axes):
        _no("data of some of the plates only")
    operands = [given[held], other if len(other) == len(axes) else None]
    return (operands if held == 0 else operands[::-1]), tuple(axes), {}


def _convolution(eqn: Any, params: Any, given: Any) -> Any:
    """Examples of the plate as the batch of a convolution."""
    numbers = params["dimension_numbers"]
    _need(given[0] == (numbers.lhs_spec[0],) and given[1] is None and params["batch_group_count"] == 1)
    return [given[0], None], (numbers.out_spec[0],), {}


def _images(eqn: Any, params: Any, given: Any) -> Any:
    """The same of `networks.UNet`'s own primitives."""
    _need(given == [(0,), None])
    return given, (0,), {}


def _solve(eqn: Any, params: Any, given: Any) -> Any:
    """Right-hand sides of one triangular matrix, or each with a matrix of its own."""
    side = eqn.invars[1].aval.ndim - (1 if params["left_side"] else 2)
    if given == [None, (side,)]:
        return given, given[1], {}
    return _matrices(eqn, params, given)


def _fourier(eqn: Any, params: Any, given: Any) -> Any:
    _need(max(given[0]) < eqn.invars[0].aval.ndim - len(params["fft_lengths"]))
    return [given[0]], given[0], {}


def _matrices(eqn: Any, params: Any, given: Any) -> Any:
    axes = _common(given)
    _need(all(max(axes) < var.aval.ndim - 2 for var in eqn.invars))
    return [axes] * len(eqn.invars), axes, {}


_RULES: list[tuple[set[str], Any]] = [
    ({"broadcast_in_dim"}, _broadcast),
    ({"reshape"}, _reshape),
    ({"squeeze"}, _squeeze),
    ({"transpose"}, _transpose),
    (_REDUCTIONS, _reduce),
    (_CUMULATIVE | {"split"}, _along("axis")),
    ({"rev"}, _along("dimensions")),
    ({"sort", "concatenate"}, _along("dimension")),
    ({"pad"}, _pad),
    ({"slice"}, _slice),
    ({"dynamic_slice"}, _dynamic_slice),
    ({"gather"}, _gather),
    ({"dot_general"}, _product),
    ({"conv_general_dilated"}, _convolution),
    ({"convolution_3x3", "convolution_3x3_image"}, _images),
    ({"triangular_solve"}, _solve),
    ({"fft"}, _fourier),
    (_MATRICES, _matrices),
]
