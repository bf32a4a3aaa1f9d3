"""Fixtures that several test files use."""

from collections.abc import Iterator

import jax
import pytest

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


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
