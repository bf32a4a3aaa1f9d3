r"""The K bound of Sohl-Dickstein et al. 2015: a lower bound on log p(x_0), term by term in closed form.

K = E_q[log p(x_0 … x_T) − log q(x_1 … x_T | x_0)] ≤ log p(x_0) is the evidence lower bound of the chain. Its KL terms
are closed forms given x_t, so that only x_t is drawn, and the estimate is *unbiased* for K: a *bound* at every x_0, but
for the noise of the estimate. Sohl-Dickstein et al. (2015, eqs. 13-14 and App. B) have the version with the fixed last
step and its entropies, Ho, Jain and Abbeel (2020, eq. 5) that with a learned one.
"""

# Over 300 lines: one estimator and its terms, each of them documented.

import math
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real

from .._batching import batched_map
from .._checks import check_count
from .._shapes import AnyTime, Example, Time
from ..laws import event_kl
from ..process import ReverseProcess
from ._integral.low_discrepancy import low_discrepancy_point
from ._integral.reference import NOISE_LAW, last_control, moment_last_control, step_control
from .base import AbstractLikelihood, Estimate, StandardError, standard_error


class KTerms(NamedTuple):
    """The parts of K for one example, all in nats.

    Equations are numbered as in [2015] App. B.
    ``value = reconstruction - kl - kl_terminal`` always. With the 2015 last step this equals
    ``entropy_terminal - entropy_first - entropy_prior - kl + correction`` (eq. 14 and what it leaves out).

    Attributes:
        kl: Σ_{t=2..T} KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t)), averaged over q; shape ().
        reconstruction: E_q log p(x_0 | x_1); shape ().
        kl_terminal: KL(q(x_T|x_0) ‖ π); shape ().
        entropy_terminal: H_q(X^T|X^0); shape ().
        entropy_first: H_q(X^1|X^0); shape ().
        entropy_prior: H_p(X^T); shape ().
        correction: what eq. 14 assumes to be zero: it is, on average, for data of the noise law's second moment
            (Gaussian) or mean activity (bits). 0 with another last step than the 2015 one, which needs none.
        null: L_null = log π(x_0), the log density of the data as pure noise (of grey levels, its log probability
            rounded); shape ().
        step: t of each KL term that was evaluated, shape (num_samples, num_times).
        step_kl: each KL term, weighted so that the mean over samples of the sum over times is `kl`.
    """

    kl: Float[Array, "*batch"]
    reconstruction: Float[Array, "*batch"]
    kl_terminal: Float[Array, "*batch"]
    entropy_terminal: Float[Array, "*batch"]
    entropy_first: Float[Array, "*batch"]
    entropy_prior: Float[Array, "*batch"]
    correction: Float[Array, "*batch"]
    null: Float[Array, "*batch"]
    step: Real[Array, "*batch samples times"]
    step_kl: Float[Array, "*batch samples times"]

    @property
    def value(self) -> Float[Array, "*batch"]:
        """K itself, the sum of the parts, in nats."""
        return self.reconstruction - self.kl - self.kl_terminal

    @property
    def gain(self) -> Float[Array, "*batch"]:
        """K − L_null in nats, what has been learned beyond noise; free of the data's units."""
        return self.value - self.null

    @property
    def bits(self) -> dict[str, Float[Array, "*batch"]]:
        """``"value"``, ``"null"`` and ``"gain"`` (K, L_null and K − L_null) in bits."""
        return {name: getattr(self, name) / jnp.log(2.0) for name in ("value", "null", "gain")}


class KBound(AbstractLikelihood):
    r"""K ≤ log p(x_0) for every x_0: a *bound*, estimated without bias from draws of q.

    .. math:: K = &\ \mathbb{E}_q\log p(x_0|x_1) \\
              &- \sum_{t=2}^{T} \mathbb{E}_q\,\mathrm{KL}\big(q(x_{t-1}|x_t,x_0)\,\|\,p(x_{t-1}|x_t)\big) \\
              &- \mathrm{KL}\big(q(x_T|x_0)\,\|\,\pi\big)

    The KL terms are closed forms given x_t, for both families; x_t is drawn from its marginal, with noise of its own
    for every t. Source: [2015] eqs. 13-14, App. B; for the 2015 last step this is eq. 38 there, of which eq. 14 is the
    special case of data with the second moment of noise. Most of the noise of another last step is ½ ‖ε‖², whose mean
    is known: for real values it is taken out by a control variate, free of bias.

    The standard error adds up the variances of the terms, each from its own few draws; `degrees_of_freedom` says how
    well it is known.

    Args:
        num_samples: draws of q for each x_0. An even number gives antithetic pairs; from 4 on (2 without pairs) there
            is a standard error, if the chain has 3 steps or more.
        num_times: how many of the T − 1 KL terms each draw evaluates: one, chosen at random, from each of as many
            equal strata, weighted by the stratum's size. All of them unless given.
        antithetic: whether draws come in pairs with mirrored noise.
        low_discrepancy: whether the noise of all terms of one draw (or pair) is a randomised low-discrepancy set, and,
            for real values, what K would be for Gaussian data with the prior's covariance (`process.moments`, or as far
            as an exact denoiser says it; else that of noise) is a control variate of every term. Free of bias, much
            less noisy, and exact for a Gaussian prior; a term by itself, in `step_kl`, may then be negative. The
            standard error is then that of independent draws (or pairs), of which 4 have one degree of freedom.
            A prior's default.
        chunk: at most so many network calls are batched at a time, forward and backward; bounds the memory. A call of
            the estimator on a batch of examples keeps to it; the `log_prob` of a prior maps over its values, and
            batches so many calls for each of them.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> estimate = nd.KBound(4)(jax.random.key(0), process, jnp.zeros((3, 2)))
        >>> estimate.value.shape, estimate.standard_error.shape
        ((3,), (3,))

    Raises:
        ValueError: counts that are not whole numbers of at least 1; an odd `num_samples` above 1 with `antithetic`;
            `num_times` above T − 1 (when called).
    """

    num_samples: int = eqx.field(static=True)
    num_times: int | None = eqx.field(static=True)
    antithetic: bool = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    low_discrepancy: bool = eqx.field(static=True, default=False)

    def __init__(
        self,
        num_samples: int = 4,
        num_times: int | None = None,
        *,
        antithetic: bool = True,
        low_discrepancy: bool = False,
        chunk: int | None = None,
    ) -> None:
        self.num_samples = check_count("num_samples", num_samples)
        self.num_times = None if num_times is None else check_count("num_times", num_times)
        self.chunk = None if chunk is None else check_count("chunk", chunk)
        self.antithetic = bool(antithetic) and self.num_samples > 1
        self.low_discrepancy = bool(low_discrepancy)
        if self.antithetic and self.num_samples % 2:
            raise ValueError(f"num_samples: expected an even number (antithetic pairs), got {num_samples}")

    def calls(self, process: ReverseProcess) -> int:
        """How many network calls the estimate for one example makes: one for each term of each draw."""
        return self.num_samples * (1 + (self.num_times or process.num_steps - 1))

    def check(self, process: ReverseProcess) -> None:
        """No more times than the chain has steps between data and noise."""
        if self.num_times is not None and self.num_times > process.num_steps - 1:
            raise ValueError(f"num_times: expected at most T - 1 = {process.num_steps - 1}, got {self.num_times}")

    def estimate(self, key: PRNGKeyArray, process: ReverseProcess, x_0: Example) -> Estimate:
        """K for one example, shape () in nats; smooth in `x_0` for one `key` (Gaussian diffusions)."""
        self.check(process)
        count = process.num_steps - 1 if self.num_times is None else self.num_times
        samples = jnp.arange(self.num_samples)
        step, weight = jax.vmap(lambda sample: self._steps(key, process, sample, count))(samples)
        number = jnp.repeat(jnp.arange(2, count + 2), self.num_samples)
        first, inner = (samples, jnp.ones_like(samples)), (jnp.tile(samples, count), number)
        t = step.T.reshape(-1)
        if (self.chunk is None or self.calls(process) <= self.chunk) and not process.last_step.has_expectation:
            # One batch of network calls for all: the few at t = 1 cost far more each in one of their own.
            noise = self._all_noise(key, process, count)
            outputs = jax.vmap(partial(_outputs, process, x_0))(jnp.concatenate([jnp.ones_like(samples), t]), noise)
            part = lambda cut: jax.tree.map(lambda leaf: leaf[cut], (noise, outputs))
            at_1, above = part(slice(self.num_samples)), part(slice(self.num_samples, None))
            recon = jax.vmap(partial(self._last, process, x_0))(*at_1)
            kl = jax.vmap(partial(self._inner, process, x_0))(t, *above)
        else:
            draw = lambda point: self._noise(key, process, point[0], point[1], count)
            recon = batched_map(lambda point: self._last(process, x_0, draw(point)), first, self.chunk)
            kl = batched_map(lambda xs: self._inner(process, x_0, xs[1], draw(xs[0])), (inner, t), self.chunk)
        kl = weight * kl.reshape(count, self.num_samples).T
        return _assemble(process, x_0, step, kl, recon, self._error(kl, recon))

    def _steps(self, key: Array, process: ReverseProcess, sample: Array, count: int) -> tuple[Array, Array]:
        """One draw's steps and their weights, shape (count,) each."""
        if count == process.num_steps - 1:  # strata of one step each: nothing to draw
            return jnp.arange(2, count + 2), jnp.ones(count)
        own = jax.random.fold_in(jax.random.fold_in(key, self._replicate(sample)), 0)
        return stratified_steps(own, process.num_steps, count)

    def _replicate(self, sample: Array) -> Array:
        """The number of a draw's pair, or of the draw."""
        return sample // 2 if self.antithetic else sample

    def _last(self, process: ReverseProcess, x_0: Array, noise: Array, outputs: Any = None) -> Array:
        """Reconstruction term of one draw, shape ()."""
        recon = reconstruction(_with_outputs(process, outputs), x_0, noise)
        # Where whole numbers can be told apart no ½ ‖ε‖² is left to be taken out.
        if not process.is_smooth or process.last_step.has_expectation:
            return recon
        if self.low_discrepancy:
            return recon + moment_last_control(process, x_0, noise)
        return recon + last_control(process, x_0, NOISE_LAW, noise)

    def _inner(self, process: ReverseProcess, x_0: Array, t: Array, noise: Array, outputs: Any = None) -> Array:
        """KL term of one draw at step `t`, shape ()."""
        kl = step_kl(_with_outputs(process, outputs), x_0, t, noise)
        if not (self.low_discrepancy and process.is_smooth):
            return kl
        return kl - step_control(process, x_0, t, noise)

    def _error(self, kl: Array, recon: Array) -> StandardError:
        """Standard error of the mean over draws, shape (); NaN from one draw or pair.

        Terms whose noise is independent are each seen on their own, since the sum of so many variances is much steadier
        than the variance of a few sums.
        """
        parts = jnp.concatenate([recon[:, None], -kl], axis=1)
        if self.antithetic:
            parts = parts.reshape(-1, 2, parts.shape[1]).mean(axis=1)
        if self.low_discrepancy:
            parts = parts.sum(axis=1, keepdims=True)
        return standard_error(parts)

    def _noise(self, key: Array, process: ReverseProcess, sample: Array, number: Array, count: int) -> Array:
        """Standard noise for one draw and one of its 1 + `count` terms, numbered from 1.

        Drawn where it is used, so that with `chunk` no array of all of it exists.
        """
        noise = self._one_noise(key, process, self._replicate(sample), number, count)
        return jnp.where(sample % 2 == 0, noise, process.diffusion.mirror_noise(noise)) if self.antithetic else noise

    def _all_noise(self, key: Array, process: ReverseProcess, count: int) -> Array:
        """`_noise` of all terms of all draws, those of one number together; each pair's is drawn once."""
        replicates = jnp.arange(self.num_samples // (2 if self.antithetic else 1))
        one = lambda number: jax.vmap(lambda i: self._one_noise(key, process, i, number, count))(replicates)
        noise = jax.vmap(one)(jnp.arange(1, count + 2))
        if self.antithetic:
            # Not stacked: XLA would draw the noise again for each half.
            both = lambda noise: jax.vmap(lambda odd: jnp.where(odd, process.diffusion.mirror_noise(noise), noise))
            noise = jax.vmap(jax.vmap(lambda noise: both(noise)(jnp.arange(2) == 1)))(noise)
        return noise.reshape(-1, *process.event_shape)

    def _one_noise(self, key: Array, process: ReverseProcess, replicate: Array, number: Array, count: int) -> Array:
        diffusion, shape, own = process.diffusion, process.event_shape, jax.random.fold_in(key, replicate)
        if not self.low_discrepancy:
            return diffusion.marginal_noise(jax.random.fold_in(own, number), shape)
        point = low_discrepancy_point(own, number - 1, 1 + count, math.prod(shape))
        return diffusion.noise_from_uniform(point.reshape(shape))


def _outputs(process: ReverseProcess, x_0: Array, t: Array, noise: Array) -> Any:
    """What the denoiser's costly part says of the x_t that `noise` makes."""
    diffusion = process.diffusion
    return process.denoiser.outputs(diffusion, diffusion.marginal_from_noise(noise, x_0, t), t)


def _with_outputs(process: ReverseProcess, outputs: Any) -> ReverseProcess:
    """The process with outputs of its denoiser that were computed before; as it is without any."""
    if outputs is None:
        return process
    return eqx.tree_at(lambda p: p.denoiser, process, process.denoiser.with_outputs(outputs))


def step_kl(process: ReverseProcess, x_0: Example, t: Time, noise: Float[Array, "*event"]) -> Float[Array, ""]:
    """KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t)) at the x_t that `noise` makes, t ≥ 2; exact, nats, shape ()."""
    x_t = process.diffusion.marginal_from_noise(noise, x_0, t)
    return event_kl(process.diffusion.bridge(x_t, x_0, t, t - 1), process.inner_kernel(x_t, t, t - 1))


def reconstruction(process: ReverseProcess, x_0: Example, noise: Float[Array, "*event"]) -> Float[Array, ""]:
    """log p(x_0 | x_1) at the x_1 that `noise` makes, in nats, shape (); averaged in closed form where it can be."""
    diffusion = process.diffusion
    if process.last_step.has_expectation:
        return process.last_step.expected_log_prob(diffusion, x_0)
    x_1 = diffusion.marginal_from_noise(noise, x_0, 1.0)
    return process.last_kernel(x_1).log_prob(x_0)


def terminal_kl(process: ReverseProcess, x_0: Example, end: AnyTime | None = None) -> Float[Array, ""]:
    """KL(q(x_T|x_0) ‖ π) in nats, exact, shape (); at another time than T if `end` is given."""
    end = process.num_steps if end is None else end
    return -process.diffusion.marginal_entropy(x_0, end) - process.diffusion.expected_log_terminal(x_0, end)


def stratified_steps(
    key: PRNGKeyArray, num_steps: int, count: int
) -> tuple[Int[Array, " count"], Real[Array, " count"]]:
    """One step from each of `count` strata of 2 … T, and the strata's sizes; shape (count,) each."""
    edges = jnp.round(jnp.linspace(0, num_steps - 1, count + 1)).astype(int)
    size = jnp.diff(edges)
    within = jnp.floor(jax.random.uniform(key, (count,)) * size).astype(int)
    return 2 + edges[:-1] + jnp.minimum(within, size - 1), size.astype(float)


def _assemble(
    process: ReverseProcess, x_0: Array, step: Array, kl: Array, recon: Array, error: StandardError
) -> Estimate:
    diffusion, end = process.diffusion, process.num_steps
    null, cross_terminal = process.last_step.log_null(diffusion, x_0), diffusion.expected_log_terminal(x_0, end)
    entropy_terminal, entropy_first = diffusion.marginal_entropy(x_0, end), diffusion.marginal_entropy(x_0, 1.0)
    entropy_prior = diffusion.terminal_entropy(process.event_shape)
    forward = process.last_step.has_expectation
    correction = cross_terminal + entropy_prior + null - diffusion.expected_log_terminal(x_0, 1.0)
    terms = KTerms(
        kl=jnp.mean(jnp.sum(kl, axis=1)),
        reconstruction=jnp.mean(recon),
        kl_terminal=-entropy_terminal - cross_terminal,
        entropy_terminal=entropy_terminal,
        entropy_first=entropy_first,
        entropy_prior=entropy_prior,
        correction=correction if forward else jnp.zeros_like(correction),
        null=null,
        step=step,
        step_kl=kl,
    )
    return Estimate(terms.value, error.value, terms, "lower bound", error.degrees_of_freedom)
