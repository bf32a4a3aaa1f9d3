"""True evidences and moments about a prior's own chain: its draws reweighted, or quadrature, or a closed form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from _likelihoods import over
from jax import Array

import numpyro_diffusion as nd

BATCH = 5_000  # draws at a time
SMOOTHING = 0.1  # standard deviation of the kernel that finds a density from draws


class Truth(NamedTuple):
    """An answer and its standard errors.

    Attributes:
        log_evidence: in nats.
        error: its standard error, 0 where it is exact.
        mean: of the posterior, shape (d,).
        sd: of the posterior, shape (d,).
        mean_error: standard errors of the means.
        sd_error: standard errors of the standard deviations.
        negative: posterior probability that the sum over x is negative.
        size: effective number of draws behind it; infinite where it is exact.
    """

    log_evidence: float
    error: float
    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray
    negative: float
    size: float

    def save(self, path: Path) -> None:
        """Write it to an .npz file."""
        np.savez(path, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """Read it back."""
        with np.load(path) as file:
            return cls(**{name: file[name] if file[name].ndim else float(file[name]) for name in cls._fields})


def draws_of(key: Array, prior: nd.DiffusionPrior, count: int, normal: bool = False) -> np.ndarray:
    """Draws of the prior, `BATCH` at a time; `normal`: it is N(0, I), which needs no chain."""
    if normal:
        return np.random.default_rng(0).standard_normal((count, *prior.event_shape)).astype(np.float32)
    some = jax.jit(lambda key: prior.sample(key, (BATCH,)))
    return np.concatenate([np.asarray(some(each)) for each in jax.random.split(key, -(-count // BATCH))])[:count]


def mapped(function: Callable[[Array], Array], x: np.ndarray) -> np.ndarray:
    """A function of many draws, `BATCH` at a time, in double precision."""
    return np.concatenate(
        [np.asarray(function(jnp.asarray(x[i : i + BATCH]))) for i in range(0, len(x), BATCH)]
    ).astype(np.float64)


def weighted(x: np.ndarray, weight: np.ndarray, log_scale: float = 0.0) -> Truth:
    """Moments of weighted draws, and the log of their mean weight plus `log_scale`; errors by the delta method.

    Weights may be negative, where they are differences that take a bias away.
    """
    x, count = x.reshape(len(x), -1).astype(np.float64), len(x)
    level = weight.mean()
    share = weight / weight.sum()
    mean = share @ x
    away = (x - mean) ** 2
    sd = np.sqrt(share @ away)
    return Truth(
        log_scale + float(np.log(level)), float(weight.std() / level / np.sqrt(count)), mean, sd,
        np.sqrt(share**2 @ away), np.sqrt(share**2 @ (away - sd**2) ** 2) / (2 * sd),
        float(share @ (x.sum(1) < 0)), float(1 / (share @ share)),
    )  # fmt: skip


def reweighted(x: np.ndarray, model: Any, args: tuple[Any, ...]) -> Truth:
    """Draws of the prior reweighted by the likelihood."""
    log_weight = mapped(over(model, args), x)
    highest = log_weight.max()
    return weighted(x, np.exp(log_weight - highest), float(highest))


def known(x: np.ndarray, values: np.ndarray, mask: np.ndarray) -> Truth:
    """Some elements known exactly: the density of the draws there.

    A Gaussian kernel of bandwidth h has a bias of order h², which twice the answer of h less that of √2 h lacks.
    """

    def kernel(bandwidth: float) -> np.ndarray:
        away = (x[:, mask] - values[mask]) / bandwidth
        return np.exp(-0.5 * (away.astype(np.float64) ** 2).sum(1)) / (np.sqrt(2 * np.pi) * bandwidth) ** mask.sum()

    truth = weighted(x, 2 * kernel(SMOOTHING) - kernel(np.sqrt(2) * SMOOTHING))
    mean, sd = np.where(mask, values, truth.mean), np.where(mask, 0.0, truth.sd)
    return truth._replace(mean=mean, sd=sd)


def quadrature(model: Any, args: tuple[Any, ...], count: int = 40_001) -> Truth:
    """N(0, 1) in one dimension, by the trapezium rule on [−10, 10]."""
    x = np.linspace(-10, 10, count)
    log_density = mapped(over(model, args), x[:, None]) - 0.5 * x**2 - 0.5 * np.log(2 * np.pi)
    highest = log_density.max()
    density = np.exp(log_density - highest)
    share = density / density.sum()
    mean = share @ x
    sd = np.sqrt(share @ (x - mean) ** 2)
    log_evidence = float(highest + np.log(density.sum() * (x[1] - x[0])))
    return exact(log_evidence, np.array([mean]), np.array([sd]), float(share @ (x < 0)))


def exact(log_evidence: float, mean: np.ndarray, sd: np.ndarray, negative: float) -> Truth:
    """An answer without an error."""
    zero = np.zeros_like(mean)
    return Truth(log_evidence, 0.0, mean, sd, zero, zero, negative, float("inf"))


def far_normal(y: np.ndarray, scale: float) -> Truth:
    """N(0, I) with every element seen in noise of this scale, in closed form."""
    variance = 1 + scale**2
    log_evidence = float(dist.Normal(0.0, variance**0.5).log_prob(jnp.asarray(y)).sum())
    ones = np.ones(len(y))
    return exact(log_evidence, y / variance, scale / variance**0.5 * ones, float((y.sum() < 0) * 1.0))
