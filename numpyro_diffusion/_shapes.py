"""Shapes that many signatures have."""

from jaxtyping import Array, ArrayLike, Real, Shaped

Example = Shaped[Array, "*event"]  # one example, or one state of a chain
Time = Real[Array, ""]  # whole or fractional
AnyTime = Real[ArrayLike, ""]  # the same, a plain number too
