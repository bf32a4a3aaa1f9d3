"""Networks by kind of event: `fit_prior` with convolutions (`kind="series"`, `"image"`) beside its MLP (`"vector"`).

Oscillations are sines of a random phase and a frequency that drifts, with some noise: far from Gaussian, and alike at
all places. Autoregressions are Gaussian, so that there is nothing to learn. Both have 64 places, 1,000 examples and 500
others. The digits are scikit-learn's, 8 × 8 of 17 grey levels with uniform noise of one level, four fifths to learn
from. Printed are nats per example that was not learned from: the exact log density under a Gaussian (covariance shrunk
as Ledoit and Wolf have it), K of the two priors, a bound on theirs, the gain of the convolutions with its standard
error over examples, and seconds of CPU time.

    python examples/benchmarks/kinds.py [--cases oscillations autoregressions digits] [--short]

With --short: oscillations of 4 places, one step of training and few of the chain.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits

import numpyro_diffusion as nd

COLUMNS = ("data", "learned from", "Gaussian", "vector (K)", "kind", "K", "gain", "CPU s: vector", "kind")


def oscillations(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Shape (count, length)."""
    frequency = rng.uniform(0.2, 0.8, (count, 1)) + np.cumsum(0.03 * rng.normal(size=(count, length)), axis=1)
    phase = 2 * np.pi * rng.random((count, 1)) + np.cumsum(frequency, axis=1)
    return np.sin(phase) + 0.1 * rng.normal(size=(count, length))


def autoregressions(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Shape (count, length): x_i = 1.6 x_{i−1} − 0.8 x_{i−2} + noise, after a hundred steps."""
    series = np.zeros((count, length + 100))
    for i in range(2, series.shape[1]):
        series[:, i] = 1.6 * series[:, i - 1] - 0.8 * series[:, i - 2] + rng.normal(size=count)
    return series[:, 100:]


def digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """To learn from, shape (n, 8, 8), and others with noise between their grey levels."""
    images = load_digits().images[rng.permutation(1797)]
    cut = len(images) * 4 // 5
    return images[:cut], images[cut:] + rng.uniform(-0.5, 0.5, images[cut:].shape)


def case(name: str, short: bool) -> tuple[str, np.ndarray, np.ndarray]:
    """The kind, what is learned from, and others."""
    rng = np.random.default_rng(0)
    if name == "digits":
        return "image", *digits(rng)
    make: Callable[..., np.ndarray] = {"oscillations": oscillations, "autoregressions": autoregressions}[name]
    count, others, length = (60, 20, 4) if short else (1_000, 500, 64)
    both = make(rng, count + others, length)
    return "series", both[:count], both[count:]


def gaussian(train: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Log densities of flattened examples; where the data come in steps, with the variance of noise between them."""
    law = LedoitWolf().fit(train.reshape(len(train), -1))
    steps = (train == np.round(train)).all()
    covariance = law.covariance_ + np.eye(len(law.covariance_)) / 12 * steps
    apart = held_out.reshape(len(held_out), -1) - law.location_
    square = np.einsum("ni,ni->n", apart, np.linalg.solve(covariance, apart.T).T)
    return -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])


def row(name: str, short: bool) -> str:
    """One line of the table."""
    own, train, held_out = case(name, short)
    options: dict[str, Any] = {"max_steps": 1, "schedule": nd.schedules.log_snr(8)} if short else {}
    likelihood, values, seconds = nd.KBound(4, 4 if short else 32), [], []
    for kind in (own, own) if short else ("vector", own):  # in short the same one again, whose programs are there
        start = time.process_time()
        prior = nd.fit_prior(jax.random.key(0), train, kind=kind, progress_bar=False, **options)
        seconds.append(time.process_time() - start)
        found = prior.with_(likelihood=likelihood).estimate(held_out.astype(np.float32), key=jax.random.key(1))
        values.append(np.asarray(found.value, np.float64))
        if not short:  # whose programs are few
            jax.clear_caches()
    gain = values[1] - values[0]
    cells = (
        f"{name}, {' × '.join(map(str, train.shape[1:]))}", len(train), f"{gaussian(train, held_out).mean():.2f}",
        f"{values[0].mean():.2f}", own, f"{values[1].mean():.2f}",
        f"{gain.mean():+.2f} ± {gain.std() / np.sqrt(len(gain)):.2f}", *(f"{each:.0f}" for each in seconds),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("oscillations", "autoregressions", "digits")
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--short", action="store_true", help="oscillations of 4 places, few steps")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS), flush=True)
    for name in ("oscillations",) if options.short else options.cases:
        print(row(name, options.short), flush=True)


if __name__ == "__main__":
    main()
