r"""log p(x_0) by importance sampling of trajectories ([2015] eq. 9).

p(x_0) is the mean over forward trajectories of p(x_0 … x_T)/q(x_1 … x_T | x_0) (Sohl-Dickstein et al. 2015, eq. 9), so
that the average over a few of them is *unbiased* for p(x_0). Its logarithm is a *bound* on average, which tightens with
their number; the mean of the log ratio itself is K. The error bar of the logarithm is *approximate*, the larger of that
to first order and Cox's for normal log weights (Zhou and Gao 1997). Trajectories come from the forward bridges, or from
the model's kernels led towards x_0.
"""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from .._batching import batched_map, checkpointed_scan
from .._checks import check_choice, check_count
from .._shapes import Example
from ..laws import from_noise, normal
from ..process import ReverseProcess
from .base import AbstractLikelihood, Estimate, StandardError, require_gaussian, standard_error

Proposal = Literal["bridge", "twisted"]


class ImportanceTerms(NamedTuple):
    """What the trajectories of one example say, in nats.

    Attributes:
        log_weight: log p(x_0 … x_T) − log q(x_1 … x_T) of each trajectory, shape (num_trajectories,).
        bound: their mean, a lower bound on log p(x_0) on average, shape ().
        effective_size: effective number of trajectories, shape ().
    """

    log_weight: Float[Array, " trajectories"]
    bound: Float[Array, ""]
    effective_size: Float[Array, ""]


class ImportanceWeighted(AbstractLikelihood):
    r"""log of the average over trajectories of p(x_0 … x_T) / q(x_1 … x_T): the chain's own p(x_0).

    exp(value) is *unbiased* for p(x_0), at any number of trajectories, so that it serves pseudo-marginal methods. The
    value itself is on average too low, by half the relative variance of that average: a bound, which tightens in
    proportion to 1/`num_trajectories` and holds for the chain as it is, with its T steps. Both families; for bits it
    has no gradient.

    No trajectory is resampled, so the value is smooth in x_0 for one key. The standard error, that of the logarithm, is
    *approximate* (`log_mean_error`). Source: [2015] eq. 9.

    Args:
        num_trajectories: N; from 4 on there is a standard error.
        proposal: ``"bridge"`` draws x_T from q(x_T|x_0), then every step from q(x_s|x_t, x_0). ``"twisted"`` (Gaussian)
            draws it from the model's own step times a Gaussian estimate of p(x_0|x_s), normalised; the same where the
            model's variances are β, narrower where they are smaller, and led by the denoiser's mean.
        chunk: at most so many trajectories at a time; bounds the memory.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> estimate = nd.ImportanceWeighted(8)(jax.random.key(0), process, jnp.zeros((3, 2)))
        >>> estimate.value.shape, estimate.kind
        ((3,), 'unbiased')

    Raises:
        ValueError: counts that are not whole numbers of at least 1, an unknown proposal; ``"twisted"`` for bits (when
            used).
    """

    num_trajectories: int = eqx.field(static=True)
    proposal: Proposal = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(self, num_trajectories: int = 16, proposal: Proposal = "bridge", *, chunk: int | None = None) -> None:
        self.num_trajectories = check_count("num_trajectories", num_trajectories)
        self.proposal = check_choice("proposal", proposal, ("bridge", "twisted"))
        self.chunk = None if chunk is None else check_count("chunk", chunk)

    def check(self, process: ReverseProcess) -> None:
        """Twisted proposals are for Gaussian diffusions."""
        if self.proposal == "twisted":
            require_gaussian("ImportanceWeighted(proposal='twisted')", process)

    def calls(self, process: ReverseProcess) -> int:
        """One for each trajectory at a time."""
        return self.num_trajectories

    def evaluations(self, process: ReverseProcess) -> int:
        """One for each step of each trajectory."""
        return self.num_trajectories * process.num_steps

    def estimate(self, key: PRNGKeyArray, process: ReverseProcess, x_0: Example) -> Estimate:
        """The estimate for one example, shape () in nats; smooth in `x_0` for one `key` (Gaussian diffusions)."""
        count = self.num_trajectories
        weigh = lambda key: self._log_weight(key, process, x_0)
        log_weight = batched_map(weigh, jax.random.split(key, count), self.chunk)
        value = logsumexp(log_weight) - jnp.log(float(count))
        share = jnp.exp(log_weight - value)
        terms = ImportanceTerms(log_weight, jnp.mean(log_weight), count**2 / jnp.sum(jnp.square(share)))
        error = log_mean_error(log_weight, share)
        return Estimate(value, error.value, terms, "unbiased", error.degrees_of_freedom)

    def _log_weight(self, key: Array, process: ReverseProcess, x_0: Array) -> Array:
        """One trajectory, from x_T to x_1, and its log weight."""
        diffusion, end = process.diffusion, float(process.num_steps)
        first, rest = jax.random.split(key)
        noise = diffusion.marginal_noise(first, process.event_shape)
        x_t = diffusion.marginal_from_noise(noise, x_0, end)
        start = process.terminal().log_prob(x_t) - diffusion.marginal(x_0, end).log_prob(x_t)

        def step(carry: tuple[Array, Array], xs: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            (x_t, log_weight), (key, t) = carry, xs
            posterior, kernel = process.denoiser.denoise(diffusion, x_t, t, t - 1)
            proposal = diffusion.bridge(x_t, x_0, t, t - 1)
            if self.proposal == "twisted":
                proposal = _twisted(diffusion, posterior, kernel, x_0, t)
            x_s = from_noise(proposal, diffusion.marginal_noise(key, process.event_shape))
            return (x_s, log_weight + kernel.log_prob(x_s) - proposal.log_prob(x_s)), None

        times = jnp.arange(process.num_steps, 1, -1, dtype=x_t.dtype)
        x_1, log_weight = checkpointed_scan(step, (x_t, start), (jax.random.split(rest, len(times)), times))
        return log_weight + process.last_kernel(x_1).log_prob(x_0)


def log_mean_error(log_weight: Float[Array, " n"], share: Float[Array, " n"]) -> StandardError:
    r"""Standard error of the log of the mean of N weights, in nats; *approximate*.

    The larger of two. To first order it is that of the mean of the weights' shares, which is *consistent*: right for
    many weights of whatever law with a variance. Few weights seldom hold the heavy ones that would tell their spread,
    and value and spread are then too small together; but a log weight is a sum over steps, and about normal. For normal
    ones with variance s², the log of the mean has, to second order,

    .. math:: \frac{s^2}{N} + \frac{s^4}{2 (N + 1)}

    (Cox's method, in Zhou and Gao 1997, with the unbiased estimate of σ⁴), times the factor of Student's t with N − 1
    degrees of freedom, which the choice counts. Both are one where s is small. The sd of z, with that factor, is held
    to 1 ± 0.1 for s up to 1.5 and eight weights
    or more; where weights have no variance no error bar is right.

    Args:
        log_weight: shape (N,).
        share: each weight over their mean, shape (N,).

    Returns:
        Shape () each, with N − 1 degrees of freedom for the second order and inf for the first; NaN from one weight.
        Where a weight is 0, the first order's alone, with N − 1.
    """
    count = log_weight.shape[0]
    variance = jnp.var(log_weight, ddof=min(1, count - 1))
    plain, freedom = standard_error(log_weight[:, None])
    normal = StandardError(plain * jnp.sqrt(1 + 0.5 * variance * count / (count + 1)), freedom)
    many = StandardError(jnp.std(share) / jnp.sqrt(jnp.maximum(count - 1.0, 1.0)), jnp.full_like(plain, jnp.inf))
    pick = lambda where: lambda a, b: jnp.where(where, a, b)
    larger = jax.tree.map(pick((normal.widened >= many.widened) | (count == 1)), normal, many)
    return jax.tree.map(pick(jnp.all(jnp.isfinite(log_weight))), larger, standard_error(share[:, None]))


def _twisted(diffusion: Any, posterior: dist.Distribution, kernel: dist.Distribution, x_0: Array, t: Array) -> Any:
    """p(x_s | x_t) · ψ(x_s), normalised, with ψ(x_s) ∝ N(x_0; E[x_0 | x_s], Var) of data as wide as the noise law.

    Given x_t, such data have x_s = a x_0 + … with variance β̃ about it and β in all; so ψ adds 1/β̃ − 1/β to the
    precision, and pulls by a/β̃ times what the prediction misses.
    """
    from_data, _, narrow = diffusion.bridge_coefficients(t)
    square = jnp.square(diffusion.scale)
    variance = 1 / (1 / kernel.variance + (1 / narrow - 1 / diffusion.schedule.beta(t)) / square)
    return normal(kernel.mean + variance * from_data / (narrow * square) * (x_0 - posterior.mean), variance)
