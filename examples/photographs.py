"""Pieces of photographs in colour: noise as strong as the picture taken away, code lengths, rate against distortion.

python examples/photographs.py [--work photographs] [--steps 2000] [--cifar FOLDER] [--short]

Patches of 32 x 32 pixels of five photographs to learn from, with their mirror images, and of two others held out
(`datasets.photographs`; or CIFAR-10, for those who have its binary files). The network learns what a mixture of
--baseline Gaussians along cosines leaves. Training goes on after an interrupt.

Noise of the data's own standard deviation (SNR = 1, as in Sohl-Dickstein et al. 2015, Figure 3) leaves a picture that
is, but for its units, the state of the chain where its log-SNR is 0. So the posterior needs no search: the chain is
taken up there, and its draws are right but for the network and the steps' size. The script checks this on a Gaussian,
where the answer is known, and a few patches also by particles and a Gaussian factor. Beside it, on the same patches:
the Wiener filter (one Gaussian with a full covariance), a Gaussian mixture of whole patches (full covariances in the
leading principal components, diagonal ones in the rest), one of 8 x 8 pieces, and the mixture that the network is
about, all with the exact posterior of their law.
"""

import time
from pathlib import Path

import _gaussians
import _images
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, plots

PIECE = 8
DRAWS = 39  # the truth is one of 40 alike, so between the 2nd and the 38th with probability 0.9


def data(options):
    """Patches to learn from, with mirror images, and held-out ones, float32 of 0 ... 255."""
    if options.cifar:
        found = datasets.cifar10(options.cifar)
        train, test = found.train_images, found.test_images
    else:
        train, test = datasets.photographs(16 if options.short else 32, options.stride)
    return np.concatenate([train, train[:, :, ::-1]]).astype(np.float32), test.astype(np.float32)


def take_up(process, y):
    """The state of the chain, and its time, that data with noise of the process's scale are."""
    t = float(process.diffusion.schedule.time_at(0.0))
    return process.diffusion.unstandardize(process.diffusion.standardize(y) * np.float32(np.sqrt(0.5))), t


@eqx.filter_jit
def _draws(key, process, x_t, t, steps, count):
    """Draws of x_0 by the rest of the chain, for states of shape (n, *event); shape (count, n, *event)."""
    sampler = nd.samplers.Ancestral(steps)
    keys = jax.random.split(key, (count, len(x_t)))
    return jax.vmap(jax.vmap(lambda key, x: sampler.sample_from(key, process, x, t)), (0, None))(keys, x_t)


def check(key, process, count):
    """Draws of a Gaussian where all is known: mean and variance of each element, in standard errors."""
    scale, noise = process.diffusion.scale * jnp.array([0.2, 0.5, 1.0, 2.0]), float(process.diffusion.scale)
    loc = float(process.diffusion.loc)
    exact = nd.ReverseProcess(process.diffusion, denoisers.Gaussian(loc, scale), (4,))
    y = loc + noise * jnp.array([[1.0, -1.5, 0.3, 2.0]])
    x_t, t = take_up(exact, y)
    draws = np.asarray(_draws(key, exact, x_t, t, None, count))[:, 0]
    variance = np.asarray(1 / (1 / scale**2 + 1 / noise**2))
    mean = loc + variance / noise**2 * np.asarray(y[0] - loc)
    off = [(draws.mean(0) - mean) / np.sqrt(variance / count), (draws.var(0) / variance - 1) * np.sqrt(count / 2)]
    print(f"a Gaussian's posterior from {count} draws: means off by at most {np.abs(off[0]).max():.1f} standard errors,"
          f" variances by {np.abs(off[1]).max():.1f}", flush=True)  # fmt: skip
    assert np.max(np.abs(off)) < 4.5, "the chain should be the Gaussian's posterior"


def row(name, truth, noisy, mean, inside=None):
    """Print the gain in PSNR and the share of values in their 90% intervals, means over patches."""
    psnr = lambda x: 20 * np.log10(255) - 10 * np.log10(np.mean((x - truth) ** 2, axis=(1, 2, 3)))
    text = lambda values, digits: f"{values.mean():.{digits}f} ± {values.std() / np.sqrt(len(values)):.{digits}f}"
    covered = "" if inside is None else text(100 * inside.reshape(len(truth), -1).mean(1), 1)
    print(f"{name:34s}{text(psnr(mean), 2):>16s}{text(psnr(mean) - psnr(noisy), 2):>16s}{covered:>16s}", flush=True)


def cut(images, stride):
    """Flattened pieces of each image from all places at this stride: shape (n · places, d), and the places."""
    starts = range(0, images.shape[1] + 1 - PIECE, stride)
    places = [(i, j) for i in starts for j in starts]
    parts = np.stack([images[:, i : i + PIECE, j : j + PIECE] for i, j in places], axis=1)
    return parts.reshape(-1, PIECE**2 * 3), places


def join(pieces, places, size):
    """Images whose pixels are the means of all pieces that cover them."""
    parts = pieces.reshape(-1, len(places), PIECE, PIECE, 3)
    total, count = np.zeros((len(parts), size, size, 3)), np.zeros((size, size, 3))
    for index, (i, j) in enumerate(places):
        total[:, i : i + PIECE, j : j + PIECE] += parts[:, index]
        count[i : i + PIECE, j : j + PIECE] += 1
    return total / count


def gaussians(train, options):
    """The Gaussian and the mixture of whole patches, and the mixture of pieces, of data with noise of one level."""
    rng = np.random.default_rng(options.seed)
    train = train[:: max(1, len(train) // options.fitted)]
    noisy = lambda x: x + rng.uniform(-0.5, 0.5, x.shape)
    pieces = cut(train, PIECE)[0]
    chosen = pieces[rng.permutation(len(pieces))[: options.pieces]]
    whole = noisy(train.reshape(len(train), -1))
    single, start = _gaussians.Mixture.single(whole), time.perf_counter()
    mixture = _gaussians.Principal(whole, options.leading, options.components, options.seed)
    print(f"{time.perf_counter() - start:.0f} s for the mixture of {len(train)} whole patches", flush=True)
    return single, mixture, _gaussians.Mixture.fit(noisy(chosen), options.components, options.seed)


def compare(truth, noisy, noise, single, whole, mixture):
    """The rows of the Gaussian models; returns the means of the first and the last."""
    size, means = truth.shape[1], []
    for name, model in (("Wiener filter", single), ("mixture of whole patches", whole)):
        law = model.denoise(noisy.reshape(len(noisy), -1), noise)
        level = _gaussians.below(law, truth.reshape(len(truth), -1))
        means.append(_gaussians.mean(law).reshape(truth.shape))
        row(name, truth, noisy, means[-1], (level > 0.05) & (level < 0.95))
    pieces, places = cut(noisy, PIECE)
    law = mixture.denoise(pieces, noise)
    level = join(_gaussians.below(law, cut(truth, PIECE)[0]), places, size)
    row(f"mixture of {PIECE} x {PIECE} pieces", truth, noisy, join(_gaussians.mean(law), places, size),
        (level > 0.05) & (level < 0.95))  # fmt: skip
    pieces, places = cut(noisy, 2)
    averaged = join(_gaussians.mean(mixture.denoise(pieces, noise)), places, size)
    row("the same, overlapping, averaged", truth, noisy, averaged)
    return means[0], averaged


def denoise(key, process, truth, gaussian_models, law, options):
    """The table of denoised patches, and a picture of some."""
    noise, keys = float(process.diffusion.scale), jax.random.split(key, 4)
    noisy = truth + np.float32(noise) * np.asarray(jax.random.normal(keys[0], truth.shape))
    x_t, t = take_up(process, noisy)
    size = min(8, len(truth))
    draws = _images.batches(lambda index: np.moveaxis(np.asarray(_draws(
        jax.random.fold_in(keys[1], int(index[0])), process, x_t[index], t, options.strided, DRAWS)), 0, 1),
        len(truth), size, "draws")  # fmt: skip
    predict = eqx.filter_jit(lambda process, x: jax.vmap(lambda x: process.predict(x, t))(x))
    mean = _images.batches(lambda index: predict(process, x_t[index]), len(truth), size, "means")
    ordered = np.sort(draws, axis=1)
    print(f"{len(truth)} held-out patches, noise {noise:.1f} = the data's standard deviation of 0 ... 255\n"
          f"{'':34s}{'PSNR, dB':>16s}{'gain, dB':>16s}{'in 90%, %':>16s}", flush=True)  # fmt: skip
    row("diffusion, one call, and draws", truth, noisy, mean, (truth > ordered[:, 1]) & (truth < ordered[:, -2]))
    row(f"diffusion, mean of {DRAWS} draws", truth, noisy, draws.mean(1))
    if law is not None:
        about = nd.ReverseProcess(process.diffusion, law.denoiser(), process.event_shape)
        row("mixture along cosines, one call", truth, noisy,
            _images.batches(lambda index: predict(about, x_t[index]), len(truth), size, "mixture"))  # fmt: skip
    means = compare(truth, noisy, noise, *gaussian_models)
    shown = np.linspace(0, len(truth) - 1, min(8, len(truth))).astype(int)
    panels = np.stack([truth, noisy, *means, mean, draws[:, 0], draws[:, 1]])[:, shown]
    axes = plots.samples(np.clip(panels.reshape(-1, *truth.shape[1:]) / 255, 0, 1), columns=len(shown))
    for index, name in enumerate(("truth", "noisy", "Wiener", "mixture", "diffusion, mean", "a draw", "another")):
        axes.text(-2, 34 * index + 16, name, ha="right", va="center", fontsize=8)
    axes.figure.savefig(options.work / "denoised.png", dpi=150, bbox_inches="tight")
    particles(keys[2], process, noisy[shown], draws[shown], options)


def particles(key, process, noisy, draws, options):
    """The same posterior by SMC with a Gaussian factor: how far its means are from those of the draws."""
    prior, noise = nd.DiffusionPrior(process), float(process.diffusion.scale)
    sampler = nd.samplers.TwistedSMC(options.particles, num_steps=options.strided, chunk=32)
    for index in range(options.by_particles):
        posterior = nd.DiffusionPosterior(prior, nd.factors.Gaussian(noisy[index], noise), sampler)
        found = posterior.smc(jax.random.fold_in(key, index))
        weight = np.exp(np.asarray(found.log_weight))[0]
        mean = np.tensordot(weight, np.asarray(found.x)[0], 1)
        apart = np.sqrt(np.mean((mean - draws[index].mean(0)) ** 2))
        spread = np.sqrt(draws[index].var(0, ddof=1).mean())
        print(f"by {options.particles} particles: mean {apart:.2f} from that of the draws (sd {spread:.2f}), effective "
              f"number at the end {1 / np.sum(weight**2):.1f}", flush=True)  # fmt: skip


def lengths(key, process, test, gaussian_models, law, options):
    """Code lengths of the held-out patches, and the picture of rate against distortion."""
    size = np.prod(test.shape[1:])
    bits = lambda nats, d: -nats / (d * np.log(2))
    say = lambda name, x: print(f"{name:34s}{x.mean():9.3f} ± {x.std() / np.sqrt(len(x)):.3f} bits/dim", flush=True)
    k, _ = _images.held_out_bound(key, process, test, options.terms, 1.0)
    say("diffusion, K", bits(k, size))
    single, whole, mixture = gaussian_models
    data = test + np.random.default_rng(options.seed).uniform(-0.5, 0.5, test.shape)
    models = {"Gaussian, full covariance": single, "mixture of whole patches": whole}
    models |= {} if law is None else {"mixture along cosines": law}
    for name, model in models.items():
        say(name, bits(model.log_prob(data.reshape(len(test), -1)), size))
    pieces = bits(mixture.log_prob(cut(data, PIECE)[0]), PIECE**2 * 3)
    say(f"mixture of {PIECE} x {PIECE} pieces", pieces.reshape(len(test), -1).mean(1))
    some = data[:: max(1, len(data) // options.coded)][: options.coded].astype(np.float32)
    code = nd.diagnostics.progressive_coding(key, process, some, chunk=128)
    print(code.table(), flush=True)
    axes = plots.rate_distortion(code)
    axes.set(xlabel="rate, bits per dimension", ylabel="root mean square error, grey levels of 0 … 255")
    axes.figure.savefig(options.work / "rate_distortion.png", dpi=130, bbox_inches="tight")


def run(options):
    """Everything, in the folder `work`, which exists."""
    train, test = data(options)
    if options.short:
        train, test = train[::100], test[::400]
    keys = jax.random.split(jax.random.key(options.seed), 5)
    law = _images.simple_model(train, options)
    units = train.mean(), train.std()
    process = _images.untrained(keys[0], options.network, train.shape[1:], options.chain, *units, law)
    check(keys[1], process, options.checked)
    print(f"{len(train)} training patches, {len(test)} held out, T = {options.chain}", flush=True)
    models = gaussians(train, options)
    process, seconds = _images.train_steps(keys[2], process, train, options.work, options, dequantize=1.0)
    print(f"{seconds / 60:.1f} minutes of training", flush=True)
    nd.DiffusionPrior(process).save(options.work / "photographs.safetensors", dtype="float16")
    denoise(keys[3], process, test[:: max(1, len(test) // options.patches)][: options.patches], models, law, options)
    lengths(keys[4], process, test, models, law, options)
    if not options.short:
        draws = np.asarray(jax.jit(lambda key: nd.DiffusionPrior(process).sample(key, (36,)))(keys[0]))
        axes = plots.samples(np.clip(draws / 255, 0, 1))
        axes.figure.savefig(options.work / "samples.png", dpi=150)
    print(f"pictures in {options.work}")


def main():
    """Parse the options and run."""
    parser = _images.parser(__doc__, "photographs")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10's binary files, to take the photographs' place")
    parser.add_argument("--stride", type=int, default=12, help="pixels between two training patches")
    parser.add_argument("--patches", type=int, default=32, help="to denoise")
    parser.add_argument("--strided", type=int, default=60, help="steps of the chain for draws")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--by-particles", type=int, default=2, help="patches denoised by them too")
    parser.add_argument("--components", type=int, default=16, help="of each mixture")
    parser.add_argument("--leading", type=int, default=64, help="principal components with full covariances")
    parser.add_argument("--fitted", type=int, default=9000, help="patches for the Gaussian models")
    parser.add_argument("--pieces", type=int, default=16_000, help="pieces for the mixture")
    parser.add_argument("--coded", type=int, default=32, help="patches for rate against distortion")
    parser.add_argument("--checked", type=int, default=4000, help="draws of the Gaussian")
    _images.add_training(parser, steps=2000, batch=16)
    parser.set_defaults(network="patched-24", baseline=64)
    _images.start(
        run, parser, steps=20, chain=10, network="mlp-16", batch=8, patches=4, strided=5, coded=4, particles=4,
        by_particles=0, components=2, leading=8, pieces=400, fitted=100, stride=16, terms=4, checked=500, baseline=2,
    )  # fmt: skip


if __name__ == "__main__":
    main()
