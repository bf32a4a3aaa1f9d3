"""Independent elements of a few classes each, and what the operations make of them; in log probabilities.

An element is given by the log probabilities of its classes. What cannot be has the finite value `IMPOSSIBLE`, so that
sums, products and gradients stay numbers where there are masks or classes that some elements lack, while `log_prob`
answers −inf. The operations are exact: products with factors of single elements, geometric means for tempering, draws
by the inverse distribution function of one uniform number, and the KL divergence, infinite where p has a class that q
excludes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Real, Shaped
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence
from numpyro.util import is_prng_key

from .._shapes import Example
from .operations import between, certain, chosen, class_logits, elements, from_noise, mirrored, weighted

# The log probability of a class that cannot be: finite, so that sums, products and gradients of it are numbers, and so
# small that its exponential is 0 however many are added.
IMPOSSIBLE = -1e9


class Categories(dist.Distribution):
    """One of S classes, 0 … S − 1, by log probabilities, of which some may be −inf.

    `log_prob` is *exact*, −inf for other numbers and for classes that cannot be. The mean and the variance are those of
    the class's number, as a bit's are. Unlike NumPyro's `Categorical` it takes classes given as floating numbers, and
    keeps its gradients finite where classes are impossible.

    Args:
        logits: log probabilities up to a constant, shape (*batch, S), −inf for what cannot be.
        validate_args: NumPyro's validation switch.
    """

    arg_constraints = {"logits": constraints.real_vector}
    pytree_data_fields = ("logits",)

    def __init__(self, logits: ArrayLike, *, validate_args: bool | None = None) -> None:
        logits = jnp.maximum(jnp.asarray(logits, dtype=jnp.result_type(float, logits)), IMPOSSIBLE)
        self.logits = jnp.maximum(jax.nn.log_softmax(logits), IMPOSSIBLE)
        super().__init__(jnp.shape(logits)[:-1], (), validate_args=validate_args)

    @property
    def num_states(self) -> int:
        """S."""
        return int(jnp.shape(self.logits)[-1])

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Whole numbers from 0 to S − 1."""
        return constraints.integer_interval(0, self.num_states - 1)

    @property
    def probs(self) -> Float[Array, "*batch states"]:
        """Probability of each class, shape (*batch, S)."""
        return jnp.exp(self.logits)

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """E of the class's number."""
        return self.probs @ self._numbers

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """Variance of the class's number."""
        return jnp.sum(self.probs * jnp.square(self._numbers - self.mean[..., None]), -1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """Classes as whole numbers, shape (*sample_shape, *batch)."""
        assert is_prng_key(key)
        return self.at(jax.random.uniform(key, tuple(sample_shape) + self.batch_shape, self.logits.dtype))

    def at(self, uniform: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
        """The class where 1 − F passes a uniform number; a class that cannot be is at none."""
        above = jnp.cumsum(self.probs[..., ::-1], -1)[..., ::-1]
        above = above[..., 1:] / above[..., :1]  # 1 where class 0 cannot be, whatever was rounded
        below_one = jnp.minimum(uniform, 1 - jnp.finfo(above.dtype).epsneg)
        return jnp.sum(below_one[..., None] < above, -1)

    def log_prob(self, value: Shaped[ArrayLike, "..."], intermediates: Any = None) -> Float[Array, "..."]:
        """Log probability in nats."""
        del intermediates
        is_value = one_hot(value, self.num_states)
        found = jnp.sum(jnp.where(is_value, self.logits, 0.0), -1)
        return jnp.where((found > IMPOSSIBLE / 2) & jnp.any(is_value, -1), found, -jnp.inf)

    @property
    def _numbers(self) -> Array:
        return jnp.arange(self.num_states, dtype=self.logits.dtype)


def categories(logits: Float[Array, "*event states"]) -> dist.Distribution:
    """Independent elements of these log probabilities, classes on the last axis, as one event."""
    return Categories(logits, validate_args=False).to_event(jnp.ndim(logits) - 1)


@class_logits.register(Categories)
def _class_logits(law: dist.Distribution) -> Float[Array, "*event states"]:
    return elements(law).logits


@class_logits.register(dist.CategoricalLogits, dist.CategoricalProbs)
def _class_logits_of_numpyro(law: dist.Distribution) -> Float[Array, "*event states"]:
    return jax.nn.log_softmax(elements(law).logits)


def one_hot(x: Shaped[ArrayLike, "*shape"], num_states: int) -> Bool[Array, "*shape states"]:
    """Whether each element is each of the classes, shape (*x.shape, S)."""
    return jnp.asarray(x)[..., None] == jnp.arange(num_states)


def log_or_impossible(probability: Real[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The logarithm, and `IMPOSSIBLE`, which is finite, for what cannot be."""
    some = probability > 0
    return jnp.where(some, jnp.log(jnp.where(some, probability, 1.0)), IMPOSSIBLE)


@from_noise.register(Categories)
def _from_noise(law: dist.Distribution, noise: Float[Array, "*event"]) -> Example:
    return elements(law).at(noise).astype(noise.dtype)


@mirrored.register(Categories)
def _mirrored(law: dist.Distribution, key: PRNGKeyArray, mirror: Bool[Array, ""]) -> Example:
    uniform = jax.random.uniform(key, law.event_shape, class_logits(law).dtype)
    return elements(law).at(jnp.where(mirror, 1 - uniform, uniform))


@certain.register(Categories)
def _certain(law: dist.Distribution, values: Example, mask: Bool[Array, "*event"]) -> dist.Distribution:
    logits = class_logits(law)
    fixed = jnp.where(one_hot(values, logits.shape[-1]), 0.0, IMPOSSIBLE)
    return categories(jnp.where(mask[..., None], fixed, logits))


@chosen.register(Categories)
def _chosen(law: dist.Distribution, other: dist.Distribution, where_other: Bool[Array, "*event"]) -> dist.Distribution:
    return categories(jnp.where(where_other[..., None], class_logits(other), class_logits(law)))


@between.register(Categories)
def _between(proposal: dist.Distribution, kernel: dist.Distribution, share: Float[Array, ""]) -> dist.Distribution:
    own, led = class_logits(kernel), class_logits(proposal)
    return categories(own + share * (led - own))


@weighted.register(Categories)
def _weighted(
    law: dist.Distribution, log_weight: Callable[[Array], Array]
) -> tuple[Float[Array, ""], dist.Distribution]:
    logits = class_logits(law)
    weights = [jnp.broadcast_to(log_weight(jnp.asarray(c)), law.event_shape) for c in range(logits.shape[-1])]
    product = jnp.maximum(logits + jnp.stack(weights, -1), IMPOSSIBLE)
    each = logsumexp(product, axis=-1)
    return jnp.sum(jnp.where(each > IMPOSSIBLE / 2, each, -jnp.inf)), categories(product)


@kl_divergence.register(Categories, Categories)
def _kl_categories(p: Categories, q: Categories) -> Array:
    """KL between classes in nats; infinite where p has one that q cannot be."""
    chance = p.probs
    missed = (chance > 0) & (q.logits <= IMPOSSIBLE / 2)
    each = jnp.where(missed, jnp.inf, chance * (p.logits - q.logits))
    return jnp.sum(jnp.where(chance > 0, each, 0.0), -1)
