"""A network that learns what a simple model of the data leaves."""

from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from .. import laws
from ..diffusions import AbstractDiffusion, require_gaussian
from .base import AbstractDenoiser
from .context import Context
from .network import Said, checked_output, checked_told

LARGEST_CHANGE = 4.0  # of the log variance


class Residual(AbstractDenoiser):
    r"""A baseline's answer, moved by a network in units of the baseline's own uncertainty.

    With mean m and standard deviation s of the baseline's law of x_0 given x_t, element by element, and the network's
    outputs o and v, the prediction is m − s o with the variance s² exp(v), v between ±4. Outputs of zero are the
    baseline, in samples, K and twists. Where the baseline is the noise law itself, o is the velocity of a `Network`
    (Salimans and Ho 2022); EDM (Karras et al. 2022) preconditions by one number for all elements.

    Args:
        fn: ``fn(x_t, t)`` on one example standardised by the diffusion, and the step as a float, which returns the pair
            (o, v); an `equinox.Module` is trained with the process, any other callable is used as it is.
        baseline: an exact denoiser, such as `FullGaussianMixture`; never trained.
        told: of p(x | c), the `Context` that `fn` is called with, ``fn(x_t, t, c)``; a `Conditional` baseline is told
            the same.

    Raises:
        ValueError: a function that cannot be called, a baseline that is no denoiser, an output of another shape (when
            traced).
    """

    fn: Callable[..., Any]
    _baseline: AbstractDenoiser
    told: Context | None = None

    def __init__(self, fn: Callable[..., Any], baseline: AbstractDenoiser, told: Context | None = None) -> None:
        if not callable(fn):
            raise ValueError(f"fn: expected a callable fn(x_t, t), got {fn!r}")
        if not isinstance(baseline, AbstractDenoiser):
            raise ValueError(f"baseline: expected an exact denoiser, got {baseline!r}")
        self.fn, self._baseline, self.told = fn, baseline, checked_told(told)
        if told is None and baseline.wanted is not None:
            raise ValueError("told: expected the Context of a baseline that has one, got None")

    @property
    def wanted(self) -> Context | None:
        """The context, if `fn` takes one."""
        return self.told

    def given(self, context: Any) -> "Residual":
        """The same, network and baseline told the context."""
        if self.told is None:
            return cast("Residual", super().given(context))
        return eqx.tree_at(lambda denoiser: denoiser.told, self, self.told.holding(context))

    @property
    def baseline(self) -> AbstractDenoiser:
        """The simple model, told the context if there is one; a constant but for that."""
        arrays, static = eqx.partition(self._baseline, eqx.is_inexact_array)
        fixed = eqx.combine(jax.tree.map(jax.lax.stop_gradient, arrays), static)
        if self.told is None or self.told.value is None or fixed.wanted is None:
            return fixed
        return fixed.given(self.told.value)  # another unknown may be in it: its gradient goes on

    def posterior(self, diffusion: AbstractDiffusion, x_t: Array, t: ArrayLike) -> dist.Distribution:
        """The law of x_0 given x_t: the baseline's, moved."""
        require_gaussian(diffusion, "diffusion: Residual is for GaussianDiffusion")
        law = self.baseline.posterior(diffusion, x_t, t)
        shift, growth = self.outputs(diffusion, x_t, t)
        variance = laws.variance(law)
        grown = variance * jnp.exp(LARGEST_CHANGE * jnp.tanh(growth / LARGEST_CHANGE))
        return laws.normal(law.mean - jnp.sqrt(variance) * shift, grown)

    def trainable(self) -> "Residual":
        """All floating arrays but the baseline's."""
        fixed = jax.tree.map(lambda _: False, self._baseline)
        return eqx.tree_at(lambda d: d._baseline, super().trainable(), fixed)

    def outputs(self, diffusion: AbstractDiffusion, x_t: Array, t: ArrayLike) -> tuple[Array, Array]:
        """The network's answer."""
        told = () if self.told is None else (self.told.required(),)
        out = self.fn(diffusion.network_input(x_t), diffusion.schedule.time(t), *told)
        if not (isinstance(out, (tuple, list)) or jnp.ndim(out)) or len(out) != 2:
            shapes = jax.tree.map(jnp.shape, out)
            raise ValueError(f"fn: expected a pair of outputs, each of shape {jnp.shape(x_t)}, got {shapes}")
        return checked_output(out[0], jnp.shape(x_t)), checked_output(out[1], jnp.shape(x_t))

    def with_outputs(self, outputs: tuple[Array, Array]) -> "Residual":
        """The same denoiser with outputs that were computed before."""
        return eqx.tree_at(lambda denoiser: denoiser.fn, self, Said(outputs))
