"""Handwritten digits as a progressive code: the packaged prior, its last step to the whole grey levels 0 … 16.

The packaged prior was trained on digits with noise that fills the gaps between grey levels. Where the chain's own noise
is wider than a level, that noise makes no difference; so the chain is stopped there, and its last step rounds. Where to
stop, and with what scale, is chosen on training digits; code lengths are of held-out ones.

python examples/rate_distortion.py --save docs/images/rate_distortion.png
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.laws import DiscretisedNormal
from numpyro_diffusion.likelihoods import bits_per_dim

LEVELS, SHAPE = 17, (8, 8)


def in_levels(process, first=1, scale=1.0):
    """The process on grey levels 0 … 16, its chain stopped at step `first`, its last step rounding."""
    schedule, times = process.diffusion.schedule.table[first:], process.diffusion.schedule.times[first:]
    start = lambda value, rest: jnp.concatenate([jnp.array([value]), rest])
    diffusion = nd.GaussianDiffusion(
        nd.schedules.Schedule(start(jnp.inf, schedule), times=start(0.0, times)),
        16 * process.diffusion.loc,
        16 * process.diffusion.scale,
    )
    step = nd.LearnedStep(jnp.log(scale / diffusion.scale))
    return nd.ReverseProcess(diffusion, process.denoiser, SHAPE, last_step=nd.DiscretisedStep(LEVELS, step))


def choose(key, process, digits, last):
    """The step to stop at, up to `last`, and the scale in levels that give the shortest code, and all lengths."""
    whole, scales = in_levels(process), jnp.geomspace(0.2, 2.0, 12)

    def lengths(t):
        noise = jax.random.normal(jax.random.fold_in(key, t), digits.shape)
        x_t = whole.diffusion.marginal_from_noise(noise, digits, t)
        mean = whole.predict(x_t, t)
        nats = lambda scale: DiscretisedNormal(mean, scale, LEVELS, validate_args=False).log_prob(digits).mean(0).sum()
        return bits_per_dim(jax.vmap(nats)(scales), SHAPE)

    steps = np.arange(1, last + 1)
    ends = np.asarray(jax.jit(lambda steps: jax.lax.map(lengths, steps))(steps))
    rate = np.asarray(nd.diagnostics.progressive_coding(key, whole, digits).rate).mean(0)[:last]
    total = rate[:, None] + ends
    first, best = np.unravel_index(total.argmin(), total.shape)
    return int(steps[first]), float(scales[best]), total.min(axis=1)


def independent(train, test):
    """Bits per pixel of a code with a histogram of its own for each pixel."""
    counts = 1 + (train[:, None] == np.arange(LEVELS)[:, None, None]).sum(axis=0)
    chance = np.take_along_axis(counts / counts.sum(axis=0), test.astype(int), axis=0)
    return float(-np.log2(chance).mean())


def draw(path, code, generated, times):
    """Rate against distortion, and what is known along four chains."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.0), width_ratios=(1, 1.7), layout="constrained")
    nd.plots.rate_distortion(code, left)
    left.set_ylabel("RMSE (grey levels of 0 … 16)")
    columns = np.unique(np.round(np.linspace(0, generated.shape[1] - 1, 9)).astype(int))[::-1]
    nd.plots.samples(generated[:, columns].reshape(-1, *SHAPE), right, columns=len(columns), limits=(0, 16))
    figure.colorbar(right.images[0], ax=right, fraction=0.03, pad=0.02, label="grey level")
    named = ", ".join(str(times[i]) for i in columns[:-1])
    right.set_title(f"prediction of $x_0$ at t = {named}, and the draw", fontsize=9)
    figure.savefig(path, dpi=150)


def main():
    """Choose on training digits, measure on held-out ones, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="file for the picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="few digits and steps")
    options = parser.parse_args()
    packaged, data = nd.load("digits").process, nd.datasets.digits()
    train, test = (jnp.round(16 * images) for images in (data.train_images, data.test_images))
    keys = jax.random.split(jax.random.key(options.seed), 4)
    if options.short:
        train, test = train[:20], test[:20]
    first, scale, _ = choose(keys[0], packaged, train[:500], 5 if options.short else 60)
    process = in_levels(packaged, first, scale)
    noise = float(process.diffusion.scale * jnp.sqrt(process.diffusion.schedule.noise_variance(1)))
    print(f"stopped at step {first} of {packaged.num_steps}, noise {noise:.3f} levels; last step's scale {scale:.3f}")
    code = nd.diagnostics.progressive_coding(keys[1], process, test, num_samples=1 if options.short else 4)
    print(code.table())
    total = np.asarray(code.total)
    error = total.std() / np.sqrt(len(total))
    pixels = independent(np.asarray(train), np.asarray(test))
    print(f"{len(test)} held-out digits: {total.mean():.3f} ± {error:.3f} bits/dim; a histogram for each pixel "
          f"{pixels:.3f}; all levels alike {np.log2(LEVELS):.3f}")  # fmt: skip
    # A density on [0, 1] to one of grey levels, 1/16 wide, which the noise makes a bound on their log probability.
    bound = np.log2(16) + float(bits_per_dim(nd.card("digits")["bound"], SHAPE))
    print(f"the packaged prior's own bound, on digits with noise: {bound:.3f} bits/dim")
    full = in_levels(packaged, 1, 0.3)
    if not options.short:
        whole = np.asarray(nd.diagnostics.progressive_coding(keys[2], full, test).total)
        print(f"not stopped: {whole.mean():.3f} ± {whole.std() / np.sqrt(len(whole)):.3f} bits/dim")
    generated = nd.diagnostics.progressive_generation(keys[3], process, (4,), num_steps=5 if options.short else None)
    if options.save:
        times = np.asarray(process.diffusion.schedule.times).astype(int)
        draw(options.save, code, np.asarray(generated), times)
    assert total.mean() < np.log2(LEVELS), "no code at all"


if __name__ == "__main__":
    main()
