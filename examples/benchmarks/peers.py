"""The posterior samplers of azula and deepinv beside our own, about the same denoisers, in one run on one CPU.

Three kinds of problems: the nine cells of the Gaussian-mixture benchmark (`mixture.py`, same problems); forty answers
yes and no to random questions about an x of N(0, I) in six dimensions; and digits with half of their pixels hidden,
under the packaged prior, whose network is the denoiser of all. All take 100 steps and as many draws; a peer's settings
are the best of those listed in `_peers.py`, on other problems than those of the table. CPU seconds are without
compiling, and for torch after a run of two steps. torch, azula and deepinv are extras of this script: without them it
runs ours alone.

    pip install torch azula deepinv
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python examples/benchmarks/peers.py

Distances are sliced Wasserstein (`mixture.py`) from exact draws; from a million prior draws, reweighted; and for digits
from `nd.infer.TemperedSMC`, which has no twist.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import _truths
import jax
import jax.numpy as jnp
import mixture
import numpy as np
import numpyro
import numpyro.distributions as dist
from _answers import answer
from _likelihoods import KINDS, over
from _problems import logistic_rows, prior_of

import numpyro_diffusion as nd

STEPS, DRAWS, MORE_STEPS = 100, 2000, 400
LARGE, LARGE_DRAWS, LARGE_PROBLEMS = 800, 500, 2  # elements from which on there are fewer draws and problems
NOISE = 0.2  # of the digits' pixels
TUNING, TUNING_DRAWS = (100, 101), 500  # seeds of the problems on which settings are chosen
LAST = 9.2  # log-SNR at which peers end: a noise of 0.01
LAPLACE = nd.twists.Tempered(nd.twists.Laplace(), 0.5)
MORE = ("azula MMPS", "azula TDS")  # run with more steps, too
PACKAGES = ("torch", "azula", "deepinv")

AS_MANY, DENOISER_ALONE = "ours, a particle for every draw", "the same, the twist `Tempered(Laplace(), 0.5)`"

Found = tuple[np.ndarray, float, float]  # equally weighted draws, log evidence, CPU seconds


class Case(NamedTuple):
    """A problem with its reference.

    Attributes:
        reference: draws of the posterior, shape (n, d).
        floor: distance of such draws from one another.
        log_evidence: of the data.
        ours: our samplers, by name.
        task: makes the problem for the peers.
        truth: the x that made the data, where it is shown.
    """

    reference: np.ndarray
    floor: float
    log_evidence: float
    ours: dict[str, Callable[[], Found]]
    task: Callable[[], Any]
    truth: np.ndarray | None = None


def ours_with(particles: int) -> str:
    """A name in the tables."""
    return f"ours, {particles} particles"


def table_of(rows: list[list[Any]], heads: list[str]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def distance(case: Case, draws: np.ndarray) -> float:
    """Sliced Wasserstein distance from the reference; of fewer draws each stands for several points."""
    if not np.isfinite(draws).all():
        return float("nan")
    count = len(case.reference)
    spread = draws[np.arange(count) * len(draws) // count]
    return mixture.sliced_wasserstein(np.random.default_rng(0), spread, case.reference)


def row(case: Case, found: Found) -> dict[str, float]:
    """The figures of one run."""
    draws, log_evidence, seconds = found
    mean, sd = draws.mean(0), draws.std(0)
    true_mean, true_sd = case.reference.mean(0), case.reference.std(0)
    return {
        "distance": distance(case, draws), "floor": case.floor, "seconds": seconds,
        "error": log_evidence - case.log_evidence,
        "mean": float(np.sqrt((((mean - true_mean) / true_sd) ** 2).mean())),
        "sd": float(np.sqrt(((sd / true_sd - 1) ** 2).mean())),
        "rmse": float("nan") if case.truth is None else float(np.sqrt(((mean - case.truth) ** 2).mean())),
    }  # fmt: skip


def from_torch(peer: Any, case: Case, count: int, steps: int, setting: dict[str, Any]) -> Found:
    """A peer's draws."""
    import torch

    torch.manual_seed(0)
    start = time.process_time()
    draws = peer.run(case.task(), count, steps, **setting).detach().numpy()
    return draws.astype(float), float("nan"), time.process_time() - start


def of_peers(cases: list[Case], others: list[Case], count: int) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Rows of every peer that takes such a likelihood; its settings are chosen on the other problems."""
    import _peers

    for name, peer in _peers.PEERS.items():
        if cases[0].task().y is None and not peer.general:
            continue
        settings = [each for each in peer.settings if "inflated" not in each or each["inflated"] or cases[0].task().y is not None]
        score = lambda setting: np.mean([_score(peer, case, setting) for case in others])
        setting = min(settings, key=score) if len(settings) > 1 else settings[0]
        said = ", ".join(f"{key} = {value}" for key, value in setting.items())
        for steps in (STEPS, MORE_STEPS) if name in MORE else (STEPS,):
            from_torch(peer, cases[0], count, 2, setting)
            rows = [row(case, from_torch(peer, case, count, steps, setting)) for case in cases]
            label = name if steps == STEPS else f"{name}, {steps} steps"
            print(f"  {label}: {said}", flush=True)
            yield label, rows


def _score(peer: Any, case: Case, setting: dict[str, Any]) -> float:
    ratio = distance(case, from_torch(peer, case, min(TUNING_DRAWS, len(case.reference)), STEPS, setting)[0]) / case.floor
    return ratio if np.isfinite(ratio) else np.inf


def compared(cases: list[Case], others: list[Case], count: int, peers: bool) -> dict[str, list[dict[str, float]]]:
    """Rows of all samplers."""
    found = {name: [row(case, case.ours[name]()) for case in cases] for name in cases[0].ours}
    return found | (dict(of_peers(cases, others, count)) if peers else {})


# The nine cells


def in_cell(cell: str, seed: int, count: int, runs: dict[str, Any]) -> Case:
    """A problem of `mixture.py`."""
    case, rng = mixture.problem(seed, cell), np.random.default_rng(seed)
    reference = case.exact(rng, count)
    floor = mixture.sliced_wasserstein(rng, case.exact(rng, count), reference)
    parts = [jnp.asarray(part, dtype=float) for part in case[:6]]

    def ours(run: Any) -> Found:
        start = time.process_time()
        x, log_evidence, _ = jax.block_until_ready(run(jax.random.key(seed), tuple(parts[:3]), *parts[3:]))
        return np.asarray(x, dtype=float), float(log_evidence), time.process_time() - start

    def task() -> Any:
        import _peers

        mean = case.weights @ case.means
        variance = case.weights @ (case.means**2 + case.deviations**2) - mean**2
        start, _ = mixture.ends_of(case.means)
        return _peers.Task(
            _peers.mixture(case.means, case.deviations, case.weights), tensor(mean), tensor(variance),
            _peers.LogSNR([LAST, start]), (-20.0, 20.0), tensor(case.observation), tensor(case.operator), case.scale,
        )  # fmt: skip

    return Case(reference, floor, case.log_evidence, {name: partial(ours, run) for name, run in runs.items()}, task)


def tensor(x: Any) -> Any:
    """Single precision, as JAX has it."""
    import torch

    return torch.as_tensor(np.asarray(x), dtype=torch.float32)


def check_denoiser(cell: str) -> None:
    """Both denoisers of a cell are the same function."""
    import torch

    case = mixture.problem(0, cell)
    ends = mixture.ends_of(case.means)
    process = mixture.process_of(*(jnp.asarray(part, dtype=float) for part in case[:3]), (ends[0], LAST))
    denoise = in_cell(cell, 0, 2, {}).task().denoise
    data = process.denoiser.data()
    for t in (1, STEPS // 2, STEPS):
        alpha_bar = float(process.diffusion.schedule.alpha_bar(t))
        noise = np.sqrt(1 / alpha_bar - 1)
        x = data.sample(jax.random.key(t), (4,)) + noise * jax.random.normal(jax.random.key(0), (4, data.event_shape[0]))
        ours, theirs = process.predict(np.sqrt(alpha_bar) * x, t), denoise(tensor(x), torch.tensor(noise).float())
        apart = float(np.abs(np.asarray(ours) - theirs.numpy()).max())
        assert apart < 1e-4 * max(1.0, float(np.abs(ours).max())), f"cell {cell}, step {t}: apart by {apart}"


def cells(names: list[str], problems: int, peers: bool, short: bool) -> None:
    """One table of all cells."""
    columns: dict[str, dict[str, list[dict[str, float]]]] = {}
    for cell in names:
        ends, large = mixture.ends_of(mixture.problem(0, cell).means), int(cell.split(",")[0]) >= LARGE
        count, some = (LARGE_DRAWS, min(problems, LARGE_PROBLEMS)) if large else (DRAWS, problems)
        run = lambda twist, count, ends=ends: mixture.corrected(twist, ends, count, place=not short, antithetic=True)
        runs = {ours_with(64): run(None, 64)}
        if not short:
            runs |= {ours_with(256): run(None, 256), AS_MANY: run(None, count), DENOISER_ALONE: run(LAPLACE, count)}
        cases = [in_cell(cell, seed, count, runs) for seed in range(some)]
        for ours in cases[0].ours.values() if not short else ():
            ours()  # compiles
        if peers:
            check_denoiser(cell)
        print(f"cell {cell}: {some} problems, {count} draws", flush=True)
        others = [in_cell(cell, seed, TUNING_DRAWS, {}) for seed in TUNING] if peers else []
        columns[cell] = compared(cases, others, count, peers)
    lines = []
    for name in next(iter(columns.values())):
        found = [column[name] for column in columns.values()]
        parts = [f"{mean(each, 'distance') / mean(each, 'floor'):.2f}; {mean(each, 'seconds'):.2g}" for each in found]
        errors = np.array([each["error"] for column in found for each in column])
        lines.append([name, *parts, f"{np.sqrt((errors**2).mean()):.3f}" if np.isfinite(errors).all() else "—"])
    heads = ["ratio to the floor; CPU s", *(f"d_x {cell.replace(',', ', d_y ')}" for cell in columns), "log Z RMSE"]
    print("\n" + table_of(lines, heads) + "\n", flush=True)
    if short:
        assert all(mean(rows, "distance") < 10 * mean(rows, "floor") for rows in columns[names[0]].values())


def mean(rows: list[dict[str, float]], what: str) -> float:
    """Over problems."""
    return float(np.mean([each[what] for each in rows]))


# Other likelihoods, and a learned prior


def by_smc(model: Any, prior: nd.DiffusionPrior, args: tuple[Any, ...]) -> dict[str, Any]:
    """Runs of `nd.infer.SMC` with four islands and so many particles in all; the second is timed."""

    def run(settings: dict[str, Any]) -> Found:
        found = answer(model, prior, args, jax.random.key(0), settings, runs=2)
        return found.x, found.log_evidence, found.seconds

    counts = {ours_with(64): 16, ours_with(256): 64, AS_MANY: DRAWS // 4}
    return {name: partial(run, {"num_particles": count}) for name, count in counts.items()}


def logistic(seed: int) -> Case:
    """Forty answers; the reference is a million draws of the prior, reweighted."""
    prior = prior_of(nd.denoisers.Gaussian(0.0, 1.0), STEPS, 6)
    args = logistic_rows("", "normal, d = 6", 40, 4.0, seed).args
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1_000_000, 6)).astype(np.float32)
    log_weight = _truths.mapped(over(KINDS["logistic"], args), x)
    weight = np.exp(log_weight - log_weight.max())
    picked = [x[rng.choice(len(x), DRAWS, p=weight / weight.sum())] for _ in range(2)]
    size = weight.sum() ** 2 / (weight**2).sum()
    print(f"logistic, seed {seed}: {size:.0f} effective draws behind the reference", flush=True)

    def task() -> Any:
        import _peers
        import torch

        signs, rows = 2 * tensor(args[0]) - 1, tensor(args[1])
        logits = lambda x: torch.nn.functional.logsigmoid(signs * (x @ rows.T)).sum(1)
        start = float(nd.schedules.log_snr(STEPS).log_snr(STEPS))
        one = torch.ones(6)
        gaussian = lambda x, sigma: x / (1 + sigma**2)
        return _peers.Task(gaussian, 0 * one, one, _peers.LogSNR([LAST, start]), (-4.0, 4.0), log_likelihood=logits)

    log_evidence = float(np.log(weight.mean()) + log_weight.max())
    floor = mixture.sliced_wasserstein(rng, *picked)
    return Case(picked[0], floor, log_evidence, by_smc(KINDS["logistic"], prior, args), task)


def hidden_half(prior: nd.DiffusionPrior, y: Any, seen: Any) -> None:
    """A digit of which half of the pixels are seen, with noise."""
    numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), NOISE).mask(seen).to_event(2), obs=y)


@cache
def digits_prior() -> tuple[nd.DiffusionPrior, Any]:
    """The packaged prior, and its network for the peers, compiled once."""
    import _peers

    prior = nd.load("digits")
    return prior, _peers.network(prior)


def digit(number: int, tuning: bool = False) -> Case:
    """A held-out digit; settings are chosen by the distance from our own draws, where nobody is compared."""
    prior, denoise = digits_prior()
    data, rng = nd.datasets.digits(), np.random.default_rng(number)
    x, seen = np.asarray(data.test_images[number], dtype=float), rng.permutation(64).reshape(8, 8) < 32
    y = np.where(seen, x + NOISE * rng.standard_normal((8, 8)), 0.0)
    args = jnp.asarray(y), jnp.asarray(seen)
    if tuning:
        reference, log_evidence = by_smc(hidden_half, prior, args)[AS_MANY]()[:2]
    else:
        start = time.process_time()
        smc = nd.infer.TemperedSMC(hidden_half, num_particles=DRAWS // 4, progress_bar=False)
        smc.run(jax.random.key(1), prior, *args)
        reference = np.asarray(smc.get_samples()["x"], dtype=float).reshape(-1, 64)
        log_evidence = float(smc.log_evidence)
        seconds = time.process_time() - start
        print(f"digit {number}: TemperedSMC, log Z {log_evidence:.2f}, {seconds:.0f} s of CPU time", flush=True)
    half = len(reference) // 2
    floor = mixture.sliced_wasserstein(rng, reference[:half], reference[half:])

    def task() -> Any:
        import _peers

        table = np.asarray(jax.vmap(prior.process.diffusion.schedule.log_snr)(jnp.arange(STEPS + 1.0)))
        scale, where = float(prior.process.diffusion.scale), np.flatnonzero(seen)
        images = np.asarray(data.train_images).reshape(-1, 64)
        return _peers.Task(
            denoise, tensor(images.mean(0)), tensor(images.var(0)), _peers.LogSNR(table, scale), (0.0, 1.0),
            tensor(y.ravel()[where]), tensor(np.eye(64)[where]), NOISE,
        )  # fmt: skip

    return Case(reference, floor, log_evidence, by_smc(hidden_half, prior, args), task, x.ravel())


def others(kind: str, cases: list[Case], tuning: list[Case], peers: bool) -> None:
    """The table of a kind of problem."""
    found = compared(cases, tuning, DRAWS, peers)
    pictures = cases[0].truth is not None
    rows = [["one half of the reference" if pictures else "the reference again", f"{np.mean([c.floor for c in cases]):.4f}"]]
    rows[0] += [""] * (5 if pictures else 4)
    for name, each in found.items():
        errors = [one["error"] for one in each]
        parts = [mean(each, "distance"), mean(each, "mean"), mean(each, "sd")]
        parts += [mean(each, "rmse")] if pictures else []
        said = f"{np.sqrt(np.mean(np.square(errors))):.3f}" if np.isfinite(errors).all() else "—"
        rows.append([name, *(f"{part:.4f}" for part in parts), said, f"{mean(each, 'seconds'):.2f}"])
    heads = [kind, "sliced W", "error of the mean, in sd", "relative error of the sd"]
    heads += (["RMSE of the mean from the truth"] if pictures else []) + ["log Z RMSE", "CPU s"]
    print("\n" + table_of(rows, heads) + "\n", flush=True)


def main() -> None:
    """Print a table for every kind of problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one small cell, ours alone with 64 particles")
    parser.add_argument("--only", nargs="*", choices=["cells", "logistic", "digits"], help="kinds; all unless given")
    parser.add_argument("--cells", nargs="*", default=mixture.CELLS, help="such as 8,1 80,4; all nine unless given")
    parser.add_argument("--problems", type=int, default=5, help="of each cell, two of d_x = 800; of answers as many")
    parser.add_argument("--digits", type=int, default=2, help="how many")
    options = parser.parse_args()
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)}: not installed, so that there are no peers")
    peers = not missing and not options.short
    if options.short:
        cells(["8,2"], 1, peers, True)
        return
    if peers:
        from importlib.metadata import version

        import torch

        torch.set_num_threads(1)
        print(", ".join(f"{name} {version(name)}" for name in (*PACKAGES, "jax")), flush=True)
    warnings.filterwarnings("ignore")  # of few particles, which are meant
    kinds = options.only or ["cells", "logistic", "digits"]
    if "cells" in kinds:
        cells(options.cells, options.problems, peers, False)
    if "logistic" in kinds:
        seeds = range(options.problems)
        others("answers", [logistic(seed) for seed in seeds], [logistic(seed) for seed in TUNING] if peers else [], peers)
    if "digits" in kinds:
        if missing:
            raise SystemExit("digits: the network is called from torch")
        others("digits", [digit(number) for number in range(options.digits)], [digit(100, tuning=True)], peers)


if __name__ == "__main__":
    main()
