"""Problems for samplers of several packages: references, our own samplers, and what the peers are given."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import _truths
import jax
import jax.numpy as jnp
import mixture
import numpy as np
import numpyro
import numpyro.distributions as dist
from _answers import answer
from _likelihoods import KINDS, over
from _problems import logistic_rows, prior_of

import numpyro_diffusion as nd

STEPS, DRAWS = 100, 2000
SWEEPS, WARM_UP, CHAINS, PARTICLES = 500, 25, 4, 32  # of the reference for a digit
NOISE = 0.2  # of the digits' pixels
LAST = 9.2  # log-SNR at which peers end: a noise of 0.01
AS_MANY = "ours, a particle for every draw"

Found = tuple[np.ndarray, float, float]  # equally weighted draws, log evidence, CPU seconds


class Case(NamedTuple):
    """A problem with its reference.

    Attributes:
        reference: draws of the posterior, shape (n, d).
        floor: distance of such draws from one another.
        log_evidence: of the data.
        ours: our samplers, by name.
        task: makes the problem for the peers.
        truth: the x that made the data, where it is shown.
    """

    reference: np.ndarray
    floor: float
    log_evidence: float
    ours: dict[str, Callable[[], Found]]
    task: Callable[[], Any]
    truth: np.ndarray | None = None


def ours_with(particles: int) -> str:
    """A name in the tables."""
    return f"ours, {particles} particles"


def arguments(seed: int, cell: str) -> tuple[Any, ...]:
    """Of the functions that `mixture.corrected` makes."""
    parts = [jnp.asarray(part, dtype=float) for part in mixture.problem(seed, cell)[:6]]
    return jax.random.key(seed), tuple(parts[:3]), *parts[3:]


def compiled(twist: Any, ends: tuple[float, float], count: int, cell: str, short: bool = False) -> Any:
    """`TwistedSMC` on a chain whose steps are placed by the prior alone."""
    return mixture.corrected(twist, ends, count, not short, True).lower(*arguments(0, cell)).compile()


def in_cell(cell: str, seed: int, count: int, runs: dict[str, Any]) -> Case:
    """A problem of `mixture.py`; `runs` are compiled already."""
    case, rng = mixture.problem(seed, cell), np.random.default_rng(seed)
    reference = case.exact(rng, count)
    floor = mixture.sliced_wasserstein(rng, case.exact(rng, count), reference)

    def ours(run: Any) -> Found:
        start = time.process_time()
        x, log_evidence, _ = jax.block_until_ready(run(*arguments(seed, cell)))
        return (np.asarray(x, dtype=float), float(log_evidence), time.process_time() - start)

    def task() -> Any:
        import _peers

        mean = case.weights @ case.means
        variance = case.weights @ (case.means**2 + case.deviations**2) - mean**2
        start, _ = mixture.ends_of(case.means)
        return _peers.Task(
            _peers.mixture(case.means, case.deviations, case.weights), tensor(mean), tensor(variance),
            _peers.LogSNR([LAST, start]), (-20.0, 20.0), tensor(case.observation), tensor(case.operator), case.scale,
        )  # fmt: skip

    return Case(reference, floor, case.log_evidence, {name: partial(ours, run) for name, run in runs.items()}, task)


def tensor(x: Any) -> Any:
    """Single precision, as JAX has it."""
    import torch

    return torch.as_tensor(np.asarray(x), dtype=torch.float32)


def check_denoiser(cell: str) -> None:
    """Both denoisers of a cell are the same function, in single precision of numbers as large as the means."""
    import torch

    case = mixture.problem(0, cell)
    ends = mixture.ends_of(case.means)
    process = mixture.process_of(*(jnp.asarray(part, dtype=float) for part in case[:3]), (ends[0], LAST))
    denoise = in_cell(cell, 0, 2, {}).task().denoise
    data = process.denoiser.data()
    for t in (1, STEPS // 2, STEPS):
        alpha_bar = float(process.diffusion.schedule.alpha_bar(t))
        noise = np.sqrt(1 / alpha_bar - 1)
        x = data.sample(jax.random.key(t), (4,)) + noise * jax.random.normal(
            jax.random.key(0), (4, data.event_shape[0])
        )
        ours, theirs = (process.predict(np.sqrt(alpha_bar) * x, t), denoise(tensor(x), torch.tensor(noise).float()))
        apart = float(np.abs(np.asarray(ours) - theirs.numpy()).max())
        assert apart < 1e-4 * np.abs(case.means).max(), f"cell {cell}, step {t}: apart by {apart}"


@cache
def sampler(model: Any, prior: nd.DiffusionPrior, count: int) -> Any:
    """`TwistedSMC` of so many particles as one compiled function of a key and the model's other arguments."""

    @jax.jit
    def run(key: Any, args: tuple[Any, ...]) -> Any:
        factor = nd.infer.extract_factor(model, "x", prior, *args)
        particles = nd.samplers.TwistedSMC(count).run(key, prior.process, factor)
        picked = nd.samplers.systematic(jax.random.fold_in(key, 1), particles.log_weight)
        return particles.x[picked].reshape(count, -1), particles.log_evidence

    return run


def by_smc(model: Any, prior: nd.DiffusionPrior, args: tuple[Any, ...]) -> dict[str, Any]:
    """Runs of `TwistedSMC`, and of `nd.infer.SMC` with four islands; the last of two is timed."""

    def whole() -> Found:
        found = answer(model, prior, args, jax.random.key(0), {"num_particles": DRAWS // 4}, runs=2)
        return found.x, found.log_evidence, found.seconds

    def alone(count: int) -> Found:
        run = sampler(model, prior, count)
        for _ in range(2):
            start = time.process_time()
            x, log_evidence = jax.block_until_ready(run(jax.random.key(0), args))
            seconds = time.process_time() - start
        return np.asarray(x, dtype=float), float(log_evidence), seconds

    counts = {ours_with(64): 64, ours_with(256): 256, AS_MANY: DRAWS}
    return {name: partial(alone, count) for name, count in counts.items()} | {"ours, `nd.infer.SMC`, 4 islands": whole}


def peak(y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mode of the posterior by Newton's method, and a root of twice the covariance there."""
    x = np.zeros(rows.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-rows @ x))
        curvature = (rows.T * (p * (1 - p))) @ rows + np.eye(len(x))
        x = x + np.linalg.solve(curvature, rows.T @ (y - p) - x)
    return x, np.linalg.cholesky(2 * np.linalg.inv(curvature))


@cache
def normal() -> nd.DiffusionPrior:
    """N(0, I) in six dimensions."""
    return prior_of(nd.denoisers.Gaussian(0.0, 1.0), STEPS, 6)


def logistic(seed: int) -> Case:
    """Forty answers; the reference is a million draws of a normal law about the mode, reweighted."""
    prior = normal()
    args = logistic_rows("", "normal, d = 6", 40, 4.0, seed).args
    rng = np.random.default_rng(seed)
    mode, root = peak(np.asarray(args[0], dtype=float), np.asarray(args[1], dtype=float))
    noise = rng.standard_normal((1_000_000, 6))
    x = mode + noise @ root.T
    log_prior = 0.5 * ((noise**2).sum(1) - (x**2).sum(1)) + np.linalg.slogdet(root)[1]
    log_weight = _truths.mapped(over(KINDS["logistic"], args), x.astype(np.float32)) + log_prior
    weight = np.exp(log_weight - log_weight.max())
    picked = [x[rng.choice(len(x), DRAWS, p=weight / weight.sum())] for _ in range(2)]
    size = weight.sum() ** 2 / (weight**2).sum()
    print(f"logistic, seed {seed}: {size:.0f} effective draws behind the reference", flush=True)

    def task() -> Any:
        import _peers
        import torch

        signs, rows = 2 * tensor(args[0]) - 1, tensor(args[1])
        logits = lambda x: torch.nn.functional.logsigmoid(signs * (x @ rows.T)).sum(1)
        start = float(nd.schedules.log_snr(STEPS).log_snr(STEPS))
        one = torch.ones(6)
        gaussian = lambda x, sigma: x / (1 + sigma**2)
        return _peers.Task(gaussian, 0 * one, one, _peers.LogSNR([LAST, start]), (-4.0, 4.0), log_likelihood=logits)

    log_evidence = float(np.log(weight.mean()) + log_weight.max())
    floor = mixture.sliced_wasserstein(rng, *picked)
    return Case(picked[0], floor, log_evidence, by_smc(KINDS["logistic"], prior, args), task)


def hidden_half(prior: nd.DiffusionPrior, y: Any, seen: Any) -> None:
    """A digit of which half of the pixels are seen, with noise."""
    numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), NOISE).mask(seen).to_event(2), obs=y)


@cache
def digits_prior() -> nd.DiffusionPrior:
    """The packaged prior."""
    return nd.load("digits")


@cache
def digits_network() -> Any:
    """Its network for the peers, compiled once."""
    import _peers

    return _peers.network(digits_prior())


def by_gibbs(prior: nd.DiffusionPrior, args: tuple[Any, ...], number: int) -> np.ndarray:
    """Draws of four long chains."""
    kernel = nd.infer.ParticleGibbs(hidden_half, num_particles=PARTICLES)
    mcmc = numpyro.infer.MCMC(
        kernel, num_warmup=WARM_UP, num_samples=SWEEPS, num_chains=CHAINS, chain_method="vectorized", progress_bar=False
    )
    start = time.process_time()
    mcmc.run(jax.random.key(1), prior, *args)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], dtype=float).reshape(CHAINS, SWEEPS, 64)
    size, seconds = (np.median(numpyro.diagnostics.effective_sample_size(x)), time.process_time() - start)
    print(f"digit {number}: median effective size {size:.0f} of {CHAINS * SWEEPS}, {seconds:.0f} s", flush=True)
    return x.reshape(-1, 64)


def digit(number: int, tuning: bool = False) -> Case:
    """A held-out digit; settings are chosen by the distance from our own draws, where nobody is compared."""
    prior = digits_prior()
    data, rng = nd.datasets.digits(), np.random.default_rng(number)
    x, seen = (np.asarray(data.test_images[number], dtype=float), rng.permutation(64).reshape(8, 8) < 32)
    y = np.where(seen, x + NOISE * rng.standard_normal((8, 8)), 0.0)
    args = jnp.asarray(y), jnp.asarray(seen)
    if tuning:
        reference, log_evidence = by_smc(hidden_half, prior, args)[AS_MANY]()[:2]
    else:
        reference, log_evidence = by_gibbs(prior, args, number), float("nan")
    half = len(reference) // 2
    floor = mixture.sliced_wasserstein(rng, reference[:half], reference[half:])

    def task() -> Any:
        import _peers

        table = np.asarray(jax.vmap(prior.process.diffusion.schedule.log_snr)(jnp.arange(STEPS + 1.0)))
        scale, where = float(prior.process.diffusion.scale), np.flatnonzero(seen)
        images = np.asarray(data.train_images).reshape(-1, 64)
        return _peers.Task(
            digits_network(), tensor(images.mean(0)), tensor(images.var(0)), _peers.LogSNR(table, scale), (0.0, 1.0),
            tensor(y.ravel()[where]), tensor(np.eye(64)[where]), NOISE,
        )  # fmt: skip

    return Case(reference, floor, log_evidence, by_smc(hidden_half, prior, args), task, x.ravel())
