"""How programs are compiled in tests."""

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def programs_optimised() -> Iterator[None]:
    """For what computes for longer than it compiles: its programs take longer to compile, and a third to run."""
    jax.config.update("jax_disable_most_optimizations", False)
    unset = pytest.MonkeyPatch()
    unset.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    try:
        yield
    finally:
        unset.undo()
        jax.config.update("jax_disable_most_optimizations", True)
