"""Where the examples of a step come from: arrays on the devices, a file, or a stream of batches.

The examples of a step come from arrays on the devices, from a file, or from a stream, some batches of which are fetched
while the devices compute. Which examples a step learns from depends on the key and its number alone, for arrays and
files alike, so that runs can be resumed; a stream is asked to go on from where it was, or is read again up to there.
"""

import base64
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from numpyro.distributions.transforms import Transform

from .._devices import distribute, replicate
from ..process import ReverseProcess
from ._arguments import check_context, check_examples
from .data_moments import with_data_moments
from .resume import Progress
from .run import Examples, State, TrainingRun, advance, advance_once, chosen

ROOM = 4_096  # examples, of which memory may have twice as many
AHEAD = 2  # batches that are fetched while a step computes


class StreamEnded(Exception):
    """There is no batch for the next step."""


class InMemory:
    """Examples that lie on every device, of which each step draws its own."""

    failed = None

    def __init__(self, examples: Examples) -> None:
        self.size = jnp.asarray(len(examples[0]))
        self.examples: Examples = jax.tree.map(_with_room, examples)

    def with_moments(self, process: ReverseProcess, transform: Transform | None, dequantize: float) -> ReverseProcess:
        """The process with the covariance of the examples, unless it has one, or what it draws has a context."""
        data, context = self.examples
        if context is not None or process.moments is not None:
            return process
        return with_data_moments(process, transform, data[: int(self.size)], dequantize)

    def open(self, run: TrainingRun, key: Array, now: Progress) -> int:
        """The size of batches."""
        return min(run.batch_size, int(self.size))

    def shard(self, where: NamedSharding | None) -> None:
        """Put the examples on devices."""
        self.examples, self.size = replicate((self.examples, self.size), where)

    def steps(self, run: TrainingRun, key: Array, now: Progress, count: int) -> tuple[State, Array, Any]:
        """The state after `count` steps, their losses, and nothing to remember."""
        return *advance((run, key, *self.examples, self.size, count), now.state), None

    def close(self) -> None:
        """Nothing goes on."""


def _with_room(x: Array) -> Array:
    """Few examples followed by zeros, up to a power of two: runs of about as many share their compiled code."""
    if len(x) > ROOM:
        return x
    room = 1 << (len(x) - 1).bit_length()
    return jnp.pad(x, [(0, room - len(x))] + [(0, 0)] * (x.ndim - 1))


class Fetched(NamedTuple):
    """A batch on the host, its contexts, and where the stream is after it."""

    batch: np.ndarray
    context: Array | None
    place: Any


class Streamed:
    """Batches that come from the host, some of them fetched while the step before computes.

    Attributes:
        failed: what the stream raised in place of a batch: it is raised when the steps before it are kept.
    """

    def __init__(self, stream: "OnDisk | Called | Iterated", process: ReverseProcess) -> None:
        self.stream, self.process = stream, process
        self.ahead: deque[Future[Fetched]] = deque()
        self.pool = ThreadPoolExecutor(1, "batches")
        self.size: int | None = None
        self.next = 0
        self.where: NamedSharding | None = None
        self.failed: Exception | None = None

    def with_moments(self, process: ReverseProcess, transform: Transform | None, dequantize: float) -> ReverseProcess:
        """The process as it is: what a stream will bring is not known."""
        del transform, dequantize
        return process

    def open(self, run: TrainingRun, key: Array, now: Progress) -> int:
        """Go to where the run is; the size of batches there."""
        self.next = int(now.state.step)
        self.stream.seek(self.next, now.place, run, key)
        self._fetch_ahead()
        try:
            return len(self.ahead[0].result().batch)
        except StreamEnded:
            raise ValueError("data: expected batches, got a stream without any more") from None

    def shard(self, where: NamedSharding | None) -> None:
        """Put batches on devices, once they come."""
        self.where = where

    def steps(self, run: TrainingRun, key: Array, now: Progress, count: int) -> tuple[State, Array, Any]:
        """The state after up to `count` steps, fewer where the stream fails; their losses; where the stream is."""
        state, losses, place = now.state, [], now.place
        first = int(state.step)
        for step in range(first, first + count):
            self._fetch_ahead()
            try:
                fetched = self.ahead[0].result()
            except Exception as error:
                self.failed = error
                break
            self.ahead.popleft()
            batch, context = (None if x is None else distribute(jnp.asarray(x), self.where) for x in fetched[:2])
            state, loss = advance_once((run, key, batch, context, jnp.asarray(step)), state)
            losses.append(loss)
            place = fetched.place
        return state, jnp.stack(losses) if losses else jnp.zeros(0), place

    def close(self) -> None:
        """Fetch no more."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _fetch_ahead(self) -> None:
        while len(self.ahead) < AHEAD:
            self.ahead.append(self.pool.submit(self._fetch, self.next))
            self.next += 1

    def _fetch(self, step: int) -> Fetched:
        found = self.stream.take(step)
        x, context = found if isinstance(found, tuple) else (found, None)
        x = check_examples(f"data: batch of step {step}", x, self.process)
        self.size = len(x) if self.size is None else self.size
        if len(x) != self.size:
            raise ValueError(f"data: expected batches of one size, got one of {len(x)} examples after {self.size}")
        context = check_context(f"data: contexts of step {step}", context, self.process, len(x))
        return Fetched(x, context, self.stream.place)


class OnDisk:
    """An array in a file, of which each step reads its examples."""

    place = None

    def __init__(self, data: np.ndarray, rows: np.ndarray, context: Array | None) -> None:
        self.data, self.rows, self.context = data, rows, context
        self.chosen: Callable[[Array], Array] = jnp.asarray

    def seek(self, step: int, place: Any, run: TrainingRun, key: Array) -> None:
        """Any step can be read: of it, the examples that it would draw of an array in memory."""
        size = min(run.batch_size, len(self.rows))
        self.chosen = jax.jit(lambda step: chosen(key, step, size, len(self.rows)))

    def take(self, step: int) -> Any:
        """Its batch."""
        index = np.asarray(self.chosen(jnp.asarray(step)))
        x = self.data[self.rows[index]]
        return x if self.context is None else (x, self.context[index])


class Called:
    """A function of the number of the step, counted from 0."""

    place = None

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def seek(self, step: int, place: Any, run: TrainingRun, key: Array) -> None:
        """Any step can be asked for."""

    def take(self, step: int) -> Any:
        """Its batch."""
        return self.function(step)


class Iterated:
    """What is iterated over, again and again if it can be."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.iterator = batches, iter(batches)
        self.again = self.iterator is not batches
        self.place: Any = self._where()

    def seek(self, step: int, place: Any, run: TrainingRun, key: Array) -> None:
        """Go on where the stream says it was, else from the start over the batches of the steps that were taken."""
        if place is not None and hasattr(self.iterator, "set_state"):
            self.iterator.set_state(base64.b64decode(place["bytes"]) if "bytes" in place else place["state"])
        elif step and not self.again:
            raise ValueError(
                f"data: expected batches that can be started again (a function of the step, an iterable, or an "
                f"iterator with get_state and set_state) to go on from step {step} of the checkpoint, got "
                f"{self.batches!r}"
            )
        else:
            for _ in range(step):
                self.take(step)

    def take(self, step: int) -> Any:
        """The next batch; an iterable starts again after its last one."""
        for _ in range(2):
            for found in itertools.islice(self.iterator, 1):
                self.place = self._where()
                return found
            if not self.again:
                break
            self.iterator = iter(self.batches)
        raise StreamEnded

    def _where(self) -> Any:
        """Where the stream says it is, as JSON can hold it; None if it does not."""
        if not hasattr(self.iterator, "get_state"):
            return None
        state = self.iterator.get_state()
        return {"bytes": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"state": state}
