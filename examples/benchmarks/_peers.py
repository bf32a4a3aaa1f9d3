"""Posterior samplers of azula and deepinv, all about one denoiser D(x, σ) = E[x_0 given x_0 + σ ε = x], on torch.

What each sampler is given is what its package's documentation asks for. Settings that a package leaves to its user are
listed in `PEERS`; the benchmark chooses among them on problems of its own.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import deepinv
import jax
import jax.numpy as jnp
import numpy as np
import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.tds import TDSSampler
from azula.guidance.tmpd import TMPDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.noise import Schedule, VPSchedule
from azula.sample import DDIMSampler
from torch import Tensor

import numpyro_diffusion as nd

Denoise = Callable[[Tensor, Tensor], Tensor]  # rows of x, and σ without axes
Setting = dict[str, Any]


class Task(NamedTuple):
    """A problem for a peer.

    Attributes:
        denoise: D(x, σ).
        mean: of the prior, shape (d,).
        variance: of its elements.
        schedule: the noise of our own chain, or even in log-SNR between its start and a noise of 0.01.
        bounds: of the data, which deepinv takes for images with values in [0, 1].
        y: the observation, for linear-Gaussian ones.
        operator: A, shape (len(y), d).
        scale: standard deviation of the noise of y.
        log_likelihood: of rows of x, where there is no y.
    """

    denoise: Denoise
    mean: Tensor
    variance: Tensor
    schedule: Schedule
    bounds: tuple[float, float]
    y: Tensor | None = None
    operator: Tensor | None = None
    scale: float = 1.0
    log_likelihood: Callable[[Tensor], Tensor] | None = None


class LogSNR(Schedule):
    """Variance-preserving, with log-SNR linear between the values of a table over t in [0, 1]; and data of a scale."""

    def __init__(self, table: Any, scale: float = 1.0) -> None:
        self.table, self.scale = np.asarray(table, dtype=float), scale

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr = np.interp(t.numpy(), np.linspace(0, 1, len(self.table)), self.table)
        value = torch.as_tensor(log_snr, dtype=torch.get_default_dtype())
        return torch.sigmoid(value).sqrt(), self.scale * torch.sigmoid(-value).sqrt()


class Exact(Denoiser):
    """D as azula's denoiser."""

    def __init__(self, denoise: Denoise, schedule: Schedule) -> None:
        super().__init__()
        self.denoise, self.schedule = denoise, schedule

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        alpha, sigma = self.schedule(t)
        return DiracPosterior(self.denoise(x_t / alpha, sigma / alpha))


class Image(torch.nn.Module):
    """D as deepinv's denoiser, of images of one row with values in [0, 1]."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        low, width = self.task.bounds[0], self.task.bounds[1] - self.task.bounds[0]
        clean = self.task.denoise(low + width * x.flatten(1), width * torch.as_tensor(sigma).flatten()[0])
        return ((clean - low) / width).reshape(x.shape).to(x.dtype)


def mixture(means: Any, deviations: Any, weights: Any) -> Denoise:
    """D of a mixture whose components have the same standard deviations; exponents in double precision."""
    locs, variance = (
        torch.as_tensor(means, dtype=torch.float64),
        torch.as_tensor(deviations, dtype=torch.float64) ** 2,
    )
    log_weights, locs_32, variance_32 = (torch.as_tensor(weights).double().log(), locs.float(), variance.float())

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        total = variance + sigma.double() ** 2
        exponent = log_weights + (x.double() / total) @ locs.T - 0.5 * (locs**2 / total).sum(1)
        mean = torch.softmax(exponent, 1).float() @ locs_32
        return mean + variance_32 / total.float() * (x - mean)

    return denoise


def network(prior: nd.DiffusionPrior) -> Denoise:
    """D of a prior's network: JAX's compiled function and its vector-Jacobian product, called from torch."""
    process = prior.process
    diffusion: Any = process.diffusion
    steps = np.arange(1, process.num_steps + 1)
    alpha_bar = np.asarray(jax.vmap(diffusion.schedule.alpha_bar)(jnp.asarray(steps)), dtype=float)
    log_noise = 0.5 * np.log((1 - alpha_bar) / alpha_bar) + np.log(float(diffusion.scale))

    @jax.jit
    def value(x: Any, t: Any) -> Any:
        one = lambda x: process.predict(diffusion.from_exploding(x.reshape(prior.event_shape), t), t).ravel()
        return jax.vmap(one)(x)

    pulled = jax.jit(lambda x, t, g: jax.vjp(lambda x: value(x, t), x)[1](g)[0])

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, t: float) -> Tensor:
            ctx.save_for_backward(x)
            ctx.t = t
            return torch.from_numpy(np.array(value(x.detach().numpy(), t)))

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
            return torch.from_numpy(np.array(pulled(ctx.saved_tensors[0].detach().numpy(), ctx.t, g.numpy()))), None

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t = np.interp(np.log(float(sigma)), log_noise, steps)
        return Call.apply(x.float(), np.float32(t))

    return denoise


def start(sampler: Any, task: Task, count: int) -> Tensor:
    """What azula's samplers start from, with the prior's moments as they ask for."""
    return sampler.init((count, len(task.mean)), task.mean, task.variance)


def azula_dps(task: Task, count: int, steps: int, zeta: float, own: bool) -> Tensor:
    """The package takes the norm over a whole batch; a sum of norms gives every draw the gradient it would have alone.

    Where there is no y, the observation is 0 and the operator −log p(y given x): the same guidance, for a likelihood.
    """
    if task.log_likelihood is not None:
        operator = lambda x: -task.log_likelihood(x).sum()
    else:
        operator = lambda x: torch.linalg.vector_norm(task.y - x @ task.operator.T, dim=1).sum()
    denoiser = Exact(task.denoise, task.schedule if own else VPSchedule())
    sampler = DPSSampler(denoiser, torch.zeros(()), operator, zeta, steps=steps, silent=True)
    return sampler(start(sampler, task, count))


def azula_pgdm(task: Task, count: int, steps: int, eta: float, own: bool) -> Tensor:
    """Takes the observation to be without noise."""
    denoiser, inverse = (Exact(task.denoise, task.schedule if own else VPSchedule()), torch.linalg.pinv(task.operator))
    forward, back = lambda x: x @ task.operator.T, lambda y: y @ inverse.T
    sampler = PGDMSampler(denoiser, task.y, forward, back, eta=eta, steps=steps, silent=True)
    return sampler(start(sampler, task, count))


def azula_tmpd(task: Task, count: int, steps: int, eta: float, own: bool) -> Tensor:
    """With DDIM steps, as in the package's tutorial."""
    denoiser, y = (Exact(task.denoise, task.schedule if own else VPSchedule()), task.y.expand(count, -1))
    guided = TMPDenoiser(denoiser, y, lambda x: x @ task.operator.T, task.scale**2)
    sampler = DDIMSampler(guided, eta=eta, steps=steps, silent=True)
    return sampler(start(sampler, task, count))


def azula_mmps(task: Task, count: int, steps: int, eta: float, iterations: int, own: bool) -> Tensor:
    """With DDIM steps, as in the package's tutorial; more iterations than observations have nothing to solve."""
    denoiser, y = (Exact(task.denoise, task.schedule if own else VPSchedule()), task.y.expand(count, -1))
    noise = IsotropicCovariance(torch.tensor(task.scale**2))
    iterations = min(iterations, y.shape[1])
    guided = MMPSDenoiser(denoiser, y, lambda x: x @ task.operator.T, noise, iterations=iterations)
    sampler = DDIMSampler(guided, eta=eta, steps=steps, silent=True)
    return sampler(start(sampler, task, count))


def azula_tds(task: Task, count: int, steps: int, inflated: bool, own: bool) -> Tensor:
    """The draws are the particles of one run; `inflated`: with the tutorial's variance, σ_y² + σ_t² diag A Aᵀ."""

    def twist(x: Tensor, sigma: Tensor) -> Tensor:
        if task.log_likelihood is not None:
            return task.log_likelihood(x)
        extra = sigma**2 * (task.operator**2).sum(1) if inflated else torch.zeros(())
        law = torch.distributions.Normal(x @ task.operator.T, (task.scale**2 + extra).sqrt(), validate_args=False)
        return law.log_prob(task.y)

    denoiser = Exact(task.denoise, task.schedule if own else VPSchedule())
    sampler = TDSSampler(denoiser, twist, steps=steps, silent=True)
    return sampler(start(sampler, task, count))


def measured(task: Task) -> tuple[Any, Tensor]:
    """Operator and observation of images in [0, 1]."""
    low, width = task.bounds[0], task.bounds[1] - task.bounds[0]
    if task.log_likelihood is not None:
        surprise = lambda x, **_: -task.log_likelihood((low + width * x.flatten(1)).float())[:, None]
        return deepinv.physics.Physics(A=surprise), torch.zeros(1, 1)
    across = task.operator
    physics = deepinv.physics.LinearPhysics(
        A=lambda x, **_: (x.flatten(1).float() @ across.T)[:, None, None],
        A_adjoint=lambda y, **_: (y.flatten(1).float() @ across)[:, None, None],
        noise_model=deepinv.physics.GaussianNoise(task.scale / width),
    )
    return physics, ((task.y - low * across.sum(1)) / width)[None, None, None]


def shown(task: Task, x: Tensor) -> Tensor:
    """Rows of data again."""
    return task.bounds[0] + (task.bounds[1] - task.bounds[0]) * x.detach().flatten(1)


def deepinv_dps(task: Task, count: int, steps: int, weight: float, guidance: str) -> Tensor:
    """With the package's own schedule and solver; `steps` are network calls."""
    physics, y = measured(task)
    model = deepinv.sampling.DPS(Image(task), num_steps=steps + 1, weight=weight, guidance=guidance)
    return shown(task, model(y.expand(count, *y.shape[1:]), physics, x_init=(count, 1, 1, len(task.mean))))


def deepinv_diffpir(task: Task, count: int, steps: int, lambda_: float, zeta: float) -> Tensor:
    """With the package's own schedule, whose last state has a noise of 0.005 of the range of the data."""
    physics, y = measured(task)
    fidelity, sigma = (deepinv.optim.data_fidelity.L2(), task.scale / (task.bounds[1] - task.bounds[0]))
    model = deepinv.sampling.DiffPIR(Image(task), fidelity, sigma, max_iter=steps, zeta=zeta, lambda_=lambda_)
    return shown(task, model(y.expand(count, -1, -1, -1), physics))


class Peer(NamedTuple):
    """A sampler, the settings it may have, and whether it takes a likelihood that is not linear-Gaussian."""

    run: Callable[..., Tensor]
    settings: list[Setting]
    general: bool = False


def every(**values: list[Any]) -> list[Setting]:
    """All combinations."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


OWN = [True, False]  # our chain's noise, or azula's default schedule
PEERS = {
    "azula DPS": Peer(azula_dps, every(zeta=[0.1, 0.3, 1.0, 3.0], own=OWN), general=True),
    "azula ΠGDM": Peer(azula_pgdm, every(eta=[0.0, 1.0], own=OWN)),
    "azula TMPD": Peer(azula_tmpd, every(eta=[0.0, 1.0], own=OWN)),
    "azula MMPS": Peer(azula_mmps, every(eta=[0.0, 1.0], iterations=[1, 4], own=OWN)),
    "azula TDS": Peer(azula_tds, every(inflated=[True, False], own=OWN), general=True),
    "deepinv DPS": Peer(
        deepinv_dps,
        [*every(weight=[1.0, 10.0, 100.0, 300.0], guidance=["norm"]), {"weight": 1.0, "guidance": "annealed"}],
        general=True,
    ),
    "deepinv DiffPIR": Peer(deepinv_diffpir, every(lambda_=[7.0, 25.0], zeta=[0.1, 1.0])),
}
