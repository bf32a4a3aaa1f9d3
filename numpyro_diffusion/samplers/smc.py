"""Sequential Monte Carlo on the twisted chain.

Particles run the twisted chain and are resampled where their effective size is low. The product of the mean incremental
weights is an *unbiased* estimate of Z = ∫ p(x) r(x) dx, at any number of particles and for every positive twist, and
the weighted particles are *consistent* for p(x_0) r(x_0)/Z as they grow in number (Del Moral 2004; Whiteley and Lee
2014; for diffusion models Wu et al. 2023). Sorted resampling and antithetic steps lower the variance and keep both
(Gerber, Chopin and Whiteley 2019).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from .._checks import check_key
from .._devices import Devices, check_devices
from .._shapes import Example
from ..factors import AbstractFactor
from ..process import ReverseProcess
from ..twists import AbstractTwist, law_log_evidence
from .base import AbstractPosteriorSampler
from .feynman_kac import ParticleSampler
from .particles import Resample, run_particles
from .resampling import effective_size, normalise


class Particles(NamedTuple):
    """One run of SMC, N particles and K steps.

    Attributes:
        x: draws of x_0, shape (N, *event); to be used with their weights.
        log_weight: normalised log weights, shape (N,).
        log_evidence: log of an unbiased estimate of ∫ p(x) r(x) dx, in nats, shape ().
        effective_size: effective number of particles before each step and at the end, from T down, shape (K + 1,).
        ancestors: the particle that each came from at each step, shape (K, N).
        excess: `log_evidence` less that of the law that the denoiser is exact for, in nats, shape (), where that is a
            closed form (`nd.twists.law_log_evidence`); else None.
    """

    x: Shaped[Array, " n *event"]
    log_weight: Float[Array, " n"]
    log_evidence: Float[Array, ""]
    effective_size: Float[Array, " sizes"]
    ancestors: Int[Array, "steps n"]
    excess: Float[Array, ""] | None = None

    def beside_law(self, process: ReverseProcess, factor: AbstractFactor) -> "Particles":
        """With its `excess`."""
        exact = law_log_evidence(process, factor)
        return self._replace(excess=None if exact is None else self.log_evidence - exact)


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

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> factor = nd.factors.Gaussian(1.0, 0.5)
        >>> particles = nd.samplers.TwistedSMC(128).run(jax.random.key(0), process, factor)
        >>> particles.x.shape, particles.log_weight.shape
        ((128, 2), (128,))

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

    @property
    def said(self) -> str:
        """Particles, steps and twist in words."""
        steps = "" if self.num_steps is None else f", {self.num_steps} steps"
        opposite = ", antithetic" if self.antithetic else ""
        twist = "by rule" if self.twist is None else self.twist.said
        return f"{self.num_particles} particles{steps}{opposite}; twist {twist}"

    def on_one_device(self) -> "TwistedSMC":
        """The same, whose particles are not shared."""
        return TwistedSMC(
            self.num_particles, self.twist, num_steps=self.num_steps, threshold=self.threshold, chunk=self.chunk,
            antithetic=self.antithetic,
        )  # fmt: skip

    def run(self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor) -> Particles:
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
        sharding = check_devices(self.devices, self.num_particles)
        run = run_particles(key, chain, self.num_particles, Resample(self.threshold), sharding=sharding)
        sizes, ancestors = run.record
        sizes = jnp.append(sizes, effective_size(run.log_weight))
        found = Particles(run.x, normalise(run.log_weight), run.log_evidence, sizes, ancestors)
        return found.beside_law(process, factor)

    def sample(self, key: PRNGKeyArray, process: ReverseProcess, factor: AbstractFactor) -> Example:
        """One draw of x_0 from one run's particles, shape `event`: *consistent as particles grow*."""
        run, pick = jax.random.split(check_key("key", key))
        particles = self.run(run, process, factor)
        x = particles.x[jax.random.categorical(pick, particles.log_weight)]
        alive = particles.log_evidence > -jnp.inf
        return jnp.where(alive, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
