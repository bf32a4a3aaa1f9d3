"""Principal axes: coordinates in which data do not correlate.

x is an affine function of z whose elements do not correlate: scaled along principal axes, rotated, and put into the
units of the data. The rotation is orthogonal, so that the inverse is its transpose, and the log determinant is the sum
of the logs of both scales: *exact*. Affine maps keep normal laws and linear observations what they are.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from .._products import einsum
from .bounded import equal


class PrincipalAxes(Transform[Any]):
    """x = loc + unit ⊙ (axes @ (scale ⊙ z)), on vectors; the inverse takes no solution of equations.

    Args:
        loc: shape (d,).
        unit: of each element of x, shape (d,), positive.
        axes: orthonormal columns, shape (d, d).
        scale: of the data along each axis, shape (d,), positive.

    Raises:
        ValueError: shapes that do not fit.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, loc: ArrayLike, unit: ArrayLike, axes: ArrayLike, scale: ArrayLike) -> None:
        self.loc, self.unit = jnp.asarray(loc, float), jnp.asarray(unit, float)
        self.axes, self.scale = jnp.asarray(axes, float), jnp.asarray(scale, float)
        size = self.loc.size
        shapes = [self.loc.shape, self.unit.shape, self.axes.shape, self.scale.shape]
        if shapes != [(size,), (size,), (size, size), (size,)]:
            raise ValueError(f"loc, unit, axes, scale: expected shapes (d,), (d,), (d, d) and (d,), got {shapes}")

    def __call__(self, x: Any) -> Float[Array, "*batch d"]:
        """The data of coordinates, shape (*batch, d)."""
        return self.loc + self.unit * einsum("ij,...j->...i", self.axes, self.scale * x)

    def _inverse(self, y: Any) -> Array:
        return einsum("ij,...i->...j", self.axes, (y - self.loc) / self.unit) / self.scale

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Float[Array, "*batch"]:
        """The log determinant ``log |det dx/dz|``, of the batch's shape."""
        total = jnp.sum(jnp.log(self.unit)) + jnp.sum(jnp.log(self.scale))
        return jnp.broadcast_to(total, jnp.shape(x)[:-1])

    def tree_flatten(self) -> Any:
        """The arrays, and their names."""
        return (self.loc, self.unit, self.axes, self.scale), (("loc", "unit", "axes", "scale"), {})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether another one has the same arrays."""
        if not isinstance(other, PrincipalAxes):
            return False
        return equal(self.tree_flatten()[0], other.tree_flatten()[0], static)
