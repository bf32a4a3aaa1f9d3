"""What one observation says about x, read from a NumPyro model of it.

A NumPyro model of one observation, with values of the parameters that all observations share, is a factor of x
(`extract_factor`), *exact* with all that does not depend on x, so that evidences under different parameters can be
compared. Parameters are ``numpyro.param`` sites, moved without their constraints by the bijections of NumPyro.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import biject_to, constraints
from numpyro.handlers import seed, substitute, trace

from ..distributions import DiffusionPrior
from ..factors import Product
from ..infer.extract import extract
from ..training.posterior_draws import Current, Reading


class Observed(eqx.Module):
    """A model of one observation, with its shared parameters given: what `draw` asks for a factor."""

    model: Callable[..., Any] = eqx.field(static=True)
    site: str = eqx.field(static=True)

    def __call__(self, now: Current, observation: Any) -> Reading:
        """The factor of x that the observation makes, with the density of what does not depend on x."""
        found = extract(self.given(now.params), self.site, (now.prior, observation), {})
        latent = found.in_latent()
        nothing = Product(())
        factor = nothing if latent.factor is None else latent.factor
        of_data = nothing if latent.of_data is None else latent.of_data
        return Reading(factor, latent.log_constant, of_data)

    def given(self, params: dict[str, Array]) -> Callable[..., Any]:
        """The model with these values of its parameters."""
        return substitute(self.model, data=params)

    def log_density(self, params: dict[str, Array], prior: DiffusionPrior, observation: Any, x: Array) -> Array:
        """Log density of the observed sites at one x, in nats, shape ()."""
        model = substitute(seed(self.given(params), 0), data={self.site: x})
        sites = trace(model).get_trace(prior, observation)
        total = jnp.zeros(())
        for name, site in sites.items():
            if site["type"] == "sample" and name != self.site:
                log_prob = site["fn"].log_prob(site["value"])
                total = total + jnp.sum(log_prob if site["scale"] is None else site["scale"] * log_prob)
            if site["type"] == "sample" and name == self.site:
                total = total + _own_factor(site["fn"], x)
        return total


def _own_factor(law: Any, x: Array) -> Array:
    """log r of a site that is itself a prior times a factor."""
    log_r = getattr(law, "log_r", None)
    return jnp.zeros(()) if log_r is None else jnp.sum(log_r(x))


class Unknowns(eqx.Module):
    """The parameters that all observations share: their first values, and where they may lie.

    Attributes:
        first: by name.
        supports: constraints, by name.
    """

    first: dict[str, Array]
    supports: dict[str, Any] = eqx.field(static=True)

    def free(self, params: dict[str, Array]) -> dict[str, Array]:
        """As numbers without constraints."""
        return {name: biject_to(self.supports[name]).inv(value) for name, value in params.items()}

    def bound(self, free: dict[str, Array]) -> dict[str, Array]:
        """Back from `free`."""
        return {name: biject_to(self.supports[name])(value) for name, value in free.items()}


def unknowns(model: Callable[..., Any], site: str, prior: DiffusionPrior, observation: Any) -> Unknowns:
    """The ``numpyro.param`` sites of the model.

    Raises:
        ValueError: another latent sample site than x: every observation would have one of its own.
    """
    zeros = jnp.zeros(prior.event_shape, prior.process.diffusion.value_type)
    run = substitute(seed(model, 0), data={site: zeros})
    sites = trace(run).get_trace(prior, observation)
    latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"] and n != site]
    if latent:
        raise ValueError(
            f"model: expected no latent site beside {site!r}, got {latent}; what all observations share is a "
            "numpyro.param"
        )
    found = {name: s for name, s in sites.items() if s["type"] == "param"}
    first = {name: jnp.asarray(s["value"], float) for name, s in found.items()}
    supports = {name: s["kwargs"].get("constraint", constraints.real) for name, s in found.items()}
    return Unknowns(first, supports)
