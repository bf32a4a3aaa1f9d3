"""Heads: what a network's output means."""

from collections.abc import Callable
from typing import Any, Literal, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.discrete import BernoulliLogits

from .._checks import check_choice
from ..diffusions import AbstractDiffusion, BinomialDiffusion, GaussianDiffusion
from ..diffusions.binomial import posterior_logits
from .base import AbstractDenoiser, normal

Predicts = Literal["noise", "data", "velocity", "mean", "logits"]
Variance = Literal["beta", "beta_tilde", "learned"]


class Network(AbstractDenoiser):
    r"""A denoiser from any callable ``fn(x_t, t)`` on one unbatched example.

    The function sees `x_t` standardised by the diffusion (bits as 0.0 and 1.0) and the step `t` as a float, in the
    numbering of the chain it was trained for. With z = (x_t − loc)/scale, its output o means, by `predicts`:

    * ``"noise"``: ε, the noise in z = √ᾱ z_0 + √(1−ᾱ) ε ([DDPM 2020] eq. 11);
    * ``"data"``: z_0, the standardised data;
    * ``"velocity"``: √ᾱ ε − √(1−ᾱ) z_0 (Salimans & Ho 2022);
    * ``"mean"``: a pair of the 2015 heads (o^μ, o^Σ). Gaussian: Σ = σ(o^Σ + σ⁻¹(β_t)) and
      μ = (z − o^μ)√(1−Σ) + o^μ, which is [2015] eqs. 64-65 with the square root that the printed eq. 65 lacks, so
      that zero output is the forward kernel. Bits: one output, added to the logits of the forward kernel;
    * ``"logits"``: log-odds of each bit of x_0.

    For ``"noise"``, ``"data"`` and ``"velocity"`` the variance of a step is β_t, the entropy bound β̃_t, or learned
    between the two, exp(v log β_t + (1−v) log β̃_t) with v = (o' + 1)/2 (Nichol & Dhariwal 2021, eq. 15); `fn` then
    returns the pair (o, o').

    Args:
        fn: the network; an `equinox.Module` is trained with the process, any other callable is used as it is.
        predicts: the meaning of its output.
        variance: of a reverse step; ignored by ``"mean"`` and ``"logits"``.

    Raises:
        ValueError: an unknown name, a function that cannot be called, an output of another shape (when traced).
    """

    fn: Callable[[Array, Array], Any]
    predicts: Predicts = eqx.field(static=True)
    variance: Variance = eqx.field(static=True)

    def __init__(
        self, fn: Callable[[Array, Array], Any], predicts: Predicts = "noise", variance: Variance = "beta"
    ) -> None:
        if not callable(fn):
            raise ValueError(f"fn: expected a callable fn(x_t, t), got {fn!r}")
        self.fn = fn
        self.predicts = check_choice("predicts", predicts, ("noise", "data", "velocity", "mean", "logits"))
        self.variance = check_choice("variance", variance, ("beta", "beta_tilde", "learned"))

    def posterior(self, diffusion: AbstractDiffusion, x_t: Array, t: ArrayLike) -> dist.Distribution:
        """Law of x_0 given x_t that the output stands for."""
        if isinstance(diffusion, BinomialDiffusion):
            return self._bits(diffusion, x_t, t)
        if not isinstance(diffusion, GaussianDiffusion) or self.predicts == "logits":
            raise ValueError(f"predicts: {self.predicts!r} does not fit {type(diffusion).__name__}")
        if self.predicts == "mean":
            return self._implied(diffusion, self.reverse(diffusion, x_t, t), x_t, t)
        mean, _ = self._predict(diffusion, x_t, t)
        lost = diffusion.schedule.noise_variance(t)
        return normal(mean, lost * diffusion.scale**2 if self.variance == "beta" else 0.0)

    def reverse(
        self, diffusion: AbstractDiffusion, x_t: Array, t: ArrayLike, s: ArrayLike | None = None
    ) -> dist.Distribution:
        """The kernel p(x_s | x_t) that the output stands for; `s` = t − 1 unless given."""
        if isinstance(diffusion, BinomialDiffusion) and self.predicts == "mean":
            return self._free_bits(diffusion, x_t, t, s)
        if isinstance(diffusion, BinomialDiffusion) or (self.predicts != "mean" and self.variance != "learned"):
            return super().reverse(diffusion, x_t, t, s)
        diffusion = cast(GaussianDiffusion, diffusion)
        beta, z = diffusion.schedule.beta(t, s), diffusion.standardize(x_t)
        if self.predicts == "mean":
            shift, spread = self._pair(diffusion, x_t, t)
            variance = jax.nn.sigmoid(spread + jnp.log(beta) - jnp.log1p(-beta))
            pull = variance / (1 + jnp.sqrt(1 - variance))  # 1 − √(1−Σ), exact for small Σ too
            mean = diffusion.unstandardize(z + pull * (shift - z))
            return normal(mean, variance * diffusion.scale**2)
        prediction, mix = self._predict(diffusion, x_t, t)
        mean = diffusion.average_bridge(x_t, normal(prediction, 0.0), t, s).mean
        share = (mix + 1) / 2
        log_variance = share * jnp.log(beta) + (1 - share) * jnp.log(_least_variance(diffusion, t, s))
        return normal(mean, jnp.exp(log_variance) * diffusion.scale**2)

    def _predict(self, diffusion: GaussianDiffusion, x_t: Array, t: ArrayLike) -> tuple[Array, Array]:
        """The prediction of x_0 in data units, and the second output where the variance is learned."""
        if self.variance == "learned":
            out, mix = self._pair(diffusion, x_t, t)
        else:
            out, mix = self._call(diffusion.standardize(x_t), diffusion, t), jnp.zeros(())
            _check_output(out, jnp.shape(x_t))
        kept, lost = jnp.sqrt(diffusion.schedule.alpha_bar(t)), jnp.sqrt(diffusion.schedule.noise_variance(t))
        z = diffusion.standardize(x_t)
        if self.predicts == "noise":
            out = (z - lost * out) / kept
        elif self.predicts == "velocity":
            out = kept * z - lost * out
        return diffusion.unstandardize(out), mix

    def _pair(self, diffusion: GaussianDiffusion, x_t: Array, t: ArrayLike) -> tuple[Array, Array]:
        out = self._call(diffusion.standardize(x_t), diffusion, t)
        if not (isinstance(out, (tuple, list)) or jnp.ndim(out)) or len(out) != 2:
            raise ValueError(
                f"fn: predicts={self.predicts!r}, variance={self.variance!r} needs a pair of outputs, "
                f"each of shape {jnp.shape(x_t)}, got {jax.tree.map(jnp.shape, out)}"
            )
        _check_output(out[0], jnp.shape(x_t))
        _check_output(out[1], jnp.shape(x_t))
        return out[0], out[1]

    def _call(self, z: Array, diffusion: AbstractDiffusion, t: ArrayLike) -> Any:
        return self.fn(z, diffusion.schedule.time(t))

    def _bit_logits(self, diffusion: BinomialDiffusion, x_t: Array, t: ArrayLike) -> Array:
        out = self._call(jnp.asarray(x_t, dtype=diffusion.schedule.times.dtype), diffusion, t)
        _check_output(out, jnp.shape(x_t))
        return out

    def _bits(self, diffusion: BinomialDiffusion, x_t: Array, t: ArrayLike) -> dist.Distribution:
        if self.predicts == "logits":
            logits = self._bit_logits(diffusion, x_t, t)
            return BernoulliLogits(logits, validate_args=False).to_event(jnp.ndim(x_t))
        if self.predicts != "mean":
            raise ValueError(f"predicts: expected 'logits' or 'mean' with BinomialDiffusion, got {self.predicts!r}")
        reverse = self._free_bits(diffusion, x_t, t, None).mean
        on = diffusion.bridge(x_t, jnp.ones_like(reverse), t).mean
        off = diffusion.bridge(x_t, jnp.zeros_like(reverse), t).mean
        one = jnp.clip((reverse - off) / (on - off), 1e-6, 1 - 1e-6)
        return BernoulliLogits(jnp.log(one) - jnp.log1p(-one), validate_args=False).to_event(jnp.ndim(x_t))

    def _free_bits(
        self, diffusion: BinomialDiffusion, x_t: Array, t: ArrayLike, s: ArrayLike | None
    ) -> dist.Distribution:
        forward = posterior_logits(diffusion.reverse_prior_step(x_t, t, s))
        logits = forward + self._bit_logits(diffusion, x_t, t)
        return BernoulliLogits(logits, validate_args=False).to_event(jnp.ndim(x_t))

    def _implied(
        self, diffusion: GaussianDiffusion, kernel: dist.Distribution, x_t: Array, t: ArrayLike
    ) -> dist.Distribution:
        """The x_0 whose bridge has the kernel's mean; its variance from the kernel's, at least 0."""
        from_data, from_noise, variance = diffusion.bridge_coefficients(t)
        mean = (diffusion.standardize(kernel.mean) - from_noise * diffusion.standardize(x_t)) / from_data
        excess = kernel.variance / diffusion.scale**2 - variance
        spread = jnp.maximum(excess, 0.0) / from_data**2
        return normal(diffusion.unstandardize(mean), spread * diffusion.scale**2)


def _least_variance(diffusion: GaussianDiffusion, t: ArrayLike, s: ArrayLike | None) -> Array:
    """β̃, floored at its value for the second step: at s = 0 it is 0 and its logarithm useless."""
    s = jnp.asarray(t) - 1 if s is None else s
    _, _, variance = diffusion.bridge_coefficients(t, s)
    _, _, second = diffusion.bridge_coefficients(2.0, 1.0)
    return jnp.where(jnp.asarray(s) > 0, variance, second)


def _check_output(out: Any, shape: tuple[int, ...]) -> None:
    if jnp.shape(out) != shape:
        raise ValueError(f"fn: expected an output of the shape of x_t, {shape}, got {jnp.shape(out)}")
