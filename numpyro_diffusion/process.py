"""The reverse process p: noise, a denoiser, and the last step to the data.

p(x_T) p(x_{T−1} | x_T) … p(x_0 | x_1) with p(x_T) = π (Sohl-Dickstein et al. 2015, eqs. 4-5). The inner kernels are the
forward bridge averaged over the denoiser's law of x_0 given x_t; the last step is a part of its own (`last_steps`). The
chain is a model in its own right, with *exact* draws and an *exact* joint density; how near it is to the data depends
on the denoiser and on T. Everything is written for one example, and batched in `kernel` and `predict`.
"""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Shaped
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape

from ._checks import check_event, check_real, check_scalar, check_sizes, check_step, check_time, is_concrete
from ._shapes import AnyTime, Example
from .denoisers import AbstractDenoiser
from .diffusions import AbstractDiffusion
from .last_steps import AbstractLastStep as AbstractLastStep
from .last_steps import DiscretisedStep as DiscretisedStep
from .last_steps import FixedStep as FixedStep
from .last_steps import ForwardStep as ForwardStep
from .last_steps import LearnedStep as LearnedStep
from .last_steps import MixedStep as MixedStep
from .last_steps import named_last_step
from .laws import UnknownLaw
from .moments import LARGEST_WHOLE, Moments


class ReverseProcess(eqx.Module):
    """The Markov chain p(x_T) p(x_{T-1} | x_T) … p(x_0 | x_1), with p(x_T) = π.

    Args:
        diffusion: the forward process that it inverts.
        denoiser: predicts clean data from noisy data.
        event_shape: shape of one example.
        last_step: ``"learned"`` for `LearnedStep`, ``"forward"`` for the 2015 paper's fixed `ForwardStep`,
            ``"discretised"`` for a `DiscretisedStep` of 256 levels around the learned one, or a module with that
            interface.
        moments: the covariance of x_0, which twists rely on, if it is known; `nd.fit` and `nd.fit_prior` keep that
            of their data, and posterior samplers take it from an exact denoiser or from the prior's own draws unless
            given.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> process.kernel(jnp.zeros(2), 20).event_shape  # p(x_19 | x_20), a NumPyro distribution
        (2,)

    Raises:
        TypeError: a part of the wrong kind; a denoiser whose laws of x_0 given x_t are of another family.
        ValueError: a denoiser whose answer has another shape than the example.
    """

    diffusion: AbstractDiffusion
    denoiser: AbstractDenoiser
    last_step: AbstractLastStep
    event_shape: tuple[int, ...] = eqx.field(static=True)
    moments: Moments | None = None

    def __init__(
        self,
        diffusion: AbstractDiffusion,
        denoiser: AbstractDenoiser,
        event_shape: tuple[int, ...] | int,
        *,
        last_step: Literal["learned", "forward", "discretised"] | AbstractLastStep = "learned",
        moments: Moments | None = None,
    ) -> None:
        if not isinstance(diffusion, AbstractDiffusion):
            raise TypeError(f"diffusion: expected a GaussianDiffusion or one of another family, got {diffusion!r}")
        if not isinstance(denoiser, AbstractDenoiser):
            raise TypeError(f"denoiser: expected one from numpyro_diffusion.denoisers, got {denoiser!r}")
        self.diffusion, self.denoiser = diffusion, denoiser
        self.event_shape = check_sizes("event_shape", (event_shape,) if isinstance(event_shape, int) else event_shape)
        self.last_step = named_last_step(last_step, diffusion, denoiser)
        if moments is not None and not isinstance(moments, Moments):
            raise TypeError(f"moments: expected a Moments, got {moments!r:.80}")
        self.moments = moments
        self._check_shapes()

    def facts(self) -> dict[str, object]:
        """What a prior shows of it."""
        return {
            "diffusion": type(self.diffusion).__name__, "num_steps": self.num_steps, "denoiser": self.denoiser.said
        }  # fmt: skip

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.diffusion.num_steps

    @property
    def support(self) -> constraints.Constraint:
        """Support of x_0, of the event's rank."""
        return constraints.independent(self.last_step.element_support(self.diffusion), len(self.event_shape))

    @property
    def num_levels(self) -> int | None:
        """How many whole numbers an element of x_0 can be, if a `DiscretisedStep` makes it one."""
        return self.last_step.num_values

    @property
    def is_discrete(self) -> bool:
        """Whether the law of x_0 is a probability mass, of bits, classes or levels, and not a density."""
        return self.last_step.element_support(self.diffusion).is_discrete

    @property
    def is_normalised(self) -> bool:
        """Whether the chain as it runs has the process's law; that of a product of priors needs weights."""
        return self.denoiser.is_normalised

    @property
    def is_smooth(self) -> bool:
        """Whether the chain is one of normal steps, the last one too, so that its draws are smooth in their noise."""
        return self.diffusion.is_gaussian and not self.is_discrete and self.is_normalised

    def check_values(self, name: str, x_0: ArrayLike) -> None:
        """Raise ``ValueError`` where a known `x_0` is off the support of its elements; `name` is the argument's."""
        self.last_step.check_values(name, x_0, self.diffusion)

    @property
    def has_whole_covariance(self) -> bool:
        """Whether the covariance of x_0 is known in full, or small enough to be estimated so (`LARGEST_WHOLE`)."""
        if self.moments is not None:
            return self.moments.basis is not None
        return math.prod(self.event_shape) <= LARGEST_WHOLE

    def given(self, context: Any) -> "ReverseProcess":
        """The process of p(x | c), whose denoiser is told one context.

        Raises:
            ValueError: a denoiser that takes none, or another.
        """
        return eqx.tree_at(lambda process: process.denoiser, self, self.denoiser.given(context))

    def terminal(self) -> dist.Distribution:
        """p(x_T) = π; for a product of priors a power of it."""
        return self.denoiser.terminal(self.diffusion, self.event_shape)

    def kernel(self, x_t: Shaped[ArrayLike, "..."], t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """p(x_s | x_t), `s` = t − 1 unless given; `s` = 0 is the last step and belongs to t = 1.

        The value of a traced `s` cannot be checked: where it turns out to be 0 the answer is the last step's kernel,
        p(x_0 | x_1) taken at `x_t`, even if `t` is not 1.

        Args:
            x_t: shape (*batch, *event).
            t: scalar in (0, T].
            s: scalar in [0, t).

        Returns:
            A distribution of batch shape `batch` and event shape `event`.

        Raises:
            ValueError: `x_t` does not end in the event shape, or `s` is 0 and `t` is not 1, neither of them traced; a
                traced `s` with a last step of whole numbers, which is of another kind than the other steps.
        """
        x_t = self._state(x_t)
        batch = check_event("x_t", x_t.shape, self.event_shape)
        check_scalar("t", t)
        if s is not None:
            check_scalar("s", s)
        check_step(t, s, self.num_steps)
        s = t - 1 if s is None else s
        if is_concrete(s) and is_concrete(t) and np.any(np.asarray(s) >= np.asarray(t)):
            raise ValueError(f"t, s: expected s below t, got t = {t} and s = {s}")
        step = lambda x: self._kernel(x, t, s)
        for _ in batch:
            step = jax.vmap(step)
        return promote_batch_shape(step(x_t)) if batch else step(x_t)

    def predict(self, x_t: Shaped[ArrayLike, "*example"], t: AnyTime) -> Float[Array, "*example"]:
        """E[x_0 | x_t] as the denoiser has it; shapes as in `kernel`, returns shape (*batch, *event)."""
        x_t = self._state(x_t)
        check_time("t", t, 0, self.num_steps)
        predict = lambda x: self.denoiser.posterior(self.diffusion, x, t).mean
        for _ in check_event("x_t", x_t.shape, self.event_shape):
            predict = jax.vmap(predict)
        return predict(x_t)

    def _state(self, x_t: ArrayLike) -> Array:
        """x_t as an array, once it is one of real numbers on the diffusion's support."""
        check_real("x_t", x_t)
        self.diffusion.check_state("x_t", x_t)
        return jnp.asarray(x_t)

    def last_kernel(self, x_1: Example) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        return self.last_step.kernel(self.diffusion, self.denoiser, x_1)

    def inner_kernel(self, x_t: Example, t: AnyTime, s: AnyTime) -> dist.Distribution:
        """p(x_s | x_t) for one unbatched example and s ≥ 1."""
        return self.denoiser.reverse(self.diffusion, x_t, t, s)

    def _kernel(self, x_t: Array, t: ArrayLike, s: ArrayLike) -> dist.Distribution:
        if not is_concrete(s):
            if self.last_step.rounds:
                raise ValueError(
                    "s: expected a known step, since the last one rounds to whole numbers, got a traced one"
                )
            # One traced `s` may be either kind of step; both kernels have one family, so parameters can be chosen.
            last, inner = self.last_kernel(x_t), self.inner_kernel(x_t, t, s)
            return jax.tree.map(lambda a, b: jnp.where(s == 0, a, b), last, inner)
        if np.asarray(s) != 0:
            return self.inner_kernel(x_t, t, s)
        if is_concrete(t) and np.asarray(t) != 1:
            raise ValueError(f"t, s: expected t = 1 for the last step, s = 0, got t = {t}")
        return self.last_kernel(x_t)

    def _check_shapes(self) -> None:
        example = jax.ShapeDtypeStruct(self.event_shape, self.diffusion.schedule.times.dtype)
        wanted = self.denoiser.wanted
        open_ = wanted is not None and wanted.value is None
        denoiser = self.denoiser.given(wanted.example) if open_ else self.denoiser

        def answers(x: Array) -> tuple[Array, Array]:
            posterior, kernel = denoiser.denoise(self.diffusion, x, 2.0, 1.0)
            self.diffusion.average_bridge(x, posterior, 2.0, 1.0)  # refuses laws of another family
            return posterior.mean, kernel.mean

        try:
            shapes = jax.eval_shape(answers, example)
        except UnknownLaw as error:
            raise TypeError(f"denoiser: expected laws of the diffusion's family; {error}") from error
        except TypeError as error:
            raise ValueError(f"denoiser: expected one for examples of shape {self.event_shape}, got {error}") from error
        for answer in shapes:
            if answer.shape != self.event_shape:
                raise ValueError(
                    f"denoiser: expected answers of the event shape {self.event_shape}, got {answer.shape}"
                )


def trainable(process: ReverseProcess) -> ReverseProcess:
    """A tree of booleans like `process`: which arrays training may change.

    These are those that the denoiser and the schedule name, and the floating ones of the last step.
    """
    mask = jax.tree.map(lambda _: False, process)
    last = jax.tree.map(eqx.is_inexact_array, process.last_step)
    found = (process.denoiser.trainable(), last, process.diffusion.schedule.trainable())
    return eqx.tree_at(lambda p: (p.denoiser, p.last_step, p.diffusion.schedule), mask, found)
