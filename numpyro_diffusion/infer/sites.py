"""The diffusion site of a NumPyro model: found, given a value, or refused.

Inference about one site needs its law, its plates, and the rest of the model at values that it chooses. Effect handlers
run the model only as far as that site, put a value in its place, or zeros in the places of all diffusion sites, so that
no chain is run to look at a model. No mathematics is done here; sites that no method can take are refused by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.handlers import seed, trace
from numpyro.primitives import Messenger

from .._checks import check_callable
from ..distributions import DiffusionPosterior, DiffusionPrior
from .mixtures import Mixture, mixture_in


class Site(NamedTuple):
    """A latent diffusion site.

    Attributes:
        law: its distribution, with the batch shape that plates gave it and that `to_event` made part of the event.
        frames: the plates it is in.
        event_ndims: how many of the last batch dimensions `to_event` made part of the event.
    """

    law: DiffusionPrior | DiffusionPosterior
    frames: tuple[Any, ...]
    event_ndims: int

    @property
    def plate_ndims(self) -> int:
        """How many of the batch dimensions are the plates'."""
        return len(self.law.batch_shape) - self.event_ndims

    @property
    def prior(self) -> DiffusionPrior:
        """The prior, without the factor of a `DiffusionPosterior`."""
        return self.law.prior


def find_site(model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Site:
    """The diffusion site of that name; the model runs no further than it.

    Raises:
        ValueError: no such latent site, or one that is no diffusion site, is masked, scaled or inside a scan.
    """
    names: list[str] = []
    try:
        with _Finder(site, names):
            model(*args, **kwargs)
    except _Found as found:
        return found.site
    raise ValueError(f"site: expected the name of a latent site of the model, {sorted(names)}, got {site!r}")


def glance(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The names of the latent diffusion sites, and the trace of one run with zeros for them: no chain is run.

    Raises:
        TypeError: `model` is no function.
    """
    check_callable("model", model)
    zeros = Zeros(model)
    sites = trace(seed(zeros, rng_seed=0)).get_trace(*args, **kwargs)
    return zeros.names, sites


def only_site(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The name of the model's only latent diffusion site.

    Raises:
        ValueError: there is none, or more than one.
    """
    names, sites = glance(model, args, kwargs)
    if not names:
        latent = sorted(name for name, msg in sites.items() if msg["type"] == "sample" and not msg["is_observed"])
        raise ValueError(f"model: expected one latent diffusion site, got none among the latent sites {latent}")
    if len(names) > 1:
        raise ValueError(
            f"model: expected one latent diffusion site, got {sorted(names)}; name one, and give the others values"
        )
    return names[0]


def mixture_at(model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mixture | None:
    """The mixture of diffusion laws that a latent site has, if it has one."""
    names, sites = glance(model, args, kwargs)
    return mixture_in(sites[site]["fn"]) if site in names else None


class Given(Messenger):
    """Gives the site a value, and lets no other latent site go without."""

    def __init__(self, model: Callable[..., Any], site: str, value: Array) -> None:
        self.site, self.value = site, value
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Sets the value, before the site is sampled."""
        _refuse(msg, self.site)
        if msg["type"] == "sample" and msg["name"] == self.site:
            msg["value"] = self.value


class Zeros(Messenger):
    """Gives latent diffusion sites zeros, and notes their names, and those of the other latent sites."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.names: list[str] = []
        self.others: list[str] = []
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Sets the values, before the sites are sampled."""
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        law = msg["fn"]
        while isinstance(law, dist.Independent | dist.MaskedDistribution):
            law = law.base_dist
        mixture = mixture_in(law)
        one: Any = law if mixture is None else mixture.laws[0]
        if isinstance(one, DiffusionPrior | DiffusionPosterior):
            self.names.append(msg["name"])
            shape = msg["fn"].batch_shape + msg["fn"].event_shape
            msg["value"] = jnp.zeros(shape, one.process.diffusion.value_type)
        else:
            self.others.append(msg["name"])


class _Found(Exception):
    def __init__(self, site: Site) -> None:
        self.site = site


class _Finder(Messenger):
    """Stops at the site."""

    def __init__(self, site: str, names: list[str]) -> None:
        self.site, self.names = site, names
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        _refuse(msg, self.site)
        if msg["type"] == "control_flow":
            msg["kwargs"]["rng_key"] = jax.random.key(0)  # a scan runs first and shows its sites with values after
        if msg["type"] != "sample":
            return
        self.names.append(msg["name"])
        if msg["name"] != self.site:
            return
        if msg["is_observed"] or msg["value"] is not None:
            inside = "observed, given a value, or inside a scan"
            raise ValueError(f"site: expected a latent site outside of any scan, got {self.site!r}, which is {inside}")
        law, event = msg["fn"], 0
        while isinstance(law, dist.Independent):
            law, event = law.base_dist, event + law.reinterpreted_batch_ndims
        if not isinstance(law, DiffusionPrior | DiffusionPosterior):
            kind = type(law).__name__
            raise ValueError(f"site: expected a DiffusionPrior, or one times a factor, and no mask, got {kind}")
        if msg["scale"] is not None:
            raise ValueError(f"site: expected {self.site!r} without a scale, which would change the prior")
        raise _Found(Site(law, tuple(msg["cond_indep_stack"]), event))


def _refuse(msg: dict[str, Any], site: str) -> None:
    if msg["type"] == "plate" and msg["args"][1] is not None and msg["args"][0] > msg["args"][1]:
        raise ValueError(f"model: plate {msg['name']!r} subsamples, which an exact factor cannot")
    if msg["type"] == "control_flow" and msg["kwargs"].get("rng_key") is not None:
        raise ValueError("model: expected values for all latent sites inside a scan")
    latent = msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None
    if latent and msg["name"] != site:
        raise ValueError(
            f"model: expected a value for the other latent site {msg['name']!r}; give it with "
            f"numpyro.handlers.substitute(model, data={{{msg['name']!r}: …}}); the diffusion site is {site!r}"
        )
