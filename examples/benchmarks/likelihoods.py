"""All likelihood estimators side by side: against exact log p of mixtures, and on the trained digits prior.

    python examples/benchmarks/likelihoods.py [--short] [--only mixtures digits roll posterior]

Mixtures of four Gaussians in d = 2, 16, 64 dimensions with their exact denoisers, T = 200. Every estimator is given
about the same number of network evaluations for one point. Printed, over points and seeds, in nats per dimension: the
bias (mean error), the sd over seeds at one point (root mean square over points), the sd of the gradient likewise (per
element), the z-scores' sd, and the milliseconds of a value. "one time" is the evidence bound at independent random
times with independent noise, as used elsewhere.
"""

import argparse
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

T = 200
LEVEL = 1 / 8  # of the digits as the packaged prior has them: pixels 0 … 16 on [−1, 1]


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
def run(estimator: Any, process: nd.ReverseProcess, x: Array, keys: Array, gradients: bool) -> Any:
    """Value, standard error and gradient for each point and key."""

    def value(x: Array, key: Array) -> Any:
        estimate = estimator.estimate(key, process, x)
        return estimate.value, estimate.standard_error

    def one(x: Array, key: Array) -> Any:
        if gradients:
            (answer, error), gradient = jax.value_and_grad(value, has_aux=True)(x, key)
            return answer, error, gradient
        return *value(x, key), x

    return jax.lax.map(lambda x: jax.lax.map(lambda key: one(x, key), keys), x)


def mixtures(short: bool) -> None:
    """The table against exact log p."""
    print("| d | estimator | evaluations | bias | ± | sd | sd, gradient | z | ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in (2,) if short else (2, 16, 64):
        for budget in (128,) if short else (1024, 16384):
            process = mixture(size)
            data = process.denoiser.data()
            points, seeds = (2, 4) if short else (16, 32 if budget < 5000 else 8)
            x = data.sample(jax.random.key(1), (points,))
            exact, keys = np.asarray(data.log_prob(x), np.float64), jax.random.split(jax.random.key(2), seeds)
            chosen = estimators(size, budget)
            for name in ("KBound, low discrepancy", "ProbabilityFlow") if short else chosen:
                row(name, chosen[name], process, x, exact, keys, budget < 5000)


def row(name: str, estimator: Any, process: Any, x: Array, exact: np.ndarray, keys: Array, gradients: bool) -> None:
    """One estimator at all points."""
    size = x.shape[1]
    value, error, gradient = map(np.asarray, run(estimator, process, x, keys, gradients))
    wrong = (value - exact[:, None]) / size
    spread = np.sqrt(np.mean(wrong.var(1, ddof=1)))
    score = ((value - value.mean(1, keepdims=True)) / np.where(error > 0, error, np.nan)).std()
    slope = f"{np.sqrt(np.mean(gradient.var(1, ddof=1))):.2g}" if gradients else ""
    once = eqx.filter_jit(lambda x, key: estimator.estimate(key, process, x).value)
    jax.block_until_ready(once(x[0], keys[0]))
    start = time.perf_counter()
    jax.block_until_ready([once(x[0], key) for key in keys[:4]])
    spent = (time.perf_counter() - start) / 4 * 1e3
    accuracy = wrong.mean(1).std(ddof=1) / np.sqrt(len(x))
    print(
        f"| {size} | {name} | {estimator.evaluations(process)} | {wrong.mean():.2g} | {accuracy:.1g} | {spread:.2g} | "
        f"{slope} | {score:.2f} | {spent:.1f} |",
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
    prior, count = nd.load("digits"), 4 if short else 64
    images = jnp.asarray(nd.datasets.digits().test_images[:count])
    noise = jax.random.uniform(jax.random.key(4), images.shape, minval=-0.5, maxval=0.5)
    low, high = float(images.min()), float(images.max())
    print(f"pixels from {low:g} to {high:g}, diffusion scale {np.mean(prior.process.diffusion.scale):.3g}")
    chosen = {
        "KBound": nd.KBound(8, chunk=512),
        "KBound, low discrepancy": nd.KBound(16, 63, antithetic=False, low_discrepancy=True, chunk=512),
        "ContinuousBound": nd.ContinuousBound(16, 56, chunk=512),
        "ImportanceWeighted": nd.ImportanceWeighted(16),
        "ImportanceWeighted, twisted": nd.ImportanceWeighted(16, "twisted"),
        "PathIntegral": nd.PathIntegral(16, 56, chunk=512),
        "ProbabilityFlow": nd.ProbabilityFlow(32, 8),
        "ProbabilityFlow, 64 steps": nd.ProbabilityFlow(64, 8),
    }
    if short:
        chosen = {"KBound": nd.KBound(2, 4), "ContinuousBound": nd.ContinuousBound(2, 8)}
    trained("digits, as densities", prior.process, images + noise * grey(images), chosen)


def grey(images: Array) -> float:
    """The distance between two grey levels."""
    return float(np.diff(np.unique(np.asarray(images))).min())


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
