"""Independent runs of a particle sampler for one site of a model, and equally weighted draws from their particles."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..samplers import Particles, Reliability, TwistedSMC, reliability
from ..samplers.resampling import systematic
from .extract import extract, over_batch
from .mixtures import Labelled, together
from .plan import Plan
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


@eqx.filter_jit
def run_islands(
    model: Any, site: str, sampler: TwistedSMC, keys: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Particles, Array]:
    """The particles of every island, one for each key, and the log density of sites without the diffusion site.

    A site that has a mixture of laws is run with each of them, and their particles are put together.
    """
    mixture = mixture_at(model, site, args, kwargs)
    if mixture is None:
        return _islands(model, site, sampler, keys, args, kwargs)
    run = lambda law, key: _islands(
        Labelled(model, site, law), site, sampler, jax.vmap(jax.random.fold_in, (0, None))(keys, key), args, kwargs
    )
    labels = jnp.arange(len(mixture.laws))
    if len({(jax.tree.structure(law), *map(_kind, jax.tree.leaves(law))) for law in mixture.laws}) == 1:
        # Laws of one layout, such as the classes of one network, share their program.
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixture.laws)
        one = jax.tree.structure(mixture.laws[0])
        leaves = jax.tree.leaves(stacked)
        each, constants = jax.lax.map(lambda pair: run(jax.tree.unflatten(one, pair[0]), pair[1]), (leaves, labels))
        runs = [jax.tree.map(lambda leaf, k=k: leaf[k], each) for k in range(len(labels))]
        return together(runs, mixture), constants[0]
    pairs = [run(law, label) for law, label in zip(mixture.laws, labels, strict=True)]
    return together([particles for particles, _ in pairs], mixture), pairs[0][1]


def _islands(
    model: Any, site: str, sampler: TwistedSMC, keys: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Particles, Array]:
    """See `run_islands`, for one law."""
    found = extract(model, site, args, kwargs).in_latent()
    run = lambda sampler, key, module, factor: sampler.run(key, module.process, factor)

    def island(key: Array) -> Particles:
        particles = over_batch(run, sampler, key, found)
        return particles._replace(x=found.to_data(particles.x))

    return jax.vmap(island)(keys), found.log_constant


def _kind(leaf: Array) -> tuple[Any, ...]:
    return jnp.shape(leaf), jnp.result_type(leaf)


def check_evidence(log_evidences: Array, num_particles: int) -> None:
    """Raise ``ValueError`` if no island found a positive likelihood, or one no number."""
    evidence = np.asarray(log_evidences)
    if np.isneginf(evidence).all() or np.isnan(evidence).any():
        raise ValueError(
            f"model: expected a positive density of the observed sites somewhere, got 0 (or no number) at all "
            f"{num_particles} particles of every island"
        )


def equally_weighted(key: Any, particles: Particles, group_by_chain: bool) -> Array:
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
