"""All likelihood estimators side by side: against exact log p of mixtures, and on the trained digits prior.

    python examples/benchmarks/likelihoods.py [--short] [--only mixtures digits]

Mixtures of four Gaussians in d = 2, 16, 64 dimensions with their exact denoisers, T = 200. Every estimator is given
about the same number of network evaluations for one point. Printed, in nats per dimension: the mean error with its
standard error over points and seeds, the sd over seeds at one point (root mean square over points), that of an element
of the gradient, the sd of the z-scores, and the milliseconds of one value with its gradient. "one time" is the
evidence bound at independent random times with independent noise.
"""

import argparse
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import numpyro_diffusion as nd

T = 200


def mixture(size: int) -> nd.ReverseProcess:
    """Four components with standard deviations from 0.3 to 0.6 at standard normal places."""
    locs, scales = np.random.default_rng(0).standard_normal((4, size)), np.array([0.3, 0.4, 0.5, 0.6])
    scale = np.sqrt(np.mean(scales**2) + locs.var(0)).mean()
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(T), locs.mean(0), scale)
    denoiser = nd.denoisers.GaussianMixture(locs, scales, np.full(4, 0.25))
    return nd.ReverseProcess(diffusion, denoiser, (size,))


def estimators(size: int, budget: int) -> dict[str, Any]:
    """One of each at about `budget` network evaluations for one point."""
    replicates = 16
    times, products = budget // replicates, 1 + min(size, 64)
    return {
        "one time": nd.KBound(budget // 2, 1, antithetic=False),
        "KBound": nd.KBound(max(2, 2 * (budget // (2 * T)))),
        "KBound, low discrepancy": nd.KBound(replicates, times - 1, antithetic=False, low_discrepancy=True),
        "ContinuousBound": nd.ContinuousBound(replicates, times * 8 // 9),
        "ImportanceWeighted": nd.ImportanceWeighted(max(2, budget // T)),
        "ImportanceWeighted, twisted": nd.ImportanceWeighted(max(2, budget // T), "twisted"),
        "PathIntegral": nd.PathIntegral(replicates, times * 8 // 9),
        "ProbabilityFlow": nd.ProbabilityFlow(max(4, budget // (6 * products)), 0),
        "ProbabilityFlow, 8 probes": nd.ProbabilityFlow(max(4, budget // 54), 8),
    }


@eqx.filter_jit
def run(estimator: Any, process: nd.ReverseProcess, x: Array, keys: Array) -> Any:
    """Value, standard error and gradient for each point, shape (points, size), and key, shape (points, seeds)."""

    def value(x: Array, key: Array) -> Any:
        estimate = estimator.estimate(key, process, x)
        return estimate.value, estimate.standard_error

    one = jax.value_and_grad(value, has_aux=True)
    return jax.lax.map(lambda pair: jax.lax.map(lambda key: one(pair[0], key), pair[1]), (x, keys))


def mixtures(short: bool) -> None:
    """The table against exact log p."""
    print("| d | estimator | evaluations | error | sd | sd, gradient | z | ms |")
    print("|---|---|---|---|---|---|---|---|")
    for size in (2,) if short else (2, 16, 64):
        process, budget = mixture(size), 128 if short else 1024
        data = process.denoiser.data()
        points, seeds = (2, 4) if short else (8, 32)
        x = data.sample(jax.random.key(1), (points,))
        exact, keys = np.asarray(data.log_prob(x), np.float64), jax.random.split(jax.random.key(2), (points, seeds))
        chosen = estimators(size, budget)
        for name in ("KBound, low discrepancy", "ContinuousBound") if short else chosen:
            row(name, chosen[name], process, x, exact, keys)


def row(name: str, estimator: Any, process: Any, x: Array, exact: np.ndarray, keys: Array) -> None:
    """One estimator at all points."""
    size = x.shape[1]
    (value, error), gradient = jax.tree.map(np.asarray, run(estimator, process, x, keys))
    start = time.perf_counter()
    jax.block_until_ready(run(estimator, process, x, keys))
    spent = (time.perf_counter() - start) / keys.size * 1e3
    wrong = (value - exact[:, None]) / size
    spread = np.sqrt(np.mean(wrong.var(1, ddof=1)))
    score = (value - value.mean(1, keepdims=True)) / np.where(error > 0, error, np.nan)
    slope = np.sqrt(np.mean(gradient.var(1, ddof=1)))
    accuracy = spread / np.sqrt(wrong.size)
    print(
        f"| {size} | {name} | {estimator.evaluations(process)} | {wrong.mean():.2g} ± {accuracy:.1g} | {spread:.2g} | "
        f"{slope:.2g} | {np.nanstd(score):.2f} | {spent:.2g} |",
        flush=True,
    )


def trained(title: str, process: nd.ReverseProcess, x: Array, chosen: dict[str, Any]) -> None:
    """All estimators on held-out points of a trained prior, and how far each is from the K bound."""
    print(f"\n{title}: {len(x)} points, nats per example\n")
    print("| estimator | kind | evaluations | mean | ± over points | less the first | Monte Carlo ± |")
    print("|---|---|---|---|---|---|---|")
    first = None
    for name, estimator in chosen.items():
        got = eqx.filter_jit(estimator)(jax.random.key(3), process, x)
        value = np.asarray(got.value, np.float64)
        first = value if first is None else first
        gap, count = value - first, np.sqrt(len(x))
        noise = np.sqrt(np.mean(np.square(np.asarray(got.standard_error)))) / count
        print(
            f"| {name} | {got.kind} | {estimator.evaluations(process)} | {value.mean():.2f} | "
            f"{value.std(ddof=1) / count:.2f} | {gap.mean():.2f} ± {gap.std(ddof=1) / count:.2f} | {noise:.2f} |",
            flush=True,
        )


def digits(short: bool) -> None:
    """The packaged prior of 8 × 8 digits."""
    prior, count = nd.load("digits"), 2 if short else 32
    images = jnp.asarray(nd.datasets.digits().test_images[:count])
    images = images + (jax.random.uniform(jax.random.key(4), images.shape) - 0.5) / 16
    chosen = {
        "KBound": nd.KBound(8, chunk=512),
        "KBound, low discrepancy": nd.KBound(16, 63, antithetic=False, low_discrepancy=True, chunk=512),
        "ContinuousBound": nd.ContinuousBound(16, 56, chunk=512),
        "ImportanceWeighted": nd.ImportanceWeighted(16),
        "PathIntegral": nd.PathIntegral(16, 56, chunk=512),
        "ProbabilityFlow": nd.ProbabilityFlow(32, 8),
    }
    if short:
        chosen = {"KBound": nd.KBound(2, 4), "ContinuousBound": nd.ContinuousBound(2, 8)}
    trained("digits, as densities", prior.process, images, chosen)


def main() -> None:
    parts = {"mixtures": mixtures, "digits": digits}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a smoke test")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    arguments = parser.parse_args()
    for name in arguments.only:
        parts[name](arguments.short)


if __name__ == "__main__":
    main()
