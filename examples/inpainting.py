"""Fill a hole in pieces of brick, grass and gravel that a prior of them has not seen.

    python examples/textures.py --save textures.safetensors
    python examples/inpainting.py --prior textures.safetensors [--save inpainting.png]

With --short the network is not trained at all, to show that everything runs.

The middle of held-out 32 x 32 patches is hidden and the rest is known exactly (`nd.factors.Delta`), as Sohl-Dickstein
et al. 2015 filled bark. Particles go down a strided chain led by the known pixels and are weighted for what the lead
gets wrong (`TwistedSMC`): consistent as they grow in number. Independent runs (islands) are weighted alike: the
evidence of 880 pixels would leave one of them. Prints how much the draws differ inside the hole, how large the jumps
are across its edge, and how many hidden pixels lie in their 90% intervals.
"""

import argparse
from pathlib import Path

import _images
import jax
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import textures

NAMES, SIZE = ("brick", "grass", "gravel"), 32


def held_out(key, count):
    """Patches all over each texture's held-out part, with noise of one grey level; shape (3, count, 32, 32)."""
    patches = np.stack([textures(name).test for name in NAMES])
    chosen = np.round(np.linspace(0, patches.shape[1] - 1, count)).astype(int)
    values = patches[:, chosen].astype(np.float32)
    return values + np.asarray(jax.random.uniform(key, values.shape)) - np.float32(0.5)


def load(options):
    """The prior; with --short one that has learned nothing but mean and spread."""
    if not options.short:
        return nd.load(options.prior)
    return nd.DiffusionPrior(_images.untrained(jax.random.key(0), "mlp-16", (SIZE, SIZE), 10, 127.5, 64.0))


def fill(key, prior, values, known, options):
    """Equally weighted draws of x_0, shape (islands × draws, 32, 32), and distinct particles of t = T/2 that they have.

    From the particles of each run as many are drawn as there are, by systematic resampling.
    """
    sampler = nd.samplers.TwistedSMC(options.particles, num_steps=options.steps, chunk=64)
    posterior = nd.DiffusionPosterior(prior, nd.factors.Delta(values, known), sampler)
    found = posterior.smc(key, options.islands)
    draws, origins = [], []
    for x, log_weight, ancestors in zip(*map(np.asarray, (found.x, found.log_weight, found.ancestors)), strict=True):
        places = (np.arange(len(x)) + 0.5) / len(x)
        picked = np.minimum(np.searchsorted(np.cumsum(np.exp(log_weight)), places), len(x) - 1)
        draws.append(x[picked])
        for step in ancestors[: len(ancestors) // 2 : -1]:
            picked = step[picked]
        origins.append(len(np.unique(picked)))
    return np.concatenate(draws), sum(origins)


def jumps(images, hidden):
    """Mean |difference| between the two pixels on either side of the hole's edge, over the last two axes."""
    down, right = np.abs(np.diff(images, axis=-2)), np.abs(np.diff(images, axis=-1))
    edge_down, edge_right = np.diff(hidden.astype(int), axis=0) != 0, np.diff(hidden.astype(int), axis=1) != 0
    return np.concatenate([down[..., edge_down], right[..., edge_right]], axis=-1).mean(-1)


def measure(truth, draws, hidden):
    """What is printed of one patch, by name."""
    inside, true = draws[:, hidden], truth[hidden]
    low, high = np.quantile(inside, [0.05, 0.95], axis=0)
    return {
        "sd": np.sqrt(inside.var(axis=0, ddof=1).mean()),
        "error": np.sqrt(np.mean((inside.mean(0) - true) ** 2)),
        "jump": jumps(draws, hidden).mean(),
        "true jump": jumps(truth, hidden),
        "covered": np.mean((true >= low) & (true <= high)),
    }


def table(rows):
    """One line for each texture and one for all, from {name: array of shape (3, count)}."""
    print("            sd in hole  sd of texture  error of mean  jump at edge  true jump  in 90% intervals")
    groups = [(name, {key: part[i] for key, part in rows.items()}) for i, name in enumerate(NAMES)]
    for name, part in [*groups, ("all", {key: part.reshape(-1) for key, part in rows.items()})]:
        mean = {key: values.mean() for key, values in part.items()}
        error = part["covered"].std() / np.sqrt(part["covered"].size)
        print(f"{name:10s}{mean['sd']:12.1f}{mean['texture sd']:15.1f}{mean['error']:15.1f}{mean['jump']:14.1f}"
              f"{mean['true jump']:11.1f}{100 * mean['covered']:12.1f} ± {100 * error:.1f}%", flush=True)  # fmt: skip


def picture(path, truths, fills, hidden):
    """Truth, hole, mean, standard deviation and draws: two patches of each texture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(truths), 9, figsize=(11, 1.25 * len(truths)), layout="constrained")
    for row, truth, draws in zip(axes, truths, fills, strict=True):
        nd.plots.posterior(truth, truth, draws, row, known=~hidden, num_draws=5, units="grey level")
    for panel in axes[1:].flat:
        panel.set_title("")
    figure.savefig(path, dpi=130)


def main():
    """Fill the holes, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, default="textures.safetensors", help="made by textures.py")
    parser.add_argument("--patches", type=int, default=6, help="of each texture")
    parser.add_argument("--hole", type=int, default=12, help="side of the hidden square")
    parser.add_argument("--particles", type=int, default=8, help="of each run")
    parser.add_argument("--islands", type=int, default=16, help="independent runs")
    parser.add_argument("--steps", type=int, default=50, help="of the chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="file for the picture")
    parser.add_argument("--short", action="store_true", help="one patch of each, few particles and steps")
    options = parser.parse_args()
    if options.short:
        options.patches, options.particles, options.islands, options.steps = 1, 4, 1, 4
    prior, keys = load(options), jax.random.split(jax.random.key(options.seed))
    truths, hidden = held_out(keys[0], options.patches), np.zeros((SIZE, SIZE), bool)
    start = (SIZE - options.hole) // 2
    hidden[start : start + options.hole, start : start + options.hole] = True
    rows, shown = [], ([], [])
    for index, (name, truth) in enumerate((n, x) for n, part in zip(NAMES, truths, strict=True) for x in part):
        draws, origins = fill(jax.random.fold_in(keys[1], index), prior, truth, ~hidden, options)
        rows.append(measure(truth, draws, hidden))
        print(f"{name:8s} {100 * rows[-1]['covered']:5.1f}% covered, sd {rows[-1]['sd']:.1f}, error of mean "
              f"{rows[-1]['error']:.1f}, {origins} particles of the middle of the chain left", flush=True)  # fmt: skip
        if index % options.patches < 2:
            shown[0].append(truth)
            shown[1].append(draws)
    rows = {key: np.array([row[key] for row in rows]).reshape(len(NAMES), -1) for key in rows[0]}
    table(rows | {"texture sd": np.repeat([[textures(name).test.std()] for name in NAMES], options.patches, axis=1)})
    if options.save:
        picture(options.save, *shown, hidden)


if __name__ == "__main__":
    main()
