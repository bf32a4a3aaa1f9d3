"""What is given to samplers of models: a particle sampler or the keywords that it is made of, and blocks of Gibbs.

A sampler may be given whole, or by the keywords that make one, and a Gibbs sampler takes blocks in the forms that
NumPyro's own takes. What fits neither is refused here, by the name of the argument, before a model is run. No
mathematics is done.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from numpyro.infer.mcmc import MCMCKernel

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


def checked_blocks(blocks: Any) -> list[tuple[MCMCKernel, Any]]:
    """The blocks of a `Gibbs`: kernels with names of their sites, a function that finds these, or None.

    Raises:
        TypeError: anything else.
    """
    expected = "blocks: expected pairs of a kernel and the names of its sites, as [(NUTS(model), ['scale'])]"
    if not isinstance(blocks, Iterable):
        raise TypeError(f"{expected}, got {blocks!r:.80}")
    found = []
    for block in blocks:
        if not isinstance(block, tuple) or len(block) != 2 or not isinstance(block[0], MCMCKernel):
            raise TypeError(f"{expected}, got {block!r:.80}")
        kernel, sites = block
        sites = (sites,) if isinstance(sites, str) else sites
        if sites is not None and not callable(sites) and not isinstance(sites, Iterable):
            raise TypeError(f"{expected}, got {block!r:.80}")
        found.append((kernel, sites))
    return found


@contextlib.contextmanager
def named(argument: str) -> Iterator[None]:
    """Put an argument's name before what NumPyro says of its value."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
