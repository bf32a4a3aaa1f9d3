"""Shapes that many signatures have."""

from jaxtyping import Array, ArrayLike, Real, Shaped

Example = Shaped[Array, "*event"]  # one example, or one state of a chain
AnyExample = Shaped[ArrayLike, "*event"]  # as a user gives it
AnyContext = Shaped[ArrayLike, "*context"]  # c of one example, likewise
Time = Real[Array, ""]  # whole or fractional
AnyTime = Real[ArrayLike, "..."]  # as a user gives it, a plain number too; what computes with it refuses a wrong shape
