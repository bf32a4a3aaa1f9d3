"""SMC of a model with other unknowns than x: draws of those, each with an SMC run of its own for x.

Draws of the other unknowns θ go from their prior to the posterior by powers of an unbiased estimate of p(y | θ), which
an SMC run over x makes (density-tempered marginalised SMC; Duan and Fulop 2015); `marginal` has the moves. Each draw
keeps one draw of x, of its own run. *Consistent as draws grow*, for any number of particles in the runs over x.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.handlers import seed, substitute, trace

from .._batching import batched_map
from .._compiled import compiled
from .._devices import agree, check_devices, check_hashing, collect, is_shared
from ..samplers import TwistedSMC
from .islands import traced_islands
from .marginal import Estimated, MarginalMoves, StudentT
from .others import Others, Values
from .several import one_site, values_by_site
from .sites import mixture_at
from .tempering import Records, Settings, anneal

# Each temperature keeps this effective share of the draws, and moves them at most so often.
SETTINGS = Settings(ess=0.6, num_moves=30, max_temperatures=200)
# So many draws of the whole prior fit the law from which sites whose prior depends on x begin.
FIT = 1000


class Found(NamedTuple):
    """What one run for x found.

    Attributes:
        x: one draw of each diffusion site, by its weights.
        least_size: the least effective number of particles at any step, shape ().
        label_probs: posterior probabilities of the labels of a mixture of priors, shape (*batch, labels); None where
            there is none.
    """

    x: Values
    least_size: Array
    label_probs: Array | None


class Island(NamedTuple):
    """One island's result.

    Attributes:
        values: draws of latent and deterministic sites, each with the draws in front.
        log_evidence: in nats, shape (); −inf where no draw had a likelihood.
        records: of temperatures and moves.
        noise: standard deviation, in nats, of the estimates of log p(y | other unknowns) at the posterior, shape ().
        least_size: effective particles of x at their fewest in a run, the median run of the posterior, shape ().
        label_probs: the mean of the draws' `label_probs`; None where there are none.
    """

    values: Values
    log_evidence: Array
    records: Records
    noise: Array
    least_size: Array
    label_probs: Array | None


def run_whole(
    model: Callable[..., Any],
    site: str | None,
    sampler: TwistedSMC,
    num_draws: int,
    key: Array,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Island:
    """Run one island, compiled; see `SMC`. Devices share the draws."""
    sharding = check_devices(sampler.devices, num_draws, "num_draws")
    check_hashing(sharding)
    found = _run_whole(model, site, sampler.on_one_device(), num_draws, key, args, kwargs, sharding)
    return collect(found, sharding) if is_shared(sharding) else found


@compiled
def _run_whole(
    model: Any, site: str | None, sampler: TwistedSMC, num_draws: int, key: Array, args: Any, kwargs: Any, sharding: Any
) -> Island:
    fit, key = jax.random.split(key)
    moves = moves_of(model, site, sampler, fit, args, kwargs, sharding)
    points, log_evidence, records = anneal(key, moves, moves.blank(num_draws), SETTINGS, blank=True)
    known = ~jnp.isnan(points.difference)
    # Two estimates, each with the noise; infinite where one of them was 0.
    noise = jnp.sqrt(jnp.var(points.difference, where=known) / 2)
    noise = jnp.where(jnp.any(jnp.isinf(points.difference)), jnp.inf, noise)
    values = batched_map(lambda point: _values(moves.others, point), points, moves.chunk)
    label_probs = None if points.found.label_probs is None else points.found.label_probs.mean(0)
    least_size = jnp.median(points.found.least_size)
    return agree(Island(values, log_evidence, records, noise, least_size, label_probs), sharding)


@compiled
def prior_weights(
    model: Any, site: str | None, sampler: TwistedSMC, num_draws: int, key: Array, args: Any, kwargs: Any
) -> Float[Array, " draws"]:
    """Log weights, in nats, of draws of the other unknowns, whose mean is an unbiased estimate of the evidence."""
    fit, first = jax.random.split(key)
    return moves_of(model, site, sampler, fit, args, kwargs, None).prior(first, num_draws).log_likelihood


def moves_of(
    model: Any, site: str | None, sampler: TwistedSMC, key: Array, args: Any, kwargs: Any, sharding: Any
) -> MarginalMoves:
    """The moves of a model's other unknowns, whose likelihood runs of `sampler` estimate."""
    others = Others(model, args, kwargs)
    chunk = None if sampler.chunk is None else max(1, sampler.chunk // sampler.num_particles)
    below = None
    if others.below:
        draws = batched_map(others.draw, jax.random.split(key, FIT), chunk)
        below = StudentT.of(draws.real[:, others.is_below])

    def estimate(key: Array, values: Values) -> tuple[Array, Found]:
        given, name = one_site(substitute(model, data=values), site, args, kwargs)
        run, pick = jax.random.split(key)
        particles, constant = traced_islands(given, name, sampler, run[None], args, kwargs)
        particles = jax.tree.map(lambda leaf: leaf[0], particles)
        index = jax.random.categorical(pick, particles.log_weight)
        batch = index.ndim
        where = index.reshape(index.shape + (1,) * (particles.x.ndim - batch))
        x = jnp.take_along_axis(particles.x, where, batch).squeeze(batch)
        mixture = mixture_at(given, name, args, kwargs)
        label_probs = None
        if mixture is not None:
            weight = jnp.exp(particles.log_weight)
            label_probs = weight.reshape((*weight.shape[:-1], len(mixture.laws), -1)).sum(-1)
        log_likelihood = particles.log_evidence.sum() + constant
        found = values_by_site(given, name, x, args, kwargs)
        return log_likelihood, Found(found, particles.effective_size.min(), label_probs)

    return MarginalMoves(others, estimate, below, chunk, sharding)


def _values(others: Others, point: Estimated) -> Values:
    """The latent and deterministic sites at one draw."""
    values = others.values(point.position) | point.found.x
    shown = trace(substitute(seed(others.model, 0), data=values)).get_trace(*others.args, **others.kwargs)
    return values | {name: msg["value"] for name, msg in shown.items() if msg["type"] == "deterministic"}
