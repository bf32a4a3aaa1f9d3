"""The continuous bound: what it depends on, and what it says of a chain's K bound."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.likelihoods import step_gap

LOCS = np.array([[0.9, -1.0], [-0.8, -0.2], [0.5, 1.2]])
DENOISER = nd.denoisers.GaussianMixture(LOCS, [0.5, 0.6, 0.4], [0.3, 0.5, 0.2])
X = np.array([[0.5, -0.5], [-1.0, 0.3]])


def process(schedule: Any, last: str = "learned") -> nd.ReverseProcess:
    return nd.ReverseProcess(nd.GaussianDiffusion(schedule), DENOISER, 2, last_step=last)


@pytest.mark.slow
def test_only_the_ends_of_the_schedule_matter() -> None:
    """One key gives one value, whatever lies between; a chain that erases everything has a bound too."""
    bound = nd.ContinuousBound(4, 32)
    run = jax.jit(lambda process: bound(jax.random.key(0), process, X))
    value = lambda process: run(process).value
    even = value(process(nd.schedules.log_snr(4, -9.0, 8.0)))
    odd = nd.schedules.Schedule(jnp.array([jnp.inf, 8.0, 7.9, -2.0, -9.0]))
    np.testing.assert_allclose(value(process(odd)), even, atol=2e-3)
    mixed = nd.schedules.Schedule(jnp.array([jnp.inf, 8.0, 7.9, -2.0, -9.0]), "alpha_bar")
    np.testing.assert_allclose(value(process(mixed)), even, atol=2e-3)
    erased = nd.schedules.Schedule(jnp.array([jnp.inf, 8.0, 2.0, -2.0, -jnp.inf]), "alpha_bar")
    got = run(process(erased))
    assert (abs(got.value - DENOISER.data().log_prob(X)) < 5 * got.widened_error).all()
    # Parts add up, and the fixed last step counts as it does in K.
    got = run(process(odd, "forward"))
    parts = got.terms.reconstruction - got.terms.integral - got.terms.kl_terminal
    np.testing.assert_allclose(parts, got.value, rtol=1e-5)
    k = jax.jit(lambda process: nd.KBound(2)(jax.random.key(0), process, X).terms)(process(odd, "forward"))
    np.testing.assert_allclose(got.terms.reconstruction, k.reconstruction, rtol=1e-5)
    np.testing.assert_allclose(got.terms.kl_terminal, k.kl_terminal, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_few_steps_are_warned_of_with_the_gap() -> None:
    """K of 4 steps is far below the continuous bound; of 64 it is near; the warning says by how much."""
    few, many = (process(nd.schedules.log_snr(count, -9.0, 8.0)) for count in (4, 64))
    x = DENOISER.data().sample(jax.random.key(2), (8,))  # on average: at one point K may be above the limit
    gap, error = step_gap(jax.random.key(1), few, x)
    assert gap > 10 * error
    fine, error = step_gap(jax.random.key(1), many, x)
    assert -4 * error < fine < 0.3 * gap
    bound = nd.ContinuousBound(2, 8, accuracy=float(gap) / 4)
    with pytest.warns(UserWarning, match=f"T = 4 is too small for accuracy=.*{float(gap) / 2:.2g} ± .* nats per dim"):
        bound(jax.random.key(1), few, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound(jax.random.key(1), many, x)
