"""The uncorrected samplers have the biases that are known of them, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

DIFFUSION = nd.GaussianDiffusion(nd.schedules.log_snr(200, -12, 6))
UNIT = nd.ReverseProcess(DIFFUSION, nd.denoisers.Gaussian(0.0, 1.0), (1,))
COVARIANCE = jnp.array([[1.0, 0.9], [0.9, 1.0]])
KNOWN = nd.factors.Delta(jnp.array([1.5, 0.0]), jnp.array([True, False]))
COUNT = 4000


def correlated():
    """The exact denoiser of N(0, [[1, .9], [.9, 1]])."""

    def predict(z, t):
        kept = DIFFUSION.schedule.alpha_bar(t)
        return jnp.sqrt(kept) * COVARIANCE @ jnp.linalg.solve(kept * COVARIANCE + (1 - kept) * jnp.eye(2), z)

    return nd.ReverseProcess(DIFFUSION, nd.denoisers.Network(predict, "data"), (2,))


def draws(sampler, process, factor):
    run = jax.jit(jax.vmap(lambda key: sampler.sample(key, process, factor)))
    return np.asarray(run(jax.random.split(jax.random.key(0), COUNT)), dtype=np.float64)


def assert_moments(x, mean, variance, slack=0.0):
    """Mean and variance within 5 standard errors and `slack`, which is for steps that are not infinitely small."""
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / COUNT) + slack
    assert abs(x.var() - variance) < 5 * variance * np.sqrt(2 / COUNT) + slack


def test_constant_r_gives_p_times_r_squared():
    x = draws(nd.samplers.Perturbed(), UNIT, nd.factors.Gaussian(1.0, 1.0))
    assert_moments(x, 2 / 3, 1 / 3, 0.01)


def test_constant_r_by_its_gradient_gives_the_same():
    factor = nd.factors.Factor(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
    assert_moments(draws(nd.samplers.Perturbed(), UNIT, factor), 2 / 3, 1 / 3, 0.02)


def test_annealed_r_is_another_bias():
    x = draws(nd.samplers.Perturbed("annealed"), UNIT, nd.factors.Gaussian(1.0, 1.0))
    assert x.mean() > 0.55 and x.var() < 0.45  # the posterior has 0.5 and 0.5


@pytest.mark.slow
def test_clamped_clean_values_underestimate_a_correlation():
    x = draws(nd.samplers.Perturbed(), correlated(), KNOWN)
    assert (x[:, 0] == 1.5).all()
    assert_moments(x[:, 1], 1.091, 0.31, 0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_jumps_help_replacement():
    once, often = (draws(nd.samplers.Replacement(jumps), correlated(), KNOWN)[:, 1] for jumps in (1, 5))
    assert abs(once.mean() - 1.35) > 0.3
    assert abs(often.mean() - 1.35) < 0.1


def test_guided_is_exact_where_no_weight_changes():
    x = draws(nd.samplers.Guided(), UNIT, nd.factors.Gaussian(1.0, 1.0))
    assert_moments(x, 0.5, 0.5, 0.005)


def test_guided_by_tweedie_is_biased():
    x = draws(nd.samplers.Guided(nd.twists.Tweedie()), UNIT, nd.factors.Gaussian(1.0, 1.0))
    assert x.mean() > 0.55 and x.var() < 0.47


def test_the_corrected_misprint_for_bits():
    """c̃ = cd/(cd + (1−c)(1−d)), step by step: with one step to go it is the exact product."""
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(2))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(jnp.array([[0], [1]]), jnp.array([0.3, 0.7])), (1,))
    factor = nd.factors.Elementwise(jnp.log(0.8), jnp.log(0.2))
    kernel = process.last_kernel(jnp.ones(1))
    c = float(kernel.mean[0])
    tilted = nd.twists.multiplied(factor, kernel)
    np.testing.assert_allclose(tilted.mean[0], c * 0.8 / (c * 0.8 + (1 - c) * 0.2), rtol=1e-5)


def test_replacement_takes_known_coordinates_only():
    with pytest.raises(ValueError, match="factor: Replacement is for a Delta factor, got Gaussian"):
        nd.samplers.Replacement().sample(jax.random.key(0), UNIT, nd.factors.Gaussian(0.0, 1.0))


def test_choices_and_counts_are_checked():
    with pytest.raises(ValueError, match="choice: expected one of 'constant', 'annealed'"):
        nd.samplers.Perturbed("never")
    with pytest.raises(ValueError, match="num_jumps"):
        nd.samplers.Replacement(0)


def test_a_law_that_no_slope_tilts_is_named():
    """Whatever law it is: one of real numbers is not called one of classes."""
    laplace = dist.Laplace(jnp.zeros(1), 1.0).to_event(1)
    with pytest.raises(ValueError, match="factor: expected a closed form of r times a law of Laplace, .* got Factor"):
        nd.twists.multiplied(nd.factors.Factor(jnp.sum), laplace)
