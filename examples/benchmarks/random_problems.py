"""The defaults of `nd.infer.SMC` on many random problems: how many wrong answers come without a warning?

Priors are exact normals, exact mixtures of two to five components, and three small learned ones, in one to four
dimensions and chains of 10 to 100 steps. Likelihoods are those of `_likelihoods.py`, with random looks and noise. Data
are simulated from the prior; for one problem in ten from far out in it. The truth is the prior's own draws reweighted;
data for which too few of them would count are drawn again. Problems come in groups of five with one prior and one kind
of looks, so that a group draws and compiles once.

    python examples/benchmarks/random_problems.py [--short] [--count 200]
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _answers import Answer, answer, moment_errors, z_of
from _likelihoods import KINDS, log_likelihood, simulate
from _truths import BATCH, Truth, weighted
from jax import Array

import numpyro_diffusion as nd

GROUP = 5  # problems of one prior
STEPS = (10, 30, 100)
DRAWS = 400_000  # at most, of T steps each, and no more steps than:
STEPS_DRAWN = 8_000_000
LEAST = 2_000  # effective draws of a truth; a share is enough with --short
LEAST_SHARE = 0.02
TRIES = 12  # observations drawn until the truth is good enough


class Shape(NamedTuple):
    """What the problems of a group share."""

    prior: str
    size: int
    num_steps: int
    kind: str
    looks: int


class Case(NamedTuple):
    """One problem."""

    prior: nd.DiffusionPrior
    args: tuple[Any, ...]
    truth: Truth
    typical: bool


def exact_prior(rng: np.random.Generator, shape: Shape) -> nd.DiffusionPrior:
    """A random normal, or a random mixture; of fewer than five components some are twice there, for equal shapes."""
    if shape.prior == "normal":
        denoiser: Any = nd.denoisers.Gaussian(rng.normal(size=shape.size), rng.uniform(0.4, 1.5, shape.size))
    else:
        which = np.arange(5) % rng.integers(2, 6)
        locs, scales = 1.5 * rng.normal(size=(5, shape.size)), rng.uniform(0.2, 0.8, 5)
        weights = rng.dirichlet(np.full(5, 2.0))[which]
        denoiser = nd.denoisers.GaussianMixture(locs[which], scales[which], weights / weights.sum())
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(shape.num_steps), scale=1.5)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, shape.size))


def learned_priors() -> dict[int, nd.DiffusionPrior]:
    """Small networks by dimension, of little training: a long tail, a swiss roll, and four correlated elements."""
    rng = np.random.default_rng(0)
    data = {
        1: rng.gamma(2.0, 0.7, (2_000, 1)) - 1.0,
        2: np.asarray(nd.datasets.swiss_roll(jax.random.key(0), 2_000, noise=0.5)),
        4: rng.multivariate_normal(np.zeros(4), 0.8 + 0.2 * np.eye(4), 2_000),
    }
    priors = {}
    for size, rows in data.items():
        network = nd.networks.MLP(jax.random.key(size), (size,), num_steps=30, width=32)
        schedule = nd.schedules.log_snr(30, detail=0.2)
        priors[size] = nd.fit_prior(
            jax.random.key(1), rows, max_steps=500, schedule=schedule, network=network, progress_bar=False
        )
    return priors


def shape_of(rng: np.random.Generator, number: int, learned: dict[int, nd.DiffusionPrior]) -> Shape:
    """A random group; every kind of likelihood in turn."""
    kinds = sorted(KINDS)
    kind = kinds[number % len(kinds)]
    prior = str(rng.choice(["normal", "mixture", "mixture", "learned"] if learned else ["normal", "mixture"]))
    size = int(rng.choice(sorted(learned))) if prior == "learned" else int(rng.integers(1, 5))
    looks = int(rng.integers(1, 4))
    many = {"product": 2 * looks, "logistic": 4 * looks, "ordinal": 2 * looks, "radius": max(2, looks)}
    num_steps = 30 if prior == "learned" else int(rng.choice(STEPS))
    return Shape(prior, size, num_steps, kind, many.get(kind, looks))


@jax.jit
def some_draws(prior: nd.DiffusionPrior, key: Array) -> Array:
    """`BATCH` draws; the prior is an argument, so that a group compiles once."""
    return prior.sample(key, (BATCH,))


def draws_of(key: Array, prior: nd.DiffusionPrior, count: int) -> np.ndarray:
    """Draws of the prior's chain."""
    return np.concatenate([np.asarray(some_draws(prior, each)) for each in jax.random.split(key, count // BATCH)])


def truth_of(kind: str, x: np.ndarray, args: tuple[Any, ...]) -> Truth:
    """Draws reweighted."""
    log_weight = np.concatenate([np.asarray(_weights[kind](part, *args)) for part in np.split(x, len(x) // BATCH)])
    highest = float(log_weight.max())
    return weighted(x, np.exp(log_weight.astype(np.float64) - highest), highest)


def weights_of(kind: str) -> Any:
    """`log_likelihood` of many x, compiled once for every kind and shape."""
    return jax.jit(lambda x, *args: jax.vmap(lambda x: log_likelihood(KINDS[kind], x, *args))(x))


_weights = {kind: weights_of(kind) for kind in KINDS}


def case_of(rng: np.random.Generator, key: Array, shape: Shape, prior: nd.DiffusionPrior, x: np.ndarray) -> Case | None:
    """A random observation, if one is found whose truth is good enough."""
    typical = bool(rng.uniform() > 0.1)
    for each in jax.random.split(key, TRIES):
        rows = rng.normal(size=(shape.looks, shape.size)) / np.sqrt(shape.size)
        scale = float(np.exp(rng.uniform(np.log(0.05), 0.0)))
        source = x[rng.integers(len(x))]
        source = source if typical else x.mean(0) + 2.5 * (source - x.mean(0))
        rows, scale = jnp.asarray(rows, dtype=float), jnp.asarray(scale)
        y = simulate(each, KINDS[shape.kind], jnp.asarray(source), rows, scale)
        if not np.isfinite(np.asarray(y)).all():
            continue
        truth = truth_of(shape.kind, x, (y, rows, scale))
        if truth.size >= min(LEAST, len(x) * LEAST_SHARE):
            return Case(prior, (y, rows, scale), truth, typical)
    return None


class Result(NamedTuple):
    """A problem and its answer; none where SMC raised."""

    name: str
    case: Case
    found: Answer | None
    raised: str

    @property
    def silent(self) -> bool:
        """It came without a warning."""
        return self.found is not None and not self.found.warned

    @property
    def wrong(self) -> bool:
        """The log evidence is off by more than four standard errors, or is no number."""
        return self.found is not None and not abs(z_of(self.found, self.case.truth)) <= 4

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name}: raised {self.raised}"
        truth, found = self.case.truth, self.found
        mean, sd = moment_errors(found, truth)
        return (
            f"{self.name}: log Z {found.log_evidence:.3f} ± {found.error:.3f}, truth {truth.log_evidence:.3f} ± "
            f"{truth.error:.3f}, z {z_of(found, truth):+.1f}; mean off by {mean:.2f} sd, sd by {sd:.2f}; "
            f"least ESS {found.least:.0f}; {found.plan}{'; warned' if found.warned else ''}"
        )


def group(
    number: int, learned: dict[int, nd.DiffusionPrior], count: int, draws: int, settings: dict[str, Any]
) -> list[Result]:
    """The problems of one group, solved by SMC with these settings."""
    rng, key = np.random.default_rng([number, 1]), jax.random.key(number)
    shape = shape_of(rng, number, learned)
    prior = learned[shape.size] if shape.prior == "learned" else exact_prior(rng, shape)
    most = min(draws, STEPS_DRAWN // shape.num_steps) // (2 if shape.prior == "learned" else 1)
    x = draws_of(jax.random.fold_in(key, count), prior, most)
    results = []
    for index in range(count):
        look, run = jax.random.split(jax.random.fold_in(key, index))
        case = case_of(rng, look, shape, prior, x)
        if case is None:
            continue
        name = (
            f"{number}.{index} {shape.kind}, {shape.looks} looks, {shape.prior} d = {shape.size} T = {shape.num_steps}"
        )
        name += "" if case.typical else ", atypical"
        try:
            results.append(Result(name, case, answer(KINDS[shape.kind], prior, case.args, run, settings), ""))
        except ValueError as error:
            results.append(Result(name, case, None, str(error)))
    return results


def report(results: list[Result]) -> str:
    """What share of the answers is wrong, and which of those came without a warning."""
    silent = [result for result in results if result.silent]
    offenders = [result for result in silent if result.wrong]
    answered = [result.found for result in results if result.found is not None]
    errors = [moment_errors(result.found, result.case.truth) for result in silent if result.found is not None]
    lines = [
        f"{len(results)} problems, {len(results) - len(answered)} raised; {len(silent)} answered without a warning",
        f"log Z off by more than 4 standard errors: {sum(result.wrong for result in results)}, "
        f"of these without a warning: {len(offenders)}",
    ]
    if errors:
        worst = np.quantile(np.array(errors), [0.5, 0.9, 1.0], axis=0)
        for name, column in zip(("means, in posterior sds", "sds, relative"), worst.T, strict=True):
            lines.append(f"without a warning, largest error of {name}: median {column[0]:.2f}, 90% {column[1]:.2f}, "
                         f"all {column[2]:.2f}")  # fmt: skip
    seconds = np.array([found.seconds for found in answered] or [0.0])
    lines.append(f"CPU seconds: median {np.median(seconds):.1f}, in all {seconds.sum():.0f}, compiling included")
    return "\n".join([*lines, *(f"  {result}" for result in offenders)])


def main() -> None:
    """Solve the problems and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="four problems with exact priors, few particles")
    parser.add_argument("--count", type=int, default=200, help="how many problems")
    parser.add_argument("--first", type=int, default=0, metavar="GROUP", help="number of the first group")
    parser.add_argument("--all", action="store_true", help="print every answer as it comes")
    options = parser.parse_args()
    count, size, draws = (4, 2, 20_000) if options.short else (options.count, GROUP, DRAWS)
    learned = {} if options.short else learned_priors()
    # Named, so that poor answers are not run again with more particles.
    settings = {"num_islands": 2, "num_particles": 256} if options.short else {}
    results = []
    for number in range(options.first, options.first + -(-count // size)):
        results += group(number, learned, min(size, count), draws, settings)
        if options.all:
            print("\n".join(map(str, results[-size:])), flush=True)
    print(report(results))


if __name__ == "__main__":
    main()
