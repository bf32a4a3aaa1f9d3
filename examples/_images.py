"""What the scripts about images share: training for some minutes, and K of many images."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from tqdm.auto import tqdm

import numpyro_diffusion as nd
from numpyro_diffusion import checkpoints, denoisers, networks, plots, schedules
from numpyro_diffusion.training import fit_separable

STEADY = 0.7  # share of the minutes at a constant learning rate
ROUND = 500  # steps between two looks at the clock
FITTED = 3e7  # numbers of the images that a simple model is fitted to
# Side of a patch, channels of the U-Net's levels.
PATCHED = {"patched": (2, (32, 64)), "patched-4": (4, (64,)), "patched-24": (2, (24, 48))}


def parser(about, work):
    """Options with a folder for states and pictures."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--work", type=Path, default=Path(work), help="folder for states and pictures")
    return made


def start(run, parser, **short):
    """Run with the options given; after --short with those settings, in a folder that is removed."""
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.short:
            vars(options).update(short, work=Path(temporary))
        options.work.mkdir(parents=True, exist_ok=True)
        run(options)


def add_training(parser, *, minutes=None, steps=None, batch):
    """The options of `train`, or without minutes those of `train_steps`, and those of a network."""
    if minutes is None:
        parser.add_argument("--steps", type=int, default=steps, help="of training")
    else:
        parser.add_argument("--minutes", type=float, default=minutes, help="of training, at this machine's speed")
        parser.add_argument("--steps", type=int, help="steps at the constant rate, in place of minutes")
    parser.add_argument("--network", choices=(*networks.UNET_SIZES, *PATCHED, "mlp-16", "mlp-512"), default="tiny")
    parser.add_argument("--baseline", type=int, default=0, help="components of a mixture that the network is about")
    parser.add_argument("--objective", choices=("bound", "simple"), default="bound")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--chain", type=int, default=200, help="T")
    parser.add_argument("--terms", type=int, default=10, help="terms of K for each of two noise draws of a test image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a small run that shows that the script works")


def network(key, name, shape, num_steps, outputs=1):
    """A U-Net by the name of its size, one on patches of 2 × 2 or 4 × 4 pixels, or an MLP by its width."""
    if name in PATCHED:
        patch, channels = PATCHED[name]
        small = (shape[0] // patch, shape[1] // patch, patch**2 * (*shape, 1)[2])
        settings = {"channels": channels, "depth": 1, "attention": (), "num_groups": 8, "outputs": outputs}
        return networks.Patched(networks.UNet(key, small, **settings), shape)
    if not name.startswith("mlp"):
        return networks.UNet(key, shape, outputs=outputs, **networks.UNET_SIZES[name])
    width = int(name.removeprefix("mlp-"))
    depth = 3 if width > 16 else 1
    return networks.MLP(key, shape, num_steps=num_steps, width=width, depth=depth, outputs=outputs)


def simple_model(data, options):
    """A mixture of Gaussians along cosines of grey levels with noise of one level, or None for no components."""
    if not options.baseline:
        return None
    x, start = data[:: max(1, int(np.ceil(data.size / FITTED)))], time.perf_counter()
    flat = (x + np.random.default_rng(options.seed).uniform(-0.5, 0.5, x.shape)).reshape(len(x), -1)
    law = fit_separable(flat, x.shape[1:], options.baseline, "cosines", options.seed)
    print(f"{time.perf_counter() - start:.0f} s for a {law.said}, of {len(x)} images", flush=True)
    return law


def untrained(key, name, shape, num_steps, loc, scale, law=None):
    """A process for grey levels 0 … 255: log-SNR in equal steps, its ends from the width of a level; about a law."""
    schedule = schedules.log_snr(num_steps, detail=1 / np.sqrt(12) / scale)
    fn = network(key, name, shape, num_steps, outputs=1 if law is None else 2)
    denoiser = denoisers.Network(fn, "velocity") if law is None else denoisers.Residual(fn, law.denoiser())
    return nd.ReverseProcess(nd.GaussianDiffusion(schedule, loc, scale), denoiser, shape)


def train(key, process, data, validation, work, options, *, dequantize):
    """A constant rate until its share of the time is over, then a falling one from its averaged weights.

    Both keep their state in `work`, so that a run that was interrupted goes on. Returns the process, the steps at the
    constant rate, those at the falling one, and the seconds.
    """
    common = {"batch_size": options.batch, "dequantize": dequantize, "validation": 0 if options.short else validation,
              "objective": options.objective, "likelihood": nd.KBound(2, min(4, options.chain - 1), chunk=512),
              "checkpoint_every": ROUND}  # fmt: skip
    # One optimiser for all rounds, so that they share compiled code.
    rate = optax.linear_schedule(0.0, options.rate, 200)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    process, steps, seconds = _constant_rate(key, process, data, work, options, common | {"optimizer": optimizer})
    start = time.perf_counter()
    falling = {"max_steps": 3 * steps // 7, "learning_rate": options.rate}
    if options.short:  # another optimiser would be compiled again
        falling = {"max_steps": steps, "optimizer": optimizer}
    print(f"{steps} steps at a constant rate ({seconds / 60:.0f} minutes), then {falling['max_steps']}", flush=True)
    result = nd.fit(jax.random.fold_in(key, 1), process, data, **falling, checkpoint=work / "falling.state", **common)
    if not options.short:
        plots.history(result).figure.savefig(work / "history.png", dpi=120)
    return result.process, steps, falling["max_steps"], seconds + time.perf_counter() - start


def train_steps(key, process, data, work, options, *, dequantize):
    """A warm-up and a cosine over a number of steps that is known: one program. Resumable; the process and seconds."""
    start = time.perf_counter()
    result = nd.fit(
        key, process, data, max_steps=options.steps, objective=options.objective, batch_size=options.batch,
        learning_rate=options.rate, dequantize=dequantize, validation=0,
        checkpoint=work / "training.state", checkpoint_every=ROUND,
    )  # fmt: skip
    if not options.short:
        plots.history(result).figure.savefig(work / "history.png", dpi=120)
    return result.process, time.perf_counter() - start


def _constant_rate(key, process, data, work, options, common):
    """Rounds of steps until the clock, which counts earlier runs too, or the number of steps says stop."""
    state, clock = work / "steady.state", work / "clock.json"
    seconds = json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0
    steps = checkpoints.describe(state)["metadata"]["history"]["step"][-1] if state.exists() else 0
    over = (work / "falling.state").exists()
    while True:
        start = time.perf_counter()
        steps = steps if over else min(steps + ROUND, options.steps or steps + ROUND)
        result = nd.fit(key, process, data, max_steps=steps, checkpoint=state, **common)
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
def _bound(likelihood, key, process, x_0):
    found = likelihood(key, process, x_0)
    return jax.numpy.stack([found.value, found.terms.null], axis=1)


def held_out_bound(key, process, images, terms, dequantize):
    """K and L_null of each image in nats, dequantised; float64, shape (images,) each."""
    data = images + np.float32(dequantize) * (np.asarray(jax.random.uniform(key, images.shape)) - np.float32(0.5))
    likelihood = nd.KBound(2, min(terms, process.num_steps - 1), chunk=512)
    one = lambda index: _bound(likelihood, jax.random.fold_in(key, int(index[0])), process, data[index])
    return batches(one, len(data), min(250, len(data)), "K").astype(float).T
