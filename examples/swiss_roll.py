"""The swiss roll of Sohl-Dickstein et al. 2015, section 3.1.1: points on a curve in the plane.

python examples/swiss_roll.py [--centers 16] [--first-beta 1e-7] [--seed 0] [--steps 1000] [--output figures] [--short]

The paper's set-up: T = 40, a network of 16 radial basis functions with read-outs for every step, a learned schedule
with a fixed first step, the fixed last step, a quasi-Newton method with frozen noise. Prints K and K − L_null.
Points on a curve have no density, so K has no ceiling: it grows as the first step shrinks, for as long as the network
resolves the curve.
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import optimize
from tqdm.auto import tqdm

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, networks, plots, schedules
from numpyro_diffusion.likelihoods import terminal_kl


def mean_and_error(values):
    return f"{np.mean(values):8.4f} ± {np.std(values) / np.sqrt(len(values)):.4f}"


@eqx.filter_jit
def bits(key, process, x_0, draws):
    """K and L_null of each point, in bits, from `draws` of the forward chain."""
    estimate = nd.KBound(draws, chunk=100)(key, process, x_0)
    return estimate.value / jnp.log(2), estimate.terms.null / jnp.log(2)


def untrained(key, first_beta, centers):
    """The paper's process: mean and diagonal covariance read off one basis, its centres by turns in and outside."""
    first = np.log1p(-first_beta) - np.log(first_beta)
    schedule = schedules.learned(40, first_beta, schedules.log_snr(40, -4, first))
    loc = datasets.swiss_roll_scale() * np.array([2, 2 / (3 * np.pi)])  # the law's mean
    diffusion = nd.GaussianDiffusion(schedule, loc)
    place = np.arange(centers)
    angle = 1.5 * np.pi * (1 + 2 * (place + 0.5) / centers)
    roll = datasets.swiss_roll_scale() * angle * np.stack([np.cos(angle), np.sin(angle)])
    network = networks.RBF(key, (2,), num_steps=40, num_centers=centers)
    start = (roll.T - loc) * (1 + 0.3 * (-1.0) ** place)[:, None], jnp.zeros(centers)
    network = eqx.tree_at(lambda n: (n.centers, n.log_widths), network, start)
    return nd.ReverseProcess(diffusion, denoisers.Network(network, "mean"), (2,), last_step="forward")


def read_outs(process, x_0, noise, excess):
    """The best read-outs of the means for one basis and schedule, by least squares, and the squared errors left.

    The mean is z + pull (o − z), o linear in the basis, so its KL is quadratic in the read-outs. `excess` is by how
    much the variances exceed the bridge's, relative to it, shape (T − 1, 2); the errors are relative to it too.
    """
    diffusion, basis = process.diffusion, process.denoiser.fn.basis

    def one(t, x_0, noise, excess):
        x_t = diffusion.marginal_from_noise(noise, x_0, t)
        variance, z = diffusion.bridge_coefficients(t)[2], diffusion.standardize(x_t)
        spread = variance * (1 + excess)
        pull = spread / (1 + jnp.sqrt(1 - spread))
        target = (diffusion.standardize(diffusion.bridge(x_t, x_0, t).mean) - (1 - pull) * z) / jnp.sqrt(variance)
        phi = jax.vmap(basis)(z)
        gram = phi.T @ phi
        weight = jnp.linalg.solve(gram + 1e-9 * jnp.trace(gram) * jnp.eye(len(gram)), phi.T @ target)
        error = jnp.mean(jnp.square(target - phi @ weight), 0)
        return (weight * jnp.sqrt(variance) / pull).T, error

    return jax.vmap(one)(jnp.arange(2, process.num_steps + 1), x_0, noise, excess)


def with_read_outs(process, x_0, noise, excess):
    """The process with the best read-outs of the means, and constant variances that match their errors."""
    _, excess = read_outs(process, x_0, noise, excess)
    weight, excess = read_outs(process, x_0, noise, excess)
    t, fn = jnp.arange(2, process.num_steps + 1)[:, None], process.denoiser.fn
    logit = lambda p: jnp.log(p) - jnp.log1p(-p)
    bias = logit(process.diffusion.bridge_coefficients(t)[2] * (1 + excess)) - logit(process.diffusion.schedule.beta(t))
    values = fn.weight.at[1:, 0].set(weight), fn.bias.at[1:, 1].set(bias)
    return eqx.tree_at(lambda p: (p.denoiser.fn.weight, p.denoiser.fn.bias), process, values)


def fit_basis(key, process, iterations, points):
    """Maximise K over centres, widths and schedule by L-BFGS, the noise frozen, the read-outs always at their best.

    With the best constant variances, K's terms are ½ Σ log(1 + error). New points and noise every 200 iterations.
    """
    parts = lambda p: (p.denoiser.fn.centers, p.denoiser.fn.log_widths, p.diffusion.schedule.logits)
    cast = lambda tree, kind: jax.tree.map(lambda x: x.astype(kind) if eqx.is_inexact_array(x) else x, tree)
    shape = process.num_steps - 1, points, 2
    excess = np.full((shape[0], 2), 0.2)
    with jax.enable_x64(True), tqdm(total=iterations, desc="basis", unit="iteration") as bar:
        process = cast(process, jnp.float64)
        flat, unravel = ravel_pytree(parts(process))
        rebuild = lambda flat: eqx.tree_at(parts, process, unravel(flat))

        @jax.jit
        @jax.value_and_grad
        def loss(flat, x_0, noise):
            process = rebuild(flat)
            end = jax.vmap(lambda x: terminal_kl(process, x))(x_0[-1])
            return 0.5 * jnp.sum(jnp.log1p(read_outs(process, x_0, noise, excess)[1])) + jnp.mean(end)

        for first in range(0, iterations, 200):
            data_key, noise_key = jax.random.split(jax.random.fold_in(key, first))
            x_0 = datasets.swiss_roll(data_key, shape[0] * points).reshape(shape)
            noise = jax.random.normal(noise_key, shape)
            found = optimize.minimize(
                lambda flat, x_0=x_0, noise=noise: tuple(map(np.asarray, loss(flat, x_0, noise))), np.asarray(flat),
                jac=True, method="L-BFGS-B", callback=lambda _: bar.update(),
                options={"maxiter": min(200, iterations - first), "maxcor": 30},
            )  # fmt: skip
            flat = found.x
            bar.set_postfix_str(f"loss {found.fun:.3f} nats")
        process = with_read_outs(rebuild(jnp.asarray(flat)), x_0, noise, excess)
    return cast(process, jnp.float32)


def variances_only(optimizer):
    """The optimiser, its updates set to zero but for the read-outs of the variances."""

    def keep(updates, params):
        fn = updates.denoiser.fn
        kept = fn.weight.at[:, 0].set(0), fn.bias.at[:, 0].set(0)
        zeros = jax.tree.map(jnp.zeros_like, updates)
        return eqx.tree_at(lambda p: (p.denoiser.fn.weight, p.denoiser.fn.bias), zeros, kept)

    return optax.chain(optimizer, optax.stateless(keep))


def main():
    """Train, print K and L_null in bits, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--centers", type=int, default=16, help="basis functions")
    parser.add_argument("--first-beta", type=float, default=1e-7, help="the fixed first step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000, help="iterations of the quasi-Newton method")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the picture")
    parser.add_argument("--short", action="store_true", help="a small run that shows that the script works")
    args = parser.parse_args()
    iterations, points, steps, count, draws = (
        (25, 400, 100, 200, 2) if args.short else (args.steps, 2000, 4000, 4000, 8)
    )
    keys = jax.random.split(jax.random.key(args.seed), 6)
    data, held_out = datasets.swiss_roll(keys[0], 100_000), datasets.swiss_roll(keys[1], count)
    start = time.perf_counter()
    process = untrained(keys[2], args.first_beta, args.centers)
    process = fit_basis(keys[3], process, iterations, points)
    result = nd.fit(
        keys[4], process, data, max_steps=steps, batch_size=256 if args.short else 1024, validation=0,
        optimizer=variances_only(optax.adam(optax.cosine_decay_schedule(1e-2, steps))),
    )  # fmt: skip
    print(f"seed {args.seed}, {args.centers} centres, first beta {args.first_beta:g}, {iterations} iterations, "
          f"{steps} steps: {time.perf_counter() - start:.0f} s of training")  # fmt: skip
    k, null = bits(keys[5], result.process, held_out, draws)
    print(f"bits, means over {count} held-out points with standard errors")
    print(f"K           {mean_and_error(k)}   (paper 2.35)")
    print(f"L_null      {mean_and_error(null)}   (paper -4.10)")
    print(f"K - L_null  {mean_and_error(k - null)}   (paper 6.45; cap {-np.log2(args.first_beta):.2f})", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    axes = plots.trajectory(keys[5], result.process, held_out[:1500])
    axes[0, 0].figure.savefig(args.output / "swiss_roll.png", dpi=120)
    print(f"{time.perf_counter() - start:.0f} s in all; picture in {args.output}")
    if args.short:
        assert 0 < np.mean(k - null) < -np.log2(args.first_beta), "K should lie between L_null and its cap"


if __name__ == "__main__":
    main()
