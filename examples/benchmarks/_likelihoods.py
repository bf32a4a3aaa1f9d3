"""Likelihoods of linear looks m = rows @ x, as NumPyro models of one signature, for the benchmarks of `nd.infer.SMC`.

Every model is called as ``model(prior, y, rows, scale)`` and has the latent site "x"; with ``y=None`` it draws "y".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import log_ndtr
from numpyro.handlers import seed, substitute, trace

import numpyro_diffusion as nd

LIMIT = 0.0  # censored observations say only that they are below
WIDTH = 0.5  # of the intervals of quantised observations
CUTS = (-1.0, 0.0, 1.0)  # between the four answers of ordinal observations
FREEDOM = 2.0  # degrees of freedom of Student's t

Model = Callable[..., None]
KINDS: dict[str, Model] = {}


def kind(law: Callable[[Array, Any], dist.Distribution]) -> Model:
    """The model whose observations have the law ``law(m, scale)``, under the law's own name."""

    def model(prior: nd.DiffusionPrior, y: Any, rows: Any, scale: Any) -> None:
        x = numpyro.sample("x", prior)
        fitted = law(jnp.asarray(rows) @ x, scale)
        numpyro.sample("y", fitted.to_event(len(fitted.batch_shape)), obs=y)

    KINDS[law.__name__] = model
    return model


@kind
def linear(m: Array, scale: Any) -> dist.Distribution:
    return dist.Normal(m, scale)


@kind
def modulus(m: Array, scale: Any) -> dist.Distribution:
    return dist.Normal(jnp.abs(m), scale)


@kind
def square(m: Array, scale: Any) -> dist.Distribution:
    return dist.Normal(m**2, scale)


@kind
def exponential(m: Array, scale: Any) -> dist.Distribution:
    return dist.Normal(jnp.exp(m), scale)


@kind
def product(m: Array, scale: Any) -> dist.Distribution:
    """Each two neighbouring looks multiplied, from an even number of them."""
    return dist.Normal(m[::2] * m[1::2], scale)


@kind
def radius(m: Array, scale: Any) -> dist.Distribution:
    """The distance of all looks from 0; without the root's infinite slope there."""
    return dist.Normal(jnp.sqrt(jnp.sum(m**2) + 1e-12)[None], scale)


@kind
def poisson(m: Array, scale: Any) -> dist.Distribution:
    del scale
    return dist.Poisson(jnp.exp(m))


@kind
def negative_binomial(m: Array, scale: Any) -> dist.Distribution:
    return dist.NegativeBinomial2(jnp.exp(m), 1 / scale)


@kind
def logistic(m: Array, scale: Any) -> dist.Distribution:
    del scale
    return dist.BernoulliLogits(m)


@kind
def ordinal(m: Array, scale: Any) -> dist.Distribution:
    return dist.OrderedLogistic(m / scale, jnp.asarray(CUTS) / scale)


@kind
def student(m: Array, scale: Any) -> dist.Distribution:
    return dist.StudentT(FREEDOM, m, scale)


def censored(prior: nd.DiffusionPrior, y: Any, rows: Any, scale: Any) -> None:
    """Normal observations of which those below `LIMIT` are reported as `LIMIT`."""
    noisy = dist.Normal(jnp.asarray(rows) @ numpyro.sample("x", prior), scale)
    if y is None:
        numpyro.deterministic("y", jnp.maximum(numpyro.sample("whole", noisy.to_event(1)), LIMIT))
        return
    below = log_ndtr((LIMIT - noisy.loc) / scale)
    numpyro.factor("y", jnp.where(y > LIMIT, noisy.log_prob(y), below).sum())


def quantised(prior: nd.DiffusionPrior, y: Any, rows: Any, scale: Any) -> None:
    """Normal observations rounded to whole multiples of `WIDTH`."""
    noisy = dist.Normal(jnp.asarray(rows) @ numpyro.sample("x", prior), scale)
    if y is None:
        numpyro.deterministic("y", WIDTH * jnp.round(numpyro.sample("whole", noisy.to_event(1)) / WIDTH))
        return
    far = -jnp.abs(y - noisy.loc)  # both ends of the interval on the side of small probabilities, or across the middle
    upper, lower = log_ndtr((far + WIDTH / 2) / scale), log_ndtr((far - WIDTH / 2) / scale)
    numpyro.factor("y", (upper + jnp.log1p(-jnp.exp(lower - upper))).sum())


def hidden(prior: nd.DiffusionPrior, y: Any, rows: Any, scale: Any) -> None:
    """Normal observations as a bare factor, of which nobody can see that they are linear."""
    noisy = dist.Normal(jnp.asarray(rows) @ numpyro.sample("x", prior), scale)
    if y is None:
        numpyro.sample("y", noisy.to_event(1))
        return
    numpyro.factor("y", noisy.log_prob(y).sum())


KINDS |= {"censored": censored, "quantised": quantised, "hidden": hidden}


def simulate(key: Array, model: Model, x: Array, rows: Any, scale: Any) -> Array:
    """An observation of `x`."""
    sites = trace(seed(substitute(model, {"x": x}), key)).get_trace(placeholder(x.shape), None, rows, scale)
    return sites["y"]["value"]


def log_likelihood(model: Model, x: Array, *args: Any) -> Array:
    """Log density of everything but the prior, by NumPyro's own handlers, shape ()."""
    sites = trace(substitute(model, {"x": x})).get_trace(placeholder(x.shape), *args)
    used = [site for name, site in sites.items() if site["type"] == "sample" and name != "x"]
    return sum((jnp.sum(site["fn"].log_prob(site["value"])) for site in used), jnp.zeros(()))


def placeholder(shape: tuple[int, ...]) -> dist.Distribution:
    """Any law of this shape, where the value of the site is given."""
    return dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape))


def over(model: Model, args: tuple[Any, ...]) -> Callable[[Array], Array]:
    """`log_likelihood` of many x."""
    return jax.jit(jax.vmap(lambda x: log_likelihood(model, x, *args)))
