"""What a denoiser answers: the law of clean data given noisy data.

Where x_t is x_0 with known noise, the law of x_0 given x_t decides the reverse process. A denoiser answers with a
factorised such law, whose mean is E[x_0 | x_t]; the kernel p(x_s | x_t) is the forward bridge averaged over it, which
is exact if the law is and its elements are independent, and otherwise the better, the shorter the step (Sohl-Dickstein
et al. 2015, §2.2). Beside the law it says what samplers may rely on: whether it is exact for some data, whether x_0
given x_t is normal, which covariance or components the data have.
"""

from abc import abstractmethod
from typing import Any, final

import equinox as eqx
import jax
import numpyro.distributions as dist
from jaxtyping import Array, Float

from .._shapes import AnyTime, Example
from ..diffusions import AbstractDiffusion
from .components import Components


class AbstractDenoiser(eqx.Module):
    """Inverts a diffusion. Written for one unbatched example; `ReverseProcess` batches and checks shapes."""

    @abstractmethod
    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """Factorised law of x_0 given x_t, of the diffusion's family, event shape that of `x_t`.

        Its mean is the prediction E[x_0 | x_t]. Its variance may be 0 where only the mean is known.
        """

    @final
    def reverse(
        self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime, s: AnyTime | None = None
    ) -> dist.Distribution:
        """The kernel p(x_s | x_t), `s` = t − 1 unless given: the bridge averaged over the posterior.

        A denoiser that knows better says so in `denoise`.
        """
        return self.denoise(diffusion, x_t, t, s)[1]

    def denoise(
        self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime, s: AnyTime | None = None
    ) -> tuple[dist.Distribution, dist.Distribution]:
        """`posterior` and `reverse` together, from one evaluation of whatever is costly."""
        posterior = self.posterior(diffusion, x_t, t)
        return posterior, diffusion.average_bridge(x_t, posterior, t, s)

    def terminal(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> dist.Distribution:
        """The law of x_T from which chains start: π."""
        return diffusion.terminal(event_shape)

    @property
    def said(self) -> str:
        """In words, for those who print a prior."""
        return type(self).__name__

    @property
    def is_normalised(self) -> bool:
        """Whether its kernels are laws that integrate to one, so that a chain of them needs no weights."""
        return True

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """Covariance of x_0, flat, in units in which the noise law has variance 1, if it is known; shape (d, d)."""
        del diffusion, event_shape
        return None

    @property
    def components(self) -> Components | None:
        """The mixture of Gaussians in data units that it is exact for, or that its network is about; None for none."""
        return None

    @property
    def is_exact(self) -> bool:
        """Whether the law of x_0 given x_t is that of some data, so that the mean's Jacobian is its covariance."""
        return False

    @property
    def is_gaussian(self) -> bool:
        """Whether x_0 given x_t is exactly normal."""
        return False

    @property
    def wanted(self) -> Any:
        """The `Context` that the denoiser is to be told, as of p(x | c); None for one that takes none."""
        return None

    def given(self, context: Any) -> "AbstractDenoiser":
        """The same denoiser, told the context.

        Raises:
            ValueError: it takes none; a context that does not fit.
        """
        raise ValueError(f"context: expected none for {type(self).__name__} without a context, got {context!r:.80}")

    @property
    def has_variance(self) -> bool:
        """Whether the step to the data has this denoiser's variance; if not, a `LearnedStep` has one of its own."""
        return True

    def objectives(self, diffusion: AbstractDiffusion) -> tuple[str, ...]:
        """What it can be trained for (`objective` of `nd.fit`), the usual one first."""
        del diffusion
        return ("bound", "simple")

    def trainable(self) -> "AbstractDenoiser":
        """A tree of booleans like the denoiser: which arrays training may change; all floating ones unless it says."""
        return jax.tree.map(eqx.is_inexact_array, self)

    def outputs(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> Any:
        """The network's outputs at `x_t` and `t`, as arrays; None where nothing is costly to compute."""
        del diffusion, x_t, t

    def with_outputs(self, outputs: Any) -> "AbstractDenoiser":
        """The denoiser at the one place whose `outputs` these are; its network is not called again."""
        del outputs
        return self
