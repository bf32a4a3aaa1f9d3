"""What last steps, diffusions and processes answer for themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.denoisers import Gaussian, Network
from numpyro_diffusion.diffusions import require_gaussian
from numpyro_diffusion.last_steps import AbstractLastStep, learned_step

REAL = nd.GaussianDiffusion(nd.schedules.log_snr(6), 2.0, 2.0)
BITS = nd.BinomialDiffusion(nd.schedules.log_snr(6, -3.0, 3.0), 0.4)
POINT = Network(lambda x, t: 0 * x, "noise")
STEPS = {
    "forward": nd.ForwardStep(),
    "learned": nd.LearnedStep(),
    "scaled": nd.LearnedStep(-1.0),
    "fixed": nd.FixedStep(),
    "levels": nd.DiscretisedStep(5),
}


def process(step, diffusion=REAL, denoiser=POINT):
    return nd.ReverseProcess(diffusion, denoiser, (2,), last_step=step)


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_says_of_itself(name):
    step = STEPS[name]
    assert step.has_expectation is (name == "forward")
    assert step.num_values == (5 if name == "levels" else None)
    assert (step.own_log_scale is None) is (name != "scaled")
    chain = process(step)
    assert chain.is_discrete is (name == "levels") and chain.is_smooth is (name != "levels")


@pytest.mark.parametrize("diffusion", [REAL, BITS], ids=["real", "bits"])
def test_the_expectation_is_that_of_the_kernel(diffusion):
    """E log p(x_0 | x_1), by draws of x_1."""
    step, x_0 = nd.ForwardStep(), jnp.array([1.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    x_1 = jax.vmap(lambda key: diffusion.marginal(x_0, 1.0).sample(key))(keys)
    value = np.asarray(jax.vmap(lambda x: step.kernel(diffusion, POINT, x).log_prob(x_0))(x_1), np.float64)
    assert abs(step.expected_log_prob(diffusion, x_0) - value.mean()) < 4.5 * value.std() / len(value) ** 0.5
    with pytest.raises(ValueError, match="last_step: expected one with a closed-form expectation, got FixedStep"):
        nd.FixedStep().expected_log_prob(diffusion, x_0)


def test_a_learned_step_has_a_scale_where_the_denoiser_has_none():
    assert learned_step(REAL, POINT).own_log_scale is not None
    assert learned_step(REAL, Gaussian(0.0, 1.0)).own_log_scale is None
    assert learned_step(BITS, Network(lambda x, t: 0 * x, "logits")).own_log_scale is None


def test_values_off_the_support_are_refused_by_name():
    process("forward").check_values("x", jnp.array([0.3, -2.0]))
    with pytest.raises(ValueError, match="x: expected only 0 and 1"):
        process("forward", BITS, Network(lambda x, t: 0 * x, "logits")).check_values("x", jnp.array([0.3, 1.0]))
    with pytest.raises(ValueError, match="x: expected whole numbers from 0 to 4"):
        process(nd.DiscretisedStep(5)).check_values("x", jnp.array([5.0, 1.0]))


def test_what_needs_a_gaussian_diffusion_says_so():
    assert require_gaussian(REAL) is REAL and REAL.is_gaussian and not BITS.is_gaussian
    with pytest.raises(ValueError, match="y: expected a GaussianDiffusion, got BinomialDiffusion; take another"):
        require_gaussian(BITS, "y: expected a GaussianDiffusion", "; take another")


def test_last_steps_are_where_they_were():
    from numpyro_diffusion import process as module

    assert module.AbstractLastStep is AbstractLastStep and module.ForwardStep is nd.ForwardStep
