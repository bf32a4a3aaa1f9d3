"""``numpyro-diffusion sample``: draws of a prior, as an array and as a picture.

Every draw has a key of its own, made of the seed and its number, so that the first draws are the same whatever the
number of all and the size of batches. The last batch is filled up, so that one program serves all. ``--steps`` draws by
a shorter ancestral chain, whose law is *approximate* for that of the whole. What cannot be written is refused before
anything is drawn: a picture of what is no image, a table of what is no vector. The picture brings colours into [0, 1];
the array is as it was drawn.
"""

import argparse
from typing import Any

import jax
import numpy as np
from jax import Array
from matplotlib import pyplot
from tqdm.auto import tqdm

from .. import plots
from ..distributions import DiffusionPrior
from ..hub import card, load
from ..samplers import Ancestral
from ._arguments import writable
from ._context import contexts_for
from ._tables import recorded_columns, write_table

BAD_INPUT_STATUS = 2


def run(options: argparse.Namespace) -> None:
    """Draw, and write what was drawn."""
    output = writable("--output", options.output)
    prior = load(options.prior)
    image = None if options.image is None else writable("--image", options.image)
    shape = prior.event_shape
    as_table = output.suffix.lower() == ".csv"
    if as_table and len(shape) != 1:
        raise ValueError(f"--output: expected an .npy file for draws of shape {shape}, got {options.output!r}")
    if image is not None and (len(shape) not in (2, 3) or shape[2:] not in ((), (3,))):
        raise ValueError(f"--image: expected a prior of images, (height, width) or with 3 colours, got shape {shape}")
    if options.steps is not None:
        prior = prior.with_(sampler=Ancestral(options.steps))
    # Each draw has a key of its own: the first are the same, however many there are.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(options.seed), np.arange(options.number))
    context = contexts_for(prior, options.context, options.number)
    draws = _draw(keys, prior, context, options.batch, progress_bar=not options.quiet)
    if as_table:
        names = recorded_columns(card(options.prior)) or tuple(f"x{index}" for index in range(shape[0]))
        write_table(output, draws, names)
    else:
        with open(output, "wb") as file:  # a name without .npy stays as it is
            np.save(file, draws)
    print(f"wrote {output}: {options.number} draws of shape {shape}")
    if image is not None:
        axes = plots.samples(_displayed(draws))
        axes.figure.savefig(image, dpi=150)
        pyplot.close(axes.figure)
        print(f"wrote {image}")


def _draw(keys: Array, prior: Any, context: Any, batch: int, progress_bar: bool) -> np.ndarray:
    """One draw for each key; batches of one size, so that one program serves all."""
    batch, parts = min(batch, len(keys)), []
    with tqdm(total=len(keys), disable=not progress_bar, desc="sampling", unit="draw") as bar:
        for start in range(0, len(keys), batch):
            index = np.minimum(np.arange(start, start + batch), len(keys) - 1)
            count = min(batch, len(keys) - start)
            told = None if context is None else context[index]
            parts.append(np.asarray(_batch(prior, keys[index], told))[:count])
            bar.update(count)
    return np.concatenate(parts)


@jax.jit
def _batch(prior: DiffusionPrior, keys: Array, context: Array | None) -> Array:
    if context is None:
        return jax.vmap(prior.sample)(keys)
    return jax.vmap(lambda key, context: prior.given(context).sample(key))(keys, context)


def _displayed(draws: np.ndarray) -> np.ndarray:
    """Colours moved into [0, 1]; grey images as they are."""
    if draws.ndim == 3:
        return draws
    low, high = (0.0, 1.0) if draws.max() <= 2 and draws.min() >= -1 else (draws.min(), draws.max())
    return np.clip((draws - low) / (high - low), 0, 1)
