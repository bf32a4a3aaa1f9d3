"""Log evidence by as many particles as others take draws: relative errors on mixtures whose evidence is known.

After the protocol of DiME (Wang and Bouman 2026), whose own mixtures are not published: these are ours. The prior is a
mixture of ten Gaussians in 32 dimensions, its exact denoiser the model; eight linear observations under noise. They are
of a draw of the prior ("in"), moved by two or five prior standard deviations in each observation ("out", "far"), or
those of the point half way between two modes ("saddle"). Printed is the mean over problems and keys of |estimate - log
Z| / |log Z|, in per cent, with its standard error over problems, and what it cost in calls of the denoiser.

    python examples/benchmarks/evidence.py [--short] [--problems 20] [--keys 10] [--particles 20]
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from mixture import ends_of

import numpyro_diffusion as nd
from numpyro_diffusion.schedules import Schedule

SIZE, COMPONENTS, LOOKS, NUM_STEPS = 32, 10, 8, 100
KINDS = ("in", "out", "far", "saddle")
MOVED = {"out": 2.0, "far": 5.0}  # prior standard deviations
Way = Callable[[Array, dict[str, Any], Schedule], Array]  # from a key, a problem and the chain's: log evidence


def problem(seed: int, kind: str) -> dict[str, Any]:
    """A prior, an operator, a noise scale, what is seen, and the exact log evidence."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    means, deviations = 3 * rng.standard_normal((COMPONENTS, SIZE)), rng.uniform(0.5, 1.5, SIZE)
    weights = rng.dirichlet(np.full(COMPONENTS, 2.0))
    operator = rng.standard_normal((LOOKS, SIZE)) / np.sqrt(SIZE)
    scale = rng.uniform(0.2, 1.0)
    x = means[rng.choice(COMPONENTS, p=weights)] + deviations * rng.standard_normal(SIZE)
    if kind == "saddle":
        x = means[rng.choice(COMPONENTS, 2, replace=False)].mean(0)
    y = operator @ x + scale * rng.standard_normal(LOOKS) * (kind != "saddle")
    covariance = (operator * deviations**2) @ operator.T + scale**2 * np.eye(LOOKS)
    centres = means @ operator.T
    if kind in MOVED:
        spread = np.sqrt(np.diag(covariance) + (weights @ centres**2 - (weights @ centres) ** 2))
        y = y + MOVED[kind] * spread * rng.choice([-1, 1], LOOKS)
    left = y - centres
    square = np.einsum("ki,ki->k", left, np.linalg.solve(covariance, left.T).T)
    log_parts = np.log(weights) - 0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])
    found = {"means": means, "deviations": deviations, "weights": weights, "operator": operator, "y": y}
    return found | {"scale": scale, "log_evidence": np.logaddexp.reduce(log_parts)}


def posterior(given: dict[str, Any], schedule: Schedule) -> Any:
    """Prior times factor."""
    scales = jnp.broadcast_to(given["deviations"], given["means"].shape)
    denoiser = nd.denoisers.GaussianMixture(given["means"], scales, given["weights"])
    process = nd.ReverseProcess(nd.GaussianDiffusion(schedule), denoiser, SIZE)
    return nd.DiffusionPrior(process) * nd.factors.LinearGaussian(given["y"], given["operator"], given["scale"])


def for_keys(run: Way) -> Way:
    """The same for several keys; one program serves problems of all kinds."""
    return jax.jit(lambda keys, given, schedule: jax.lax.map(lambda key: run(key, given, schedule), keys))


def by_smc(count: int) -> Way:
    """One run of SMC with the default twist, in pairs of opposite noise."""

    def run(key: Array, given: dict[str, Any], schedule: Schedule) -> Array:
        found = posterior(given, schedule)
        sampler = nd.samplers.TwistedSMC(count, antithetic=True)
        return sampler.run(key, found.prior.process, found.factor).log_evidence

    return for_keys(run)


def by_draws(count: int) -> Way:
    """The likelihood's mean over draws of the prior."""

    def run(key: Array, given: dict[str, Any], schedule: Schedule) -> Array:
        found = posterior(given, schedule)
        x = found.prior.sample(key, (count,))
        return logsumexp(jax.vmap(found.factor.log_r)(x)) - jnp.log(count)

    return for_keys(run)


def errors(way: Way, kind: str, options: argparse.Namespace) -> np.ndarray:
    """Relative errors in per cent, shape (problems, keys)."""
    given = [problem(seed, kind) for seed in range(options.problems)]
    schedule = nd.schedules.log_snr(NUM_STEPS, *ends_of(given[0]["means"]))  # of the prior alone
    stacked = {name: jnp.asarray(np.stack([each[name] for each in given]), float) for name in given[0]}
    keys = jax.random.split(jax.random.key(0), (options.problems, options.keys))
    exact = stacked.pop("log_evidence")[:, None]
    each = [{name: value[i] for name, value in stacked.items()} for i in range(options.problems)]
    found = np.stack([way(own, one, schedule) for own, one in zip(keys, each, strict=True)])
    return np.asarray(100 * np.abs(found - exact) / np.abs(exact), np.float64)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=20, help="of each kind")
    parser.add_argument("--keys", type=int, default=10, help="for each problem")
    parser.add_argument("--particles", type=int, default=20)
    parser.add_argument("--short", action="store_true", help="two problems, two keys")
    options = parser.parse_args()
    if options.short:
        options.problems, options.keys = 2, 2
    count = options.particles
    ways = {f"SMC, {count} particles": by_smc(count), f"{count} draws of the prior": by_draws(count)}
    print(f"| way | calls of the denoiser | {' | '.join(KINDS)} |")
    print(f"|---|---|{'---|' * len(KINDS)}")
    for name, way in ways.items():
        cells = []
        for kind in KINDS:
            found = errors(way, kind, options).mean(1)
            cells.append(f"{found.mean():.2f} ± {found.std(ddof=1) / np.sqrt(len(found)):.2f}")
        print(f"| {name} | {count * NUM_STEPS} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
