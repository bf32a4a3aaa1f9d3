"""The demonstration: real handwritten digits, half hidden, under noise of an unknown scale.

The model has σ ~ HalfNormal(0.5), images x of a learned prior, and y ~ N(x, σ²) at the pixels that are seen. Particle
Gibbs draws x and NUTS σ, in turn, *exact* for a chain of 25 steps, to which the prior is shortened. log p(y) is that of
∫ p(y, σ) dσ by a Gauss–Hermite rule of five points in log σ, laid where the draws of σ are, with SMC at each:
*approximate* by the rule, while its standard error is that of SMC alone. The digits shown are held out, so that the
packaged prior has not learned from them.
"""

import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from matplotlib.figure import Figure
from numpyro.infer import MCMC, NUTS, Gibbs

from . import plots
from .convert import to_arviz
from .datasets import digits
from .distributions import DiffusionPrior
from .hub import card, load
from .infer import SMC, ParticleGibbs
from .likelihoods import KBound
from .networks import MLP
from .samplers import Ancestral
from .training import fit_prior
from .twists import Laplace, Tempered

TRUE_SIGMA = 0.2
CHAIN_STEPS = 25
NUM_PARTICLES = 32


class Observation(NamedTuple):
    """Held-out digits and what is seen of them.

    Attributes:
        truth: shape (n, 8, 8), grey levels from 0 to 1.
        mask: whether a pixel is seen, shape (n, 8, 8).
        y: noisy pixels, 0 where hidden, shape (n, 8, 8).
    """

    truth: Array
    mask: Array
    y: Array


def train_prior(key: Array, *, max_steps: int = 6000, progress_bar: bool = True) -> DiffusionPrior:
    """Learn a digits prior from the 1,500 training images alone.

    The packaged one has also learned from draws of a larger network (``examples/digits_prior.py``), and is better.
    """
    first, second = jax.random.split(key)
    network = MLP(first, (8, 8), num_steps=100, width=96, depth=2)
    images = digits().train_images
    return fit_prior(
        second, images, network=network, max_steps=max_steps, learning_rate=2e-3, progress_bar=progress_bar
    )


def held_out_bound(key: Array, prior: DiffusionPrior) -> tuple[float, float]:
    """Mean K bound of the 297 held-out digits in nats, with its standard error; dequantised as in training."""
    images = jnp.asarray(digits().test_images)
    noise, draws = jax.random.split(key)
    images = images + (jax.random.uniform(noise, images.shape) - 0.5) / 16
    values = jax.jit(lambda x: KBound(4, chunk=4096)(draws, prior.process, x).value)(images)
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def observe(key: Array, truth: Array, sigma: float = TRUE_SIGMA) -> Observation:
    """Hide each pixel with probability one half and add noise of standard deviation `sigma` to the others."""
    hide, noise = jax.random.split(key)
    mask = jax.random.bernoulli(hide, 0.5, truth.shape)
    return Observation(truth, mask, jnp.where(mask, truth + sigma * jax.random.normal(noise, truth.shape), 0.0))


def model(prior: DiffusionPrior, mask: Array, y: Array | None = None, sigma: Array | None = None) -> None:
    """An ordinary NumPyro model whose prior is a diffusion; `sigma` is unknown unless given."""
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5), obs=sigma)
    with numpyro.plate("digit", len(mask)):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, sigma).mask(mask).to_event(2), obs=y)


def short_chain(prior: DiffusionPrior) -> DiffusionPrior:
    """The prior whose chain has 25 steps, and whose density, a constant to the other blocks of Gibbs, costs nothing."""
    return prior.with_(sampler=Ancestral(CHAIN_STEPS), likelihood=KBound(1, 1, antithetic=False))


def sample_posterior(
    key: Array,
    prior: DiffusionPrior,
    observation: Observation,
    *,
    num_warmup: int = 100,
    num_samples: int = 400,
    num_chains: int = 2,
    progress_bar: bool = True,
) -> MCMC:
    """Digits by particle Gibbs, the noise scale by NUTS, in turn: exact for the prior's chain of 25 steps."""
    kernel = Gibbs([(ParticleGibbs(model, num_particles=NUM_PARTICLES), ["x"]), (NUTS(model), ["sigma"])])
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="sequential",
        progress_bar=progress_bar,
    )
    mcmc.run(key, short_chain(prior), observation.mask, observation.y)
    return mcmc


def log_evidence(
    key: Array, prior: DiffusionPrior, observation: Observation, sigma: Array, *, num_particles: int = 512
) -> tuple[SMC, float, float]:
    """SMC given the noise scale, and log p(y), over all noise scales, with its standard error.

    SMC gives log p(y, sigma) at the five points of a Gauss-Hermite rule laid where the draws of log sigma are.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(5)
    middle, deviation = float(jnp.log(sigma).mean()), float(jnp.log(sigma).std())
    log_places = middle + deviation * points
    twist = Tempered(Laplace(), 0.5)  # named, so that nothing else is tried
    smc = SMC(model, num_particles=num_particles, twist=twist)
    values, errors = np.zeros(5), np.zeros(5)
    for i in (0, 1, 3, 4, 2):  # the mean last, for the particles that are kept
        given = jnp.exp(jnp.asarray(log_places[i], dtype=sigma.dtype))
        with warnings.catch_warnings():
            if i != 2:  # what speaks against one of the five runs speaks against all, and is said once
                warnings.filterwarnings("ignore", "this posterior may be wrong", UserWarning)
            smc.run(jax.random.fold_in(key, i), short_chain(prior), observation.mask, observation.y, given)
        values[i], errors[i] = smc.log_evidence, smc.log_evidence_error
    parts = values + np.log(weights * deviation) + points**2 / 2 + log_places
    share = np.exp(parts - np.logaddexp.reduce(parts))
    return smc, float(np.logaddexp.reduce(parts)), float(np.sqrt(np.sum((share * errors) ** 2)))


def run(
    output: str | Path = "demo",
    *,
    train: bool = False,
    seed: int = 0,
    num_digits: int = 3,
    num_warmup: int = 100,
    num_samples: int = 400,
    train_steps: int = 6000,
    progress_bar: bool = True,
) -> Any:
    """Run the whole demonstration, print the summary, and write the figure and the ArviZ file.

    Args:
        output: folder for ``posterior.png``, ``posterior.nc`` (by Gibbs) and ``evidence.nc`` (by SMC, given the mean
            noise scale); made if it does not exist.
        train: whether to learn the prior afresh in place of the packaged one.
        seed: of everything random.
        num_digits: held-out digits, observed with one noise scale.
        num_warmup: Gibbs iterations that are not kept.
        num_samples: Gibbs draws kept, in each of two chains.
        train_steps: optimiser steps, with `train`.
        progress_bar: whether to show progress bars.

    Returns:
        The ArviZ container of the Gibbs run; its posterior has the log evidence, in nats, as an attribute.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    start = time.perf_counter()
    prior = _trained(jax.random.key(seed), train_steps, progress_bar) if train else load("digits")
    truth = jnp.asarray(digits().test_images[:num_digits])
    observation = observe(keys[1], truth)
    print(f"{num_digits} held-out digits, half of their pixels hidden, noise of standard deviation {TRUE_SIGMA}")
    mcmc = sample_posterior(
        keys[2], prior, observation, num_warmup=num_warmup, num_samples=num_samples, progress_bar=progress_bar
    )
    coords = {"digit": np.arange(num_digits), "row": np.arange(8), "column": np.arange(8)}
    dims = {"x": ["digit", "row", "column"]}
    data = to_arviz(mcmc, dims=dims, coords=coords)
    summary: Any = az.summary(data, var_names=["sigma", "x"])
    centre = [name for name in summary.index if name.startswith("x[0, ") and name[5:] in ("3, 3]", "3, 4]", "4, 3]")]
    print(summary.loc[["sigma", *centre]].to_string())
    print(f"over all {len(summary)} unknowns: {_worst(summary)}")
    smc, evidence, error = log_evidence(keys[3], prior, observation, mcmc.get_samples()["sigma"])
    print(f"log evidence, over all noise scales: {evidence:.2f} ± {error:.2f} nats")
    data["posterior"].attrs |= {"log_evidence": evidence, "log_evidence_error": error}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _picture(folder / "posterior.png", observation, np.asarray(mcmc.get_samples()["x"]))
    data.to_netcdf(str(folder / "posterior.nc"))
    to_arviz(smc, dims=dims, coords=coords).to_netcdf(str(folder / "evidence.nc"))
    print(f"wrote posterior.png, posterior.nc and evidence.nc to {folder} ({time.perf_counter() - start:.0f} s in all)")
    return data


def _trained(key: Array, max_steps: int, progress_bar: bool) -> DiffusionPrior:
    start = time.perf_counter()
    prior = train_prior(key, max_steps=max_steps, progress_bar=progress_bar)
    seconds = time.perf_counter() - start
    value, error = held_out_bound(jax.random.key(0), prior)
    packaged = card("digits")["bound"]
    print(f"trained in {seconds:.0f} s: held-out K bound {value:.2f} ± {error:.2f} nats (packaged: {packaged:.2f})")
    return prior


def _worst(summary: Any) -> str:
    columns = [name for name in ("r_hat", "ess_bulk", "ess_tail") if name in summary]
    numbers = {name: summary[name].astype(float) for name in columns}
    return ", ".join(
        f"{name} at most {column.max():.3f}" if name == "r_hat" else f"{name} at least {column.min():.0f}"
        for name, column in numbers.items()
    )


def _picture(path: Path, observation: Observation, draws: np.ndarray) -> None:
    count = len(observation.truth)
    figure = Figure(figsize=(11, 1.5 * count + 0.3), layout="constrained")
    for i, row in enumerate(figure.subplots(count, 8, squeeze=False)):
        truth, mask, y = (np.asarray(part[i]) for part in observation)
        plots.posterior(truth, y, draws[:, i], row, known=mask, num_draws=4, limits=(0.0, 1.0), units="grey level")
        for axis in row if i else ():
            axis.set_title("")
    figure.savefig(path, dpi=150)
