"""Moves of a model's other unknowns by an estimate of the likelihood without x: tempered, marginalised SMC.

Let θ be the other unknowns, and Ẑ(θ) the unbiased estimate of p(y | θ) that SMC of x gives. A Metropolis step for θ
with Ẑ in place of the likelihood, which keeps the estimate along with the point, leaves the posterior of θ *exactly*
invariant whatever the noise of Ẑ (Andrieu and Roberts 2009; Andrieu, Doucet and Holenstein 2010). Powers of Ẑ lead from
the prior to the posterior (Duan and Fulop 2015). Noise costs acceptance, and not correctness.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray

from .._batching import batched_map
from .._devices import share
from .others import Others, Position
from .tempering import AbstractMoves

# The share of moves that make another estimate where they are: what these differ by is the estimates' noise.
AGAIN = 0.125
# Degrees of freedom of the laws that proposals are made of: tails that are heavier than those of most targets.
FREEDOM = 5.0


class Estimated(NamedTuple):
    """Positions of the other unknowns, each with an estimate of its likelihood.

    Attributes:
        position: see `Position`.
        log_base: log density of the law at temperature 0, in nats, shape (); −inf where it is no number.
        log_likelihood: log of an unbiased estimate of what that law leaves, in nats, likewise.
        undefined: whether either of the two was NaN or +inf.
        features: values whose mixing counts, one vector.
        found: the draw of x that belongs to the estimate, and what speaks for it, a pytree.
        difference: of another estimate of the same likelihood from this one, in nats, the last one made at this
            temperature; NaN where there was none.
    """

    position: Position
    log_base: Array
    log_likelihood: Array
    undefined: Array
    features: Array
    found: Any
    difference: Array


class StudentT(NamedTuple):
    """A multivariate t law of `FREEDOM` degrees of freedom: location, and a triangular root of its scale."""

    loc: Float[Array, " d"]
    root: Float[Array, "d d"]

    @classmethod
    def of(cls, draws: Float[Array, "n d"]) -> "StudentT":
        """The law with about the mean and covariance of equally weighted draws, shape (n, D).

        The fewer draws, the less their correlations count.
        """
        count, size = draws.shape
        covariance = jnp.cov(draws, rowvar=False, bias=True).reshape(size, size)
        variance = jnp.diagonal(covariance)
        # Where all draws agree, any scale will do.
        least = jnp.where(variance > 0, 1e-6 * variance, 1.0)
        shrinkage = size / (count + size)
        covariance = (1 - shrinkage) * covariance + jnp.diag(shrinkage * variance + least)
        return cls(draws.mean(0), jnp.linalg.cholesky(covariance))

    def sample(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One draw, shape (D,)."""
        first, second = jax.random.split(key)
        v = jax.random.normal(first, self.loc.shape) * jnp.sqrt(FREEDOM / 2 / jax.random.gamma(second, FREEDOM / 2))
        return self.loc + self.root @ v

    def log_prob(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density, in nats, shape ()."""
        size, half = len(self.loc), (FREEDOM + len(self.loc)) / 2
        constant = gammaln(half) - gammaln(FREEDOM / 2) - size / 2 * math.log(FREEDOM * math.pi)
        return constant - jnp.sum(jnp.log(jnp.diagonal(self.root))) - half * jnp.log1p(self._square(x) / FREEDOM)

    def rotate(self, key: PRNGKeyArray, x: Float[Array, " d"], turn: Float[Array, ""]) -> Float[Array, " d"]:
        """A step that is reversible for the law: small for a small angle, a new draw for a quarter turn.

        The law is a normal one of random precision, which is drawn given x first; given that, the step is the
        preconditioned Crank-Nicolson one (Cotter et al. 2013).
        """
        first, second = jax.random.split(key)
        half = (FREEDOM + len(self.loc)) / 2
        precision = jax.random.gamma(first, half) / ((FREEDOM + self._square(x)) / 2)
        noise = jax.random.normal(second, x.shape) / jnp.sqrt(precision)
        return self.loc + jnp.cos(turn) * (x - self.loc) + jnp.sin(turn) * (self.root @ noise)

    def _square(self, x: Array) -> Array:
        return jnp.sum(jnp.square(solve_triangular(self.root, x - self.loc, lower=True)))


class Proposals(NamedTuple):
    """What positions are proposed from: of the real ones, and log shares of the discrete ones' values, (E, K)."""

    real: StudentT
    log_shares: Array


class MarginalMoves(AbstractMoves):
    r"""Pseudo-marginal Metropolis moves of the other unknowns θ: *exactly* invariant, whatever the estimate's noise.

    The target at temperature β is p(θ) q(u) Ẑ(θ, u)^β, where u is all that SMC of x given θ draws and Ẑ its unbiased
    estimate of p(y | θ): at β = 1 its marginal in θ is the posterior, and its integral the evidence. Each proposal has
    a run of its own (particle marginal Metropolis-Hastings, Andrieu, Doucet and Holenstein 2010), and is accepted by
    the ratio of the estimates, of which those at hand are kept. Source: Duan and Fulop 2015, "Density-tempered
    marginalized sequential Monte Carlo samplers".

    Args:
        others: the unknowns.
        estimate: (key, values of the unknowns) → the log estimate in nats, and what it found.
        below: the law at temperature 0 of those sites whose prior depends on x; None where there is none.
        chunk: at most so many estimates at a time.
        sharding: how the particles lie on devices.
    """

    wanted = 0.3

    def __init__(
        self,
        others: Others,
        estimate: Callable[[Array, dict[str, Array]], tuple[Array, Any]],
        below: StudentT | None,
        chunk: int | None,
        sharding: NamedSharding | None,
    ) -> None:
        self.others, self.estimate, self.below, self.chunk, self.sharding = others, estimate, below, chunk, sharding

    def blank(self, count: int) -> Estimated:
        """So many particles of mere zeros, which a move at temperature 0 makes draws of the law there."""
        one = jax.eval_shape(lambda key: self._evaluate(key, self._draw(key)), jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), one)

    def prior(self, key: PRNGKeyArray, count: int) -> Estimated:
        """Draws of the law at temperature 0."""

        def one(key: Array) -> Estimated:
            first, second = jax.random.split(key)
            return self._evaluate(second, self._draw(first))

        return self._each(one, jax.random.split(key, count))

    def at(self, points: Estimated, temperature: Float[Array, ""]) -> Estimated:
        """With their estimates: a new one would be of another particle."""
        del temperature
        return points._replace(difference=jnp.full_like(points.difference, jnp.nan))

    def law(self, points: Estimated) -> Proposals:
        """That of the particles themselves, a little wider for discrete sites."""
        return Proposals(StudentT.of(points.position.real), self._log_shares(points.position.whole))

    def move(
        self,
        key: PRNGKeyArray,
        points: Estimated,
        temperature: Float[Array, ""],
        angle: Float[Array, ""],
        law: Proposals,
    ) -> tuple[Estimated, Float[Array, " n"]]:
        """One proposal for each particle; at temperature 0 a new draw."""

        def one(pair: tuple[Array, Estimated]) -> tuple[Estimated, Array]:
            key, old = pair
            first, again, inner, last = jax.random.split(key, 4)
            stays = (jax.random.uniform(again) < AGAIN) & (temperature > 0)
            propose = lambda: self._propose(first, old.position, angle, law)
            position = jax.lax.cond(temperature > 0, propose, lambda: self._draw(first))
            position = jax.tree.map(lambda new, old: jnp.where(stays, old, new), position, old.position)
            new = self._evaluate(inner, position)
            log_ratio = self._gain(new, temperature, law) - self._gain(old, temperature, law)
            log_ratio = jnp.where(temperature > 0, jnp.minimum(log_ratio, 0.0), 0.0)
            log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
            accept = jnp.log(jax.random.uniform(last)) < log_ratio
            difference = jnp.where(stays, new.log_likelihood - old.log_likelihood, old.difference)
            chosen = jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, old)
            return chosen._replace(difference=difference), jnp.exp(log_ratio)

        return self._each(one, (jax.random.split(key, len(points.log_base)), points))

    def _draw(self, key: Array) -> Position:
        first, second = jax.random.split(key)
        return self.others.draw(first, None if self.below is None else self.below.sample(second))

    def _propose(self, key: Array, position: Position, angle: Array, law: Proposals) -> Position:
        """Continuous sites rotate; of the elements of discrete ones a share, by the same angle, are drawn anew."""
        turning, real, first, second = jax.random.split(key, 4)
        turn = angle * jax.random.uniform(turning, minval=0.3, maxval=1.2)
        drawn = jax.random.categorical(first, law.log_shares)
        changed = jax.random.uniform(second, drawn.shape) < jnp.sin(jnp.minimum(turn, math.pi / 2))
        return Position(law.real.rotate(real, position.real, turn), jnp.where(changed, drawn, position.whole))

    def _gain(self, point: Estimated, temperature: Array, law: Proposals) -> Array:
        """Log of the target over the law that proposals are reversible for."""
        whole = jnp.take_along_axis(law.log_shares, point.position.whole[:, None], 1).sum()
        return point.log_base + temperature * point.log_likelihood - law.real.log_prob(point.position.real) - whole

    def _evaluate(self, key: Array, position: Position) -> Estimated:
        others = self.others
        base, rest = others.log_prior(position), others.log_rest(position)
        log_likelihood, found = self.estimate(key, others.values(position))
        if self.below is not None:
            start = self.below.log_prob(position.real[others.is_below])
            base, rest = base + start, rest - start
        both = (base, log_likelihood + rest)
        bad = jnp.isnan(both[0]) | jnp.isposinf(both[0]) | jnp.isnan(both[1]) | jnp.isposinf(both[1])
        base, log_likelihood = (jnp.where(bad, -jnp.inf, value) for value in both)
        return Estimated(position, base, log_likelihood, bad, others.features(position), found, jnp.asarray(jnp.nan))

    def _each(self, one: Callable[[Any], Any], xs: Any) -> Any:
        return share(batched_map(one, share(xs, self.sharding), self.chunk), self.sharding)

    def _log_shares(self, whole: Array) -> Array:
        """Log shares of the values among the particles, each counted once more, shape (E, K)."""
        values = jnp.arange(max(self.others.counts, default=1))
        counts = jnp.sum(whole[..., None] == values, 0) + 1.0
        counts = jnp.where(values < self.others.counts[:, None], counts, 0.0)
        return jnp.log(counts / counts.sum(-1, keepdims=True))
