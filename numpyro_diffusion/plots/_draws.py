"""Draws of a site, from wherever they are kept.

A picture takes an array, a sampler that has run or an ArviZ container, and asks here for the draws of one site. Where
no site is named, the dimensions of a draw decide; where they leave none or several, this is refused, since a guess
could show another unknown. Samplers and containers keep chains apart, shape (chains, n, *shape); an array is taken as
it is, and the picture checks its dimensions. Arrays with hidden values are refused: NumPy would drop the mask, and
pictures would show what it hides.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import check_unmasked


def draws_of(source: Any, rank: int, site: str | None = None) -> np.ndarray:
    """Draws of one site by chain, shape (chains, n, *shape); an array as it is.

    Args:
        source: an array; what has ``get_samples`` (`MCMC`, `SMC`, `TemperedSMC`); or an ArviZ container with a
            posterior.
        rank: dimensions of a draw, by which the site is found where none is named.
        site: its name.

    Raises:
        TypeError: a site of an array; an array with hidden values.
        ValueError: no such site, or several that may be meant.
    """
    if hasattr(source, "get_samples"):
        found = {key: np.asarray(value) for key, value in source.get_samples(group_by_chain=True).items()}
    elif hasattr(source, "posterior"):
        found = {str(key): np.asarray(value) for key, value in source["posterior"].data_vars.items()}
    elif site is not None:
        raise TypeError(f"site: expected None for an array of draws, got {site!r}")
    else:
        return shown("draws", source)
    fitting = [key for key, value in found.items() if value.ndim == rank + 2]
    if site is None and len(fitting) == 1:
        site = fitting[0]
    if site is None or site not in found:
        raise ValueError(
            f"site: expected the name of one whose draws have {rank} dimensions, of {sorted(found)}, got {site!r}"
        )
    return found[site]


def pooled(source: Any, rank: int, site: str | None = None) -> np.ndarray:
    """The same with all chains as one, shape (n, *shape)."""
    draws = draws_of(source, rank, site)
    return draws.reshape(-1, *draws.shape[2:]) if draws.ndim == rank + 2 else draws


def shown(name: str, value: Any, dtype: Any = None) -> np.ndarray:
    """An array to be drawn, or ``TypeError`` where some of its values are hidden: pictures would show them."""
    check_unmasked(name, value)
    return np.asarray(value, dtype)


def shown_by_name(name: str, values: Any, dtype: Any = None) -> dict[str, np.ndarray]:
    """Several of them by name; ``TypeError`` for what is no mapping."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name}: expected arrays by name, as {{'data': x}}, got {values!r:.80}")
    return {str(key): shown(f"{name}[{str(key)!r}]", value, dtype) for key, value in values.items()}
