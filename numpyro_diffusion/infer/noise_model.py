"""A NumPyro model as a law of real numbers: diffusion sites by their noise, other latent sites without constraints.

The chain of a prior of real numbers makes x as a smooth function of standard normal noise, and any other continuous
site is a bijection of real numbers. A NumPyro model is then a density over one vector of real numbers: that of a normal
law for the noise, of the sites' priors with the bijections' log Jacobians for the others, times the likelihood. It is
*exact* for the prior's chain, and no bound takes part. Sites without such a position are refused by name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to
from numpyro.handlers import reparam, seed, substitute, trace
from numpyro.primitives import Messenger

from .._checks import is_concrete
from .._structure import depends
from ..distributions import DiffusionPosterior, DiffusionPrior
from .mixtures import mixture_in
from .reparam import DiffusionReparam

Values = dict[str, Array]


class LogDensities(NamedTuple):
    """The model at one position.

    Attributes:
        log_base: log density of the latent sites' prior as a law of the position, in nats, shape ().
        log_likelihood: of all that is observed, factors too, in nats, shape ().
        features: values of the diffusion sites and positions of the others, one vector.
    """

    log_base: Array
    log_likelihood: Array
    features: Array


class NoiseModel:
    """What `TemperedSMC` needs of a model: draws of the prior, its density and the likelihood.

    A position holds the noise of every diffusion site and the unconstrained value of every other latent site.

    Args:
        model: the NumPyro model.
        args: its arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: a latent site that has no position, by name; no latent site at all.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        diffusion = [name for name, msg in check_model(model, args, kwargs).items() if _law(msg["fn"]) is not None]
        self.diffusion, self.noises = sorted(diffusion), {f"{name}_noise" for name in diffusion}
        self._model = reparam(model, config=_config)
        reader = _Reader(self._model)
        shown = trace(seed(reader, jax.random.key(0))).get_trace(*args, **kwargs)
        self.latent = sorted(reader.latent)
        self.example = {name: jnp.zeros_like(_position(shown[name])) for name in self.latent}
        self._counted = self._observed(shown)

    def start(self, key: PRNGKeyArray) -> Values:
        """The position of a draw from the prior."""
        shown = trace(seed(self._model, key)).get_trace(*self.args, **self.kwargs)
        return {name: _position(shown[name]) for name in self.latent}

    def log_densities(self, position: Values) -> LogDensities:
        """The densities at one position."""
        shown = self._at(position)
        zero = jnp.zeros(())
        noise = sum((-0.5 * jnp.sum(jnp.square(position[name])) for name in sorted(self.noises)), zero)
        others = [name for name in self.latent if name not in self.noises]
        base = sum((log_prior(shown[name], position[name]) for name in others), noise)
        likelihood = sum((log_density(shown[name]) for name in self._counted), zero)
        seen = [shown[name]["value"] for name in self.diffusion] + [position[name] for name in others]
        return LogDensities(base, likelihood, jnp.concatenate([jnp.ravel(value) for value in seen]))

    def values(self, position: Values) -> Values:
        """The latent and deterministic sites at one position, without the noises."""
        kinds = ("deterministic", "sample")
        shown = {name: msg for name, msg in self._at(position).items() if msg["type"] in kinds}
        wanted = set(self.latent) - self.noises
        return {name: m["value"] for name, m in shown.items() if m["type"] == "deterministic" or name in wanted}

    @property
    def is_noise(self) -> dict[str, Array]:
        """For every element of a position, whether it is noise."""
        return {name: jnp.full(value.shape, name in self.noises) for name, value in self.example.items()}

    def _at(self, position: Values) -> dict[str, Any]:
        def value(msg: dict[str, Any]) -> Array | None:
            known = msg["type"] == "sample" and msg["name"] in position
            return biject_to(msg["fn"].support)(position[msg["name"]]) if known else None

        return trace(substitute(self._model, substitute_fn=value)).get_trace(*self.args, **self.kwargs)

    def _observed(self, shown: dict[str, Any]) -> list[str]:
        """Observed sites, and sites with a given value whose density depends on the position."""
        samples = [name for name, msg in shown.items() if msg["type"] == "sample" and name not in self.latent]
        flat, unravel = ravel_pytree(self.example)

        def densities(flat: Array) -> Values:
            at = self._at(unravel(flat))
            return {name: log_density(at[name]) for name in samples}

        using = depends(densities, flat)
        return [name for name in samples if shown[name]["is_observed"] or using[name]]


class _Reader(Messenger):
    """Notes the latent sites that have no value yet."""

    def __init__(self, model: Callable[..., Any], key: int = 0) -> None:
        self.latent: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.key = key
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Notes the site before it has a value."""
        if msg["type"] == "plate" and msg["args"][1] is not None and msg["args"][0] > msg["args"][1]:
            raise ValueError(f"model: plate {msg['name']!r} subsamples, which an exact likelihood cannot")
        if msg["type"] == "control_flow":
            msg["kwargs"]["rng_key"] = jax.random.key(
                self.key
            )  # a scan runs first and shows its sites with values after
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if msg["value"] is None:
            self.latent[msg["name"]] = dict(msg)
        else:
            self.given[msg["name"]] = msg["value"]


def check_model(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The latent sites' messages, by name.

    Raises:
        ValueError: one of them has no position, and is named; there is none; a plate subsamples.
    """
    first, second = _Reader(model, 0), _Reader(model, 1)
    for reader in (first, second):
        trace(seed(reader, jax.random.key(0))).get_trace(*args, **kwargs)
    for name, value in first.given.items():
        # A value that changes with the key is none that the user gave: a scan has drawn it.
        other = second.given[name]
        if is_concrete(value) and is_concrete(other) and not np.array_equal(value, other, equal_nan=True):
            raise ValueError(f"{name}: expected a latent site outside of any scan for TemperedSMC")
    if not first.latent:
        raise ValueError("model: expected a latent site, got a model that has none")
    for name, msg in first.latent.items():
        if reason := _reason(msg):
            raise ValueError(f"{name}: expected {reason}")
    return first.latent


def _reason(msg: dict[str, Any]) -> str | None:
    """What would have been expected instead of this latent site, if it does not fit."""
    smc = "nd.infer.SMC takes it"
    if msg["scale"] is not None:
        return "a latent site without a scale, which is no law to draw from, for TemperedSMC"
    prior = _law(msg["fn"])
    if prior is not None:
        got = "grey levels" if prior.process.diffusion.is_gaussian else "bits or classes"
        got = got if prior.process.is_normalised else "a product or power of priors"
        return (
            None if prior.process.is_smooth else f"a DiffusionPrior of real numbers for TemperedSMC, got {got}; {smc}"
        )
    if mixture_in(msg["fn"]) is not None:
        return f"one DiffusionPrior for TemperedSMC, got a mixture of several; {smc}"
    if isinstance(msg["fn"], dist.MaskedDistribution):
        return "a latent site without a mask for TemperedSMC"
    if msg["fn"].support.is_discrete:
        return f"a continuous latent site for TemperedSMC, got {type(msg['fn']).__name__}; sum it out of the model"
    return None


def _law(fn: dist.Distribution) -> DiffusionPrior | DiffusionPosterior | None:
    """The diffusion law inside, if there is one."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn if isinstance(fn, DiffusionPrior | DiffusionPosterior) else None


def _config(msg: dict[str, Any]) -> DiffusionReparam | None:
    latent = not msg["is_observed"] and msg["value"] is None
    return DiffusionReparam() if latent and _law(msg["fn"]) is not None else None


def _position(msg: dict[str, Any]) -> Array:
    return biject_to(msg["fn"].support).inv(msg["value"])


def log_density(msg: dict[str, Any]) -> Float[Array, ""]:
    """Log density of a site as the model counts it, summed."""
    log_prob = msg["fn"].log_prob(msg["value"])
    return jnp.sum(log_prob if msg["scale"] is None else msg["scale"] * log_prob)


def log_prior(msg: dict[str, Any], position: Float[Array, "..."]) -> Float[Array, ""]:
    """Log density of a latent site as a law of its position."""
    transform = biject_to(msg["fn"].support)
    volume = transform.log_abs_det_jacobian(position, msg["value"])
    return jnp.sum(msg["fn"].log_prob(msg["value"])) + jnp.sum(volume)
