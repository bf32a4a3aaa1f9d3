"""What the tests of incomplete data share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def few_laps() -> Iterator[None]:
    """Learning ends with the first lap that is hardly better, and after three: tests/training/test_missing has more."""
    from numpyro_diffusion.training import missing  # after the checks of shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(missing, "PATIENCE", 1)
        patch.setattr(missing, "LAPS", 3)
        yield
