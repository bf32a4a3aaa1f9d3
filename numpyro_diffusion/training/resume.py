"""What a checkpoint of training holds, and whether it is of the run that wants to go on from it.

A checkpoint holds the state, the history and the place of a stream, and nothing random, as all random numbers come from
the key and the number of the step: a run that is resumed ends exactly where an uninterrupted one does. The file of
another run, with another key, data or settings, is refused.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .._devices import on_host
from .._files import check_writable
from ..checkpoints import CheckpointError, describe, read_training_state, write_training_state
from ..checkpoints import digest as digest
from .run import State

History = dict[str, list[float]]


class Progress(NamedTuple):
    """What a checkpoint holds; never changed in place.

    Attributes:
        state: of the weights and the optimiser.
        history: see `FitResult`.
        place: where a stream of batches says it is; None for others.
    """

    state: State
    history: History
    place: Any = None


def extended(history: History, entry: dict[str, float]) -> History:
    """With one more entry."""
    return {name: values + [entry[name]] if name in entry else values for name, values in history.items()}


class Saver:
    """Writes checkpoints while training goes on, one after the other.

    Args:
        path: of the file; None for no checkpoints.
        settings: of the run, in JSON.
        writer: whether this process writes; of several, all must save at once.
    """

    def __init__(self, path: Any, settings: dict[str, Any], writer: bool) -> None:
        self.path, self.settings, self.writer = path, settings, writer
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None

    def save(self, now: Progress, *, wait: bool) -> None:
        """Copy the progress and begin to write it, once what is being written is; raises what went wrong with either.

        Args:
            now: the progress.
            wait: until it is written.
        """
        if self.path is None:
            return
        self._finish()
        state = on_host(now.state)
        if self.writer:
            metadata: Any = {"history": now.history, "settings": self.settings}
            metadata |= {} if now.place is None else {"place": now.place}
            self.writing = self.pool.submit(lambda: write_training_state(self.path, state, metadata=metadata))
        if wait:
            self._finish()

    def close(self) -> None:
        """Wait until nothing is being written."""
        self.pool.shutdown(wait=True)

    def _finish(self) -> None:
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()


def resume(path: Any, state: State, settings: dict[str, Any], writer: bool = True) -> Progress:
    """The progress in the file at `path`, or the start if there is none yet."""
    names = ("step", "loss", "validation_step", "validation", "validation_error")
    if path is None:
        return Progress(state, {name: [] for name in names})
    if writer:
        check_writable("checkpoint", path)
    path = Path(path)
    if not path.exists():
        return Progress(state, {name: [] for name in names})
    description: Any = describe(path)
    stored = description["metadata"].get("settings", settings)
    for name in (settings | stored).keys():
        if stored.get(name) != settings.get(name):
            raise CheckpointError(
                f"checkpoint: expected {str(path)!r} to be of this run, with {name} = {settings.get(name)!r}, "
                f"got one of another, with {stored.get(name)!r}"
            )
    state, _ = read_training_state(path, state)
    return Progress(state, description["metadata"]["history"], description["metadata"].get("place"))
