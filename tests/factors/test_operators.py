"""Every form of linear map and noise against the dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from numpyro_diffusion.factors import LinearGaussian
from numpyro_diffusion.factors.linear import condition
from numpyro_diffusion.factors.operators import Correlated, Dense, Independent, Mapped, Masked

EVENT, SIZE = (2, 3), 4
generator = np.random.default_rng(5)
MATRIX = generator.normal(size=(SIZE, 6))
SEEN = np.array([1.0, 0.0, 1.0, 1.0])
ROOT = generator.normal(size=(SIZE, SIZE))
COVARIANCE = ROOT @ ROOT.T + np.eye(SIZE)
X, Y = generator.normal(size=EVENT), generator.normal(size=SIZE)

dense = Dense(jnp.asarray(MATRIX))
mapped = Mapped(lambda x: (jnp.asarray(MATRIX) @ x.reshape(-1)).reshape(2, 2), SIZE)
MAPS = {
    "dense": (dense, MATRIX),
    "mapped": (mapped, MATRIX),
    "masked dense": (Masked(dense, jnp.asarray(SEEN)), SEEN[:, None] * MATRIX),
    "masked mapped": (Masked(mapped, jnp.asarray(SEEN)), SEEN[:, None] * MATRIX),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_its_matrix(name):
    linear, matrix = MAPS[name]
    np.testing.assert_allclose(linear.apply(jnp.asarray(X)), matrix @ X.reshape(-1), rtol=1e-5)
    np.testing.assert_allclose(
        linear.transpose(jnp.asarray(Y), EVENT), (matrix.T @ Y).reshape(EVENT), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(linear.rows(EVENT), matrix.reshape(SIZE, *EVENT), rtol=1e-5)
    linear.check((SIZE,) if "mapped" not in name else (2, 2), EVENT)


def test_maps_say_what_does_not_fit():
    with pytest.raises(ValueError, match="operator: expected 4 rows for examples of shape"):
        dense.check((SIZE,), (7,))
    with pytest.raises(ValueError, match="operator: expected a result of the observation's shape"):
        mapped.check((SIZE,), EVENT)
    with pytest.raises(ValueError, match="operator: expected a linear map"):
        Mapped(lambda x: x + jnp.round(x), 6).check(EVENT, EVENT)
    with pytest.raises(ValueError, match="A 0 = 0, got values up to 2 at 0"):
        Mapped(lambda x: x + 2, 6).check(EVENT, EVENT)


def test_linearity_of_a_claimed_map_is_decided_in_compiled_code_too():
    def run(scale, power):
        Mapped(lambda x: scale * x**power, 6).check(EVENT, EVENT)
        return scale

    jax.jit(lambda scale: run(scale, 1))(2.0)
    with pytest.raises(ValueError, match="operator: expected a linear map"):
        jax.jit(lambda scale: run(scale, 2))(2.0)


@pytest.mark.parametrize("name", ["diagonal", "correlated"])
def test_a_noise_is_its_covariance(name):
    variance = np.diagonal(COVARIANCE)
    noise = Independent(jnp.asarray(variance)) if name == "diagonal" else Correlated(jnp.asarray(COVARIANCE))
    covariance = np.diag(variance) if name == "diagonal" else COVARIANCE
    np.testing.assert_allclose(noise.covariance, covariance, rtol=1e-6)
    np.testing.assert_allclose(noise.variance, variance, rtol=1e-6)
    square, log_det = noise.square_and_log_det(jnp.asarray(Y))
    want = multivariate_normal(np.zeros(SIZE), covariance).logpdf(Y)
    np.testing.assert_allclose(-0.5 * (square + log_det + SIZE * np.log(2 * np.pi)), want, rtol=1e-5)


def test_a_hidden_element_adds_nothing():
    """What is masked is as if it had not been observed."""
    rows = SEEN > 0
    hidden = LinearGaussian(Y, MATRIX, np.sqrt(np.diagonal(COVARIANCE)), mask=rows)
    without = LinearGaussian(Y[rows], MATRIX[rows], np.sqrt(np.diagonal(COVARIANCE))[rows])
    np.testing.assert_allclose(hidden.log_r(jnp.asarray(X)), without.log_r(jnp.asarray(X)), rtol=1e-5)


def test_what_all_particles_share_is_computed_once():
    seen = LinearGaussian(jnp.asarray(Y), jnp.asarray(MATRIX), 0.5)
    covariances = seen.rows(EVENT)  # of x of covariance 1, the same for all

    def from_mean(mean):
        return condition(seen, seen.residual(mean), covariances, seen.rows(EVENT), project=True)

    # JAX refuses an output for all that would hang on a particle.
    directions = jax.vmap(from_mean, out_axes=(0, 0, None))(jnp.ones((7, *EVENT)))[2].reshape(SIZE, -1)
    inverse = np.linalg.inv(MATRIX @ MATRIX.T + 0.25 * np.eye(SIZE))
    np.testing.assert_allclose(directions.T @ directions, MATRIX.T @ inverse @ MATRIX, rtol=1e-3, atol=1e-4)
