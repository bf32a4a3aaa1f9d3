"""Learn a prior over MNIST, measure it, and write the packaged file.

python examples/mnist.py --data FOLDER [--work mnist] [--minutes 60 | --steps N] [--save PATH] [--short]

FOLDER holds the four idx files of MNIST (see `datasets.mnist`). The network is trained at a constant learning rate for
70% of the minutes, and for 3/7 as many steps more at one that falls to zero. States are kept in the folder `--work`,
and the same command goes on from them after an interrupt. Then, on the 10,000 test images: K in nats and bits per
dimension, the Parzen window log-likelihood of Goodfellow et al. 2014 of 10,000 samples, and each sample's nearest
training image, to see that none is copied. `--short` needs no data: it writes idx files of scikit-learn's small digits,
enlarged.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import numpyro_diffusion as nd
from numpyro_diffusion import checkpoints, datasets, denoisers, diagnostics, networks, plots, schedules

WIDTH = 1 / 255  # of the uniform noise that fills the gaps between grey levels
STEADY = 0.7  # share of the minutes at a constant learning rate
ROUND = 500  # steps between two looks at the clock


def untrained(key, name, num_steps):
    """Log-SNR in equal steps, its ends from the grey levels; the data's mean and standard deviation."""
    scale = 0.3081
    schedule = schedules.log_snr(num_steps, detail=WIDTH / np.sqrt(12) / scale)
    if name.startswith("mlp"):
        network = networks.MLP(
            key, (28, 28), num_steps=num_steps, width=int(name[4:]), depth=1 if name == "mlp-16" else 3
        )
    else:
        network = networks.UNet(key, (28, 28), **networks.UNET_SIZES[name])
    diffusion = nd.GaussianDiffusion(schedule, 0.1307, scale)
    return nd.ReverseProcess(diffusion, denoisers.Network(network, "velocity"), (28, 28))


def write_small_digits(folder):
    """Idx files as MNIST has them, of 8 × 8 digits made 3 times as large, with a border of 2 pixels."""
    digits = datasets.digits()
    parts = {"train": (digits.train_images, digits.train_labels), "t10k": (digits.test_images, digits.test_labels)}
    for (name, (images, labels)), count in zip(parts.items(), (300, 60), strict=True):
        large = np.pad(np.kron(np.asarray(images[:count]), np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
        arrays = {"images-idx3": np.round(255 * large), "labels-idx1": np.asarray(labels[:count])}
        for kind, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


def train(key, process, data, validation, work, options):
    """A constant rate until its share of the time is over, then a falling one from its averaged weights."""
    common = {"batch_size": options.batch, "dequantize": WIDTH, "validation": 0 if options.short else validation,
              "objective": options.objective, "likelihood": nd.KBound(2, min(4, options.chain - 1), chunk=512),
              "checkpoint_every": ROUND}  # fmt: skip
    process, steps, seconds = constant_rate(key, process, data, work, options, common)
    start = time.perf_counter()
    print(
        f"{steps} steps at a constant rate ({seconds / 60:.0f} minutes), {3 * steps // 7} at a falling one", flush=True
    )
    result = nd.fit(
        jax.random.fold_in(key, 1), process, data, num_steps=3 * steps // 7, learning_rate=options.rate,
        checkpoint=work / "falling.state", **common,
    )  # fmt: skip
    if not options.short:
        plots.history(result).figure.savefig(work / "history.png", dpi=120)
    return result.process, steps, seconds + time.perf_counter() - start


def constant_rate(key, process, data, work, options, common):
    """Rounds of steps until the clock, which counts earlier runs too, or the number of steps says stop."""
    state, clock = work / "steady.state", work / "clock.json"
    seconds = json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0
    steps = checkpoints.describe(state)["metadata"]["history"]["step"][-1] if state.exists() else 0
    over = (work / "falling.state").exists()
    # One optimiser for all rounds, so that they share compiled code.
    rate = optax.linear_schedule(0.0, options.rate, 200)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    while True:
        start = time.perf_counter()
        steps = steps if over else min(steps + ROUND, options.steps or steps + ROUND)
        result = nd.fit(key, process, data, num_steps=steps, optimizer=optimizer, checkpoint=state, **common)
        seconds += time.perf_counter() - start
        clock.write_text(json.dumps({"seconds": seconds}))
        if over or (steps >= options.steps if options.steps else seconds >= 60 * STEADY * options.minutes):
            return result.process, steps, seconds


def batches(function, count, size, about):
    """The results of `function` for batches of indices of one size, joined; so that one program serves all."""
    parts = []
    for start in tqdm(range(0, count, size), desc=about, unit="batch"):
        index = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(np.asarray(function(index))[: count - start])
    return np.concatenate(parts)


@eqx.filter_jit
def bound(likelihood, key, process, x_0):
    return likelihood(key, process, x_0).value


@eqx.filter_jit
def draw(prior, keys):
    return jax.vmap(prior.sample)(keys)


def held_out_bound(key, process, images, terms):
    """K of each test image in nats, dequantised."""
    data = images + WIDTH * (np.asarray(jax.random.uniform(key, images.shape)) - 0.5)
    likelihood = nd.KBound(2, min(terms, process.num_steps - 1), chunk=512)
    keys = lambda index: jax.random.fold_in(key, int(index[0]))
    one = lambda index: bound(likelihood, keys(index), process, data[index])
    return batches(one, len(data), min(250, len(data)), "K").astype(float)


def sample(key, prior, count, path, steps):
    """Samples of the prior's chain in `steps` steps; kept in a file, and read from it if it is newer than the prior."""
    if path.exists() and path.stat().st_mtime > (path.parent / "mnist.safetensors").stat().st_mtime:
        found = np.load(path)
        if len(found) == count:
            return found
    shorter = prior.with_(sampler=nd.samplers.Ancestral(min(steps, prior.process.num_steps)))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    found = batches(lambda index: draw(shorter, keys[index]), count, min(250, count), "samples")
    np.save(path, found)
    return found


@jax.jit
def _squared_distances(x, points):
    return jnp.sum(x**2, 1)[:, None] + jnp.sum(points**2, 1) - 2 * x @ points.T


def nearest(x, points, count):
    """Indices of the `count` nearest points of each x, and the distance of the first."""
    flat, against = x.reshape(len(x), -1), jnp.asarray(points.reshape(len(points), -1))
    index, distance = [], []
    for start in range(0, len(flat), 100):
        part = flat[start : start + 100]
        square = np.asarray(_squared_distances(part, against))
        order = np.argsort(square, axis=1)[:, :count]
        index.append(order)
        distance.append(np.linalg.norm(part - points.reshape(len(points), -1)[order[:, 0]], axis=1))
    return np.concatenate(index), np.concatenate(distance)


def pictures(work, samples, train_images):
    """A grid of samples, and eight of them (left) with their five nearest training images."""
    axes = plots.samples(np.clip(samples[:100], 0, 1), limits=(0, 1))
    axes.figure.savefig(work / "samples.png", dpi=150)
    index, _ = nearest(samples[:8], train_images, 5)
    rows = np.concatenate([samples[:8, None], train_images[index]], axis=1)
    figure = Figure(figsize=(4.5, 6), layout="constrained")
    axes = figure.subplots()
    plots.samples(np.clip(rows.reshape(-1, 28, 28), 0, 1), axes, columns=6, limits=(0, 1))
    axes.set_title("sample | its nearest training images", fontsize=9)
    figure.savefig(work / "nearest.png", dpi=150)


def measure(keys, prior, images, work, options):
    """K, the Parzen log-likelihood and the distances to training images; a dict for the card."""
    train_images, validation, test = images
    k = held_out_bound(keys[0], prior.process, test, options.terms)
    error = k.std() / np.sqrt(len(k))
    bits = -(k.mean() / 784 + np.log(WIDTH)) / np.log(2)
    print(f"K                {k.mean():.2f} ± {error:.2f} nats per image of {len(k)} for testing, "
          f"{bits:.4f} ± {error / 784 / np.log(2):.4f} bits/dim of the grey levels", flush=True)  # fmt: skip
    samples = sample(keys[1], prior, options.samples, work / "samples.npy", options.sample_steps)
    window = diagnostics.parzen(np.clip(samples, 0, 1), test, validation)
    own = diagnostics.parzen(train_images[: len(samples)], test, validation)
    in_bits = lambda found: f"{found.value / np.log(2):.2f} ± {found.standard_error / np.log(2):.2f} bits"
    print(f"Parzen           {in_bits(window)} = {window.value:.2f} ± {window.standard_error:.2f} nats, {len(samples)} "
          f"samples in {options.sample_steps} steps, sigma {window.bandwidth:.4f} (paper 317 ± 2.7 bits)")  # fmt: skip
    print(f"training images  {in_bits(own)}, as many of them as samples (paper 349 ± 3.3)")
    count = min(1000, len(samples), len(test))
    from_samples = nearest(samples[:count], train_images, 1)[1]
    from_test = nearest(test[:count], train_images, 1)[1]
    print(f"nearest training image at {from_samples.mean():.2f} from samples (least {from_samples.min():.2f}), "
          f"at {from_test.mean():.2f} from test images (least {from_test.min():.2f})", flush=True)  # fmt: skip
    pictures(work, samples, train_images)
    return {
        "bound": round(float(k.mean()), 3), "bound_error": round(float(error), 3),
        "unit": f"nats per image, mean of {len(k)} test images", "bits_per_dim": round(float(bits), 4),
        "parzen_bits": round(window.value / float(np.log(2)), 2),
        "parzen_bits_error": round(window.standard_error / float(np.log(2)), 2),
        "parzen": f"{len(samples)} samples in {options.sample_steps} steps, clipped, sigma {window.bandwidth:.4f}",
    }  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the idx files of MNIST")
    parser.add_argument("--work", type=Path, default=Path("mnist"), help="folder for states, samples and pictures")
    parser.add_argument("--save", type=Path, help="write the packaged file here too")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training in all, at this machine's speed")
    parser.add_argument("--steps", type=int, help="steps at the constant rate, in place of minutes")
    parser.add_argument("--network", choices=(*networks.UNET_SIZES, "mlp-16", "mlp-512"), default="tiny")
    parser.add_argument("--objective", choices=("bound", "simple"), default="bound")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--chain", type=int, default=200, help="T")
    parser.add_argument("--terms", type=int, default=10, help="terms of K for each of two noise draws of a test image")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--sample-steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="small digits, few steps: to see that everything runs")
    options = parser.parse_args()
    if not options.short and options.data is None:
        parser.error("--data: expected the folder of MNIST's idx files (or --short)")
    return options


def main():
    """Train, measure, and save what was measured with what was trained."""
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        if options.short:
            options.data, options.work = write_small_digits(Path(temporary)), Path(temporary)
            options.steps, options.samples, options.sample_steps = 70, 20, 10
            options.chain, options.batch, options.network = 10, 16, "mlp-16"
        options.work.mkdir(parents=True, exist_ok=True)
        run(options)


def run(options):
    """Everything, in the folder `work`, which exists."""
    data = datasets.mnist(options.data)
    grey = data.train_images / np.float32(255)
    test = data.test_images / np.float32(255)
    border = 5 * len(grey) // 6  # of MNIST 50,000, the usual split
    train_images, validation = grey[:border], grey[border : border + 1000]
    keys = jax.random.split(jax.random.key(options.seed), 4)
    process = untrained(keys[0], options.network, options.chain)
    weights = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(process.denoiser, eqx.is_inexact_array)))
    print(f"{len(train_images)} training images, {weights} weights, T = {options.chain}", flush=True)
    process, steps, seconds = train(keys[1], process, train_images, validation, options.work, options)
    print(f"{seconds / 60:.1f} minutes of training", flush=True)
    path = options.work / "mnist.safetensors"
    before = path.read_bytes() if path.exists() else b""
    trained = nd.DiffusionPrior(process, nd.KBound(2, min(10, options.chain - 1)))
    if not before or checkpoints.describe(path)["metadata"]["card"].get("steps") != steps:
        trained.save(path, dtype="float16", card={"steps": steps})
    prior = nd.load(path)  # as the file holds it
    card = {
        "data": "MNIST (LeCun, Cortes and Burges), the first 50,000 training images, grey levels 0 to 1, uniform noise "
        "of 1/255 added",
        "licence": "data CC BY-SA 3.0 (as MNIST is usually given); weights Apache-2.0",
        "command": f"python examples/mnist.py --data FOLDER --steps {steps} --network {options.network} --objective "
        f"{options.objective} --batch {options.batch} --rate {options.rate} --chain {options.chain} "
        f"--seed {options.seed} --save PATH",
        "steps": steps,
        "dequantize": WIDTH,
        "schedule": f"log-SNR in {options.chain} equal steps",
    } | measure(keys[2:], prior, (train_images, validation, test), options.work, options)
    card["limits"] = f"centred digits of one collection; {seconds / 60:.0f} minutes of training on a CPU"
    target = options.save or path
    trained.save(target, dtype="float16", card=card)
    print(f"wrote {target}, {target.stat().st_size / 1e3:.0f} kB; pictures in {options.work}")
    if options.short:
        assert np.isfinite(card["bound"]) and np.isfinite(card["parzen_bits"])


if __name__ == "__main__":
    main()
