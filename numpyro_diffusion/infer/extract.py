"""From a NumPyro model to the factor of one diffusion site.

Given the other unknowns, a model's density as a function of the diffusion site x is its prior times a factor r(x), the
product of all sites that depend on x. The traced program shows which sites these are, and which are affine in x: no
numerical test with a tolerance decides it. Normal sites that are affine in x become linear-Gaussian factors, sites of
single bits or classes become tables of log weights, everything else stays a function. r is *exact* in every case; what
differs is the closed forms that later methods find.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import Partial
from numpyro.handlers import trace

from .._checks import check_callable, check_site
from .._structure import depends, is_affine, is_elementwise
from ..distributions import DiffusionPrior
from ..factors import (
    AbstractFactor,
    Factor,
    Gaussian,
    LinearGaussian,
    Product,
    by_value,
    pull_back,
    simplify,
    with_known,
)
from ..samplers.base import following
from .independence import check_independent
from .joint import as_one_state, independent_ndims, numbered, plate_first
from .one_of_plate import OneOfPlate
from .sites import Given, find_site, only_site


class Extraction(NamedTuple):
    """One diffusion site, and what the rest of the model says about it.

    Attributes:
        prior: the site's prior, with the batch shape that plates gave it; elements that other sites use together are
            dimensions of its events instead.
        factor: the product of all sites that depend on it, given the other latent sites, and of the site's own factor;
            None if there is none. For a prior with a batch shape its arrays have that in front.
        log_constant: log density of the observed sites that do not depend on it, in nats, shape ().
    """

    prior: DiffusionPrior
    factor: AbstractFactor | None
    log_constant: Array

    def in_latent(self) -> "Latent":
        """The same about z, of which a prior with a transform makes x: what samplers run on."""
        shape = self.prior.event_shape
        if self.prior.transform is None or self.factor is None:
            return Latent(self.prior, self.factor, self.log_constant, self.factor)
        pulled = lambda module, factor: pull_back(factor, module.transform, shape)
        factor, constant = self.prior.map_batch(pulled, self.factor)
        return Latent(self.prior, factor, self.log_constant + jnp.sum(constant), self.factor)


class Latent(NamedTuple):
    """An `Extraction` in the coordinates of the prior's process.

    Attributes:
        prior: see `Extraction`.
        factor: of z.
        log_constant: see `Extraction`; where known elements fix some of x, also their ``−log |dx/dz|``.
        of_data: the factor of x.
    """

    prior: DiffusionPrior
    factor: AbstractFactor | None
    log_constant: Array
    of_data: AbstractFactor | None

    def to_data(self, z: Array) -> Array:
        """The data that draws z stand for, known elements with their values; shape (*batch, *lead, *event)."""
        if self.prior.transform is None:
            return z
        fill = lambda module, pair: with_known(pair[0], module.to_data(pair[1]))
        return self.prior.map_batch(fill, (self.of_data, z))


def extract_factor(model: Callable[..., Any], site: str | None = None, /, *args: Any, **kwargs: Any) -> AbstractFactor:
    """The factor r(x) of one diffusion site of a NumPyro model: the product of all sites that depend on it.

    Observed and latent sites, `numpyro.factor`, plates, masks and scales count as they do in the model's own density.
    Other latent sites must have values (`numpyro.handlers.substitute` or `condition`). Normal and MultivariateNormal
    sites whose mean is affine in x, and whose noise does not depend on it, become `Gaussian` or `LinearGaussian`; for
    bits and classes, sites that look at single elements become `Elementwise` or `Categorical`; everything else becomes
    `Factor`. Affine is what the traced program shows to be affine, no numerical guess. The factor of a
    `DiffusionPosterior` is counted in. Classes are whole numbers to the model, with which it may look into a table.

    A site in a plate has one factor for each element, if all that depends on it is in the plate too. Where another site
    is outside of the plate, as a sum over the elements is, all elements are one state of shape (*plates, *event), and
    so they are where the site has a batch of its own or was made an event: the prior is the product of the elements',
    and the factor is one of that state. Plates to the left of such a plate still hold their elements apart.

    Args:
        model: the NumPyro model.
        site: name of the diffusion site; the only one if None, which arguments of the model must come after.
        *args: arguments of the model.
        **kwargs: keyword arguments of the model.

    Returns:
        The factor. For a site in plates its arrays have the batch shape in front: one factor for each of the batch.
        For elements used together there is one, of arrays of shape (*plates, *event).

    Example:
        >>> prior = nd.load("digits")
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).sum(), 1.0), obs=y)  # the sum of 64 pixels
        >>> factor = nd.infer.extract_factor(model, "x", 19.0)
        >>> type(factor).__name__, (prior * factor).event_shape
        ('LinearGaussian', (8, 8))

    Raises:
        ValueError: no such latent site, or it is no `DiffusionPrior` or `DiffusionPosterior`, is masked, scaled or
            inside a scan; another latent site without a value; a subsampling plate; a site in the same plate that uses
            other elements than its own; elements used together that have parameters or a factor of their own; nothing
            that depends on the site.
    """
    check_callable("model", model)
    name = only_site(model, args, kwargs) if check_site(site) is None else str(site)
    found = extract(model, name, args, kwargs)
    if found.factor is None:
        raise ValueError(f"site: nothing in the model depends on {name!r}, so it has no factor")
    return found.factor


def extract(model: Callable[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Extraction:
    """See `extract_factor`."""
    found = find_site(model, site, args, kwargs)
    run = lambda x: trace(Given(model, site, x)).get_trace(*args, **kwargs)
    diffusion = found.law.process.diffusion
    x = jnp.zeros(found.law.batch_shape + found.law.event_shape, diffusion.value_type)
    # Only names and static facts are taken from this trace; all values come from traces of their own.
    prototype = {name: msg for name, msg in run(x).items() if msg["type"] == "sample" and name != site}
    using = depends(lambda x: {name: _log_density(run(x)[name]) for name in prototype}, x)
    used = [name for name in prototype if using[name]]
    independent = independent_ndims(found, [prototype[name] for name in used])
    prior = as_one_state(found, site, independent)
    plates = _Plates(x.shape[:independent], found.plate_ndims)
    parts = [_part(run, name, prototype[name], x, plates, diffusion.num_values, site) for name in used]
    if found.law.factor.parts:
        parts = [found.law.map_batch(lambda module, _: module.factor, jnp.zeros(found.law.batch_shape)), *parts]
    rest = [_log_density(msg).sum() for name, msg in prototype.items() if msg["is_observed"] and name not in used]
    factor = parts[0] if len(parts) == 1 else Product(tuple(parts)) if parts else None
    if factor is not None and not independent:
        factor = simplify(factor, prior.event_shape)
    return Extraction(prior, factor, sum(rest, jnp.zeros(())))


def over_batch(fn: Callable[..., Any], sampler: Any, key: Array, found: Latent, *values: Array) -> Any:
    """``fn(sampler, key, module, factor, *values)`` for every element of the site's batch, each with its own key.

    `sampler` takes as many steps as it says, or else as the prior's own sampler does.
    """

    def one(module: Any, xs: tuple[Any, ...]) -> Any:
        key, factor, *rest = xs
        own = following(sampler, module.sampler, module.process)
        return fn(own, key, module, Product(()) if factor is None else factor, *rest)

    batch = found.prior.batch_shape
    keys = jax.random.split(key, batch) if batch else key
    return found.prior.map_batch(one, (keys, found.factor, *values))


def _log_density(msg: dict[str, Any]) -> Array:
    """Log density of a site as the model counts it, shape its batch shape."""
    log_prob = msg["fn"].log_prob(msg["value"])
    return log_prob if msg["scale"] is None else msg["scale"] * log_prob


class _Plates(NamedTuple):
    """The plates of a site."""

    shape: tuple[int, ...]  # of those that keep their elements apart, the first ones
    total: int  # how many dimensions all of them have

    @property
    def independent(self) -> int:
        return len(self.shape)

    def first(self, array: Array, event: int = 0) -> Array:
        """An array of the model with the dimensions of `shape` in front."""
        return plate_first(array, self.independent, self.total, event)


def _part(run: Any, name: str, msg: Any, x: Array, plates: _Plates, count: int | None, site: str) -> AbstractFactor:
    """The factor of one site, about elements of so many values, or real numbers."""
    if plates.independent:
        check_independent(lambda x: plates.first(_log_density(run(x)[name])), name, x, plates.independent, site)
    plain = msg["scale"] is None
    if count is not None:
        return (plain and _elementwise(run, name, x, count)) or _any(run, name, x, plates)
    return (plain and _gaussian(run, name, msg, x, plates)) or _any(run, name, x, plates)


def _elementwise(run: Any, name: str, x: Array, count: int) -> AbstractFactor | None:
    """The site as what single elements say, if it is that."""

    def each(x: Array) -> Array:
        msg = run(x)[name]
        base, mask, _ = _unwrap(msg["fn"])
        log_prob = base.log_prob(msg["value"])
        return log_prob if mask is None else jnp.where(mask, log_prob, 0.0)

    if not is_elementwise(each, x):
        return None
    return by_value(jnp.stack([each(jnp.full_like(x, value)) for value in range(count)], -1))


def _gaussian(run: Any, name: str, msg: Any, x: Array, plates: _Plates) -> AbstractFactor | None:
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
    offset, linear = jax.linearize(loc, x)
    push = lambda v: linear(jnp.asarray(v, dtype=x.dtype))  # grey levels are drawn as whole numbers
    seen = None if mask is None else jnp.broadcast_to(mask, shape)
    residual = jnp.broadcast_to(observed(x), shape) - offset
    residual = residual if seen is None else jnp.where(seen, residual, 0.0)
    if not correlated and is_elementwise(loc, x):
        scale = jnp.broadcast_to(noise(x), shape)
        scale = scale if seen is None else jnp.where(seen, scale, jnp.inf)
        return Gaussian(residual, scale, push(jnp.ones_like(x)))
    if correlated and (plates.independent or residual.ndim != 1 or mask is not None):
        return None
    if correlated:
        return LinearGaussian(residual, push, noise(x))
    scale = jnp.broadcast_to(noise(x), shape)
    if not plates.independent:
        return LinearGaussian(residual, push, scale, mask=seen)
    forward = lambda array: plates.first(array, event)
    each = OneOfPlate(lambda v: forward(push(v)), x.shape, plates.independent, x.dtype)
    operator = Partial(each, numbered(plates.shape))
    return LinearGaussian(forward(residual), operator, forward(scale), mask=None if seen is None else forward(seen))


def _any(run: Any, name: str, x: Array, plates: _Plates) -> AbstractFactor:
    """The site as any function of x."""
    if not plates.independent:
        return Factor(lambda x: _log_density(run(x)[name]).sum())
    log_density = OneOfPlate(lambda x: plates.first(_log_density(run(x)[name])), x.shape, plates.independent, x.dtype)
    return Factor(Partial(lambda index, x: log_density(index, x).sum(), numbered(plates.shape)))


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
