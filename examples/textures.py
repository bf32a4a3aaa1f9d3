"""Learn a prior over small pieces of brick, grass and gravel together, measure it, and write the packaged file.

python examples/textures.py [--work textures] [--steps 4000] [--save PATH] [--short]

Grey patches of 32 x 32 pixels from the three pictures of `datasets.textures`: overlapping ones of the upper three
quarters to learn from, the others held out. Grey levels 0 ... 255, with uniform noise of one level added. With
--baseline 64 the U-Net learns what a mixture of so many Gaussians along cosines leaves. Training goes on after an
interrupt. Prints K of the held-out patches in bits per dimension beside the density of three Gaussians with full
covariances, one for each texture, with equal weights, and of the mixture.
"""

from pathlib import Path

import _images
import equinox as eqx
import jax
import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion import checkpoints, plots
from numpyro_diffusion.datasets import textures

NAMES, SHAPE = ("brick", "grass", "gravel"), (32, 32)


def patches(stride):
    """Training patches and held-out ones of each texture, float32, shape (3, n, 32, 32)."""
    parts = [textures(name, SHAPE[0], stride) for name in NAMES]
    return tuple(np.stack([getattr(part, which) for part in parts]).astype(np.float32) for which in ("train", "test"))


def report(name, nats):
    """Print code lengths in bits per dimension, of all held-out patches and of each texture; nats of shape (3, n)."""
    bits = -nats / (np.prod(SHAPE) * np.log(2))
    each = ", ".join(f"{name} {part.mean():.3f}" for name, part in zip(NAMES, bits, strict=True))
    print(f"{name:34s} {bits.mean():.4f} ± {bits.std() / np.sqrt(bits.size):.4f} bits/dim ({each})", flush=True)
    return bits


def gaussians(train, test, seed):
    """Log density of held-out patches under one Gaussian for each texture, with equal weights; shape (3, n)."""
    rng = np.random.default_rng(seed)
    noisy = lambda x: (x + rng.uniform(-0.5, 0.5, x.shape)).reshape(*x.shape[:2], -1)
    x, y = noisy(train), noisy(test)
    laws = [multivariate_normal(part.mean(0), np.cov(part.T)) for part in x]
    return logsumexp([law.logpdf(y) for law in laws], axis=0) - np.log(len(laws))


def measure(key, prior, test, options):
    """K of the held-out patches, for the card: per pixel, since its error for whole images would say little."""
    k, _ = _images.held_out_bound(key, prior.process, test.reshape(-1, *SHAPE), options.terms, 1.0)
    bits = report("K", k.reshape(3, -1))
    return {
        "bound": round(float(k.mean() / np.prod(SHAPE)), 5),
        "bound_error": round(float(k.std() / np.sqrt(len(k)) / np.prod(SHAPE)), 5),
        "unit": f"nats per pixel, mean of {len(k)} held-out patches",
        "bits_per_dim": round(float(bits.mean()), 4),
        "bits_per_dim_each": {name: round(float(part.mean()), 4) for name, part in zip(NAMES, bits, strict=True)},
    }


def picture(key, prior, test, path):
    """Held-out patches (left) and samples."""
    draws = np.asarray(eqx.filter_jit(lambda prior, key: prior.sample(key, (36,)))(prior, key))
    both = np.concatenate([test.reshape(-1, *SHAPE)[:: test.shape[0] * test.shape[1] // 36][:36], draws])
    both = both.reshape(2, 6, 6, *SHAPE).transpose(1, 0, 2, 3, 4)
    axes = plots.samples(both.reshape(-1, *SHAPE), columns=12, limits=(0, 255))
    axes.set_title("held-out patches (left) and samples", fontsize=9)
    axes.figure.savefig(path, dpi=150)


def run(options):
    """Everything, in the folder `work`, which exists."""
    train, test = patches(64 if options.short else options.stride)
    if options.short:
        test = test[:, :4]
    keys = jax.random.split(jax.random.key(options.seed), 4)
    data = train.reshape(-1, *SHAPE)
    law = _images.simple_model(data, options)
    process = _images.untrained(keys[0], options.network, SHAPE, options.chain, data.mean(), data.std(), law)
    weights = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(process.denoiser, eqx.is_inexact_array)))
    print(f"{len(data)} training patches, {weights} weights, T = {options.chain}", flush=True)
    process, seconds = _images.train_steps(keys[1], process, data, options.work, options, dequantize=1.0)
    print(f"{seconds / 60:.1f} minutes of training", flush=True)
    path = options.work / "textures.safetensors"
    trained = nd.DiffusionPrior(process, nd.KBound(2, min(10, options.chain - 1)))
    trained.save(path, dtype="float16")
    prior = nd.load(path)  # as the file holds it
    card = {
        "data": "scikit-image's pictures brick, grass and gravel, the upper three quarters, in grey patches of 32x32; "
        "grey levels 0 to 255, uniform noise of one level added",
        "licence": "data CC0, as scikit-image's documentation says of all three; weights Apache-2.0",
        "command": f"python examples/textures.py --steps {options.steps} --stride {options.stride} --network "
        f"{options.network} --baseline {options.baseline} --objective {options.objective} --batch {options.batch} "
        f"--rate {options.rate} --chain {options.chain} --seed {options.seed} --save PATH",
        "dequantize": 1.0,
        "schedule": f"log-SNR in {options.chain} equal steps",
    } | measure(keys[2], prior, test, options)
    card["limits"] = f"three pictures in one light and scale; {seconds / 60:.0f} minutes of training on a CPU"
    target = options.save or path
    trained.save(target, dtype="float16", card=card)
    assert checkpoints.describe(target)["metadata"]["card"] == card
    print(f"wrote {target}, {target.stat().st_size / 1e3:.0f} kB")
    if not options.short:
        report("K of as many training patches", _images.held_out_bound(
            keys[2], prior.process, train[:, :: train.shape[1] // 64][:, :64].reshape(-1, *SHAPE), options.terms, 1.0
        )[0].reshape(3, -1))  # fmt: skip
        report("a Gaussian for each texture", gaussians(train[:, ::2], test, options.seed))
        if law is not None:
            noisy = test + np.random.default_rng(options.seed).uniform(-0.5, 0.5, test.shape)
            report(law.said, law.log_prob(noisy.reshape(-1, np.prod(SHAPE))).reshape(3, -1))
        picture(keys[3], prior, test, options.work / "textures.png")


def main():
    """Parse the options and run."""
    parser = _images.parser(__doc__, "textures")
    parser.add_argument("--save", type=Path, help="write the prior here too")
    parser.add_argument("--stride", type=int, default=3, help="pixels between two training patches")
    _images.add_training(parser, steps=4000, batch=16)
    parser.set_defaults(network="patched-24")
    _images.start(run, parser, steps=30, chain=10, network="mlp-16", baseline=3)


if __name__ == "__main__":
    main()
