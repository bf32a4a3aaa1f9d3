"""From NumPyro's results to ArviZ, on its 0.x (`InferenceData`) and 1.x (`DataTree`) alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import arviz as az
from numpyro.infer import MCMC


def to_arviz(
    mcmc: MCMC,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    exclude: Sequence[str] = (),
) -> Any:
    """Convert an MCMC run: posterior, observed data and sampler statistics.

    Args:
        mcmc: a finished run.
        dims: names of the dimensions of each site.
        coords: values of the named dimensions.
        exclude: sites to leave out, such as the noises of a reparameterised diffusion site.

    Returns:
        `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x); both write themselves with ``to_netcdf``.

    Raises:
        ValueError: `exclude` names a site that the run does not have.
    """
    sites = mcmc.get_samples()
    if unknown := sorted(set(exclude) - set(sites)):
        raise ValueError(f"exclude: expected some of the sites {sorted(sites)}, got {unknown}")
    data = az.from_numpyro(mcmc, dims=dict(dims or {}), coords=dict(coords or {}), log_likelihood=False)
    if exclude:
        # Both containers hand out and take back one group at a time, but under different types.
        group = data["posterior"]
        kept = (group.to_dataset() if hasattr(group, "to_dataset") else group).drop_vars(list(exclude))
        if hasattr(data, "add_groups"):
            data.posterior = kept
        else:
            data["posterior"] = type(data)(kept)
    return data
