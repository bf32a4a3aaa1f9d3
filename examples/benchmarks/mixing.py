"""How well particle Gibbs mixes, with its defaults, on the problems of `nonlinear.py`.

Four chains of 250 sweeps each (16 particles; 50 sweeps of warm-up): the effective number of their 1,000 draws, of the
element that has the fewest and of the middle one, R-hat, and the largest difference of a mean from that of
`nd.infer.SMC`, in posterior standard deviations. CPU seconds have compilation in them.

    python examples/benchmarks/mixing.py [--short] [--only NAME …] [--cache FOLDER] [--particles 16]
"""

import argparse
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from _problems import Cache, Problem
from nonlinear import chosen
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC

import numpyro_diffusion as nd

COLUMNS = ("problem", "d", "least effective of 1,000", "median", "R-hat", "mean beside SMC's", "CPU s")
CHAINS, SWEEPS, WARMUP = 4, 250, 50
ENOUGH = 50  # effective draws of 1,000


def run(problem: Problem, prior: nd.DiffusionPrior, particles: int, short: bool) -> tuple[str, float]:
    """One line of the table, and the least effective number."""
    sweeps, warmup = (10, 2) if short else (SWEEPS, WARMUP)
    kernel = nd.infer.ParticleGibbs(problem.model, num_particles=particles)
    mcmc = MCMC(
        kernel, num_warmup=warmup, num_samples=sweeps, num_chains=CHAINS, chain_method="vectorized", progress_bar=False
    )
    begun = time.process_time()
    mcmc.run(jax.random.key(1), prior, *problem.args)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64).reshape(CHAINS, sweeps, -1)
    seconds = time.process_time() - begun
    settings = {"num_particles": 64, "num_islands": 2} if short else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nd.ReliabilityWarning)
        smc = nd.infer.SMC(problem.model, **settings).run(jax.random.key(2), prior, *problem.args)
    other = np.asarray(smc.get_samples()["x"], np.float64).reshape(-1, x.shape[-1])
    free = other.std(0) > 0
    size, r_hat = effective_sample_size(x)[free], split_gelman_rubin(x)[free]
    apart = np.abs(x.mean((0, 1)) - other.mean(0))[free] / other.std(0)[free]
    cells = (
        problem.name, x.shape[-1], f"{size.min():.0f}", f"{np.median(size):.0f}", f"{r_hat.max():.3f}",
        f"{apart.max():.2f}", f"{seconds:.1f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |", float(size.min())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few sweeps of one problem")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="problems whose names contain one of these")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where learned priors are kept")
    parser.add_argument("--particles", type=int, default=16, help="of each sweep")
    options = parser.parse_args()
    cache = Cache(options.cache)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    found = {}
    for problem in chosen(["count of 40"] if options.short else options.only, False):
        line, found[problem.name] = run(problem, cache.prior(problem.source), options.particles, options.short)
        print(line, flush=True)
        if not options.short:
            jax.clear_caches()  # each problem has programs of its own, of which one process can hold so many
    few = [name for name, size in found.items() if size < ENOUGH]
    print(f"\n{len(found)} problems; fewer than {ENOUGH} effective draws: {', '.join(few) or 'none'}")


if __name__ == "__main__":
    main()
