"""From results to ArviZ, on its 0.x (`InferenceData`) and 1.x (`DataTree`) alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import arviz as az
import jax
import numpy as np
import xarray as xr
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import MCMC
from numpyro.infer import log_likelihood as numpyro_log_likelihood

from .infer import SMC, TemperedSMC

Draws = Mapping[str, Any]


def to_arviz(
    result: MCMC | SMC | TemperedSMC,
    *,
    prior: Draws | None = None,
    posterior_predictive: Draws | None = None,
    log_likelihood: bool = True,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    exclude: Sequence[str] = (),
) -> Any:
    """Convert a finished run: posterior, sample statistics, log likelihood and observed data.

    For an SMC run the islands are the chains: `posterior` holds equally weighted draws of each, `sample_stats` the
    particles' normalised log weights (``log_weight``, chain × particle), the effective number of particles
    (``effective_size``, chain × step, from T down to the data) and the log evidence of each island
    (``log_evidence``, chain). Likewise for a TemperedSMC run, where `sample_stats` holds each island's temperatures and
    the moves' acceptance there, NaN after the last (``temperature`` and ``acceptance_rate``, chain × stage), and
    ``log_evidence``.

    Args:
        result: an `MCMC`, `SMC` or `TemperedSMC` that has run.
        prior: draws of sites from the prior, each of shape (draws, …), as `numpyro.infer.Predictive` gives them.
        posterior_predictive: likewise, from the posterior.
        log_likelihood: whether to evaluate the log likelihood of every observed site at every draw.
        dims: names of the dimensions of each site.
        coords: values of the named dimensions.
        exclude: sites to leave out, such as the noises of a reparameterised diffusion site.

    Returns:
        `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x); both write themselves with ``to_netcdf``.

    Raises:
        ValueError: `exclude` names a site that the run does not have; the run has not been made.
        TypeError: a result of another kind.
    """
    model: Any
    if isinstance(result, SMC):
        model, args, kwargs = result.model, result.args, result.kwargs
        posterior, stats = _smc(result)
    elif isinstance(result, TemperedSMC):
        model, args, kwargs = result.model, result.args, result.kwargs
        posterior, stats = _tempered(result)
    elif isinstance(result, MCMC):
        model, args, kwargs = getattr(result.sampler, "model", None), result._args, result._kwargs
        posterior, stats = _mcmc(result)
    else:
        raise TypeError(f"result: expected a numpyro.infer.MCMC, a SMC or a TemperedSMC, got {type(result).__name__}")
    if unknown := sorted(set(exclude) - set(posterior)):
        raise ValueError(f"exclude: expected some of the sites {sorted(posterior)}, got {unknown}")
    lead = ("chain", "draw")
    kept = {name: value for name, value in posterior.items() if name not in exclude}
    build = lambda values, lead: _dataset(values, lead, dict(dims or {}), dict(coords or {}))
    groups: dict[str, Any] = {"posterior": build(kept, lead), "sample_stats": stats}
    if model is not None:
        observed = _observed(model, args, kwargs, posterior)
        if observed and log_likelihood:
            values = numpyro_log_likelihood(model, dict(posterior), *args, batch_ndims=2, **kwargs)
            groups["log_likelihood"] = build(values, lead)
        groups["observed_data"] = build(observed, ())
    for name, draws in (("prior", prior), ("posterior_predictive", posterior_predictive)):
        if draws is not None:
            groups[name] = build({site: np.asarray(value)[None] for site, value in draws.items()}, lead)
    if az.__version__.startswith("0."):
        return az.InferenceData(**groups)
    return xr.DataTree.from_dict({name: group for name, group in groups.items() if group})


def _smc(result: SMC) -> tuple[Draws, xr.Dataset]:
    particles = result.particles
    batch = tuple(f"batch_{i}" for i in range(particles.log_evidence.ndim - 1))
    last = lambda array: np.moveaxis(np.asarray(array), -1, 1)
    stats = {
        "log_weight": (("chain", "particle", *batch), last(particles.log_weight)),
        "effective_size": (("chain", "step", *batch), last(particles.effective_size)),
        "log_evidence": (("chain", *batch), np.asarray(particles.log_evidence)),
    }
    return result.get_samples(group_by_chain=True), xr.Dataset(stats, {"chain": np.arange(result.num_islands)})


def _tempered(result: TemperedSMC) -> tuple[Draws, xr.Dataset]:
    stages = max(len(each) for each in result.temperatures)
    table = lambda rows: np.stack([np.pad(row, (0, stages - len(row)), constant_values=np.nan) for row in rows])
    stats = {
        "temperature": (("chain", "stage"), table(result.temperatures)),
        "acceptance_rate": (("chain", "stage"), table(result.acceptance_rates)),
        "log_evidence": (("chain",), np.asarray(result.log_evidences)),
    }
    return result.get_samples(group_by_chain=True), xr.Dataset(stats, {"chain": np.arange(result.num_islands)})


def _mcmc(result: MCMC) -> tuple[Draws, xr.Dataset]:
    names = {"accept_prob": "acceptance_rate", "num_steps": "n_steps"}
    fields = result.get_extra_fields(group_by_chain=True)
    stats = {names.get(name, name.replace(".", "_")): np.asarray(value) for name, value in fields.items()}
    if "potential_energy" in stats:
        stats["lp"] = -stats.pop("potential_energy")
    return result.get_samples(group_by_chain=True), _dataset(stats, ("chain", "draw"), {}, {})


def _observed(model: Any, args: Any, kwargs: Any, posterior: Draws) -> dict[str, np.ndarray]:
    """The observed values of the model's sample sites."""
    first = {name: value[0, 0] for name, value in posterior.items()}
    sites = trace(substitute(seed(model, jax.random.key(0)), data=first)).get_trace(*args, **kwargs)
    return {
        name: np.asarray(site["value"])
        for name, site in sites.items()
        if site["type"] == "sample" and site["is_observed"] and np.size(site["value"])
    }


def _dataset(values: Draws, lead: tuple[str, ...], dims: Mapping[str, Any], coords: Mapping[str, Any]) -> xr.Dataset:
    """Arrays with their dimensions named, as ArviZ names them where the user does not."""
    variables, used = {}, set(lead)
    for name, value in values.items():
        array = np.asarray(value)
        rest = list(dims.get(name, []))
        if len(rest) > array.ndim - len(lead):
            raise ValueError(f"dims: expected at most {array.ndim - len(lead)} names for {name!r}, got {rest}")
        rest += [f"{name}_dim_{i}" for i in range(len(rest), array.ndim - len(lead))]
        variables[name] = ((*lead, *rest), array)
        used.update(rest)
    dataset = xr.Dataset(variables, {name: value for name, value in coords.items() if name in used})
    return dataset.assign_coords({name: np.arange(size) for name, size in dataset.sizes.items() if name not in coords})
