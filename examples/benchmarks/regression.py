"""A regression whose covariates have holes: do intervals hold the coefficients, and how wide are they?

Data sets of 120 rows: three covariates, of which the second bends about the first and the third lies in two clusters,
and y, linear in them with noise of scale 1. Of the covariates' cells 30% are missing, at random (MCAR) or by a logistic
function of y (MAR). Printed for each way: how many of the 90% intervals hold the true coefficient (the intercept, and
one of each covariate), with the standard error over replicates; the intervals' mean width as a multiple of that from
complete data of the same replicates, by coefficient; and CPU seconds of a replicate. The ways:

    complete   ordinary least squares on the data without holes
    cases      on the rows without a hole
    MICE       statsmodels' chained predictive mean matching, with its defaults (20 donors); MICE-5 with 5 donors
    impute     `nd.impute` of the table with y as a column, by five priors of rows drawn with replacement, learned anew
               in each replicate; impute-1 by one prior of all rows
    truth      imputations from the true law given the known cells, by importance sampling
    joint      the model of docs/incomplete.md: a prior of the covariates alone, whose missing cells are inferred
               together with the coefficients, by particle Gibbs and NUTS (MCAR only: y is not known to that prior)

Imputations are 20 for all, each with its regression; `nd.pool` has one answer of them. Training is shorter than by
default (--steps), and SMC has 64 particles.

    python examples/benchmarks/regression.py [--short] [--ways complete MICE …] [--replicates N] [--holes MCAR]
    python examples/benchmarks/regression.py --ways impute --replicates 60 --record regression.jsonl

MICE needs `pip install statsmodels`, 0.15 or newer. With --record, each replicate is added to a file, and a run that
was stopped goes on where it was; the file is of one choice of --rows and --steps, and its first --replicates of every
way are printed.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from impute_tables import SHARE, logistic
from numpyro.infer import MCMC, NUTS
from scipy import stats

import numpyro_diffusion as nd

TRUE, DRAWS, LEVEL = np.array([1.0, 1.0, -1.0, 0.5]), 20, 0.9
SPREAD, PROPOSALS = 0.3, 4_000  # of the covariates about their curve and clusters; of importance sampling
SEED = 20_000  # of the first replicate: others were looked at while options were chosen
Interval = tuple[np.ndarray, np.ndarray]  # low and high ends, shape (4,)
Way = Callable[[int, np.ndarray, np.ndarray, argparse.Namespace], Interval]  # seed, data and the same with holes


def rising(along: np.ndarray) -> np.ndarray:
    """How probable the upper cluster is."""
    return 1 / (1 + np.exp(-2 * along))


def bent(along: np.ndarray) -> np.ndarray:
    """Where the second covariate lies, given the first."""
    return 0.7 * (along**2 - 1)


def data_set(rng: np.random.Generator, rows: int, holes: str) -> tuple[np.ndarray, np.ndarray]:
    """Covariates and y, shape (rows, 4), and the same with NaN."""
    along = rng.standard_normal(rows)
    second = bent(along) + SPREAD * rng.standard_normal(rows)
    side = np.where(rng.random(rows) < rising(along), 1.0, -1.0)
    x = np.stack([along, second, side + SPREAD * rng.standard_normal(rows)], axis=1)
    y = TRUE[0] + x @ TRUE[1:] + rng.standard_normal(rows)
    missing = rng.random(x.shape) < SHARE if holes == "MCAR" else logistic(rng, np.tile(y[:, None], 3))
    return np.column_stack([x, y]), np.column_stack([np.where(missing, np.nan, x), y])


def regress(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares: estimates and their squared standard errors."""
    design, y = np.column_stack([np.ones(len(table)), table[:, :3]]), table[:, 3]
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ y
    return found, np.square(y - design @ found).sum() / (len(y) - len(found)) * np.diag(inverse)


def interval(mean: np.ndarray, variance: np.ndarray, degrees: Any) -> Interval:
    """By Student's t."""
    half = stats.t.ppf((1 + LEVEL) / 2, degrees) * np.sqrt(variance)
    return mean - half, mean + half


def pooled(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Interval:
    """Of estimates and variances from several completed tables."""
    found = nd.pool(*zip(*pairs, strict=True))
    return interval(found.mean, found.variance, found.degrees)


def by_least_squares(whole: bool) -> Way:
    """On the data without holes, or on the rows without."""

    def run(seed: int, data: np.ndarray, table: np.ndarray, options: argparse.Namespace) -> Interval:
        used = data if whole else table[~np.isnan(table).any(1)]
        return interval(*regress(used), len(used) - len(TRUE))

    return run


def by_mice(donors: int) -> Way:
    """Of statsmodels."""

    def run(seed: int, data: np.ndarray, table: np.ndarray, options: argparse.Namespace) -> Interval:
        try:
            import pandas as pd
            import statsmodels.api as sm
            from statsmodels.imputation import mice
        except ImportError as error:
            raise SystemExit("MICE: expected statsmodels; pip install statsmodels, or name other --ways") from error
        frame = pd.DataFrame(table, columns=["a", "b", "c", "y"])
        chained = mice.MICEData(frame, k_pmm=donors, rng=np.random.default_rng(seed))
        chained.update_all(10)  # as its `fit` does before the first draw
        model = mice.MICE("y ~ a + b + c", sm.OLS, chained)
        found = [model.next_sample() for _ in range(DRAWS)]
        return pooled([(np.asarray(each.params), np.square(np.asarray(each.bse))) for each in found])

    return run


def by_impute(num_priors: int) -> Way:
    """Ours: priors of covariates and y."""

    def run(seed: int, data: np.ndarray, table: np.ndarray, options: argparse.Namespace) -> Interval:
        effort = {"num_particles": 8, "num_steps": 8} if options.short else {"num_particles": 64}
        more = {"max_steps": options.steps, "num_priors": num_priors, "progress_bar": False}
        done = nd.impute(jax.random.key(seed), table, None, DRAWS, **effort, **more)
        return pooled([regress(each) for each in done])

    return run


def by_truth(seed: int, data: np.ndarray, table: np.ndarray, options: argparse.Namespace) -> Interval:
    """The law that the data have, whose parameters nobody knows outside of a benchmark."""
    rng, tables = np.random.default_rng(seed), np.tile(table, (DRAWS, 1, 1))
    for row in np.flatnonzero(np.isnan(table).any(1)):
        x, known = table[row, :3], ~np.isnan(table[row, :3])
        along = np.full(PROPOSALS, x[0]) if known[0] else rng.standard_normal(PROPOSALS)
        second = np.full(PROPOSALS, x[1]) if known[1] else bent(along) + SPREAD * rng.standard_normal(PROPOSALS)
        side = np.where(rng.random(PROPOSALS) < rising(along), 1.0, -1.0)
        third = np.full(PROPOSALS, x[2]) if known[2] else side + SPREAD * rng.standard_normal(PROPOSALS)
        drawn = np.stack([along, second, third], axis=1)
        log_weight = stats.norm.logpdf(table[row, 3], TRUE[0] + drawn @ TRUE[1:])
        log_weight += known[1] * stats.norm.logpdf(second, bent(along), SPREAD)
        log_weight += known[2] * stats.norm.logpdf(third, side, SPREAD)
        weight = np.exp(log_weight - log_weight.max())
        tables[:, row, :3] = drawn[rng.choice(PROPOSALS, DRAWS, p=weight / weight.sum())]
    return pooled([regress(each) for each in tables])


def regression(prior: nd.DiffusionPrior, x: jax.Array, known: jax.Array, y: jax.Array) -> None:
    """Coefficients and missing cells together."""
    beta = numpyro.sample("beta", dist.Normal(0, 3).expand([4]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(2))
    with numpyro.plate("row", len(y)):
        rows = numpyro.sample("rows", jax.vmap(lambda x, known: prior * nd.factors.Delta(x, known))(x, known))
        numpyro.sample("y", dist.Normal(beta[0] + rows @ beta[1:], noise), obs=y)


def by_joint_model(seed: int, data: np.ndarray, table: np.ndarray, options: argparse.Namespace) -> Interval:
    """Ours: a prior of the covariates, and Gibbs steps."""
    first, second = jax.random.split(jax.random.key(seed))
    x, known = table[:, :3], ~np.isnan(table[:, :3])
    prior = nd.fit_prior(first, x, max_steps=options.steps, progress_bar=False)
    sampler = nd.infer.ParticleGibbs(regression, "rows", num_particles=8)
    # Most cells are known, so that coefficients and cells mix without moves of both, whose gradients are of the chain.
    blocks = [(sampler, ["rows"]), (NUTS(regression), ["beta", "noise"])]
    kernel = nd.infer.Gibbs(blocks, interweave="none")
    mcmc = MCMC(kernel, num_warmup=100, num_samples=options.samples, progress_bar=False)
    mcmc.run(second, prior, jnp.asarray(np.where(known, x, 0.0)), jnp.asarray(known), jnp.asarray(table[:, 3]))
    beta = np.asarray(mcmc.get_samples()["beta"])
    low, high = np.quantile(beta, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return low, high


WAYS: dict[str, Way] = {
    "complete": by_least_squares(True),
    "cases": by_least_squares(False),
    "MICE": by_mice(20),
    "MICE-5": by_mice(5),
    "impute": by_impute(5),
    "impute-1": by_impute(1),
    "truth": by_truth,
    "joint": by_joint_model,
}


def recorded(path: Path | None) -> list[dict[str, Any]]:
    """What a record has."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replicate(way: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """One data set, and one way's intervals."""
    seed = SEED + number
    data, table = data_set(np.random.default_rng(seed), options.rows, options.holes)
    start = time.process_time()
    low, high = WAYS[way](seed, data, table, options)
    seconds = time.process_time() - start
    ends = {"low": np.round(low, 5).tolist(), "high": np.round(high, 5).tolist()}
    return {"way": way, "holes": options.holes, "number": number, **ends, "seconds": round(seconds, 2)}


def line(way: str, own: list[dict[str, Any]], complete: dict[int, dict[str, Any]]) -> str:
    """One way's line in Markdown."""
    low, high = (np.array([each[end] for each in own]) for end in ("low", "high"))
    held = ((low <= TRUE) & (high >= TRUE)).astype(float)  # shape (replicates, coefficients)
    # Coefficients of one replicate are not independent.
    error = held.mean(1).std(ddof=1) / np.sqrt(len(held)) if len(held) > 1 else np.nan
    same = [complete[each["number"]] for each in own]
    width = (high - low).mean(0) / np.mean([np.subtract(one["high"], one["low"]) for one in same], axis=0)
    cells = [f"{held.mean():.3f} ± {error:.3f}", " ".join(f"{value:.2f}" for value in held.mean(0))]
    cells += [f"{width.mean():.2f}", " ".join(f"{value:.2f}" for value in width)]
    return f"| {way} | {len(own)} | {' | '.join(cells)} | {np.mean([one['seconds'] for one in own]):.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="two replicates of 18 rows, which make a Gaussian; no MICE or joint"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--holes", default="MCAR", choices=["MCAR", "MAR"])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--rows", type=int, default=120, help="of a data set")
    parser.add_argument("--steps", type=int, default=300, help="of training, at most, in each part of it")
    parser.add_argument("--samples", type=int, default=400, help="of the joint model")
    parser.add_argument("--record", type=Path, help="file of what has been done, which is not done again")
    options = parser.parse_args()
    if options.holes == "MAR":
        options.ways = [way for way in options.ways if way != "joint"]
    if options.short:
        options.replicates, options.rows, options.samples = 2, 18, 20
        options.ways = [way for way in options.ways if not way.startswith("MICE") and way != "joint"]
    warnings.simplefilter("ignore", UserWarning)
    done = {(each["way"], each["number"]): each for each in recorded(options.record) if each["holes"] == options.holes}
    for way in dict.fromkeys(["complete", *options.ways]):
        for number in range(options.replicates):
            if (way, number) in done:
                continue
            done[way, number] = replicate(way, number, options)
            if options.record is not None:
                with options.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[way, number]) + "\n")
    complete = {number: each for (way, number), each in done.items() if way == "complete"}
    print("| way | replicates | 90% hold | by coefficient | width | by coefficient | CPU s |\n|" + "---|" * 7)
    for way in WAYS:
        own = [each for (name, number), each in done.items() if name == way and number < options.replicates]
        if own:
            print(line(way, own, complete))
    print(f"{options.holes}. To reach: 0.87 to 0.93, and widths of impute at most those of MICE.")


if __name__ == "__main__":
    main()
