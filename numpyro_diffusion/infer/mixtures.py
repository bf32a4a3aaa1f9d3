"""A site whose law is one of several diffusion laws, by a label that is not known: `MixtureGeneral` of priors.

p(x) = Σ_k P(k) p_k(x), with diffusion laws p_k and a label k that is not known. Each law is run by itself. As P(k | y)
is in proportion to P(k) Z_k, with Z_k the evidence under p_k, the particles of all runs are one cloud, in which those
of a label count by its probability and evidence. Evidence and posterior are as *consistent* as those of the single
runs, and no sampler has to get from one label to another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.distributions.mixtures import MixtureGeneral
from numpyro.primitives import Messenger

from ..distributions import DiffusionPosterior, DiffusionPrior
from ..samplers import Particles

# Labels of less posterior probability do not count in the effective size.
_LEAST_SHARE = 0.001


class Mixture(NamedTuple):
    """A site whose law is one of several diffusion laws, by a label that is not known.

    Attributes:
        log_weights: log of the labels' probabilities, shape (*batch, labels) or (labels,).
        laws: one for each label.
        batch_shape: of the site, each element of which has a label of its own.
    """

    log_weights: Array
    laws: tuple[DiffusionPrior | DiffusionPosterior, ...]
    batch_shape: tuple[int, ...]


def mixture_in(fn: dist.Distribution) -> Mixture | None:
    """The mixture of diffusion laws inside, if there is one: a `MixtureGeneral`, also in plates or made an event."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    batch = fn.batch_shape
    while isinstance(fn, dist.ExpandedDistribution):
        fn = fn.base_dist
    if not isinstance(fn, MixtureGeneral):
        return None
    laws = tuple(fn.component_distributions)
    if not all(isinstance(law, DiffusionPrior | DiffusionPosterior) for law in laws):
        return None
    labels: Any = fn.mixing_distribution
    log_weights = labels.log_prob(jnp.arange(len(laws)).reshape((-1,) + (1,) * len(labels.batch_shape)))
    return Mixture(jnp.moveaxis(log_weights, 0, -1), laws, batch)


class Labelled(Messenger):
    """A model in which a site that has a mixture has the law of one label instead."""

    def __init__(self, model: Callable[..., Any], site: str, law: DiffusionPrior | DiffusionPosterior) -> None:
        self.site, self.law = site, law
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Puts the label's law in place, with the plates that the site is in."""
        if msg["type"] != "sample" or msg["name"] != self.site:
            return
        fn, event = msg["fn"], 0
        while isinstance(fn, dist.Independent):
            fn, event = fn.base_dist, event + fn.reinterpreted_batch_ndims
        law = self.law.expand(fn.batch_shape)
        msg["fn"] = law.to_event(event) if event else law


def together(runs: list[Particles], mixture: Mixture) -> Particles:
    """One cloud of the particles of all labels, each label's by its share and evidence.

    Labels of next to no weight do not count in the effective size; a chain of fewer steps joins later.
    """
    steps = max(run.ancestors.shape[-2] for run in runs)
    shape = runs[0].log_evidence.shape[1:]
    if shape != mixture.batch_shape:
        raise ValueError(
            f"site: expected a mixture whose elements, of batch shape {mixture.batch_shape}, are not used together, as "
            f"each has a label of its own, got states of batch shape {shape}"
        )
    weights = [run.log_evidence + mixture.log_weights[..., k] for k, run in enumerate(runs)]
    total = logsumexp(jnp.stack(weights), axis=0)
    count = runs[0].log_weight.shape[-1]
    sizes, ancestors = [], []
    for k, (run, weight) in enumerate(zip(runs, weights, strict=True)):
        missing = [(0, 0)] * (run.ancestors.ndim - 2) + [(steps - run.ancestors.shape[-2], 0)]
        matters = (weight - total > jnp.log(_LEAST_SHARE))[..., None]
        full = jnp.pad(run.effective_size, missing, constant_values=count)
        sizes.append(jnp.where(matters, full, count))
        same = jnp.broadcast_to(jnp.arange(count), (*run.ancestors.shape[:-2], missing[-1][0], count))
        ancestors.append(jnp.concatenate([same, run.ancestors], -2) + k * count)
    axis = 1 + len(shape)
    return Particles(
        jnp.concatenate([run.x for run in runs], axis),
        jnp.concatenate([run.log_weight + (w - total)[..., None] for run, w in zip(runs, weights, strict=True)], axis),
        total,
        jnp.min(jnp.stack(sizes), 0),
        jnp.concatenate(ancestors, -1),
    )


class Labels(NamedTuple):
    """Posterior probabilities of the labels.

    Attributes:
        probabilities: by the evidences of the labels, islands weighted by theirs, shape (*batch, labels).
        errors: their standard errors, from the variation between the islands; NaN from one.
    """

    probabilities: Array
    errors: Array


def labels_of(particles: Particles, count: int) -> Labels:
    """The labels' probabilities, from the particles of `together`."""
    weight = jnp.exp(particles.log_weight)
    each = weight.reshape((*weight.shape[:-1], count, -1)).sum(-1)
    island = jax.nn.softmax(particles.log_evidence, axis=0)[..., None]
    return Labels(jnp.sum(each * island, 0), jnp.std(each, axis=0, ddof=1) / jnp.sqrt(float(len(each))))
