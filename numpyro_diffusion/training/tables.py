"""Tables: coordinates in which a table is simple, and exact baselines about which a network learns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import AffineTransform, LowerCholeskyAffine, Transform

from .. import schedules
from ..denoisers import FullGaussianMixture, Residual
from ..diffusions import GaussianDiffusion
from ..networks import MLP
from ..process import ReverseProcess
from .baselines import Mixture, fit_mixture, shrunk_gaussian

NUM_TIMES = 64  # T
MOST_COMPONENTS = 5
FEWEST = 20  # examples below which a Gaussian is all that is fitted


class Candidate(NamedTuple):
    """An untrained process in coordinates of its own.

    Attributes:
        name: of the coordinates and the baseline.
        process: in those coordinates, its denoiser a `Residual`.
        transform: from there to the data; None for those of the data.
    """

    name: str
    process: ReverseProcess
    transform: LowerCholeskyAffine | None


class Table(NamedTuple):
    """Examples to train on and to choose by, with the noise that fills the gaps between steps, and simple models.

    Attributes:
        train: shape (n, d).
        held_out: shape (m, d).
        gaussian: of the mean and the shrunk covariance.
        mixture: of the number of components that is best on the held-out examples.
    """

    train: np.ndarray
    held_out: np.ndarray
    gaussian: Mixture
    mixture: Mixture


def table(train: np.ndarray, held_out: np.ndarray, dequantize: float) -> Table:
    """The simple models, fitted to the examples with the noise of `dequantize`, in data units."""
    rng = np.random.default_rng(0)
    noisy, noisy_out = (x + dequantize * (rng.random(x.shape) - 0.5) for x in (train, held_out))
    gaussian = shrunk_gaussian(train, dequantize**2 / 12)
    if not len(held_out):
        return Table(noisy, noisy_out, gaussian, gaussian)
    root, loc = np.linalg.cholesky(gaussian.covariances[0]), gaussian.means[0]
    z, z_out = (np.linalg.solve(root, (x - loc).T).T for x in (noisy, noisy_out))
    counts = range(2, 1 + min(MOST_COMPONENTS, len(train) // FEWEST))
    own = Mixture(np.ones(1), np.zeros((1, len(loc))), np.eye(len(loc))[None])
    found = [own] + [fit_mixture(z, count) for count in counts]
    best = max(found, key=lambda mixture: mixture.log_prob(z_out).mean())
    return Table(noisy, noisy_out, gaussian, best.affine(root, loc))


def candidates(key: Array, data: Table, width: int, event_shape: tuple[int, ...]) -> list[Candidate]:
    """What is tried: whitened and elementwise coordinates, about the Gaussian and about the mixture.

    Images, whose table is flat, keep one scale for all elements.
    All have one shape, so that they share compiled code: a Gaussian is a mixture of equal components.
    """
    whole = data.gaussian.covariances[0]
    whitened, each = np.linalg.cholesky(whole), np.diag(np.sqrt(np.diag(whole)))
    count = len(data.mixture.weights)
    copies = Mixture(*(np.repeat(part, count, axis=0) for part in data.gaussian))
    gaussian, several = copies._replace(weights=np.full(count, 1 / count)), f"mixture of {count} Gaussians"
    models = [("Gaussian", gaussian)] + ([(several, data.mixture)] if count > 1 else [])
    roots = [("whitened", whitened)] + ([("elementwise", each)] if len(whole) > 1 else [])
    fn = MLP(key, event_shape, num_steps=NUM_TIMES, width=width, outputs=2)
    if len(event_shape) > 1:
        return [_of_one_scale(fn, data, f"one scale, {model}", mixture) for model, mixture in models]
    return [
        _candidate(fn, data, f"{coordinates}, {model}", root, mixture)
        for coordinates, root in roots
        for model, mixture in models
    ]


def whitened_gaussian(data: Table) -> tuple[ReverseProcess, Transform]:
    """The chain whose law is the Gaussian itself, without a network, and its coordinates."""
    root, loc = np.linalg.cholesky(data.gaussian.covariances[0]), data.gaussian.means[0]
    size = len(loc)
    baseline = FullGaussianMixture(np.zeros((1, size)), np.eye(size)[None])
    process = ReverseProcess(GaussianDiffusion(schedules.log_snr(NUM_TIMES)), baseline, size)
    return process, to_data_of(loc, root)


def simplified(candidate: Candidate, process: ReverseProcess) -> tuple[ReverseProcess, Transform | None]:
    """The trained process with no more components than it needs, and the plainest transform that is the same."""
    denoiser, transform = process.denoiser, candidate.transform
    assert isinstance(denoiser, Residual)
    if candidate.name.endswith("Gaussian"):
        baseline: Any = denoiser.baseline
        one = FullGaussianMixture(baseline.locs[:1], jnp.eye(baseline.locs.shape[1])[None])
        if not candidate.name.startswith("whitened"):
            one = FullGaussianMixture(*_one_of(baseline))
        process = ReverseProcess(process.diffusion, Residual(denoiser.fn, one), process.event_shape)
    if candidate.name.startswith("elementwise") and transform is not None:
        return process, AffineTransform(transform.loc, jnp.diagonal(transform.scale_tril))
    return process, transform


def _one_of(baseline: Any) -> tuple[Array, Array]:
    basis = baseline.bases[0]
    return baseline.locs[:1], ((basis * baseline.variances[0]) @ basis.T)[None]


def _candidate(fn: MLP, data: Table, name: str, root: np.ndarray, mixture: Mixture) -> Candidate:
    loc = data.gaussian.means[0]
    z = np.linalg.solve(root, (data.train - loc).T).T
    inverse = np.linalg.inv(root)
    own = mixture.affine(inverse, -inverse @ loc)
    baseline = FullGaussianMixture(own.means, own.covariances, own.weights)
    size = float(np.sqrt(np.mean(np.square(z))))
    schedule = schedules.log_snr(NUM_TIMES, scale=size, detail=finest_detail(z))
    process = ReverseProcess(GaussianDiffusion(schedule), Residual(fn, baseline), len(loc))
    return Candidate(name, process, to_data_of(loc, root))


def _of_one_scale(fn: MLP, data: Table, name: str, mixture: Mixture) -> Candidate:
    """In the data's own coordinates, with one location and one scale."""
    loc, scale = data.train.mean(), data.train.std()
    schedule = schedules.log_snr(NUM_TIMES, detail=finest_detail((data.train - loc) / scale))
    baseline = FullGaussianMixture(mixture.means, mixture.covariances, mixture.weights)
    process = ReverseProcess(GaussianDiffusion(schedule, loc, scale), Residual(fn, baseline), fn.event_shape)
    return Candidate(name, process, None)


def to_data_of(loc: np.ndarray, root: np.ndarray) -> LowerCholeskyAffine:
    """z ↦ root @ z + loc."""
    kind = jax.dtypes.canonicalize_dtype(float)
    return LowerCholeskyAffine(jnp.asarray(loc, kind), jnp.asarray(root, kind))


def finest_detail(standardized: np.ndarray) -> float:
    """The finest scale worth keeping: half the typical distance to the nearest neighbour."""
    sample = standardized.reshape(len(standardized), -1)[:1000]
    square = np.square(sample).sum(1)
    distance = square[:, None] + square[None] - 2 * sample @ sample.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.sqrt(np.maximum(distance.min(axis=1), 0) / sample.shape[1])
    return float(np.clip(np.median(nearest) / 2, 2e-3, 0.3))
