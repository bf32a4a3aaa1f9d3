"""Fields of Gaussian processes of unknown length scale, counts at some of their places, and priors that are known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.transforms import PrincipalAxes


class Field(NamedTuple):
    """A Gaussian process at some places."""

    distance: np.ndarray
    matern: float
    low: float
    high: float
    true: float
    jitter: float

    def covariance(self, length, xp=np):
        """At one length scale."""
        r = self.distance / length
        if self.matern == 0.5:
            return xp.exp(-r) + self.jitter * np.eye(len(r))
        r = np.sqrt(5) * r
        return (1 + r + r**2 / 3) * xp.exp(-r) + self.jitter * np.eye(len(r))

    def draws(self, rng, count):
        """Fields, and their length scales."""
        lengths = rng.uniform(self.low, self.high, count)
        each = [np.linalg.cholesky(self.covariance(length)) @ rng.normal(size=len(self.distance)) for length in lengths]
        return np.stack(each), lengths

    def log_prob(self, x, lengths):
        """Exact log densities."""
        return np.array([multivariate_normal.logpdf(*pair) for pair in self._pairs(x, lengths)])

    def _pairs(self, x, lengths):
        return [(each, np.zeros(len(each)), self.covariance(length)) for each, length in zip(x, lengths, strict=True)]


def field_of(name, size=None):
    """The line or the grid."""
    if name == "line":
        places = np.linspace(0, 1, size or 80)[:, None]
        law = (2.5, 0.05, 0.8, 0.2, 1e-4)
    else:
        axis = np.linspace(0, 100, size or 16)
        places = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        law = (0.5, 1.0, 100.0, 20.0, 1e-6)
    return Field(np.sqrt(np.square(places[:, None] - places).sum(-1)), *law)


class SharedAxes(NamedTuple):
    """The process with the same axes at all length scales: its variances along those of the mean covariance."""

    transform: PrincipalAxes
    grid: np.ndarray
    log_variances: np.ndarray

    @classmethod
    def of(cls, field):
        """Variances on a grid of length scales; between them their logs are linear."""
        grid = np.linspace(field.low, field.high, 400)
        variances, axes = np.linalg.eigh(np.mean([field.covariance(length) for length in grid], 0))
        size = len(variances)
        transform = PrincipalAxes(np.zeros(size), np.ones(size), axes, np.sqrt(variances))
        own = [np.einsum("ij,ik,kj->j", axes, field.covariance(length), axes, optimize=True) for length in grid]
        return cls(transform, grid, np.log(np.stack(own) / variances))

    def scale(self, length):
        """Standard deviations in the coordinates of `transform`."""
        place = (length - self.grid[0]) / (self.grid[1] - self.grid[0])
        before = jnp.clip(jnp.floor(place), 0, len(self.grid) - 2).astype(int)
        table, share = jnp.asarray(self.log_variances, float), place - before
        return jnp.exp(((1 - share) * table[before] + share * table[before + 1]) / 2)

    def log_prob(self, x, lengths):
        """Log densities."""
        z = self.transform.inv(jnp.asarray(x))
        scale = jax.vmap(self.scale)(jnp.asarray(lengths))
        own = dist.Normal(0, scale).to_event(1).log_prob(z) - self.transform.log_abs_det_jacobian(z, x)
        return np.asarray(own, np.float64)

    def prior(self, num_steps=8):
        """A diffusion prior with the exact denoiser, whose chain is exact at any number of steps."""
        denoiser = nd.denoisers.Conditional(lambda length: nd.denoisers.Gaussian(jnp.zeros(()), self.scale(length)))
        diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9.0, 9.0))
        process = nd.ReverseProcess(diffusion, denoiser, self.log_variances.shape[1])
        return nd.DiffusionPrior(process, transform=self.transform)


class Problem(NamedTuple):
    """Counts at some places of one field."""

    field: Field
    x: np.ndarray
    seen: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, field, seed=0):
        """Simulated at the true length scale, β = 1."""
        rng = np.random.default_rng(seed)
        size = len(field.distance)
        x = np.linalg.cholesky(field.covariance(field.true)) @ rng.normal(size=size)
        seen = np.sort(rng.choice(size, round(0.7 * size), replace=False)).astype(np.int32)
        return cls(field, x, seen, rng.poisson(np.exp(1.0 + x[seen])))

    def model(self, draw):
        """The NumPyro model; `draw` has the field's site."""
        length = numpyro.sample("length", dist.Uniform(self.field.low, self.field.high))
        beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
        x = draw(length)
        numpyro.sample("y", dist.Poisson(jnp.exp(beta + x[self.seen])).to_event(1), obs=jnp.asarray(self.y))

    def of_prior(self, prior):
        """With a diffusion prior."""
        return lambda: self.model(lambda length: numpyro.sample("x", prior.given(length)))

    def of_process(self):
        """With the Gaussian process."""
        root = lambda length: jnp.linalg.cholesky(self.field.covariance(length, jnp))
        return lambda: self.model(lambda length: self._pushed(lambda z: root(length) @ z))

    def of_axes(self, shared):
        """With the process of shared axes, without any diffusion."""
        push = lambda length: lambda z: shared.transform(shared.scale(length) * z)
        return lambda: self.model(lambda length: self._pushed(push(length)))

    def _pushed(self, push):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand((len(self.x),)).to_event(1))
        return numpyro.deterministic("x", push(z))
