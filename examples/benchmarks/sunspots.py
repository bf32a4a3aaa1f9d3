"""Windows of the monthly sunspot numbers: `fit_prior` with its defaults beside a Gaussian, and forecasts by SMC.

The series is standardised. A prior is learned from windows of the first four fifths, from those that share nothing or
from all, each a month after the one before; held out are windows of the last fifth that share nothing. Printed are nats
per window: K of the prior, and the exact log density under a Gaussian (covariance shrunk as Ledoit and Wolf have it).
Then the second half of each held-out window is hidden and drawn given the first: root mean square errors of the mean,
and how often 90% intervals hold the hidden month.

The series is in the wheel of statsmodels, which need not be installed:

    pip download statsmodels --no-deps && unzip 'statsmodels-*.whl' -d statsmodels
    python examples/benchmarks/sunspots.py --statsmodels statsmodels [--short]
"""

import argparse
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from imputation import by_gaussian, model, scores
from sklearn.covariance import LedoitWolf

import numpyro_diffusion as nd

COLUMNS = (
    "windows", "months", "trained on", "held out", "Gaussian", "prior (K)", "K beside it", "RMSE: SMC", "Gaussian",
    "90% intervals hold: SMC", "Gaussian", "CPU s: prior", "SMC",
)  # fmt: skip


def monthly(folder: Path | None) -> np.ndarray:
    """The series, standardised; without the wheel an autoregression in its place."""
    if folder is None:
        noise = np.random.default_rng(0).normal(size=1200)
        series = [0.0]
        for step in noise:
            series.append(0.95 * series[-1] + step)
        found = np.array(series)
    else:
        path = folder / "statsmodels" / "datasets" / "sunspots" / "src" / "sunspots_monthly.dat"
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        found = np.array([float(cell) for row in rows if len(row) == 13 and row[0].isdigit() for cell in row[1:]])
    return (found - found.mean()) / found.std()


def windows(series: np.ndarray, months: int, shift: int) -> np.ndarray:
    """Shape (n, months)."""
    return np.stack([series[i : i + months] for i in range(0, len(series) - months + 1, shift)])


def run(series: np.ndarray, months: int, shift: int, steps: int | None) -> str:
    """One line of the table."""
    cut = len(series) * 4 // 5
    train, held_out = windows(series[:cut], months, shift), windows(series[cut:], months, months).astype(np.float32)
    law, start = LedoitWolf().fit(train), time.process_time()
    apart = held_out - law.location_
    square = np.einsum("ni,ij,nj->n", apart, law.precision_, apart)
    gaussian = -0.5 * (square + np.linalg.slogdet(2 * np.pi * law.covariance_)[1])
    prior = nd.fit_prior(jax.random.key(0), train, max_steps=steps, progress_bar=False)
    seconds = [time.process_time() - start]
    own = np.asarray(prior.estimate(held_out, key=jax.random.key(1)).value, np.float64)
    gap = own - gaussian
    known = np.broadcast_to(np.arange(months) < months // 2, held_out.shape)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smc = nd.infer.SMC(model).run(jax.random.key(2), prior, jnp.where(known, held_out, 0.0), jnp.asarray(known))
    draws = np.asarray(smc.get_samples()["x"])
    seconds.append(time.process_time() - start)
    simple = by_gaussian(train, held_out, known, np.random.default_rng(1))
    found = [scores(each, held_out, known) for each in (draws, simple)]
    cells = (
        "all" if shift == 1 else "apart", months, len(train), len(held_out), f"{gaussian.mean():.2f}",
        f"{own.mean():.2f}", f"{gap.mean():+.2f} ± {gap.std() / np.sqrt(len(gap)):.2f}",
        *(f"{each.rmse:.3f}" for each in found), *(f"{each.held:.1%}" for each in found),
        *(f"{each:.0f}" for each in seconds),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statsmodels", type=Path, help="folder of the unpacked wheel of statsmodels")
    parser.add_argument("--short", action="store_true", help="a few windows of 8 months, a Gaussian prior")
    options = parser.parse_args()
    series = monthly(options.statsmodels)[: 180 if options.short else None]
    print(f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS), flush=True)
    cases = [(8, 8)] if options.short else [(24, 24), (24, 1), (32, 32), (32, 1)]
    for months, shift in cases:
        print(run(series, months, shift, 20 if options.short else None), flush=True)


if __name__ == "__main__":
    main()
