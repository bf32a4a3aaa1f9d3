"""What a forward process q answers, whatever its family.

A forward process q is a Markov chain that turns x_0 into noise and leaves its noise law π invariant (Sohl-Dickstein et
al. 2015, §2.1 and Table App. 1). Its step q(x_t | x_s), marginal q(x_t | x_0) and bridge q(x_s | x_t, x_0) are closed
forms for any 0 ≤ s < t ≤ T, with independent elements, and so are the entropies of which the K bound consists: all of
these are exact. The averaged bridge, of which reverse kernels are made, is exact element by element at best. A family
gives these forms, and says which values an element takes and what a network's output may mean.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from numpyro.distributions import constraints

from .._shapes import AnyExample, AnyTime, Example
from ..schedules import AbstractSchedule


class AbstractDiffusion(eqx.Module):
    r"""A Markov chain q that turns data x_0 into noise x_T, and keeps its noise law π invariant.

    Every answer is a NumPyro distribution whose event is the whole array it is given: one example, of any shape.
    Times are scalars in [0, T]; `s` < `t` defaults to ``t - 1``.
    """

    schedule: eqx.AbstractVar[AbstractSchedule]

    @property
    def num_steps(self) -> int:
        """T, the number of steps of the schedule."""
        return self.schedule.num_steps

    @property
    @abstractmethod
    def element_support(self) -> constraints.Constraint:
        """Support of one element of x_t."""

    @property
    def data_support(self) -> constraints.Constraint:
        """Support of one element of the data; that of x_t unless the noise has a value of its own."""
        return self.element_support

    @property
    def num_values(self) -> int | None:
        """How many values an element of the data can have, 0 … num_values − 1; None for real numbers."""
        return None

    @property
    def value_type(self) -> type:
        """What models take an element of the data for, a number between whose values factors may be continued."""
        return float

    @property
    def is_gaussian(self) -> bool:
        """Whether q is a `GaussianDiffusion`, of real numbers, steps in log-SNR and draws smooth in x_0 and in q."""
        return False

    @abstractmethod
    def description(self) -> dict[str, Array | str]:
        """Name of the family and the noise law's parameters, for people to read."""

    @final
    @property
    def is_discrete(self) -> bool:
        """Whether an element of x takes a few values only."""
        return self.element_support.is_discrete

    @abstractmethod
    def check_values(self, name: str, x: ArrayLike) -> None:
        """Raise ``ValueError`` where known data `x` are off their support; `name` is the argument's."""

    def check_state(self, name: str, x_t: AnyExample) -> None:
        """The same for a noisy state; see `data_support`."""
        self.check_values(name, x_t)

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, int]:
        """What a network's output may mean here (`predicts` of a `Network`), with the number of its outputs."""

    @abstractmethod
    def network_input(self, x_t: AnyExample) -> Float[Array, "..."]:
        """The state as a network sees it: floating, without units, of shape `network_shape`."""

    def network_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what a network is given, and of each of its outputs, for one example."""
        return event_shape

    def posterior_from_logits(self, logits: Float[Array, "..."], x_t: Example) -> dist.Distribution:
        """The law of x_0 given x_t that a network's logits stand for, where ``"logits"`` is among the `heads`."""
        del logits, x_t
        raise ValueError(f"predicts: {type(self).__name__} has no law of logits, got 'logits'")

    def posterior_of_values(self, log_probs: Float[Array, "*event values"], x_t: Example) -> dist.Distribution:
        """The law of x_0 given x_t with these log probabilities of each value, shape (*event, num_values)."""
        del log_probs, x_t
        raise ValueError(f"diffusion: expected one whose elements have a few values, got {type(self).__name__}")

    def kernel_from_heads(
        self,
        output: tuple[Float[Array, "..."], Float[Array, "..."]],
        x_t: Example,
        t: AnyTime,
        s: AnyTime | None = None,
    ) -> dist.Distribution:
        """The kernel x_t → x_s of the head ``"mean"``; for outputs of 0, the forward one. Source: [2015] eqs. 64-65."""
        del output, x_t, t, s
        raise ValueError(f"predicts: {type(self).__name__} has no head 'mean', got 'mean'")

    def implied_posterior(self, kernel: dist.Distribution, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The law of x_0 whose averaged bridge, from t to t − 1, is `kernel`, or is near to it."""
        del kernel, x_t, t
        raise ValueError(f"predicts: {type(self).__name__} has no head 'mean', got 'mean'")

    def corrected(
        self, posterior: dist.Distribution, output: tuple[Float[Array, "..."], Float[Array, "..."]], x_t: Example
    ) -> dist.Distribution:
        """A law of x_0 given x_t, corrected by the outputs of a `Residual` network; outputs of 0 leave it as it is.

        Args:
            posterior: the law that is corrected.
            output: two arrays of the shape `network_shape`; where one number says all, the first counts.
            x_t: the noisy state.
        """
        del posterior, output, x_t
        raise ValueError(f"diffusion: expected one whose laws a Residual can move, got {type(self).__name__}")

    def simple_loss(self, posterior: dist.Distribution, x_0: Example, t: AnyTime) -> Float[Array, ""]:
        """The unweighted loss of a prediction at one x_t in nats, shape (): −log of the predicted law at x_0."""
        del t
        return -posterior.log_prob(x_0)

    @abstractmethod
    def step(self, x_s: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_t | x_s), exact; event shape that of `x_s`."""

    @abstractmethod
    def marginal(self, x_0: AnyExample, t: AnyTime) -> dist.Distribution:
        """q(x_t | x_0), exact; event shape that of `x_0`."""

    @abstractmethod
    def bridge(self, x_t: AnyExample, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_s | x_t, x_0), exact; event shape that of `x_t`."""

    @abstractmethod
    def average_bridge(
        self, x_t: AnyExample, posterior: dist.Distribution, t: AnyTime, s: AnyTime | None = None
    ) -> dist.Distribution:
        """The bridge averaged over a factorised `posterior` of x_0 given x_t: the kernel x_t → x_s it implies."""

    @abstractmethod
    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        """π, the law that q tends to and the chain starts from; event shape `event_shape`."""

    @abstractmethod
    def reverse_prior_step(self, x_t: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_t | x_s) π(x_s) / π(x_t): the reversal that is exact when the data are noise themselves."""

    @abstractmethod
    def marginal_noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Standard noise that `marginal_from_noise` turns into a draw of x_t."""

    @abstractmethod
    def noise_from_uniform(self, uniform: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Standard noise from uniform numbers in (0, 1), element by element."""

    @abstractmethod
    def mirror_noise(self, noise: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The antithetic partner of `noise`: of the same law, with opposite effect."""

    @abstractmethod
    def marginal_from_noise(self, noise: Float[Array, "*event"], x_0: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        """A draw from q(x_t | x_0), as a function of standard noise."""

    @abstractmethod
    def marginal_entropy(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """H_q(X^t | X^0 = x_0) in nats, exact, shape ()."""

    @abstractmethod
    def step_entropy(self, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> Float[Array, ""]:
        """H_q(X^t | X^s) in nats, exact, shape (); x_s averaged over q(x_s | x_0)."""

    @abstractmethod
    def expected_log_terminal(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """E log π(X^t) over q(x_t | x_0) in nats, exact, shape ()."""

    def log_null(self, x_0: AnyExample) -> Float[Array, ""]:
        """log π(x_0) in nats, shape (): the example as if it were noise."""
        return self.expected_log_terminal(x_0, 0.0)

    @abstractmethod
    def terminal_entropy(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """H(π) in nats, exact, shape ()."""

    def reverse_entropy_bounds(
        self, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Lower and upper bounds on H_q(X^s | X^t) in nats, shape () each.

        Averaged over the data's x_0 they bound the entropy of one step of the true reverse chain. The lower one
        always holds; the upper one needs H_q(X^t) ≥ H_q(X^s), which holds when the data have the noise law's second
        moment (Gaussian), mean activity (bits) or frequencies (classes), and for equally likely bits or classes always.
        Source: [2015] §2.6, eq. 24, App. A.
        """
        s = jnp.asarray(t) - 1 if s is None else s
        upper = self.step_entropy(x_0, t, s)
        lower = upper + self.marginal_entropy(x_0, s) - self.marginal_entropy(x_0, t)
        return lower, upper


class AbstractDiscreteDiffusion(AbstractDiffusion):
    """What families whose elements have a few values share: x_t is a function of uniform noise."""

    def marginal_noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Uniform noise on [0, 1)."""
        return jax.random.uniform(key, shape, dtype=self.schedule.times.dtype)

    def noise_from_uniform(self, uniform: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The numbers themselves."""
        return uniform.astype(self.schedule.times.dtype)

    def mirror_noise(self, noise: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """One minus the noise."""
        return 1 - noise
