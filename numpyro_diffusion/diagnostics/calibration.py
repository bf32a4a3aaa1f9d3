"""Is an inference right on average? Simulation-based calibration.

If unknowns are drawn from the prior and data from the model, the rank of a true value among independent draws of the
exact posterior is uniform, for any quantity (Cook, Gelman and Rubin 2006; Talts et al. 2018). Ranks that are not
uniform, by a χ² test, by the coverage of central intervals or by their mean, speak against the inference, or against
prior and model as they were coded. Autocorrelated draws look wrong too. The test is *exact* but for χ², and sees what
the number of replicates lets it see.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.handlers import condition
from numpyro.infer import MCMC, Predictive
from scipy.stats import chi2
from tqdm.auto import tqdm

from .._checks import check_callable, check_count, check_key, check_scalar
from .._display import shown_by_facts
from ..infer.sites import only_site

OBSERVED_KWARG = "_calibration_observed"
Inference = Callable[[Callable[..., Any]], Any]


@shown_by_facts
class Calibration(NamedTuple):
    """Ranks of true values among posterior draws.

    Attributes:
        ranks: for every quantity, how many of the draws lie below the true value, whole numbers from 0 to `num_draws`,
            shape (replicates, *shape).
        num_draws: L, draws of each replicate; ranks of a right inference are uniform on 0 … L.
    """

    ranks: dict[str, np.ndarray]
    num_draws: int

    def _facts(self) -> dict[str, object]:
        replicates = len(next(iter(self.ranks.values())))
        return {"quantities": ", ".join(self.ranks), "replicates": replicates, "p": f"{self.worst():.2g}"}

    def p_values(self, num_bins: int = 10) -> dict[str, np.ndarray]:
        """χ² test of uniform ranks for every element of every quantity, shape of the quantity.

        The bins are as equal as whole numbers allow, and the test knows their true sizes.
        """
        count = min(check_count("num_bins", num_bins, 2), self.num_draws + 1)
        edges = np.round(np.linspace(0, self.num_draws + 1, count + 1))
        share = np.diff(edges) / (self.num_draws + 1)

        def test(ranks: np.ndarray) -> float:
            counts, _ = np.histogram(ranks, edges - 0.5)
            expected = share * len(ranks)
            return float(chi2.sf(np.sum((counts - expected) ** 2 / expected), len(share) - 1))

        return {name: np.apply_along_axis(test, 0, ranks) for name, ranks in self.ranks.items()}

    def coverage(self, level: float = 0.9) -> dict[str, np.ndarray]:
        """Share of replicates whose central interval of this level holds the truth, shape of the quantity."""
        check_scalar("level", level)
        if not 0 < level < 1:
            raise ValueError(f"level: expected a number in (0, 1), got {level}")
        place = {name: (ranks + 0.5) / (self.num_draws + 1) for name, ranks in self.ranks.items()}
        return {name: np.mean(np.abs(where - 0.5) <= level / 2, axis=0) for name, where in place.items()}

    def coverage_error(self, level: float = 0.9) -> float:
        """Standard error of `coverage` if the inference is right."""
        return float(np.sqrt(level * (1 - level) / len(next(iter(self.ranks.values())))))

    def z_scores(self) -> dict[str, np.ndarray]:
        """Mean rank minus its expectation, in standard errors: the sign of a bias, shape of the quantity."""
        deviation = np.sqrt(self.num_draws * (self.num_draws + 2) / 12)
        return {
            name: (ranks.mean(0) - self.num_draws / 2) / (deviation / np.sqrt(len(ranks)))
            for name, ranks in self.ranks.items()
        }

    def worst(self) -> float:
        """The smallest p-value of all, times how many there are (Bonferroni), at most 1."""
        values = np.concatenate([np.ravel(value) for value in self.p_values().values()])
        return float(min(1.0, values.min() * values.size))


def calibrate(
    key: Array,
    model: Callable[..., Any],
    inference: Inference,
    *args: Any,
    observed: str | Sequence[str],
    site: str | Sequence[str] | None = None,
    num_replicates: int = 200,
    num_draws: int = 99,
    quantities: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None,
    batch_size: int = 1,
    progress_bar: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration (Talts et al. 2018; Cook et al. 2006) of any model and inference.

    Draw every site from the model, hand the observed ones to the inference, and rank the true values of the others
    among the posterior draws; again and again. If model, prior sampler and inference agree, ranks are uniform.

    Args:
        key: JAX random key.
        model: a NumPyro model that draws `observed` when it is called with `args` and `kwargs` (no data in them).
        inference: from a model to an object with ``run(key, *args, **kwargs)`` and ``get_samples()``, such as
            ``lambda model: nd.infer.SMC(model)`` or ``lambda model: MCMC(NUTS(model), …)``. The data of each replicate
            come with the keyword arguments, so that nothing compiles again; runs of an `MCMC` are one program.
        *args: arguments of the model.
        observed: one or more sites that are data.
        site: one or more latent sites to rank, element by element; the only diffusion site unless given.
        num_replicates: how many data sets.
        num_draws: L, draws kept of each posterior, evenly spaced over the run. Autocorrelated draws look like a wrong
            inference: run at least a few times as many.
        quantities: from a dict of the ranked sites' values, of one draw, to a dict of arrays to rank in their place.
        batch_size: replicates at once, by ``jax.vmap``, where the inference is an `MCMC`. Values are traced there, so
            that what kernels check of values in plain runs is not checked.
        progress_bar: whether to show one.
        **kwargs: keyword arguments of the model.

    Returns:
        A `Calibration`; `nd.plots.ranks` draws it.

    Raises:
        ValueError: an unknown site, fewer draws than `num_draws`.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8))
        >>> prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2))
        >>> def model(y=None):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).sum(), 0.5), obs=y)
        >>> by_smc = lambda model: nd.infer.SMC(model, num_particles=16, twist=nd.twists.Laplace())
        >>> settings = {"num_replicates": 20, "num_draws": 9, "progress_bar": False}
        >>> found = nd.diagnostics.calibrate(jax.random.key(0), model, by_smc, observed="y", **settings)
        >>> found.ranks["x"].shape
        (20, 2)
    """
    check_callable("model", model)
    check_callable("inference", inference)
    check_key("key", key)
    site = only_site(model, args, kwargs) if site is None else site
    names, data_names = ([one] if isinstance(one, str) else list(one) for one in (site, observed))
    check_count("num_replicates", num_replicates, 2)
    check_count("num_draws", num_draws, 2)
    simulate, runs, ties = jax.random.split(key, 3)
    truths = Predictive(model, num_samples=num_replicates)(simulate, *args, **kwargs)
    if unknown := sorted({*names, *data_names} - set(truths)):
        raise ValueError(f"site, observed: expected sites of the model, {sorted(truths)}, got {unknown}")
    quantities = quantities or (lambda values: values)
    infer = _engine(inference, _with_data(model), args, kwargs)
    rank = jax.jit(jax.vmap(lambda key, truth, draws: _rank(key, quantities(truth), jax.vmap(quantities)(draws))))
    ranks = []
    bar = tqdm(total=num_replicates, disable=not progress_bar, desc="calibrate")
    for start in range(0, num_replicates, check_count("batch_size", batch_size)):
        # The last batch is filled up with the last replicate, so that one program serves all.
        index = np.minimum(np.arange(start, start + batch_size), num_replicates - 1)
        keys, tie_keys = (jax.vmap(partial(jax.random.fold_in, key))(index) for key in (runs, ties))
        draws = infer(keys, {name: truths[name][index] for name in data_names})
        count = draws[names[0]].shape[1]
        if count < num_draws:
            raise ValueError(f"num_draws: expected at most the {count} draws of the inference, got {num_draws}")
        picked = np.round(np.linspace(0, count - 1, num_draws)).astype(int)
        truth = {name: truths[name][index] for name in names}
        ranks.append(rank(tie_keys, truth, {name: draws[name][:, picked] for name in names}))
        bar.update(len(np.unique(index)))
    bar.close()
    stacked = {name: np.concatenate([one[name] for one in ranks])[:num_replicates] for name in ranks[0]}
    return Calibration(stacked, num_draws)


def _engine(inference: Inference, model: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """From keys and data of several replicates, leading axis (replicates,), to their draws, (replicates, draws, …)."""
    engine = inference(model)

    def run(engine: Any, key: Array, data: Mapping[str, Array]) -> dict[str, Array]:
        engine.run(key, *args, **{**kwargs, OBSERVED_KWARG: data})
        return engine.get_samples()

    if isinstance(engine, MCMC):

        def traced(key: Array, data: Mapping[str, Array]) -> dict[str, Array]:
            engine = inference(model)  # anew, as it keeps what is traced here
            engine.progress_bar = False
            return run(engine, key, data)

        # NumPyro compiles the start of every run again; as a part of one program it is compiled once.
        return jax.jit(jax.vmap(traced))

    def each(keys: Array, data: Mapping[str, Array]) -> dict[str, Array]:
        runs = [run(engine, keys[i], {name: value[i] for name, value in data.items()}) for i in range(len(keys))]
        return jax.tree.map(lambda *draws: jnp.stack(draws), *runs)

    return each


def _with_data(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model with data taken from a keyword argument, so that new data are new arguments of the same model."""

    def conditioned(*args: Any, **kwargs: Any) -> Any:
        data = kwargs.pop(OBSERVED_KWARG)
        with condition(data=data):
            return model(*args, **kwargs)

    return conditioned


def _rank(key: Array, truth: Mapping[str, Array], draws: Mapping[str, Array]) -> dict[str, Array]:
    """Draws below the truth; ties, as bits have, are broken at random."""

    def one(key: Array, truth: Array, draws: Array) -> Array:
        below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
        share = jax.random.uniform(key, below.shape)
        return below + jnp.floor(share * (equal + 1)).astype(below.dtype)

    keys = jax.random.split(key, len(truth))
    return {name: one(key, truth[name], draws[name]) for key, name in zip(keys, sorted(truth), strict=True)}
