"""A network that learns what a simple model of the data leaves.

The network's output is measured against the uncertainty of a baseline, an exact denoiser of a simple model: mean m − s
o and variance s² exp(v), with m and s² those of the baseline's law. Outputs of zero are the baseline itself, so that
training starts at the simple model and learns what it leaves. Where Karras et al. (2022) precondition by one number for
each noise level, here every element has its own; for a baseline that is the noise law o is the velocity of Salimans and
Ho (2022).
"""

from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion
from .base import AbstractDenoiser
from .components import Components
from .context import Context
from .network import Said, checked_output, checked_told

Pair = tuple[Float[Array, "*output"], Float[Array, "*output"]]


class Residual(AbstractDenoiser):
    r"""A baseline's answer, moved by a network in units of the baseline's own uncertainty.

    With mean m and standard deviation s of the baseline's law of x_0 given x_t, element by element, and the network's
    outputs o and v, the prediction of real numbers is m − s o with the variance s² exp(v), v between ±4. Outputs of
    zero are the baseline, in samples, K and twists. Where it is the noise law itself, o is the velocity of a `Network`
    (Salimans and Ho 2022); EDM (Karras et al. 2022) preconditions by one number for all elements. For bits and classes
    o is added to the baseline's log-odds or log probabilities, and v is left out. For columns of several kinds
    (`MixedDiffusion`) each group of them is moved as its family is, by its part of the outputs.

    Args:
        fn: ``fn(x_t, t)`` on one example as the diffusion shows it to a network (`network_input`), and the step as a
            float, which returns the pair (o, v), each of that shape; an `equinox.Module` is trained with the process,
            any other callable is used as it is.
        baseline: an exact denoiser, such as `FullGaussianMixture`; never trained.
        told: of p(x | c), the `Context` that `fn` is called with, ``fn(x_t, t, c)``; a `Conditional` baseline is told
            the same.

    Raises:
        TypeError: a function that cannot be called, a baseline that is no denoiser.
        ValueError: an output of another shape (when traced).
    """

    fn: Callable[..., Any]
    _baseline: AbstractDenoiser
    told: Context | None = None

    def __init__(self, fn: Callable[..., Any], baseline: AbstractDenoiser, told: Context | None = None) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a callable fn(x_t, t), got {fn!r}")
        if not isinstance(baseline, AbstractDenoiser):
            raise TypeError(f"baseline: expected an exact denoiser, got {baseline!r}")
        self.fn, self._baseline, self.told = fn, baseline, checked_told(told)
        if told is None and baseline.wanted is not None:
            raise ValueError("told: expected the Context of a baseline that has one, got None")

    @property
    def said(self) -> str:
        """Its function and its baseline."""
        return f"Residual ({type(self.fn).__name__}, about {type(self.baseline).__name__})"

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

    @property
    def components(self) -> Components | None:
        """Those of the baseline."""
        return self.baseline.components

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The law of x_0 given x_t: the baseline's, moved."""
        law = self.baseline.posterior(diffusion, x_t, t)
        return diffusion.corrected(law, self.outputs(diffusion, x_t, t), x_t)

    def trainable(self) -> "Residual":
        """All floating arrays but the baseline's."""
        fixed = jax.tree.map(lambda _: False, self._baseline)
        return eqx.tree_at(lambda d: d._baseline, super().trainable(), fixed)

    def outputs(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> Pair:
        """The network's answer."""
        told = () if self.told is None else (self.told.required(),)
        shape = diffusion.network_shape(jnp.shape(x_t))
        out = self.fn(diffusion.network_input(x_t), diffusion.schedule.time(t), *told)
        if not (isinstance(out, (tuple, list)) or jnp.ndim(out)) or len(out) != 2:
            shapes = jax.tree.map(jnp.shape, out)
            raise ValueError(f"fn: expected a pair of outputs, each of shape {shape}, got {shapes}")
        return checked_output(out[0], shape), checked_output(out[1], shape)

    def with_outputs(self, outputs: Pair) -> "Residual":
        """The same denoiser with outputs that were computed before."""
        return eqx.tree_at(lambda denoiser: denoiser.fn, self, Said(outputs))
