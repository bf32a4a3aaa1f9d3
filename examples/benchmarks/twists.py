"""Twists for Gaussian observations of many elements: how far apart are the log evidences of independent runs?

Observations of digits by the packaged prior, of an exact normal and an exact mixture in 64 dimensions, and of the
mixture in 256, where data are drawn from the prior. The sampler's own choice is marked by a star. The spread of the
islands' log evidences is that of a twist's error; a mean that is too low shows an island's misses.

    python examples/benchmarks/twists.py [--short] [--only NAME ...] [--islands 8] [--seed 0]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

import numpyro_diffusion as nd
from numpyro_diffusion.twists import Laplace, MixtureMatched, MomentMatched, PseudoInverse, Tempered, default_twist

TWISTS = {
    "PseudoInverse": PseudoInverse(),
    "Tempered(PseudoInverse, 1)": Tempered(PseudoInverse(), 1.0),
    "Laplace": Laplace(),
    "Tempered(Laplace, 0.5)": Tempered(Laplace(), 0.5),
    "MomentMatched, iterative": MomentMatched("iterative"),
    "MixtureMatched": MixtureMatched(),
}
LEARNED, NORMAL = tuple(TWISTS)[:4], tuple(TWISTS)[:5]  # a learned Jacobian is no covariance; one normal law no mixture


class Problem(NamedTuple):
    """What is observed of a prior, with normal noise."""

    prior: nd.DiffusionPrior
    look: Callable[[Array], Array]
    noise: float
    truth: np.ndarray
    twists: tuple[str, ...] = tuple(TWISTS)


def of_digits() -> dict[str, Problem]:
    """Digits that the packaged prior has never seen."""
    prior, images = nd.load("digits"), np.asarray(nd.datasets.digits().test_images)
    looks: dict[str, tuple[Callable[[Array], Array], float]] = {
        "digits, upper half": (lambda x: x[:4], 0.2),
        "digits, every second column": (lambda x: x[:, ::2], 0.1),
        "digits, all under noise": (lambda x: x, 0.5),
        "digits, the centre": (lambda x: x[2:6, 1:6], 0.3),
    }
    return {name: Problem(prior, *look, images[60 + k], LEARNED) for k, (name, look) in enumerate(looks.items())}


def of_laws(rng: np.random.Generator) -> dict[str, Problem]:
    """Exact denoisers, and random looks, the first half of the elements, or all of them."""
    law = lambda denoiser, size: nd.DiffusionPrior(
        nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(50)), denoiser, size)
    )
    scales = np.linspace(0.3, 1.5, 64)
    found = {"normal": (law(nd.denoisers.Gaussian(np.zeros(64), scales), 64), scales * rng.normal(size=64))}
    for size in (64, 256):
        locs = rng.normal(size=(5, size))
        mixture = nd.denoisers.GaussianMixture(locs, np.full(5, 0.5), np.full(5, 0.2))
        found[f"mixture, d = {size}"] = (law(mixture, size), locs[1] + 0.5 * rng.normal(size=size))
    problems = {}
    for name, (prior, truth) in found.items():
        size = len(truth)
        rows = jnp.asarray(rng.normal(size=(size // 2, size)) / np.sqrt(size), jnp.float32)
        twists = NORMAL if name == "normal" else tuple(TWISTS)
        problems[f"{name}, {size // 2} looks"] = Problem(prior, lambda x, rows=rows: rows @ x, 0.2, truth, twists)
        problems[f"{name}, first half"] = Problem(prior, lambda x, size=size: x[: size // 2], 0.5, truth, twists)
    problems["mixture, d = 64, all under noise"] = Problem(
        *found["mixture, d = 64"][:1], lambda x: x, 1.0, found["mixture, d = 64"][1]
    )
    return problems


def model_of(problem: Problem, rng: np.random.Generator) -> Callable[[], None]:
    """The model, with data that are drawn once."""
    clean = np.asarray(problem.look(jnp.asarray(problem.truth, jnp.float32)))
    y = jnp.asarray(clean + problem.noise * rng.normal(size=clean.shape), jnp.float32)

    def model() -> None:
        seen = problem.look(numpyro.sample("x", problem.prior))
        numpyro.sample("y", dist.Normal(seen, problem.noise).to_event(y.ndim), obs=y)

    return model


def row(model: Callable[[], None], key: Array, options: dict[str, Any]) -> str:
    """Log evidence, its spread, effective particles, islands' means, and processor time with compiling."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers of poor twists are what is asked for
        smc = nd.infer.SMC(model, **options).run(key)
    spread = float(np.std(np.asarray(smc.log_evidences), ddof=1))
    found = smc.reliability
    return (
        f"{smc.log_evidence:.2f} | {spread:.2f} | {found.least_size:.0f} | {found.mean_gap:.2f} | "
        f"{time.process_time() - start:.0f}"
    )


def main() -> None:
    """Print a row for every problem and twist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one problem, few particles")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="problems whose names contain one of these")
    parser.add_argument("--islands", type=int, default=8, help="independent runs")
    parser.add_argument("--seed", type=int, default=0, help="of looks, data and keys")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    problems = of_laws(rng) if options.short else {**of_digits(), **of_laws(rng)}
    only = ["normal, first"] if options.short else options.only
    chosen = {name: each for name, each in problems.items() if not only or any(part in name for part in only)}
    size = {"num_particles": 16 if options.short else 512, "num_islands": 2 if options.short else options.islands}
    print("problem | twist | log Z | sd of islands | least ESS | means apart | CPU s\n---|---|---|---|---|---|---")
    for number, (name, problem) in enumerate(chosen.items()):
        model, key = model_of(problem, rng), jax.random.key(1_000 * options.seed + number)
        own = default_twist(problem.prior.process, nd.infer.extract_factor(model, "x"))
        for kind in problem.twists:
            star = " *" if TWISTS[kind] == own else ""
            print(f"{name} | {kind}{star} | {row(model, key, {**size, 'twist': TWISTS[kind]})}", flush=True)


if __name__ == "__main__":
    main()
