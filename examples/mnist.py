"""Learn a prior over MNIST, measure it, and write the packaged file.

python examples/mnist.py --data FOLDER [--work mnist] [--minutes 60 | --steps N] [--save PATH] [--short]

FOLDER holds the four idx files of MNIST (see `datasets.mnist`). The network is trained at a constant learning rate for
70% of the minutes, and for 3/7 as many steps more at one that falls to zero. States are kept in the folder `--work`,
and the same command goes on from them after an interrupt. `--start PRIOR` takes the weights of a packaged prior or a
file (with `--steps 0` without any training), and `--focus` trains more at noise in which digits take shape, less at
that of single grey levels. Then, on the 10,000 test images: K in nats and bits per dimension, the Parzen window
log-likelihood of Goodfellow et al. 2014 of 10,000 samples, and each sample's nearest training image, to see that none
is copied. `--short` needs no data: it writes idx files of scikit-learn's small digits, enlarged.
"""

import argparse
import tempfile
from pathlib import Path

import _images
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import numpyro_diffusion as nd
from numpyro_diffusion import checkpoints, datasets, denoisers, diagnostics, plots, schedules

WIDTH = 1 / 255  # of the uniform noise that fills the gaps between grey levels


def untrained(key, name, num_steps):
    """Log-SNR in equal steps, its ends from the grey levels; the data's mean and standard deviation."""
    scale = 0.3081
    schedule = schedules.log_snr(num_steps, detail=WIDTH / np.sqrt(12) / scale)
    diffusion = nd.GaussianDiffusion(schedule, 0.1307, scale)
    return nd.ReverseProcess(
        diffusion, denoisers.Network(_images.network(key, name, (28, 28), num_steps), "velocity"), (28, 28)
    )


def focused(schedule):
    """Twice as many steps for training, most of them at low log-SNR; the network is told times as before.

    Their density is that of Karras et al. 2022 for σ, with their weight, as a weight of ‖ε − ε̂‖² (table 1; data of unit
    variance, log σ of mean −0.5 and standard deviation 1.2), to the power 0.7, and at least 0.8.
    """
    table, times = np.asarray(schedule.log_snr_table)[1:], np.asarray(schedule.times)
    fine = np.linspace(table[0], table[-1], 20_001)
    density = np.exp(-((fine - 1.0) ** 2) / (2 * 2.4**2)) * (1 + np.exp(-fine))
    density = np.maximum(density**0.7, 0.8)
    share = np.append(0.0, np.cumsum((density[1:] + density[:-1]) / 2))
    chosen = np.interp(np.linspace(0, share[-1], 2 * len(table)), share, fine)
    told = np.interp(-chosen, -table, times[1:])
    return schedules.Schedule(np.append(np.inf, chosen), times=np.append(times[0], told))


def started(process, name):
    """The process with the weights of a saved prior, which has the same schedule."""
    found = nd.load(name).process
    if not np.allclose(found.diffusion.schedule.log_snr_table[1:], process.diffusion.schedule.log_snr_table[1:]):
        raise ValueError("--start: expected a prior of the same steps (--chain), got another schedule")
    parts = lambda process: (process.denoiser, process.last_step)
    wide = lambda leaf: leaf.astype(np.float32) if eqx.is_inexact_array(leaf) else leaf
    return eqx.tree_at(parts, process, jax.tree.map(wide, parts(found)))


def with_schedule(process, schedule):
    """The same weights on other steps."""
    return eqx.tree_at(lambda process: process.diffusion.schedule, process, schedule)


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


@eqx.filter_jit
def draw(prior, keys):
    return jax.vmap(prior.sample)(keys)


def sample(key, prior, count, path, sampler):
    """Samples of the prior by `sampler`; kept in a file, and read from it if it is newer than the prior."""
    if path.exists() and path.stat().st_mtime > (path.parent / "mnist.safetensors").stat().st_mtime:
        found = np.load(path)
        if len(found) == count:
            return found
    chosen = prior.with_(sampler=sampler)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    found = _images.batches(lambda index: draw(chosen, keys[index]), count, min(250, count), "samples")
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
    k, _ = _images.held_out_bound(keys[0], prior.process, test, options.terms, WIDTH)
    error = k.std() / np.sqrt(len(k))
    bits = -(k.mean() / 784 + np.log(WIDTH)) / np.log(2)
    print(f"K                {k.mean():.2f} ± {error:.2f} nats per image of {len(k)} for testing, "
          f"{bits:.4f} ± {error / 784 / np.log(2):.4f} bits/dim of the grey levels", flush=True)  # fmt: skip
    steps, how = options.sample_steps, f"{options.sample_steps} steps"
    if options.noise is None:
        sampler = nd.samplers.Ancestral(min(steps, prior.process.num_steps))
    else:
        sampler, how = nd.samplers.SDE(options.noise, steps), f"{how} at noise level {options.noise:g}"
    samples = sample(keys[1], prior, options.samples, work / f"samples-{how.replace(' ', '-')}.npy", sampler)
    window = diagnostics.parzen(np.clip(samples, 0, 1), test, validation)
    own = diagnostics.parzen(train_images[: len(samples)], test, validation)
    in_bits = lambda found: f"{found.value / np.log(2):.2f} ± {found.standard_error / np.log(2):.2f} bits"
    print(f"Parzen           {in_bits(window)} = {window.value:.2f} ± {window.standard_error:.2f} nats, {len(samples)} "
          f"samples in {how}, sigma {window.bandwidth:.4f} (paper 317 ± 2.7 bits)")  # fmt: skip
    print(f"training images  {in_bits(own)}, as many of them as samples (paper 349 ± 3.3)")
    count = min(1000, len(samples), len(test))
    from_samples = nearest(samples[:count], train_images, 1)[1]
    from_test = nearest(test[:count], train_images, 1)[1]
    print(f"nearest training image at {from_samples.mean():.2f} from samples (least {from_samples.min():.2f}), "
          f"at {from_test.mean():.2f} from test images (least {from_test.min():.2f})", flush=True)  # fmt: skip
    pictures(work, samples, train_images)
    return {
        "bound": round(float(k.mean() / 784), 5), "bound_error": round(float(error / 784), 5),
        "unit": f"nats per pixel, mean of {len(k)} test images", "bits_per_dim": round(float(bits), 4),
        "parzen_bits": round(window.value / float(np.log(2)), 2),
        "parzen_bits_error": round(window.standard_error / float(np.log(2)), 2),
        "parzen": f"{len(samples)} samples in {how}, clipped, sigma {window.bandwidth:.4f}",
    }  # fmt: skip


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the idx files of MNIST")
    parser.add_argument("--work", type=Path, default=Path("mnist"), help="folder for states, samples and pictures")
    parser.add_argument("--save", type=Path, help="write the packaged file here too")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--sample-steps", type=int, default=50)
    parser.add_argument("--noise", type=float, help="sample with `samplers.SDE` of this noise level instead")
    parser.add_argument("--start", metavar="PRIOR", help="go on from the weights of a packaged prior or a file")
    parser.add_argument("--focus", action="store_true", help="train more where digits take shape")
    _images.add_training(parser, minutes=60, batch=64)
    options = parser.parse_args()
    if not options.short and options.data is None:
        parser.error("--data: expected the folder of MNIST's idx files (or --short)")
    if options.steps == 0 and not options.start:
        parser.error("--steps: expected at least 1 without --start, got 0")
    return options


def main():
    """Train, measure, and save what was measured with what was trained."""
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        if options.short:
            options.data, options.work = write_small_digits(Path(temporary)), Path(temporary)
            options.steps, options.samples, options.sample_steps = 70, 20, 10
            options.chain, options.batch, options.network, options.focus = 10, 16, "mlp-16", True
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
    process = started(process, options.start) if options.start else process
    weights = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(process.denoiser, eqx.is_inexact_array)))
    print(f"{len(train_images)} training images, {weights} weights, T = {options.chain}", flush=True)
    schedule = process.diffusion.schedule
    process = with_schedule(process, focused(schedule)) if options.focus else process
    steps, falling, seconds = 0, 0, 0.0
    if options.steps != 0:
        process, steps, falling, seconds = _images.train(
            keys[1], process, train_images, validation, options.work, options, dequantize=WIDTH
        )
    process = with_schedule(process, schedule)
    print(f"{seconds / 60:.1f} minutes of training", flush=True)
    path = options.work / "mnist.safetensors"
    before = path.read_bytes() if path.exists() else b""
    trained = nd.DiffusionPrior(process, nd.KBound(2, min(10, options.chain - 1)))
    if steps == 0 or not before or checkpoints.describe(path)["metadata"]["card"].get("steps") != steps:
        trained.save(path, dtype="float16", card={"steps": steps})
    prior = nd.load(path)  # as the file holds it
    card = {
        "data": "MNIST (LeCun, Cortes and Burges), the first 50,000 training images, grey levels 0 to 1, uniform noise "
        "of 1/255 added",
        "licence": "data CC BY-SA 3.0 (LeCun and Cortes, as the documentation of Keras has it); weights Apache-2.0",
        "command": f"python examples/mnist.py --data FOLDER --steps {steps} --network {options.network} --objective "
        f"{options.objective} --batch {options.batch} --rate {options.rate} --chain {options.chain} "
        f"--seed {options.seed}{' --start PRIOR' * bool(options.start)}{' --focus' * options.focus} --save PATH",
        "steps": steps + falling,
        "minutes": round(seconds / 60),
        "dequantize": WIDTH,
        "schedule": f"log-SNR in {options.chain} equal steps",
        "limits": "centred digits of one collection; some samples are no clean digits",
    }
    if options.start:  # what is known of its training stays
        known = nd.card(options.start)
        both = {name: known.get(name, 0) + card[name] for name in ("steps", "minutes")}
        both["command"] = "; then ".join(filter(None, [known.get("command"), card["command"]]))
        card |= both if steps else known
    card |= measure(keys[2:], prior, (train_images, validation, test), options.work, options)
    target = options.save or path
    trained.save(target, dtype="float16", card=card)
    print(f"wrote {target}, {target.stat().st_size / 1e3:.0f} kB; pictures in {options.work}")
    if options.short:
        assert np.isfinite(card["bound"]) and np.isfinite(card["parzen_bits"])


if __name__ == "__main__":
    main()
