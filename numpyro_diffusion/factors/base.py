"""What a factor r(x) answers, and products of factors.

A factor r(x) ≥ 0 multiplies a prior, p̃(x) ∝ p(x) r(x) (Sohl-Dickstein et al. 2015, §2.5): a likelihood whose data are
fixed, or anything else that is known of x. Its evidence is Z = ∫ p(x) r(x) dx. A factor always has log r(x), and says
of itself what else it has in closed form: its product with a factorised law, an action on single elements, a linear
observation, elements that it fixes. In coordinates x = T(z) it is r(T(z)), *exactly*.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Real, Shaped
from numpyro.distributions import constraints
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from .._checks import check_event
from .._shapes import Example
from ..laws import ByColumns


class AbstractFactor(eqx.Module):
    """A positive function r(x) of one example that multiplies a prior; a pytree, so that it jits and vmaps.

    Written for one unbatched example. Many observations at once are a factor whose arrays have a leading dimension,
    under `jax.vmap`. Factors multiply: ``a * b`` is their product.
    """

    @abstractmethod
    def log_r(self, x: Shaped[Array, "..."]) -> Float[Array, ""]:
        """log r(x) in nats for one example, shape ()."""

    @property
    def is_elementwise(self) -> bool:
        """Whether r is a product of factors of single elements, with a closed form (`multiply`) for laws that fit."""
        return False

    def check(self, event_shape: tuple[int, ...], support: Constraint) -> None:
        """Raise ``ValueError`` unless the factor fits examples of this shape with elements on this support."""
        kind = int if has_values(support).all() else float
        example = jax.ShapeDtypeStruct(event_shape, jax.dtypes.canonicalize_dtype(kind))
        try:
            answer = jax.eval_shape(lambda x: self.log_r(x), example)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"factor: expected one for examples of shape {event_shape}, {type(self).__name__} failed: {error}"
            ) from error
        if answer.shape != ():
            raise ValueError(
                f"factor: expected log r(x) of shape () for an example of shape {event_shape}, got {answer.shape}"
            )

    def check_kind(self, support: Constraint, discrete: bool, acts: ArrayLike | None = True) -> None:
        """Raise ``ValueError`` if a prior's elements are real where a few values are wanted, or the other way round.

        Args:
            support: of the prior's elements.
            discrete: whether elements of a few values are wanted.
            acts: which elements the factor says something of, broadcastable to one example; None where that is not
                known, as under `jax.jit`: then some element has to fit.
        """
        found = has_values(support)
        if acts is None and (found == discrete).any():
            return
        wrong = (found != discrete) & np.asarray(True if acts is None else acts)
        if wrong.any():
            names = ("real numbers", "bits or classes")
            where = f" in columns {np.flatnonzero(wrong).tolist()}" if found.ndim else ""
            raise ValueError(
                f"factor: {type(self).__name__} is for {names[discrete]}, got a prior over {names[not discrete]}{where}"
            )

    def multiply(self, law: dist.Distribution) -> tuple[Float[Array, ""], dist.Distribution] | None:
        """Multiply a factorised law of x (one event) by r in closed form.

        Returns:
            log ∫ law(x) r(x) dx in nats, shape (), and the normalised product; None where there is no closed form.
        """
        del law
        return None

    def linear(self, event_shape: tuple[int, ...]) -> Any:
        """The same as a `LinearGaussian`; None where it is no linear observation in Gaussian noise."""
        del event_shape

    def observation_size(self, event_shape: tuple[int, ...]) -> int | None:
        """Elements of the observation in Gaussian noise that r is, known elements of x counted; None if it is none."""
        del event_shape
        return None

    def pull_back(self, transform: Transform, origin: Example) -> tuple["AbstractFactor", Float[Array, ""]]:
        """r(T(z)) as a factor of z, for one transform that is no composition; see the function `pull_back`.

        Args:
            transform: T, from one example z to one example x of the same shape.
            origin: z = 0.

        Returns:
            The factor, and the constant in nats, shape (), that belongs to its logarithm.
        """
        del origin
        return PulledBack(self, transform), jnp.zeros(())

    def fill(self, x: Shaped[Array, "*draws"]) -> Shaped[Array, "*draws"]:
        """Draws of shape (*lead, *event) with the values of elements that the factor fixes in them."""
        return x

    @property
    def parts(self) -> tuple["AbstractFactor", ...]:
        """The factors of a product, or the one there is."""
        return (self,)

    @property
    def fixes_elements(self) -> bool:
        """Whether elements of x are known, so that r is no function but a point mass in them."""
        return False

    def __mul__(self, other: "AbstractFactor") -> "Product":
        """``factor * other``: r(x) r'(x)."""
        if not isinstance(other, AbstractFactor):
            return NotImplemented
        return Product((self, other))


def has_values(support: Constraint) -> np.ndarray:
    """Which elements on a support take a few values only: one answer for all, or one for each of mixed columns."""
    support = support.base_constraint if isinstance(support, constraints.independent) else support
    return np.asarray(support.has_values if isinstance(support, ByColumns) else support.is_discrete)


class Product(AbstractFactor):
    """r(x) = Π r_i(x)."""

    factors: tuple[AbstractFactor, ...]

    def __init__(self, factors: tuple[AbstractFactor, ...]) -> None:
        flat: list[AbstractFactor] = []
        for factor in factors:
            if not isinstance(factor, AbstractFactor):
                raise TypeError(f"factors: expected factors, got {factor!r}")
            flat.extend(factor.parts)
        self.factors = tuple(flat)

    def log_r(self, x: Shaped[Array, "..."]) -> Float[Array, ""]:
        """Σ log r_i(x)."""
        return sum((factor.log_r(x) for factor in self.factors), jnp.zeros(()))

    def check(self, event_shape: tuple[int, ...], support: Constraint) -> None:
        """Check every factor."""
        for factor in self.factors:
            factor.check(event_shape, support)

    def multiply(self, law: dist.Distribution) -> tuple[Float[Array, ""], dist.Distribution] | None:
        """One factor after the other; None where one of them has no closed form on what the others made."""
        total = jnp.zeros(())
        for factor in self.factors:
            product = factor.multiply(law)
            if product is None:
                return None
            total, law = total + product[0], product[1]
        return total, law

    def observation_size(self, event_shape: tuple[int, ...]) -> int | None:
        """The sum; None if one of them is no observation in Gaussian noise."""
        sizes = [factor.observation_size(event_shape) for factor in self.factors]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def pull_back(self, transform: Transform, origin: Example) -> tuple[AbstractFactor, Float[Array, ""]]:
        """Each factor by itself; the constants add up."""
        pulled = [factor.pull_back(transform, origin) for factor in self.factors]
        factors = tuple(factor for factor, _ in pulled)
        return (factors[0] if len(factors) == 1 else Product(factors)), sum((each for _, each in pulled), jnp.zeros(()))

    def fill(self, x: Shaped[Array, "*draws"]) -> Shaped[Array, "*draws"]:
        """What every factor fixes, one after the other."""
        for factor in self.factors:
            x = factor.fill(x)
        return x

    @property
    def parts(self) -> tuple[AbstractFactor, ...]:
        """The factors."""
        return self.factors

    @property
    def fixes_elements(self) -> bool:
        """Whether one of them does."""
        return any(factor.fixes_elements for factor in self.factors)

    @property
    def is_elementwise(self) -> bool:
        """Whether all of them are."""
        return all(factor.is_elementwise for factor in self.factors)


class PulledBack(AbstractFactor):
    """z ↦ r(T(z)) for any transform T."""

    factor: AbstractFactor
    transform: Transform

    def log_r(self, x: Shaped[Array, "..."]) -> Float[Array, ""]:
        """log r of the data that z stands for, in nats."""
        return self.factor.log_r(self.transform(x))


def factors_of(factor: AbstractFactor) -> tuple[AbstractFactor, ...]:
    """The factors of a product, or the one there is."""
    return factor.parts


def batched_log_r(
    factor: AbstractFactor, x: Shaped[ArrayLike, "..."], event_shape: tuple[int, ...]
) -> Real[Array, "*batch"]:
    """log r for examples with leading dimensions, shape (*batch,)."""
    x = jnp.asarray(x)
    log_r = factor.log_r
    for _ in check_event("x", x.shape, event_shape):
        log_r = jax.vmap(log_r)
    return log_r(x)


def as_function(function: Callable[..., Any]) -> Any:
    """A function in a form that a factor can hold as a pytree: its own arrays, if it has any, are leaves."""
    held = isinstance(function, eqx.Module | Partial)
    return function if held else Partial(function)
