"""The unknowns of a model beside its diffusion sites: their positions, their prior, and draws of it.

Sites beside the diffusion sites have positions: unconstrained real numbers for continuous ones, the number of a value
for elements of a few values. Their prior as a law of the position counts the log Jacobian of the constraint. Sites
whose own prior depends on a diffusion site are set apart, since their density belongs to that site's factor. The
model's density is so split into prior, factor and rest, *exactly*.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from numpyro.handlers import seed, substitute, trace

from .._checks import is_concrete
from .._structure import depends
from .noise_model import log_density, log_prior
from .sites import Zeros

Values = dict[str, Array]


class Position(NamedTuple):
    """Where the other unknowns are.

    Attributes:
        real: the continuous ones without their constraints, shape (D,).
        whole: the number of its value, among those that it can take, for every element of a discrete one, shape (E,).
    """

    real: Array
    whole: Array


class Others:
    """The latent sites of a model that are no diffusion sites.

    `given` is the model with values of a draw of the prior for them, `below` those whose own prior depends on a
    diffusion site.

    Args:
        model: the NumPyro model.
        args: its arguments.
        kwargs: its keyword arguments.

    Raises:
        ValueError: a site that has no position, by name.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        zeros = Zeros(model)
        shown = trace(seed(zeros, rng_seed=0)).get_trace(*args, **kwargs)
        self.names, self.diffusion = zeros.others, zeros.names
        for name in self.names:
            _check(name, shown[name])
        _check_scans(shown, trace(seed(Zeros(model), rng_seed=1)).get_trace(*args, **kwargs), zeros.others)
        real = {name: _position(shown[name]) for name in self.names if not _is_discrete(shown[name])}
        self.choices = {name: _choices(shown[name]) for name in self.names if _is_discrete(shown[name])}
        whole = {name: jnp.zeros(jnp.shape(shown[name]["value"]), int) for name in self.choices}
        example, self._unravel = ravel_pytree(real)
        whole_example, self._unravel_whole = ravel_pytree(whole)
        self.example = Position(example, whole_example.astype(int))
        self.counts = _along({name: np.full(whole[name].size, len(self.choices[name])) for name in whole})
        self.given = substitute(model, data={name: shown[name]["value"] for name in self.names})
        self.is_discrete = bool(self.choices)
        self.below = self._below(shown) if self.names else frozenset()
        self.tied = self._tied(shown) if self.names else []
        self.is_below = _along({name: np.full(real[name].size, name in self.below) for name in real}).astype(bool)

    def draw(self, key: Array, below: Float[Array, " below"] | None = None) -> Position:
        """The position of a draw of the prior.

        Args:
            key: JAX random key.
            below: the unconstrained values of the sites in `below`, which are then given, one vector; they are drawn
                too, with the diffusion sites, unless given.
        """
        if below is None and self.below:
            shown = trace(seed(self.model, key)).get_trace(*self.args, **self.kwargs)
        else:
            real = jnp.zeros(self.example.real.shape).at[self.is_below].set(0.0 if below is None else below)
            shown = self._run(key, self.example._replace(real=real), self.below)
        return self._place(shown)

    def values(self, position: Position) -> Values:
        """The sites' values at one position."""
        shown = self._at(position)
        return {name: shown[name]["value"] for name in self.names}

    def log_prior(self, position: Position) -> Float[Array, ""]:
        """Log density of the prior as a law of the position, without the sites in `below`, in nats, shape ()."""
        shown, real = self._at(position), self._unravel(position.real)
        own = [name for name in self.names if name not in self.below]
        each = [log_prior(shown[n], real[n]) if n in real else log_density(shown[n]) for n in own]
        return sum(each, jnp.zeros(()))

    def log_rest(self, position: Position) -> Float[Array, ""]:
        """What counts besides the prior and the factor of the diffusion sites, in nats, shape ().

        The densities of sites with a given value that depend on the position, and log |dx/du| of the sites in `below`,
        whose densities are in the factor.
        """
        shown, real = self._at(position), self._unravel(position.real)
        each = [log_density(shown[name]) for name in self.tied]
        for name in sorted(self.below):
            transform = biject_to(shown[name]["fn"].support)
            each.append(jnp.sum(transform.log_abs_det_jacobian(real[name], shown[name]["value"])))
        return sum(each, jnp.zeros(()))

    def features(self, position: Position) -> Float[Array, " features"]:
        """Numbers that say where a position is, one vector."""
        return jnp.concatenate([position.real, position.whole.astype(position.real.dtype)])

    def _place(self, shown: dict[str, Any]) -> Position:
        real = {n: _position(shown[n]) for n in self.names if n not in self.choices}
        nearest = lambda n: jnp.argmax(jnp.asarray(shown[n]["value"])[..., None] == self.choices[n], -1)
        whole = {name: nearest(name) for name in self.choices}
        return Position(ravel_pytree(real)[0], ravel_pytree(whole)[0].astype(int))

    def _at(self, position: Position) -> dict[str, Any]:
        return self._run(jax.random.key(0), position, frozenset(self.names))

    def _run(self, key: Array, position: Position, names: frozenset[str]) -> dict[str, Any]:
        """The model's sites, zeros for the diffusion sites, where those in `names` are at a position."""
        real, whole = self._unravel(position.real), self._unravel_whole(position.whole)

        def value(msg: dict[str, Any]) -> Array | None:
            name = msg["name"]
            if msg["type"] != "sample" or name not in names:
                return None
            if name in whole:
                return self.choices[name][whole[name].astype(int)]
            return biject_to(msg["fn"].support)(real[name])

        model = substitute(Zeros(self.model), substitute_fn=value)
        return trace(seed(model, key)).get_trace(*self.args, **self.kwargs)

    def _below(self, shown: dict[str, Any]) -> frozenset[str]:
        """The sites whose prior depends on a diffusion site, as the traced program has it."""
        flat, unravel = ravel_pytree({name: jnp.asarray(shown[name]["value"], float) for name in self.diffusion})
        others = {name: shown[name]["value"] for name in self.names}

        def densities(flat: Array) -> Values:
            model = substitute(seed(self.model, rng_seed=0), data=others | unravel(flat))
            found = trace(model).get_trace(*self.args, **self.kwargs)
            return {name: log_density(found[name]) for name in self._counted(found)}

        using = depends(densities, flat)
        self._of_data = {name for name, used in using.items() if used}
        below = frozenset(self._of_data & set(self.names))
        for name in sorted(below & set(self.choices)):
            raise ValueError(
                f"{name}: expected a discrete site whose prior does not depend on {sorted(self.diffusion)}; sum it out "
                "of the model"
            )
        return below

    def _tied(self, shown: dict[str, Any]) -> list[str]:
        """Sites with a given value whose density depends on the position and on no diffusion site."""
        own = {*self.names, *self.diffusion, *self._of_data}
        given = [n for n in self._counted(shown) if n not in own and not shown[n]["is_observed"]]
        if not given:
            return []
        place, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self.example))

        def densities(flat: Array) -> Values:
            at = unravel(flat)
            found = self._at(Position(at.real, at.whole.astype(int)))
            return {name: log_density(found[name]) for name in given}

        using = depends(densities, place)
        return [name for name in given if using[name]]

    def _counted(self, shown: dict[str, Any]) -> list[str]:
        samples = [name for name, msg in shown.items() if msg["type"] == "sample"]
        return [name for name in samples if name not in self.diffusion]


def others_of(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Others | None:
    """The other latent sites; None where there are none."""
    others = Others(model, args, kwargs)
    return others if others.names else None


def _along(each: dict[str, np.ndarray]) -> np.ndarray:
    """The arrays in the order in which `ravel_pytree` has them."""
    return np.concatenate([np.zeros(0, int), *(each[name] for name in sorted(each))])


def _is_discrete(msg: dict[str, Any]) -> bool:
    return bool(msg["fn"].support.is_discrete)


def _position(msg: dict[str, Any]) -> Array:
    return biject_to(msg["fn"].support).inv(msg["value"])


def _choices(msg: dict[str, Any]) -> Array:
    """The values that every element can take, shape (K,)."""
    return jnp.ravel(msg["fn"].enumerate_support(expand=False))


def _check(name: str, msg: dict[str, Any]) -> None:
    """Raise ``ValueError`` for a site that has no position."""
    law = msg["fn"]
    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if msg["scale"] is not None:
        raise ValueError(f"{name}: expected a latent site without a scale, which is no law to draw from, for SMC")
    if isinstance(base, dist.MaskedDistribution):
        raise ValueError(f"{name}: expected a latent site without a mask for SMC")
    if _is_discrete(msg) and (not law.has_enumerate_support or law.event_shape):
        raise ValueError(
            f"{name}: expected a continuous latent site, or single elements of a few values, for SMC, got "
            f"{type(base).__name__}; sum it out of the model"
        )


def _check_scans(first: dict[str, Any], second: dict[str, Any], latent: list[str]) -> None:
    """Raise ``ValueError`` for a site that a scan has drawn: its value is given, and changes with the key."""
    for name, msg in first.items():
        if msg["type"] != "sample" or msg["is_observed"] or name in latent:
            continue
        value, other = msg["value"], second[name]["value"]
        if is_concrete(value) and is_concrete(other) and not np.array_equal(value, other, equal_nan=True):
            raise ValueError(f"{name}: expected a latent site outside of any scan for SMC")
