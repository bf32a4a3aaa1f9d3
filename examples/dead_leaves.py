"""Dead leaves: K - L_null of a diffusion beside Gaussian models of the same data, in bits per pixel.

python examples/dead_leaves.py [--work dead_leaves] [--steps 4000] [--short]

Images of 32 x 32 pixels from `datasets.dead_leaves` (radii by the power law r^-3, disks beyond the frame), grey levels
in 256 steps with uniform noise of one step added: within a disk all pixels are equal, so that without it there would be
no density. Trains a small U-Net, goes on after an interrupt, and prints K - L_null on held-out images beside log p -
L_null of a Gaussian with a full covariance and of a mixture of such Gaussians (scikit-learn's). Sohl-Dickstein
et al. 2015 print 3.536 for K - L_null on other dead leaves, of unknown parameters: no figure to compare to.
"""

import argparse
import tempfile
import time
from pathlib import Path

import _images
import jax
import numpy as np
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

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


def baselines(train, test, size, components, seed):
    """log p - L_null of the Gaussian models on the dequantised images; the noise is drawn once."""
    rng = np.random.default_rng(seed)
    flat = lambda x: (x + rng.uniform(-0.5, 0.5, x.shape)).reshape(len(x), -1)
    x, y = flat(train), flat(test)
    loc, scale = train.mean(), train.std()
    x, y = (x - loc) / scale, (y - loc) / scale
    null = -0.5 * np.sum(y**2 + np.log(2 * np.pi), axis=1)  # the scale's own term is in both, and cancels
    gaussian = multivariate_normal(x.mean(0), np.cov(x.T), allow_singular=False)
    full = report("Gaussian, full covariance", gaussian.logpdf(y) - null, size)
    start = time.perf_counter()
    mixture = GaussianMixture(components, reg_covar=1e-3, max_iter=30, tol=1e-2, random_state=seed).fit(x)
    mixed = report(f"mixture of {components} such Gaussians", mixture.score_samples(y) - null, size)
    print(f"{time.perf_counter() - start:.0f} s for the mixture, {mixture.n_iter_} iterations of EM", flush=True)
    return full, mixed


def run(options):
    """Data, baselines, training, and the table."""
    size, num_train, num_test = (8, 600, 100) if options.short else (32, options.images, 2000)
    keys = jax.random.split(jax.random.key(options.seed), 4)
    start = time.perf_counter()
    train, test = np.split(images(keys[0], num_train + num_test, size), [num_train])
    print(f"{num_train} training and {num_test} test images: {time.perf_counter() - start:.0f} s", flush=True)
    process = _images.untrained(keys[1], options.network, (size, size), options.chain, train.mean(), train.std())
    process, seconds = _images.train_steps(keys[2], process, train, options.work, options, dequantize=1.0)
    prior = nd.DiffusionPrior(process, nd.KBound(2, min(10, options.chain - 1)))
    prior.save(options.work / "dead_leaves.safetensors")
    print(f"bits per pixel, means over {num_test} held-out images with standard errors")
    k, null = _images.held_out_bound(keys[3], process, test, options.terms, 1.0)
    gain = report(f"diffusion, K - L_null ({seconds / 60:.0f} minutes)", k - null, size)
    report("diffusion, -K (code length)", -k, size)
    full, mixed = baselines(train[: options.fitted], test, size, options.components, options.seed)
    print(f"diffusion above the Gaussian by {gain - full:.4f}, above the mixture by {gain - mixed:.4f}")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("dead_leaves"), help="folder for states and pictures")
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--fitted", type=int, default=20_000, help="so many of them for the Gaussian models")
    parser.add_argument("--components", type=int, default=8, help="of the mixture")
    _images.add_training(parser, steps=4000, batch=16)
    parser.set_defaults(network="patched-24")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.short:
            options.work, options.steps, options.chain, options.network = Path(temporary), 100, 10, "mlp-16"
            options.components = 2
        options.work.mkdir(parents=True, exist_ok=True)
        run(options)


if __name__ == "__main__":
    main()
