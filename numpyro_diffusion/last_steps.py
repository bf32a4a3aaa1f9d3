"""Last steps: the kernel p(x_0 | x_1), the one step that no bridge can teach.

The bridge q(x_s | x_t, x_0) that teaches all other kernels is a point at s = 0. Sohl-Dickstein et al. (2015, App. B,
eq. 44) take the forward kernel reversed under π, whose term of K is a closed form and which is exact where the data are
noise. A step to the denoiser's mean, whose variance is trained or not, loses less; one that is rounded to levels has a
probability mass in place of a density (Ho, Jain and Abbeel 2020, eq. 13). Each is an *exact* part of its own model.
"""

# Over 300 lines: all last steps side by side, and the choice among them.

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float
from numpyro.distributions import constraints

from ._checks import check_choice, check_count, check_finite, check_levels, refusal
from ._shapes import Example
from .denoisers import AbstractDenoiser
from .diffusions import AbstractDiffusion, require_gaussian, require_mixed
from .laws import ByColumns, Mixed, mean_and_variance, normal, rounded


class AbstractLastStep(eqx.Module):
    """The kernel p(x_0 | x_1), the one step that no bridge can teach."""

    @abstractmethod
    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""

    def element_support(self, diffusion: AbstractDiffusion) -> constraints.Constraint:
        """Support of one element of x_0: that of the diffusion's data unless a step says otherwise."""
        return diffusion.data_support

    def check_values(self, name: str, x_0: ArrayLike, diffusion: AbstractDiffusion) -> None:
        """Raise ``ValueError`` where a known `x_0` is off the support; `name` is the argument's."""
        diffusion.check_values(name, x_0)

    @property
    def num_values(self) -> int | None:
        """How many whole numbers an element of x_0 can be, if the step rounds to them; else None."""
        return None

    @property
    def rounds(self) -> bool:
        """Whether its kernel is of another kind than the other steps' are, of whole numbers in place of real ones."""
        return self.num_values is not None

    @property
    def own_log_scale(self) -> Float[Array, "..."] | None:
        """Log of the step's standard deviation in units of the diffusion's `scale`, if it does not depend on x_1.

        The mean is then E[x_0 | x_1]. None where the denoiser has the variance, or none is needed.
        """
        return None

    @property
    def has_expectation(self) -> bool:
        """Whether `expected_log_prob` is known without a draw of x_1."""
        return False

    def expected_log_prob(self, diffusion: AbstractDiffusion, x_0: Example) -> Float[Array, ""]:
        """E log p(x_0 | x_1) over q(x_1 | x_0) in nats, exact, shape (); only where `has_expectation`."""
        raise ValueError(f"last_step: expected one with a closed-form expectation, got {type(self).__name__}")

    def completed(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> "AbstractLastStep":
        """The step with what it leaves open taken from the process that it is for."""
        del diffusion, denoiser
        return self

    def log_null(self, diffusion: AbstractDiffusion, x_0: Example) -> Float[Array, ""]:
        """log π(x_0) in nats, shape (): the example as if it were noise, in the measure of the step's `log_prob`."""
        return diffusion.log_null(x_0)


class ForwardStep(AbstractLastStep):
    """The fixed kernel q(x_1 | x_0) π(x_0) / π(x_1), for data N(√α_1 x_1, β_1). Source: [2015] App. B, eq. 44."""

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        return diffusion.reverse_prior_step(x_1, 1.0, 0.0)

    def completed(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> "ForwardStep":
        """Itself, for noise laws under which the data may be noise."""
        del denoiser
        jax.eval_shape(lambda: diffusion.reverse_prior_step(jnp.zeros(()), 1.0, 0.0))
        return self

    @property
    def has_expectation(self) -> bool:
        """True."""
        return True

    def expected_log_prob(self, diffusion: AbstractDiffusion, x_0: Example) -> Float[Array, ""]:
        """log q(x_1|x_0) + log π(x_0) − log π(x_1) averaged over q(x_1|x_0): entropies, no noise."""
        null = diffusion.expected_log_terminal(x_0, 0.0)
        return null - diffusion.marginal_entropy(x_0, 1.0) - diffusion.expected_log_terminal(x_0, 1.0)


class LearnedStep(AbstractLastStep):
    """The denoiser's own step to t = 0, with a trainable scale where the denoiser has none.

    Args:
        log_scale: log of the standard deviation in units of the diffusion's `scale`, scalar or broadcastable to one
            example; the mean is then the prediction E[x_0 | x_1]. None: the denoiser's own kernel (learned variance,
            bits, exact oracles).

    Raises:
        TypeError: no numbers.
        ValueError: numbers that are not finite.
    """

    log_scale: Array | None

    def __init__(self, log_scale: ArrayLike | None = None) -> None:
        if log_scale is not None:
            check_finite("log_scale", log_scale)
        self.log_scale = None if log_scale is None else jnp.asarray(log_scale, dtype=float)

    @property
    def own_log_scale(self) -> Float[Array, "..."] | None:
        """`log_scale`."""
        return self.log_scale

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        if self.log_scale is None:
            return denoiser.reverse(diffusion, x_1, 1.0, 0.0)
        gaussian = require_gaussian(diffusion, "log_scale: only GaussianDiffusion has a scale")
        mean, _ = mean_and_variance(denoiser.posterior(diffusion, x_1, 1.0))
        return normal(mean, jnp.square(gaussian.scale * jnp.exp(self.log_scale)))


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

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        gaussian = require_gaussian(diffusion)
        beta, beta_tilde = gaussian.schedule.noise_variance(1), gaussian.bridge_coefficients(2.0, 1.0)[2]
        variance = beta if self.variance == "beta" else beta_tilde
        mean, _ = mean_and_variance(denoiser.posterior(diffusion, x_1, 1.0))
        return normal(mean, variance * gaussian.scale**2)


class DiscretisedStep(AbstractLastStep):
    """A Gaussian last step rounded to whole numbers 0 … num_levels − 1: grey levels.

    p(x_0 | x_1) is a probability mass, element by element, and so is the law of x_0: K bounds a log probability, −K is
    the length of a code. Data are in levels; `loc` and `scale` of the diffusion bring them to the network's units, as
    127.5 and 127.5 do for 256 levels and images in [−1, 1]. No Jacobian of theirs is counted. Source: [DDPM 2020] eq.
    13.

    Args:
        num_levels: how many levels there are, at least 2.
        step: the Gaussian last step that is rounded, such as `FixedStep`; `ReverseProcess` takes the one that it names
            ``"learned"`` unless given.

    Raises:
        TypeError: `step` is no last step.
        ValueError: `num_levels` is below 2; `step` has bits.
    """

    num_levels: int = eqx.field(static=True)
    step: AbstractLastStep | None

    def __init__(self, num_levels: int = 256, step: AbstractLastStep | None = None) -> None:
        self.num_levels = check_count("num_levels", num_levels, 2)
        right_type = step is None or isinstance(step, AbstractLastStep)
        if not right_type or (step is not None and step.num_values is not None):
            raise refusal(f"step: expected a last step to round, such as FixedStep(), got {step!r}", right_type)
        self.step = step

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        step = LearnedStep() if self.step is None else self.step
        return rounded(step.kernel(require_gaussian(diffusion), denoiser, x_1), self.num_levels)

    @property
    def num_values(self) -> int | None:
        """`num_levels`."""
        return self.num_levels

    def check_values(self, name: str, x_0: ArrayLike, diffusion: AbstractDiffusion) -> None:
        """Whole numbers from 0 to num_levels − 1."""
        del diffusion
        check_levels(name, x_0, self.num_levels)

    def completed(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> "DiscretisedStep":
        """Around the step named ``"learned"`` unless it has one."""
        require_gaussian(diffusion, "last_step: whole numbers need a GaussianDiffusion")
        return self if self.step is not None else DiscretisedStep(self.num_levels, learned_step(diffusion, denoiser))

    def element_support(self, diffusion: AbstractDiffusion) -> constraints.Constraint:
        """Whole numbers from 0 to num_levels − 1."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def log_null(self, diffusion: AbstractDiffusion, x_0: Example) -> Float[Array, ""]:
        """Log probability of rounded noise in nats, shape ()."""
        return rounded(diffusion.terminal(jnp.shape(x_0)), self.num_levels).log_prob(x_0)


class MixedStep(AbstractLastStep):
    """The denoiser's own step, some groups of columns rounded to whole numbers: counts and ordered levels.

    p(x_0 | x_1) of such a group, whose diffusion is a Gaussian one, is a probability mass of the levels 0 … n − 1, as a
    `DiscretisedStep` makes it; the other groups' laws are as they are.

    Args:
        num_levels: n of each group of the `MixedDiffusion`, at least 2, or None where it is not rounded.

    Raises:
        TypeError: no sequence.
        ValueError: other numbers; with a process, another diffusion, or rounded groups that are not Gaussian.
    """

    num_levels: tuple[int | None, ...] = eqx.field(static=True)

    def __init__(self, num_levels: Sequence[int | None]) -> None:
        if not isinstance(num_levels, Sequence) or isinstance(num_levels, str):
            raise TypeError(f"num_levels: expected a number or None for each group, got {num_levels!r:.80}")
        self.num_levels = tuple(None if n is None else check_count("num_levels", n, 2) for n in num_levels)

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """p(x_0 | x_1) for one unbatched example."""
        return self._rounded(denoiser.reverse(diffusion, x_1, 1.0, 0.0))

    @property
    def rounds(self) -> bool:
        """Whether some group is rounded."""
        return any(n is not None for n in self.num_levels)

    def element_support(self, diffusion: AbstractDiffusion) -> constraints.Constraint:
        """Whole numbers for the groups that are rounded, for the others that of their diffusion's data."""
        data: Any = diffusion.data_support
        pairs = zip(self.num_levels, data.supports, strict=True)
        supports = [own if n is None else constraints.integer_interval(0, n - 1) for n, own in pairs]
        return ByColumns(supports, data.columns)

    def check_values(self, name: str, x_0: ArrayLike, diffusion: AbstractDiffusion) -> None:
        """Levels where they are wanted, and what each group's diffusion asks for."""
        diffusion.check_values(name, x_0)
        for n, places in zip(self.num_levels, require_mixed(diffusion).columns, strict=True):
            if n is not None:
                check_levels(f"{name} in columns {list(places)}", x_0[..., np.array(places)], n)  # type: ignore[index]

    def completed(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> "MixedStep":
        """Itself, for a mixed diffusion of as many groups."""
        del denoiser
        groups = require_mixed(diffusion, "last_step: MixedStep is for a MixedDiffusion").diffusions
        if len(groups) != len(self.num_levels):
            raise ValueError(f"num_levels: expected one for each of {len(groups)} groups, got {len(self.num_levels)}")
        for n, own in zip(self.num_levels, groups, strict=True):
            if n is not None:
                require_gaussian(own, "num_levels: expected None but for groups of a GaussianDiffusion")
        return self

    def log_null(self, diffusion: AbstractDiffusion, x_0: Example) -> Float[Array, ""]:
        """log π(x_0) in nats, shape (): a log probability, of rounded noise, where groups are rounded."""
        groups = require_mixed(diffusion)
        noise = self._rounded(diffusion.terminal(jnp.shape(x_0)))
        parts = zip(self.num_levels, groups.diffusions, noise.cut(x_0), strict=True)
        each = [own.log_null(x) if n is None else law.log_prob(x) for n, own, (law, x) in parts]
        return sum(each, jnp.zeros(()))

    def _rounded(self, law: Any) -> Mixed:
        pairs = zip(self.num_levels, law.laws, strict=True)
        return law.of([own if n is None else rounded(own, n) for n, own in pairs])


def learned_step(diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> LearnedStep:
    """The denoiser's own step, with a scale of its own where the denoiser has no variance."""
    if denoiser.has_variance or not diffusion.is_gaussian:
        return LearnedStep()
    return LearnedStep(0.5 * jnp.log(diffusion.schedule.noise_variance(1)))


def named_last_step(name: Any, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser) -> AbstractLastStep:
    """The last step that the name stands for, or the given one, completed by what it leaves open.

    Raises:
        TypeError: no name and no last step.
        ValueError: an unknown name, or a step that does not fit the diffusion.
    """
    step = name
    if name == "learned":
        step = learned_step(diffusion, denoiser)
    elif name == "forward":
        step = ForwardStep()
    elif name == "discretised":
        step = DiscretisedStep()
    if not isinstance(step, AbstractLastStep):
        message = f"last_step: expected 'learned', 'forward', 'discretised' or a last step module, got {name!r}"
        raise refusal(message, isinstance(name, str))
    return step.completed(diffusion, denoiser)
