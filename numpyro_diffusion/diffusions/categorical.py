"""Categorical diffusion: classes that are drawn anew from a noise law, or masked, one by one.

An element keeps its class with probability 1 − β_t and is drawn from π otherwise, so that q(x_t | x_0) = ᾱ_t δ(x_0) +
(1 − ᾱ_t) π; the bridge is its product with q(x_t | x_s), normalised. With absorbing noise π is one more value, a mask.
All forward answers are exact; a reverse kernel is the bridge averaged over the denoiser's independent classes. Sources:
Hoogeboom et al. (2021) for uniform noise, Austin et al. (2021, App. A.2) for uniform and absorbing noise.
"""

# Over 300 lines: a family is one file here and one of laws.

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import entr, logsumexp, xlogy
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from .._checks import check_count, check_levels, check_real, is_concrete
from .._shapes import AnyExample, AnyTime, Example
from ..laws import IMPOSSIBLE, categories, class_logits, from_noise, log_or_impossible, one_hot
from ..schedules import AbstractSchedule
from .base import AbstractDiscreteDiffusion

# Whole numbers nested as an array is, so that they are static.
Counts: TypeAlias = "int | tuple[Any, ...]"


class CategoricalDiffusion(AbstractDiscreteDiffusion):
    r"""Each element keeps its class with probability :math:`1-\beta_t`, and else is drawn anew from a noise law π.

    Elements are whole numbers 0 … k − 1. Sources: uniform and absorbing noise are those of D3PM (Austin et al. 2021,
    App. A.2.1-2); uniform noise is that of Hoogeboom et al. 2021. A reverse step is the bridge q(x_s | x_t, x_0)
    averaged over the law of x_0 given x_t, *exact* where that law is and its elements are independent; D3PM (eq. 4)
    averages q(x_s, x_t | x_0) in its place, which is not the same for uniform noise. Two classes with noise (1 − ρ, ρ)
    are `BinomialDiffusion`. Everything is computed with log probabilities, so that nearly certain classes keep their
    precision.

    With absorbing noise a noisy element may be masked, which is one more value, k (the largest k, where the elements'
    differ); π is masked for certain, and an element that is not masked is known. π gives the data no probability then,
    and `log_null`, what K is compared with, is the log probability of classes that are all equally likely. The entropy
    of a state falls at last, so that the upper one of `reverse_entropy_bounds` is none.

    Args:
        schedule: how fast the data are forgotten; with absorbing noise it must leave nothing, as `schedules.erasing`.
        num_classes: k, a whole number of at least 1; or k of each element, broadcastable to one example.
        noise: π: ``"uniform"``, ``"absorbing"``, or the probability of each class, shape (k,) or broadcastable to
            (*event, k), positive, but 0 beyond an element's own number of classes; or that of `noise`, of k + 1 values.

    Example:
        >>> diffusion = nd.CategoricalDiffusion(nd.schedules.erasing(20), num_classes=4, noise="absorbing")
        >>> diffusion.marginal(jnp.array([0, 3, 1]), 5).sample(jax.random.key(0)).shape  # 4 where it is masked
        (3,)

    Raises:
        ValueError: counts that are no whole numbers of at least 1, an unknown noise or one that is no law of the
            classes; a schedule that leaves something, with absorbing noise.
    """

    schedule: AbstractSchedule
    num_classes: Counts = eqx.field(static=True)
    num_states: int = eqx.field(static=True)
    _noise: Array

    def __init__(
        self,
        schedule: AbstractSchedule,
        num_classes: int | ArrayLike,
        noise: Literal["uniform", "absorbing"] | ArrayLike = "uniform",
    ) -> None:
        if not isinstance(schedule, AbstractSchedule):
            raise TypeError(f"schedule: expected a schedule from numpyro_diffusion.schedules, got {schedule!r}")
        self.schedule, self.num_classes = schedule, _checked_counts(num_classes)
        probabilities = _checked_noise(noise, self._counts)
        self._noise, self.num_states = jnp.asarray(probabilities, dtype=float), np.shape(probabilities)[-1]
        if self.is_absorbing and is_concrete(left := schedule.alpha_bar(schedule.num_steps)) and left > 0:
            raise ValueError(
                f"schedule: expected one that leaves nothing at T for absorbing noise, as schedules.erasing, got "
                f"alpha_bar(T) = {float(left):.3g}"
            )

    @property
    def noise(self) -> Float[Array, "... states"]:
        """π, constant, each value's probability under the noise law, shape ``(*event, num_states)`` or broadcastable.

        `num_states` is k, and one more with absorbing noise, for masked elements.
        """
        return jax.lax.stop_gradient(self._noise)

    @property
    def is_absorbing(self) -> bool:
        """Whether a noisy element may be masked."""
        return self.num_states > int(self._counts.max())

    @property
    def element_support(self) -> constraints.Constraint:
        """Whole numbers below k; and k itself with absorbing noise."""
        return constraints.integer_interval(0, self.num_states - 1) if self.is_absorbing else self.data_support

    @property
    def data_support(self) -> constraints.Constraint:
        """Whole numbers below k."""
        counts = self._counts
        return constraints.integer_interval(0, counts - 1 if counts.ndim else int(counts) - 1)

    @property
    def num_values(self) -> int:
        """The largest k."""
        return int(self._counts.max())

    @property
    def value_type(self) -> type:
        """A whole number, as nothing lies between classes."""
        return int

    def description(self) -> dict[str, Array | str]:
        """``"categorical"``, `classes`, the largest number of them, and `noise`."""
        noise = "absorbing" if self.is_absorbing else self.noise
        return {"family": "categorical", "classes": jnp.asarray(self.num_values), "noise": noise}

    def check_values(self, name: str, x: ArrayLike) -> None:
        """Whole numbers below k."""
        check_levels(name, x, self._counts)

    def check_state(self, name: str, x_t: AnyExample) -> None:
        """Whole numbers below k; and k itself with absorbing noise."""
        check_levels(name, x_t, np.asarray(self.num_states) if self.is_absorbing else self._counts)

    @property
    def heads(self) -> Mapping[str, int]:
        """Log probabilities of the classes of x_0, up to a constant."""
        return {"logits": 1}

    def network_input(self, x_t: AnyExample) -> Float[Array, "*event states"]:
        """Each element as a row of 0.0 and one 1.0, shape (*event, num_states)."""
        return one_hot(x_t, self.num_states).astype(self.schedule.times.dtype)

    def network_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(*event, num_states); what is said of classes that an element does not have is ignored."""
        return (*event_shape, self.num_states)

    def posterior_from_logits(self, logits: Float[Array, "*event states"], x_t: Example) -> dist.Distribution:
        """Independent classes, of those that can have become x_t: with absorbing noise that one, unless masked."""
        from_any = self._noise_of(x_t)[..., None] > IMPOSSIBLE / 2
        possible = self._has_class & (from_any | one_hot(x_t, self.num_states))
        return categories(jnp.where(possible, logits, IMPOSSIBLE))

    def posterior_of_values(self, log_probs: Float[Array, "*event values"], x_t: Example) -> dist.Distribution:
        """The same from log probabilities of the classes alone."""
        lacking = [(0, 0)] * jnp.ndim(x_t) + [(0, self.num_states - jnp.shape(log_probs)[-1])]
        return self.posterior_from_logits(jnp.pad(log_probs, lacking, constant_values=IMPOSSIBLE), x_t)

    def corrected(
        self, posterior: dist.Distribution, output: tuple[Float[Array, "..."], Float[Array, "..."]], x_t: Example
    ) -> dist.Distribution:
        """The first output, added to the law's log probabilities."""
        return self.posterior_from_logits(class_logits(posterior) + output[0], x_t)

    def step(self, x_s: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_t | x_s), exact; event shape that of `x_s`."""
        self.check_state("x_s", x_s)
        beta = self.schedule.beta(t, s)
        return categories(self._tossed(x_s, 1 - beta, beta))

    def marginal(self, x_0: AnyExample, t: AnyTime) -> dist.Distribution:
        """q(x_t | x_0), exact; event shape that of `x_0`."""
        self.check_values("x_0", x_0)
        return categories(self._tossed(x_0, *self.schedule.signal_and_noise(t)))

    def bridge(self, x_t: AnyExample, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_s | x_t, x_0), exact; event shape that of `x_t`."""
        self.check_state("x_t", x_t)
        self.check_values("x_0", x_0)
        s = jnp.asarray(t) - 1 if s is None else s
        return categories(self._into(x_t, t, s) + self._tossed(x_0, *self.schedule.signal_and_noise(s)))

    def average_bridge(
        self, x_t: AnyExample, posterior: dist.Distribution, t: AnyTime, s: AnyTime | None = None
    ) -> dist.Distribution:
        """The mixture of bridges over the posterior's x_0: exact for each element, factorised over elements.

        Σ_k P(k) q(x_t|j) q(j|k) / q(x_t|k) for the class j of x_s, where q(j|k) is ᾱ_s where j = k and (1 − ᾱ_s)π(j)
        more: no sum over pairs of classes is needed.
        """
        s = jnp.asarray(t) - 1 if s is None else s
        (stay_t, toss_t), (stay_s, toss_s) = self.schedule.signal_and_noise(t), self.schedule.signal_and_noise(s)
        seen = self._reaching(x_t, stay_t, toss_t)
        share = class_logits(posterior) - seen
        share = jnp.where(seen > IMPOSSIBLE / 2, share, IMPOSSIBLE)
        fresh = log_or_impossible(toss_s) + self._log_noise + logsumexp(share, axis=-1, keepdims=True)
        return categories(self._into(x_t, t, s) + jnp.logaddexp(log_or_impossible(stay_s) + share, fresh))

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        """π on every element; event shape `event_shape`."""
        return categories(jnp.broadcast_to(self._log_noise, (*event_shape, self.num_states)))

    def reverse_prior_step(self, x_t: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """The chain is reversible under π, so this is `step` with its ends exchanged.

        Raises:
            ValueError: absorbing noise, under which no data are noise.
        """
        if self.is_absorbing:
            raise ValueError("last_step: expected another than ForwardStep for absorbing noise, which is no data")
        return self.step(x_t, t, s)

    def marginal_from_noise(self, noise: Float[Array, "*event"], x_0: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        """Draw from q(x_t | x_0): the class at which 1 − F passes the noise, as a floating number."""
        return from_noise(self.marginal(x_0, t), noise)

    def marginal_entropy(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """Σ H(ᾱ_t δ(x_0) + (1 − ᾱ_t)π) nats."""
        return jnp.sum(entr(self._chances(x_0, t)))

    def step_entropy(self, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> Float[Array, ""]:
        """Σ_j m(j) H((1 − β)δ(j) + βπ) nats, m the probability of class j at `s`, summed over elements."""
        s = jnp.asarray(t) - 1 if s is None else s
        beta = self.schedule.beta(t, s)
        fresh = beta * self.noise
        each = jnp.sum(entr(fresh), -1, keepdims=True) - entr(fresh) + entr(1 - beta + fresh)
        return jnp.sum(self._chances(x_0, s) * each)

    def expected_log_terminal(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """E log π(X^t) given x_0, in nats; −inf where X^t may be what the noise is not."""
        return jnp.sum(xlogy(self._chances(x_0, t), self.noise))

    def log_null(self, x_0: AnyExample) -> Float[Array, ""]:
        """log π(x_0) in nats, shape (); with absorbing noise −Σ log k."""
        if not self.is_absorbing:
            return self.expected_log_terminal(x_0, 0.0)
        return -jnp.sum(jnp.broadcast_to(jnp.log(jnp.asarray(self._counts, dtype=float)), jnp.shape(x_0)))

    def terminal_entropy(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """Σ H(π) nats."""
        return jnp.sum(jnp.broadcast_to(jnp.sum(entr(self.noise), -1), event_shape))

    @property
    def _counts(self) -> np.ndarray:
        return np.asarray(self.num_classes)

    @property
    def _has_class(self) -> np.ndarray:
        """Which classes the data of each element may have, shape (*event or broadcastable, num_states)."""
        return np.arange(self.num_states) < self._counts[..., None]

    @property
    def _log_noise(self) -> Array:
        return log_or_impossible(self.noise)

    def _noise_of(self, x: ArrayLike) -> Array:
        """log π(x), element by element."""
        return jnp.sum(jnp.where(one_hot(x, self.num_states), self._log_noise, 0.0), -1)

    def _chances(self, x_0: AnyExample, t: AnyTime) -> Array:
        """q(x_t | x_0) for each value of x_t."""
        return jnp.exp(class_logits(self.marginal(x_0, t)))

    def _tossed(self, x: ArrayLike, stay: Array, toss: Array) -> Array:
        """Log probabilities of what `x` becomes if it stays with probability `stay`."""
        stays = jnp.where(one_hot(x, self.num_states), log_or_impossible(stay), IMPOSSIBLE)
        return jnp.logaddexp(stays, log_or_impossible(toss) + self._log_noise)

    def _reaching(self, x: ArrayLike, stay: Array, toss: Array) -> Array:
        """Log probability with which each value becomes `x` if it stays with probability `stay`."""
        stays = jnp.where(one_hot(x, self.num_states), log_or_impossible(stay), IMPOSSIBLE)
        return jnp.logaddexp(stays, (log_or_impossible(toss) + self._noise_of(x))[..., None])

    def _into(self, x_t: AnyExample, t: AnyTime, s: ArrayLike) -> Array:
        """log q(x_t | x_s) for each value of x_s."""
        beta = self.schedule.beta(t, s)
        return self._reaching(x_t, 1 - beta, beta)


def _checked_counts(num_classes: Any) -> Counts:
    if isinstance(num_classes, int | np.integer):
        return check_count("num_classes", num_classes)
    check_real("num_classes", num_classes)
    array = np.asarray(num_classes)
    if array.size == 0 or not np.issubdtype(array.dtype, np.integer) or array.min() < 1:
        raise ValueError(f"num_classes: expected whole numbers of at least 1, got {num_classes!r:.80}")
    return _nested(array.tolist())


def _nested(counts: Any) -> Counts:
    return tuple(_nested(each) for each in counts) if isinstance(counts, list) else counts


def _checked_noise(noise: Any, counts: np.ndarray) -> Any:
    """π for each value, of what the argument says."""
    count = int(counts.max())
    has_class, masked = np.arange(count) < counts[..., None], np.arange(count + 1) == count
    if isinstance(noise, str):
        if noise not in ("uniform", "absorbing"):
            raise ValueError(f"noise: expected 'uniform', 'absorbing' or probabilities, got {noise!r}")
        return masked if noise == "absorbing" else has_class / counts[..., None]
    check_real("noise", noise)
    shape = np.shape(noise)
    if shape[-1:] not in ((count,), (count + 1,)):
        raise ValueError(f"noise: expected the last axis to be of {count} classes, got shape {shape}")
    if is_concrete(noise):
        array = np.asarray(noise)
        absorbs = shape[-1] > count
        fits = (array == masked).all() if absorbs else ((array > 0) == has_class).all()
        if not fits or not (abs(array.sum(-1) - 1) < 1e-4).all():
            expected = "'absorbing' with a place for masked elements" if absorbs else "positive ones of each class"
            raise ValueError(f"noise: expected probabilities that add up to 1, {expected}, got {array!s:.80}")
    return noise
