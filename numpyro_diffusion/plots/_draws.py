"""Draws of a site, from wherever they are kept."""

from typing import Any

import numpy as np


def draws_of(source: Any, rank: int | None, site: str | None = None, name: str = "draws") -> np.ndarray:
    """Draws of one site by chain, shape (chains, n, *shape).

    Args:
        source: an array of shape (n, *shape), which is one chain; what has ``get_samples`` (`MCMC`, `SMC`,
            `TemperedSMC`); or an ArviZ container with a posterior.
        rank: dimensions of a draw, by which the site is found where none is named; any where None.
        site: its name.
        name: of the argument, for messages.

    Raises:
        TypeError: a site of an array.
        ValueError: no such site, or several that may be meant.
    """
    if hasattr(source, "get_samples"):
        found = {key: np.asarray(value) for key, value in source.get_samples(group_by_chain=True).items()}
    elif hasattr(source, "posterior"):
        found = {str(key): np.asarray(value) for key, value in source["posterior"].data_vars.items()}
    elif site is not None:
        raise TypeError(f"site: expected None for an array of {name}, got {site!r}")
    else:
        return np.asarray(source)[None]
    fitting = [key for key, value in found.items() if rank is None or value.ndim == rank + 2]
    if site is None and len(fitting) == 1:
        site = fitting[0]
    if site is None or site not in found:
        of_rank = "" if rank is None else f" whose draws have {rank} dimensions"
        raise ValueError(f"site: expected the name of one{of_rank}, of {sorted(found)}, got {site!r}")
    return found[site]


def pooled(source: Any, rank: int | None, site: str | None = None, name: str = "draws") -> np.ndarray:
    """The same with all chains as one, shape (n, *shape)."""
    by_chain = draws_of(source, rank, site, name)
    return by_chain.reshape(-1, *by_chain.shape[2:])
