"""``numpyro-diffusion evaluate``: the K bound of data under a prior.

K ≤ log p(x_0) is estimated for every example by `KBound`, with noise and, of long chains, terms drawn at random: an
*unbiased* estimate of a lower bound. K − L_null is what the prior knows beyond the law of pure noise, free of the
data's units. Bits per dimension are −(K/d + log w)/log 2 for d elements dequantised by width w (1 where there is none),
a code length of data in steps of w. Data get noise of the width that the card of the prior names, unless told
otherwise; numbers that float32 cannot tell apart are refused. Errors are standard errors over the examples.
"""

import argparse
import json
import math
from typing import Any

import jax
import numpy as np
from jax import Array
from tqdm.auto import tqdm

from .._checks import check_event, check_finite
from .._compiled import compiled
from .._numbers import check_resolution
from ..hub import card, load
from ..likelihoods import KBound
from ._context import contexts_for
from ._tables import read_examples, recorded_columns

BAD_INPUT_STATUS = 2
_BATCH = 256


def run(options: argparse.Namespace) -> None:
    """Print K, K − L_null and bits per dimension."""
    prior, recorded = load(options.prior), card(options.prior)
    data = _checked(options.data, prior, recorded_columns(recorded))
    context = contexts_for(prior, options.context, len(data))
    data = data[: options.limit]
    terms = min(prior.process.num_steps - 1, options.terms or 100)
    likelihood = KBound(options.samples, terms, chunk=4096)
    width = _recorded(options.prior, recorded) if options.dequantize is None else options.dequantize
    if width and prior.process.diffusion.is_discrete:
        raise ValueError(f"--dequantize: expected 0 for a prior of bits, got {width}")
    data_key, key = jax.random.split(jax.random.key(options.seed))
    if width:
        data = data + width * (np.asarray(jax.random.uniform(data_key, data.shape)) - 0.5)
    value, gain = _bound(
        key, prior.with_(likelihood=likelihood), data, context, progress_bar=not (options.quiet or options.json)
    )
    result = _result(options, prior, value, gain, float(width))
    print(json.dumps(result) if options.json else _said(result))


def _checked(path: str, prior: Any, columns: tuple[str, ...] | None) -> np.ndarray:
    data = read_examples(path, columns).values
    lead = check_event(path, data.shape, prior.event_shape)
    if len(lead) != 1 or lead[0] == 0:
        sizes = ", ".join(["n", *map(str, prior.event_shape)])
        raise ValueError(f"{path}: expected shape ({sizes}) with n >= 1, got {data.shape}")
    check_finite(path, data)
    check_resolution(path, data)
    prior.process.diffusion.check_values(path, data)
    return data.astype(np.float32)


def _recorded(prior: str, card: dict[str, Any]) -> float:
    """The width of the dequantisation that a prior's card names."""
    width = card.get("dequantize", 0.0)
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 <= width < math.inf:
        raise ValueError(f"{prior}: expected a card whose dequantize is a number of at least 0, got {width!r:.80}")
    return width


def _bound(key: Array, prior: Any, data: np.ndarray, context: Any, progress_bar: bool) -> tuple[np.ndarray, np.ndarray]:
    """K and K − L_null of each example, in nats; batches of one size, so that one program serves all."""
    batch, parts = min(_BATCH, len(data)), []
    with tqdm(total=len(data), disable=not progress_bar, desc="evaluating", unit="example") as bar:
        for start in range(0, len(data), batch):
            index = np.minimum(np.arange(start, start + batch), len(data) - 1)
            count = min(batch, len(data) - start)
            told = None if context is None else context[index]
            found = _estimate(jax.random.fold_in(key, start), prior, data[index], told)
            parts.append(np.asarray(found)[:, :count])
            bar.update(count)
    value, gain = np.concatenate(parts, axis=1).astype(np.float64)
    return value, gain


@compiled
def _estimate(key: Array, prior: Any, x_0: np.ndarray, context: Array | None) -> tuple[Array, Array]:
    if context is None:
        found = prior.estimate(x_0, key=key)
    else:
        one = lambda key, context, x: prior.given(context).estimate(x, key=key)
        found = jax.vmap(one)(jax.random.split(key, len(x_0)), context, x_0)
    return found.value, found.terms.gain


def _result(
    options: argparse.Namespace, prior: Any, value: np.ndarray, gain: np.ndarray, width: float
) -> dict[str, Any]:
    count, size = len(value), int(np.prod(prior.event_shape))
    error = lambda x: float(x.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    code = -(value / size + np.log(width or 1.0)) / np.log(2)
    return {
        "prior": str(options.prior), "data": str(options.data), "examples": count, "dequantize": width,
        "bound": float(value.mean()), "bound_error": error(value),
        "gain": float(gain.mean()), "gain_error": error(gain),
        "bits_per_dim": float(code.mean()), "bits_per_dim_error": error(code),
        "unit": "nats per example",
    }  # fmt: skip


def _said(result: dict[str, Any]) -> str:
    pair = lambda name: f"{result[name]:.4f}" + ("" if (e := result[f"{name}_error"]) is None else f" ± {e:.4f}")
    step = f"dequantised by {result['dequantize']:g}" if result["dequantize"] else "data as they are"
    return (
        f"K             {pair('bound')} nats per example ({result['examples']} examples, {step})\n"
        f"K - L_null    {pair('gain')} nats per example\n"
        f"bits/dim      {pair('bits_per_dim')}"
    )
