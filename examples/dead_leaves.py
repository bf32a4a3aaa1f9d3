"""Dead leaves: K - L_null of a diffusion beside Gaussian models of the same data, in bits per pixel.

python examples/dead_leaves.py [--work dead_leaves] [--steps 4000] [--short]

Images of 32 x 32 pixels from `datasets.dead_leaves` (radii by the power law r^-3, disks beyond the frame), grey levels
in 256 steps with uniform noise of one step added: within a disk all pixels are equal, so that without it there would be
no density. Trains a small U-Net, with --baseline 64 about a mixture of so many Gaussians along cosines, goes on after
an interrupt, and prints K - L_null on held-out images beside log p - L_null of a Gaussian with a full covariance, of
a mixture of such Gaussians (scikit-learn's), of one of more components whose covariances are full in the leading
principal components and diagonal in the rest, and of the mixture that the network is about. Sohl-Dickstein et al. 2015
print 3.536 for K - L_null on other dead leaves, of unknown parameters: no figure to compare to.
"""

import time

import _gaussians
import _images
import jax
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, plots


def images(key, count, size):
    """Grey levels 0, 1, ..., 255 as float32."""
    return np.floor(256 * np.asarray(datasets.dead_leaves(key, count, size))).astype(np.float32)


def report(name, gain, size):
    """Print a mean over images with its standard error, in bits per pixel; returns the mean."""
    bits = gain / (size**2 * np.log(2))
    print(f"{name:38s} {bits.mean():7.4f} ± {bits.std() / np.sqrt(len(bits)):.4f}", flush=True)
    return bits.mean()


def baselines(train, test, options):
    """log p - L_null of the Gaussian models on the dequantised images; the noise is drawn once. Returns the best."""
    rng, size, scale = np.random.default_rng(options.seed), test.shape[1], train.std()
    flat = lambda x: (x + rng.uniform(-0.5, 0.5, x.shape)).reshape(len(x), -1)
    x, y = flat(train), flat(test)
    null = -0.5 * np.sum(((y - train.mean()) / scale) ** 2 + np.log(2 * np.pi * scale**2), axis=1)
    ridge, few, many = 1e-3 * scale**2, options.components, options.principal
    models = {
        "Gaussian, full covariance": lambda: _gaussians.Mixture.single(x),
        f"mixture of {few} such Gaussians": lambda: _gaussians.Mixture.fit(x, few, options.seed, ridge),
        f"mixture of {many}, {options.leading} dimensions full": lambda: _gaussians.Principal(
            x, options.leading, many, options.seed
        ),
    }
    gains = []
    for name, fit in models.items():
        start = time.perf_counter()
        gains.append(report(name, fit().log_prob(y) - null, size))
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    return max(gains)


def run(options):
    """Data, baselines, training, and the table."""
    size, num_train, num_test = (8, 600, 100) if options.short else (32, options.images, 2000)
    keys = jax.random.split(jax.random.key(options.seed), 4)
    start = time.perf_counter()
    train, test = np.split(images(keys[0], num_train + num_test, size), [num_train])
    print(f"{num_train} training and {num_test} test images: {time.perf_counter() - start:.0f} s", flush=True)
    law, units = _images.simple_model(train, options), (train.mean(), train.std())
    process = _images.untrained(keys[1], options.network, (size, size), options.chain, *units, law)
    process, seconds = _images.train_steps(keys[2], process, train, options.work, options, dequantize=1.0)
    prior = nd.DiffusionPrior(process, nd.KBound(2, min(10, options.chain - 1)))
    prior.save(options.work / "dead_leaves.safetensors")
    print(f"bits per pixel, means over {num_test} held-out images with standard errors")
    k, null = _images.held_out_bound(keys[3], process, test, options.terms, 1.0)
    gain = report(f"diffusion, K - L_null ({seconds / 60:.0f} minutes)", k - null, size)
    report("diffusion, -K (code length)", -k, size)
    best = baselines(train[: options.fitted], test, options)
    if law is not None:
        noisy = test + np.random.default_rng(options.seed).uniform(-0.5, 0.5, test.shape)
        best = max(best, report(law.said, law.log_prob(noisy.reshape(len(test), -1)) - null, size))
    print(f"diffusion above the best of them by {gain - best:.4f}")
    if options.short:
        return
    draws = np.asarray(jax.jit(lambda key: prior.sample(key, (36,)))(keys[0]))
    both = np.concatenate([test[:36], draws]).reshape(2, 6, 6, size, size).transpose(1, 0, 2, 3, 4)
    axes = plots.samples(both.reshape(-1, size, size), columns=12, limits=(0, 255))
    axes.set_title("test images (left) and samples (right)", fontsize=9)
    axes.figure.savefig(options.work / "samples.png", dpi=150)
    print(f"picture in {options.work}")


def main():
    """Parse the options and run."""
    parser = _images.parser(__doc__, "dead_leaves")
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--fitted", type=int, default=20_000, help="so many of them for the Gaussian models")
    parser.add_argument("--components", type=int, default=8, help="of the mixture with full covariances")
    parser.add_argument("--principal", type=int, default=16, help="components of the one in principal components")
    parser.add_argument("--leading", type=int, default=64, help="of these with full covariances")
    _images.add_training(parser, steps=4000, batch=16)
    parser.set_defaults(network="patched-24")
    _images.start(run, parser, steps=100, chain=10, network="mlp-16", components=2, principal=2, leading=8, baseline=2)


if __name__ == "__main__":
    main()
