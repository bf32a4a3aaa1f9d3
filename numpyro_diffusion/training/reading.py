"""What `fit` is given to learn from: arrays, an array in a file, or a stream of batches; and what is held out.

A run learns from an array, from an array in a file, or from a stream of batches; all become one kind of source
(`sources`), and what is held out is set aside. Values are checked at once where they are at hand, and otherwise when
they come: nothing that a process cannot be about is learned from in silence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..checkpoints import digest
from ..process import ReverseProcess
from ._arguments import are_examples, check_context, check_data, check_number, split, split_context, split_rows
from .sources import Called, InMemory, Iterated, OnDisk, Streamed

SAMPLE = 64  # rows by which a file is known again


class Read(NamedTuple):
    """What a run learns from.

    Attributes:
        source: of the examples of a step.
        held_out: shape (m, *event), m = 0 for none.
        held_out_context: their contexts, if they have some.
        size: how many examples there are to learn from; None for a stream.
        digests: what a checkpoint of the run is known by.
    """

    source: InMemory | Streamed
    held_out: Array
    held_out_context: Array | None
    size: int | None
    digests: dict[str, Any]


def read(
    key: Array, process: ReverseProcess, data: Any, validation: Any, context: Any, validation_context: Any
) -> Read:
    """Check what `fit` is given, and set aside what is held out.

    Raises:
        ValueError: see `fit`.
    """
    if (stream := _stream(data)) is not None:
        return _of_stream(process, stream, validation, context, validation_context)
    if isinstance(data, np.memmap):
        return _of_file(key, process, data, validation, context, validation_context)
    data = check_data("data", data, process)
    train, held_out = split(key, data, validation, process)
    context = check_context("context", context, process, len(data))
    contexts = split_context(key, context, validation, validation_context, process, len(held_out))
    digests = {"data": digest(train), "validation": digest(held_out)} | _said(contexts, context)
    return Read(InMemory((train, contexts[0])), held_out, contexts[1], len(train), digests)


def _of_stream(
    process: ReverseProcess, stream: Called | Iterated, validation: Any, context: Any, validation_context: Any
) -> Read:
    if context is not None:
        raise ValueError("context: expected None with a stream, whose batches are pairs (x, context), got some")
    if are_examples(validation):
        held_out = check_data("validation", validation, process)
        held_out_context = check_context("validation_context", validation_context, process, len(held_out))
    else:
        check_number("validation", validation, "held-out data, or 0 for none, with a stream", lambda x: x == 0)
        held_out, held_out_context = jnp.zeros((0, *process.event_shape)), None
    digests = {"data": "a stream", "validation": digest(held_out)}
    return Read(Streamed(stream, process), held_out, held_out_context, None, digests)


def _of_file(
    key: Array, process: ReverseProcess, data: np.ndarray, validation: Any, context: Any, validation_context: Any
) -> Read:
    """Values are checked batch by batch, and those of some rows now."""
    if data.shape[1:] != process.event_shape or data.ndim == 0 or not len(data):
        sizes = ", ".join(["n", *map(str, process.event_shape)])
        raise ValueError(f"data: expected shape ({sizes}) with n >= 1, got {data.shape}")
    few = check_data("data", data[:: max(1, len(data) // SAMPLE)], process)
    context = check_context("context", context, process, len(data))
    if are_examples(validation):
        rows, held_out = np.arange(len(data)), check_data("validation", validation, process)
    else:
        rows, held = split_rows(key, len(data), validation)
        held_out = check_data("validation", data[held], process) if len(held) else few[:0]
    contexts = split_context(key, context, validation, validation_context, process, len(held_out))
    digests = {"data": f"{data.shape} {digest(few)}", "validation": digest(held_out)} | _said(contexts, context)
    return Read(Streamed(OnDisk(data, rows, contexts[0]), process), held_out, contexts[1], len(rows), digests)


def _said(contexts: Any, context: Any) -> dict[str, Any]:
    return {} if context is None else {"context": digest(contexts)}


def _stream(data: Any) -> Called | Iterated | None:
    """The data as a stream, if they are neither an array nor what can be made one."""
    if callable(data):
        return Called(data)
    is_array = isinstance(data, Sequence) or hasattr(data, "__array__") or not hasattr(data, "__iter__")
    return None if is_array else Iterated(data)
