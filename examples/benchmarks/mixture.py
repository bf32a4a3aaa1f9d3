"""The Gaussian-mixture benchmark of posterior samplers (Cardoso et al. 2024, MCGdiff), with its exact posterior.

A mixture of 25 Gaussians in d_x dimensions is the prior, its exact denoiser the model; y = A x + σ e has d_y
dimensions. Each problem has its own weights, A, σ and y. Reported for every cell, over its problems: the sliced
Wasserstein distance (500 directions, 2,000 against 2,000 points) of the exact posterior from itself (the floor) and of
each sampler from it, with 1.96 standard errors; the samplers' ratios to the floor; and the root mean square error of
the log evidence.

    python examples/benchmarks/mixture.py [--short] [--results mixture.json]

The cells outlier,0 outlier,5 and outlier,10 (not among the nine that run unless asked for) are after Corenflos et al.
2025: d_x = 256, ten components of covariance I + v vᵀ, one observation, at the mean observation plus that offset.

With `--tempered POWER`, `--placed` and `--antithetic`, alone or together, only `TwistedSMC` is run: its twist tempered
(`nd.twists.Tempered`), the chain's steps placed by the prior (`nd.diagnostics.place_steps`), its particles in order and
neighbours stepping with opposite noise. Use another results file for each, and for each `--run`.
An interrupted run goes on from its results file. `--cells 80,2 --repeat 12 --problem 6` runs one problem twelve times
instead, and prints how far the log evidence and the distance scatter. `--run 1` gives other keys.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm.auto import tqdm

import numpyro_diffusion as nd

PARTICLES, STEPS, SLICES = 2000, 100, 500
DRAWS = 100  # of the prior, to place the steps
CHUNK = 100  # particles at a time: 25 components × 800 dimensions of all of them would not fit a cache
CELLS = [f"{dx},{dy}" for dx in (8, 80, 800) for dy in (1, 2, 4)]


class Problem(NamedTuple):
    """One inverse problem; `posterior_means`, `posterior_weights` and `covariance` are its exact posterior."""

    means: np.ndarray
    deviations: np.ndarray
    weights: np.ndarray
    operator: np.ndarray
    observation: np.ndarray
    scale: float
    log_evidence: float
    posterior_means: np.ndarray
    posterior_weights: np.ndarray
    covariance: np.ndarray

    def exact(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws from the exact posterior."""
        component = rng.choice(len(self.weights), size=count, p=self.posterior_weights)
        root = np.linalg.cholesky(self.covariance + 1e-9 * np.eye(len(self.covariance)))
        return self.posterior_means[component] + rng.standard_normal((count, len(root))) @ root.T


def solved(means: np.ndarray, deviations: np.ndarray, weights: np.ndarray, operator: np.ndarray,
           observation: np.ndarray, scale: float) -> Problem:  # fmt: skip
    """The problem with its exact posterior; all components have the same standard deviations."""
    prior = np.diag(deviations**2)
    covariance = operator @ prior @ operator.T + scale**2 * np.eye(len(operator))
    residual = observation - means @ operator.T
    whitened = np.linalg.solve(covariance, residual.T).T
    log_share = np.log(weights) - 0.5 * ((residual * whitened).sum(1) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    log_evidence = np.logaddexp.reduce(log_share)
    gain = np.linalg.solve(covariance, operator @ prior).T
    return Problem(
        means, deviations, weights, operator, observation, scale, float(log_evidence), means + residual @ gain.T,
        np.exp(log_share - log_evidence), prior - gain @ operator @ prior,
    )  # fmt: skip


def problem(seed: int, cell: str) -> Problem:
    """Draw a problem as the papers' codes do."""
    kind, number = cell.split(",")
    return outlier(seed, float(number)) if kind == "outlier" else grid(seed, int(kind), int(number))


def grid(seed: int, dx: int, dy: int) -> Problem:
    """25 modes on a grid, of unit covariance."""
    rng = np.random.default_rng([seed, dx, dy])
    pairs = [(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)]
    means = np.array([np.tile(pair, dx // 2) for pair in pairs])
    weights = rng.standard_normal(25) ** 2
    weights /= weights.sum()
    left, _, right = np.linalg.svd(rng.standard_normal((dy, dx)), full_matrices=False)
    singular = np.sort(rng.uniform(size=dy))[::-1]
    operator = left * singular @ right
    scale = rng.uniform() * singular.max()
    truth = means[rng.choice(25, p=weights)] + rng.standard_normal(dx)
    observation = operator @ truth + scale * rng.standard_normal(dy)
    return solved(means, np.ones(dx), weights, operator, observation, scale)


def outlier(seed: int, offset: float) -> Problem:
    """Ten modes, one observation off by `offset`; turned so that I + v vᵀ is diagonal, which changes no distance."""
    rng = np.random.default_rng([seed, 256])
    v = rng.uniform(size=256)
    deviations = np.sqrt(1 + np.append(v @ v, np.zeros(255)))
    direction = v / np.linalg.norm(v) - np.eye(256)[0]
    turn = np.eye(256) - 2 * np.outer(direction, direction) / (direction @ direction)
    means = rng.uniform(-8, 8, size=(10, 256)) @ turn
    weights = rng.standard_normal(10) ** 2
    weights /= weights.sum()
    row = rng.standard_normal((1, 256)) @ turn
    singular = rng.uniform() + 1e-3
    operator = singular * row / np.linalg.norm(row)
    scale = float(np.hypot(rng.uniform(), singular))
    return solved(means, deviations, weights, operator, operator @ (weights @ means) + offset, scale)


def ends_of(means: np.ndarray) -> tuple[float, float]:
    """Log-SNR at T and at t = 1: all modes lost in noise 9 times as strong, then 8 standard deviations of it apart.

    There x_0 given x_t is one Gaussian, for which the step to the data is exact: every step is spent where it matters.
    """
    apart = np.linalg.norm(means[:, None] - means, axis=-1)
    closest = apart[np.triu_indices(len(means), 1)].min()
    return -2 * float(np.log(9 * np.linalg.norm(means, axis=1).max())), -2 * float(np.log(closest / 8))


def process_of(means: Array, deviations: Array, weights: Array, ends: tuple[float, float]) -> nd.ReverseProcess:
    """The exact denoiser of the mixture in a chain of `STEPS` steps, even in log-SNR."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(STEPS, *ends))
    scales = jnp.broadcast_to(deviations, means.shape)
    return nd.ReverseProcess(diffusion, nd.denoisers.GaussianMixture(means, scales, weights), means.shape[1:])


def placed(key: Array, process: nd.ReverseProcess) -> nd.ReverseProcess:
    """The same chain, its steps placed by the prior alone."""
    denoiser: Any = process.denoiser
    draws = denoiser.data().sample(key, (DRAWS,))
    schedule = nd.diagnostics.place_steps(key, process, draws, chunk=DRAWS)
    return nd.ReverseProcess(nd.GaussianDiffusion(schedule), denoiser, process.event_shape)


def corrected(twist: Any, ends: tuple[float, float], count: int, place: bool = False, antithetic: bool = False) -> Any:
    """TwistedSMC's equally weighted draws and log evidence; `place`: on a chain with its steps placed."""

    @jax.jit
    def run(key: Array, mixture: Any, operator: Array, observation: Array, scale: Array) -> Any:
        factor = nd.factors.LinearGaussian(observation, operator, scale)
        sampler = nd.samplers.TwistedSMC(count, twist, chunk=CHUNK, antithetic=antithetic)
        process = process_of(*mixture, ends)
        process = placed(jax.random.fold_in(key, 2), process) if place else process
        particles = sampler.run(key, process, factor)
        picked = nd.samplers.systematic(jax.random.fold_in(key, 1), particles.log_weight)
        return particles.x[picked], particles.log_evidence, jax.tree.map(lambda leaf: leaf[None], particles)

    return run


def uncorrected(sampler: Any, ends: tuple[float, float], count: int) -> Any:
    """Independent draws of a sampler that has no weights."""

    @jax.jit
    def run(key: Array, mixture: Any, operator: Array, observation: Array, scale: Array) -> Any:
        factor = nd.factors.LinearGaussian(observation, operator, scale)
        process = process_of(*mixture, ends)
        draw = lambda key: sampler.sample(key, process, factor)
        return jax.lax.map(draw, jax.random.split(key, count), batch_size=CHUNK), jnp.nan, None

    return run


def sliced_wasserstein(rng: np.random.Generator, one: np.ndarray, two: np.ndarray, slices: int = SLICES) -> float:
    """Mean over random directions of the one-dimensional Wasserstein distance."""
    directions = rng.standard_normal((slices, one.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sorted_one, sorted_two = (np.sort(points @ directions.T, axis=0) for points in (one, two))
    return float(np.abs(sorted_one - sorted_two).mean())


def samplers(
    ends: tuple[float, float], count: int, others: bool, power: float | None, place: bool, antithetic: bool
) -> dict[str, Any]:
    """What is compared: the default, or a variant of it, and settings of our own in the style of others."""
    if place or antithetic or power is not None:
        twist = None if power is None else nd.twists.Tempered(power=power)
        name = "TwistedSMC" + ("" if power is None else f", Tempered(power={power:g})")
        name += ", steps placed" * place + ", antithetic" * antithetic
        return {name: corrected(twist, ends, count, place, antithetic)}
    chosen = {"TwistedSMC": corrected(None, ends, count)}
    if others:
        ends = (ends[0], 4.0)  # the usual end: these do not take the last step exactly
        chosen["TwistedSMC, Tweedie (as TDS)"] = corrected(nd.twists.Tweedie(), ends, count)
        chosen["Guided, Tweedie (as DPS)"] = uncorrected(nd.samplers.Guided(nd.twists.Tweedie()), ends, count)
        chosen["Guided, MomentMatched"] = uncorrected(nd.samplers.Guided(), ends, count)
        chosen["Perturbed, constant r"] = uncorrected(nd.samplers.Perturbed(), ends, count)
    return chosen


def measure(cell: str, seed: int, runs: dict[str, Any], count: int, number: int) -> dict[str, Any]:
    """One problem: distances and evidence errors of every sampler, and the floor; the run of this number."""
    case = problem(seed, cell)
    rng = np.random.default_rng(seed)
    reference = case.exact(rng, count)
    row: dict[str, Any] = {"floor": sliced_wasserstein(rng, case.exact(rng, count), reference)}
    parts = [jnp.asarray(part, dtype=float) for part in case[:6]]
    for name, run in runs.items():
        start = time.perf_counter()
        key = jax.random.key(seed)
        key = jax.random.fold_in(key, number) if number else key
        draws, log_evidence, particles = run(key, tuple(parts[:3]), *parts[3:])
        warned = particles is not None and bool(nd.samplers.reliability(particles).complaints)
        draws = np.asarray(draws)
        good = np.isfinite(draws).all(1)
        distance = sliced_wasserstein(rng, draws, reference) if good.all() else np.nan
        error = float(log_evidence) - case.log_evidence
        seconds = time.perf_counter() - start
        row[name] = {"distance": distance, "error": error, "seconds": seconds, "warned": warned}
    return row


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: one line for every cell and sampler."""
    lines = [
        "| d_x or kind | d_y or offset | problems | sampler | sliced W, floor | sliced W | ratio "
        "| median ratio | log Z bias | log Z RMSE | warned of | others: largest ratio | log Z error | median s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, rows in results.items():
        floor = np.array([row["floor"] for row in rows])
        for name in (name for name in rows[0] if name != "floor"):
            values = np.array([row[name]["distance"] for row in rows])
            errors = np.array([row[name]["error"] for row in rows])
            seconds = np.median([row[name]["seconds"] for row in rows])
            warned = np.array([row[name]["warned"] for row in rows])
            trusted = ~warned & np.isfinite(values)
            largest = (values / floor).max(where=trusted, initial=0.0), np.abs(errors).max(where=trusted, initial=0.0)
            good = np.isfinite(values)
            spread = 1.96 * values[good].std(ddof=1) / np.sqrt(good.sum()) if good.sum() > 1 else np.nan
            failed = f" ({(~good).sum()} failed)" if not good.all() else ""
            lines.append(
                f"| {cell.replace(',', ' | ')} | {len(rows)} | {name} | {floor.mean():.3f} | "
                f"{values[good].mean():.3f} ± {spread:.3f}{failed} | {values[good].mean() / floor[good].mean():.2f} | "
                f"{np.median(values[good] / floor[good]):.2f} | "
                f"{errors.mean():.3f} | {np.sqrt((errors**2).mean()):.3f} | {warned.sum()} | "
                f"{largest[0]:.2f} | {largest[1]:.3f} | {seconds:.1f} |"
            )
    return "\n".join(lines)


def scatter(rows: list[dict[str, Any]]) -> str:
    """Markdown: what repeated runs of one problem have, mean and standard deviation over the runs."""
    lines = [
        "| runs | sampler | sliced W, floor | sliced W | sd | log Z − exact | sd | log mean Z / exact |",
        "|---|---|---|---|---|---|---|---|",
    ]
    floor = np.mean([row["floor"] for row in rows])
    for name in (name for name in rows[0] if name != "floor"):
        distance, error = (np.array([row[name][what] for row in rows]) for what in ("distance", "error"))
        whole = np.log(np.mean(np.exp(error)))
        lines.append(
            f"| {len(rows)} | {name} | {floor:.3f} | {distance.mean():.3f} | {distance.std(ddof=1):.3f} | "
            f"{error.mean():.3f} | {error.std(ddof=1):.3f} | {whole:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cells, save after every problem, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one small cell, two problems, 300 particles")
    parser.add_argument("--results", type=Path, help="file to save to and to go on from")
    parser.add_argument("--problems", type=int, default=20, help="problems in each cell")
    parser.add_argument("--cells", nargs="*", help="such as 8,1 80,4; all nine unless given")
    parser.add_argument("--others", action="store_true", help="also run settings in the style of other samplers")
    parser.add_argument("--placed", action="store_true", help="only TwistedSMC, the chain's steps placed by the prior")
    parser.add_argument("--antithetic", action="store_true", help="only TwistedSMC, its particles antithetic")
    parser.add_argument("--particles", type=int, default=PARTICLES, help="of every sampler, and as many draws compared")
    parser.add_argument("--repeat", type=int, metavar="RUNS", help="run one problem so often, with other keys")
    parser.add_argument("--problem", type=int, default=0, help="the problem that --repeat runs")
    parser.add_argument("--run", type=int, default=0, help="number of the first run, each with other keys")
    parser.add_argument("--tempered", type=float, metavar="POWER", help="only TwistedSMC, its twist tempered so")
    options = parser.parse_args()
    cells, count, problems = options.cells or CELLS, options.particles, options.problems
    if options.short:
        cells, count, problems = ["8,4"], 300, 2
    saved = options.results is not None and options.results.exists()
    results: dict[str, list[dict[str, Any]]] = json.loads(options.results.read_text()) if saved else {}
    for cell in cells:
        ends, others = ends_of(problem(0, cell).means), options.others or options.short
        runs = samplers(ends, count, others, options.tempered, options.placed, options.antithetic)
        if options.repeat:
            repeats = tqdm(range(options.run, options.run + options.repeat), desc=f"{cell}, problem {options.problem}")
            print(scatter([measure(cell, options.problem, runs, count, repeat) for repeat in repeats]))
            continue
        rows = results.setdefault(cell, [])
        for seed in tqdm(range(len(rows), problems), desc=cell):
            rows.append(measure(cell, seed, runs, count, options.run))
            if options.results is not None:
                options.results.write_text(json.dumps(results))
    if options.repeat:
        return
    print(table(results))
    if options.short and options.tempered is None and not (options.placed or options.antithetic):
        ratios = [row["TwistedSMC"]["distance"] / row["floor"] for rows in results.values() for row in rows]
        assert np.median(ratios) < 3, f"far from the exact posterior: {ratios}"


if __name__ == "__main__":
    main()
