"""Deblending two learned laws: a digit and a texture of the same size added up, the flux of each unknown.

    python examples/benchmarks/deblending.py [--prior texture.safetensors] [--blends 40] [--record deblending.jsonl]
    python examples/benchmarks/deblending.py --short

y = a · digit + b · texture + noise of a known scale, 8 × 8 pixels, with fluxes a, b ~ LogNormal(0, 0.3) of each blend's
own. The digits' prior is the packaged one; that of the texture is learned by `fit_prior` from 8 × 8 crops of the upper
three quarters of a photograph, with the schedule of the digits' prior, as sites of one state need. Grey levels are from
0 to 1. The log of a flux is one more site of that state, whose denoiser is exact, so that particles of `nd.infer.SMC`
carry images and fluxes along; the blends are a plate.

Truths are draws of the priors themselves, of which 90% intervals hold 90% if the sampler is right; and held-out digits
and crops, which have the uniform noise of one grey level that both priors learned, with fluxes of their prior. For
each component: the share of pixels, or of fluxes, within central 90% intervals of the draws, with its standard error
over blends, the mean width of the intervals, and the root mean square error of the posterior mean. Beside it the same
for one Gaussian in place of each learned prior, its covariance shrunk as Ledoit and Wolf have it, exact but for a grid
of fluxes. A blend counts as warned of where its islands differ or have few particles on the way; such blends are also
left out of one line.

--record: a file to which each run of some blends is added, so that a script that was stopped goes on where it was; of
one choice of the other options. --short: Gaussians of independent pixels as the digit and the texture, which are not
learned, and few steps, blends and particles.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import ndtri, softmax
from sklearn.covariance import LedoitWolf

import numpyro_diffusion as nd

SIZE, SPREAD = 8, 0.3  # of an image; of the log of a flux
NAMES = ("digit", "texture", "a", "b")
TRUTHS = ("the priors' own draws", "held-out digits and crops")
CELLS = 32  # of equal prior probability, for each flux of the Gaussians' grid
Values = dict[str, np.ndarray]  # by the names above, images and fluxes, with draws or blends in front


class Laws(NamedTuple):
    """The priors of one blend, all in chains of as many steps."""

    digit: nd.DiffusionPrior
    texture: nd.DiffusionPrior
    log_flux: nd.DiffusionPrior


def crops(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Crops of a texture to learn from and held-out ones, shape (n, 8, 8), grey levels from 0 to 1."""
    found = nd.datasets.textures(name, SIZE, stride=4)
    return tuple(np.asarray(each, np.float32) / 255 for each in (found.train, found.test))


def independent_pixels(images: np.ndarray, schedule: Any) -> nd.DiffusionPrior:
    """A Gaussian of pixels that are all alike, whose denoiser is exact."""
    law = float(images.mean()), float(images.std())
    process = nd.ReverseProcess(nd.GaussianDiffusion(schedule, *law), nd.denoisers.Gaussian(*law), images.shape[1:])
    return nd.DiffusionPrior(process)


def learned(options: argparse.Namespace, digit: nd.DiffusionPrior) -> nd.DiffusionPrior:
    """The texture's prior, with the schedule of the digits'; from the file, if it exists."""
    path, schedule = options.prior, digit.process.diffusion.schedule
    train, start = crops(options.texture)[0], time.process_time()
    if options.short:
        return independent_pixels(train, schedule)
    if path is not None and path.exists():
        return nd.load(path)
    given = {"schedule": schedule, "kind": "vector", "max_steps": options.train}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nd.BelowBaselineWarning)  # the report says it too
        prior = nd.fit_prior(jax.random.key(0), train, progress_bar=False, **given)
    print(f"{prior.report()}\nlearned in {time.process_time() - start:.0f} s of CPU time\n", flush=True)
    if path is not None:
        prior.save(path)
    return prior


def laws_of(digit: nd.DiffusionPrior, texture: nd.DiffusionPrior, steps: int) -> Laws:
    """The learned priors, and an exact one of the log of a flux."""
    diffusion = nd.GaussianDiffusion(digit.process.diffusion.schedule, 0.0, SPREAD)
    log_flux = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, SPREAD), ()))
    return Laws(*(prior.with_(sampler=nd.samplers.Ancestral(steps)) for prior in (digit, texture, log_flux)))


def sampler(laws: Laws, noise: float, options: argparse.Namespace) -> nd.infer.SMC:
    """SMC of all that is unknown of the blends in a plate."""

    def model(y: jax.Array) -> None:
        with numpyro.plate("blends", len(y)):
            a, b = (jnp.exp(numpyro.sample(f"log_{name}", laws.log_flux))[..., None, None] for name in "ab")
            digit, texture = numpyro.sample("digit", laws.digit), numpyro.sample("texture", laws.texture)
            numpyro.sample("y", dist.Normal(a * digit + b * texture, noise).to_event(2), obs=y)

    # The twist is the default's, named lest poor runs be run again with other twists and more particles.
    twist = nd.twists.Tempered(nd.twists.Laplace(), 0.5)
    return nd.infer.SMC(model, num_particles=options.particles, num_islands=options.islands, twist=twist)


def by_smc(smc: nd.infer.SMC, key: jax.Array, y: np.ndarray) -> tuple[Values, list[bool]]:
    """Draws for blends y, shape (n, 8, 8), and whether each has something that speaks against it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nd.ReliabilityWarning)  # of all blends together; here each counts by itself
        smc.run(key, jnp.asarray(y))
    draws = {name: np.asarray(value) for name, value in smc.get_samples().items()}
    for name in "ab":
        draws[name] = np.exp(draws.pop(f"log_{name}"))
    alone = [jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], smc.particles) for i in range(len(y))]
    return draws, [bool(nd.samplers.reliability(each).complaints) for each in alone]


def level_of(images: np.ndarray) -> float:
    """One grey level: the width of the uniform noise that makes levels numbers with a density."""
    return float(np.diff(np.unique(images)).min())


class Gaussians:
    """One Gaussian for each component, exact given the fluxes, and fluxes on a grid.

    Args:
        examples: of each component, shape (n, 8, 8).
        noise: its scale.
    """

    def __init__(self, examples: tuple[np.ndarray, np.ndarray], noise: float) -> None:
        found = [LedoitWolf().fit(each.reshape(len(each), -1)) for each in examples]
        own = [level_of(each) ** 2 / 12 * np.eye(SIZE**2) for each in examples]
        self.means = [each.location_ for each in found]
        self.covariances = [each.covariance_ + noise for each, noise in zip(found, own, strict=True)]
        self.roots = [np.linalg.cholesky(each) for each in self.covariances]
        middles = np.exp(SPREAD * ndtri((np.arange(CELLS) + 0.5) / CELLS))
        self.fluxes = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2)
        squares = np.square(self.fluxes)[..., None, None]
        of_y = (squares * np.stack(self.covariances)).sum(1) + noise**2 * np.eye(SIZE**2)
        self.inverses, self.log_dets, self.noise = np.linalg.inv(of_y), np.linalg.slogdet(of_y)[1], noise

    def draws(self, rng: np.random.Generator, y: np.ndarray, count: int = 1_024) -> Values:
        """Draws for one blend, shape (8, 8): draws of the prior, moved to what is seen."""
        y = y.reshape(-1).astype(np.float64)
        apart = y - self.fluxes @ np.stack(self.means)
        share = softmax(-0.5 * (np.einsum("gi,gij,gj->g", apart, self.inverses, apart) + self.log_dets))
        cells = rng.choice(len(share), count, p=share)
        flux = self.fluxes[cells]
        parts = [m + rng.normal(size=(count, len(m))) @ r.T for m, r in zip(self.means, self.roots, strict=True)]
        seen = flux[:, :1] * parts[0] + flux[:, 1:] * parts[1] + self.noise * rng.normal(size=(count, len(y)))
        pull = np.einsum("nij,nj->ni", self.inverses[cells], y - seen)
        moved = [part + flux[:, i : i + 1] * pull @ self.covariances[i] for i, part in enumerate(parts)]
        # Anywhere in a cell, by the prior, lest intervals end on the grid.
        places = (np.stack(np.divmod(cells, CELLS)) + rng.uniform(size=(2, count))) / CELLS
        values = [*(each.reshape(-1, SIZE, SIZE) for each in moved), *np.exp(SPREAD * ndtri(places))]
        return dict(zip(NAMES, values, strict=True))


def truths_of(kind: str, laws: Laws, options: argparse.Namespace) -> Values:
    """Components and fluxes of all blends, by where they come from."""
    start = jax.random.fold_in(jax.random.key(options.seed), TRUTHS.index(kind))
    keys, count = jax.random.split(start, 4), options.blends
    if kind == TRUTHS[0]:
        images = [np.asarray(law.sample(key, (count,))) for law, key in zip(laws[:2], keys[:2], strict=True)]
    else:
        digits, others = np.asarray(nd.datasets.digits().test_images), crops(options.texture)[1]
        images = []
        for k, held_out in enumerate((digits, others)):
            rng = np.random.default_rng([options.seed, 0, k])  # each its own: fewer blends are the first of more
            chosen = held_out[rng.permutation(len(held_out))[:count]]
            images.append(chosen + level_of(held_out) * rng.uniform(-0.5, 0.5, chosen.shape))
    fluxes = [np.exp(np.asarray(laws.log_flux.sample(key, (count,)))) for key in keys[2:]]
    return dict(zip(NAMES, [*images, *fluxes], strict=True))


def blended(true: Values, rng: np.random.Generator, noise: float) -> np.ndarray:
    """What is seen, shape (n, 8, 8)."""
    a, b = (true[name][:, None, None] for name in "ab")
    return a * true["digit"] + b * true["texture"] + noise * rng.normal(size=true["digit"].shape)


def scores(draws: Values, true: Values) -> dict[str, dict[str, list[float]]]:
    """By component: for each blend the share that intervals hold, their width, and the squared error of the mean."""
    found = {}
    for name in NAMES:
        low, high = np.quantile(draws[name], (0.05, 0.95), axis=0, method="weibull")
        each = {
            "held": (low <= true[name]) & (true[name] <= high),
            "width": high - low,
            "square": np.square(draws[name].mean(0) - true[name]),
        }
        found[name] = {what: value.reshape(len(value), -1).mean(1).tolist() for what, value in each.items()}
    return found


def one_run(
    smc: nd.infer.SMC, gaussians: Gaussians, y: np.ndarray, true: Values, seeds: tuple[int, int]
) -> dict[str, Any]:
    """Scores of both ways for some blends, warnings by blend, CPU seconds of SMC; `seeds` of all and of this run."""
    start = time.process_time()
    # The first numbers are those of the truths' keys.
    draws, warned = by_smc(smc, jax.random.fold_in(jax.random.key(seeds[0]), len(TRUTHS) + seeds[1]), y)
    seconds = time.process_time() - start
    plain = [gaussians.draws(np.random.default_rng([seeds[0], 2, seeds[1], i]), each) for i, each in enumerate(y)]
    stacked = {name: np.stack([each[name] for each in plain], 1) for name in NAMES}
    ways = {"SMC": scores(draws, true), "Gaussians": scores(stacked, true)}
    return {"ways": ways, "warned": warned, "seconds": seconds}


def runs(options: argparse.Namespace, laws: Laws, gaussians: Gaussians) -> Iterator[dict[str, Any]]:
    """What is found of some blends after the other, of both kinds of truths; what is recorded is not done again."""
    smc, done = sampler(laws, options.noise, options), {}
    if options.record is not None and options.record.exists():
        lines = options.record.read_text(encoding="utf-8").splitlines()
        done = {(each["truths"], each["first"]): each for each in map(json.loads, lines)}
    trues = [truths_of(kind, laws, options) for kind in TRUTHS]
    seen = [blended(true, np.random.default_rng([options.seed, 1, k]), options.noise) for k, true in enumerate(trues)]
    for first in range(0, options.blends, options.batch):
        some = slice(first, first + options.batch)
        for k, (kind, true, y) in enumerate(zip(TRUTHS, trues, seen, strict=True)):
            if (kind, first) not in done:
                right = {name: value[some] for name, value in true.items()}
                found = one_run(smc, gaussians, y[some], right, (options.seed, len(TRUTHS) * first + k))
                done[kind, first] = {"truths": kind, "first": first, **found}
                if options.record is not None:
                    with options.record.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(done[kind, first]) + "\n")
            yield done[kind, first]


def lines(kind: str, found: list[dict[str, Any]]) -> list[str]:
    """The table's lines for one kind of truths, in Markdown."""
    out, calm = [], ~np.concatenate([each["warned"] for each in found])
    everywhere = np.ones(len(calm), bool)
    for name in NAMES:
        for label, way, kept in (
            ("SMC", "SMC", everywhere), ("SMC, where it does not warn", "SMC", calm),
            ("Gaussians", "Gaussians", everywhere),
        ):  # fmt: skip
            if kept.sum() < 2:
                continue
            columns = [[each["ways"][way][name][what] for each in found] for what in ("held", "width", "square")]
            held, width, square = (np.concatenate(column)[kept] for column in columns)
            error = held.std(ddof=1) / np.sqrt(len(held))
            numbers = f"{held.mean():.3f} ± {error:.3f} | {width.mean():.3f} | {np.sqrt(square.mean()):.3f}"
            out.append(f"| {kind} | {name} | {label} | {numbers} |")
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short",
        action="store_true",
        help="digits and textures of independent pixels, not learned; few steps, blends and particles",
    )
    parser.add_argument("--texture", choices=("brick", "grass", "gravel"), default="grass")
    parser.add_argument("--prior", type=Path, help="a file to keep the texture's prior in, and to load it from")
    parser.add_argument("--train", type=int, default=2_000, help="steps of training")
    parser.add_argument("--noise", type=float, default=0.2, help="its scale")
    parser.add_argument("--blends", type=int, default=40, help="of each kind of truths, at least 2")
    parser.add_argument("--batch", type=int, default=5, help="blends of one run")
    parser.add_argument("--steps", type=int, default=24, help="of the chain")
    parser.add_argument("--particles", type=int, default=1_024, help="of each island")
    parser.add_argument("--islands", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="file of what has been done, which is not done again")
    options = parser.parse_args()
    if options.short:
        options.blends, options.batch, options.steps, options.particles = 2, 2, 4, 16
    digit = nd.load("digits")
    if options.short:
        digit = independent_pixels(np.asarray(nd.datasets.digits().train_images), digit.process.diffusion.schedule)
    laws = laws_of(digit, learned(options, digit), options.steps)
    examples = np.asarray(nd.datasets.digits().train_images), crops(options.texture)[0]
    found = list(runs(options, laws, Gaussians(examples, options.noise)))
    print("| truths | component | way | 90% intervals hold | width | error of the mean |")
    print("|" + "---|" * 6)
    for kind in TRUTHS:
        own = [each for each in found if each["truths"] == kind]
        warned, seconds = sum(sum(each["warned"]) for each in own), sum(each["seconds"] for each in own)
        print("\n".join(lines(kind, own)))
        each = f"{seconds / options.blends:.1f} CPU s a blend"
        print(f"| {kind} | | SMC | warned: {warned} of {options.blends} | {each} | |")
    print("To reach: 0.87 to 0.93.")


if __name__ == "__main__":
    main()
