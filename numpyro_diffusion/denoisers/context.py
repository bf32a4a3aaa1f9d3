"""What a conditional denoiser is told beside x_t and t, and denoisers that are made of it.

p(x | c) is one prior for each context c: a denoiser that is told c predicts E[x_0 | x_t, c], and whatever holds for a
prior holds for each of these. Contexts that are left out now and then in training teach it what to say of an unknown
one, as for the classifier-free guidance of Ho and Salimans (2022), of which only this part is taken. `Conditional`
makes a denoiser of c, such as that of a linear regression's Gaussian, and is exact where what it makes is exact for
each c.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import check_count, check_real, check_sizes, is_concrete
from .._products import dot
from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion
from ..networks import ContextFeatures, SplineFeatures
from .base import AbstractDenoiser
from .components import Components
from .full import FullGaussianMixture


class Context(eqx.Module):
    """The context c of p(x | c): what it looks like, and, once given, what it is.

    What is not known is NaN, or label −1.

    Args:
        shape: of one context; () is a number or a label.
        num_labels: contexts are whole numbers below this; None for real numbers.
        optional: whether it may be left out, all or in part.

    Raises:
        ValueError: no shape, no number of labels of at least 1.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    num_labels: int | None = eqx.field(static=True)
    optional: bool = eqx.field(static=True)
    value: Real[Array, "*context"] | None = None

    def __init__(self, shape: tuple[int, ...] = (), num_labels: int | None = None, optional: bool = False) -> None:
        self.shape = check_sizes("context_shape", shape)
        self.num_labels = None if num_labels is None else check_count("num_labels", num_labels)
        self.optional, self.value = bool(optional), None

    @property
    def unknown(self) -> Real[Array, "*context"]:
        """Nothing known, as all NaN or labels −1."""
        return jnp.full(self.shape, jnp.nan, float) if self.num_labels is None else jnp.full(self.shape, -1, int)

    @property
    def example(self) -> Real[Array, "*context"]:
        """Zeros."""
        return jnp.zeros_like(self.unknown)

    def checked(self, value: Any) -> Real[Array, "..."]:
        """Contexts of shape (*batch, *shape), as numbers or labels; None for what is unknown.

        Raises:
            ValueError: None or NaN where the context is not optional; another shape; a label that is none.
            TypeError: no numbers; labels that are no whole numbers.
        """
        if value is None:
            if not self.optional:
                raise ValueError(f"context: expected {self.said}, got None")
            return self.unknown
        check_real("context", value)
        array = jnp.asarray(value)
        if array.shape[max(array.ndim - len(self.shape), 0) :] != self.shape:
            raise ValueError(f"context: expected {self.said}, got shape {array.shape}")
        if self.num_labels is None:
            array = array.astype(float)
            if not self.optional and is_concrete(array) and np.isnan(np.asarray(array)).any():
                raise ValueError(
                    "context: expected numbers, got NaN, which stands for an unknown one in optional contexts"
                )
            return array
        if not jnp.issubdtype(array.dtype, jnp.integer) and array.dtype != bool:
            raise TypeError(f"context: expected whole numbers for labels, got {array.dtype}")
        least, array = -1 if self.optional else 0, array.astype(int)
        known = np.asarray(array) if is_concrete(array) else np.zeros(0, int)  # NumPy's, which no trace takes in
        if known.size and (known.min() < least or known.max() >= self.num_labels):
            got = sorted({int(known.min()), int(known.max())})
            raise ValueError(f"context: expected labels from {least} to {self.num_labels - 1}, got {got}")
        return array

    def holding(self, value: Any) -> "Context":
        """The same with a value, for one example.

        Raises:
            ValueError: see `checked`, and more than one context.
        """
        value = self.checked(value)
        if value.shape != self.shape:
            raise ValueError(f"context: expected one, {self.said}, got shape {value.shape}")
        return eqx.tree_at(lambda told: told.value, self, value, is_leaf=lambda leaf: leaf is None)

    def required(self) -> Real[Array, "*context"]:
        """The value.

        Raises:
            ValueError: none has been given.
        """
        if self.value is None:
            raise ValueError(f"context: expected {self.said}, got none; use given(c), as in prior.given(c)")
        return self.value

    @property
    def said(self) -> str:
        """In words."""
        kind = "real numbers" if self.num_labels is None else f"labels below {self.num_labels}"
        return f"{kind} of shape {'(*batch, ' + ', '.join(map(str, self.shape)) + ')' if self.shape else '(*batch,)'}"


class Conditional(AbstractDenoiser):
    """A denoiser made of the context: exact for p(x | c) where what is made is exact for each c.

    Args:
        make: from one context to a denoiser; an `equinox.Module` for what is to be saved.
        context_shape: shape of one context.
        num_labels: for labels, how many there are.
        optional: whether `make` takes NaN, or −1, for what is unknown.

    Raises:
        ValueError: `make` that cannot be called, what `Context` raises; no denoiser from `make` (when called).
    """

    make: Callable[[Real[Array, "*context"]], AbstractDenoiser]
    told: Context

    def __init__(
        self,
        make: Callable[[Real[Array, "*context"]], AbstractDenoiser],
        context_shape: tuple[int, ...] = (),
        num_labels: int | None = None,
        optional: bool = False,
    ) -> None:
        if not callable(make):
            raise TypeError(f"make: expected a callable from a context to a denoiser, got {make!r}")
        self.make, self.told = make, Context(context_shape, num_labels, optional)

    @property
    def wanted(self) -> Context | None:
        """The context."""
        return self.told

    def given(self, context: Any) -> "Conditional":
        """The same, told the context."""
        return eqx.tree_at(lambda denoiser: denoiser.told, self, self.told.holding(context))

    @property
    def made(self) -> AbstractDenoiser:
        """The denoiser for the context that was given."""
        found = self.make(self.told.required())
        if not isinstance(found, AbstractDenoiser):
            raise ValueError(f"make: expected a denoiser, got {found!r}")
        return found

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """That of the denoiser that is made."""
        return self.made.posterior(diffusion, x_t, t)

    def denoise(
        self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime, s: AnyTime | None = None
    ) -> tuple[dist.Distribution, dist.Distribution]:
        """Those of the denoiser that is made."""
        return self.made.denoise(diffusion, x_t, t, s)

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """That of x_0 given the context."""
        return self.made.covariance(diffusion, event_shape)

    @property
    def components(self) -> Components | None:
        """Those of the denoiser that is made."""
        return self.made.components

    @property
    def is_exact(self) -> bool:
        """As the denoiser that is made."""
        return self.made.is_exact

    @property
    def is_gaussian(self) -> bool:
        """As the denoiser that is made."""
        return self.made.is_gaussian


class Regression(eqx.Module):
    """p(x | c) as the Gaussian of a linear regression of x on the features of c: a baseline, made by `Conditional`.

    Args:
        features: of the context.
        weight: shape (d, features), of flattened examples of d elements.
        gaussian: of what the regression leaves, one component; its mean is the regression's offset.
        log_variances: how its variances along its axes depend on the context; they do not unless given.

    Raises:
        ValueError: weights of another shape.
    """

    features: ContextFeatures
    weight: Float[Array, "d features"]
    gaussian: FullGaussianMixture
    log_variances: "LogVariances | None" = None

    def __init__(
        self,
        features: ContextFeatures,
        weight: ArrayLike,
        gaussian: FullGaussianMixture,
        log_variances: "LogVariances | None" = None,
    ) -> None:
        self.features, self.gaussian, self.log_variances = features, gaussian, log_variances
        self.weight = _checked_weight(weight, gaussian.locs.shape[1], features.size)
        if log_variances is not None:
            _checked_weight(log_variances.weight, gaussian.locs.shape[1], log_variances.features.size)

    def __call__(self, context: Real[Array, "*context"]) -> FullGaussianMixture:
        """The Gaussian given one context."""
        moved = self.gaussian.locs + dot(self.weight, self.features(context))
        found = eqx.tree_at(lambda gaussian: gaussian.locs, self.gaussian, moved)
        if self.log_variances is None:
            return found
        variances = self.gaussian.variances * jnp.exp(self.log_variances(context))
        return eqx.tree_at(lambda gaussian: gaussian.variances, found, variances)


class LogVariances(eqx.Module):
    """What a context adds to the log variances along the axes of a Gaussian, linear in features of the context.

    Args:
        features: of the context.
        weight: shape (d, features).
    """

    features: SplineFeatures
    weight: Float[Array, "d features"]

    def __init__(self, features: SplineFeatures, weight: Real[ArrayLike, "d features"]) -> None:
        self.features, self.weight = features, jnp.asarray(weight, dtype=float)

    def __call__(self, context: Real[Array, "*context"]) -> Float[Array, " d"]:
        """For one context, shape (d,)."""
        return dot(self.weight, self.features(context))


def _checked_weight(weight: ArrayLike, size: int, count: int) -> Array:
    array = jnp.asarray(weight, dtype=float)
    if array.shape != (size, count):
        raise ValueError(f"weight: expected shape {(size, count)}, got {array.shape}")
    return array
