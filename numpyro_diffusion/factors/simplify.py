"""Products of factors in the form that has a closed form, where there is one."""

from .base import AbstractFactor, Product
from .delta import Delta
from .gaussian import Gaussian
from .linear import LinearGaussian, stack


def simplify(factor: AbstractFactor, event_shape: tuple[int, ...]) -> AbstractFactor:
    """The same factor, its linear observations merged into one and known coordinates last."""
    if not isinstance(factor, Product):
        return factor
    linear = tuple(part for part in factor.factors if isinstance(part, Gaussian | LinearGaussian))
    known = tuple(part for part in factor.factors if isinstance(part, Delta))
    rest = tuple(part for part in factor.factors if not isinstance(part, Gaussian | LinearGaussian | Delta))
    if len(linear) > 1 and any(isinstance(part, LinearGaussian) for part in linear):
        linear = (stack(tuple(part.linear(event_shape) for part in linear)),)
    parts = (*linear, *rest, *known)
    return parts[0] if len(parts) == 1 else Product(parts)
