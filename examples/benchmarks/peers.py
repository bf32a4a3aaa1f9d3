"""The posterior samplers of azula and deepinv beside our own, about the same denoisers, in one run on one CPU.

Three kinds of problems: the nine cells of the Gaussian-mixture benchmark (`mixture.py`, same problems); forty answers
yes and no to random questions about an x of N(0, I) in six dimensions; and digits with half of their pixels hidden,
under the packaged prior, whose network is the denoiser of all. All take 100 steps and as many draws; a peer's settings
are the best of those listed in `_peers.py`, on other problems than those of the table. CPU seconds are without
compiling, and for torch after a run of two steps. torch, azula and deepinv are extras of this script: without them it
runs ours alone.

    pip install torch azula deepinv
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python examples/benchmarks/peers.py

Distances are sliced Wasserstein (`mixture.py`) from exact draws; from a million draws of a normal law about the mode,
reweighted; and for digits from draws of `nd.infer.ParticleGibbs`, which leaves the posterior invariant.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import mixture
import numpy as np
from _peer_problems import (
    AS_MANY,
    DRAWS,
    STEPS,
    Case,
    Found,
    check_denoiser,
    compiled,
    digit,
    in_cell,
    logistic,
    ours_with,
)

import numpyro_diffusion as nd

MORE_STEPS, MORE = 400, ("azula TDS",)  # run with more steps, too
FEWER = {80: 2, 800: 1}  # problems of so many dimensions
LARGE, LARGE_DRAWS = 800, 500  # dimensions from which on there are fewer draws
TUNING, TUNING_DRAWS = ((100, 101), 500)  # seeds of the problems on which settings are chosen
DENOISER_ALONE = "the same, the twist `Tempered(Laplace(), 0.5)`"
LAPLACE = nd.twists.Tempered(nd.twists.Laplace(), 0.5)
PACKAGES = ("torch", "azula", "deepinv")


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
    """A peer's draws; not numbers where it fails, as TDS does when its weights are none."""
    import torch

    torch.manual_seed(0)
    task, start = case.task(), time.process_time()
    try:
        draws = peer.run(task, count, steps, **setting).detach().numpy()
    except RuntimeError:
        draws = np.full((count, len(task.mean)), np.nan)
    return draws.astype(float), float("nan"), time.process_time() - start


def score(peer: Any, cases: list[Case], setting: dict[str, Any]) -> float:
    """Mean ratio to the floor, infinite where a draw is."""
    found = [distance(case, from_torch(peer, case, TUNING_DRAWS, STEPS, setting)[0]) / case.floor for case in cases]
    return float(np.nan_to_num(np.mean(found), nan=np.inf))


def of_peers(cases: list[Case], others: list[Case], count: int) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Rows of every peer that takes such a likelihood; its settings are chosen on the other problems."""
    import _peers

    for name, peer in _peers.PEERS.items():
        if cases[0].task().y is None and not peer.general:
            continue
        setting = min(peer.settings, key=partial(score, peer, others))
        said = ", ".join(f"{key} = {value}" for key, value in setting.items())
        for steps in (STEPS, MORE_STEPS) if name in MORE else (STEPS,):
            from_torch(peer, cases[0], count, 2, setting)
            rows = [row(case, from_torch(peer, case, count, steps, setting)) for case in cases]
            label = name if steps == STEPS else f"{name}, {steps} steps"
            yield label, shown(label, rows, said)


def shown(name: str, rows: list[dict[str, float]], setting: str = "") -> list[dict[str, float]]:
    """Print a row as soon as it is there; returns it."""
    far, seconds, error = mean(rows, "distance") / mean(rows, "floor"), mean(rows, "seconds"), spread(rows)
    print(
        f"  {name}: {far:.2f} times the floor, {seconds:.2g} s, log Z RMSE {error}{setting and '; '}{setting}",
        flush=True,
    )
    return rows


def compared(cases: list[Case], others: list[Case], count: int, peers: bool) -> dict[str, list[dict[str, float]]]:
    """Rows of all samplers."""
    found = {name: shown(name, [row(case, case.ours[name]()) for case in cases]) for name in cases[0].ours}
    return found | (dict(of_peers(cases, others, count)) if peers else {})


def cells(names: list[str], problems: int, peers: bool, short: bool) -> None:
    """One table of all cells."""
    columns: dict[str, dict[str, list[dict[str, float]]]] = {}
    for cell in names:
        ends, size = mixture.ends_of(mixture.problem(0, cell).means), int(cell.split(",")[0])
        count, some = LARGE_DRAWS if size >= LARGE else DRAWS, min(problems, FEWER.get(size, problems))
        run = lambda twist, count, ends=ends, cell=cell: compiled(twist, ends, count, cell, short)
        runs = {ours_with(64): run(None, 64)}
        if not short:
            runs |= {ours_with(256): run(None, 256), AS_MANY: run(None, count), DENOISER_ALONE: run(LAPLACE, count)}
        cases = [in_cell(cell, seed, count, runs) for seed in range(some)]
        if peers:
            check_denoiser(cell)
        print(f"cell {cell}: {some} problems, {count} draws", flush=True)
        tuning = (TUNING[:1] if size >= LARGE else TUNING) if peers else ()
        apart = [in_cell(cell, seed, TUNING_DRAWS, {}) for seed in tuning]
        columns[cell] = compared(cases, apart, count, peers)
    lines = []
    for name in next(iter(columns.values())):
        found = [column[name] for column in columns.values()]
        parts = [f"{mean(each, 'distance') / mean(each, 'floor'):.2f}; {mean(each, 'seconds'):.2g}" for each in found]
        lines.append([name, *parts, spread([each for column in found for each in column])])
    heads = ["ratio to the floor; CPU s", *(f"d_x {cell.replace(',', ', d_y ')}" for cell in columns), "log Z RMSE"]
    print("\n" + table_of(lines, heads) + "\n", flush=True)
    if short:
        assert all(mean(rows, "distance") < 10 * mean(rows, "floor") for rows in columns[names[0]].values())


def mean(rows: list[dict[str, float]], what: str) -> float:
    """Over problems."""
    return float(np.mean([each[what] for each in rows]))


def spread(rows: list[dict[str, float]]) -> str:
    """Root mean square error of the log evidence, where there is one."""
    errors = np.array([each["error"] for each in rows])
    return f"{np.sqrt((errors**2).mean()):.3f}" if np.isfinite(errors).all() else "—"


def others(kind: str, cases: list[Case], tuning: list[Case], peers: bool) -> None:
    """The table of a kind of problem."""
    found = compared(cases, tuning, DRAWS, peers)
    pictures = cases[0].truth is not None
    rows = [
        ["one half of the reference" if pictures else "the reference again", f"{np.mean([c.floor for c in cases]):.4f}"]
    ]
    rows[0] += [""] * (5 if pictures else 4)
    for name, each in found.items():
        parts = [mean(each, "distance"), mean(each, "mean"), mean(each, "sd")]
        parts += [mean(each, "rmse")] if pictures else []
        rows.append([name, *(f"{part:.4f}" for part in parts), spread(each), f"{mean(each, 'seconds'):.2f}"])
    heads = [kind, "sliced W", "error of the mean, in sd", "relative error of the sd"]
    heads += (["RMSE of the mean from the truth"] if pictures else []) + ["log Z RMSE", "CPU s"]
    print("\n" + table_of(rows, heads) + "\n", flush=True)


def main() -> None:
    """Print a table for every kind of problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one small cell, ours alone with 64 particles")
    parser.add_argument("--only", nargs="*", choices=["cells", "logistic", "digits"], help="kinds; all unless given")
    parser.add_argument("--cells", nargs="*", default=mixture.CELLS, help="such as 8,1 80,4; all nine unless given")
    parser.add_argument("--problems", type=int, default=5, help="of each small cell, and of answers")
    parser.add_argument("--digits", type=int, default=1, help="how many")
    options = parser.parse_args()
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)}: not installed, so that there are no peers")
    peers = not missing and not options.short
    if options.short:
        cells(["8,2"], 1, peers, True)
        return
    if peers:
        import torch

        torch.set_num_threads(1)
        print(", ".join(f"{name} {version(name)}" for name in (*PACKAGES, "jax")), flush=True)
    warnings.filterwarnings("ignore")  # of few particles, which are meant
    kinds = options.only or ["cells", "logistic", "digits"]
    if "cells" in kinds:
        cells(options.cells, options.problems, peers, False)
    if "logistic" in kinds:
        seeds = range(options.problems)
        others(
            "answers", [logistic(seed) for seed in seeds], [logistic(seed) for seed in TUNING] if peers else [], peers
        )
    if "digits" in kinds:
        if missing:
            raise SystemExit("digits: the network is called from torch")
        others("digits", [digit(number) for number in range(options.digits)], [digit(100, tuning=True)], peers)


if __name__ == "__main__":
    main()
