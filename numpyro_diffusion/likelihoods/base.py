"""What every likelihood estimator returns, and how it is batched.

An estimator answers with an `Estimate` of log p(x_0) or of a bound on it: a value, its standard error, the terms of
which it consists, and which kind of statement it is. The base class gives every example noise of its own, and batches.
Standard errors come from independent replicates. Where terms with independent noise add up, their variances do, and the
degrees of freedom are pooled as Welch (1947) has them: *approximate*, as replicates are only about normal.
"""

import math
from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Real, Shaped

from .. import diffusions
from .._batching import batched_map
from .._checks import check_event, check_key, check_real, is_concrete
from .._compiled import compiled
from .._shapes import Example
from ..process import ReverseProcess

# The fewest whole degrees of freedom with which Student's t has a variance: those of four replicates.
LEAST_FREEDOM = 3.0

Kind = Literal["lower bound", "bound on average", "unbiased", "exact up to discretisation", "unspecified"]


class Estimate(eqx.Module):
    """An estimate of log p(x_0) in nats, or of a bound on it.

    Attributes:
        value: shape (*batch,).
        standard_error: plain Monte-Carlo standard error of `value`, shape (*batch,); NaN from a single replicate.
        terms: the parts of `value`, by name, each with leading shape (*batch,).
        kind: what `value` is, apart from noise. ``"lower bound"``: of log p at every x_0. ``"bound on average"``: its
            mean over data is at most that of their log density; for one x_0 it may err either way. ``"unbiased"``:
            exp(value) has mean p(x_0). ``"exact up to discretisation"``: log p of a flow. Static: not a leaf.
        degrees_of_freedom: those of Student's t that errors in units of `standard_error` follow, about, by Welch and
            Satterthwaite, shape (*batch,) or (); inf where the error bar needs no such correction.
    """

    value: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    terms: Any
    kind: Kind = eqx.field(static=True, default="unspecified")
    degrees_of_freedom: Real[ArrayLike, "..."] = math.inf

    @property
    def widened_error(self) -> Float[Array, "*batch"]:
        """`standard_error` times √(ν/(ν − 2)), in units of which errors have unit variance; inf for ν ≤ 2."""
        return StandardError(self.standard_error, self.degrees_of_freedom).widened


class StandardError(NamedTuple):
    """A standard error and what Student's t says of it.

    Attributes:
        value: the plain standard error, any shape.
        degrees_of_freedom: ν, of that shape or ().
    """

    value: Float[Array, "*batch"]
    degrees_of_freedom: Real[ArrayLike, "..."]

    @property
    def widened(self) -> Float[Array, "*batch"]:
        """Times √(ν/(ν − 2)), the standard deviation of Student's t; inf for ν ≤ 2, NaN where `value` is."""
        freedom = jnp.asarray(self.degrees_of_freedom)
        excess = 2 / jnp.maximum(freedom - 2, 0.5 * (LEAST_FREEDOM - 2))
        widened = self.value * jnp.sqrt(1 + excess)
        return jnp.where((freedom > 2) | jnp.isnan(self.value), widened, jnp.inf)


def bits_per_dim(nats: Real[ArrayLike, "*batch"], event_shape: tuple[int, ...]) -> Float[Array, "*batch"]:
    """Code length −log p(x_0) / (d log 2) of examples of d elements, in bits per dimension.

    It is one of a code where log p is a log probability (bits, and whole numbers by `DiscretisedStep`); for real values
    it is that of a density, which changes with their unit.

    Args:
        nats: log p(x_0) or a bound on it, such as `Estimate.value`, any shape.
        event_shape: shape of one example.

    Returns:
        The shape of `nats`.
    """
    return -jnp.asarray(nats) / (math.prod(event_shape) * math.log(2.0))


class AbstractLikelihood(eqx.Module):
    """Estimates log p(x_0), or a bound on it, under a reverse process."""

    chunk: eqx.AbstractVar[int | None]

    def check(self, process: ReverseProcess) -> None:
        """Raise ``ValueError`` where the estimator does not cover the process; nothing unless a method says more."""
        del process

    @abstractmethod
    def estimate(self, key: PRNGKeyArray, process: ReverseProcess, x_0: Example) -> Estimate:
        """The estimate for one unbatched example; a deterministic, smooth function of `x_0` for one `key`."""

    def calls(self, process: ReverseProcess) -> int:
        """How many network calls the estimate for one example makes at a time; one unless a method says more."""
        del process
        return 1

    def evaluations(self, process: ReverseProcess) -> int:
        """How many network calls the estimate for one example makes in all; a JVP counts as one more."""
        return self.calls(process)

    def examine(
        self, key: PRNGKeyArray, process: ReverseProcess, x_0: Shaped[Array, "..."], estimate: Estimate
    ) -> None:
        """Warn where a called estimator, outside of compiled code, sees that it misses an accuracy it was asked for."""
        del key, process, x_0, estimate

    def __call__(self, key: Array, process: ReverseProcess, x_0: ArrayLike) -> Estimate:
        """Estimate log p(x_0), each example with noise of its own.

        Args:
            key: JAX random key.
            process: the reverse process.
            x_0: data, shape (*batch, *event).

        Returns:
            An `Estimate` whose arrays have leading shape `batch`.

        Raises:
            ValueError: `x_0` does not end in the process's event shape, or is known and is not of its whole numbers;
                the process is of a family that the estimator does not cover.
        """
        if not isinstance(process, ReverseProcess):
            raise TypeError(f"process: expected a ReverseProcess, got {type(process).__name__}")
        check_key("key", key)
        check_real("x_0", x_0)
        x_0 = jnp.asarray(x_0)
        process.check_values("x_0", x_0)
        batch = check_event("x_0", x_0.shape, process.event_shape)
        self.check(process)
        if not all(is_concrete(leaf) for leaf in jax.tree.leaves((self, key, process, x_0))):
            return self._batched(key, process, x_0, batch)
        estimate = _compiled(self, key, process, x_0, batch)
        self.examine(key, process, x_0, estimate)
        return estimate

    def _batched(self, key: Array, process: ReverseProcess, x_0: Array, batch: tuple[int, ...]) -> Estimate:
        if not batch:
            return self.estimate(key, process, x_0)
        flat = x_0.reshape((-1, *process.event_shape))
        estimate = lambda pair: self.estimate(pair[0], process, pair[1])
        together = None if self.chunk is None else max(1, self.chunk // self.calls(process))
        estimates = batched_map(estimate, (jax.random.split(key, len(flat)), flat), together)
        return jax.tree.map(lambda leaf: leaf.reshape(batch + leaf.shape[1:]), estimates)


@compiled
def _compiled(likelihood: AbstractLikelihood, key: Array, process: ReverseProcess, x_0: Array, batch: Any) -> Estimate:
    """The estimates, in one program that later calls of the same shapes find again."""
    return likelihood._batched(key, process, x_0, batch)


def standard_error(parts: Float[Array, "n terms"]) -> StandardError:
    r"""Standard error of a mean over n independent replicates, with its degrees of freedom; shape () each.

    Where terms with independent noise add up, so do the variances s² of their means. Errors in units of √(Σ s²) follow
    Student's t, about, if replicates are normal, with the ν of Welch 1947,

    .. math:: \nu = (n+1) \Big(\sum s^2\Big)^2 \Big/ \sum s^4 - 2

    which is Satterthwaite's with unbiased estimates of the squares, and n − 1 for one term. t with one or two degrees
    of freedom has no variance; where all terms have 3 or more together, n − 1 each, an estimate below 3 counts as 3.

    Args:
        parts: n independent replicates of every term, shape (n, terms).

    Returns:
        NaN from one replicate; 0 where there is no noise.
    """
    count, terms = parts.shape
    if count == 1:
        return StandardError(jnp.full((), jnp.nan, parts.dtype), jnp.zeros((), parts.dtype))
    variance = jnp.var(parts, axis=0, ddof=1) / count
    total = jnp.sum(variance)
    share = jnp.where(total > 0, variance / jnp.where(total > 0, total, 1.0), 1 / terms)
    least = min(LEAST_FREEDOM, (count - 1.0) * terms)
    freedom = jnp.maximum((count + 1) / jnp.sum(jnp.square(share)) - 2, least)
    if (count - 1) * terms < LEAST_FREEDOM:
        freedom = jnp.full((), least, parts.dtype)
    return StandardError(jnp.sqrt(total), freedom)


def require_gaussian(name: str, process: ReverseProcess) -> None:
    """Raise ``ValueError``, naming what works, unless the process is a Gaussian diffusion."""
    hint = "; for bits and classes use KBound or ImportanceWeighted"
    diffusions.require_gaussian(process.diffusion, f"process: {name} is for GaussianDiffusion", hint)
