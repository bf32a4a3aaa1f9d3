"""How long a table of 5,000 rows and 15 columns takes to be learned and imputed 20 times, with all defaults.

    python examples/benchmarks/impute_time.py [--rows 5000] [--columns 15]
    python examples/benchmarks/impute_time.py --short

Rows lie in three clusters, and half of the columns bend about the others; 30% of the cells are missing at random. The
prior is learned from the rows as they are, and `nd.impute` completes them. Printed are seconds of the clock and of the
processor for both, compilation too, root mean square errors of the imputations' mean and of the columns' means, in the
columns' standard deviations, and how many missing cells 90% intervals of the 20 draws hold. Kept programs of earlier
runs (JAX_COMPILATION_CACHE_DIR) are not used unless that variable is set.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import numpyro_diffusion as nd

MISSING, IMPUTATIONS = 0.3, 20


def table(rows: int, columns: int) -> np.ndarray:
    """Three clusters in half of the columns; each other column is a bent function of two of these, with noise."""
    rng = np.random.default_rng(0)
    free = (columns + 1) // 2
    centres = rng.normal(0, 2, (3, free))
    first = centres[rng.integers(0, 3, rows)] + rng.normal(size=(rows, free)) @ rng.normal(0, 0.5, (free, free))
    one, two = rng.integers(0, free, (2, columns - free))
    bent = np.sin(first[:, one]) * 2 + 0.3 * first[:, two] ** 2 + rng.normal(0, 0.3, (rows, columns - free))
    return np.concatenate([first, bent], 1)


def timed(what: Callable[[], Any]) -> tuple[Any, float, float]:
    """A result, and seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    result = what()
    return result, time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="19 rows of four columns, which make a Gaussian")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--columns", type=int, default=15)
    options = parser.parse_args()
    rows, columns, few = (19, 4, {"num_particles": 32}) if options.short else (options.rows, options.columns, {})
    whole = table(rows, columns)
    hidden = np.random.default_rng(1).random(whole.shape) < MISSING
    holes = np.where(hidden, np.nan, whole)
    learning, imputing = jax.random.split(jax.random.key(0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        prior, *learned = timed(lambda: nd.fit_prior(learning, holes, progress_bar=False))
        done, *imputed = timed(lambda: nd.impute(imputing, holes, prior, IMPUTATIONS, progress_bar=False, **few))
    print(f"{rows} rows, {columns} columns, {hidden.mean():.0%} of the cells missing, {IMPUTATIONS} imputations\n")
    print("| part | seconds | CPU seconds |\n|---|---|---|")
    for name, (clock, processor) in {"`fit_prior`": learned, "`impute`": imputed}.items():
        print(f"| {name} | {clock:.0f} | {processor:.0f} |")
    print(f"| both | {learned[0] + imputed[0]:.0f} | {learned[1] + imputed[1]:.0f} |\n")
    draws = np.stack([np.asarray(each) for each in done])
    low, high = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
    error = (draws.mean(0) - whole) / whole.std(0)
    column_mean = (np.nanmean(holes, 0) - whole) / whole.std(0)
    print(f"root mean square error {np.sqrt(np.mean(error[hidden] ** 2)):.3f}, of the columns' means", end=" ")
    print(f"{np.sqrt(np.mean(column_mean[hidden] ** 2)):.3f}; 90% intervals hold", end=" ")
    print(f"{((low <= whole) & (whole <= high))[hidden].mean():.1%}")
    for warning in said:
        print(f"warned: {warning.message}")


if __name__ == "__main__":
    main()
