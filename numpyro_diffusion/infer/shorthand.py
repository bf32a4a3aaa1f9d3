"""A particle sampler given as such, or by the keywords that it is made of."""

from typing import Any, TypeVar

Sampler = TypeVar("Sampler")


def sampler_of(kind: type[Sampler], sampler: Sampler | None, shorthand: dict[str, Any], num_particles: int) -> Sampler:
    """`sampler`, or one of class `kind` made of those keywords that are not None.

    Args:
        kind: class of the sampler.
        sampler: one of that class, or None.
        shorthand: keywords of `kind`, None where not given.
        num_particles: unless `shorthand` says so.

    Raises:
        TypeError: a `sampler` of another class.
        ValueError: a sampler and keywords; what `kind` raises.
    """
    given = {name: value for name, value in shorthand.items() if value is not None}
    if sampler is None:
        return kind(**{"num_particles": num_particles, **given})
    if not isinstance(sampler, kind):
        raise TypeError(f"sampler: expected a numpyro_diffusion.samplers.{kind.__name__}, got {type(sampler).__name__}")
    if given:
        raise ValueError(f"sampler: expected a sampler or the keywords that make one, got both: {sorted(given)}")
    return sampler
