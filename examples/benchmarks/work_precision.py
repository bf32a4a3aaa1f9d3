"""Work against precision of the samplers of the reverse process: SDE at four noise levels, DDIM, the ancestral chain.

    python examples/benchmarks/work_precision.py [--only mixture digits] [--output figures] [--short]

For each sampler and each budget of network calls per draw: the sliced Wasserstein distance (100 directions) of its
draws from the data's law, with its standard error over the repetitions. `mixture`: eight Gaussians of unequal weight on
a ring, the exact denoiser, three times 20,000 draws against as many exact ones. `digits`: the packaged prior, four
times 898 draws against one half of the 1,797 digits, halved anew each time. The floor is that of exact draws, or of the
other half.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from tqdm.auto import tqdm

import numpyro_diffusion as nd
from numpyro_diffusion.samplers import DDIM, SDE, Ancestral

BUDGETS = (5, 10, 20, 40, 80, 160)
NOISES = (0.0, 0.5, 1.0, 1.5)
METHODS = ("euler", "heun", "exponential", "multistep")
DIRECTIONS = 100


class Problem(NamedTuple):
    """A process, and what its draws are compared with, repeatedly: a reference, and its distance to its like."""

    process: nd.ReverseProcess
    references: list["Reference"]
    floors: list[float]


class Reference:
    """Draws of the data's law, ready for the sliced Wasserstein distance of as many others to them."""

    def __init__(self, seed: int, draws: np.ndarray) -> None:
        self.count, draws = len(draws), draws.reshape(len(draws), -1)
        directions = np.random.default_rng(seed).standard_normal((DIRECTIONS, draws.shape[1]))
        self.directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
        self.sorted = self._sorted(draws)

    def distance(self, draws: np.ndarray) -> float:
        """Mean over random directions of the one-dimensional Wasserstein distance."""
        return float(np.abs(self._sorted(draws) - self.sorted).mean()) if np.isfinite(draws).all() else np.inf

    def _sorted(self, draws: np.ndarray) -> np.ndarray:
        return np.sort(self.directions @ draws.reshape(len(draws), -1).T.astype(np.float32), axis=1)


def problem(process: nd.ReverseProcess, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Problem:
    """From pairs of arrays of draws of the data's law."""
    references = [Reference(seed, one) for seed, (one, _) in enumerate(pairs)]
    return Problem(process, references, [of.distance(two) for of, (_, two) in zip(references, pairs, strict=True)])


def mixture(short: bool) -> Problem:
    """Eight Gaussians on a ring of radius 2."""
    angle = 2 * np.pi * np.arange(8) / 8
    locs = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    denoiser = nd.denoisers.GaussianMixture(locs, np.linspace(0.1, 0.3, 8), np.arange(1, 9) / 36)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(200, -12, 8), 0.0, 1.5)
    count, repeats = (500, 2) if short else (20_000, 3)
    draw = jax.jit(lambda key: denoiser.data().sample(key, (2, count)))
    pairs = [tuple(np.asarray(draw(key))) for key in jax.random.split(jax.random.key(0), repeats)]
    return problem(nd.ReverseProcess(diffusion, denoiser, (2,)), pairs)


def digits(short: bool) -> Problem:
    """The packaged prior and both halves of all digits, with the uniform noise that it was trained with."""
    data = nd.datasets.digits()
    images = np.concatenate([data.train_images, data.test_images])
    pairs, half = [], 100 if short else 898
    for seed in range(2 if short else 4):
        rng = np.random.default_rng(seed)
        noisy = rng.permutation(images) + (rng.uniform(size=images.shape) - 0.5) / 16
        pairs.append((noisy[:half], noisy[-half:]))
    return problem(nd.load("digits").process, pairs)


def samplers(calls: int, last: int, short: bool) -> dict[tuple[str, str], Any]:
    """Every sampler that spends so many calls on a draw, the last step's one included, by name and noise level."""
    chosen: dict[tuple[str, str], Any] = {}
    for method in METHODS[3:] if short else METHODS:
        steps = (calls - 1) // 2 + 1 if method == "heun" else calls
        for noise in NOISES[:1] if short else NOISES:
            chosen[f"SDE, {method}", f"{noise:g}"] = SDE(noise, steps, method)
    if calls <= last:
        chosen["DDIM", "η = 0"] = DDIM(calls, 0.0)
        if not short:
            chosen["DDIM", "η = 0.5"] = DDIM(calls, 0.5)
            chosen["DDIM", "η = 1"] = DDIM(calls, 1.0)
        chosen["Ancestral", ""] = Ancestral(calls)
    return chosen


def measured(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def run(problem: Problem, name: str, budgets: tuple[int, ...], short: bool) -> dict[Any, Any]:
    """Distance and standard error by (sampler, noise level) and budget; the floor under the key "floor"."""
    process = problem.process
    results: dict[Any, Any] = {"floor": measured(problem.floors)}
    for calls in budgets:
        for label, sampler in tqdm(samplers(calls, process.num_steps, short).items(), desc=f"{name}, {calls} calls"):
            draw = jax.jit(jax.vmap(functools.partial(_sample, sampler, process)))
            keys = [jax.random.split(jax.random.key(i), of.count) for i, of in enumerate(problem.references, 1)]
            values = [of.distance(np.asarray(draw(key))) for of, key in zip(problem.references, keys, strict=True)]
            results.setdefault(label, {})[calls] = measured(values)
    return results


def _sample(sampler: Any, process: nd.ReverseProcess, key: Array) -> Array:
    return sampler.sample(key, process)


def table(name: str, results: dict[Any, Any], budgets: tuple[int, ...]) -> str:
    """Markdown: a line for each sampler, a column for each budget."""
    floor, error = results["floor"]
    lines = [f"{name}: floor {floor:.4f} ± {error:.4f}", ""]
    lines += ["| sampler | λ | " + " | ".join(f"{calls} calls" for calls in budgets) + " |"]
    lines += ["|---" * (len(budgets) + 2) + "|"]
    for label, row in results.items():
        if label != "floor":
            cells = [f"{row[c][0]:.4f} ± {row[c][1]:.4f}" if c in row else "" for c in budgets]
            lines.append("| " + " | ".join([*label, *cells]) + " |")
    return "\n".join(lines) + "\n"


def picture(all_results: dict[str, dict[Any, Any]], budgets: tuple[int, ...], path: Path) -> None:
    """One row for each problem, one panel for each noise level, DDIM (η = 0) and the ancestral chain in all."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    shape = len(all_results), len(NOISES)
    figure, axes = plt.subplots(*shape, figsize=(11, 2.9 * shape[0]), sharey="row", squeeze=False, layout="constrained")
    colours = dict(zip(METHODS, ("#d9762b", "#2b6ca3", "#8fb36b", "#7b4fa3"), strict=True))
    for row, (name, results) in zip(axes, all_results.items(), strict=True):
        floor = results["floor"][0]
        for ax, noise in zip(row, NOISES, strict=True):
            lines = [(f"SDE, {m}", f"{noise:g}", colours[m], "o-") for m in METHODS]
            lines += [("DDIM", "η = 0", "0.2", ":"), ("Ancestral", "", "0.2", "--")]
            for sampler, level, colour, style in lines:
                found = results.get((sampler, level), {})
                points = [(calls, found[calls][0]) for calls in budgets if calls in found]
                if points:
                    label = f"{sampler}, {level}" if sampler == "DDIM" else sampler
                    ax.plot(*zip(*points, strict=True), style, color=colour, markersize=3, linewidth=1.3, label=label)
            ax.axhline(floor, color="0.6", linewidth=6, alpha=0.35, label="floor")
            ax.set(xscale="log", yscale="log", title=f"{name}, λ = {noise:g}", xlabel="network calls per draw")
            ax.set(ylim=(0.7 * floor, 60 * floor), xticks=budgets, xticklabels=budgets)
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("sliced Wasserstein distance")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    path.mkdir(parents=True, exist_ok=True)
    figure.savefig(path / "work_precision.png", dpi=80)


def main() -> None:
    """Measure, print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems = {"mixture": mixture, "digits": digits}
    parser.add_argument("--only", nargs="*", choices=list(problems), default=list(problems))
    parser.add_argument("--output", type=Path, help="folder for the picture; none unless given")
    parser.add_argument("--short", action="store_true", help="a few samplers, two budgets, few draws")
    options = parser.parse_args()
    budgets, found = (5, 21) if options.short else BUDGETS, {}
    for name in options.only:
        start = time.perf_counter()
        found[name] = run(problems[name](options.short), name, budgets, options.short)
        print(table(name, found[name], budgets) + f"\n{time.perf_counter() - start:.0f} s\n", flush=True)
    if options.output is not None:
        picture(found, budgets, options.output)
    if options.short and "mixture" in found:
        floor, flow = found["mixture"]["floor"][0], found["mixture"]["SDE, multistep", "0"]
        assert flow[21][0] < flow[5][0] + floor, "more calls should not be worse"


if __name__ == "__main__":
    main()
