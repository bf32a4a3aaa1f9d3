"""What a checkpoint of training holds, and whether it is of the run that wants to go on from it."""

from pathlib import Path
from typing import Any, NamedTuple

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


def save(path: Any, now: Progress, settings: dict[str, Any], writer: bool = True) -> None:
    """Write the progress to the file at `path`, if one is wanted, and by this process."""
    if path is not None and writer:
        metadata: Any = {"history": now.history, "settings": settings}
        metadata |= {} if now.place is None else {"place": now.place}
        write_training_state(path, now.state, metadata=metadata)


def resume(path: Any, state: State, settings: dict[str, Any], writer: bool = True) -> Progress:
    """The progress in the file at `path`, or the start if there is none yet."""
    names = ("step", "loss", "validation_step", "validation", "validation_error")
    if path is None:
        return Progress(state, {name: [] for name in names})
    path = Path(path)
    if writer:
        check_writable("checkpoint", path)
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
