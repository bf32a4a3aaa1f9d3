"""Parzen windows: how well a Gaussian blur of samples predicts other data.

A Parzen window is a mixture of equal Gaussians on samples, whose width a validation set chooses (Parzen 1962): the
protocol by which models without a density were once compared (Goodfellow et al. 2014; Sohl-Dickstein et al. 2015, Table
2). The log density is *exact* for that mixture; of the model's own it says little in many dimensions (Theis, van den
Oord and Bethge 2016).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .._checks import check_count, check_finite, check_positive, check_real
from .._numbers import as_numbers


class Parzen(NamedTuple):
    """A Parzen-window log-likelihood, in nats.

    Attributes:
        value: mean over the test examples.
        standard_error: of that mean, over the test examples; the samples' own randomness is not in it.
        log_prob: of each test example, shape (test,).
        bandwidth: σ, the standard deviation of the windows.
        validation: mean over the validation examples for each bandwidth that was tried, shape (bandwidths,); empty
            without a choice.
    """

    value: float
    standard_error: float
    log_prob: np.ndarray
    bandwidth: float
    validation: np.ndarray


def parzen(
    samples: ArrayLike,
    test: ArrayLike,
    validation: ArrayLike | None = None,
    *,
    bandwidth: ArrayLike | None = None,
    chunk: int = 500,
) -> Parzen:
    """Log density of test data under a mixture of equal Gaussians on the samples.

    log p̂(x) = log (1/n) Σ_s N(x; s, σ² I). *Exact* for that mixture; as an estimate of a model's own log density it is
    far too low in many dimensions, and it favours samples near the middle of the data, so that it can only be compared
    with itself: the same data, the same number of samples. For images in [0, 1] with 10,000 samples it is the protocol
    of the MNIST tables of Goodfellow et al. 2014 and Sohl-Dickstein et al. 2015.

    Args:
        samples: the model's samples, shape (n, *event).
        test: data to predict, shape (m, *event).
        validation: data on which the best of several bandwidths is chosen, shape (k, *event).
        bandwidth: σ, or several of them, shape (bandwidths,); ten from 0.1 to 1 in equal ratios unless given.
        chunk: test examples at a time; bounds the memory, with `chunk` × n distances.

    Returns:
        A `Parzen`, in nats and in the units of the data.

    Raises:
        TypeError: no numbers; an array with hidden values (a mask).
        ValueError: arrays whose examples have different shapes, that are empty or not finite; bandwidths that are not
            positive; several of them without `validation`.

    Source: Breuleux, Bengio and Vincent 2011; the settings are those of the code of Goodfellow et al. 2014.
    """
    if bandwidth is not None:
        check_real("bandwidth", bandwidth)
    tried = np.atleast_1d(np.logspace(-1, 0, 10) if bandwidth is None else np.asarray(bandwidth, dtype=float))
    check_finite("bandwidth", tried)
    check_positive("bandwidth", tried)
    points = _examples("samples", samples, None)
    check_count("chunk", chunk)
    scores = np.zeros(0)
    if len(tried) > 1:
        if validation is None:
            raise ValueError(f"validation: expected data to choose among {len(tried)} bandwidths by, got None")
        scores = _log_prob(points, _examples("validation", validation, points), tried, chunk).mean(axis=1)
        tried = tried[[np.argmax(scores)]]
    log_prob = _log_prob(points, _examples("test", test, points), tried, chunk)[0]
    error = log_prob.std(ddof=1) / np.sqrt(len(log_prob)) if len(log_prob) > 1 else np.nan
    return Parzen(float(log_prob.mean()), float(error), log_prob, float(tried[0]), scores)


def _examples(name: str, value: ArrayLike, like: np.ndarray | None) -> np.ndarray:
    """`value` as float numbers, shape (n, *event) with the event of `like`."""
    array = as_numbers(name, value)
    if array.ndim < 2 or array.size == 0 or (like is not None and array.shape[1:] != like.shape[1:]):
        event = "*event" if like is None else ", ".join(map(str, like.shape[1:]))
        raise ValueError(f"{name}: expected shape (n, {event}) with n >= 1, got {array.shape}")
    check_finite(name, array)
    return array.astype(np.result_type(array.dtype, np.float32))


def _log_prob(samples: np.ndarray, x: np.ndarray, bandwidth: np.ndarray, chunk: int) -> np.ndarray:
    """log p̂ of each example for each bandwidth, shape (bandwidths, examples)."""
    flat, x = samples.reshape(len(samples), -1), x.reshape(len(x), -1)
    middle = flat.mean(axis=0)  # smaller numbers round less in the squares
    points, sigma = jnp.asarray(flat - middle), jnp.asarray(bandwidth)
    chunk, parts = min(chunk, len(x)), []
    for start in range(0, len(x), chunk):
        index = np.minimum(np.arange(start, start + chunk), len(x) - 1)
        parts.append(np.asarray(_chunk(points, x[index] - middle, sigma), np.float64)[:, : len(x) - start])
    return np.concatenate(parts, axis=1) - x.shape[1] * np.log(bandwidth * np.sqrt(2 * np.pi))[:, None]


@jax.jit
def _chunk(points: Array, x: Array, sigma: Array) -> Array:
    """Log of the mean of exp(−‖x − s‖²/2σ²) over the samples s, shape (bandwidths, chunk)."""
    square = jnp.sum(x**2, 1)[:, None] + jnp.sum(points**2, 1) - 2 * jnp.matmul(x, points.T, precision="highest")
    square = jnp.maximum(square, 0)
    mean = lambda s: jax.nn.logsumexp(-square / (2 * s**2), axis=1) - jnp.log(len(points))
    return jax.lax.map(mean, sigma)
