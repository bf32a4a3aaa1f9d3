"""Fixtures that several test files use."""

import gc
from collections.abc import Iterator

import jax
import pytest

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


# Compiled programs are what the tests leave behind, and the collector goes through all of them again and again: a sixth
# of the time, and gigabytes. They are thrown away file by file instead.
gc.disable()


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs() -> Iterator[None]:
    """No file of tests uses the programs of another."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test in double precision, so that it can be compared with numpy to many digits."""
    with enable_x64(True):
        yield


@pytest.fixture
def unoptimised() -> Iterator[None]:
    """For tests that compile a lot and compute little: an unoptimised program is ready in half the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> None:
    """Quick tests are of that kind."""
    if request.node.get_closest_marker("slow") is None:
        request.getfixturevalue("unoptimised")
