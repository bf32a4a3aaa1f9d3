"""How the variances of what a regression leaves depend on the context, along axes that all contexts share.

Common principal components (Flury 1984), with log variances that are linear in splines of the context: for fields, say,
whose length scale is the context, whose covariances share their axes nearly, and no covariance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..networks import ContextFeatures, SplineFeatures

NUM_KNOTS = (0, 5, 9)  # of each number; 0 for log variances that are linear
MOST_SPLINES = 8  # numbers of a context up to which each has splines
RIDGES = (1e-3, 1.0, 30.0)
ROUNDS = 40  # of scoring
STEEPEST = 2.0  # in one round, of a log variance


class Axes(NamedTuple):
    """Principal axes of a covariance, of elements in units of their own standard deviations.

    Attributes:
        unit: standard deviation of each element, shape (d,).
        basis: orthonormal columns, shape (d, d).
        scale: standard deviation along each of them, in those units, shape (d,).
    """

    unit: np.ndarray
    basis: np.ndarray
    scale: np.ndarray

    @property
    def inverse(self) -> np.ndarray:
        """From centred data to coordinates of unit variance, shape (d, d)."""
        return self.basis.T / self.scale[:, None] / self.unit

    @property
    def log_volume(self) -> float:
        """Log of the determinant of the covariance's root."""
        return float(np.log(self.unit).sum() + np.log(self.scale).sum())


class ContextVariances(NamedTuple):
    """Variances along principal axes that depend on the context.

    Attributes:
        axes: those of the covariance of all that is left.
        features: of a context.
        weight: shape (d, features): log variances along the axes, in coordinates of unit variance.
    """

    axes: Axes
    features: SplineFeatures
    weight: np.ndarray

    def log_prob(self, centred: np.ndarray, context: np.ndarray) -> np.ndarray:
        """Log density in nats of data without their means, shape (n,)."""
        z = centred @ self.axes.inverse.T
        return _log_normal(z, _table(self.features, context) @ self.weight.T) - self.axes.log_volume


def principal_axes(covariance: np.ndarray) -> Axes:
    """Of a covariance, shape (d, d)."""
    unit = np.sqrt(np.diag(covariance))
    variances, basis = np.linalg.eigh(covariance / np.outer(unit, unit))
    return Axes(unit, basis, np.sqrt(variances))


def fitted_variances(
    centred: np.ndarray, covariance: np.ndarray, context: np.ndarray, features: ContextFeatures
) -> ContextVariances | None:
    """Log variances by maximum likelihood with a ridge; None unless they predict better than a covariance for all.

    A fifth of the examples chooses knots and ridge, and whether there is anything to gain: two standard errors of the
    log density, beside the covariance for all. Then all examples are fitted.

    Args:
        centred: examples without what the regression says of them, shape (n, d), n ≥ 20.
        covariance: of them, shape (d, d), positive definite.
        context: shape (n, *context_shape).
        features: of a context.
    """
    axes = principal_axes(covariance)
    z = centred @ axes.inverse.T
    apart = np.random.default_rng(0).permutation(len(z)) < len(z) // 5
    constant = np.log(np.mean(np.square(z[~apart]), 0))
    plain = _log_normal(z[apart], np.broadcast_to(constant, z[apart].shape))
    best, chosen = plain, None
    for option in _options(features, context):
        table = _table(option, context)
        for ridge in RIDGES:
            weight = _scored(np.square(z[~apart]), table[~apart], ridge)
            value = _log_normal(z[apart], table[apart] @ weight.T)
            if value.mean() > best.mean():
                best, chosen = value, (option, ridge)
    gain = best - plain
    if chosen is None or gain.mean() < 2 * gain.std() / np.sqrt(len(gain)):
        return None
    option, ridge = chosen
    return ContextVariances(axes, option, _scored(np.square(z), _table(option, context), ridge))


def _options(features: ContextFeatures, context: np.ndarray) -> list[SplineFeatures]:
    """Splines with knots at equal shares of the contexts."""
    if features.num_labels is not None:
        return [SplineFeatures(features, np.zeros((0, 0)))]
    z = ((context - np.asarray(features.loc)) / np.asarray(features.scale)).reshape(len(context), -1)
    found = [SplineFeatures(features, np.zeros((z.shape[1], 0)))]
    for count in NUM_KNOTS[1:] if z.shape[1] <= MOST_SPLINES else ():
        knots = np.nanquantile(z, np.linspace(0.02, 0.98, count), axis=0).T
        if (np.diff(knots) > 1e-3).all():
            found.append(SplineFeatures(features, knots))
    return found


def _table(features: SplineFeatures, context: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(features)(jnp.asarray(context)), np.float64)


def _scored(squares: np.ndarray, table: np.ndarray, ridge: float) -> np.ndarray:
    """Weights of log variances, shape (d, k), by Fisher scoring, whose information is the same for all axes."""
    centre = table.mean(0)
    penalty = ridge * np.diag(np.maximum(np.square(table - centre).mean(0), 1e-6))
    information = np.linalg.inv(table.T @ table / 2 + penalty)
    weight = information @ table.T @ np.broadcast_to(np.log(squares.mean(0)), squares.shape) / 2
    for _ in range(ROUNDS):
        slope = table.T @ (squares * np.exp(-table @ weight) - 1) / 2 - penalty @ weight
        step = information @ slope
        largest = np.abs(table @ step).max(0)
        weight = weight + step * np.minimum(1.0, STEEPEST / np.maximum(largest, 1e-12))
        if largest.max() < 1e-4:
            break
    return weight.T


def _log_normal(z: np.ndarray, log_variances: np.ndarray) -> np.ndarray:
    each = np.square(z) * np.exp(-log_variances) + log_variances + np.log(2 * np.pi)
    return -0.5 * each.sum(1)
