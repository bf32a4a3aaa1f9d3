"""A model whose diffusion sites are given by their chains, or by the noise that makes them, and not by x_0 alone.

What other unknowns of a model must be drawn given is the chain x_0 … x_T of a site: its density given them is a closed
form. A bound on log p(x_0), which has no chain, is something else, and wrong there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Shaped
from numpyro.handlers import seed, substitute, trace
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from ..distributions import DiffusionPosterior, DiffusionPrior, ReverseTrajectory
from ..factors import with_known
from ..samplers import Ancestral
from .sites import find_site

_LAW = "diffusion law"


class Handing(NamedTuple):
    """What stands for each diffusion site, by name.

    Attributes:
        chains: how many steps the chain of each has, None for all.
        free: those whose prior depends on no other unknown, so that their chain's density is a constant.
        noises: those given by the standard-normal noise of their chain, and not by the chain itself.
    """

    chains: Mapping[str, int | None]
    free: frozenset[str] = frozenset()
    noises: frozenset[str] = frozenset()

    def without(self, names: Any) -> "Handing":
        """The same for other sites alone."""
        return self._replace(chains={name: steps for name, steps in self.chains.items() if name not in names})


class Handed(Messenger):
    """A model in which the value of a diffusion site is its chain, or noise, with its *exact* density.

    The rest of the model sees x_0 as it always does. The chain has shape (*batch, steps + 1, *event), x_0 first, in the
    coordinates of the prior's process; the noise has the same shape, x_T's first. The factor of a `DiffusionPosterior`
    counts as the site ``<name>_factor``.

    Args:
        model: the NumPyro model.
        handing: what stands for each site.
    """

    def __init__(self, model: Callable[..., Any], handing: Handing) -> None:
        self.handing = handing
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Puts the law of the chain, or of the noise, in place of the prior."""
        name = msg["name"]
        if msg["type"] != "sample" or name not in self.handing.chains:
            return
        msg[_LAW] = law = msg["fn"]
        one, event = _unwrapped(law)
        chain = chain_law(one.prior, self.handing.chains[name])
        if name in self.handing.noises:
            chain = dist.Normal(0.0, 1.0).expand(chain.batch_shape + chain.event_shape).to_event(len(chain.event_shape))
        elif name in self.handing.free:
            chain = chain.mask(False)
        msg["fn"] = chain.to_event(event) if event else chain

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Gives the model x_0."""
        if _LAW not in msg:
            return
        name, value = msg["name"], msg["value"]
        one, event = _unwrapped(msg.pop(_LAW))
        if name in self.handing.noises:
            sampler = Ancestral(self.handing.chains[name])
            there = lambda module, noise: module.to_data(sampler.from_noise(noise, module.process))
            x = one.prior.map_batch(there, value)
        else:
            x = data_of(one, value)
        msg["value"] = x
        if one.factor.parts:
            log_r = one.as_posterior().log_r(x)
            numpyro.factor(f"{name}_factor", log_r.sum(tuple(range(log_r.ndim - event, log_r.ndim))))


def chain_law(prior: DiffusionPrior, num_steps: int | None) -> ReverseTrajectory:
    """The law of the prior's chain, with its batch shape."""
    return prior._like(lambda parts: ReverseTrajectory(parts.process, num_steps, validate_args=False))


def data_of(law: DiffusionPrior | DiffusionPosterior, chain: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The data at the end of chains of shape (*batch, steps + 1, *event), known elements with their values.

    A transform that mixes elements gives known ones back with a little noise.
    """
    prior = law.prior
    x = chain[(slice(None),) * len(prior.batch_shape) + (0,)]
    if prior.transform is not None:
        x = prior.map_batch(lambda module, z: module.to_data(z), x)
    return law.as_posterior().map_batch(lambda parts, x: with_known(parts.factor, x), x)


def has_noise(law: DiffusionPrior | DiffusionPosterior) -> bool:
    """Whether the site's chain is a smooth function of noise, with nothing known about x that noise cannot meet."""
    return law.process.is_smooth and not law.factor.fixes_elements


def prior_parents(
    model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[str, Any]
) -> frozenset[str]:
    """The latent sites on which the prior of a diffusion site depends, as the traced program has it.

    Args:
        model: the NumPyro model.
        site: the diffusion site.
        args: the model's arguments.
        kwargs: its keyword arguments.
        values: of the other latent sites.
    """
    others = {name: value for name, value in values.items() if name != site}
    law = lambda given: find_site(substitute(model, data=given), site, args, kwargs).prior
    return frozenset().union(*jax.tree.leaves(_sources(law, others)))


def tied_by_data(
    model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[str, Any]
) -> frozenset[str]:
    """The latent sites that share the location of some data with a diffusion site, as the traced program has it.

    An amplitude of x is one, or an offset; the scale of the noise is not. Where a law of data has no mean, and for
    `numpyro.factor`, all that the law is made of counts.

    Args:
        model: the NumPyro model.
        site: the diffusion site.
        args: the model's arguments.
        kwargs: its keyword arguments.
        values: of all latent sites.
    """

    def laws(given: dict[str, Any]) -> list[tuple[Any, Any]]:
        shown = trace(substitute(seed(model, 0), data=given)).get_trace(*args, **kwargs)
        seen = [each["fn"] for each in shown.values() if each["type"] == "sample" and each["is_observed"]]
        return [(_mean(law), law) for law in seen]

    tied: frozenset[str] = frozenset()
    for of_mean, of_law in _sources(laws, values):
        # The mean of classes, or of a Cauchy law, is NaN, which depends on nothing.
        met = frozenset().union(*jax.tree.leaves(of_mean)) or frozenset().union(*jax.tree.leaves(of_law))
        tied |= met if site in met else frozenset()
    return tied - {site}


def _mean(law: dist.Distribution) -> Any:
    try:
        return law.mean
    except NotImplementedError:
        return None


def _sources(function: Callable[[dict[str, Any]], Any], values: Mapping[str, Any]) -> Any:
    """The names of the values on which each leaf of the answer depends, in the answer's tree."""
    names = list(values)
    # By number, as a site may have any name, and an argument only some.
    numbered = lambda **given: function({name: given[f"site_{i}"] for i, name in enumerate(names)})
    found = eval_provenance(numbered, **{f"site_{i}": values[name] for i, name in enumerate(names)})
    return jax.tree.map(lambda leaf: frozenset(name for i, name in enumerate(names) if f"site_{i}" in leaf), found)


def _unwrapped(fn: dist.Distribution) -> tuple[Any, int]:
    """The diffusion law inside, and how many of its batch dimensions are part of the event."""
    event = 0
    while isinstance(fn, dist.Independent):
        fn, event = fn.base_dist, event + fn.reinterpreted_batch_ndims
    return fn, event
