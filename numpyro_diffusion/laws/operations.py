"""What can be done with a law of one example, each operation by the law of the example's single elements.

Every kernel, noise law and posterior of this package is a NumPyro distribution of one event whose elements are
independent, but for what exact multiplication makes of it. An operation is a function of such a law that looks up its
rule by the class of the law of single elements (`elements`), as `functools.singledispatch` does. A law without a rule
raises ``TypeError`` with the names of both: no law is taken for another one. A new family registers its rules beside
its law, in a file of its own.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Real
from numpyro.distributions.kl import kl_divergence

from .._shapes import Example

Answer = TypeVar("Answer")
Rule = TypeVar("Rule", bound=Callable[..., Any])


class UnknownLaw(TypeError):
    """An operation has no rule for a law."""


class Operation(Generic[Answer]):
    """A function of a law, and of whatever else it needs, with one rule for each law of single elements.

    Args:
        definition: a function whose name, signature and docstring are the operation's; its body is the answer for a law
            without a rule, as a rule an error.
    """

    def __init__(self, definition: Callable[..., Answer]) -> None:
        functools.update_wrapper(self, definition)
        self.name = definition.__name__
        self._definition = definition
        self._rules: dict[type, Callable[..., Answer]] = {}

    def __call__(self, law: dist.Distribution, *args: Any, **kwargs: Any) -> Answer:
        """Apply the rule for `law`; the definition where there is none."""
        return (self._rule(law) or self._definition)(law, *args, **kwargs)

    def knows(self, law: dist.Distribution) -> bool:
        """Whether there is a rule for `law`."""
        return self._rule(law) is not None

    def refuse(self, law: dist.Distribution) -> UnknownLaw:
        """The error for a law without a rule, which names both."""
        known = ", ".join(sorted(kind.__name__ for kind in self._rules))
        return UnknownLaw(f"{self.name}: expected a law of {known}, got one of {_named(law)}")

    def register(self, *kinds: type) -> Callable[[Rule], Rule]:
        """Register a function of the whole law, with the operation's signature, for these laws of single elements."""

        def add(rule: Rule) -> Rule:
            self._rules.update(dict.fromkeys(kinds, rule))
            return rule

        return add

    def _rule(self, law: dist.Distribution) -> Callable[..., Answer] | None:
        return next((self._rules[kind] for kind in type(elements(law)).__mro__ if kind in self._rules), None)


class PairOperation(Operation[Answer]):
    """An operation on two laws of one family: the second one must have the rule of the first, or it is refused too."""

    def __init__(self, definition: Callable[..., Answer]) -> None:
        super().__init__(definition)
        self._seconds: dict[Callable[..., Answer], type] = {}
        self._second_name = list(inspect.signature(definition).parameters)[1]

    def __call__(self, law: dist.Distribution, *args: Any, **kwargs: Any) -> Answer:
        """Apply the rule for `law`, once the law after it is of the same family."""
        rule, other = self._rule(law), args[0] if args else kwargs[self._second_name]
        if rule is not None and self._rule(other) is not self._second_rule(rule):
            second = self._seconds.get(rule, type(elements(law))).__name__
            raise UnknownLaw(
                f"{self.name}: expected a law of {second} beside one of {_named(law)}, got one of {_named(other)}"
            )
        return super().__call__(law, *args, **kwargs)

    def register(self, *kinds: type, second: type | None = None) -> Callable[[Rule], Rule]:
        """Register as for an operation on one law; `second` is the second law's class where it is not one of these."""

        def add(rule: Rule) -> Rule:
            if second is not None:
                self._seconds[rule] = second
            return super(PairOperation, self).register(*kinds)(rule)

        return add

    def _second_rule(self, rule: Callable[..., Answer]) -> Callable[..., Answer]:
        return self._rules[self._seconds[rule]] if rule in self._seconds else rule


def _named(law: dist.Distribution) -> str:
    return type(elements(law)).__name__


def elements(law: dist.Distribution) -> Any:
    """The law of single elements of a factorised law of one event; any other law itself."""
    while isinstance(law, dist.Independent):
        law = law.base_dist
    return law


def is_factorised(law: dist.Distribution) -> bool:
    """Whether the elements of the event are independent, each with a law of its own."""
    return elements(law).event_shape == ()


@Operation
def variance(law: dist.Distribution) -> Float[Array, "..."]:
    """The variance, in the shape in which the law keeps it, of any law: it may be one number for all elements."""
    return law.variance


@Operation
def mean_and_variance(law: dist.Distribution) -> tuple[Float[Array, "*event"], Float[Array, "..."]]:
    """Mean and variance of a normal law's elements, of which some may be known or correlated; `variance` as it has it.

    For what is exact for normal laws alone: other laws have these moments too, and are not taken for normal ones.
    """
    raise mean_and_variance.refuse(law)


@Operation
def bit_logits(law: dist.Distribution) -> Float[Array, "*event"]:
    """Log-odds of a law of independent bits, some of them perhaps known, shape `event`."""
    raise bit_logits.refuse(law)


@Operation
def class_logits(law: dist.Distribution) -> Float[Array, "*event states"]:
    """Log probabilities of a law of independent classes, some elements of it perhaps known; shape (*event, S)."""
    raise class_logits.refuse(law)


@Operation
def rounded(law: dist.Distribution, num_levels: int) -> dist.Distribution:
    """A factorised normal law rounded to whole numbers 0 … num_levels − 1, of the same event."""
    raise rounded.refuse(law)


@Operation
def log_excess(law: dist.Distribution, x: Example) -> Float[Array, ""]:
    """What the law's density counts at `x` beside `log_prob`, in nats, shape ().

    0 but for an `UnnormalisedNormal`, alone or in another law: all others integrate to one, so that none is refused.
    """
    del law, x
    return jnp.zeros(())


@Operation
def log_ahead(law: dist.Distribution) -> Float[Array, ""]:
    """Log of what is about to be gained by this law and those after it, in nats, shape (); 0 likewise."""
    del law
    return jnp.zeros(())


@Operation
def from_noise(law: dist.Distribution, noise: Float[Array, "*event"]) -> Example:
    """The draw that the standard noise of the law's family makes: normal for real numbers, else uniform."""
    raise from_noise.refuse(law)


@Operation
def mirrored(law: dist.Distribution, key: PRNGKeyArray, mirror: Bool[Array, ""]) -> Example:
    """A draw, or the one of the opposite noise where `mirror` is True; shape `event`.

    Two such draws, of laws that are alike, with one key and `mirror` off and on, are negatively correlated. Each is
    *exact*: normal laws are symmetric about their mean, and the uniform u of a bit or class has the law of 1 − u.
    """
    raise mirrored.refuse(law)


@Operation
def tilt(law: dist.Distribution, gradient: Float[Array, "*event"]) -> dist.Distribution:
    """law(x) · exp(gradient · x), normalised: a normal's mean moves by Σ·gradient, bits' logits by the gradient.

    By at most five standard deviations, or five in logits (`FARTHEST`), since a gradient is true near where it was
    taken only. A rounded normal law is tilted before it is rounded: *approximate*. Nothing lies between classes, so
    that they have no rule.
    """
    raise tilt.refuse(law)


@PairOperation
def between(proposal: dist.Distribution, kernel: dist.Distribution, share: Float[Array, ""]) -> dist.Distribution:
    """proposal^share · kernel^(1 − share), normalised: kernel · ψ^share, if the proposal is kernel · ψ; *exact*.

    Args:
        proposal: a law of the kernel's family, or a `LoweredNormal` of a normal kernel's scale.
        kernel: a factorised law of one event.
        share: in [0, 1], shape ().
    """
    raise between.refuse(proposal)


@Operation
def observed(
    law: dist.Distribution, loc: Real[Array, "..."], scale: Real[Array, "..."], gain: Real[Array, "..."]
) -> tuple[Float[Array, ""], dist.Distribution]:
    """Multiply by N(loc; gain · x, scale²), element by element; nothing is seen where `scale` is infinite.

    Returns:
        log of the integral in nats, shape (), and the normalised product; *exact*.
    """
    raise observed.refuse(law)


@Operation
def certain(law: dist.Distribution, values: Example, mask: Bool[Array, "*event"]) -> dist.Distribution:
    """The law with its elements where `mask` is True certain to have their `values`, for elements of few values."""
    raise certain.refuse(law)


@PairOperation
def chosen(law: dist.Distribution, other: dist.Distribution, where_other: Bool[Array, "*event"]) -> dist.Distribution:
    """The law with the elements of another one of its family where `where_other` is True."""
    raise chosen.refuse(law)


@Operation
def weighted(
    law: dist.Distribution, log_weight: Callable[[Array], Array]
) -> tuple[Float[Array, ""], dist.Distribution]:
    """Multiply by exp(Σ log_weight(x_i)), for elements of few values.

    Args:
        law: factorised.
        log_weight: from a value of one element to log weights in nats, broadcastable to the event.

    Returns:
        log of the mean weight in nats, shape (), and the normalised product; *exact*.
    """
    raise weighted.refuse(law)


@Operation
def lowered(
    law: dist.Distribution, shift: Float[Array, "*event"], directions: Float[Array, " m *event"]
) -> dist.Distribution:
    """The law with its mean moved by `shift` and its covariance C lowered to C − Wᵀ W, W = `directions` as rows.

    What conditioning on linear observations in Gaussian noise makes of a normal law; *exact*.
    """
    raise lowered.refuse(law)


def event_kl(p: dist.Distribution, q: dist.Distribution) -> Float[Array, ""]:
    """KL(p ‖ q) of two laws of one event in nats, as exact as NumPyro's own, shape ()."""
    independent = isinstance(p, dist.Independent) and isinstance(q, dist.Independent)
    if not independent or p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        return kl_divergence(p, q)
    each = jnp.ravel(kl_divergence(p.base_dist, q.base_dist))
    # A product with ones: XLA for CPUs draws the terms of a sum into one slow loop.
    return jnp.dot(each, jnp.ones_like(each), precision="highest")
