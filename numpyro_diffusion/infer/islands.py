"""Independent runs of a particle sampler for one site of a model, and equally weighted draws from their particles.

Islands are independent runs of one particle sampler. Each estimates the evidence, without bias where a twist leads the
particles, so that the log of their mean is the answer and their variation its standard error. Particles of all islands
together, each island weighted by its evidence, are *consistent as particles grow*, and are turned into equally weighted
draws by systematic resampling. A site whose law is a mixture of priors is run with each of them, and their particles
are joined by the labels' evidences.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Shaped

from .._compiled import compiled
from .._devices import agree, check_devices, check_hashing, collect, is_shared, share
from ..samplers import Particles, Reliability, reliability
from ..samplers.resampling import systematic
from .cross_check import CrossCheck, cross_check
from .evidence import evidence_error, weight_variance
from .extract import Latent, extract, over_batch
from .mixtures import Labelled, Labels, labels_of, together
from .noise_sampler import IslandSampler
from .plan import Plan, alternatives, badness, is_good, without_twist
from .several import values_by_site
from .sites import mixture_at


class IslandsRun(NamedTuple):
    """One try of a plan."""

    plan: Plan
    particles: Particles
    constant: Array

    @property
    def reliability(self) -> Reliability:
        """What speaks against it."""
        return reliability(self.particles)

    @property
    def log_evidences(self) -> Float[Array, " islands"]:
        """Of every island, in nats, shape (num_islands,)."""
        return self.particles.log_evidence.reshape(self.plan.num_islands, -1).sum(-1) + self.constant

    @property
    def log_evidence_error(self) -> float:
        """Standard error of the log of the islands' mean evidence, in nats; NaN from one island."""
        expected = self._weight_variances
        return evidence_error(self.log_evidences, None if expected is None else float(expected.sum()))

    @property
    def noise(self) -> float:
        """Standard deviation of an island's log evidence by its weights, in nats, the largest of the batch."""
        expected = self._weight_variances
        return 0.0 if expected is None else float(np.sqrt(expected.max()))

    @property
    def _weight_variances(self) -> np.ndarray | None:
        """Of each element of the batch, in nats²; None for several laws, whose weights are not one run's."""
        sampler, sizes = self.plan.sampler, self.particles.effective_size
        if self.particles.log_weight.shape[-1] != sampler.num_particles:
            return None
        return weight_variance(sizes, sampler.num_particles, sampler.threshold).mean(0)

    @property
    def is_good(self) -> bool:
        """Whether it needs no other try."""
        return is_good(self.reliability, self.noise)

    @property
    def badness(self) -> float:
        """To compare poor runs by."""
        return badness(self.reliability, self.noise)

    @property
    def more(self) -> Plan | None:
        """What to run where no other twist was enough; None after that."""
        return self.plan.larger(of_draws=False)

    @property
    def said(self) -> str:
        """The diagnostics in words."""
        found, count = self.reliability, self.plan.sampler.num_particles
        return (
            f"effective particles of {count}: at least {found.least_size:.0f} on the way, "
            f"{found.final_size:.0f} at the end; noise of weights {self.noise:.2f} nats; "
            f"Pareto k̂ {found.khat:.2f}; means within {found.mean_gap:.2f} sd"
        )

    def alternatives(self, found: Latent) -> list[Plan]:
        """Other twists to try."""
        return alternatives(found, self.plan)

    def without_twist(self, found: Latent, plan: Plan) -> Plan | None:
        """What to run instead of `plan` where no twist was well enough; None for nothing."""
        return without_twist(found, plan)

    def labels(self, count: int) -> Labels:
        """Of so many labels."""
        return labels_of(self.particles, count)


class Alone(NamedTuple):
    """A model of which x alone is unknown."""

    model: Any
    site: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, key: Array, plan: Plan) -> IslandsRun:
        """Run a plan."""
        keys = jax.random.split(key, plan.num_islands)
        return IslandsRun(plan, *run_islands(self.model, self.site, plan.sampler, keys, self.args, self.kwargs))

    def restored(self, plan: Plan, arrays: Any) -> IslandsRun:
        """A run from a checkpoint, all but its plan."""
        return IslandsRun(plan, *arrays)

    def draws(self, run: IslandsRun, key: Any, group_by_chain: bool) -> dict[str, Array]:
        """Equally weighted draws by site, see `SMC.get_samples`."""
        draws = equally_weighted(key, run.particles, group_by_chain)
        return values_by_site(self.model, self.site, draws, self.args, self.kwargs)

    def second_opinion(self, key: Array, plan: Plan, first: tuple[float, float], num_draws: int) -> CrossCheck:
        """See `SMC.cross_check`."""
        steps = plan.sampler.num_steps
        return cross_check(key, self.model, self.site, steps, first, num_draws, self.args, self.kwargs)


def run_islands(
    model: Any, site: str, sampler: IslandSampler, keys: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Particles, Float[Array, ""]]:
    """The particles of every island, one for each key, and the log density of sites without the diffusion site.

    A site that has a mixture of laws is run with each of them, and their particles are put together. Devices share the
    islands where their number divides among them, which then never wait for one another, and the particles of each
    island where it does not.
    """
    sharding = check_devices(sampler.devices, 0)
    check_hashing(sharding)
    apart = None
    if sharding is not None and len(keys) % sharding.mesh.size == 0:
        sampler, apart = sampler.on_one_device(), sharding
    if not is_shared(sharding):
        return _run_islands(model, site, sampler, keys, args, kwargs, apart, None)
    return collect(_run_islands(model, site, sampler, keys, args, kwargs, apart, sharding), sharding)


@compiled
def _run_islands(
    model: Any,
    site: str,
    sampler: IslandSampler,
    keys: Array,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    apart: NamedSharding | None,
    everywhere: NamedSharding | None,
) -> tuple[Particles, Array]:
    """`apart`: how islands lie on devices; `everywhere`: where all of the answer is wanted."""
    return agree(traced_islands(model, site, sampler, keys, args, kwargs, apart), everywhere)


def traced_islands(
    model: Any,
    site: str,
    sampler: IslandSampler,
    keys: Array,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    apart: NamedSharding | None = None,
) -> tuple[Particles, Float[Array, ""]]:
    """`run_islands` inside a compiled program; `apart`: how islands lie on devices."""
    mixture = mixture_at(model, site, args, kwargs)
    one = lambda model, keys: _of_one_law(extract(model, site, args, kwargs).in_latent(), sampler, keys, apart)
    return one(model, keys) if mixture is None else _of_mixture(model, site, mixture, keys, one)


def _of_mixture(
    model: Any, site: str, mixture: Any, keys: Array, run_one: Callable[[Any, Array], tuple[Particles, Array]]
) -> tuple[Particles, Array]:
    """The particles of all laws together. Laws of one layout, as of one network for every class, share a program."""
    run = lambda law, label: run_one(Labelled(model, site, law), jax.vmap(jax.random.fold_in, (0, None))(keys, label))
    labels = jnp.arange(len(mixture.laws))
    if len({(jax.tree.structure(law), *map(_kind, jax.tree.leaves(law))) for law in mixture.laws}) == 1:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixture.laws)
        layout = jax.tree.structure(mixture.laws[0])
        leaves = jax.tree.leaves(stacked)
        each, constants = jax.lax.map(lambda pair: run(jax.tree.unflatten(layout, pair[0]), pair[1]), (leaves, labels))
        runs = [jax.tree.map(lambda leaf, k=k: leaf[k], each) for k in range(len(labels))]
        return together(runs, mixture), constants[0]
    pairs = [run(law, label) for law, label in zip(mixture.laws, labels, strict=True)]
    return together([particles for particles, _ in pairs], mixture), pairs[0][1]


def _of_one_law(
    found: Latent, sampler: IslandSampler, keys: Array, apart: NamedSharding | None
) -> tuple[Particles, Array]:
    """The particles of all islands for a site with one law, in data coordinates."""
    run = lambda sampler, key, module, factor: sampler.run(key, module.process, factor)

    def island(key: Array) -> Particles:
        particles = over_batch(run, sampler, key, found)
        return particles._replace(x=found.to_data(particles.x))

    particles = share(jax.vmap(island)(share(keys, apart)), apart)
    return particles, found.log_constant


def _kind(leaf: Array) -> tuple[Any, ...]:
    return jnp.shape(leaf), jnp.result_type(leaf)


def check_evidence(log_evidences: Float[Array, " islands"], num_particles: int) -> None:
    """Raise ``ValueError`` if no island found a positive likelihood, or one no number."""
    evidence = np.asarray(log_evidences)
    if np.isneginf(evidence).all() or np.isnan(evidence).any():
        raise ValueError(
            f"model: expected a positive density of the observed sites somewhere, got 0 (or no number) at all "
            f"{num_particles} particles of every island"
        )


@compiled
def equally_weighted(key: Any, particles: Particles, group_by_chain: bool) -> Shaped[Array, "..."]:
    """Equally weighted draws by systematic resampling, as many as particles.

    Args:
        key: JAX random key.
        particles: of every island, leading shape (num_islands, *batch).
        group_by_chain: whether islands stay apart, each resampled by its own weights. Otherwise all particles are
            resampled together, islands weighted by their evidence, for every element of the batch.

    Returns:
        Shape (num_islands, num_particles, *batch, *event), or with the first two as one.
    """
    batch = particles.log_weight.ndim - 2
    weight = jnp.moveaxis(particles.log_weight, -1, 1)  # island, particle, *batch
    x = jnp.moveaxis(particles.x, batch + 1, 1)
    if not group_by_chain:
        weight = (weight + particles.log_evidence[:, None]).reshape((1, -1, *weight.shape[2:]))
        x = x.reshape((1, -1, *x.shape[2:]))
    draws = _resample(key, x, weight, batch)
    return draws if group_by_chain else draws[0]


def _resample(key: Any, x: Array, log_weight: Array, batch: int) -> Array:
    """Resample along axis 1, for every island and element of the batch on its own."""

    def one(key: Array, x: Array, log_weight: Array) -> Array:
        pick, mix = jax.random.split(key)
        # The order of systematic resampling is that of the particles; mixed, draws are exchangeable.
        return jax.random.permutation(mix, x[systematic(pick, log_weight)])

    shape = (x.shape[0], *x.shape[2 : 2 + batch])
    keys = jax.random.split(key, shape)
    resample = one
    for _ in range(batch):
        resample = jax.vmap(resample, in_axes=(0, 1, 1), out_axes=1)
    return jax.vmap(resample)(keys, x, log_weight)
