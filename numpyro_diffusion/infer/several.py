"""Sites of different priors that meet in one statement, as the parts of one site.

Independent priors that one statement ties together have a product for their joint prior: noise, denoisers and kernels
act part by part, as *exactly* as for one prior, and the factor alone couples the parts.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float
from numpyro.handlers import block, substitute
from numpyro.primitives import Messenger

from .._checks import alike
from .._shapes import AnyTime, Example
from .._structure import depends
from ..denoisers import AbstractDenoiser
from ..diffusions import AbstractDiffusion, GaussianDiffusion
from ..distributions import DiffusionPrior
from ..last_steps import AbstractLastStep
from ..laws import elements
from ..moments import LARGEST_WHOLE, Moments
from ..process import ReverseProcess
from .handed import prior_parents
from .joint import as_one_state
from .sites import find_site, glance, only_site


class Parts(AbstractDenoiser):
    """A denoiser of flat states that hold one after the other: each part by its own one of the `processes`."""

    processes: tuple[ReverseProcess, ...]

    def posterior(self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime) -> dist.Distribution:
        """The product of the parts' laws of x_0."""
        del diffusion
        parts = split(x_t, [part.event_shape for part in self.processes])
        pairs = zip(self.processes, parts, strict=True)
        return _merged([part.denoiser.posterior(part.diffusion, x, t) for part, x in pairs])

    def denoise(
        self, diffusion: AbstractDiffusion, x_t: Example, t: AnyTime, s: AnyTime | None = None
    ) -> tuple[dist.Distribution, dist.Distribution]:
        """The products of the parts' laws of x_0 and of their kernels."""
        del diffusion
        parts = split(x_t, [part.event_shape for part in self.processes])
        pairs = zip(self.processes, parts, strict=True)
        both = [part.denoiser.denoise(part.diffusion, x, t, s) for part, x in pairs]
        return _merged([posterior for posterior, _ in both]), _merged([kernel for _, kernel in both])

    def covariance(self, diffusion: AbstractDiffusion, event_shape: tuple[int, ...]) -> Float[Array, "d d"] | None:
        """Block by block that of the parts, if all are known."""
        del diffusion, event_shape
        found = []
        for part in self.processes:
            moments = part.moments
            known = moments is not None and moments.basis is not None
            found.append(_covariance(moments) if known else part.denoiser.covariance(part.diffusion, part.event_shape))
        return None if any(each is None for each in found) else block_diag(*found)

    @property
    def is_exact(self) -> bool:
        """Whether all parts are."""
        return all(part.denoiser.is_exact for part in self.processes)

    @property
    def is_gaussian(self) -> bool:
        """Whether all parts are."""
        return all(part.denoiser.is_gaussian for part in self.processes)


class LastSteps(AbstractLastStep):
    """The last steps of `Parts`."""

    def kernel(self, diffusion: AbstractDiffusion, denoiser: AbstractDenoiser, x_1: Example) -> dist.Distribution:
        """The product of the parts' kernels."""
        del diffusion
        parts: Any = denoiser
        pairs = zip(parts.processes, split(x_1, [part.event_shape for part in parts.processes]), strict=True)
        return _merged([part.last_kernel(x) for part, x in pairs])


class Part(NamedTuple):
    """One of the sites.

    Attributes:
        name: of the site.
        prior: of one state, whose events hold all that is not apart in `frames`.
        frames: the plates whose elements are apart.
    """

    name: str
    prior: DiffusionPrior
    frames: tuple[Any, ...]


class OneState(Messenger):
    """A model in which several diffusion sites are the parts of one, ``"x1+x2"``, whose events are flat.

    The joint site comes first, in the coordinates of the priors' processes; the sites themselves are deterministic.
    Where all of them are in the same plates, and each element of these has its own draw of every prior, so has the
    joint site; otherwise all elements are one state.

    Args:
        model: the NumPyro model.
        names: of the sites, at least two.

    Raises:
        ValueError: when run, sites that cannot be one state, by name.
    """

    def __init__(self, model: Callable[..., Any], names: list[str]) -> None:
        self.names, self.name = names, "+".join(names)
        self._values: dict[str, Array] = {}
        super().__init__(model)

    def __eq__(self, other: object) -> bool:
        # Each run makes one anew, and programs are compiled once for all that are equal.
        return isinstance(other, OneState) and (self.fn, self.names) == (other.fn, other.names)

    def __hash__(self) -> int:
        return hash((self.fn, self.name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, the joint site first."""
        with block():
            parts = self.parts(args, kwargs)
        joint = joint_prior([part.prior for part in parts])
        plates = [numpyro.plate(frame.name, frame.size, dim=frame.dim) for frame in parts[0].frames]
        for plate in plates:
            plate.__enter__()
        try:
            z = numpyro.sample(self.name, joint)
        finally:
            for plate in reversed(plates):
                plate.__exit__(None, None, None)
        self._values = values_of(parts, z)
        return super().__call__(*args, **kwargs)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Gives the sites their parts."""
        if msg["type"] == "sample" and msg["name"] in self._values:
            msg["type"], msg["value"] = "deterministic", self._values[msg["name"]]

    def parts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Part]:
        """The sites' priors, given the rest of the model."""
        found = {name: find_site(self.alone(name, args, kwargs), name, args, kwargs) for name in self.names}
        for name, site in found.items():
            if site.prior is not site.law:
                raise ValueError(
                    f"site: expected {name!r}, used together with others, to be a draw of a DiffusionPrior, got "
                    "one times a factor; make the factor a statement of the model (numpyro.factor)"
                )
        sites = list(found.values())
        apart = all(site.frames == sites[0].frames and not site.event_ndims for site in sites)
        independent = sites[0].plate_ndims if apart and len({site.law.batch_shape for site in sites}) == 1 else 0
        frames = sites[0].frames if independent else ()
        return [Part(name, as_one_state(site, name, independent), frames) for name, site in found.items()]

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise ``ValueError`` where the prior of one site depends on the value of another."""
        zeros = self._zeros(args, kwargs)
        for name in self.names:
            flat, unravel = ravel_pytree({other: value for other, value in zeros.items() if other != name})
            law = lambda flat, name=name, unravel=unravel: jax.tree.leaves(
                find_site(substitute(self.fn, data=unravel(flat)), name, args, kwargs).law
            )
            if any(depends(law, flat)):
                raise ValueError(f"site: expected a prior of {name!r} that depends on none of {self.names}, got one")

    def split(self, z: Array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Array]:
        """The sites' values in draws of the joint site, any leading dimensions."""
        return values_of(self.parts(args, kwargs), z)

    def alone(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """The model with zeros for the other sites."""
        others = {other: value for other, value in self._zeros(args, kwargs).items() if other != name}
        return substitute(self.fn, data=others)

    def _zeros(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Array]:
        _, sites = glance(self.fn, args, kwargs)
        return {name: jnp.zeros(sites[name]["fn"].shape()) for name in self.names}


def one_site(
    model: Callable[..., Any], site: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], str]:
    """A model with one latent diffusion site and its name: several sites, where none is named, are made one.

    Raises:
        ValueError: there is no such site; sites that cannot be one state.
    """
    if site is not None:
        return model, site
    names, _ = glance(model, args, kwargs)
    if len(names) < 2:
        return model, only_site(model, args, kwargs)
    whole = OneState(model, names)
    whole.check(args, kwargs)
    return whole, whole.name


def values_by_site(
    model: Callable[..., Any], site: str, draws: Array, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Array]:
    """Draws of the site that `one_site` found, by the names of the sites in it."""
    return model.split(draws, args, kwargs) if isinstance(model, OneState) else {site: draws}


def parents_by_site(
    model: Callable[..., Any],
    site: str | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Mapping[str, Any],
) -> dict[str, frozenset[str]]:
    """For the site, or each of the sites that are one state, the sites in `values` on which its prior depends."""
    if site is not None:
        return {site: prior_parents(model, site, args, kwargs, values)}
    whole = OneState(model, glance(model, args, kwargs)[0])
    return {name: prior_parents(whole.alone(name, args, kwargs), name, args, kwargs, values) for name in whole.names}


def joint_prior(priors: list[DiffusionPrior]) -> DiffusionPrior:
    """The prior of independent draws of several priors, flat and one after the other, without their transforms.

    Raises:
        ValueError: priors that are not of real numbers, or of other schedules, or with parameters that have a batch.
    """
    first = priors[0].process
    for prior in priors:
        process = prior.process
        if not process.is_smooth:
            raise ValueError("site: expected priors of real numbers for sites that are used together, got another")
        if prior.has_own_parameters:
            raise ValueError("site: expected priors without a batch of parameters for sites that are used together")
        if not alike(process.diffusion.schedule, first.diffusion.schedule):
            counts = [each.process.num_steps for each in (priors[0], prior)]
            raise ValueError(
                "site: expected priors of one schedule for sites that are used together, as fit_prior(…, schedule=…) "
                f"learns them, got two, of {counts[0]} and {counts[1]} steps"
            )
        steps = [each.sampler.chain_steps(each.process) for each in (priors[0], prior)]
        if steps[0] != steps[1]:
            raise ValueError(f"site: expected samplers of as many steps for sites that are used together, got {steps}")
    processes = tuple(prior.process for prior in priors)
    flat = lambda part, value: jnp.broadcast_to(value, part.event_shape).reshape(-1)
    diffusions: list[Any] = [part.diffusion for part in processes]
    loc, scale = (
        jnp.concatenate([flat(part, getattr(each, what)) for part, each in zip(processes, diffusions, strict=True)])
        for what in ("loc", "scale")
    )
    diffusion = GaussianDiffusion(first.diffusion.schedule, loc, scale)
    process = ReverseProcess(diffusion, Parts(processes), loc.shape, last_step=LastSteps(), moments=_moments(processes))
    return DiffusionPrior(process, sampler=priors[0].sampler).expand(priors[0].batch_shape)


def values_of(parts: list[Part], z: Array) -> dict[str, Array]:
    """The sites' values, of leading shape that of `z` without its last dimension."""
    pieces = split(z, [part.prior.event_shape for part in parts])
    return {part.name: part.prior.module.to_data(piece) for part, piece in zip(parts, pieces, strict=True)}


def split(z: Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    """The last dimension cut into pieces of these shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    pieces = jnp.split(z, ends[:-1], axis=-1)
    return [piece.reshape(z.shape[:-1] + shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _merged(laws: list[dist.Distribution]) -> dist.Distribution:
    """Normal laws of several events as one of a flat event."""
    pairs = [jnp.broadcast_arrays(elements(law).loc, elements(law).scale) for law in laws]
    loc, scale = (jnp.concatenate([jnp.ravel(pair[i]) for pair in pairs]) for i in (0, 1))
    return dist.Normal(loc, scale, validate_args=False).to_event(1)


def _moments(processes: tuple[ReverseProcess, ...]) -> Moments | None:
    found: list[Any] = [part.moments for part in processes]
    if any(each is None for each in found):
        return None
    variances = jnp.concatenate([each.variances for each in found])
    if all(each.basis is not None for each in found) and len(variances) <= LARGEST_WHOLE:
        return Moments(variances, block_diag(*(each.basis for each in found)))
    own = [each.variances if each.basis is None else jnp.diagonal(_covariance(each)) for each in found]
    return Moments(jnp.concatenate(own))


def _covariance(moments: Any) -> Array:
    return (moments.basis * moments.variances) @ moments.basis.T
