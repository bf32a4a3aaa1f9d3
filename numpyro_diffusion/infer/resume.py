"""Long inference that goes on where it stopped: the state of a chain of `ParticleGibbs`, and the last run of an `SMC`.

Both are deterministic given what a file holds: the state carries the key of the next step, and the key of an SMC run
follows from the first one and the number of particles. So what is resumed ends, to the bit, where an uninterrupted
run does.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import equinox as eqx
from jax import Array

from .._files import check_writable
from ..checkpoints import (
    CheckpointError,
    describe,
    digest,
    read_module,
    read_training_state,
    write_module,
    write_training_state,
)
from .particle_gibbs import ParticleGibbsState


class SavedState(eqx.Module):
    """A `ParticleGibbsState` as a file holds it: its fields by name."""

    fields: dict[str, Any]


def save_state(path: str | PathLike[str], state: ParticleGibbsState) -> None:
    """Write ``mcmc.last_state`` of an `MCMC` with the kernel `ParticleGibbs` to one file, which appears whole.

    Args:
        path: the file; one that exists is replaced.
        state: of one chain or of several.

    Raises:
        TypeError: no `ParticleGibbsState`.
        FileNotFoundError: the folder does not exist.
    """
    if not isinstance(state, ParticleGibbsState):
        raise TypeError(f"state: expected a ParticleGibbsState, such as mcmc.last_state, got {type(state).__name__}")
    write_module(path, SavedState(state._asdict()), metadata={"content": "ParticleGibbsState"})


def load_state(path: str | PathLike[str]) -> ParticleGibbsState:
    """Read the state that `save_state` wrote, bit for bit.

    A chain goes on from it after ``mcmc.post_warmup_state = state`` with ``mcmc.run(state.rng_key, …)``, in a new
    program too.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, foreign, or holds no such state.
    """
    saved, _ = read_module(path)
    names = set(ParticleGibbsState._fields)
    if not isinstance(saved, SavedState) or not isinstance(saved.fields, dict) or set(saved.fields) != names:
        raise CheckpointError(f"{path}: expected a ParticleGibbsState, got a file that holds something else")
    return ParticleGibbsState(**saved.fields)


def save_run(path: Any, num_particles: int, run: Any, settings: dict[str, Any]) -> None:
    """Write a finished SMC run, arrays in a pytree, if a file is wanted."""
    if path is not None:
        write_training_state(path, run, metadata={"num_particles": num_particles, "settings": settings})


def saved_particles(path: Any, settings: dict[str, Any]) -> int | None:
    """How many particles the run in the file has; None if there is no file, or none is wanted.

    Raises:
        OSError: no file can be written there.
        CheckpointError: the file is damaged, or of another run.
    """
    if path is None:
        return None
    check_writable("checkpoint", path)
    if not Path(path).exists():
        return None
    metadata: Any = describe(path)["metadata"]
    stored: Any = metadata.get("settings") if isinstance(metadata, dict) else None
    for name in settings if isinstance(stored, dict) else ():
        if stored.get(name) != settings[name]:
            raise CheckpointError(
                f"checkpoint: expected {str(path)!r} to be of this run, with {name} = {settings[name]!r}, "
                f"got one of another, with {stored.get(name)!r}"
            )
    count = metadata.get("num_particles") if isinstance(stored, dict) else None
    if type(count) is not int or count < 2:
        raise CheckpointError(f"checkpoint: expected {str(path)!r} to hold an SMC run, got something else")
    return count


def read_run(path: Any, run: Callable[[], Any]) -> Any:
    """The run in the file, in the structure of ``run()``."""
    return read_training_state(path, eqx.filter_eval_shape(run))[0]


def settings_of(path: Any, key: Array, inputs: Any, plan: Any, sampler: Any) -> dict[str, Any]:
    """What a checkpoint must agree with, in JSON: arguments and model, the plan, what else the sampler was given."""
    if path is None:
        return {}
    said = {"threshold": sampler.threshold, "chunk": sampler.chunk}
    return {"key": digest(key), "arguments": digest(inputs), "plan": str(plan)} | said
