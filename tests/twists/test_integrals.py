"""∫ N(x; m, V) r(x) dx against quadrature, in one dimension and in many."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from numpyro_diffusion.twists.covariance import Covariance
from numpyro_diffusion.twists.integrals import integrate, largest_term, safe_cholesky

pytestmark = pytest.mark.usefixtures("x64")

# log r, and how close 16 draws of each law come to its logarithm.
FACTORS = {
    "poisson": (lambda x: dist.Poisson(jnp.exp(x)).log_prob(40.0), 0.02),
    "far": (lambda x: dist.Normal(x, 0.1).log_prob(8.0), 0.02),
    "logistic": (lambda x: dist.Bernoulli(logits=3 * x).log_prob(0.0), 0.2),
    "student": (lambda x: dist.StudentT(3.0, x, 0.2).log_prob(4.0), 0.2),
    "modulus": (lambda x: dist.Normal(jnp.abs(x), 0.3).log_prob(1.0), 0.5),
    "flat": (lambda x: jnp.zeros(()) * x, 1e-6),
}


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize(("mean", "scale"), [(0.3, 1.0), (-0.5, 0.4)])
def test_the_integral_is_that_of_quadrature(name, mean, scale):
    """Also where r lies ten standard deviations away, has two modes, or says nothing."""
    log_r, close = FACTORS[name]
    grid = np.linspace(mean - 30 * scale, mean + 30 * scale, 100_001)
    each = np.asarray(jax.vmap(log_r)(jnp.asarray(grid))) + norm(mean, scale).logpdf(grid)
    top = each.max()
    weight = np.exp(each - top)
    expected = top + np.log(weight.sum() * (grid[1] - grid[0]))
    half = jax.random.normal(jax.random.key(0), (8, 1))
    noise = jnp.concatenate([half, -half])
    covariance = Covariance(jnp.full(1, scale), (1,))
    found = integrate(lambda x: log_r(x[0]), jnp.full(1, mean), covariance, noise, 6)
    np.testing.assert_allclose(found.log_psi, expected, atol=close)
    middle = (weight @ grid) / weight.sum()
    deviation = np.sqrt(weight @ (grid - middle) ** 2 / weight.sum())
    assert abs(found.mean[0] - middle) < 3 * close * deviation + 1e-9


def test_a_factor_that_is_zero_leaves_a_weight():
    noise = jax.random.normal(jax.random.key(0), (8, 2))
    found = integrate(lambda x: -jnp.inf * jnp.ones(()), jnp.zeros(2), Covariance(jnp.ones(2), (2,)), noise, 6)
    assert np.isfinite(found.log_psi)
    assert found.log_psi < -1e17
    assert np.isfinite(found.mean).all()


def test_the_largest_term_of_a_gaussian_factor_is_its_mode():
    """Many elements: conjugate gradients find the posterior mean, and the term differs from ψ by a constant."""
    rng = np.random.default_rng(0)
    rows, scale = rng.standard_normal((5, 40)) / 6, rng.uniform(0.5, 1.5, 40)
    noise = 0.5
    log_r = lambda y, x: dist.Normal(rows @ x, noise).log_prob(y).sum()
    covariance = np.diag(scale**2)
    total = rows @ covariance @ rows.T + noise**2 * np.eye(5)
    gaps = []
    for y in rng.standard_normal((3, 5)):
        mean = rng.standard_normal(40)
        found = largest_term(partial(log_r, y), jnp.asarray(mean), Covariance(jnp.asarray(scale), (40,)), 4)
        residual = y - rows @ mean
        np.testing.assert_allclose(found.mean, mean + covariance @ rows.T @ np.linalg.solve(total, residual), atol=1e-4)
        gaps.append(float(found.log_psi) + 0.5 * residual @ np.linalg.solve(total, residual))
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-5)


def test_an_indefinite_curvature_is_made_definite():
    indefinite = jnp.array([[1.0, 2.0], [2.0, -3.0]])
    lower, definite = safe_cholesky(indefinite)
    np.testing.assert_allclose(lower @ lower.T, definite, atol=1e-12)
    assert np.linalg.eigvalsh(definite).min() >= 0.49
    lower, same = safe_cholesky(jnp.eye(2) * 3)
    np.testing.assert_array_equal(same, jnp.eye(2) * 3)
    assert np.isfinite(safe_cholesky(jnp.full((2, 2), jnp.nan))[0]).all()


def test_quadrature_is_right():
    """The oracle against SciPy's own."""
    log_r, _ = FACTORS["poisson"]
    exact, _ = quad(lambda x: np.exp(40 * x - np.exp(x)) * norm(0.3, 1).pdf(x), -5, 8, points=[3.6])
    grid = np.linspace(-29.7, 30.3, 100_001)
    each = np.asarray(jax.vmap(log_r)(jnp.asarray(grid))) + norm(0.3, 1).logpdf(grid)
    from_grid = np.log(np.exp(each - each.max()).sum() * (grid[1] - grid[0])) + each.max()
    factorial = float(jax.scipy.special.gammaln(41.0))
    np.testing.assert_allclose(np.log(exact) - factorial, from_grid, atol=1e-6)
