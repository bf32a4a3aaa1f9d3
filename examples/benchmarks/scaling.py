"""How the cost of SMC grows: with particles, dimensions, observations, and elements of a plate.

python examples/benchmarks/scaling.py [--short] [--only particles dimensions observations plate] [-o DIR]

Seconds of CPU time of a compiled run, the least of two, and the slope of log time over the upper half of the sizes.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

STEPS = 10
Model = Callable[..., None]


def normal_prior(size: int) -> nd.DiffusionPrior:
    """N(0, 1) in every element."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(STEPS))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (size,)))


def mixture_prior() -> nd.DiffusionPrior:
    """Two components in sixteen dimensions."""
    locs = jnp.stack([-jnp.ones(16), jnp.ones(16)])
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(STEPS))
    return nd.DiffusionPrior(
        nd.ReverseProcess(diffusion, nd.denoisers.GaussianMixture(locs, [0.5, 0.5], [0.5, 0.5]), (16,))
    )


def particles(count: int) -> tuple[Model, tuple[Any, ...], int]:
    """A Student t observation of every element, so many particles."""
    prior = mixture_prior()

    def model(y: Any) -> None:
        numpyro.sample("y", dist.StudentT(3.0, numpyro.sample("x", prior), 0.5).to_event(1), obs=y)

    return model, (jnp.linspace(0, 1, 16),), count


def dimensions(size: int) -> tuple[Model, tuple[Any, ...], int]:
    """A normal observation of each of so many elements."""
    prior = normal_prior(size)

    def model(y: Any) -> None:
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 0.5).to_event(1), obs=y)

    return model, (jnp.linspace(0, 1, size),), 16


def observations(rows: int) -> tuple[Model, tuple[Any, ...], int]:
    """A logistic regression on sixteen coefficients with so many rows."""
    rng = np.random.default_rng(0)
    prior, design = mixture_prior(), jnp.asarray(rng.normal(size=(rows, 16)) / 4, float)

    def model(design: Any, y: Any) -> None:
        numpyro.sample("y", dist.Bernoulli(logits=design @ numpyro.sample("x", prior)).to_event(1), obs=y)

    return model, (design, jnp.asarray(rng.integers(0, 2, rows))), 64


def plate(count: int) -> tuple[Model, tuple[Any, ...], int]:
    """So many draws of the prior, each with an observation of its own."""
    prior = mixture_prior()

    def model(y: Any) -> None:
        with numpyro.plate("object", len(y)):
            numpyro.sample("y", dist.StudentT(3.0, numpyro.sample("x", prior), 0.5).to_event(1), obs=y)

    return model, (jnp.linspace(0, 1, 16 * count).reshape(count, 16),), 32


SIZES: dict[str, tuple[Callable[[int], tuple[Model, tuple[Any, ...], int]], tuple[int, ...]]] = {
    "particles": (particles, (100, 1_000, 10_000, 100_000)),
    "dimensions": (dimensions, (10, 100, 1_000, 10_000, 100_000, 1_000_000)),
    "observations": (observations, (1, 10, 100, 1_000, 10_000)),
    "plate": (plate, (1, 10, 100, 1_000)),
}


def seconds(model: Model, args: tuple[Any, ...], count: int) -> tuple[float, float]:
    """CPU time of a compiled run, and of the first one."""
    smc = nd.infer.SMC(model, num_particles=count, num_islands=1, twist=nd.twists.Laplace(), progress_bar=False)
    times = []
    for number in range(3):
        begun = time.process_time()
        smc.run(jax.random.key(number), *args)
        times.append(time.process_time() - begun)
    return min(times[1:]), times[0]


def slope(sizes: tuple[int, ...], times: list[float]) -> float:
    """Of log time against log size, over the upper half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0]) if len(sizes) - half > 1 else np.nan


def plot(found: dict[str, tuple[tuple[int, ...], list[float]]], folder: Path) -> None:
    """A picture of all rows."""
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3), sharey=True, squeeze=False)
    for ax, (name, (sizes, times)) in zip(axes[0], found.items(), strict=True):
        ax.loglog(sizes, times, "o-")
        ax.loglog(sizes, times[-1] * np.array(sizes) / sizes[-1], ":", color="0.5", label="slope 1")
        ax.set(xlabel=name, title=f"slope {slope(sizes, times):.2f}")
    axes[0, 0].set_ylabel("CPU seconds of a run")
    axes[0, 0].legend()
    figure.savefig(folder / "scaling.png", dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the smallest size of the first two")
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("-o", "--output", type=Path, help="a folder for the picture")
    options = parser.parse_args()
    warnings.simplefilter("ignore", nd.ReliabilityWarning)  # few particles in many dimensions: the time is what counts
    found = {}
    print("| what | size | CPU seconds of a run | of the first, with compiling |\n|---|---|---|---|")
    for name in options.only[:2] if options.short else options.only:
        make, sizes = SIZES[name]
        sizes = sizes[:1] if options.short else sizes
        times = []
        for size in sizes:
            taken, first = seconds(*make(size))
            times.append(taken)
            print(f"| {name} | {size:,} | {taken:.4f} | {first:.1f} |", flush=True)
        found[name] = sizes, times
        print(f"| {name} | slope | {slope(sizes, times):.2f} | |", flush=True)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        plot(found, options.output)


if __name__ == "__main__":
    main()
