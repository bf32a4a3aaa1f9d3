"""The heartbeat of Sohl-Dickstein et al. 2015, section 3.1.2: sequences of 20 bits with a one in every fifth place.

python examples/heartbeat.py [--seed 0] [--steps 24000] [--output figures] [--ceiling] [--save PATH] [--short]

Trains a binomial diffusion of T = 2000 steps and prints K beside the truth, log2(1/5), and what 10,000 samples look
like. `--ceiling` trains nothing: it prints the K of the exact denoiser for several T, which no training can exceed.
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, networks, plots, schedules

RATE, LENGTH, PERIOD = 0.2, 20, 5
STATES = datasets.heartbeat_states(LENGTH, PERIOD)


def process(num_steps, denoiser, last_step="learned"):
    diffusion = nd.BinomialDiffusion(schedules.erasing(num_steps), RATE)
    return nd.ReverseProcess(diffusion, denoiser, (LENGTH,), last_step=last_step)


@eqx.filter_jit
def bits(key, reverse, x_0):
    """K and L_null of each sequence, in bits, from at most 200 of the T − 1 terms, in antithetic pairs."""
    likelihood = nd.KBound(2, min(reverse.num_steps - 1, 200), chunk=100)
    estimate = likelihood(key, reverse, x_0)
    return estimate.value / jnp.log(2), estimate.terms.null / jnp.log(2)


def mean_and_error(values):
    return f"{np.mean(values):9.4f} ± {np.std(values) / np.sqrt(len(values)):.4f}"


def ceiling(key, lengths, count):
    """K of the exact denoiser: what factorised reverse steps cost, whatever the network."""
    data_key, key = jax.random.split(key)
    x_0 = datasets.heartbeat(data_key, count)
    print(f"K of the exact denoiser, bits/sequence ({count} sequences; truth {-np.log2(PERIOD):.4f})")
    print("    T    last step of 2015      learned last step")
    for num_steps in lengths:
        exact = denoisers.Enumerated(STATES)
        forward, _ = bits(key, process(num_steps, exact, "forward"), x_0)
        learned, _ = bits(key, process(num_steps, exact), x_0)
        print(f"{num_steps:5d}   {mean_and_error(forward)}     {mean_and_error(learned)}", flush=True)


def train(key, num_steps, steps, width, validation):
    keys = jax.random.split(key, 3)
    network = networks.MLP(keys[0], (LENGTH,), num_steps=num_steps, width=width, depth=2)
    data = datasets.heartbeat(keys[1], 10_000)
    untrained = process(num_steps, denoisers.Network(network, "logits"))
    return nd.fit(
        keys[2], untrained, data, max_steps=steps, learning_rate=3e-3, validation=validation, validate_every=4000
    )


def report_bound(key, trained, count):
    """Print K beside its ceiling (the same sequences and noise) and the truth; return its mean."""
    data_key, key = jax.random.split(key)
    x_0 = datasets.heartbeat(data_key, count)
    k, null = bits(key, trained, x_0)
    best, _ = bits(key, process(trained.num_steps, denoisers.Enumerated(STATES)), x_0)
    print(f"bits/sequence, means over {count} held-out sequences with standard errors")
    print(f"K                        {mean_and_error(k)}   (truth {-np.log2(PERIOD):.4f}; paper -2.414)")
    print(f"K − K of exact denoiser  {mean_and_error(k - best)}")
    print(f"L_null                   {np.mean(null):9.4f}")
    print(f"K − L_null               {mean_and_error(k - null)}   (paper 12.024)", flush=True)
    return float(np.mean(k))


def report_samples(key, prior, count):
    """Print how many samples are heartbeats, and whether their phases are uniform; return the share and the p-value."""
    samples = np.asarray(eqx.filter_jit(lambda key: prior.sample(key, (count,)))(key))
    match = (samples[:, None] == np.asarray(STATES)).all(-1)
    phases = match.sum(0)
    p_value = stats.chisquare(phases).pvalue if phases.sum() else 0.0
    print(f"valid samples            {match.any(1).sum()} of {count}")
    print(f"phases                   {phases.tolist()}, chi-squared p = {p_value:.3f}", flush=True)
    return match.any(1).mean(), p_value


def picture(key, prior, path):
    """Three chains from noise (top) to data (bottom), as the steps on which the phase is decided happen."""
    import matplotlib.pyplot as plt

    chains = np.asarray(prior.sample_trajectory(key, (3,)))
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True, layout="constrained")
    for number, (ax, chain) in enumerate(zip(axes, chains, strict=True), 1):
        ax.imshow(chain, aspect="auto", cmap="Greys", interpolation="nearest",
                  extent=(0.5, LENGTH + 0.5, len(chain) - 0.5, -0.5))  # fmt: skip
        ax.invert_yaxis()
        ax.set(title=f"chain {number}", xlabel="bin; black: a beat", xticks=[1, 5, 10, 15, 20])
    axes[0].set_ylabel("step t: noise above, data below")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def save(path, key, prior, command, valid, p_value):
    """Write the prior with its card, whose figures are those of the weights as the file holds them."""
    prior.save(path, dtype="float16")
    data_key, key = jax.random.split(key)
    k, _ = bits(key, nd.load(path).process, datasets.heartbeat(data_key, 10_000))
    k = np.asarray(k, np.float64) * np.log(2)
    card = {
        "data": f"heartbeats of Sohl-Dickstein et al. 2015: {LENGTH} bits, a one in every {PERIOD}th, generated",
        "licence": "generated data; weights Apache-2.0",
        "command": command,
        "schedule": f"erasing, {prior.process.num_steps} steps, noise law Bernoulli({RATE})",
        "bound": round(float(k.mean()), 4),
        "bound_error": round(float(k.std() / np.sqrt(len(k))), 4),
        "unit": f"nats per sequence, mean of {len(k)} held-out sequences; the truth is {-np.log(PERIOD):.4f}",
        "valid_samples": float(valid),
        "phase_p_value": round(float(p_value), 3),
        "limits": "knows the five sequences only; a draw takes all the steps of a long chain",
    }
    prior.save(path, dtype="float16", card=card)
    print(f"saved: K of the file {card['bound']} ± {card['bound_error']} nats, {path.stat().st_size / 1e3:.0f} kB")


def main():
    """Train and print K, the samples and the pictures; with `--ceiling`, the exact denoiser's K only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=24_000, help="optimiser steps")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the pictures")
    parser.add_argument("--ceiling", action="store_true", help="print the K of the exact denoiser and stop")
    parser.add_argument("--save", type=Path, help="write the trained prior to this file")
    parser.add_argument("--short", action="store_true", help="a small run that shows that the script works")
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(args.seed), 4)
    if args.ceiling:
        lengths = (20, 50) if args.short else (20, 50, 100, 200, 500, 1000, 2000)
        return ceiling(keys[1], lengths, 100 if args.short else 4000)

    num_steps, width, count = (20, 32, 100) if args.short else (2000, 64, 10_000)
    start = time.perf_counter()
    result = train(keys[0], num_steps, 300 if args.short else args.steps, width, 0 if args.short else 0.02)
    print(f"seed {args.seed}, T = {num_steps}, {result.steps} steps: {time.perf_counter() - start:.0f} s of training")
    # All the terms of so long a chain would make each log_prob slow.
    prior = nd.DiffusionPrior(result.process, nd.KBound(4, min(num_steps - 1, 100)))
    k = report_bound(keys[1], result.process, count)
    valid, p_value = report_samples(keys[2], prior, count)

    args.output.mkdir(parents=True, exist_ok=True)
    picture(keys[3], prior, args.output / "heartbeat.png")
    plots.history(result).figure.savefig(args.output / "heartbeat_history.png", dpi=150)
    print(f"{time.perf_counter() - start:.0f} s in all; pictures in {args.output}")
    if args.short:
        assert k > -4, "training should come near the truth, far above the noise law, L_null = -14.4 bits"
    if args.save:
        command = f"python examples/heartbeat.py --seed {args.seed} --steps {args.steps} --save PATH"
        save(args.save, jax.random.fold_in(keys[1], 1), prior, command, valid, p_value)
    return None


if __name__ == "__main__":
    main()
