"""Products of factors in the form that has a closed form, where there is one."""

from .base import AbstractFactor, Product
from .linear import stack


def simplify(factor: AbstractFactor, event_shape: tuple[int, ...]) -> AbstractFactor:
    """The same factor, its linear observations merged into one and known coordinates last."""
    if len(factor.parts) < 2:
        return factor.parts[0] if factor.parts else factor
    observed = [(part, part.linear(event_shape)) for part in factor.parts]
    linear = tuple(part for part, as_linear in observed if as_linear is not None)
    known = tuple(part for part in factor.parts if part.fixes_elements)
    rest = tuple(part for part, as_linear in observed if as_linear is None and not part.fixes_elements)
    if len(linear) > 1 and not all(part.is_elementwise for part in linear):
        linear = (stack(tuple(as_linear for _, as_linear in observed if as_linear is not None)),)
    parts = (*linear, *rest, *known)
    return parts[0] if len(parts) == 1 else Product(parts)
