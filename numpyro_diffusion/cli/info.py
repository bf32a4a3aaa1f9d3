"""``numpyro-diffusion info``: what a prior file holds.

The description is read off the parts of the prior; the card is what was recorded when the file was written. No bound is
computed here. Arrays of more than eight numbers are said by their shape and range, so that a prior of images does not
fill pages. With ``--json`` one object and nothing else is printed, for programs to read. A file that names a class of
the user's own is refused, as by all commands: classes can be handed over in Python only (`hub.load`).
"""

import argparse
import json
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..hub import card, load, packaged

BAD_INPUT_STATUS = 2


def run(options: argparse.Namespace) -> None:
    """Print the description and the card."""
    if options.prior is None:
        found: dict[str, Any] = {name: card(name).get("data", "") for name in packaged()}
        print(json.dumps(found) if options.json else "\n".join(f"{name}: {about}" for name, about in found.items()))
        return
    found = _describe(load(options.prior)) | {"card": card(options.prior)}
    if options.json:
        print(json.dumps(found))
        return
    lines = {name: value for name, value in found.items() if name != "card"}
    lines |= {f"card: {name}": value for name, value in found["card"].items()}
    print("\n".join(f"{name}: {_text(value)}" for name, value in lines.items()))


def _describe(prior: Any) -> dict[str, Any]:
    """Family, shape, noise law, schedule and parts, as JSON holds them."""
    process = prior.process
    diffusion, schedule = process.diffusion, process.diffusion.schedule
    table = np.asarray(schedule.table)
    finite = table[np.isfinite(table)]
    law = {name: said if isinstance(said, str) else _numbers(said) for name, said in diffusion.description().items()}
    weights = jax.tree.leaves(eqx.filter(process.denoiser, eqx.is_inexact_array))
    return law | {
        "event_shape": list(prior.event_shape),
        "num_steps": process.num_steps,
        "schedule": f"{type(schedule).__name__}, log-SNR {finite[0]:.4g} to {finite[-1]:.4g}",
        "denoiser": process.denoiser.said,
        "weights": int(sum(leaf.size for leaf in weights)),
        "last_step": type(process.last_step).__name__,
        "transform": None if prior.transform is None else type(prior.transform).__name__,
        "likelihood": _settings(prior.likelihood),
        "sampler": _settings(prior.sampler),
    }


def _numbers(value: Any) -> Any:
    """A number, or a short list; the range of a longer one."""
    array = np.asarray(value, dtype=float)
    if array.size <= 8:
        return array.tolist()
    return {"shape": list(array.shape), "least": float(array.min()), "greatest": float(array.max())}


def _settings(module: Any) -> str:
    fields = ", ".join(f"{name}={value}" for name, value in vars(module).items() if value is not None)
    return f"{type(module).__name__}({fields})"


def _text(value: Any) -> str:
    """One line to read: numbers to four digits, a list of sentences by their number."""
    if isinstance(value, list) and any(isinstance(item, str) and " " in item for item in value):
        return f"{len(value)} lines, with --json"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
