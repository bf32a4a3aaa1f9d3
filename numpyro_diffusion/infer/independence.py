"""Whether the elements of a plate are independent of each other, given the rest of the model.

Elements of a plate may be sampled apart only if no statement ties them together. The test changes elements in groups,
those with a given binary digit in their number, and looks whether what is said of the others follows: a number of
evaluations that grows with the logarithm of the plate, as any two elements differ in some digit. It sees what the model
does at the values at hand, and only where these are known.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from .._checks import is_concrete


def check_independent(says: Callable[[Array], Array], name: str, x: Array, batch: int, site: str) -> None:
    """Raise ``ValueError`` if one element of the plate changes what a site says of another.

    Elements are changed in groups, those with a given binary digit in their number: any two differ in some digit, so
    that one of them is changed while the other must not follow. Values of other sites that are being traced, as in
    chains under `jax.vmap`, have stand-ins; inside a compiled program nothing is known, and nothing is checked.

    Args:
        says: from the site's value to the log density of the site `name`, the plate's dimensions first.
        name: of the site that depends on `site`.
        x: an array of the site's shape.
        batch: how many dimensions of `x` are the plate's.
        site: the diffusion site.
    """
    count = math.prod(x.shape[:batch])
    start = jnp.asarray(np.random.default_rng(0).random(x.shape) > 0.5, dtype=x.dtype)
    each = lambda x: says(x).reshape(count, -1)
    if not is_concrete(each(start)):
        each = _with_stand_ins(each, x)
    before = each(start)
    if not is_concrete(before):
        return
    for digit in range((count - 1).bit_length()):
        for value in (0, 1):
            changed = (np.arange(count) >> digit & 1) == value
            where = changed.reshape(x.shape[:batch] + (1,) * (x.ndim - batch))
            after = each(jnp.where(where, 1 - start, start))
            if not np.array_equal(before[~changed], after[~changed], equal_nan=True):
                raise ValueError(
                    f"model: {name!r} depends on {site!r} across the plate they share, whose elements must be "
                    "independent; what uses them together belongs outside of the plate"
                )


def _with_stand_ins(function: Callable[[Array], Array], x: Array) -> Callable[[Array], Array]:
    """`function` with numbers for the real arrays that are traced; others, such as indices, stay as they are."""
    closed, rng = jax.make_jaxpr(function)(x), np.random.default_rng(1)

    def known(value: Array) -> Array:
        if is_concrete(value) or not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        return jnp.asarray(rng.uniform(0.5, 1.5, value.shape), dtype=value.dtype)

    program = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, [known(value) for value in closed.consts]))
    return lambda x: program(x)[0]
