"""The defaults of `nd.infer.SMC` on problems whose answers are known: log evidence, means and standard deviations.

Priors are exact (normal, mixtures) or learned from examples; most likelihoods are not linear. The truth is always about
the prior's own chain: its draws reweighted by the likelihood, or for N(0, I) also quadrature and a closed form.
With `--cache` learned priors, draws and truths are kept in a folder, and a second run is quick. Errors of means are in
posterior standard deviations; errors of standard deviations are relative.

    python examples/benchmarks/nonlinear.py [--short] [--only NAME …] [--cache FOLDER]
"""

import argparse
from pathlib import Path

import jax
from _answers import Answer, answer, moment_errors, z_of
from _problems import Cache, Problem, problems
from _truths import Truth

SHORT = ("two moduli, T = 16", "count of 40", "far observation")  # for each kind of truth one
SHORT_DRAWS = 50_000
SHORT_SETTINGS = {"num_islands": 2, "num_particles": 256}  # named, so that poor answers are not run again with more
COLUMNS = (
    "problem", "d", "truth", "±", "log Z", "±", "difference", "z", "mean", "sd", "P(Σx < 0)", "least ESS",
    "plan", "warned", "CPU s",
)  # fmt: skip


def row(problem: Problem, truth: Truth, found: Answer) -> str:
    """One line of the table."""
    mean, sd = moment_errors(found, truth)
    negative = float((found.x.sum(1) < 0).mean())
    cells = (
        problem.name, found.x.shape[1], f"{truth.log_evidence:.3f}", f"{truth.error:.3f}", f"{found.log_evidence:.3f}",
        f"{found.error:.3f}", f"{found.log_evidence - truth.log_evidence:+.3f}", f"{z_of(found, truth):+.1f}",
        f"{mean:.2f}", f"{sd:.2f}", f"{negative:.3f} ({truth.negative:.3f})", f"{found.least:.0f}", found.plan,
        "yes" if found.warned else "no", f"{found.seconds:.2f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def chosen(names: list[str] | None, short: bool) -> list[Problem]:
    """The problems whose names contain one of these, in the order of their priors so that draws are read once."""
    every = problems()
    if short and not names:
        return [problem for problem in every if problem.name in SHORT]
    found = [problem for problem in every if not names or any(name in problem.name for name in names)]
    if not found:
        raise SystemExit(f"--only: no problem has such a name; there are {[problem.name for problem in every]}")
    return found


def summary(rows: list[tuple[Problem, Truth, Answer]]) -> str:
    """How many answers are wrong, and how many of these said nothing."""
    wrong = [each for each in rows if not abs(z_of(each[2], each[1])) <= 4]
    silent = [problem.name for problem, _, found in wrong if not found.warned]
    quiet = sum(not found.warned for _, _, found in rows)
    return (
        f"{len(rows)} problems, {quiet} answered without a warning; {len(wrong)} with a log evidence off by more than "
        f"4 standard errors, {len(silent)} of them without a warning: {', '.join(silent) or 'none'}"
    )


def main() -> None:
    """Run SMC on the problems and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="three quick problems, their truths from few draws, few particles"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="problems whose names contain one of these")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where priors, draws and truths are kept")
    parser.add_argument("--islands", type=int, help="num_islands of SMC, its default unless given")
    parser.add_argument("--particles", type=int, help="num_particles of SMC, its default unless given")
    parser.add_argument("--seed", type=int, default=0, help="of SMC's key")
    parser.add_argument("--warnings", action="store_true", help="print what the warnings say, below the table")
    options = parser.parse_args()
    given = {"num_islands": options.islands, "num_particles": options.particles}
    settings = SHORT_SETTINGS if options.short else {}
    settings |= {name: value for name, value in given.items() if value is not None}
    cache = Cache(options.cache, SHORT_DRAWS if options.short else None)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    rows = []
    for problem in chosen(options.only, options.short):
        truth = cache.truth(problem)
        prior, runs = cache.prior(problem.source), 1 if options.short else 2
        try:
            found = answer(problem.model, prior, problem.args, jax.random.key(options.seed), settings, runs)
        except ValueError as error:
            print(f"| {problem.name} | {len(truth.mean)} | {truth.log_evidence:.3f} | raised: {error} |", flush=True)
            continue
        rows.append((problem, truth, found))
        print(row(*rows[-1]), flush=True)
    print("\n" + summary(rows))
    if options.warnings:
        print("\n".join(f"{problem.name}: {said}" for problem, _, found in rows for said in found.warned))


if __name__ == "__main__":
    main()
