"""Problems for `nd.infer.SMC` whose answers are known: priors, models, and the truth about the prior's own chain."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _truths
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from _likelihoods import KINDS, Model, simulate
from _truths import Truth

import numpyro_diffusion as nd


class Source(NamedTuple):
    """How a prior is made.

    Attributes:
        make: makes it; no more than a minute of training.
        draws: of it for the truths.
        normal: it is exactly N(0, I), so that draws need no chain.
        learned: it is trained, and saved in the cache.
    """

    make: Callable[[], nd.DiffusionPrior]
    draws: int
    normal: bool = False
    learned: bool = False


class Problem(NamedTuple):
    """One model of one site "x", and where its truth comes from.

    Attributes:
        name: what it is called.
        source: name of its prior in `SOURCES`.
        model: called as ``model(prior, *args)``.
        args: arguments after the prior.
        truth: from draws of the prior to the truth.
        exact: the truth needs no draws.
    """

    name: str
    source: str
    model: Model
    args: tuple[Any, ...]
    truth: Callable[[np.ndarray], Truth]
    exact: bool = False


def prior_of(denoiser: Any, num_steps: int, size: int, scale: float = 1.0) -> nd.DiffusionPrior:
    """A chain of the default ends with an exact denoiser."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps), scale=scale)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, size))


def normal(size: int, draws: int = 1_000_000) -> Source:
    """N(0, I), exact."""
    return Source(lambda: prior_of(nd.denoisers.Gaussian(0.0, 1.0), 30, size), draws, normal=True)


def mixture_3d(num_steps: int) -> nd.DiffusionPrior:
    """Two modes in three dimensions."""
    locs = jnp.array([[-1.5, 0.0, 0.5], [1.0, 1.0, -1.0]])
    return prior_of(nd.denoisers.GaussianMixture(locs, [0.5, 0.6], [0.4, 0.6]), num_steps, 3, scale=1.5)


def mixture_2d() -> nd.DiffusionPrior:
    """Three modes in two dimensions."""
    locs = jnp.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
    return prior_of(nd.denoisers.GaussianMixture(locs, [0.5, 0.4, 0.7], [0.3, 0.5, 0.2]), 100, 2)


def curves(key: jax.Array, count: int, size: int) -> np.ndarray:
    """Smooth random functions on a grid of [0, 1]: a Gaussian process of unit variance and length scale 0.2."""
    grid = np.linspace(0, 1, size)
    covariance = np.exp(-0.5 * ((grid[:, None] - grid) / 0.2) ** 2) + 1e-3 * np.eye(size)
    return np.asarray(jax.random.normal(key, (count, size))) @ np.linalg.cholesky(covariance).T


def mixture_of_curves(size: int) -> nd.DiffusionPrior:
    """Eight smooth functions, each with independent noise of 0.3."""
    locs = curves(jax.random.key(4), 8, size)
    return prior_of(nd.denoisers.GaussianMixture(locs, np.full(8, 0.3), np.full(8, 1 / 8)), 50, size)


def unequal(count: int) -> nd.DiffusionPrior:
    """Normal laws about 3 in 24 dimensions whose standard deviations along common axes differ severalfold."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    locs, variances = rng.normal(3.0, 1.0, (count, 24)), np.exp(rng.normal(size=(count, 24)))
    covariances = np.einsum("ij,kj,lj->kil", axes, variances, axes)
    denoiser = nd.denoisers.FullGaussianMixture(locs, covariances, rng.dirichlet(np.full(count, 5.0)))
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(64, scale=2.0, detail=0.3), 2.5, 1.5)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, 24))


def swiss_roll() -> nd.DiffusionPrior:
    """The README's prior."""
    points = nd.datasets.swiss_roll(jax.random.key(0), 2_000, noise=0.5)
    return nd.fit_prior(jax.random.key(1), points, max_steps=500, progress_bar=False)


def banana() -> nd.DiffusionPrior:
    """A curved law in two dimensions, learned by default settings."""
    one, two = np.random.default_rng(0).standard_normal((2, 2_000))
    return nd.fit_prior(jax.random.key(1), np.stack([one, 0.5 * one**2 + 0.3 * two], 1), progress_bar=False)


def correlated() -> nd.DiffusionPrior:
    """Four elements of unit variance and correlation 0.8, learned from 400 draws."""
    rows = np.random.default_rng(0).multivariate_normal(np.zeros(4), 0.8 + 0.2 * np.eye(4), 400)
    return nd.fit_prior(jax.random.key(1), rows, max_steps=1_000, progress_bar=False)


def skewed() -> nd.DiffusionPrior:
    """A one-dimensional law with a long tail."""
    rows = np.random.default_rng(0).gamma(2.0, 0.7, (2_000, 1)) - 1.0
    return nd.fit_prior(jax.random.key(1), rows, max_steps=1_000, progress_bar=False)


def learned_curves(size: int) -> nd.DiffusionPrior:
    """A Gaussian process learned from 4,000 draws."""
    schedule = nd.schedules.log_snr(50, detail=0.2)
    network = nd.networks.MLP(jax.random.key(2), (size,), num_steps=50, width=128)
    rows = curves(jax.random.key(0), 4_000, size)
    return nd.fit_prior(
        jax.random.key(1), rows, max_steps=2_000, schedule=schedule, network=network, progress_bar=False
    )  # fmt: skip


SOURCES = {
    "normal, d = 1": normal(1),
    "normal, d = 2": normal(2),
    "normal, d = 4": normal(4),
    "normal, d = 6": normal(6, 4_000_000),
    "mixture, d = 3, T = 16": Source(partial(mixture_3d, 16), 1_000_000),
    "mixture, d = 3, T = 100": Source(partial(mixture_3d, 100), 500_000),
    "mixture, d = 2": Source(mixture_2d, 500_000),
    "mixture, d = 16": Source(partial(mixture_of_curves, 16), 200_000),
    "mixture, d = 64": Source(partial(mixture_of_curves, 64), 100_000),
    "three unequal, d = 24": Source(partial(unequal, 3), 400_000),
    "six unequal, d = 24": Source(partial(unequal, 6), 400_000),
    "swiss roll": Source(swiss_roll, 150_000, learned=True),
    "banana": Source(banana, 150_000, learned=True),
    "correlated": Source(correlated, 600_000, learned=True),
    "skewed": Source(skewed, 100_000, learned=True),
    "curves, d = 16": Source(partial(learned_curves, 16), 150_000, learned=True),
    "curves, d = 64": Source(partial(learned_curves, 64), 100_000, learned=True),
}


def seen(name: str, source: str, kind: str, y: Any, rows: Any, scale: float = 1.0) -> Problem:
    """A problem with one of `KINDS`, its truth by reweighting."""
    args = (jnp.asarray(y), jnp.asarray(rows, dtype=float), scale)
    return Problem(name, source, KINDS[kind], args, lambda x: _truths.reweighted(x, KINDS[kind], args))


def pair(kind: str, exact: str, learned: str, y: Any, rows: Any, scale: float = 1.0) -> list[Problem]:
    """The same likelihood with an exact and with a learned prior."""
    return [seen(f"{kind}: {source}", source, kind, y, rows, scale) for source in (exact, learned)]


def asked() -> list[Problem]:
    """The problems that showed the defaults of version 0.1 to be wrong."""
    looks = [[1.0, 0.5, -0.3], [0.0, 1.0, 1.0]]
    count = seen("count of 40", "normal, d = 1", "poisson", [40], np.eye(1))
    far = seen("far observation", "normal, d = 2", "hidden", [10.0, 10.0], np.eye(2), 0.1)
    return [
        seen("two moduli, T = 16", "mixture, d = 3, T = 16", "modulus", [1.1, 0.6], looks, 0.2),
        seen("two moduli, T = 100", "mixture, d = 3, T = 100", "modulus", [1.1, 0.6], looks, 0.2),
        seen("squared sum", "mixture, d = 2", "square", [4.0], np.ones((1, 2)), 1.5),
        count._replace(truth=lambda _: _truths.quadrature(count.model, count.args), exact=True),
        logistic_rows("forty answers", "normal, d = 6", 40, 4.0, seed=3),
        seen("sum of a roll", "swiss roll", "linear", [1.0], np.ones((1, 2)), 0.3),
        seen("banana's first", "banana", "linear", [1.0], np.eye(2)[:1], 0.5),
        two_known(),
        seen("two nearly known", "correlated", "linear", [0.5, 1.0], np.eye(4)[:2], 0.1),
        far._replace(truth=lambda _: _truths.far_normal(np.full(2, 10.0), 0.1), exact=True),
    ]


def logistic_rows(name: str, source: str, count: int, slope: float, seed: int = 0) -> Problem:
    """Answers yes and no to random questions, from an x of N(0, I)."""
    size = int(source.rsplit(" ", 1)[1])
    rows = slope * np.random.default_rng(seed).standard_normal((count, size)) / size**0.5
    x = jax.random.normal(jax.random.key(seed), (size,))
    y = simulate(jax.random.key(seed + 1), KINDS["logistic"], x, rows, 1.0)
    return seen(name, source, "logistic", y, rows)


def two_known() -> Problem:
    """Two of four elements known exactly: the evidence is their density."""
    values, mask = np.array([0.5, 1.0, 0.0, 0.0]), np.array([True, True, False, False])

    def model(prior: nd.DiffusionPrior) -> None:
        numpyro.sample("x", prior * nd.factors.Delta(values, mask))

    return Problem("two known", "correlated", model, (), lambda x: _truths.known(x, values, mask))


def pairs() -> list[Problem]:
    """Every kind of likelihood, each with an exact and a learned prior; a radius once more with two hard exact ones."""
    normals = [f"normal, d = {size}" for size in (0, 1, 2, 3, 4)]
    mixture, four = "mixture, d = 2", (normals[4], "correlated")
    some = np.random.default_rng(1).standard_normal((12, 4))
    sixteen, sixty_four = (np.eye(size)[:: size // 4] for size in (16, 64))
    small, large = ((f"mixture, d = {size}", f"curves, d = {size}") for size in (16, 64))
    return [
        *pair("poisson", *four, [2, 1, 4], np.eye(4)[:3]),
        *pair("negative_binomial", mixture, "banana", [3, 1], [[1.0, 0.5], [0.0, 1.0]], 0.3),
        *pair("logistic", *four, [1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1], some),
        *pair("ordinal", mixture, "swiss roll", [3, 1, 2], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 0.3),
        *pair("student", normals[2], "banana", [0.5, 0.5, 6.0], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 0.2),
        *pair("censored", *four, [0.0, 0.7, 0.0, 0.3], np.eye(4), 0.4),
        *pair("product", normals[2], "swiss roll", [0.5], np.eye(2), 0.1),
        *pair("modulus", normals[1], "skewed", [0.6], np.eye(1), 0.1),
        *pair("exponential", normals[1], "skewed", [2.0], np.eye(1), 0.3),
        *pair("radius", normals[2], "swiss roll", [1.0], np.eye(2), 0.05),
        *pair("quantised", normals[2], "banana", [0.5, 0.5], np.eye(2), 0.1),
        *pair("poisson", *small, [1, 3, 0, 1], sixteen),
        *pair("modulus", *small, [0.7, 0.5], sixteen[1:3], 0.2),
        *pair("logistic", *large, [1, 1, 0, 0, 1, 0], 3 * np.eye(64)[5::11]),
        *pair("exponential", *large, [1.5, 0.5], sixty_four[1:3], 0.3),
        *pair("radius", "three unequal, d = 24", "six unequal, d = 24", [12.0], np.eye(24)[:8], 0.3),
    ]


def problems() -> list[Problem]:
    """All of them."""
    return asked() + pairs()


class Cache:
    """Priors, their draws and truths, kept in a folder if there is one, and in memory."""

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit
        self._priors: dict[str, nd.DiffusionPrior] = {}
        self._draws: dict[str, np.ndarray] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def prior(self, name: str) -> nd.DiffusionPrior:
        """The prior, trained where it must be."""
        if name not in self._priors:
            source, path = SOURCES[name], self._path(name, "safetensors")
            if source.learned and path is not None and path.exists():
                self._priors[name] = nd.load(path)
            else:
                self._priors[name] = source.make()
                if source.learned and path is not None:
                    self._priors[name].save(path)
        return self._priors[name]

    def draws(self, name: str) -> np.ndarray:
        """Draws of the prior; of only one at a time are they in memory."""
        if name not in self._draws:
            source, path = SOURCES[name], self._path(name, "draws.npy")
            if path is not None and path.exists():
                x = np.load(path)
            else:
                count = source.draws if self.limit is None else min(self.limit, source.draws)
                x = _truths.draws_of(jax.random.key(7), self.prior(name), count, source.normal)
                if path is not None and not source.normal:
                    np.save(path, x)
            self._draws = {name: x}
        return self._draws[name]

    def truth(self, problem: Problem) -> Truth:
        """The truth of a problem."""
        path = self._path(problem.name, "npz")
        if path is not None and path.exists():
            return Truth.load(path)
        truth = problem.truth(np.zeros(0) if problem.exact else self.draws(problem.source))
        if path is not None:
            truth.save(path)
        return truth

    def _path(self, name: str, suffix: str) -> Path | None:
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return None if self.folder is None else self.folder / f"{plain}.{suffix}"
