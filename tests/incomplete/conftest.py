"""Fixtures that several files of this folder use."""

from collections.abc import Iterator

import pytest
from small_networks import small_networks


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Where nothing hangs on the network that learns."""
    with small_networks():
        yield
