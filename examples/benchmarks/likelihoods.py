"""All likelihood estimators side by side: against exact log p, on trained priors, in NUTS, and as critics of data.

    python examples/benchmarks/likelihoods.py [--short] [--only default mixtures digits swiss-roll nuts criticism]
        [--seeds 32] [--rows ImportanceWeighted "ProbabilityFlow, 8 probes" …]

Mixtures of four Gaussians in d = 2, 16, 64 dimensions with their exact denoisers, T = 200. Every estimator is given
about the same number of network evaluations for one point. Printed, in nats per dimension: the mean error with its
standard error over points and seeds, the sd over seeds at one point (root mean square over points), that of an element
of the gradient, the sd of the z-scores, and the milliseconds of one value with its gradient. "one time" is the
evidence bound at independent random times with independent noise. Errors from few replicates have long tails: for the
sd of the z-scores take more seeds, as by ``--seeds 500``, and the rows that are wanted.

`default` compares the default of a prior with plain draws: the sd over frozen keys of `log_prob`, in nats per
dimension, and of its mean over 64 points that share a key, in nats.

`nuts` samples a posterior with a known answer under every estimator, each run with another frozen key; `criticism`
scores held-out digits against corrupted ones, and counts bits. Its seconds are of processor time.
"""

import argparse
import time
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd
from numpyro_diffusion.likelihoods import bits_per_dim

T = 200
LEARNED = ("banana", "correlated normal")


def mixture(size: int, num_steps: int = T) -> nd.ReverseProcess:
    """Four components with standard deviations from 0.3 to 0.6 at standard normal places."""
    locs, scales = np.random.default_rng(0).standard_normal((4, size)), np.array([0.3, 0.4, 0.5, 0.6])
    scale = np.sqrt(np.mean(scales**2) + locs.var(0)).mean()
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps), locs.mean(0), scale)
    denoiser = nd.denoisers.GaussianMixture(locs, scales, np.full(4, 0.25))
    return nd.ReverseProcess(diffusion, denoiser, (size,))


def estimators(size: int, budget: int) -> dict[str, Any]:
    """One of each at about `budget` network evaluations for one point."""
    replicates = 16
    times, products = budget // replicates, 1 + min(size, 64)
    few = min(size, 5)
    return {
        "one time": nd.KBound(budget // 2, 1, antithetic=False),
        "KBound": nd.KBound(max(2, 2 * (budget // (2 * T)))),
        "KBound, low discrepancy": nd.KBound(replicates, times - 1, antithetic=False, low_discrepancy=True),
        "ContinuousBound": nd.ContinuousBound(replicates, times * 8 // 9),
        "ImportanceWeighted": nd.ImportanceWeighted(max(2, budget // T)),
        "ImportanceWeighted, twisted": nd.ImportanceWeighted(max(2, budget // T), "twisted"),
        "PathIntegral": nd.PathIntegral(replicates, times * 8 // 9),
        f"PathIntegral, {few} products": nd.PathIntegral(5, budget // (5 + 5 * few), num_products=few),
        "ProbabilityFlow": nd.ProbabilityFlow(max(4, budget // (6 * products)), 0),
        "ProbabilityFlow, quadrature": nd.ProbabilityFlow(24, 0, num_traces=max(4, (budget - 160) // products)),
        "ProbabilityFlow, 8 probes": nd.ProbabilityFlow(max(4, budget // 34), 8),
    }


@eqx.filter_jit
def run(estimator: Any, process: nd.ReverseProcess, x: Array, keys: Array) -> Any:
    """Value, standard error and gradient for each point, shape (points, size), and key, shape (points, seeds)."""

    def value(x: Array, key: Array) -> Any:
        estimate = estimator.estimate(key, process, x)
        return estimate.value, estimate.widened_error

    one = jax.value_and_grad(value, has_aux=True)
    return jax.lax.map(lambda pair: jax.lax.map(lambda key: one(pair[0], key), pair[1]), (x, keys))


def mixtures(short: bool, seeds: int = 32, rows: list[str] | None = None) -> None:
    """The table against exact log p."""
    print("| d | estimator | evaluations | error | sd | sd, gradient | z | ms |")
    print("|---|---|---|---|---|---|---|---|")
    for size in (2,) if short else (2, 16, 64):
        process, budget = mixture(size), 128 if short else 1024
        data = process.denoiser.data()
        points, seeds = (2, 4) if short else (8, seeds)
        x = data.sample(jax.random.key(1), (points,))
        exact, keys = np.asarray(data.log_prob(x), np.float64), jax.random.split(jax.random.key(2), (points, seeds))
        chosen = estimators(size, budget)
        for name in ("KBound, low discrepancy",) if short else [name for name in chosen if not rows or name in rows]:
            row(name, chosen[name], process, x, exact, keys)


def row(name: str, estimator: Any, process: Any, x: Array, exact: np.ndarray, keys: Array) -> None:
    """One estimator at all points."""
    size = x.shape[1]
    (value, error), gradient = jax.tree.map(np.asarray, run(estimator, process, x, keys))
    start = time.perf_counter()
    jax.block_until_ready(run(estimator, process, x, keys))
    spent = (time.perf_counter() - start) / keys.size * 1e3
    wrong = (value - exact[:, None]) / size
    spread = np.sqrt(np.mean(wrong.var(1, ddof=1)))
    score = (value - value.mean(1, keepdims=True)) / np.where(error > 0, error, np.nan)
    scored = f"{np.nanstd(score):.2f}" if (error > 0).any() else ""
    slope = np.sqrt(np.mean(gradient.var(1, ddof=1)))
    accuracy = spread / np.sqrt(wrong.size)
    print(
        f"| {size} | {name} | {estimator.evaluations(process)} | {wrong.mean():.2g} ± {accuracy:.1g} | {spread:.2g} | "
        f"{slope:.2g} | {scored} | {spent:.2g} |",
        flush=True,
    )


def learned(name: str) -> tuple[nd.ReverseProcess, Array]:
    """A prior trained for 500 steps, and points of its data: a bent law in 2 dimensions, a correlated normal in 8."""
    noise = np.random.default_rng(2).standard_normal((2000, 8)).astype(np.float32)
    if name == "banana":
        data = np.stack([noise[:, 0], noise[:, 0] ** 2 - 1 + 0.3 * noise[:, 1]], 1)
    else:
        data = noise @ np.linalg.cholesky(0.8 * np.ones((8, 8)) + 0.2 * np.eye(8)).T.astype(np.float32)
    prior = nd.fit_prior(jax.random.key(0), data, max_steps=500, progress_bar=False)
    return prior.process, jnp.asarray(data[:64])


def default_cases(short: bool) -> Any:
    """Names, processes and points: exact Gaussians, a mixture, learned priors."""
    for size, steps in ((2, 25),) if short else ((1, 25), (2, 25), (10, 25), (64, 25), (64, 100)):
        scale = jnp.exp(jnp.linspace(-1.0, 0.4, size))
        diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(steps))
        points = scale * jax.random.normal(jax.random.key(1), (64, size))
        yield (
            f"Gaussian, d = {size}, T = {steps}",
            nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, scale), size),
            points,
        )
    for steps in () if short else (25, 100):
        process = mixture(2, steps)
        yield f"mixture, d = 2, T = {steps}", process, process.denoiser.data().sample(jax.random.key(1), (64,))
    for name in () if short else LEARNED:
        process, points = learned(name)
        yield f"learned {name}, d = {points.shape[1]}, T = {process.num_steps}", process, points


def default(short: bool) -> None:
    """The frozen noise of a prior's `log_prob`, by default and with independent noise for every term."""
    print("| prior | likelihood | sd a dimension | sd of the mean of 64 points | ms |")
    print("|---|---|---|---|---|")
    for title, process, x in default_cases(short):
        for name, likelihood in {"KBound(4)": nd.KBound(4), "default": nd.DiffusionPrior(process).likelihood}.items():
            keys = jnp.broadcast_to(
                jax.random.split(jax.random.key(5), 4 if short else 32), (len(x), 4 if short else 32)
            )
            value = np.asarray(run(likelihood, process, x, keys)[0][0], np.float64)
            start = time.process_time()
            jax.block_until_ready(run(likelihood, process, x, keys))
            spent = (time.process_time() - start) / keys.size * 1e3
            sd = np.sqrt(value.var(1, ddof=1).mean()) / x.shape[1]
            print(f"| {title} | {name} | {sd:.2g} | {value.mean(0).std(ddof=1):.2g} | {spent:.2g} |", flush=True)


def trained(title: str, process: nd.ReverseProcess, x: Array, chosen: dict[str, Any], exact: Any = None) -> None:
    """All estimators on held-out points of a trained prior, and how far each is from the first, or the exact law."""
    print(f"\n{title}: {len(x)} points, nats per example\n")
    print("| estimator | kind | evaluations | mean | ± over points | less the first | Monte Carlo ± |")
    print("|---|---|---|---|---|---|---|")
    first = None if exact is None else np.asarray(exact, np.float64)
    if first is not None:
        print(f"| the data's own law | exact | | {first.mean():.3f} | {first.std() / np.sqrt(len(x)):.3f} | | |")
    for name, estimator in chosen.items():
        got = eqx.filter_jit(estimator)(jax.random.key(3), process, x)
        value = np.asarray(got.value, np.float64)
        first = value if first is None else first
        gap, count = value - first, np.sqrt(len(x))
        noise = np.sqrt(np.mean(np.square(np.asarray(got.widened_error)))) / count
        print(
            f"| {name} | {got.kind} | {estimator.evaluations(process)} | {value.mean():.3f} | "
            f"{value.std(ddof=1) / count:.3f} | {gap.mean():.3f} ± {gap.std(ddof=1) / count:.3f} | {noise:.3f} |",
            flush=True,
        )


def held_out(count: int) -> Array:
    """Held-out digits with uniform noise of one grey level."""
    images = jnp.asarray(nd.datasets.digits().test_images[:count])
    return images + (jax.random.uniform(jax.random.key(4), images.shape) - 0.5) / 16


def digits(short: bool) -> None:
    """The packaged prior of 8 × 8 digits."""
    chosen = {
        "KBound": nd.KBound(8, chunk=512),
        "KBound, low discrepancy": nd.KBound(16, 63, antithetic=False, low_discrepancy=True, chunk=512),
        "ContinuousBound": nd.ContinuousBound(16, 56, chunk=512),
        "ImportanceWeighted": nd.ImportanceWeighted(16),
        "PathIntegral": nd.PathIntegral(16, 56, chunk=512),
        "PathIntegral, 5 products": nd.PathIntegral(16, 10, num_products=5, chunk=512),
        "ProbabilityFlow": nd.ProbabilityFlow(32, 8),
    }
    if short:
        chosen = {"KBound": nd.KBound(2, 4)}
    trained("digits, as densities", nd.load("digits").process, held_out(2 if short else 32), chosen)


def swiss_roll(short: bool) -> None:
    """The packaged prior of the noisy swiss roll, whose own density is known."""
    process, noise = nd.load("swiss-roll").process, 0.5
    x = nd.datasets.swiss_roll(jax.random.key(5), 4 if short else 128, noise)
    chosen = {
        "KBound, low discrepancy": nd.KBound(16, 63, antithetic=False, low_discrepancy=True, chunk=4096),
        "ContinuousBound": nd.ContinuousBound(16, 56, chunk=4096),
        "ImportanceWeighted": nd.ImportanceWeighted(8),
        "PathIntegral": nd.PathIntegral(16, 56, chunk=4096),
        "PathIntegral, 2 products": nd.PathIntegral(16, 21, num_products=2, chunk=4096),
        "ProbabilityFlow": nd.ProbabilityFlow(56),
    }
    if short:
        chosen = {"ContinuousBound": nd.ContinuousBound(2, 8)}
    trained("swiss roll", process, x, chosen, nd.datasets.swiss_roll_log_prob(x, noise))


def posterior(data: Any, y: Array, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a mixture's x given y ~ N(x, σ²), exact."""
    locs, scales = data.component_distribution.mean, jnp.sqrt(data.component_distribution.variance)
    weight = jax.nn.softmax(dist.Normal(locs, jnp.hypot(scales, sigma)).log_prob(y).sum(1))[:, None]
    variance = 1 / (1 / scales**2 + 1 / sigma**2)
    means = variance * (locs / scales**2 + y / sigma**2)
    mean = (weight * means).sum(0)
    return np.asarray(mean), np.sqrt(np.asarray((weight * (variance + (means - mean) ** 2)).sum(0)))


def nuts(short: bool) -> None:
    """A posterior of two numbers with a known mean and sd, under the exact prior and under every estimator."""
    process, y, sigma = mixture(2, 50), jnp.array([0.3, 0.2]), 0.7
    exact = posterior(process.denoiser.data(), y, sigma)
    chosen = {
        "exact density": None,
        "KBound(2)": nd.KBound(2),
        "KBound, low discrepancy": nd.KBound(4, 31, antithetic=False, low_discrepancy=True),
        "ContinuousBound": nd.ContinuousBound(4, 28),
        "ImportanceWeighted": nd.ImportanceWeighted(3),
        "ProbabilityFlow": nd.ProbabilityFlow(7),
    }
    print("\n| prior's log_prob | evaluations | error of mean | in its s.e. | error of sd | in its s.e. | ESS/s |")
    print("|---|---|---|---|---|---|---|")
    for name in ("ContinuousBound",) if short else chosen:
        posterior_row(name, chosen[name], process, (y, sigma), exact, short)


def posterior_row(name: str, estimator: Any, process: Any, observed: Any, exact: Any, short: bool) -> None:
    """Errors in posterior standard deviations, root mean square over runs and coordinates."""
    runs, count = (2, 20) if short else (6, 400)

    def model(seed: Array) -> None:
        key = jax.random.key(seed)  # which freezes the noise
        law = process.denoiser.data() if estimator is None else nd.DiffusionPrior(process, estimator, key=key)
        x = numpyro.sample("x", law)
        numpyro.sample("y", dist.Normal(x, observed[1]).to_event(1), obs=observed[0])

    def draws(seed: Array) -> Array:
        mcmc = MCMC(NUTS(model), num_warmup=20 if short else 150, num_samples=count, progress_bar=False)
        mcmc.run(jax.random.key(seed + 100), seed)
        return mcmc.get_samples()["x"]

    seeds = jnp.arange(runs)
    sample = jax.jit(jax.vmap(draws)).lower(seeds).compile()
    start = time.process_time()
    x = np.asarray(sample(seeds), np.float64)
    spent = time.process_time() - start
    size = np.stack([[effective_sample_size(column[None]) for column in run.T] for run in x])
    mean, spread = (x.mean(1) - exact[0]) / exact[1], x.std(1) / exact[1] - 1
    quadratic = lambda values: np.sqrt(np.mean(np.square(values)))
    calls = estimator.evaluations(process) if estimator else 0
    print(
        f"| {name} | {calls} | {quadratic(mean):.3f} | {quadratic(mean * np.sqrt(size)):.1f} | "
        f"{quadratic(spread):.3f} | {quadratic(spread * np.sqrt(2 * size)):.1f} | {size.mean(1).sum() / spent:.0f} |",
        flush=True,
    )


def corrupted(x: Array, noise: Array) -> dict[str, Array]:
    """Digits that are none, of the shape of `x`; `noise` uniform, of that shape."""
    order = jnp.argsort(noise.reshape(len(x), -1), axis=1)
    shuffled = jnp.take_along_axis(x.reshape(len(x), -1), order, axis=1).reshape(x.shape)
    patches = jnp.asarray(nd.datasets.textures("brick", 8, 8).train[: len(x)], float) / 255
    return {
        "noise, sd 0.1": x + 0.1 * jax.scipy.special.ndtri(noise),
        "turned by 90°": jnp.rot90(x, axes=(1, 2)),
        "mirrored": x[:, :, ::-1],
        "white for black": 1 - x,
        "pixels shuffled": shuffled,
        "photograph of bricks": patches + (noise - 0.5) / 16,
    }


def path_integral(unit: float) -> nd.PathIntegral:
    """With the mean and spread of every pixel, in `unit` levels of those that go from 0 to 1."""
    train = nd.datasets.digits().train_images
    spread = np.sqrt(train.var(0) + 1 / 16**2 / 12)  # that of the uniform noise counted
    return nd.PathIntegral(4, 28, loc=unit * train.mean(0), scale=unit * spread, chunk=4096)


def criticism(short: bool) -> None:
    """How well log p tells held-out digits from what is no digit, and how many bits a pixel takes."""
    process, count = nd.load("digits").process, 4 if short else 40
    x = held_out(count)
    others = corrupted(x, jax.random.uniform(jax.random.key(6), x.shape, minval=1e-6))
    together = jnp.concatenate([x, *others.values()])
    chosen = {
        "KBound, low discrepancy": nd.KBound(4, 31, antithetic=False, low_discrepancy=True, chunk=4096),
        "ContinuousBound": nd.ContinuousBound(4, 28, chunk=4096),
        "ImportanceWeighted": nd.ImportanceWeighted(2, chunk=4096),
        "PathIntegral": path_integral(1),
        "ProbabilityFlow": nd.ProbabilityFlow(16, 1, chunk=4096),
    }
    if short:
        chosen = {"ContinuousBound": nd.ContinuousBound(2, 8)}
    print("\n| estimator | " + " | ".join(["held-out", *others]) + " |\n|" + "---|" * (2 + len(others)))
    bits = {}
    for name, estimator in chosen.items():
        value = np.asarray(eqx.filter_jit(estimator)(jax.random.key(7), process, together).value, np.float64)
        inside, *outside = np.split(value, 1 + len(others))
        bits[name] = inside
        cells = [f"{v.mean():.0f}, {np.mean(inside[:, None] > v):.2f}" for v in outside]
        print(f"| {name} | {inside.mean():.0f} | " + " | ".join(cells) + " |", flush=True)
    grey_levels(process, chosen, bits)


def grey_levels(process: nd.ReverseProcess, chosen: dict[str, Any], nats: dict[str, np.ndarray]) -> None:
    """Bits per pixel: of the density of digits with uniform noise, and of whole grey levels 0 … 16 with a last step
    that is rounded to them."""
    diffusion: Any = process.diffusion
    step = nd.DiscretisedStep(17, process.last_step)
    levels = nd.GaussianDiffusion(diffusion.schedule, 16 * diffusion.loc, 16 * diffusion.scale)
    whole = nd.ReverseProcess(levels, process.denoiser, (8, 8), last_step=step)
    shape, cell = (8, 8), lambda bits: f"{bits.mean():.3f} ± {bits.std(ddof=1) / np.sqrt(len(bits)):.3f}"
    images = jnp.round(16 * jnp.asarray(nd.datasets.digits().test_images[: len(next(iter(nats.values())))]))
    print("\n| estimator | bits per pixel, noise added | whole grey levels |\n|---|---|---|")
    for name, estimator in chosen.items():
        second = ""
        if not isinstance(estimator, nd.ProbabilityFlow):
            if isinstance(estimator, nd.PathIntegral):
                estimator = path_integral(16)
            value = eqx.filter_jit(estimator)(jax.random.key(8), whole, images).value
            second = cell(np.asarray(bits_per_dim(value, shape)))
        print(f"| {name} | {cell(4 + np.asarray(bits_per_dim(nats[name], shape)))} | {second} |", flush=True)


def main() -> None:
    parts: dict[str, Any] = {
        "default": default,
        "mixtures": mixtures,
        "digits": digits,
        "swiss-roll": swiss_roll,
        "nuts": nuts,
        "criticism": criticism,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a smoke test, of two parts unless --only says which")
    parser.add_argument("--only", nargs="+", choices=parts, help="all of them unless given")
    parser.add_argument("--seeds", type=int, default=32, help="of the mixtures, at each point")
    parser.add_argument("--rows", nargs="+", help="of the mixtures' table; all of them unless given")
    arguments = parser.parse_args()
    parts["mixtures"] = partial(mixtures, seeds=arguments.seeds, rows=arguments.rows)
    for name in arguments.only or (("mixtures", "criticism") if arguments.short else parts):
        parts[name](arguments.short)


if __name__ == "__main__":
    main()
