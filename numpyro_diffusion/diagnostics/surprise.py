"""Do the data surprise the model? Their evidence among the evidences of data that the model draws itself.

Data surprise a model if their evidence is small among those of data sets that the model draws itself, a prior
predictive check (Box 1980). As all evidences are estimated in the same way, the rank of the data is uniform under the
model, *exactly*, at any number of particles (a Monte Carlo test; Barnard 1963): noise costs power alone. A small
p-value says that prior, likelihood or both are wrong, and not which.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.handlers import condition, seed, trace
from numpyro.primitives import Messenger
from scipy.special import logsumexp

from .._batching import batched_map
from .._checks import check_count, check_key, check_real
from .._compiled import compiled
from .._display import shown_as_text
from ..infer.extract import extract, over_batch
from ..infer.sites import glance, only_site
from ..samplers import Ancestral, TwistedSMC


@shown_as_text
class Surprise(NamedTuple):
    """The log evidence of data, and those of data sets that the model drew.

    Where all particles of a data set have probability 0 its log evidence is −inf. Standard errors above half a nat are
    themselves no good: islands differ so much that one outweighs the others.

    Attributes:
        log_evidence: of the data, in nats.
        log_evidence_error: its standard error from the variation between the islands, in nats; NaN from one island.
        replicates: log evidences of the data sets that the model drew, in nats, shape (replicates,).
        replicate_errors: their standard errors, in nats, shape (replicates,).
    """

    log_evidence: float
    log_evidence_error: float
    replicates: np.ndarray
    replicate_errors: np.ndarray

    @property
    def p_value(self) -> float:
        """Share of data sets, the data among them, whose log evidence is no larger than that of the data.

        Small where the data surprise the model; 1/(replicates + 1) is the least that there is.
        """
        return float((1 + np.sum(self.replicates <= self.log_evidence)) / (len(self.replicates) + 1))

    @property
    def p_value_error(self) -> float:
        """Standard error of `p_value` as an estimate of its limit for many replicates."""
        p = self.p_value
        return float(np.sqrt(p * (1 - p) / len(self.replicates)))

    def __str__(self) -> str:
        low, middle, high = np.quantile(self.replicates, [0.05, 0.5, 0.95], method="inverted_cdf")  # −inf is no trouble
        return (
            f"log evidence of the data: {self.log_evidence:.3f} ± {self.log_evidence_error:.3f} nats\n"
            f"of {len(self.replicates)} data sets that the model drew: median {middle:.3f}, 90% from {low:.3f} to "
            f"{high:.3f} nats; standard error of each {np.median(self.replicate_errors):.3f} (median)\n"
            f"p = {self.p_value:.3f} ± {self.p_value_error:.3f}: so many are no more probable than the data"
        )

    def print_summary(self) -> None:
        """Print the log evidences and the p-value."""
        print(self)


def surprise(
    key: Array,
    model: Callable[..., Any],
    *args: Any,
    observed: Mapping[str, ArrayLike],
    site: str | None = None,
    num_replicates: int = 99,
    sampler: TwistedSMC | None = None,
    num_islands: int = 4,
    batch_size: int = 10,
    **kwargs: Any,
) -> Surprise:
    """Prior predictive check of the evidence (Box 1980): is log Z of the data what it is for the model's own data?

    The model draws data sets; SMC estimates the log evidence of each, and that of the data, in the same way. Hence the
    rank of the data is uniform if the model is right, *exactly*, at any number of particles and replicates (a Monte
    Carlo test, Barnard 1963); ties, as counts may have, make p-values larger. Noise of the estimates costs
    power: the test sees little where standard errors are not small beside the standard deviation of the replicates.

    A small p-value says that the prior, the likelihood or both are wrong for these data. One near 1 says that the data
    are more probable than nearly all that the model draws: no surprise, but no sign of a right model either. The order
    of densities changes with the units of the data where these change by a curve, such as a logarithm.

    Args:
        key: JAX random key.
        model: a NumPyro model of one latent diffusion site that draws `observed` when it is called with `args` and
            `kwargs` (no data in them), as for `calibrate`.
        *args: arguments of the model.
        observed: the data, by the name of their sites, each of the shape that the model draws.
        site: name of the diffusion site; found unless given.
        num_replicates: n, how many data sets the model draws; the least p-value is 1/(n + 1).
        sampler: of all runs; ``TwistedSMC()`` unless given. The model's data come from the chain that it runs.
        num_islands: independent runs for each data set, whose mean evidence counts; a standard error needs 2.
        batch_size: data sets at once, by ``jax.vmap``; all of them are one compiled program.
        **kwargs: keyword arguments of the model.

    Returns:
        A `Surprise`, log evidences in nats; `nd.plots.surprise` draws it. A `DiffusionPosterior` site is drawn
        by its own sampler, and p-values are *approximate*.

    Raises:
        TypeError: no key, no model, no `TwistedSMC`; data that are no numbers, or hide some.
        ValueError: sites in `observed` that the model does not draw, data of another shape; an observed site or a
            `numpyro.factor` beside them; counts below 1; a density of 0 at all particles of all
            data sets; what `nd.infer.extract_factor` raises.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8))
        >>> prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2))
        >>> def model(y=None):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).sum(), 0.5), obs=y)
        >>> found = nd.diagnostics.surprise(jax.random.key(0), model, observed={"y": 9.0}, num_replicates=19)
        >>> print(found.p_value)  # none of 19 data sets is as improbable
        0.05
    """
    check_count("num_replicates", num_replicates)
    check_count("num_islands", num_islands)
    check_count("batch_size", batch_size)
    sampler = TwistedSMC() if sampler is None else sampler
    if not isinstance(sampler, TwistedSMC):
        raise TypeError(f"sampler: expected a TwistedSMC, got {type(sampler).__name__}")
    data = _checked(model, observed, args, kwargs)
    given = condition(model, data=data)
    site = only_site(given, args, kwargs) if site is None else site
    extract(given, site, args, kwargs)  # outside of any compiled code, where values can be checked
    simulate, runs = jax.random.split(check_key("key", key))
    keys = jax.random.split(simulate, num_replicates), jax.random.split(runs, num_replicates + 1)
    drawn = _simulated(model, site, tuple(data), sampler.num_steps, keys[0], batch_size, args, kwargs)
    every = {name: np.concatenate([data[name][None], np.asarray(drawn[name])]) for name in data}
    islands = _log_evidences(model, site, sampler, num_islands, keys[1], every, batch_size, args, kwargs)
    each = np.asarray(islands, dtype=np.float64)
    if np.isnan(each).any() or np.isneginf(each).all():
        raise ValueError("model: expected a positive density of data somewhere, got 0 (or no number) at all particles")
    values, errors = _summaries(each)
    return Surprise(float(values[0]), float(errors[0]), values[1:], errors[1:])


def _checked(
    model: Callable[..., Any], observed: Mapping[str, ArrayLike], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The data in the model's own types."""
    diffusion, sites = glance(model, args, kwargs)
    samples = {name: msg for name, msg in sites.items() if msg["type"] == "sample" and name not in diffusion}
    drawn = sorted(name for name, msg in samples.items() if not msg["is_observed"])
    if not isinstance(observed, Mapping) or not observed or not set(observed) <= set(drawn):
        got = sorted(observed) if isinstance(observed, Mapping) else type(observed).__name__
        raise ValueError(f"observed: expected data by the names of sites that the model draws, {drawn}, got {got}")
    if others := sorted(name for name, msg in samples.items() if msg["is_observed"]):
        raise ValueError(f"model: expected no observed site or factor beside those in `observed`, got {others}")
    data = {}
    for name, value in observed.items():
        check_real("observed", value)
        array, like = np.asarray(value), np.asarray(samples[name]["value"])
        if array.shape != like.shape:
            raise ValueError(f"observed: expected shape {like.shape} for {name!r}, got {array.shape}")
        data[name] = array.astype(like.dtype)
        if np.issubdtype(like.dtype, np.integer) and not np.array_equal(data[name], array):
            raise ValueError(f"observed: expected whole numbers for {name!r}, got {array}")
    return data


@compiled
def _simulated(
    model: Any,
    site: str,
    names: tuple[str, ...],
    num_steps: int | None,
    keys: Array,
    batch_size: int,
    args: Any,
    kwargs: Any,
) -> dict[str, Array]:
    """Data sets drawn by the model, leading shape (replicates,)."""

    def one(key: Array) -> dict[str, Array]:
        sites = trace(seed(_ByChain(model, site, num_steps), key)).get_trace(*args, **kwargs)
        return {name: sites[name]["value"] for name in names}

    return batched_map(one, keys, batch_size)


@compiled
def _log_evidences(
    model: Any,
    site: str,
    sampler: Any,
    num_islands: int,
    keys: Array,
    data: Any,
    batch_size: int,
    args: Any,
    kwargs: Any,
) -> Array:
    """Log evidence of every data set and island, in nats, shape (data sets, islands)."""
    run = lambda sampler, key, module, factor: sampler.run(key, module.process, factor).log_evidence

    def one(pair: tuple[Array, dict[str, Array]]) -> Array:
        key, data = pair
        found = extract(condition(model, data=data), site, args, kwargs).in_latent()
        island = lambda key: over_batch(run, sampler, key, found).sum() + found.log_constant
        return jax.vmap(island)(jax.random.split(key, num_islands))

    return batched_map(one, (keys, data), batch_size)


def _summaries(each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the islands' mean evidence and its standard error, shape (data sets,) each."""
    count = each.shape[1]
    values = logsumexp(each, axis=1) - np.log(count)
    if count == 1:
        return values, np.full(len(values), np.nan)
    finite = np.where(np.isneginf(values), 0.0, values)
    return values, np.exp(each - finite[:, None]).std(axis=1, ddof=1) / np.sqrt(count)


class _ByChain(Messenger):
    """Draws the diffusion site by the chain that SMC runs, whatever sampler the prior has."""

    def __init__(self, model: Callable[..., Any], site: str, num_steps: int | None) -> None:
        self.site, self.num_steps = site, num_steps
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Exchanges the law before the site is sampled."""
        if msg["type"] == "sample" and msg["name"] == self.site:
            msg["fn"] = self._drawn(msg["fn"])

    def _drawn(self, law: Any) -> Any:
        if isinstance(law, dist.Independent):
            return self._drawn(law.base_dist).to_event(law.reinterpreted_batch_ndims)
        if law.factor.parts or not law.process.is_normalised:
            return law
        prior = law.prior
        own = prior.sampler.num_steps if isinstance(prior.sampler, Ancestral) else None
        return prior.with_(sampler=Ancestral(own if self.num_steps is None else self.num_steps))
