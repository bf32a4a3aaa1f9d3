"""The probability flow: adjoints, probes, solver steps."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd


def process() -> nd.ReverseProcess:
    denoiser = nd.denoisers.GaussianMixture([[0.9, -1.0], [-0.8, -0.2]], [0.5, 0.6], [0.3, 0.7])
    return nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4, -9.0, 8.0)), denoiser, 2)


@pytest.mark.slow
@pytest.mark.parametrize("num_probes", [0, 2])
@pytest.mark.parametrize("adjoint", ["checkpoint", "backsolve"])
def test_adjoints_agree_with_finite_differences(num_probes: int, adjoint: Any, x64: None) -> None:
    """The solver's own gradient is that of its value; the adjoint equation's is close to it."""
    pytest.importorskip("diffrax")
    flow = nd.ProbabilityFlow(16, num_probes, adjoint=adjoint)
    both = jax.value_and_grad(lambda x: flow.estimate(jax.random.key(0), process(), x).value)
    x, step = np.array([0.4, -0.3]), 1e-5 * np.eye(2)
    value, gradient = jax.jit(jax.vmap(both))(np.concatenate([x[None], x + step, x - step]))
    finite = (value[1:3] - value[3:]) / 2e-5
    np.testing.assert_allclose(gradient[0], finite, rtol=1e-6 if adjoint == "checkpoint" else 1e-3)


@pytest.mark.slow
def test_few_solver_steps_are_warned_of() -> None:
    pytest.importorskip("diffrax")
    x = jnp.array([[0.4, -0.3], [2.0, 1.0]])
    with pytest.warns(UserWarning, match="num_solver_steps=2 is too small for accuracy=0.001: .* nats per dimension"):
        nd.ProbabilityFlow(2, accuracy=1e-3)(jax.random.key(0), process(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nd.ProbabilityFlow(16, accuracy=1e-2)(jax.random.key(0), process(), x)
        # Eight probes leave noise of 0.05 nats and more, which is no matter of steps.
        nd.ProbabilityFlow(16, 8, accuracy=1e-2)(jax.random.key(0), process(), x)


def test_calls_count_the_jacobian_products() -> None:
    """Exact up to 64 elements, eight probes beyond, or as many as are asked for."""
    chain: Any = process()
    assert nd.ProbabilityFlow(10).calls(chain) == 3
    assert nd.ProbabilityFlow(10, 5).calls(chain) == 6
    large = nd.ReverseProcess(chain.diffusion, nd.denoisers.Gaussian(0.0, 1.0), (5, 13))
    assert nd.ProbabilityFlow(10).calls(large) == 9
    assert nd.ProbabilityFlow(10, 0).calls(large) == 66
    assert nd.ProbabilityFlow(10).evaluations(chain) == 3 * 62 + 1
    assert nd.ProbabilityFlow(10, num_traces=7).evaluations(chain) == 3 * 8 + 62
    assert nd.ProbabilityFlow(10, 5).evaluations(chain) == 6 * 31 + 62
