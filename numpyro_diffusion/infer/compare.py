"""Which of several priors do the data speak for? Log evidences, Bayes factors and posterior probabilities.

Of several priors of one site, p(y | prior) = ∫ p(x) p(y | x) dx says how probable each made the data; ratios of these
evidences are Bayes factors, and with prior probabilities they give posterior ones (Kass and Raftery 1995). Every
evidence is estimated by SMC under the prior's own chain, *consistently as particles grow*, and never by the bound K.
Errors of the logarithms come from independent islands and are *approximate*. An evidence counts the whole prior: one
that is wider than it needs to be pays for it.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from scipy.special import softmax

from .._checks import check_callable, check_key
from .._display import shown_as_text
from ..distributions import DiffusionPosterior, DiffusionPrior
from ..samplers import ReliabilityWarning
from .smc import SMC

# Islands that differ much give an error that is itself no good: one that outweighs all others gives about 1 nat,
# however far it is ahead.
_COARSE = 0.5
_DRAWS = 10_000
LEVEL = 0.9


@shown_as_text
class PriorComparison(NamedTuple):
    """Several priors of one model, each with an SMC run on the same data.

    Whatever is said of each prior is a dict with the names as its keys, in the order in which they were given; matrices
    have the same order.

    Attributes:
        runs: the finished `SMC` runs.
        prior_probabilities: of the priors, before the data.
        probability_intervals: central 90% interval of the posterior probability, (low, high), for the errors of the log
            evidences only; NaN where a run had one island.
        warnings: what was said against the run, empty where nothing was.
    """

    runs: dict[str, SMC]
    prior_probabilities: dict[str, float]
    probability_intervals: dict[str, tuple[float, float]]
    warnings: dict[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The priors' names."""
        return tuple(self.runs)

    @property
    def log_evidences(self) -> dict[str, float]:
        """Log evidence, in nats."""
        return {name: run.log_evidence for name, run in self.runs.items()}

    @property
    def log_evidence_errors(self) -> dict[str, float]:
        """Standard error of the log evidence, from the variation between the run's islands, in nats."""
        return {name: run.log_evidence_error for name, run in self.runs.items()}

    @property
    def log_bayes_factors(self) -> np.ndarray:
        """Log evidence of the row's prior minus that of the column's, in nats, shape (priors, priors)."""
        values = np.array(list(self.log_evidences.values()))
        return values[:, None] - values

    @property
    def log_bayes_factor_errors(self) -> np.ndarray:
        """Standard errors of `log_bayes_factors`, in nats, shape (priors, priors); runs are independent."""
        errors = np.array(list(self.log_evidence_errors.values()))
        both = np.hypot(errors[:, None], errors)
        np.fill_diagonal(both, 0.0)
        return both

    @property
    def probabilities(self) -> dict[str, float]:
        """Posterior probability, by Bayes' rule from `prior_probabilities`."""
        values = _posterior(self.prior_probabilities, np.array(list(self.log_evidences.values())))
        return dict(zip(self.names, map(float, values), strict=True))

    @property
    def best(self) -> str:
        """The name of the prior with the largest evidence."""
        evidences = self.log_evidences
        return max(evidences, key=lambda name: evidences[name])

    def __str__(self) -> str:
        best = self.names.index(self.best)
        width = max(len("prior"), *map(len, self.names))
        rows = [f"{'prior':{width}}  {'log evidence':>18}  {'minus the best':>18}  probability  {LEVEL:.0%} interval"]
        for index, (name, run) in enumerate(self.runs.items()):
            evidence = f"{run.log_evidence:.3f} ± {run.log_evidence_error:.3f}"
            factor, error = self.log_bayes_factors[index, best], self.log_bayes_factor_errors[index, best]
            against = "the best" if index == best else f"{factor:.3f} ± {error:.3f}"
            low, high = self.probability_intervals[name]
            share = f"{self.probabilities[name]:11.4f}  {low:.4f} to {high:.4f}"
            rows.append(f"{name:{width}}  {evidence:>18}  {against:>18}  {share}")
        rows.append("Log evidences and their differences in nats, with standard errors.")
        rows += [f"{name}: {message}" for name, messages in self.warnings.items() for message in messages]
        return "\n".join(rows)

    def print_summary(self) -> None:
        """Print the table of log evidences, Bayes factors and probabilities, and what was said against the runs."""
        print(self)


def compare_priors(
    key: Array,
    model: Callable[..., Any],
    priors: Mapping[str, DiffusionPrior | DiffusionPosterior],
    *args: Any,
    prior_probabilities: Mapping[str, float] | None = None,
    smc: Mapping[str, Any] | None = None,
    site: str | None = None,
    **kwargs: Any,
) -> PriorComparison:
    """Compare priors of one diffusion site by the evidence of the data, one `nd.infer.SMC` run for each.

    *Consistent as particles grow*; each evidence is estimated as `nd.infer.SMC` does, without bias where a twist leads
    the particles and x alone is unknown, and its logarithm nearly so where the error is small. Evidences are those of
    the priors' own chains (of as many steps as their samplers take), not of the bound. Priors may be of different
    families and event shapes, as long as the model takes them; those of equal layout, such as the same network trained
    on other data, share one compiled program. The factor of a `DiffusionPosterior` counts as data: compare it only with
    priors that have the same one.

    Args:
        key: JAX random key.
        model: a NumPyro model ``model(prior, *args, **kwargs)`` whose latent diffusion site has the law `prior`; or
            several sites, which are one state of `nd.infer.SMC`.
        priors: two or more, by name.
        *args: further arguments of the model, the data among them.
        prior_probabilities: of the priors, before the data, by name; equal unless given.
        smc: options of every `nd.infer.SMC` run, such as ``{"num_particles": 1024, "num_islands": 8}``.
        site: name of the diffusion site, where the others are to have values; found unless given.
        **kwargs: keyword arguments of the model.

    Returns:
        A `PriorComparison`; `nd.plots.prior_comparison` draws it. The interval of a probability is that of 10,000 draws
        of the log evidences around their estimates, by Student's t with one degree of freedom less than islands.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> def model(prior, y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 0.5).to_event(1), obs=y)
        >>> wide = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 3.0), 2)
        >>> priors = {"narrow": nd.DiffusionPrior(process), "wide": nd.DiffusionPrior(wide)}
        >>> found = nd.compare_priors(jax.random.key(0), model, priors, jnp.array([4.0, -3.0]))
        >>> found.log_evidences["wide"] > found.log_evidences["narrow"]
        True

    Warns:
        UserWarning: what a run warns of, with the prior's name in front; a standard error above 0.5 nats.

    Raises:
        TypeError: no key, model or dictionary of priors; a prior that is none.
        ValueError: fewer than two priors; probabilities for other names, that are negative or do
            not add up to 1; unknown options of SMC; no diffusion site; what `nd.infer.SMC` raises, with
            the prior's name as a note.

    Source: Kass and Raftery 1995.
    """
    check_key("key", key)
    check_callable("model", model)
    _check_priors(priors)
    probabilities = _probabilities(prior_probabilities, tuple(priors))
    options = _options(smc)
    key_intervals, *keys = jax.random.split(key, len(priors) + 1)
    runs, said = {}, {}
    for own, (name, prior) in zip(keys, priors.items(), strict=True):
        try:
            runs[name], said[name] = _run(own, SMC(model, site, **options), (prior, *args), kwargs)
        except (TypeError, ValueError) as error:
            error.add_note(f"while comparing priors: {name!r}")
            raise
        for message in said[name]:
            warnings.warn(f"{name}: {message}", ReliabilityWarning, stacklevel=2)
    return PriorComparison(runs, probabilities, _intervals(key_intervals, runs, probabilities), said)


def _run(key: Array, smc: SMC, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[SMC, tuple[str, ...]]:
    """The finished run, and what was said against it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        smc.run(key, *args, **kwargs)
    said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    for one in caught:
        if not issubclass(one.category, UserWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if smc.log_evidence_error > _COARSE:
        said.append(
            f"the log evidence has a standard error of {smc.log_evidence_error:.2f} nats, and may be further off: take "
            f"more than {smc.num_particles} particles (smc={{'num_particles': …}})"
        )
    return smc, tuple(said)


def _posterior(prior: Mapping[str, float], log_evidences: np.ndarray) -> np.ndarray:
    """Posterior probabilities along the last axis."""
    with np.errstate(divide="ignore"):
        return softmax(np.log(list(prior.values())) + log_evidences, axis=-1)


def _intervals(key: Array, runs: dict[str, SMC], prior: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Quantiles of the posterior probabilities under draws of the log evidences."""
    rng = np.random.default_rng(int(jax.random.bits(key)))
    draws = []
    for run in runs.values():
        noise = rng.standard_t(max(run.num_islands - 1, 1), _DRAWS)
        draws.append(run.log_evidence + run.log_evidence_error * noise)
    probabilities = _posterior(prior, np.stack(draws, -1))
    ends = np.quantile(probabilities, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(runs, *ends, strict=True)}


def _check_priors(priors: Any) -> None:
    if not isinstance(priors, Mapping) or not all(isinstance(name, str) for name in priors):
        raise TypeError(f"priors: expected a dict of priors by name, got {priors!r}")
    if len(priors) < 2:
        raise ValueError(f"priors: expected at least 2 to compare, got {list(priors)}")
    for name, prior in priors.items():
        if not isinstance(prior, DiffusionPrior | DiffusionPosterior):
            kind = type(prior).__name__
            raise TypeError(f"priors: expected a DiffusionPrior, or one times a factor, as {name!r}, got {kind}")


def _probabilities(given: Mapping[str, float] | None, names: tuple[str, ...]) -> dict[str, float]:
    if given is None:
        return dict.fromkeys(names, 1 / len(names))
    if set(given) != set(names):
        raise ValueError(f"prior_probabilities: expected the names of the priors, {list(names)}, got {list(given)}")
    values = np.array([float(given[name]) for name in names])
    if not (values >= 0).all() or abs(values.sum() - 1) > 1e-6:
        raise ValueError(f"prior_probabilities: expected numbers of at least 0 that add up to 1, got {dict(given)}")
    return dict(zip(names, map(float, values), strict=True))


def _options(smc: Mapping[str, Any] | None) -> dict[str, Any]:
    known = sorted(set(inspect.signature(SMC).parameters) - {"model", "site"})
    if unknown := sorted(set(smc or {}) - set(known)):
        raise ValueError(f"smc: expected options of nd.infer.SMC, {known}, got {unknown}")
    return dict(smc or {})
