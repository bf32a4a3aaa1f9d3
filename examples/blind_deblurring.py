"""Blind deblurring: digits under a Gaussian blur of unknown width, and how often the width's 90% interval is right.

Every digit has a blur of its own, of a width drawn from the model's prior, and is seen under noise. The sharp digit and
the width are inferred together, by HMC on the width and on the noise that the prior's sampler turns into a digit. That
sampler is a deterministic flow of few steps and the prior is the law of what it makes: no bound, no particles. All
chains run in one program, step by step together, where NUTS would have them wait for the longest trajectory.

Digits are held-out ones, which the prior was not trained on. With `--truth prior` they are drawn from the prior itself:
then the intervals are right by construction, as far as the chains have converged.

    python examples/blind_deblurring.py [--short] [--truth prior] [--output figures]
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from matplotlib.figure import Figure
from numpyro.diagnostics import summary
from numpyro.infer import HMC, MCMC, init_to_sample

import numpyro_diffusion as nd

NOISE, FLOW_STEPS, CHAINS = 0.1, 10, 2
WIDTH = dist.LogNormal(0.0, 0.3)


def blur(x: Array, width: Array) -> Array:
    """An image, shape (8, 8), under a Gaussian blur of standard deviation `width` pixels; edges are repeated."""
    place, source = jnp.arange(8.0), jnp.arange(-8, 16)
    weight = jax.nn.softmax(-0.5 * jnp.square((place[:, None] - source) / width), axis=-1)
    kernel = weight @ jax.nn.one_hot(jnp.clip(source, 0, 7), 8)
    return kernel @ x @ kernel.T


def model(prior: nd.DiffusionPrior, y: Array | None = None) -> None:
    """One digit, its blur, and what is seen."""
    width = numpyro.sample("width", WIDTH)
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(blur(x, width), NOISE).to_event(2), obs=y)


def sample_posterior(key: Array, prior: nd.DiffusionPrior, y: Array, draws: int, leapfrogs: int) -> dict[str, Array]:
    """Draws for each of the images, independent problems in one program; shape (images, CHAINS, draws, …)."""
    free = numpyro.handlers.reparam(model, config={"x": nd.infer.DiffusionReparam()})

    def chain(key: Array, y: Array) -> dict[str, Array]:
        kernel = HMC(free, num_steps=leapfrogs, trajectory_length=None, init_strategy=init_to_sample)
        mcmc = MCMC(kernel, num_warmup=draws, num_samples=draws, progress_bar=False)
        mcmc.run(key, prior, y, extra_fields=("accept_prob", "diverging"))
        drawn = mcmc.get_samples()
        return {"width": drawn["width"], "x": drawn["x"], **mcmc.get_extra_fields()}

    run = jax.jit(jax.vmap(jax.vmap(chain, in_axes=(0, None))))
    return jax.block_until_ready(run(jax.random.split(key, (len(y), CHAINS)), y))


def picture(path: Path, truth: Array, widths: Array, y: Array, drawn: dict[str, Array]) -> None:
    """Three digits: truth, blurred, posterior mean and standard deviation, draws; and the posterior of the width."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    grid = np.linspace(0.3, 2.6, 200)
    for i, row in enumerate(figure.subplots(3, 8, width_ratios=[1] * 7 + [1.6])):
        x = np.asarray(drawn["x"][i]).reshape(-1, 8, 8)
        panels = nd.plots.posterior(truth[i], y[i], x, row[:7], num_draws=3, limits=(0.0, 1.0), units="grey level")
        panels[1].set_title("blurred", fontsize=9)
        for axis in panels if i else ():
            axis.set_title("")
        row[7].hist(
            np.ravel(drawn["width"][i]), np.arange(0.3, 2.6, 0.05), density=True, color="0.75", label="posterior"
        )
        row[7].plot(grid, np.exp(WIDTH.log_prob(grid)), color="C0", label="prior")
        row[7].axvline(float(widths[i]), color="C3", label="truth")
        row[7].set(
            yticks=[], xlim=(grid[0], grid[-1]), ylabel="density", xlabel="width of the blur, pixels" if i == 2 else ""
        )
        if i == 0:
            row[7].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Sample, count the intervals that hold the true width, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--digits", type=int, default=20)
    parser.add_argument("--truth", choices=["held-out", "prior"], default="held-out", help="where the digits come from")
    parser.add_argument("--draws", type=int, default=500, help="warm-up iterations, and draws, of each of 2 chains")
    parser.add_argument("--leapfrogs", type=int, default=16, help="steps of each iteration")
    parser.add_argument("--short", action="store_true", help="3 digits and few draws, to see that everything runs")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the picture")
    options = parser.parse_args()
    digits, draws = (3, 10) if options.short else (options.digits, options.draws)
    width_key, noise_key, truth_key, key = jax.random.split(jax.random.key(options.seed), 4)
    prior = nd.load("digits").with_(sampler=nd.samplers.SDE(0.0, FLOW_STEPS))
    if options.truth == "prior":
        truth = prior.sample(truth_key, (digits,))
    else:
        truth = jnp.asarray(nd.datasets.digits().test_images[:digits])
    widths = WIDTH.sample(width_key, (digits,))
    y = jax.vmap(blur)(truth, widths) + NOISE * jax.random.normal(noise_key, truth.shape)
    start, start_cpu = time.perf_counter(), time.process_time()
    drawn = sample_posterior(key, prior, y, draws, options.leapfrogs)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    width = np.asarray(drawn["width"]).reshape(digits, -1)
    low, high = np.quantile(width, [0.05, 0.95], axis=1)
    covered = (low <= np.asarray(widths)) & (high >= np.asarray(widths))
    for i in range(digits):
        print(f"digit {i:2d}: true width {widths[i]:.2f}, posterior {width[i].mean():.2f} ± {width[i].std():.2f}, "
              f"90% interval [{low[i]:.2f}, {high[i]:.2f}]{'' if covered[i] else '  misses'}")  # fmt: skip
    quality = summary({name: np.moveaxis(np.asarray(drawn[name]), 0, 2) for name in ("width", "x")})
    for name in ("width", "x"):
        r_hat, size = quality[name]["r_hat"], quality[name]["n_eff"]
        print(f"{name}: R-hat at most {r_hat.max():.3f} (median {np.median(r_hat):.3f}), effective sample size "
              f"at least {size.min():.0f} (median {np.median(size):.0f})")  # fmt: skip
    print(f"acceptance {drawn['accept_prob'].mean():.2f}; divergences: {drawn['diverging'].sum()}")
    mean = np.asarray(drawn["x"]).mean((1, 2))
    errors = [float(np.sqrt(np.mean((image - truth) ** 2))) for image in (y, mean)]
    print(f"root mean square error: blurred image {errors[0]:.3f}, posterior mean {errors[1]:.3f}")
    print(f"standard deviation of the width: prior {WIDTH.variance**0.5:.2f}, posterior {width.std(1).mean():.2f}")
    print(f"the 90% interval holds the true width for {covered.sum()} of {digits} digits")
    print(f"sampled in {seconds:.0f} s, {cpu:.0f} s of CPU time, compilation included")
    picture(options.output / "blind_deblurring.png", truth, widths, y, drawn)
    assert options.short or covered.sum() >= 0.75 * digits, "coverage is off"


if __name__ == "__main__":
    main()
