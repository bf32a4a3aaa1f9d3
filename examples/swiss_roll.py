"""The swiss roll of Sohl-Dickstein et al. 2015, section 3.1.1, without noise and with noise of a known size.

python examples/swiss_roll.py [--only noise-free | noisy] [--centers 16] [--first-beta 1e-7] [--seed 0] [--steps N]
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
from jax.flatten_util import ravel_pytree
from scipy import optimize
from tqdm.auto import tqdm

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, networks, plots, schedules
from numpyro_diffusion.likelihoods import terminal_kl

NOISE = 0.5


def mean_and_error(values):
    return f"{np.mean(values):8.4f} ± {np.std(values) / np.sqrt(len(values)):.4f}"


@eqx.filter_jit
def bits(key, process, x_0, draws):
    """K and L_null of each point, in bits; `draws` of the forward chain for each, all of their steps."""
    estimate = nd.KBound(draws, chunk=50)(key, process, x_0)
    return estimate.value / jnp.log(2), estimate.terms.null / jnp.log(2)


def mean_point(noise):
    """The law's mean, in scaled units."""
    return datasets.swiss_roll_scale(noise) * jnp.array([2, 2 / (3 * np.pi)])


def noise_free_process(key, first_beta, centers):
    """The paper's process: T = 40, mean and diagonal covariance read off one basis; centres in and outside the roll."""
    first = np.log1p(-first_beta) - np.log(first_beta)
    schedule = schedules.learned(40, first_beta, schedules.log_snr(40, -4, first))
    diffusion = nd.GaussianDiffusion(schedule, mean_point(0))
    place = np.arange(centers)
    angle = 1.5 * np.pi * (1 + 2 * (place + 0.5) / centers)
    roll = datasets.swiss_roll_scale(0) * angle * np.stack([np.cos(angle), np.sin(angle)])
    network = networks.RBF(key, (2,), num_steps=40, num_centers=centers)
    start = (roll.T - mean_point(0)) * (1 + 0.15 * (-1.0) ** place)[:, None], jnp.full(centers, np.log(0.4))
    network = eqx.tree_at(lambda n: (n.centers, n.log_widths), network, start)
    return nd.ReverseProcess(diffusion, denoisers.Network(network, "mean"), (2,), last_step="forward")


def read_outs(process, x_0, noise, excess):
    """The best read-outs of the means for one basis and schedule, by least squares, and the squared errors left.

    The mean is z + pull (o − z), o linear in the basis, so its KL is quadratic in the read-outs. `excess` is by how
    much the variances exceed those of the bridge, shape (T − 1, 2) and about 0.2; errors are in units of the bridge's.
    """

    def one(t, x_0, noise, excess):
        diffusion, basis = process.diffusion, process.denoiser.fn.basis
        x_t = diffusion.marginal_from_noise(noise, x_0, t)
        bridge, z = diffusion.bridge(x_t, x_0, t), diffusion.standardize(x_t)
        _, _, variance = diffusion.bridge_coefficients(t)
        spread = variance * (1 + excess)
        pull = spread / (1 + jnp.sqrt(1 - spread))
        target = (diffusion.standardize(bridge.mean) - (1 - pull) * z) / jnp.sqrt(variance)
        phi = jax.vmap(basis)(z)
        gram = phi.T @ phi / len(phi)
        gram = gram + 1e-8 * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
        weight = jnp.linalg.solve(gram, phi.T @ target / len(phi))
        error = jnp.mean(jnp.square(target - phi @ weight), 0)
        return (weight * jnp.sqrt(variance) / pull).T, error

    return jax.vmap(one)(jnp.arange(2, process.num_steps + 1), x_0, noise, excess)


def fit_basis(key, process, iterations, points):
    """Maximise K over centres, widths and schedule by L-BFGS, the noise frozen, the read-outs always at their best.

    With constant variances at their best too, K's terms are ½ Σ log(1 + error). Double precision; new noise every 200
    iterations.
    """
    parts = lambda p: (p.denoiser.fn.centers, p.denoiser.fn.log_widths, p.diffusion.schedule.logits)
    terms = process.num_steps - 1

    def draw(key):
        data, noise = jax.random.split(key)
        points_key = jax.random.split(data, terms)
        return jax.vmap(lambda k: datasets.swiss_roll(k, points))(points_key), jax.random.normal(noise, (terms, points, 2))

    with jax.enable_x64(True):
        process = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, process)
        flat, unravel = ravel_pytree(parts(process))
        rebuild = lambda flat: eqx.tree_at(parts, process, unravel(flat))
        excess = jnp.full((terms, 2), 0.2)

        @jax.jit
        def loss(flat, x_0, noise):
            process = rebuild(flat)
            _, error = read_outs(process, x_0, noise, excess)
            end = jax.vmap(lambda x: terminal_kl(process, x))(x_0[-1])
            return 0.5 * jnp.sum(jnp.log1p(error)) + jnp.mean(end)

        step, flat = jax.jit(jax.value_and_grad(loss)), np.asarray(flat)
        with tqdm(total=iterations, desc="basis", unit="iteration") as bar:
            for count in np.diff([*range(0, iterations, 200), iterations]):
                key, draw_key = jax.random.split(key)
                frozen = draw(draw_key)
                value = lambda flat, frozen=frozen: tuple(np.asarray(v) for v in step(flat, *frozen))
                found = optimize.minimize(value, flat, jac=True, method="L-BFGS-B", callback=lambda _: bar.update(),
                                          options={"maxiter": int(count), "maxcor": 30})  # fmt: skip
                flat = found.x
                bar.set_postfix_str(f"loss {found.fun:.3f} nats")
        process = rebuild(jnp.asarray(flat))
        _, excess = read_outs(process, *frozen, excess)
        weight, excess = read_outs(process, *frozen, excess)
        t = jnp.arange(2, process.num_steps + 1)
        spread = process.diffusion.bridge_coefficients(t[:, None])[2] * (1 + excess)
        beta = process.diffusion.schedule.beta(t)[:, None]
        bias = jnp.log(spread) - jnp.log1p(-spread) - jnp.log(beta) + jnp.log1p(-beta)
        fn = process.denoiser.fn
        fn = eqx.tree_at(lambda n: (n.weight, n.bias), fn, (fn.weight.at[1:, 0].set(weight), fn.bias.at[1:, 1].set(bias)))
        process = eqx.tree_at(lambda p: p.denoiser.fn, process, fn)
    return jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, process)


def noise_free(key, args):
    keys = jax.random.split(key, 5)
    iterations, points, steps = (20, 200, 100) if args.short else (args.steps or 1600, 2000, 4000)
    data, held_out = datasets.swiss_roll(keys[0], 100_000), datasets.swiss_roll(keys[1], 200 if args.short else 4000)
    start = time.perf_counter()
    process = fit_basis(keys[2], noise_free_process(keys[2], args.first_beta, args.centers), iterations, points)
    evaluate = lambda process: bits(keys[4], process, held_out, 2 if args.short else 8)
    k, null = evaluate(process)
    print(f"K - L_null          {mean_and_error(k - null)}   (constant variances)", flush=True)
    result = nd.fit(
        keys[3], process, data, num_steps=steps, batch_size=256 if args.short else 1024, learning_rate=3e-4, validation=0,
    )  # fmt: skip
    k, null = evaluate(result.process)
    print(f"noise-free, T = 40, {args.centers} centres, first beta {args.first_beta:g}, seed {args.seed}, "
          f"{iterations} iterations, {steps} steps")  # fmt: skip
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
    parser.add_argument("--first-beta", type=float, default=1e-7, help="the fixed first step of the noise-free chain")
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
