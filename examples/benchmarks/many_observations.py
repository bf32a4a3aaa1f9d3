"""Ten components in 256 dimensions seen by 128 observations: five problems, 256 particles, 500 steps.

The protocol of interacting particle guidance (IPG, 2026): means uniform in [−1.3, 1.3], centred; variance 1 of every
element in all; rows of the operator of length 1; noise of variance 0.1. The mean error is the distance of the mean of
256 unweighted draws from the exact posterior mean; the sliced Wasserstein distance is to as many exact draws. The row
"exact draws" has the least that can be reached.

    python examples/benchmarks/many_observations.py [--short] [--problems 5]
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion.samplers.resampling import systematic
from numpyro_diffusion.twists import Laplace, MomentMatched, PseudoInverse, Tempered

COMPONENTS, HALF_WIDTH, NOISE = 10, 1.3, 0.1
TWISTS = {
    "default": None,
    "PseudoInverse": PseudoInverse(),
    "Laplace": Laplace(),
    "iterative": MomentMatched("iterative"),
    "tempered Laplace": Tempered(Laplace(), 0.5),
}


class Problem(NamedTuple):
    """A mixture with one variance, its observation, and the posterior mixture: log evidence, weights, means, root."""

    means: np.ndarray
    variance: float
    operator: np.ndarray
    y: np.ndarray
    log_evidence: float
    weights: np.ndarray
    centres: np.ndarray
    root: np.ndarray

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Exact ones."""
        which = rng.choice(len(self.weights), count, p=self.weights)
        return self.centres[which] + rng.normal(size=(count, len(self.root))) @ self.root.T


def problem_of(seed: int, size: int) -> Problem:
    """Drawn, and solved in closed form."""
    rng, count = np.random.default_rng([seed, size]), size // 2
    means = rng.uniform(-HALF_WIDTH, HALF_WIDTH, (COMPONENTS, size))
    means -= means.mean(0)
    variance = 1 - HALF_WIDTH**2 / 3
    operator = rng.normal(size=(count, size))
    operator /= np.linalg.norm(operator, axis=1, keepdims=True)
    truth = means[rng.integers(COMPONENTS)] + np.sqrt(variance) * rng.normal(size=size)
    y = operator @ truth + np.sqrt(NOISE) * rng.normal(size=count)
    marginal = variance * operator @ operator.T + NOISE * np.eye(count)
    residual = y - means @ operator.T
    solved = np.linalg.solve(marginal, residual.T).T
    log_density = -0.5 * (np.sum(residual * solved, 1) + np.linalg.slogdet(2 * np.pi * marginal)[1])
    log_evidence = float(logsumexp(log_density) - np.log(COMPONENTS))
    weights = np.exp(log_density - logsumexp(log_density))
    gain = variance * operator.T @ np.linalg.inv(marginal)
    root = np.linalg.cholesky(variance * (np.eye(size) - gain @ operator))
    return Problem(means, variance, operator, y, log_evidence, weights, means + variance * solved @ operator, root)


def sliced(rng: np.random.Generator, one: np.ndarray, other: np.ndarray, directions: int = 500) -> float:
    """Mean Wasserstein-1 distance of as many draws along random directions."""
    along = rng.normal(size=(one.shape[1], directions))
    along /= np.linalg.norm(along, axis=0)
    return float(np.mean(np.abs(np.sort(one @ along, 0) - np.sort(other @ along, 0))))


def row(name: str, problems: list[Problem], particles: int, steps: int) -> str:
    """Means over the problems."""
    found, sampler = [], None if name == "exact draws" else nd.samplers.TwistedSMC(particles, TWISTS[name])
    start = time.process_time()
    for number, problem in enumerate(problems):
        rng = np.random.default_rng([number, 7])
        gap, least, x = np.nan, np.nan, problem.draws(rng, particles)
        if sampler is not None:
            x, gap, least = _sampled(sampler, number, problem, steps)
        error = np.linalg.norm(x.mean(0) - problem.weights @ problem.centres)
        found.append((error, sliced(rng, x, problem.draws(rng, particles)), gap, abs(gap), least))
    mean = np.mean(found, axis=0)
    return (
        f"{name} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:+.2f} | {mean[3]:.2f} | {mean[4]:.0f} | "
        f"{(time.process_time() - start) / len(problems):.0f}"
    )


def _sampled(sampler: Any, number: int, problem: Problem, steps: int) -> tuple[np.ndarray, float, float]:
    """Equally weighted draws, the error of the log evidence, and the least effective number of particles."""
    size = problem.means.shape[1]
    scales, weights = np.full(COMPONENTS, np.sqrt(problem.variance)), np.full(COMPONENTS, 1 / COMPONENTS)
    denoiser = nd.denoisers.GaussianMixture(problem.means, scales, weights)
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(steps)), denoiser, size)
    factor = nd.factors.LinearGaussian(problem.y, problem.operator, np.sqrt(NOISE))
    first, second = jax.random.split(jax.random.key(number))
    particles = sampler.run(first, process, factor)
    chosen = systematic(second, particles.log_weight)
    gap = float(particles.log_evidence) - problem.log_evidence
    return np.asarray(particles.x)[np.asarray(chosen)], gap, float(particles.effective_size.min())


def main() -> None:
    """Print a row for every twist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one problem of 32 dimensions, few particles")
    parser.add_argument("--problems", type=int, default=5, help="how many problems")
    options = parser.parse_args()
    size, count, particles, steps = (32, 1, 32, 20) if options.short else (256, options.problems, 256, 500)
    problems = [problem_of(seed, size) for seed in range(count)]
    print("draws | mean error | sliced W | log Z − exact | its size | least ESS | CPU s\n---|---|---|---|---|---|---")
    for name in ("exact draws", "default") if options.short else ("exact draws", *TWISTS):
        print(row(name, problems, particles, steps), flush=True)


if __name__ == "__main__":
    main()
