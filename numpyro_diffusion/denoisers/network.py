"""Heads: what a network's output means.

A network may predict the noise ε, the data x_0 or the velocity √ᾱ ε − √(1 − ᾱ) x_0: linear functions of one another
given x_t, which differ in what an error of the network means at each noise level (Ho, Jain and Abbeel 2020, eq. 11;
Salimans and Ho 2022). The heads of Sohl-Dickstein et al. (2015, eqs. 64-65) are mean and variance of the kernel itself;
logits are those of bits or classes. The variance of a step is β_t, the bound β̃_t, or learned between them (Nichol and
Dhariwal 2021, eq. 15). Whatever a network says, the chain is a model with exact draws and an exact joint density; how
close it is to the data, training decides.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_choice, is_number, refusal
from .._shapes import AnyTime, Example, Time
from ..diffusions import AbstractDiffusion, GaussianDiffusion
from ..laws import normal
from .base import AbstractDenoiser
from .context import Context

Predicts = Literal["noise", "data", "velocity", "mean", "logits"]
Variance = Literal["beta", "beta_tilde", "learned"]
ComputeType = Literal["bfloat16", "float16", "float32"]


class Network(AbstractDenoiser):
    r"""A denoiser from any callable ``fn(x_t, t)`` on one unbatched example.

    The function sees `x_t` standardised by the diffusion (bits as 0.0 and 1.0, a class as a row of 0.0 with one 1.0, on
    a last axis) and the step `t` as a float, in the numbering of the chain it was trained for. With
    z = (x_t − loc)/scale, its output o means, by `predicts`:

    * ``"noise"``: ε, the noise in z = √ᾱ z_0 + √(1−ᾱ) ε ([DDPM 2020] eq. 11);
    * ``"data"``: z_0, the standardised data;
    * ``"velocity"``: √ᾱ ε − √(1−ᾱ) z_0 (Salimans & Ho 2022);
    * ``"mean"``: a pair of the 2015 heads (o^μ, o^Σ). Gaussian: Σ = σ(o^Σ + σ⁻¹(β_t)) and
      μ = (z − o^μ)√(1−Σ) + o^μ, which is [2015] eqs. 64-65 with the square root that the printed eq. 65 lacks, so
      that zero output is the forward kernel. Bits: one output, added to the logits of the forward kernel;
    * ``"logits"``: log-odds of each bit of x_0; of classes, the log probability of each, up to a constant.

    For ``"noise"``, ``"data"`` and ``"velocity"`` the variance of a step is β_t, the entropy bound β̃_t, or learned
    between the two, exp(v log β_t + (1−v) log β̃_t) with v = (o' + 1)/2 (Nichol & Dhariwal 2021, eq. 15); `fn` then
    returns the pair (o, o').

    Args:
        fn: the network; an `equinox.Module` is trained with the process, any other callable is used as it is.
        predicts: the meaning of its output.
        variance: of a reverse step; ignored by ``"mean"`` and ``"logits"``.
        clip: the least and the greatest value of an element of x_0, in data units; a prediction outside is moved to
            the nearer one ([DDPM 2020] code). Where it is moved, its gradient is 0. For ``"noise"``, ``"data"`` and
            ``"velocity"``; no clipping unless given.
        dtype: ``"bfloat16"`` (or ``"float16"``, ``"float32"``) for a network that computes in it: its floating arrays
            and its input are cast, the step stays as it is (a large one has no bfloat16), and outputs come back in
            the schedule's type, in which all else is computed. The arrays themselves, and what training does to
            them, keep their type. The network's own types unless given.
        told: of a network of p(x | c), the `Context` it is called with, ``fn(x_t, t, c)``, once given.

    Example:
        >>> network = nd.networks.MLP(jax.random.key(0), (3,), num_steps=20)
        >>> denoiser = nd.denoisers.Network(network, predicts="velocity")
        >>> process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(20)), denoiser, 3)
        >>> process.predict(jnp.zeros(3), 20).shape  # E[x_0 | x_20 = 0], before any training
        (3,)

    Raises:
        TypeError: a function that cannot be called, `clip` that is no pair of numbers.
        ValueError: an unknown name, `clip` that is no range or for another head, an output of another shape (when
            traced).
    """

    fn: Callable[..., Any]
    predicts: Predicts = eqx.field(static=True)
    variance: Variance = eqx.field(static=True)
    clip: tuple[float, float] | None = eqx.field(static=True, default=None)
    dtype: ComputeType | None = eqx.field(static=True, default=None)
    told: Context | None = None

    def __init__(
        self,
        fn: Callable[..., Any],
        predicts: Predicts = "noise",
        variance: Variance = "beta",
        clip: tuple[float, float] | None = None,
        dtype: ComputeType | None = None,
        told: Context | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a callable fn(x_t, t), got {fn!r}")
        self.fn = fn
        self.predicts = check_choice("predicts", predicts, ("noise", "data", "velocity", "mean", "logits"))
        self.variance = check_choice("variance", variance, ("beta", "beta_tilde", "learned"))
        self.clip = None if clip is None else _checked_clip(clip, self.predicts)
        kinds: tuple[ComputeType, ...] = ("bfloat16", "float16", "float32")
        self.dtype = None if dtype is None else check_choice("dtype", dtype, kinds)
        self.told = checked_told(told)

    @property
    def said(self) -> str:
        """Its function and what that predicts."""
        return f"Network ({type(self.fn).__name__}, {self.predicts})"

    @property
    def wanted(self) -> Context | None:
        """The context, if `fn` takes one."""
        return self.told

    def given(self, context: Any) -> "Network":
        """The same, told the context."""
        if self.told is None:
            return cast("Network", super().given(context))
        return eqx.tree_at(lambda denoiser: denoiser.told, self, self.told.holding(context))

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """Law of x_0 given x_t that the output stands for."""
        return self._posterior(diffusion, self._output(diffusion, x_t, t), x_t, t)

    def denoise(
        self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime, s: AnyTime | None = None
    ) -> tuple[dist.Distribution, dist.Distribution]:
        """Law of x_0 given x_t and kernel p(x_s | x_t), `s` = t − 1 unless given, from one call of the network."""
        output = self._output(diffusion, x_t, t)
        posterior = self._posterior(diffusion, output, x_t, t)
        kernel = self._kernel(diffusion, output, x_t, t, s)
        return posterior, diffusion.average_bridge(x_t, posterior, t, s) if kernel is None else kernel

    def outputs(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> tuple[Float[Array, "*output"], ...]:
        """The network's outputs: one, or two."""
        return self._output(diffusion, x_t, t)[: self._num_outputs(diffusion)]

    def with_outputs(self, outputs: tuple[Float[Array, "*output"], ...]) -> "Network":
        """The same heads with outputs that were computed before."""
        return Network(Said(outputs if len(outputs) > 1 else outputs[0]), self.predicts, self.variance, self.clip)

    @property
    def has_variance(self) -> bool:
        """Not where the output is a point, and the variance of a step is that of the schedule."""
        return self.predicts in ("mean", "logits") or self._learns_variance

    def objectives(self, diffusion: AbstractDiffusion) -> tuple[str, ...]:
        """The squared error does not see a learned variance of a Gaussian step; the hybrid loss is for it alone."""
        if diffusion.is_gaussian and self._learns_variance:
            return ("bound", "hybrid")
        return ("bound",) if diffusion.is_gaussian and self.predicts == "mean" else ("bound", "simple")

    @property
    def _learns_variance(self) -> bool:
        return self.variance == "learned" and self.predicts not in ("mean", "logits")

    def _num_outputs(self, diffusion: AbstractDiffusion) -> int:
        return 2 if self._learns_variance else diffusion.heads[self.predicts]

    def _output(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> tuple[Array, Array]:
        """What the network says: its first output, and its second one or 0. The only place that calls it."""
        fits, shape = diffusion.heads, diffusion.network_shape(jnp.shape(x_t))
        if not fits:
            kind = type(diffusion).__name__
            raise ValueError(
                f"denoiser: expected a Residual with {kind}, whose columns are of several kinds, got Network"
            )
        if self.predicts not in fits:
            raise ValueError(
                f"predicts: expected {' or '.join(map(repr, fits))} with {type(diffusion).__name__}, "
                f"got {self.predicts!r}"
            )
        out = self._call(diffusion.network_input(x_t), diffusion.schedule.time(t))
        if self._num_outputs(diffusion) == 1:
            return checked_output(out, shape), jnp.zeros(())
        if not (isinstance(out, (tuple, list)) or jnp.ndim(out)) or len(out) != 2:
            raise ValueError(
                f"fn: predicts={self.predicts!r}, variance={self.variance!r} needs a pair of outputs, "
                f"each of shape {shape}, got {jax.tree.map(jnp.shape, out)}"
            )
        return checked_output(out[0], shape), checked_output(out[1], shape)

    def _call(self, z: Array, time: Array) -> Any:
        """The network's answer, computed in `dtype`, in the type of `z`."""
        told = () if self.told is None else (self.told.required(),)
        if self.dtype is None:
            return self.fn(z, time, *told)
        lower = lambda leaf: leaf.astype(self.dtype) if eqx.is_inexact_array(leaf) else leaf
        out = jax.tree.map(lower, self.fn)(lower(z), time, *told)
        return jax.tree.map(lambda part: jnp.asarray(part, z.dtype), out)

    def _posterior(
        self, diffusion: AbstractDiffusion, output: tuple[Array, Array], x_t: Example, t: AnyTime
    ) -> dist.Distribution:
        if self.predicts == "logits":
            return diffusion.posterior_from_logits(output[0], x_t)
        if self.predicts == "mean":
            return diffusion.implied_posterior(diffusion.kernel_from_heads(output, x_t, t), x_t, t)
        diffusion = cast(GaussianDiffusion, diffusion)
        lost = diffusion.schedule.noise_variance(t)
        mean = self._prediction(diffusion, output[0], x_t, t)
        return normal(mean, lost * diffusion.scale**2 if self.variance == "beta" else 0.0)

    def _kernel(
        self, diffusion: AbstractDiffusion, output: tuple[Array, Array], x_t: Example, t: AnyTime, s: AnyTime | None
    ) -> Any:
        """p(x_s | x_t) where the output says more of it than the posterior does, else None."""
        if self.predicts == "mean":
            return diffusion.kernel_from_heads(output, x_t, t, s)
        if not self._learns_variance:
            return None
        diffusion = cast(GaussianDiffusion, diffusion)
        beta = diffusion.schedule.beta(t, s)
        prediction = self._prediction(diffusion, output[0], x_t, t)
        mean = diffusion.average_bridge(x_t, normal(prediction, 0.0), t, s).mean
        share = (output[1] + 1) / 2
        log_variance = share * jnp.log(beta) + (1 - share) * jnp.log(_least_variance(diffusion, t, s))
        return normal(mean, jnp.exp(log_variance) * diffusion.scale**2)

    def _prediction(self, diffusion: GaussianDiffusion, out: Array, x_t: Example, t: AnyTime) -> Array:
        """The prediction of x_0, in data units."""
        signal, sigma = (jnp.sqrt(part) for part in diffusion.schedule.signal_and_noise(t))
        z = diffusion.standardize(x_t)
        if self.predicts == "noise":
            out = (z - sigma * out) / signal
        elif self.predicts == "velocity":
            out = signal * z - sigma * out
        prediction = diffusion.unstandardize(out)
        return prediction if self.clip is None else jnp.clip(prediction, *self.clip)


def checked_told(told: Any) -> Context | None:
    """`told`, once it is a `Context` or None."""
    if told is not None and not isinstance(told, Context):
        raise TypeError(f"told: expected a denoisers.Context, got {told!r:.80}")
    return told


class Said(eqx.Module):
    """A network that gives one answer, whatever it is asked."""

    answer: Any

    def __call__(self, x_t: Float[Array, "*shown"], t: Time, *context: Array) -> Any:
        """The answer."""
        del x_t, t, context
        return self.answer


def _least_variance(diffusion: GaussianDiffusion, t: ArrayLike, s: ArrayLike | None) -> Array:
    """β̃, floored at its value for the second step: at s = 0 it is 0 and its logarithm useless."""
    s = jnp.asarray(t) - 1 if s is None else s
    _, _, variance = diffusion.bridge_coefficients(t, s)
    _, _, second = diffusion.bridge_coefficients(2.0, 1.0)
    return jnp.where(jnp.asarray(s) > 0, variance, second)


def _checked_clip(clip: Any, predicts: str) -> tuple[float, float]:
    if predicts in ("mean", "logits"):
        raise ValueError(f"clip: expected None with predicts={predicts!r}, got {clip!r}")
    right_type = isinstance(clip, tuple | list) and all(map(is_number, clip))
    if not right_type or len(clip) != 2 or not clip[0] < clip[1]:
        raise refusal(f"clip: expected the least and the greatest value, (low, high), got {clip!r}", right_type)
    return float(clip[0]), float(clip[1])


def checked_output(out: Any, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """A network's output, once it has the shape of what the network is given."""
    if jnp.shape(out) != shape:
        raise ValueError(f"fn: expected an output of the shape of its input, {shape}, got {jnp.shape(out)}")
    return out
