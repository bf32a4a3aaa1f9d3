"""From results to ArviZ, on its 0.x (`InferenceData`) and 1.x (`DataTree`) alike.

The groups are made here, as xarray data sets, and put into the container of the ArviZ that is installed. Arrays begin
with (chain, draw). Islands of SMC stand for chains, with equally weighted draws: R-hat compares islands, while
effective sizes take copies of a particle for different draws. Dimensions have the names that the user gives, else those
of plates and ``event_dims``, which the model shows when it is run once at the first draw, else ArviZ's ``x_dim_0``. Log
likelihoods are those of every observed site at every draw, in nats.
"""

import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
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
    (``log_evidence``, chain). Likewise for a TemperedSMC run, and an SMC run with other unknowns, where `sample_stats`
    holds each island's temperatures and the moves' acceptance there, NaN after the last (``temperature`` and
    ``acceptance_rate``, chain × stage), and ``log_evidence``.

    Args:
        result: an `MCMC`, `SMC` or `TemperedSMC` that has run.
        prior: draws of sites from the prior, each of shape (draws, …), as `numpyro.infer.Predictive` gives them; those
            of observed sites make the group `prior_predictive`.
        posterior_predictive: draws of sites from the posterior, of shape (chains, draws, …), or, for an MCMC, all
            chains in a row, as ``Predictive(model, mcmc.get_samples())`` gives them. Of an SMC run, whose
            ``get_samples()`` mixes the islands, draws in a row are one chain.
        log_likelihood: whether to evaluate the log likelihood of every observed site at every draw.
        dims: names of the dimensions of each site; the names of its plates, and what ``infer={"event_dims": …}`` says,
            unless given.
        coords: values of the named dimensions.
        exclude: sites to leave out, such as the noises of a reparameterised diffusion site.

    Returns:
        `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x); both write themselves with ``to_netcdf``.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> def model(y):
        ...     x = numpyro.sample("x", nd.DiffusionPrior(process))
        ...     numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)
        >>> smc = nd.infer.SMC(model, num_particles=64).run(jax.random.key(0), 1.0)
        >>> nd.to_arviz(smc).posterior["x"].shape
        (4, 64, 2)

    Raises:
        ValueError: `exclude` names a site that the run does not have; the run has not been made.
        TypeError: a result of another kind.

    Warns:
        UserWarning: draws in `posterior_predictive` that are not as many as the posterior's.
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
    included = lambda values: {name: value for name, value in values.items() if name not in exclude}
    sites = {} if model is None else _sites(model, args, kwargs, posterior)
    named = {name: _dims(name, site) for name, site in sites.items()} | {
        key: list(each) for key, each in (dims or {}).items()
    }
    build = lambda values, lead, **more: _dataset(values, lead, named, dict(coords or {}), **more)
    groups: dict[str, Any] = {"posterior": build(included(posterior), lead), "sample_stats": stats}
    observed = {name: np.asarray(site["value"]) for name, site in sites.items() if _is_data(site)}
    if observed and log_likelihood:
        values = numpyro_log_likelihood(model, dict(posterior), *args, batch_ndims=2, **kwargs)
        groups["log_likelihood"] = build(values, lead, of_events=True)
    if model is not None:
        groups["observed_data"] = build(observed, ())
    if prior is not None:
        inner = {*posterior, *(name for name, site in sites.items() if site["type"] == "deterministic")}
        for group, wanted in (("prior", True), ("prior_predictive", False)):
            chosen = {name: np.asarray(draws)[None] for name, draws in prior.items() if (name in inner) is wanted}
            if chosen:
                groups[group] = build(included(chosen), lead)
    if posterior_predictive is not None:
        shape = np.shape(next(iter(posterior.values())))[:2]
        rows = isinstance(result, MCMC)
        predictive = {name: _in_chains(name, draws, shape, rows) for name, draws in posterior_predictive.items()}
        groups["posterior_predictive"] = build(included(predictive), lead)
    attributes = _attributes("numpyro" if isinstance(result, MCMC) else "numpyro_diffusion")
    groups = {name: group.assign_attrs(attributes) for name, group in groups.items()}
    if az.__version__.startswith("0."):
        return az.InferenceData(**groups)
    return xr.DataTree.from_dict({name: group for name, group in groups.items() if group})


def _smc(result: SMC) -> tuple[Draws, xr.Dataset]:
    if result.plan.num_draws is not None:
        return _tempered(result)
    particles = result.particles
    batch = tuple(f"batch_{i}" for i in range(particles.log_evidence.ndim - 1))
    last = lambda array: np.moveaxis(np.asarray(array), -1, 1)
    stats = {
        "log_weight": (("chain", "particle", *batch), last(particles.log_weight)),
        "effective_size": (("chain", "step", *batch), last(particles.effective_size)),
        "log_evidence": (("chain", *batch), np.asarray(particles.log_evidence)),
    }
    return result.get_samples(group_by_chain=True), xr.Dataset(stats, {"chain": np.arange(result.num_islands)})


def _tempered(result: SMC | TemperedSMC) -> tuple[Draws, xr.Dataset]:
    stages = max(len(each) for each in result.temperatures)
    table = lambda rows: np.stack([np.pad(row, (0, stages - len(row)), constant_values=np.nan) for row in rows])
    stats = {
        "temperature": (("chain", "stage"), table(result.temperatures)),
        "acceptance_rate": (("chain", "stage"), table(result.acceptance_rates)),
        "log_evidence": (("chain",), np.asarray(result.log_evidences)),
    }
    return result.get_samples(group_by_chain=True), xr.Dataset(stats, {"chain": np.arange(result.num_islands)})


def _mcmc(result: MCMC) -> tuple[Draws, xr.Dataset]:
    names = {"accept_prob": "acceptance_rate", "num_steps": "n_steps", "adapt_state.step_size": "step_size"}
    fields = result.get_extra_fields(group_by_chain=True)
    stats = {
        names.get(name, name.replace(".", "_")): np.asarray(value)
        for name, value in fields.items()
        if not isinstance(value, dict | tuple)
    }
    if "n_steps" in stats:  # of a tree that doubles
        stats["tree_depth"] = np.log2(np.maximum(stats["n_steps"], 1)).astype(int) + 1
        limit = getattr(result.sampler, "_max_tree_depth", None)
        if limit is not None:  # of NUTS; a pair is that of warm-up and that of the draws
            stats["reached_max_tree_depth"] = stats["tree_depth"] >= (limit[1] if isinstance(limit, tuple) else limit)
    if "potential_energy" in stats:
        stats["lp"] = -stats.pop("potential_energy")
    return result.get_samples(group_by_chain=True), _dataset(stats, ("chain", "draw"), {}, {})


def _sites(model: Any, args: Any, kwargs: Any, posterior: Draws) -> dict[str, Any]:
    """The model's sites, at the first draw."""
    first = {name: value[0, 0] for name, value in posterior.items()}
    sites: dict[str, Any] = trace(substitute(seed(model, jax.random.key(0)), data=first)).get_trace(*args, **kwargs)
    return sites


def _is_data(site: Any) -> bool:
    return bool(site["type"] == "sample" and site["is_observed"] and np.size(site["value"]))


def _dims(name: str, site: Any) -> list[str]:
    """Names of a site's dimensions: of its plates, where they stand, and of its event as the model says."""
    if site["type"] not in ("sample", "deterministic"):
        return []
    frames = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
    event = list(site.get("infer", {}).get("event_dims", []))
    depth = -min(frames, default=0)
    if site["type"] == "sample":
        depth = len(site["fn"].batch_shape) if event else min(depth, len(site["fn"].batch_shape))
    batch = [frames.get(dim, f"{name}_dim_{dim + depth}") for dim in range(-depth, 0)]
    return (batch + event)[: np.ndim(site["value"])]


def _in_chains(name: str, draws: Any, shape: tuple[int, ...], in_a_row: bool) -> np.ndarray:
    """Draws as (chains, draws, …): as they are, cut into the posterior's chains, or as one chain."""
    array = np.asarray(draws)
    if array.shape[:2] == shape:
        return array
    if array.shape[0] != shape[0] * shape[1]:
        warnings.warn(
            f"posterior_predictive: expected {shape[0]} chains of {shape[1]} draws of {name!r}, got shape "
            f"{array.shape}; they are shown as one chain",
            stacklevel=3,
        )
    elif in_a_row:
        return array.reshape((*shape, *array.shape[1:]))
    return array[None]


def _attributes(library: str) -> dict[str, str]:
    """What made a group, in the names of ArviZ 0.x and of 1.x."""
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "arviz_version": az.__version__,
        "creation_library": "ArviZ",
        "creation_library_version": az.__version__,
        "creation_library_language": "Python",
        "inference_library": library,
        "inference_library_version": importlib.metadata.version(library),
    }


def _dataset(
    values: Draws, lead: tuple[str, ...], dims: Mapping[str, Any], coords: Mapping[str, Any], *, of_events: bool = False
) -> xr.Dataset:
    """Arrays with their dimensions named, as ArviZ names them where nobody else does; `of_events` have lost theirs."""
    variables, used = {}, set(lead)
    for name, value in values.items():
        array = np.asarray(value)
        rest = list(dims.get(name, []))[: array.ndim - len(lead) if of_events else None]
        if len(rest) > array.ndim - len(lead):
            raise ValueError(f"dims: expected at most {array.ndim - len(lead)} names for {name!r}, got {rest}")
        rest += [f"{name}_dim_{i}" for i in range(len(rest), array.ndim - len(lead))]
        variables[name] = ((*lead, *rest), array)
        used.update(rest)
    dataset = xr.Dataset(variables, {name: value for name, value in coords.items() if name in used})
    return dataset.assign_coords({name: np.arange(size) for name, size in dataset.sizes.items() if name not in coords})
