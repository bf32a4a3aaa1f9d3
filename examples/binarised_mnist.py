"""Learn a prior over binarised MNIST by binomial diffusion, and bound the likelihood of its test images.

python examples/binarised_mnist.py --data FOLDER [--work binarised] [--minutes 60 | --steps N] [--short]

FOLDER holds the four idx files of MNIST (see `datasets.mnist`). Each pixel is one with the probability that its grey
level says, tossed once and for all: the usual law of fixed binarisation, with coins of our own. The chain keeps or
tosses bits (`BinomialDiffusion`, schedule `erasing`), with `--ones` as the probability of a one under the noise. The
network is trained on K of the first 50,000 images, for 70% of the minutes at a constant learning rate, and for 3/7 as
many steps more at one that falls to zero. Printed are nats per test image: K, which bounds the log-likelihood from
below, and independent pixels. States are kept in `--work`, and the same command goes on from them after an interrupt.
`--short` needs no data: it takes scikit-learn's small digits, enlarged.
"""

import tempfile
from pathlib import Path

import _images
import jax
import numpy as np
from mnist import write_small_digits

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, plots, schedules


def binarised(seed, images):
    """Every pixel a coin of its grey level's probability, tossed once."""
    return (np.random.default_rng(seed).random(images.shape) < images / np.float32(255)).astype(np.int32)


def untrained(key, options, shape):
    """A network that says the log-odds of the bits that were erased."""
    diffusion = nd.BinomialDiffusion(schedules.erasing(options.chain), options.ones)
    fn = _images.network(key, options.network, shape, options.chain)
    return nd.ReverseProcess(diffusion, denoisers.Network(fn, "logits"), shape)


def independent_pixels(train, test):
    """Log-likelihood of each test image in nats, every pixel one with the share that it is in training."""
    ones = (train.sum(0) + 0.5) / (len(train) + 1)
    return np.where(test == 1, np.log(ones), np.log1p(-ones)).sum((1, 2))


def said(values):
    """Mean and standard error."""
    return f"{values.mean():.2f} ± {values.std() / np.sqrt(len(values)):.2f}"


def run(options):
    """Train, measure, draw."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_small_digits(Path(temporary)) if options.short else options.data
        data = datasets.mnist(folder)
    bits, test = binarised(1, data.train_images), binarised(2, data.test_images)
    border = 5 * len(bits) // 6  # of MNIST 50,000, the usual split
    train, validation = bits[:border], bits[border : border + 1000]
    keys = jax.random.split(jax.random.key(options.seed), 4)
    process = untrained(keys[0], options, train.shape[1:])
    process, steps, falling, seconds = _images.train(
        keys[1], process, train, validation, options.work, options, dequantize=0
    )
    print(f"{steps + falling} steps of {options.batch} in {seconds / 60:.0f} minutes, T = {options.chain}", flush=True)
    k, _ = _images.held_out_bound(keys[2], process, test, options.terms, 0)
    print(f"log-likelihood of {len(test)} test images, nats: at least {said(k)} by K", flush=True)
    print(f"independent pixels: {said(independent_pixels(train, test))}")
    prior = nd.DiffusionPrior(process)
    prior.save(options.work / "binarised.safetensors", dtype="float16")
    draws = jax.vmap(prior.sample)(jax.random.split(keys[3], 4 if options.short else 64))
    plots.samples(np.asarray(draws), limits=(0, 1)).figure.savefig(options.work / "samples.png", dpi=150)


def main():
    """Read the options and run."""
    parser = _images.parser(__doc__, "binarised")
    parser.add_argument("--data", type=Path, help="folder of the idx files of MNIST")
    parser.add_argument("--ones", type=float, default=0.13, help="probability of a one under the noise")
    _images.add_training(parser, minutes=60, batch=64)
    parser.set_defaults(chain=1000, network="patched", terms=5)
    short = {"steps": 20, "batch": 16, "chain": 10, "network": "mlp-16", "terms": 2}
    _images.start(run, parser, **short)


if __name__ == "__main__":
    main()
