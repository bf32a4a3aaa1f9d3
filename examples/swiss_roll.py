"""The swiss roll of Sohl-Dickstein et al. 2015, section 3.1.1, without noise and with noise of a known size.

python examples/swiss_roll.py [--only noise-free | noisy] [--centers 16] [--first-beta 2e-6] [--seed 0] [--steps N]
                              [--output figures] [--save PATH] [--short]

Noise-free: the paper's set-up, T = 40, a radial-basis network with a read-out for every step, a learned schedule with
a fixed first step, and the fixed last step. Points on a curve have no density, so K has no ceiling: it grows as the
first step shrinks, for as long as the network resolves the curve. Prints K − L_null.
Noisy: with noise 0.5 (before scaling) the density is known by quadrature. Prints how far K stays below it.
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, networks, plots, schedules

NOISE = 0.5


def mean_and_error(values):
    return f"{np.mean(values):8.4f} ± {np.std(values) / np.sqrt(len(values)):.4f}"


@eqx.filter_jit
def bits(key, process, x_0, draws):
    """K and L_null of each point, in bits; `draws` of the forward chain for each, all of their steps."""
    estimate = nd.KBound(draws, chunk=64)(key, process, x_0)
    return estimate.value / jnp.log(2), estimate.terms.null / jnp.log(2)


def mean_point(noise):
    """The law's mean, in scaled units."""
    return datasets.swiss_roll_scale(noise) * jnp.array([2, 2 / (3 * np.pi)])


def noise_free_process(key, first_beta, centers):
    """The paper's process: T = 40, mean and diagonal covariance from one basis, centres started on the data."""
    first = np.log1p(-first_beta) - np.log(first_beta)
    schedule = schedules.learned(40, first_beta, schedules.log_snr(40, -5, first))
    diffusion = nd.GaussianDiffusion(schedule, mean_point(0))
    network = networks.RBF(key, (2,), num_steps=40, num_centers=centers)
    start = diffusion.standardize(datasets.swiss_roll(key, centers))
    network = eqx.tree_at(lambda n: n.centers, network, start)
    return nd.ReverseProcess(diffusion, denoisers.Network(network, "mean"), (2,), last_step="forward")


def adam_by_step(process, learning_rate, steps):
    """Adam whose updates of the mean's read-outs are as large as the answers there: 1/(noise's scale) at each step."""
    rate = optax.warmup_cosine_decay_schedule(0, learning_rate, steps // 50, steps, learning_rate / 100)
    noise = jnp.sqrt(process.diffusion.schedule.noise_variance(jnp.arange(1, process.num_steps + 1)))
    size = jnp.stack([1 / noise, jnp.ones_like(noise)], -1)[..., None]  # (step, mean or variance, 1)
    read_outs = lambda p: (p.denoiser.fn.weight, p.denoiser.fn.bias)

    def rescale(updates, params):
        weight, bias = read_outs(updates)
        return eqx.tree_at(read_outs, updates, (weight * size[..., None], bias * size))

    return optax.chain(optax.adam(rate, b2=0.99), optax.stateless(rescale))


def noise_free(key, args):
    keys = jax.random.split(key, 5)
    steps = args.steps or (200 if args.short else 12_000)
    data, held_out = datasets.swiss_roll(keys[0], 100_000), datasets.swiss_roll(keys[1], 200 if args.short else 4000)
    process = noise_free_process(keys[2], args.first_beta, args.centers)
    start = time.perf_counter()
    result = nd.fit(
        keys[3], process, data, num_steps=steps, batch_size=256 if args.short else 1024,
        optimizer=adam_by_step(process, 1e-2, steps), validation=held_out[:1000], validate_every=2000,
    )  # fmt: skip
    k, null = bits(keys[4], result.process, held_out, 2 if args.short else 8)
    print(f"noise-free, T = 40, {args.centers} centres, first beta {args.first_beta:g}, seed {args.seed}, {steps} steps")
    print(f"K, bits             {mean_and_error(k)}   (paper 2.35)")
    print(f"L_null              {mean_and_error(null)}   (paper -4.10)")
    print(f"K - L_null          {mean_and_error(k - null)}   (paper 6.45; cap {-np.log2(args.first_beta):.2f})")
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    axes = plots.trajectory(keys[4], result.process, held_out[:1500])
    axes[0, 0].figure.savefig(args.output / "swiss_roll.png", dpi=120)
    return float(np.mean(k - null))


def noisy(key, args):
    keys = jax.random.split(key, 5)
    steps = args.steps or (200 if args.short else 12_000)
    num_steps, width, count = (20, 32, 200) if args.short else (200, 128, 20_000)
    data, held_out = datasets.swiss_roll(keys[0], 100_000, NOISE), datasets.swiss_roll(keys[1], count, NOISE)
    diffusion = nd.GaussianDiffusion(schedules.log_snr(num_steps, -7, 6), mean_point(NOISE))
    network = networks.MLP(keys[2], (2,), num_steps=num_steps, width=width, outputs=2)
    process = nd.ReverseProcess(diffusion, denoisers.Network(network, "velocity", "learned"), (2,))
    start = time.perf_counter()
    result = nd.fit(
        keys[3], process, data, num_steps=steps, batch_size=512, learning_rate=2e-3,
        validation=held_out[:1000], validate_every=2000,
    )  # fmt: skip
    truth = datasets.swiss_roll_log_prob(held_out, NOISE) / jnp.log(2)
    k, _ = bits(keys[4], result.process, held_out, 2)
    gap = np.asarray(truth - k)
    print(f"noise {NOISE}, T = {num_steps}, seed {args.seed}, {steps} steps, {count} held-out points")
    print(f"log density, bits   {mean_and_error(truth)}   (exact, by quadrature)")
    print(f"K, bits             {mean_and_error(k)}")
    print(f"log density - K     {mean_and_error(gap)}   (target at most 0.10)")
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    plots.history(result).figure.savefig(args.output / "swiss_roll_history.png", dpi=120)
    if args.save:
        card = {
            "data": f"two-dimensional swiss roll, noise {NOISE} before scaling, generated", "licence": "Apache-2.0",
            "command": f"python examples/swiss_roll.py --only noisy --seed {args.seed} --steps {steps}",
            "log density - K, bits": round(float(gap.mean()), 3),
        }  # fmt: skip
        nd.DiffusionPrior(result.process).save(args.save, dtype="float32", card=card)
    return float(gap.mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["noise-free", "noisy"], help="one of the two experiments")
    parser.add_argument("--centers", type=int, default=16, help="basis functions of the noise-free network")
    parser.add_argument("--first-beta", type=float, default=2e-6, help="the fixed first step of the noise-free chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimiser steps of each training")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the pictures")
    parser.add_argument("--save", type=Path, help="write the prior of the noisy roll to this file")
    parser.add_argument("--short", action="store_true", help="a small run that shows that the script works")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(args.seed))
    if args.only != "noisy":
        gain = noise_free(keys[0], args)
        assert not args.short or 0 < gain < -np.log2(args.first_beta), gain
    if args.only != "noise-free":
        gap = noisy(keys[1], args)
        assert not args.short or gap < 3, gap


if __name__ == "__main__":
    main()
