"""A swiss roll with noise, whose density is known: how far K stays below it.

python examples/swiss_roll_noisy.py [--seed 0] [--steps 16000] [--output figures] [--save PATH] [--short]

The roll of Sohl-Dickstein et al. 2015, section 3.1.1, with noise of standard deviation 0.5 before scaling (about 0.07
after it). The true log density is computed by quadrature; prints its mean minus that of K on the same held-out points.
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, networks, plots, schedules

NOISE = 0.5


def mean_and_error(values):
    return f"{np.mean(values):8.4f} ± {np.std(values) / np.sqrt(len(values)):.4f}"


@eqx.filter_jit
def bits(key, process, x_0):
    """K of each point, in bits, from at most 100 of the T − 1 terms, in antithetic pairs."""
    return nd.KBound(2, min(process.num_steps - 1, 100), chunk=100)(key, process, x_0).value / jnp.log(2)


def untrained(key, num_steps, width):
    """Log-SNR from 6, noise a little finer than the roll's, to -7; one learned variance for each element and step."""
    mean = datasets.swiss_roll_scale(NOISE) * np.array([2, 2 / (3 * np.pi)])
    diffusion = nd.GaussianDiffusion(schedules.log_snr(num_steps, -7, 6), mean)
    network = networks.MLP(key, (2,), num_steps=num_steps, width=width, outputs=2)
    return nd.ReverseProcess(diffusion, denoisers.Network(network, "velocity", "learned"), (2,))


def save(path, key, prior, command, count):
    """Write the prior with its card, whose figures are those of the weights as the file holds them."""
    prior.save(path, dtype="float16")
    data_key, key = jax.random.split(key)
    x_0 = datasets.swiss_roll(data_key, count, NOISE)
    k = np.asarray(bits(key, nd.load(path).process, x_0), np.float64) * np.log(2)
    gap = np.asarray(datasets.swiss_roll_log_prob(x_0, NOISE)) - k
    schedule = prior.process.diffusion.schedule
    first, last = float(schedule.log_snr(1)), float(schedule.log_snr(schedule.num_steps))
    card = {
        "data": f"the two-dimensional swiss roll of datasets.swiss_roll, noise {NOISE} before scaling, generated",
        "licence": "generated data; weights Apache-2.0",
        "command": command,
        "schedule": f"log-SNR in {schedule.num_steps} equal steps, {first:g} to {last:g}",
        "bound": round(float(k.mean()), 4),
        "bound_error": round(float(k.std() / np.sqrt(len(k))), 4),
        "unit": f"nats per point, mean of {len(k)} held-out points",
        "log_density_minus_bound": round(float(gap.mean()), 4),
        "log_density_minus_bound_error": round(float(gap.std() / np.sqrt(len(k))), 4),
        "limits": "one roll, one noise scale; points far from it were never seen",
    }
    prior.save(path, dtype="float16", card=card)
    print(f"saved: K of the file {card['bound']} ± {card['bound_error']} nats, {path.stat().st_size / 1e3:.0f} kB")


def main():
    """Train, print K beside the exact log density in bits, and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16_000, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the pictures")
    parser.add_argument("--save", type=Path, help="write the trained prior to this file")
    parser.add_argument("--short", action="store_true", help="a small run that shows that the script works")
    args = parser.parse_args()
    num_steps, width, steps, count = (20, 32, 200, 200) if args.short else (200, 80, args.steps, 8000)
    keys = jax.random.split(jax.random.key(args.seed), 5)
    data, held_out = datasets.swiss_roll(keys[0], 100_000, NOISE), datasets.swiss_roll(keys[1], count, NOISE)
    start = time.perf_counter()
    result = nd.fit(
        keys[2], untrained(keys[3], num_steps, width), data, max_steps=steps, batch_size=512, learning_rate=2e-3,
        validation=0 if args.short else 0.01, validate_every=1000,
    )  # fmt: skip
    print(f"seed {args.seed}, T = {num_steps}, {steps} steps: {time.perf_counter() - start:.0f} s of training")
    truth = datasets.swiss_roll_log_prob(held_out, NOISE) / jnp.log(2)
    k = bits(keys[4], result.process, held_out)
    gap = np.asarray(truth - k)
    print(f"bits, means over {count} held-out points with standard errors")
    print(f"log density      {mean_and_error(truth)}   (exact, by quadrature)")
    print(f"K                {mean_and_error(k)}")
    print(f"log density - K  {mean_and_error(gap)}", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    plots.history(result).figure.savefig(args.output / "swiss_roll_history.png", dpi=120)
    axes = plots.trajectory(keys[4], result.process, held_out[:1500], times=[0, 3 * num_steps // 10, num_steps])
    axes[0, 0].figure.savefig(args.output / "swiss_roll_noisy.png", dpi=120)
    print(f"{time.perf_counter() - start:.0f} s in all; pictures in {args.output}")
    if args.short:
        assert gap.mean() < 3, "K should not be far below the density"
    if args.save:
        prior = nd.DiffusionPrior(result.process, nd.KBound(4, min(num_steps - 1, 100)))
        command = f"python examples/swiss_roll_noisy.py --seed {args.seed} --steps {steps} --save PATH"
        save(args.save, jax.random.fold_in(keys[1], 1), prior, command, count)


if __name__ == "__main__":
    main()
