"""That the checks of shapes in signatures see wrong ones, in the package too."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, ArrayLike, Float
from shape_checks import WrongShape, checked

import numpyro_diffusion as nd


@checked
def dropped(x: Float[Array, "*event"], last: bool) -> Float[Array, "*event"]:
    return x[:-1] if last else x


def test_arrays_are_checked_and_nothing_else():
    assert dropped(jnp.ones(4), False).shape == (4,)
    with pytest.raises(WrongShape, match=r"dropped: the result: expected Float.*, got float32\(3,\)"):
        dropped(jnp.ones(4), True)
    with pytest.raises(WrongShape, match=r"x: expected Float.*, got int32\(4,\)"):
        dropped(jnp.arange(4), False)
    assert dropped([1, 2], True) == [1]  # no array: the function's own business
    with pytest.raises(WrongShape, match=r"the result: expected .*, got float64\(3,\)"):
        dropped(np.ones(4), True)
    with pytest.raises(TypeError, match="missing"):
        dropped(jnp.ones(4))


def test_parts_of_a_tuple_and_several_kinds():
    @checked
    def pair(x: Float[Array, " n"], y: Float[ArrayLike, ""]) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        return x, jnp.ones(2) if y > 1 else jnp.ones(())

    for y in (0.5, np.float32(0.5), jnp.asarray(0.5)):
        assert pair(jnp.ones(3), y)[1].shape == ()
    with pytest.raises(WrongShape, match=r"the result\[1\]: expected .*, got float32\(2,\)"):
        pair(jnp.ones(3), 2.0)
    with pytest.raises(WrongShape, match=r"y: expected .*, got float32\(1,\)"):
        pair(jnp.ones(3), jnp.ones(1))


def test_the_package_is_checked():
    """A function of the package whose arguments do not go together."""
    schedule = nd.schedules.log_snr(4)
    assert schedule.balance(jnp.ones(3), jnp.ones(3)).shape == ()
    with pytest.raises(WrongShape, match="balance: "):
        schedule.balance(jnp.ones(3), jnp.ones(4))
