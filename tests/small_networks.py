"""Networks for tests of what is learned, where it matters little which network learns it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from numpyro_diffusion import networks
from numpyro_diffusion.training import kinds, mixed


@contextlib.contextmanager
def small_networks() -> Iterator[None]:
    """One block of 16 units in place of the three of 64 and more that `fit_prior` chooses: quicker to compile."""

    def small(key: Any, shape: Any, *, width: int, **sizes: Any) -> networks.MLP:
        return networks.MLP(key, shape, width=16, depth=1, **sizes)

    with pytest.MonkeyPatch.context() as patch:
        for module in (kinds, mixed):
            patch.setattr(module, "MLP", small)
        yield
