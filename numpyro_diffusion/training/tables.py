"""Tables: coordinates in which a table is simple, and exact baselines about which a network learns.

Held-out density chooses among Gaussian, mixture and kernel density; the network learns what the chosen one leaves.
"""

# Over 300 lines: the simple models, the coordinates and the candidates that are made of both.

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions.transforms import AffineTransform, LowerCholeskyAffine, Transform

from .. import schedules
from ..denoisers import FullGaussianMixture, KernelDensity, Residual
from ..diffusions import GaussianDiffusion
from ..process import ReverseProcess
from ..schedules import AbstractSchedule
from ..transforms import Bounded
from .baselines import Mixture, fit_mixture
from .bounds import Bounds, Pushed
from .coordinates import after, finest_detail, in_units_of, to_data_of
from .covariances import chosen_structure, structures
from .kernels import Kernels, fit_kernels
from .kinds import KINDS, Kind, Sizes

NUM_TIMES = 64  # T
FEW, MANY = (2, 3, 4, 5), (8, 12, 16, 24)  # components of mixtures
LARGEST_MIXTURE = 20_000  # numbers in the covariances of many components, or in kernels, which every call reads
FEWEST = 20  # examples below which a Gaussian is all that is fitted


class Candidate(NamedTuple):
    """An untrained process in coordinates of its own.

    Attributes:
        name: of the coordinates and the baseline.
        process: in those coordinates, its denoiser a `Residual`, or a simple model about which nothing can be learned.
        root: the affine map from there, None for none.
        bounded: the map of elements after that, None for none.
    """

    name: str
    process: ReverseProcess
    root: LowerCholeskyAffine | None
    bounded: Bounded | None

    @property
    def is_trained(self) -> bool:
        """Whether there is a network."""
        return isinstance(self.process.denoiser, Residual)

    @property
    def transform(self) -> Transform | None:
        """To the data; None for the same coordinates."""
        return after(self.root, self.bounded)

    def of_schedule(self, schedule: AbstractSchedule) -> "Candidate":
        """The same with another schedule."""
        diffusion: Any = self.process.diffusion
        diffusion = GaussianDiffusion(schedule, diffusion.loc, diffusion.scale)
        return self._replace(process=ReverseProcess(diffusion, self.process.denoiser, self.process.event_shape))

    def latent(self, free: np.ndarray) -> Array:
        """Examples of the process, of flat ones in free coordinates."""
        x = jnp.asarray(free, float).reshape(len(free), *self.process.event_shape)
        return x if self.root is None else self.root.inv(x)


class Recipe(NamedTuple):
    """What held-out examples chose of the simple models, so that it can be fitted again to more examples.

    Attributes:
        structure: of the Gaussian's covariance, by name.
        start: the mixture, where expectation maximisation starts again; None for one component.
        kernels: the coordinates of the kernel density, by name; None for none.
    """

    structure: str
    start: Mixture | None
    kernels: str | None


class Table(NamedTuple):
    """Examples to train on and to choose by, with the noise that fills the gaps between steps, and simple models.

    Attributes:
        train: shape (n, d), in the free coordinates of `bounds`, as the rest.
        held_out: shape (m, d).
        gaussian: of the mean and a covariance of the structure that is best on the held-out examples.
        mixture: of the number of components that is best on the held-out examples.
        kernels: a kernel density, if that is better than both on the held-out examples.
        bounds: of the data; None for none.
        recipe: how the models were found.
        value: the mean log density of held-out data under the best model, in nats; 0 without any.
    """

    train: np.ndarray
    held_out: np.ndarray
    gaussian: Mixture
    mixture: Mixture
    kernels: Kernels | None
    bounds: Bounds | None
    recipe: Recipe
    value: float

    @property
    def models(self) -> dict[str, Any]:
        """The simple models of the data, by name."""
        found: dict[str, Any] = {"Gaussian": self.gaussian}
        if len(self.mixture.weights) > 1:
            found[f"mixture of {len(self.mixture.weights)} Gaussians"] = self.mixture
        if self.kernels is not None:
            found["kernel density"] = self.kernels
        if self.bounds is None:
            return found
        return {f"{name}, transformed": Pushed(law, self.bounds) for name, law in found.items()}


def table(
    train: np.ndarray,
    held_out: np.ndarray,
    dequantize: float,
    bounds: Bounds | None = None,
    event_shape: tuple[int, ...] | None = None,
    recipe: Recipe | None = None,
    copies: bool = False,
) -> Table:
    """The simple models, fitted to the examples with the noise of `dequantize`, in free coordinates.

    Args:
        train: flat examples in the data's units, shape (n, d).
        held_out: others, shape (m, d), which may be none.
        dequantize: width of the noise.
        bounds: of the data, if they have any.
        event_shape: of one example; (d,) unless given.
        recipe: what to fit; chosen on the held-out examples unless given.
        copies: whether several examples may be completions of one, which kernels would take for news.
    """
    rng = np.random.default_rng(0)
    noisy, noisy_out = (x + dequantize * (rng.random(x.shape) - 0.5) for x in (train, held_out))
    free, free_out, added = noisy, noisy_out, dequantize**2 / 12
    if bounds is not None:
        free, free_out, added = bounds.free(noisy), bounds.free(noisy_out), 0.0
    given = free if bounds is not None else train
    shape = train.shape[1:] if event_shape is None else event_shape
    if recipe is not None:
        gaussian = structures(len(train), shape)[recipe.structure](given, added)
        mixture = gaussian if recipe.start is None else _again(free, gaussian, recipe.start)
        kernels = None if recipe.kernels is None else fit_kernels(free, gaussian, (recipe.kernels,))
        return Table(free, free_out, gaussian, mixture, kernels, bounds, recipe, 0.0)
    structure, gaussian = chosen_structure(given, free_out, added, shape)
    mixture = _mixture(free, free_out, gaussian)
    kernels = None if copies or len(shape) > 1 else _kernels(free, free_out, gaussian, mixture)
    value = 0.0
    if len(held_out):
        volume = 0.0 if bounds is None else bounds.log_volume(noisy_out)
        laws = (gaussian, mixture) if kernels is None else (kernels,)
        value = float(max((law.log_prob(free_out) - volume).mean() for law in laws))
    start = mixture if len(mixture.weights) > 1 else None
    recipe = Recipe(structure, start, None if kernels is None else kernels.coordinates)
    return Table(free, free_out, gaussian, mixture, kernels, bounds, recipe, value)


def _mixture(x: np.ndarray, held_out: np.ndarray, gaussian: Mixture) -> Mixture:
    """The Gaussian, or the mixture of more components that is best on the held-out examples."""
    if not len(held_out):
        return gaussian
    root, loc = np.linalg.cholesky(gaussian.covariances[0]), gaussian.means[0]
    z, z_out = in_units_of(root, x - loc), in_units_of(root, held_out - loc)
    own = Mixture(np.ones(1), np.zeros((1, x.shape[1])), np.eye(x.shape[1])[None])
    few, many = ([count for count in counts if count * FEWEST <= len(x)] for counts in (FEW, MANY))
    many = [count for count in many if count * x.shape[1] ** 2 <= LARGEST_MIXTURE]
    best = _best([own] + [fit_mixture(z, count) for count in few], z_out)
    if many:
        larger = _best([fit_mixture(z, count) for count in many], z_out)
        best = larger if _is_better(larger, best, z_out) else best
    return best.affine(root, loc)


def _kernels(x: np.ndarray, held_out: np.ndarray, gaussian: Mixture, mixture: Mixture) -> Kernels | None:
    """A kernel density, if it is better than the mixture on the held-out examples."""
    if not len(held_out) or x.size > LARGEST_MIXTURE or len(np.unique(x, axis=0)) < FEWEST:
        return None
    found = fit_kernels(x, gaussian)
    return found if _is_better(found, mixture, held_out) else None


def _is_better(larger: Mixture | Kernels, other: Mixture, held_out: np.ndarray) -> bool:
    """By more than chance would have it, as what is larger costs more in every call."""
    gain = larger.log_prob(held_out) - other.log_prob(held_out)
    return bool(gain.mean() > 2 * gain.std() / np.sqrt(len(gain)))


def _best(found: list[Mixture], held_out: np.ndarray) -> Mixture:
    return max(found, key=lambda mixture: mixture.log_prob(held_out).mean())


def _again(x: np.ndarray, gaussian: Mixture, start: Mixture) -> Mixture:
    """The mixture where expectation maximisation ends from another one's parameters."""
    root, loc = np.linalg.cholesky(gaussian.covariances[0]), gaussian.means[0]
    inverse = np.linalg.inv(root)
    own = start.affine(inverse, -inverse @ loc)
    return fit_mixture(in_units_of(root, x - loc), len(start.weights), start=own).affine(root, loc)


def candidates(
    key: Array,
    data: Table,
    width: int,
    event_shape: tuple[int, ...],
    schedule: AbstractSchedule | None = None,
    kind: Kind = "vector",
) -> list[Candidate]:
    """What is tried: whitened and elementwise coordinates, about the Gaussian and about the mixture.

    Events of several axes, whose table is flat, keep one scale for all elements. Unless a schedule is given, each has
    its own. All have one shape, so that they share compiled code: a Gaussian is a mixture of equal components.

    Convolutions are too slow to try several: theirs are about the mixture alone, if there is one, which is then better
    than the Gaussian on held-out examples; and whitened series would be series no more.

    A kernel density has no network: each example that it would be trained on is the mean of a kernel, so that nothing
    of what others need is left to learn.
    """
    whole = data.gaussian.covariances[0]
    whitened, each = np.linalg.cholesky(whole), np.diag(np.sqrt(np.diag(whole)))
    count = len(data.mixture.weights)
    copies = Mixture(*(np.repeat(part, count, axis=0) for part in data.gaussian))
    gaussian, several = copies._replace(weights=np.full(count, 1 / count)), f"mixture of {count} Gaussians"
    models = [("Gaussian", gaussian)] + ([(several, data.mixture)] if count > 1 else [])
    models = models if KINDS[kind].is_quick else models[-1:]
    roots = [("whitened", whitened)] if KINDS[kind].is_whitened else []
    roots += [("elementwise", each)] if len(whole) > 1 or not roots else []
    steps = NUM_TIMES if schedule is None else schedule.num_steps
    fn = KINDS[kind].network(key, event_shape, Sizes(steps, width, outputs=2))
    if len(event_shape) > 1:
        return [_of_one_scale(fn, data, f"one scale, {model}", mixture, schedule) for model, mixture in models]
    found = [
        _candidate(fn, data, f"{coordinates}, {model}", root, mixture, schedule)
        for coordinates, root in roots
        for model, mixture in models
    ]
    return found if data.kernels is None else [*found, _of_kernels(data, data.kernels, schedule)]


def table_width(count: int, size: int) -> int:
    """Hidden units for so many examples of so many elements."""
    return 64 if count < 1_000 else 128 if count < 5_000 or size <= 8 else 256


def whitened_gaussian(data: Table, schedule: AbstractSchedule | None = None) -> tuple[ReverseProcess, Transform]:
    """The chain whose law is the Gaussian itself, without a network, and its coordinates."""
    root, loc = np.linalg.cholesky(data.gaussian.covariances[0]), data.gaussian.means[0]
    size = len(loc)
    baseline = FullGaussianMixture(np.zeros((1, size)), np.eye(size)[None])
    schedule = schedules.log_snr(NUM_TIMES) if schedule is None else schedule
    process = ReverseProcess(GaussianDiffusion(schedule), baseline, size)
    transform = after(to_data_of(loc, root), _bounded(data, (size,)))
    assert transform is not None
    return process, transform


def simplified(candidate: Candidate, process: ReverseProcess) -> tuple[ReverseProcess, Transform | None]:
    """The trained process with no more components than it needs, and the plainest transform that is the same."""
    denoiser, root = process.denoiser, candidate.root
    if isinstance(denoiser, Residual) and candidate.name.endswith("Gaussian"):
        baseline: Any = denoiser.baseline
        one = FullGaussianMixture(baseline.locs[:1], jnp.eye(baseline.locs.shape[1])[None])
        if not candidate.name.startswith("whitened"):
            one = FullGaussianMixture(*_one_of(baseline))
        process = ReverseProcess(process.diffusion, Residual(denoiser.fn, one), process.event_shape)
    if candidate.name.startswith("elementwise") and root is not None:
        return process, after(AffineTransform(root.loc, jnp.diagonal(root.scale_tril)), candidate.bounded)
    return process, candidate.transform


def _one_of(baseline: Any) -> tuple[Array, Array]:
    basis = baseline.bases[0]
    return baseline.locs[:1], ((basis * baseline.variances[0]) @ basis.T)[None]


def _bounded(data: Table, event_shape: tuple[int, ...]) -> Bounded | None:
    return None if data.bounds is None else data.bounds.transform(event_shape)


def _candidate(
    fn: Any, data: Table, name: str, root: np.ndarray, mixture: Mixture, schedule: AbstractSchedule | None
) -> Candidate:
    loc = data.gaussian.means[0]
    z = in_units_of(root, data.train - loc)
    inverse = np.linalg.inv(root)
    own = mixture.affine(inverse, -inverse @ loc)
    baseline = FullGaussianMixture(own.means, own.covariances, own.weights)
    if schedule is None:
        size = float(np.sqrt(np.mean(np.square(z))))
        schedule = schedules.log_snr(NUM_TIMES, scale=size, detail=finest_detail(z))
    process = ReverseProcess(GaussianDiffusion(schedule), Residual(fn, baseline), len(loc))
    return Candidate(name, process, to_data_of(loc, root), _bounded(data, (len(loc),)))


def _of_kernels(data: Table, kernels: Kernels, schedule: AbstractSchedule | None) -> Candidate:
    """The chain about a kernel density, in coordinates in which its kernels are round."""
    if schedule is None:
        spread = float(np.sqrt(np.mean(np.square(kernels.means))))
        schedule = schedules.log_snr(NUM_TIMES, scale=spread, detail=kernels.width)
    size, denoiser = len(kernels.loc), KernelDensity(kernels.means, kernels.width)
    process, root = ReverseProcess(GaussianDiffusion(schedule), denoiser, size), to_data_of(kernels.loc, kernels.root)
    return Candidate(f"{kernels.coordinates}, kernel density", process, root, _bounded(data, (size,)))


def _of_one_scale(fn: Any, data: Table, name: str, mixture: Mixture, schedule: AbstractSchedule | None) -> Candidate:
    """In the data's own coordinates, with one location and one scale."""
    loc, scale = data.train.mean(), data.train.std()
    if schedule is None:
        schedule = schedules.log_snr(NUM_TIMES, detail=finest_detail((data.train - loc) / scale))
    baseline = FullGaussianMixture(mixture.means, mixture.covariances, mixture.weights)
    process = ReverseProcess(GaussianDiffusion(schedule, loc, scale), Residual(fn, baseline), fn.event_shape)
    return Candidate(name, process, None, _bounded(data, fn.event_shape))
