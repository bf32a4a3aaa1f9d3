"""Sequential Monte Carlo on the twisted chain."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from .._devices import Devices, check_devices, share
from ..factors import AbstractFactor
from ..process import ReverseProcess
from ..twists import AbstractTwist
from .base import AbstractPosteriorSampler
from .feynman_kac import Cloud, ParticleSampler, TwistedChain
from .ordering import curve_order
from .resampling import effective_size, normalise, systematic


class Particles(NamedTuple):
    """One run of SMC, N particles and K steps.

    Attributes:
        x: draws of x_0, shape (N, *event); to be used with their weights.
        log_weight: normalised log weights, shape (N,).
        log_evidence: log of an unbiased estimate of ∫ p(x) r(x) dx, in nats, shape ().
        effective_size: effective number of particles before each step and at the end, from T down, shape (K + 1,).
        ancestors: the particle that each came from at each step, shape (K, N).
    """

    x: Array
    log_weight: Array
    log_evidence: Array
    effective_size: Array
    ancestors: Array


class TwistedSMC(ParticleSampler, AbstractPosteriorSampler):
    r"""Particles that run the reverse chain led by a twist, weighted by what the lead gets wrong (Wu et al. 2023).

    *Consistent as particles grow*, for any factor and twist: the weighted particles tend to p(x_0) r(x_0)/Z under the
    model's own chain, and the evidence estimate is unbiased at any number of them. Particles are resampled
    (systematically) when their effective size falls below `threshold` · N; weights are kept to the end.

    `antithetic`, the default, leaves less to chance. Before each step particles are put in the order of a Hilbert curve
    through the two directions in which their predictions of x_0 differ most; systematic resampling then keeps the
    balance of whole regions (Gerber, Chopin and Whiteley 2019), and two neighbours step with opposite noise. The law of
    each particle, given those before, is the same, so that the evidence is *unbiased* here too.

    Args:
        num_particles: N, at least 2.
        twist: ψ_t; chosen from the factor unless given (`nd.twists.default_twist`).
        num_steps: how many steps of the chain to take, as for `Ancestral`; all unless given. With fewer, the target is
            the strided chain's posterior.
        threshold: resample below this fraction of effective particles, in [0, 1]; 0 never does.
        chunk: at most so many particles go through the denoiser at a time; bounds the memory, changes no number.
        antithetic: see above. For twists whose proposals are normal or of bits, which all of `nd.twists` are.
        devices: devices that share the particles, or how many of `jax.devices()`; they must divide `num_particles`.
            The numbers are the same but for the order of sums. One, where JAX puts it, unless given; with `chunk`, the
            chunks are still taken one after the other.

    Raises:
        ValueError: fewer than 2 particles, a threshold outside [0, 1], devices that do not fit.
    """

    antithetic: bool = eqx.field(static=True)
    devices: int | tuple[jax.Device, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        num_particles: int = 64,
        twist: AbstractTwist | None = None,
        *,
        num_steps: int | None = None,
        threshold: float = 0.5,
        chunk: int | None = None,
        antithetic: bool = True,
        devices: Devices | None = None,
    ) -> None:
        super().__init__(num_particles, twist, num_steps=num_steps, threshold=threshold, chunk=chunk)
        self.antithetic = bool(antithetic)
        check_devices(devices, self.num_particles, "num_particles")
        self.devices = devices if devices is None or isinstance(devices, int) else tuple(devices)

    def run(self, key: Array, process: ReverseProcess, factor: AbstractFactor) -> Particles:
        """One run.

        Args:
            key: JAX random key.
            process: the prior's reverse process.
            factor: r.

        Returns:
            `Particles`. A factor that is 0 at all particles gives a log evidence of −inf, no NaN.

        Raises:
            ValueError: a factor or a twist that does not fit the process.
        """
        chain = self.chain(process, factor, self.antithetic)
        first, inner, one, last = jax.random.split(key, 4)
        spread = check_devices(self.devices, self.num_particles)
        cloud = share(chain.first(first, self.num_particles), spread)

        def step(carry: tuple[Cloud, Array], xs: tuple[Array, ...]) -> tuple[tuple[Cloud, Array], Any]:
            key, t, s, after = xs
            pick, move = jax.random.split(key)
            cloud, log_evidence, size, ancestors = self._resample(pick, *carry, self._order(chain, carry[0], t, s))
            cloud = share(chain.advance(move, cloud, s, after), spread)
            return (cloud, log_evidence), (size, ancestors)

        times, after = chain.inner
        before = np.array(chain.times[:-2], dtype=int)
        steps = (jax.random.split(inner, len(times)), *map(jnp.asarray, (before, times, after)))
        carry, (sizes, ancestors) = jax.lax.scan(step, (cloud, jnp.zeros(())), steps)
        pick, move = jax.random.split(one)
        order = self._order(chain, carry[0], *map(jnp.asarray, chain.times[-2:]))
        cloud, log_evidence, size_one, ancestors_one = self._resample(pick, *carry, order)
        cloud = share(chain.reach_one(move, cloud), spread)
        pick, move = jax.random.split(last)
        order = self._order(chain, cloud)
        cloud, log_evidence, size_last, ancestors_last = self._resample(pick, cloud, log_evidence, order)
        x, log_weight = share(chain.finish(move, cloud), spread)
        sizes = jnp.concatenate([sizes, jnp.stack([size_one, size_last, effective_size(log_weight)])])
        log_evidence = log_evidence + logsumexp(log_weight) - jnp.log(float(self.num_particles))
        ancestors = jnp.concatenate([ancestors, ancestors_one[None], ancestors_last[None]])
        return Particles(x, normalise(log_weight), log_evidence, sizes, ancestors)

    def sample(self, key: Array, process: ReverseProcess, factor: AbstractFactor) -> Array:
        """One draw of x_0 from one run's particles, shape `event`: *consistent as particles grow*."""
        run, pick = jax.random.split(key)
        particles = self.run(run, process, factor)
        x = particles.x[jax.random.categorical(pick, particles.log_weight)]
        alive = particles.log_evidence > -jnp.inf
        return jnp.where(alive, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def _order(self, chain: TwistedChain, cloud: Cloud, t: Array | None = None, s: Array | None = None) -> Array | None:
        """The order in which particles at t are resampled and step to s, or without t from 1 to the data."""
        if not self.antithetic:
            return None
        if t is None or s is None:
            return curve_order(jax.vmap(lambda step: step.kernel.mean)(cloud.step))
        return curve_order(chain.predictions(cloud, t, s))

    def _resample(
        self, key: Array, cloud: Cloud, log_evidence: Array, order: Array | None
    ) -> tuple[Cloud, Array, Array, Array]:
        """Resample if need be: the cloud, the evidence so far, the effective size before, and every ancestor."""
        size = effective_size(cloud.log_weight)
        poor = self.poor(size)
        level = logsumexp(cloud.log_weight) - jnp.log(float(self.num_particles))
        same = jnp.arange(self.num_particles) if order is None else order
        ancestors = jnp.where(poor, same[systematic(key, cloud.log_weight[same])], same)
        log_weight = jnp.where(poor, 0.0, cloud.log_weight[same])
        taken = jax.tree.map(lambda leaf: leaf[ancestors], (cloud.x, cloud.step))
        return Cloud(taken[0], log_weight, taken[1]), log_evidence + jnp.where(poor, level, 0.0), size, ancestors
