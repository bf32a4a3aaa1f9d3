"""From a NumPyro model to the factor of one diffusion site."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import Partial
from numpyro.handlers import trace
from numpyro.primitives import Messenger

from ..distributions import DiffusionPrior
from ..factors import AbstractFactor, Elementwise, Factor, Gaussian, LinearGaussian, Product, simplify
from ..samplers import Ancestral
from .independence import check_independent
from .structure import depends, is_affine, is_elementwise


class Extraction(NamedTuple):
    """One diffusion site, and what the rest of the model says about it.

    Attributes:
        prior: the site's distribution, with the batch shape that plates gave it.
        factor: the product of all sites that depend on it, given the other latent sites; None if there is none. For a
            site in plates its arrays have the batch shape in front.
        log_constant: log density of the observed sites that do not depend on it, in nats, shape ().
    """

    prior: DiffusionPrior
    factor: AbstractFactor | None
    log_constant: Array


def extract_factor(model: Callable[..., Any], site: str, /, *args: Any, **kwargs: Any) -> AbstractFactor:
    """The factor r(x) of one diffusion site of a NumPyro model: the product of all sites that depend on it.

    Observed and latent sites, `numpyro.factor`, plates, masks and scales count as they do in the model's own density.
    Other latent sites must have values (`numpyro.handlers.substitute` or `condition`). Normal and MultivariateNormal
    sites whose mean is affine in x, and whose noise does not depend on it, become `Gaussian` or `LinearGaussian`; for
    bits, sites that look at single elements become `Elementwise`; everything else becomes `Factor`. Affine is what
    the traced program shows to be affine, no numerical guess.

    Args:
        model: the NumPyro model.
        site: name of the diffusion site.
        *args: arguments of the model.
        **kwargs: keyword arguments of the model.

    Returns:
        The factor. For a site in plates its arrays have the batch shape in front: one factor for each of the batch.

    Raises:
        ValueError: no such latent site, or it is no `DiffusionPrior`, is masked, scaled or inside a scan; another
            latent site without a value; a subsampling plate; a plated site that others use across the plate;
            nothing that depends on the site.
    """
    found = extract(model, site, args, kwargs)
    if found.factor is None:
        raise ValueError(f"site: nothing in the model depends on {site!r}, so it has no factor")
    return found.factor


def extract(model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Extraction:
    """See `extract_factor`."""
    prior, frames = find_prior(model, site, args, kwargs)
    run = lambda x: trace(_Given(model, site, x)).get_trace(*args, **kwargs)
    bits = prior.process.diffusion.element_support.is_discrete
    x = jnp.zeros(prior.batch_shape + prior.event_shape)
    # Only names and static facts are taken from this trace; all values come from traces of their own.
    prototype = {name: msg for name, msg in run(x).items() if msg["type"] == "sample" and name != site}
    using = depends(lambda x: {name: _log_density(run(x)[name]) for name in prototype}, x)
    used = [name for name in prototype if using[name]]
    parts = [_part(run, name, prototype[name], x, len(prior.batch_shape), bits, site, frames) for name in used]
    rest = [_log_density(msg).sum() for name, msg in prototype.items() if msg["is_observed"] and name not in used]
    factor = parts[0] if len(parts) == 1 else Product(tuple(parts)) if parts else None
    if factor is not None and not prior.batch_shape:
        factor = simplify(factor, prior.event_shape)
    return Extraction(prior, factor, sum(rest, jnp.zeros(())))


def find_prior(
    model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[DiffusionPrior, tuple[Any, ...]]:
    """The distribution of a diffusion site and the plates it is in; the model runs no further than the site."""
    names: list[str] = []
    try:
        with _Finder(site, names):
            model(*args, **kwargs)
    except _Found as found:
        return found.prior, found.frames
    raise ValueError(f"site: expected the name of a latent site of the model, {sorted(names)}, got {site!r}")


def over_batch(fn: Callable[..., Any], sampler: Any, key: Array, found: Extraction, *values: Array) -> Any:
    """``fn(sampler, key, module, factor, *values)`` for every element of the site's batch, each with its own key.

    `sampler` takes as many steps as it says, or else as the prior's own sampler does.
    """

    def one(module: Any, xs: tuple[Any, ...]) -> Any:
        key, factor, *rest = xs
        strided = sampler.num_steps is None and isinstance(module.sampler, Ancestral)
        steps = module.sampler.num_steps if strided else sampler.num_steps
        own = dataclasses.replace(sampler, num_steps=steps)
        return fn(own, key, module, Product(()) if factor is None else factor, *rest)

    batch = found.prior.batch_shape
    keys = jax.random.split(key, batch) if batch else key
    return found.prior.map_batch(one, (keys, found.factor, *values))


class _Found(Exception):
    def __init__(self, prior: DiffusionPrior, frames: tuple[Any, ...]) -> None:
        self.prior, self.frames = prior, frames


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
        if not isinstance(msg["fn"], DiffusionPrior):
            kind = type(msg["fn"]).__name__
            raise ValueError(f"site: expected a DiffusionPrior, neither masked nor made an event, got {kind}")
        if msg["scale"] is not None:
            raise ValueError(f"site: expected {self.site!r} without a scale, which would change the prior")
        raise _Found(msg["fn"], tuple(msg["cond_indep_stack"]))


class _Given(Messenger):
    """Gives the site a value, and lets no other latent site go without."""

    def __init__(self, model: Callable[..., Any], site: str, value: Array) -> None:
        self.site, self.value = site, value
        super().__init__(model)

    def process_message(self, msg: dict[str, Any]) -> None:
        _refuse(msg, self.site)
        if msg["type"] == "sample" and msg["name"] == self.site:
            msg["value"] = self.value


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


def _log_density(msg: dict[str, Any]) -> Array:
    """Log density of a site as the model counts it, shape its batch shape."""
    log_prob = msg["fn"].log_prob(msg["value"])
    return log_prob if msg["scale"] is None else msg["scale"] * log_prob


def _part(
    run: Any, name: str, msg: Any, x: Array, batch: int, bits: bool, site: str, frames: tuple[Any, ...]
) -> AbstractFactor:
    """The factor of one site."""
    if missing := [frame.name for frame in frames if frame not in msg["cond_indep_stack"]]:
        raise ValueError(
            f"model: {name!r} depends on {site!r} but is outside of its plate {missing[0]!r}: the elements of a plate "
            "must stay independent; use one site of a larger event instead"
        )
    plated = {frame.dim for frame in frames}
    if any(size > 1 and dim - batch not in plated for dim, size in enumerate(x.shape[:batch])):
        raise ValueError(f"site: expected the batch of {site!r} to come from plates, got a batch shape of its own")
    if batch:
        says = lambda x: _batch_first(_log_density(run(x)[name]), batch, 0)
        check_independent(says, name, x, batch, site)
    plain = msg["scale"] is None
    if bits:
        elementwise = plain and _bits(run, name, x)
        return elementwise or _any(run, name, x, batch)
    return (plain and _gaussian(run, name, msg, x, batch)) or _any(run, name, x, batch)


def _bits(run: Any, name: str, x: Array) -> AbstractFactor | None:
    def each(x: Array) -> Array:
        msg = run(x)[name]
        base, mask, _ = _unwrap(msg["fn"])
        log_prob = base.log_prob(msg["value"])
        return log_prob if mask is None else jnp.where(mask, log_prob, 0.0)

    if not is_elementwise(each, x):
        return None
    return Elementwise(each(jnp.ones_like(x)), each(x))


def _gaussian(run: Any, name: str, msg: Any, x: Array, batch: int) -> AbstractFactor | None:
    """The site as a Gaussian observation of x, if it is one."""
    base, mask, event = _unwrap(msg["fn"])
    if not isinstance(base, dist.Normal | dist.MultivariateNormal):
        return None
    correlated = isinstance(base, dist.MultivariateNormal)
    shape = jnp.broadcast_shapes(jnp.shape(msg["value"]), base.batch_shape + base.event_shape)

    def loc(x: Array) -> Array:
        return jnp.broadcast_to(_unwrap(run(x)[name]["fn"])[0].loc, shape)

    def noise(x: Array) -> Array:
        base = _unwrap(run(x)[name]["fn"])[0]
        return base.covariance_matrix if correlated else base.scale

    observed = lambda x: jnp.asarray(run(x)[name]["value"])
    if depends(lambda x: (noise(x), observed(x)), x) != (False, False) or not is_affine(loc, x):
        return None
    offset, push = jax.linearize(loc, x)
    seen = None if mask is None else jnp.broadcast_to(mask, shape)
    residual = jnp.broadcast_to(observed(x), shape) - offset
    residual = residual if seen is None else jnp.where(seen, residual, 0.0)
    if not correlated and is_elementwise(loc, x):
        scale = jnp.broadcast_to(noise(x), shape)
        scale = scale if seen is None else jnp.where(seen, scale, jnp.inf)
        return Gaussian(residual, scale, push(jnp.ones_like(x)))
    if correlated and (batch or residual.ndim != 1 or mask is not None):
        return None
    if correlated:
        return LinearGaussian(residual, push, noise(x))
    scale = jnp.broadcast_to(noise(x), shape)
    if not batch:
        return LinearGaussian(residual, push, scale, mask=seen)
    forward = lambda array: _batch_first(array, batch, event)
    index = jnp.arange(x.size // math.prod(x.shape[batch:])).reshape(x.shape[:batch])
    operator = Partial(_PlateMap(push, forward, x.shape, batch), index)
    return LinearGaussian(forward(residual), operator, forward(scale), mask=None if seen is None else forward(seen))


def _any(run: Any, name: str, x: Array, batch: int) -> AbstractFactor:
    """The site as any function of x."""
    if not batch:
        return Factor(lambda x: _log_density(run(x)[name]).sum())
    forward = lambda array: _batch_first(array, batch, 0)
    index = jnp.arange(x.size // math.prod(x.shape[batch:])).reshape(x.shape[:batch])
    log_density = _PlateMap(lambda x: _log_density(run(x)[name]), forward, x.shape, batch)
    return Factor(Partial(lambda index, x: log_density(index, x).sum(), index))


class _PlateMap:
    """A function of a whole batch as a function of one of its examples, which all of the batch are set to."""

    def __init__(self, function: Any, forward: Any, shape: tuple[int, ...], batch: int) -> None:
        self.function, self.forward, self.shape, self.batch = function, forward, shape, batch

    def __call__(self, index: Array, x: Array) -> Array:
        out = self.forward(self.function(jnp.broadcast_to(x, self.shape)))
        return out.reshape((-1, *out.shape[self.batch :]))[index]


def _batch_first(array: Array, batch: int, event: int) -> Array:
    """Move the last `batch` of the batch dimensions to the front."""
    end = array.ndim - event
    axes = list(range(array.ndim))
    return jnp.transpose(array, axes[end - batch : end] + axes[: end - batch] + axes[end:])


def _unwrap(fn: dist.Distribution) -> tuple[dist.Distribution, Any, int]:
    """The innermost distribution, the mask that counts for its elements, and how many event dimensions were added."""
    masks: list[tuple[Array, int]] = []
    event = 0
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((jnp.asarray(fn._mask, dtype=bool), event))
        elif isinstance(fn, dist.Independent):
            event += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    mask: Any = None
    for own, outside in masks:
        own = own.reshape(own.shape + (1,) * (event - outside))
        mask = own if mask is None else mask & own
    return fn, mask, event
