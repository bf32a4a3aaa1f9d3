"""Learning p(x | c) from pairs: what is planned and trained where `fit_prior` is given contexts.

p(x | c) starts as a linear regression of x on features of c: of all ridge penalties (Hoerl and Kennard 1970) the one
that is best with each example left out in turn, and a Gaussian for what it leaves, whose variances may depend on c too.
A network learns the rest. Contexts may be left out at random, so that one network knows p(x) as well (Ho and Salimans
2022). The regression is *exact* for its own law alone, and K bounds log p(x | c) for each c.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.transforms import LowerCholeskyAffine, Transform

from .. import schedules
from .._checks import check_finite
from ..denoisers import Conditional, Context, FullGaussianMixture, LogVariances, Network, Regression, Residual
from ..diffusions import GaussianDiffusion
from ..networks import ContextFeatures
from ..process import ReverseProcess
from ..transforms import PrincipalAxes
from ._arguments import check_numbers
from .baselines import LARGEST, Mixture, shrunk_gaussian
from .coordinates import finest_detail
from .data_moments import with_data_moments
from .kinds import KINDS, Sizes, hidden_width
from .plan import PriorPlan, table_width
from .tables import FEWEST, NUM_TIMES
from .variances import ContextVariances, fitted_variances

MOST_LABELS = 1_000


class Pairs(NamedTuple):
    """Examples and their contexts, as NumPy arrays."""

    x: np.ndarray
    context: np.ndarray


class Regressed(NamedTuple):
    """A linear regression of flattened examples on their contexts' features.

    Attributes:
        features: of a context.
        weight: shape (d, features); the mean of what it adds over the examples is 0.
        residual: the Gaussian of what is left, with the examples' mean.
        variances: how the variances of what is left depend on the context; None where they do not, or not to be seen.
    """

    features: ContextFeatures
    weight: np.ndarray
    residual: Mixture
    variances: ContextVariances | None = None

    def left(self, pairs: Pairs) -> np.ndarray:
        """The examples without what their contexts add, shape (n, d)."""
        return pairs.x.reshape(len(pairs.x), -1) - feature_table(self.features, pairs.context) @ self.weight.T

    def given(self, context: np.ndarray) -> "Told":
        """The model of examples with these contexts."""
        return Told(self, context)


class Told(NamedTuple):
    """A regression, and the contexts of the examples that it is asked about."""

    model: Regressed
    context: np.ndarray

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log density of flattened examples in nats, shape (n,)."""
        model, left = self.model, self.model.left(Pairs(x, self.context))
        if model.variances is None:
            return model.residual.log_prob(left)
        return model.variances.log_prob(left - model.residual.means[0], self.context)


def described(context: ArrayLike, count: int, dropout: float) -> tuple[np.ndarray, Context, ContextFeatures]:
    """Contexts as numbers or labels, and what they look like: whole numbers are labels.

    Raises:
        ValueError: another number of contexts than of examples, NaN where none is to be left out, labels below 0, or
            more than 1,000.
        TypeError: no numbers.
    """
    array = check_numbers("context", context)
    if array.ndim == 0 or len(array) != count:
        raise ValueError(f"context: expected one for each of {count} examples, (n, *context_shape), got {array.shape}")
    shape, optional = array.shape[1:], dropout > 0
    if np.issubdtype(array.dtype, np.floating):
        if not optional:
            check_finite("context", array)
        z = array.astype(np.float64)
        loc, scale = np.nanmean(z, axis=0), np.nanstd(z, axis=0)
        return z, Context(shape, None, optional), ContextFeatures(shape, None, loc, np.where(scale > 0, scale, 1.0))
    labels = array.astype(int)
    if labels.max() >= MOST_LABELS:
        raise ValueError(f"context: expected labels below {MOST_LABELS}, or real numbers, got {labels.max()}")
    told = Context(shape, max(int(labels.max()) + 1, 1), optional)
    return np.asarray(told.checked(labels)), told, ContextFeatures(shape, told.num_labels)


def feature_table(features: ContextFeatures, context: np.ndarray) -> np.ndarray:
    """The features of many contexts, shape (n, features)."""
    return np.asarray(jax.vmap(features)(jnp.asarray(context)), np.float64)


def regressed(pairs: Pairs, features: ContextFeatures, dequantize: float) -> Regressed:
    """The ridge regression that is best on each example left out in turn, and the Gaussian of what it leaves."""
    x = pairs.x.reshape(len(pairs.x), -1)
    table = feature_table(features, pairs.context)
    y, f = x - x.mean(0), table - table.mean(0)
    scale = np.where(y.std(0) > 0, y.std(0), 1.0)
    u, s, vt = np.linalg.svd(f, full_matrices=False)
    projected, best, weight = u.T @ y, np.inf, np.zeros((x.shape[1], f.shape[1]))
    for ridge in len(x) * np.logspace(-8, 1, 19):
        shrinkage = np.square(s) / (np.square(s) + ridge)
        leverage = np.square(u) @ shrinkage + 1 / len(x)
        error = np.mean(np.square((y - u @ (shrinkage[:, None] * projected)) / scale / (1 - leverage)[:, None]))
        if error < best:
            best, weight = error, (vt.T @ ((s / (np.square(s) + ridge))[:, None] * projected)).T
    # One-hot features add up to 1: a constant for all is taken off the weights, so that no label adds nothing.
    weight = weight if features.num_labels is None else weight - (weight @ table.mean(0))[:, None]
    shift = weight @ table.mean(0) if features.num_labels is None else 0.0
    return Regressed(features, weight, _residual(x - table @ weight.T + shift, shift, dequantize))


def _residual(left: np.ndarray, shift: Any, dequantize: float) -> Mixture:
    found = shrunk_gaussian(left, dequantize**2 / 12)
    return found._replace(means=found.means - shift)


def conditional_plan(
    key: Array, plan: PriorPlan, pairs: Pairs, told: Context, features: ContextFeatures, network: object
) -> tuple[PriorPlan, Regressed | None]:
    """The plan for p(x | c), and the regression of real values that are not too many.

    Args:
        key: for the network's first weights.
        plan: the one for p(x).
        pairs: what is trained on.
        told: what a context looks like.
        features: of a context.
        network: one that was given, or None.
    """
    event = pairs.x.shape[1:]
    if not plan.max_steps:
        raise ValueError(f"data: expected at least {FEWEST} examples to learn from with contexts, got {len(pairs.x)}")
    plan = plan._replace(reasons=(*plan.reasons, f"context: {told.said.replace('*batch', 'n')}"))
    real = plan.process.diffusion.is_gaussian
    model = regressed(pairs, features, plan.dequantize) if real and np.prod(event) <= LARGEST else None
    if plan.is_table and model is not None:
        # Of a context that is left out the baseline knows no variances: then all of it is the network's to learn.
        varied = KINDS[plan.kind].is_whitened and len(event) == 1 and not told.optional
        model = _with_variances(model, pairs) if varied else model
        return _of_regression(key, plan, pairs, told, model), model
    denoiser: Any = plan.process.denoiser
    if network is None:
        shape = plan.process.diffusion.network_shape(event)
        sizes = Sizes(plan.process.num_steps, hidden_width(shape), context=features)
        fn: Any = KINDS[plan.kind].network(key, shape, sizes)
    else:
        fn, named = network, f"network: {type(network).__name__} (given)"
        lines = tuple(named if line.startswith("network: ") else line for line in plan.reasons)
        plan = plan._replace(reasons=lines)
    process = ReverseProcess(plan.process.diffusion, Network(fn, denoiser.predicts, told=told), event)
    return plan._replace(process=process), model


def _with_variances(model: Regressed, pairs: Pairs) -> Regressed:
    """The same with the variances' dependence on the context, if there is any that can be seen."""
    centred = model.left(pairs) - model.residual.means[0]
    variances = fitted_variances(centred, model.residual.covariances[0], pairs.context, model.features)
    return model._replace(variances=variances)


def _of_regression(key: Array, plan: PriorPlan, pairs: Pairs, told: Context, model: Regressed) -> PriorPlan:
    """A network about a linear regression; of vectors, in the coordinates in which what that leaves is white."""
    event, schedule = pairs.x.shape[1:], plan.schedule
    whole = KINDS[plan.kind].is_whitened and len(event) == 1
    place = _white(pairs, model) if whole else _as_it_is(pairs, model)
    if schedule is None:
        schedule = schedules.log_snr(NUM_TIMES, scale=place.size, detail=place.detail)
    diffusion = GaussianDiffusion(schedule, *place.scaling)
    variances = None if model.variances is None else LogVariances(model.variances.features, model.variances.weight)
    make = Regression(model.features, place.weight, place.gaussian, variances)
    baseline = Conditional(make, told.shape, told.num_labels, told.optional)
    width = table_width(len(pairs.x), int(np.prod(event)))
    sizes = Sizes(schedule.num_steps, width, outputs=2, context=model.features)
    fn = KINDS[plan.kind].network(key, event, sizes)
    process = ReverseProcess(diffusion, Residual(fn, baseline, told), event)
    others = [line for line in plan.reasons if not line.startswith(("coordinates", "baseline", "schedule"))]
    ends = f"log-SNR {float(schedule.log_snr(1)):.3g} to {float(schedule.log_snr(schedule.num_steps)):.3g}"
    kind = "residual covariance" if variances is None else "principal axes, along which variances depend on the context"
    found = [
        f"coordinates: {place.said}",
        f"baseline: the linear regression on the context, with its {kind}; the network learns the rest",
        f"schedule: {schedule.num_steps} steps, {ends}{'' if plan.schedule is None else ' (given)'}",
    ]
    return plan._replace(process=process, reasons=(*others, *found), transform=place.transform)


class _Place(NamedTuple):
    """Coordinates, and a regression in them.

    Attributes:
        said: in words.
        transform: to the data; None for the same.
        weight: of the regression.
        gaussian: of what it leaves.
        size: root mean square of the examples, in units of the noise law.
        detail: the finest one, in these units.
        scaling: loc and scale of the noise law.
    """

    said: str
    transform: Transform | None
    weight: np.ndarray
    gaussian: FullGaussianMixture
    size: float
    detail: float
    scaling: tuple[float, ...] = ()


def _white(pairs: Pairs, model: Regressed) -> _Place:
    """Where what the regression leaves is white; along its principal axes if its variances depend on the context."""
    left, loc, covariance = model.left(pairs), pairs.x.mean(0), model.residual.covariances[0]
    kind = jax.dtypes.canonicalize_dtype(float)
    transform: Transform
    if model.variances is None:
        root = np.linalg.cholesky(covariance)
        inverse = np.linalg.inv(root)
        transform = LowerCholeskyAffine(jnp.asarray(loc, kind), jnp.asarray(root, kind))
        said = "those in which what the baseline leaves is white"
    else:
        axes = model.variances.axes
        inverse = axes.inverse
        transform = PrincipalAxes(loc, axes.unit, axes.basis, axes.scale)
        said = "along the principal axes of what the regression leaves"
    mean = inverse @ (model.residual.means[0] - loc)
    gaussian = FullGaussianMixture(mean[None], np.eye(len(loc))[None])
    size = float(np.sqrt(np.mean(((pairs.x - loc) @ inverse.T) ** 2)))
    return _Place(said, transform, inverse @ model.weight, gaussian, size, finest_detail(left @ inverse.T))


def _as_it_is(pairs: Pairs, model: Regressed) -> _Place:
    """The data's own coordinates, of one location and scale."""
    gaussian = FullGaussianMixture(model.residual.means, model.residual.covariances)
    scaling = float(pairs.x.mean()), float(pairs.x.std())
    detail = finest_detail(model.left(pairs) / scaling[1])
    return _Place("those of the data", None, model.weight, gaussian, 1.0, detail, scaling)


def without_context(x: Array, t: Array) -> Array:
    """In a plan's network's place, before it is told of contexts."""
    del t
    return jnp.zeros_like(x)


def with_residual_moments(
    process: ReverseProcess, transform: Any, model: Regressed | None, pairs: Pairs, dequantize: float
) -> ReverseProcess:
    """The process with the covariance that x has given its context, about, which twists rely on."""
    if model is None:
        return process
    return with_data_moments(process, transform, model.left(pairs).reshape(pairs.x.shape), dequantize)
