"""A schedule learned for the least variance of the bound at one random time, against others.

    python examples/benchmarks/variance_schedule.py [--size 16 | --digits] [--short]

A mixture of four Gaussians in 2 dimensions, or as many as `--size` says, with its exact denoiser, T = 50. Printed, in
nats: the sd of the sum of K's KL terms, estimated from one random time, at one point (root mean square over 16 points
of the data), from one time in each of 8 equal strata, and from all T − 1 of them; K itself, and the continuous bound,
which no step between the ends changes.

With `--digits`, the same for the trained network of the packaged prior of 8 × 8 digits, T = 100, at 16 held-out digits:
`fit` trains it on, with the steps. Beside them are steps that are even in log-SNR and in the angle whose cosine is √ᾱ,
with the same ends and the same network, which is told the t that has their log-SNR in its own schedule.
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


COLUMNS = {
    "sd, one time": nd.KBound(1, 1),
    "sd, 8 strata": nd.KBound(1, 8),
    "sd, all times": nd.KBound(1, chunk=4096),
    "K": nd.KBound(16, low_discrepancy=True),
    "ContinuousBound": nd.ContinuousBound(16, 32),
}


@eqx.filter_jit
def measure(process: nd.ReverseProcess, x: Array, keys: Array, columns: tuple[str, ...]) -> list[Array]:
    """Standard deviations of estimates of the sum of the KL terms, and bounds averaged over x."""

    def spread(bound: nd.KBound) -> Array:
        draws = lambda x: jax.vmap(lambda key: bound.estimate(key, process, x).terms.kl)(keys)
        return jnp.sqrt(jnp.var(jax.vmap(draws)(x), axis=1, ddof=1).mean())

    mean = lambda likelihood: likelihood(keys[0], process, x).value.mean()
    return [(spread if name.startswith("sd") else mean)(COLUMNS[name]) for name in columns]


def show(processes: dict[str, nd.ReverseProcess], x: Array, short: bool) -> None:
    """One row for each; the smoke test has one, of one column."""
    columns = tuple(COLUMNS)[: 1 if short else None]
    print("| steps | " + " | ".join(columns) + " |\n|" + "---|" * (1 + len(columns)))
    for name in ("learned",) if short else processes:
        found = measure(processes[name], x, jax.random.split(jax.random.key(2), 20 if short else 300), columns)
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found) + " |", flush=True)


def exact(size: int, short: bool) -> None:
    """The mixture."""
    count, start = 20 if short else 600, nd.schedules.learned(T, FIRST_BETA, objective="variance")
    data = mixture(start, size).denoiser.data().sample(jax.random.key(1), (5000,))
    fitted = nd.fit(
        jax.random.key(3), mixture(start, size), data, max_steps=count, log_every=count, batch_size=128,
        learning_rate=2e-3, validation=0.0, progress_bar=False,
    )  # fmt: skip
    learned = fitted.process.diffusion.schedule
    tables = {"even": start, "cosine": nd.schedules.cosine(T), "linear": nd.schedules.linear(T), "learned": learned}
    show({name: mixture(nd.schedules.Schedule(s.table), size) for name, s in tables.items()}, data[:16], short)


def trained(short: bool) -> None:
    """The digits."""
    digits, process, count = nd.datasets.digits(), nd.load("digits").process, 5 if short else 2000
    even = process.diffusion.schedule
    start = nd.schedules.learned(even.num_steps, float(even.noise_variance(1)), even, objective="variance")
    fitted = nd.fit(
        jax.random.key(3), with_schedule(process, start), digits.train_images, max_steps=count, log_every=count,
        batch_size=256, dequantize=1 / 16, validation=0.0, progress_bar=False,
    ).process  # fmt: skip
    learned = fitted.diffusion.schedule
    angle = np.linspace(*np.arctan(np.exp(-0.5 * np.asarray(even.table)[[1, -1]])), even.num_steps)
    cosine = np.concatenate([[np.inf], -2 * np.log(np.tan(angle))])
    tables = {"even": np.asarray(even.table), "cosine": cosine, "learned": np.asarray(learned.table)}
    noise = jax.random.uniform(jax.random.key(4), (16, 8, 8)) - 0.5
    processes = {
        name: with_schedule(fitted, nd.schedules.Schedule(table, times=learned.time_at(table)))
        for name, table in tables.items()
    }
    show(processes, digits.test_images[:16] + noise / 16, short)


def with_schedule(process: nd.ReverseProcess, schedule: nd.schedules.AbstractSchedule) -> nd.ReverseProcess:
    """The same, with other steps."""
    return eqx.tree_at(lambda process: process.diffusion.schedule, process, schedule)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a smoke test")
    parser.add_argument("--size", type=int, default=2, help="dimensions (default: 2)")
    parser.add_argument("--digits", action="store_true", help="a trained network in place of the exact one")
    arguments = parser.parse_args()
    trained(arguments.short) if arguments.digits else exact(arguments.size, arguments.short)


if __name__ == "__main__":
    main()
