"""MNIST with half of each image hidden and noise of unknown scale: do 90% intervals hold 90% of the true pixels?

python examples/mnist_posterior.py --data FOLDER [--images 100] [--chains 19] [--work mnist_posterior] [--short]

Test images (FOLDER holds the idx files), the lower half hidden, noise of standard deviation 0.2 on the upper one:
x ~ prior, sigma ~ HalfNormal(0.5), y ~ Normal(x, sigma) on what is seen; every image has a sigma of its own. Sampled by
particle Gibbs for the images and NUTS for the sigmas, in independent chains that each give one draw after `--sweeps`.
With m draws, where m + 1 = 20 k, the interval from the k-th smallest to the k-th largest is the one that holds a
further independent draw with probability 0.9 exactly. It is counted twice: for "levels", draws and truth are rounded to
grey levels, as the data are, and ties broken by lot; "values" are the continuous ones, the truth with the uniform noise
of one level that the prior was trained with. The table has one row for every sweep, so that one sees whether the chains
were long enough. Images are taken in groups of `--group`; each group's draws are kept in `--work`, so that a run that
was interrupted goes on, and the table of all so far is printed after each. `--short` needs no data: it takes
scikit-learn's digits of 8 × 8 pixels, and a Gaussian of independent pixels as their prior.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from matplotlib.figure import Figure
from numpyro.infer import MCMC, NUTS, Gibbs, init_to_value

import numpyro_diffusion as nd

SIGMA = 0.2


def model(prior, mask, y):
    """Independent images, each with its own unknown noise scale."""
    with numpyro.plate("image", len(y)):
        sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, sigma[:, None, None]).mask(mask).to_event(2), obs=y)


def independent_pixels():
    """A Gaussian of independent pixels of digits, whose denoiser is exact: a prior that is not learned."""
    images = nd.datasets.digits().train_images
    loc, scale = images.mean(0), np.hypot(images.std(0), 0.05)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(25), loc, scale)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(loc, scale), (8, 8)))


def posterior(key, prior, mask, y, options):
    """Draws of x, shape (chains, sweeps, images, height, width), and of sigma, shape (chains, sweeps, images)."""
    # At high noise the errors of a network add up over 392 pixels.
    twist = nd.twists.Tempered(nd.twists.PseudoInverse(), power=1.0)
    x = nd.infer.ParticleGibbs(model, "x", options.particles, twist, num_steps=options.steps, chunk=128)
    # The scale of log sigma's posterior is known from the number of pixels, so that nothing need be adapted.
    settings = {"step_size": 1 / np.sqrt(mask.sum()), "adapt_step_size": False, "adapt_mass_matrix": False}
    sigma = NUTS(
        model, **settings, max_tree_depth=5, init_strategy=init_to_value(values={"sigma": jnp.full(len(y), 0.3)})
    )
    mcmc = MCMC(
        Gibbs([(x, ["x"]), (sigma, ["sigma"])]), num_warmup=0, num_samples=options.sweeps, num_chains=options.chains,
        chain_method=jax.vmap, progress_bar=False,
    )  # fmt: skip
    mcmc.run(key, prior, mask, y)
    draws = mcmc.get_samples(group_by_chain=True)
    return np.asarray(draws["x"]), np.asarray(draws["sigma"])


def inside(draws, truth, rng):
    """The share of values inside their 90% intervals, per cent, and its error; an image's pixels are not independent.

    Of m draws, m + 1 a multiple of 20, the interval leaves out (m + 1)/20 ranks at either end; ties are broken by lot.
    """
    rank = (draws < truth).sum(0) + rng.integers(0, (draws == truth).sum(0) + 1)
    cut = (len(draws) + 1) // 20
    share = 100 * ((cut <= rank) & (rank <= len(draws) - cut)).reshape(len(truth), -1).mean(1)
    return f"{share.mean():5.1f} ± {share.std() / np.sqrt(len(truth)):3.1f}", share.mean()


def report(x, sigma, truth, mask, levels):
    """Print a row for every sweep; returns the last sweep's share of hidden grey levels."""
    print(f"{len(x)} chains, per cent inside 90% intervals\n"
          "sweep  hidden levels  of them, ink  hidden values  visible levels  visible values  sigma")  # fmt: skip
    rng = np.random.default_rng(0)
    grey = lambda values: np.clip(np.round(values * levels), 0, levels)
    ink = truth[:, ~mask].std(0) > 0.1
    for sweep in range(x.shape[1]):
        drawn, level, true_level = x[:, sweep], grey(x[:, sweep]), grey(truth)
        rows = [
            inside(level[:, :, ~mask], true_level[:, ~mask], rng),
            inside(level[:, :, ~mask][:, :, ink], true_level[:, ~mask][:, ink], rng),
            inside(drawn[:, :, ~mask], truth[:, ~mask], rng), inside(level[:, :, mask], true_level[:, mask], rng),
            inside(drawn[:, :, mask], truth[:, mask], rng), inside(sigma[:, sweep], np.full(len(truth), SIGMA), rng),
        ]  # fmt: skip
        print(f"{sweep + 1:5d}  " + "  ".join(text for text, _ in rows), flush=True)
    return rows[0][1]


def picture(path, truth, y, mask, draws, count=8):
    """Columns: truth, what is seen, posterior mean, sd, and four draws."""
    figure = Figure(figsize=(8, count + 0.7), layout="constrained")
    titles = ("truth", "seen", "mean", "sd", *("draw",) * 4)
    some = draws[np.linspace(0, len(draws) - 1, 4).astype(int)]
    grid = figure.subplots(count, len(titles))
    for row, axes in enumerate(grid):
        seen = np.where(mask, y[row], np.nan)
        shown = (truth[row], seen, draws[:, row].mean(0), draws[:, row].std(0), *some[:, row])
        for title, axis, image in zip(titles, axes, shown, strict=True):
            drawn = axis.imshow(
                image, cmap="viridis" if title == "sd" else "gray", vmin=0, vmax=0.5 if title == "sd" else 1
            )
            axis.set_facecolor("tab:blue")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=9)
            if row == 0 and title in ("sd", "mean"):
                below = grid[:, 3] if title == "sd" else grid[:, :3]
                figure.colorbar(
                    drawn, ax=below, location="bottom", aspect=10 if title == "sd" else 30, label="grey level"
                )
    figure.savefig(path, dpi=100)


def run(options):
    """All groups, then the table and the picture."""
    start = time.perf_counter()
    if options.short:
        images, prior, grey = nd.datasets.digits().test_images, independent_pixels(), 1 / 16
    else:
        images = nd.datasets.mnist(options.data).test_images / np.float32(255)
        prior, grey = nd.load(options.prior), 1 / 255
    keys = jax.random.split(jax.random.key(options.seed), 3)
    likelihood = nd.KBound(1, 1, antithetic=False)  # constant to both blocks
    prior = prior.with_(likelihood=likelihood)
    chosen = np.asarray(jax.random.permutation(keys[0], len(images))[: options.images])
    # The prior is that of grey levels with uniform noise between them.
    rng = np.random.default_rng(options.seed)
    truth = images[chosen] + grey * rng.uniform(-0.5, 0.5, images[chosen].shape).astype(np.float32)
    mask = np.arange(truth.shape[1])[:, None] < truth.shape[1] // 2
    mask = np.broadcast_to(mask, truth.shape[1:])
    y = np.where(mask, truth + SIGMA * rng.normal(size=truth.shape), 0).astype(np.float32)
    parts = []
    for first in range(0, options.images, options.group):
        path = options.work / f"draws-{first}.npz"
        if not path.exists():
            here = slice(first, first + options.group)
            x, sigma = posterior(jax.random.fold_in(keys[1], first), prior, mask, jnp.asarray(y[here]), options)
            np.savez(path, x=x, sigma=sigma)
        parts.append(np.load(path))
        x, sigma = (np.concatenate([part[name] for part in parts], axis=2) for name in ("x", "sigma"))
        print(f"{x.shape[2]} images, {time.perf_counter() - start:.0f} s", flush=True)
        share = report(x, sigma, truth[: x.shape[2]], mask, round(1 / grey))
    hidden, last = truth[:, ~mask], x[:, -1]
    error = lambda guess: np.sqrt(np.mean((guess - hidden) ** 2))
    print(f"root mean square error of hidden pixels: posterior mean {error(last[:, :, ~mask].mean(0)):.3f}, "
          f"mean of all images {error(images.mean(0)[~mask]):.3f}; {time.perf_counter() - start:.0f} s")  # fmt: skip
    picture(options.work / "mnist_posterior.png", truth, y, mask, last, min(8, options.images))
    assert not options.short or 30 < share < 100


def main():
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the idx files of MNIST")
    parser.add_argument("--prior", default="mnist", help="a packaged prior or a file")
    parser.add_argument("--work", type=Path, default=Path("mnist_posterior"), help="folder for draws and the picture")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--group", type=int, default=10, help="images that are sampled together")
    parser.add_argument("--chains", type=int, default=19)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25, help="of the prior's chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a small run that shows that the script works")
    options = parser.parse_args()
    if (options.chains + 1) % 20:
        parser.error(f"--chains: expected 19, 39, 59, ..., got {options.chains}")
    if not options.short and options.data is None:
        parser.error("--data: expected the folder of MNIST's idx files (or --short)")
    with tempfile.TemporaryDirectory() as temporary:
        if options.short:
            options.work, options.images, options.group = Path(temporary), 4, 4
            options.sweeps, options.steps, options.particles = 2, 10, 4
        options.work.mkdir(parents=True, exist_ok=True)
        run(options)


if __name__ == "__main__":
    main()
