"""The reverse process p: noise, a denoiser, and the last step to the data."""

import math
from abc import abstractmethod
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape

from ._checks import (
    check_binary,
    check_choice,
    check_count,
    check_event,
    check_real,
    check_scalar,
    check_sizes,
    check_step,
    check_time,
    is_concrete,
)
from .denoisers import AbstractDenoiser, Network, Residual
from .denoisers.base import normal
from .diffusions import AbstractDiffusion, GaussianDiffusion
from .discretised import DiscretisedNormal
from .moments import LARGEST_WHOLE, Moments
from .schedules import AbstractLearnedSchedule


class AbstractLastStep(eqx.Module):
    """The kernel p(x_0 | x_1), the one step that no bridge can teach."""

    @abstractmethod
    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Array) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""

    def element_support(self, diffusion: AbstractDiffusion) -> constraints.Constraint:
        """Support of one element of x_0: that of the noise unless a step says otherwise."""
        return diffusion.element_support

    def log_null(self, diffusion: AbstractDiffusion, x_0: Array) -> Array:
        """log π(x_0) in nats, shape (): the example as if it were noise, in the measure of the step's `log_prob`."""
        return diffusion.expected_log_terminal(x_0, 0.0)


class ForwardStep(AbstractLastStep):
    """The fixed kernel of [2015] App. B, eq. 44: q(x_1 | x_0) π(x_0) / π(x_1), for data N(√α_1 x_1, β_1)."""

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Array) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        return diffusion.reverse_prior_step(x_1, 1.0, 0.0)


class LearnedStep(AbstractLastStep):
    """The denoiser's own step to t = 0, with a trainable scale where the denoiser has none.

    Args:
        log_scale: log of the standard deviation in units of the diffusion's `scale`, scalar or broadcastable to one
            example; the mean is then the prediction E[x_0 | x_1]. None: the denoiser's own kernel (learned variance,
            bits, exact oracles).
    """

    log_scale: Array | None

    def __init__(self, log_scale: ArrayLike | None = None) -> None:
        self.log_scale = None if log_scale is None else jnp.asarray(log_scale, dtype=float)

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Array) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        if self.log_scale is None:
            return denoiser.reverse(diffusion, x_1, 1.0, 0.0)
        diffusion = _gaussian(diffusion, "log_scale: only GaussianDiffusion has a scale")
        mean = denoiser.posterior(diffusion, x_1, 1.0).mean
        return normal(mean, jnp.square(diffusion.scale * jnp.exp(self.log_scale)))


class FixedStep(AbstractLastStep):
    """N(E[x_0 | x_1], σ_1²) with a σ_1 that is not trained, as in [DDPM 2020].

    Args:
        variance: ``"beta"`` for β_1; ``"beta_tilde"`` for β̃_2, which takes the place of β̃_1 = 0, and in the code of
            [DDPM 2020] that of β_1 too.

    Raises:
        ValueError: an unknown name; no Gaussian diffusion (when called).
    """

    variance: Literal["beta", "beta_tilde"] = eqx.field(static=True)

    def __init__(self, variance: Literal["beta", "beta_tilde"] = "beta_tilde") -> None:
        self.variance = check_choice("variance", variance, ("beta", "beta_tilde"))

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Array) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        gaussian = _gaussian(diffusion)
        if self.variance == "beta":
            variance = gaussian.schedule.noise_variance(1)
        else:
            variance = gaussian.bridge_coefficients(2.0, 1.0)[2]
        return normal(denoiser.posterior(diffusion, x_1, 1.0).mean, variance * gaussian.scale**2)


class DiscretisedStep(AbstractLastStep):
    """A Gaussian last step rounded to whole numbers 0 … num_levels − 1: grey levels ([DDPM 2020] eq. 13).

    p(x_0 | x_1) is a probability mass, element by element, and so is the law of x_0: K bounds a log probability, −K is
    the length of a code. Data are in levels; `loc` and `scale` of the diffusion bring them to the network's units, as
    127.5 and 127.5 do for 256 levels and images in [−1, 1]. No Jacobian of theirs is counted.

    Args:
        num_levels: how many levels there are, at least 2.
        step: the Gaussian last step that is rounded, such as `FixedStep`; `ReverseProcess` takes the one that it names
            ``"learned"`` unless given.

    Raises:
        ValueError: `num_levels` is no whole number of at least 2; `step` is no last step, or has bits.
    """

    num_levels: int = eqx.field(static=True)
    step: AbstractLastStep | None

    def __init__(self, num_levels: int = 256, step: AbstractLastStep | None = None) -> None:
        self.num_levels = check_count("num_levels", num_levels, 2)
        if step is not None and (not isinstance(step, AbstractLastStep) or isinstance(step, DiscretisedStep)):
            raise ValueError(f"step: expected a last step to round, such as FixedStep(), got {step!r}")
        self.step = step

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Array) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        step = LearnedStep() if self.step is None else self.step
        return self._rounded(step.kernel(_gaussian(diffusion), denoiser, x_1), jnp.shape(x_1))

    def element_support(self, diffusion: AbstractDiffusion) -> constraints.Constraint:
        """Whole numbers from 0 to num_levels − 1."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def log_null(self, diffusion: AbstractDiffusion, x_0: Array) -> Array:
        """Log probability of rounded noise in nats, shape ()."""
        return self._rounded(diffusion.terminal(jnp.shape(x_0)), jnp.shape(x_0)).log_prob(x_0)

    def _rounded(self, law: dist.Distribution, shape: tuple[int, ...]) -> dist.Distribution:
        each = law.base_dist
        loc = jnp.broadcast_to(each.loc, shape)
        return DiscretisedNormal(loc, each.scale, self.num_levels, validate_args=False).to_event(len(shape))


class ReverseProcess(eqx.Module):
    """The Markov chain p(x_T) p(x_{T-1} | x_T) … p(x_0 | x_1), with p(x_T) = π.

    Args:
        diffusion: the forward process that it inverts.
        denoiser: predicts clean data from noisy data.
        event_shape: shape of one example.
        last_step: ``"learned"`` for `LearnedStep`, ``"forward"`` for the 2015 paper's fixed `ForwardStep`,
            ``"discretised"`` for a `DiscretisedStep` of 256 levels around the learned one, or a module with that
            interface.
        moments: the covariance of x_0, which twists rely on, if it is known; `nd.fit_prior` keeps that of its data,
            and posterior samplers take it from an exact denoiser or from the prior's own draws unless given.

    Raises:
        ValueError: a part of the wrong kind, or a denoiser whose answer has another shape than the example.
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
            raise ValueError(f"diffusion: expected a GaussianDiffusion or BinomialDiffusion, got {diffusion!r}")
        if not isinstance(denoiser, AbstractDenoiser):
            raise ValueError(f"denoiser: expected one from numpyro_diffusion.denoisers, got {denoiser!r}")
        self.diffusion, self.denoiser = diffusion, denoiser
        self.event_shape = check_sizes("event_shape", (event_shape,) if isinstance(event_shape, int) else event_shape)
        self.last_step = _named_last_step(last_step, diffusion, denoiser)
        self.moments = moments
        self._check_shapes()

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
        return self.last_step.num_levels if isinstance(self.last_step, DiscretisedStep) else None

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
        """p(x_T) = π."""
        return self.diffusion.terminal(self.event_shape)

    def kernel(self, x_t: ArrayLike, t: ArrayLike, s: ArrayLike | None = None) -> dist.Distribution:
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

    def predict(self, x_t: ArrayLike, t: ArrayLike) -> Array:
        """E[x_0 | x_t] as the denoiser has it; shapes as in `kernel`, returns shape (*batch, *event)."""
        x_t = self._state(x_t)
        check_time("t", t, 0, self.num_steps)
        predict = lambda x: self.denoiser.posterior(self.diffusion, x, t).mean
        for _ in check_event("x_t", x_t.shape, self.event_shape):
            predict = jax.vmap(predict)
        return predict(x_t)

    def _state(self, x_t: ArrayLike) -> Array:
        """x_t as an array, once it is one of real numbers, and of bits where the diffusion is one of bits."""
        check_real("x_t", x_t)
        if self.diffusion.element_support.is_discrete:
            check_binary("x_t", x_t)
        return jnp.asarray(x_t)

    def last_kernel(self, x_1: Array) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        return self.last_step.kernel(self.diffusion, self.denoiser, x_1)

    def inner_kernel(self, x_t: Array, t: ArrayLike, s: ArrayLike) -> dist.Distribution:
        """p(x_s | x_t) for one unbatched example and s ≥ 1."""
        return self.denoiser.reverse(self.diffusion, x_t, t, s)

    def _kernel(self, x_t: Array, t: ArrayLike, s: ArrayLike) -> dist.Distribution:
        if not is_concrete(s):
            if self.num_levels is not None:
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
            return posterior.mean, kernel.mean

        try:
            shapes = jax.eval_shape(answers, example)
        except TypeError as error:
            raise ValueError(f"denoiser: expected one for examples of shape {self.event_shape}, got {error}") from error
        for answer in shapes:
            if answer.shape != self.event_shape:
                raise ValueError(
                    f"denoiser: expected answers of the event shape {self.event_shape}, got {answer.shape}"
                )


def trainable(process: ReverseProcess) -> ReverseProcess:
    """A tree of booleans like `process`: which arrays training may change.

    These are the floating arrays of the denoiser, without a `Residual`'s baseline, and of the last step, and a learned
    schedule's steps.
    """
    mask = jax.tree.map(lambda _: False, process)
    parts = lambda p: (p.denoiser, p.last_step)
    mask = eqx.tree_at(parts, mask, jax.tree.map(eqx.is_inexact_array, parts(process)))
    if isinstance(process.denoiser, Residual):
        known = jax.tree.map(lambda _: False, process.denoiser.baseline)
        mask = eqx.tree_at(lambda p: p.denoiser._baseline, mask, known)
    if isinstance(process.diffusion.schedule, AbstractLearnedSchedule):
        mask = eqx.tree_at(lambda p: p.diffusion.schedule.logits, mask, True)
    return mask


def _named_last_step(name: Any, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> AbstractLastStep:
    if name == "discretised":
        name = DiscretisedStep()
    if isinstance(name, DiscretisedStep):
        _gaussian(diffusion, "last_step: whole numbers need a GaussianDiffusion")
        return name if name.step is not None else DiscretisedStep(name.num_levels, _learned(diffusion, denoiser))
    if isinstance(name, AbstractLastStep):
        return name
    if name == "forward":
        return ForwardStep()
    if name != "learned":
        raise ValueError(f"last_step: expected 'learned', 'forward', 'discretised' or a last step module, got {name!r}")
    return _learned(diffusion, denoiser)


def _learned(diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> LearnedStep:
    """With a scale of its own where the denoiser has none."""
    predicts_point = isinstance(denoiser, Network) and denoiser.predicts in ("noise", "data", "velocity")
    learned_variance = isinstance(denoiser, Network) and denoiser.variance == "learned"
    if not predicts_point or learned_variance or not isinstance(diffusion, GaussianDiffusion):
        return LearnedStep()
    return LearnedStep(0.5 * jnp.log(diffusion.schedule.noise_variance(1)))


def _gaussian(
    diffusion: AbstractDiffusion, expected: str = "diffusion: expected a GaussianDiffusion"
) -> GaussianDiffusion:
    if not isinstance(diffusion, GaussianDiffusion):
        raise ValueError(f"{expected}, got {type(diffusion).__name__}")
    return diffusion
