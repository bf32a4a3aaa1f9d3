"""A schedule learned for the least variance of the bound at one random time, against others.

    python examples/benchmarks/variance_schedule.py [--size 16] [--short]

A mixture of four Gaussians in 2 dimensions, or as many as `--size` says, with its exact denoiser, T = 50. Printed, in
nats: the sd of the sum of K's KL terms, estimated from one random time, at one point (root mean square over 16 points
of the data), and from one time in each of 8 equal strata; K itself, and the continuous bound, which no step between the
ends changes.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import numpyro_diffusion as nd

T = 50
FIRST_BETA = 2e-4


def mixture(schedule: nd.schedules.AbstractSchedule, size: int) -> nd.ReverseProcess:
    """That of `likelihoods.py`, with another schedule."""
    locs, scales = np.random.default_rng(0).standard_normal((4, size)), np.array([0.3, 0.4, 0.5, 0.6])
    diffusion = nd.GaussianDiffusion(schedule, locs.mean(0), np.sqrt(np.mean(scales**2) + locs.var(0)).mean())
    return nd.ReverseProcess(diffusion, nd.denoisers.GaussianMixture(locs, scales, np.full(4, 0.25)), (size,))


@eqx.filter_jit
def measure(process: nd.ReverseProcess, x: Array, keys: Array) -> dict[str, Array]:
    """The two standard deviations, and the two bounds averaged over x."""

    def spread(bound: nd.KBound) -> Array:
        draws = lambda x: jax.vmap(lambda key: bound.estimate(key, process, x).terms.kl)(keys)
        return jnp.sqrt(jnp.var(jax.vmap(draws)(x), axis=1, ddof=1).mean())

    mean = lambda likelihood: likelihood(keys[0], process, x).value.mean()
    return {
        "sd, one time": spread(nd.KBound(1, 1)),
        "sd, 8 strata": spread(nd.KBound(1, 8)),
        "K": mean(nd.KBound(16, low_discrepancy=True)),
        "ContinuousBound": mean(nd.ContinuousBound(16, 32)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a smoke test")
    parser.add_argument("--size", type=int, default=2, help="dimensions (default: 2)")
    arguments = parser.parse_args()
    short, size = arguments.short, arguments.size
    count, start = 20 if short else 600, nd.schedules.learned(T, FIRST_BETA, objective="variance")
    data = mixture(start, size).denoiser.data().sample(jax.random.key(1), (5000,))
    fitted = nd.fit(
        jax.random.key(3), mixture(start, size), data, num_steps=count, log_every=count, batch_size=128,
        learning_rate=2e-3, validation=0.0, progress=False,
    )  # fmt: skip
    learned = fitted.process.diffusion.schedule
    tables = {"even": start, "cosine": nd.schedules.cosine(T), "linear": nd.schedules.linear(T), "learned": learned}
    print("| steps | sd, one time | sd, 8 strata | K | ContinuousBound |\n|---|---|---|---|---|")
    for name in ("learned",) if short else tables:
        process = mixture(nd.schedules.Schedule(tables[name].table), size)
        found = measure(process, data[:16], jax.random.split(jax.random.key(2), 20 if short else 300))
        cells = " | ".join(f"{found[key]:.2f}" for key in ("sd, one time", "sd, 8 strata", "K", "ContinuousBound"))
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
