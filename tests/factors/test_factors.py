"""Factors against dense normal laws, quadrature and enumeration, in numpy and scipy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.discrete import BernoulliLogits
from refusals import refused
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from numpyro_diffusion.factors import Delta, Elementwise, Factor, Gaussian, LinearGaussian, Product, simplify
from numpyro_diffusion.factors.base import batched_log_r
from numpyro_diffusion.laws import LoweredNormal, normal

pytestmark = pytest.mark.usefixtures("x64")

SHAPE = (2, 2)
MEAN = np.array([[0.3, -1.0], [0.5, 2.0]])
VARIANCE = np.array([[1.5, 0.4], [0.8, 2.5]])
A = np.random.default_rng(0).normal(size=(3, 4))
Y = np.array([1.0, -0.5, 2.0])
SCALE = np.array([0.5, 1.0, 2.0])
COVARIANCE = np.array([[1.0, 0.4, 0.1], [0.4, 2.0, -0.3], [0.1, -0.3, 0.7]])
LOC = np.array([[0.1, 0.9], [-0.4, 1.1]])
SOME_INF = np.array([[0.5, np.inf], [2.0, 1.0]])
GAIN = np.array([[1.0, 3.0], [-0.5, 0.0]])
POINTS = np.random.default_rng(1).normal(size=(6, 2, 2)) * 2
STATES = np.array(list(itertools.product([0, 1], repeat=4))).reshape(16, 2, 2)
LOGITS = np.array([[0.3, -2.0], [1.0, 0.0]])

# Every linear factor, and what it says as a matrix, an observation and a covariance of the elements it sees.
LINEAR = {
    "gaussian": (lambda: Gaussian(LOC, 0.7), np.eye(4), LOC.ravel(), 0.49 * np.eye(4)),
    "gain_and_inf": (
        lambda: Gaussian(LOC, SOME_INF, GAIN),
        np.diag(GAIN.ravel())[[0, 2, 3]],
        LOC.ravel()[[0, 2, 3]],
        np.diag([0.25, 4.0, 1.0]),
    ),
    "broadcast": (lambda: Gaussian(0.2, [[0.5], [2.0]]), np.eye(4), np.full(4, 0.2), np.diag([0.25, 0.25, 4.0, 4.0])),
    "matrix": (lambda: LinearGaussian(Y, A, SCALE), A, Y, np.diag(SCALE**2)),
    "tensor": (lambda: LinearGaussian(Y, A.reshape(3, 2, 2), 0.5), A, Y, 0.25 * np.eye(3)),
    "callable": (lambda: LinearGaussian(Y, lambda x: jnp.asarray(A) @ x.reshape(-1), SCALE), A, Y, np.diag(SCALE**2)),
    "scalar": (lambda: LinearGaussian(2.0, lambda x: x.sum(), 0.5), np.ones((1, 4)), np.array([2.0]), np.eye(1) / 4),
    "covariance": (lambda: LinearGaussian(Y, A, COVARIANCE), A, Y, COVARIANCE),
    "masked": (
        lambda: LinearGaussian(Y, A, SCALE, mask=[True, False, True]),
        A[[0, 2]],
        Y[[0, 2]],
        np.diag(SCALE[[0, 2]] ** 2),
    ),
    "gaussian_squared": (
        lambda: Gaussian(LOC, 0.7) * Gaussian(0.2, 1.0, GAIN),
        np.vstack([np.eye(4), np.diag(GAIN.ravel())]),
        np.append(LOC.ravel(), np.full(4, 0.2)),
        np.diag([0.49] * 4 + [1.0] * 4),
    ),
}


def law():
    return normal(jnp.asarray(MEAN), jnp.asarray(VARIANCE))


def bits():
    return BernoulliLogits(jnp.asarray(LOGITS)).to_event(2)


def dense_product(matrix, observation, covariance):
    """Log normaliser, mean and covariance of N(MEAN, VARIANCE) times N(observation; matrix x, covariance)."""
    prior = np.diag(VARIANCE.ravel())
    total = matrix @ prior @ matrix.T + covariance
    gain = prior @ matrix.T @ np.linalg.inv(total)
    residual = observation - matrix @ MEAN.ravel()
    log_z = multivariate_normal(np.zeros(len(observation)), total).logpdf(residual)
    return log_z, MEAN.ravel() + gain @ residual, prior - gain @ matrix @ prior


@eqx.filter_jit
def product_with_law(factor):
    """log r at POINTS, the log normaliser, and the product's mean, variance and log density at POINTS."""
    log_z, tilted = factor.multiply(law())
    log_r = batched_log_r(factor, POINTS, SHAPE)
    return log_r, log_z, tilted.mean, tilted.variance, jax.vmap(tilted.log_prob)(jnp.asarray(POINTS))


# ---- log r


@pytest.mark.parametrize("name", LINEAR)
def test_linear_factors_are_normal_densities(name):
    make, matrix, observation, covariance = LINEAR[name]
    factor = make()
    expected = [multivariate_normal(matrix @ x.ravel(), covariance).logpdf(observation) for x in POINTS]
    np.testing.assert_allclose(batched_log_r(factor, POINTS, SHAPE), expected, rtol=1e-10)
    factor.check(SHAPE, constraints.real)


def test_a_gaussian_as_a_linear_observation_is_the_same_factor():
    factor = Gaussian(LOC, SOME_INF, GAIN)
    linear = factor.linear(SHAPE)
    np.testing.assert_allclose(batched_log_r(linear, POINTS, SHAPE), batched_log_r(factor, POINTS, SHAPE), rtol=1e-12)
    assert linear.linear(SHAPE) is linear


def test_delta_is_zero_or_minus_infinity():
    factor = Delta(LOC, [[True, False], [True, False]])
    known = np.where([[True, False], [True, False]], LOC, 7.0)
    assert factor.log_r(known) == 0
    assert factor.log_r(known + np.array([[0.0, 1.0], [0.0, -1.0]])) == 0
    assert factor.log_r(known + np.array([[0.1, 0.0], [0.0, 0.0]])) == -np.inf


def test_elementwise_adds_what_each_bit_says():
    one, zero = np.array([[0.1, -1.0], [2.0, 0.0]]), np.array([[0.5], [-0.5]])
    factor = Elementwise(one, zero)
    expected = [np.where(x == 1, one, zero).sum() for x in STATES]
    np.testing.assert_allclose(batched_log_r(factor, STATES, SHAPE), expected, rtol=1e-12, atol=1e-12)
    factor.check(SHAPE, constraints.boolean)


def test_products_add_and_are_flat():
    one, two, three = Gaussian(LOC, 0.7), Factor(lambda x: -jnp.sum(jnp.abs(x))), LinearGaussian(Y, A, SCALE)
    product = one * two * three
    assert len(product.factors) == 3 and all(not isinstance(part, Product) for part in product.factors)
    expected = sum(np.asarray(batched_log_r(part, POINTS, SHAPE)) for part in (one, two, three))
    np.testing.assert_allclose(batched_log_r(product, POINTS, SHAPE), expected, rtol=1e-12)
    product.check(SHAPE, constraints.real)
    assert product.multiply(law()) is None
    assert Product(()).log_r(POINTS[0]) == 0


# ---- multiply


@pytest.mark.parametrize("name", LINEAR)
def test_multiplied_normals_are_conditioned_normals(name):
    make, *dense = LINEAR[name]
    log_z, mean, covariance = dense_product(*dense)
    _, *product, density = product_with_law(make())
    np.testing.assert_allclose(product[0], log_z, rtol=1e-9)
    np.testing.assert_allclose(product[1].ravel(), mean, rtol=1e-9)
    np.testing.assert_allclose(product[2].ravel(), np.diag(covariance), rtol=1e-9)
    expected = multivariate_normal(mean, covariance).logpdf(POINTS.reshape(-1, 4))
    np.testing.assert_allclose(density, expected, rtol=1e-9)


def test_delta_multiplies_reals():
    mask = np.array([[True, False], [True, False]])
    log_z, tilted = Delta(LOC, mask).multiply(law())
    each = norm(MEAN, np.sqrt(VARIANCE)).logpdf
    np.testing.assert_allclose(log_z, each(LOC)[mask].sum(), rtol=1e-12)
    draws = np.asarray(tilted.sample(jax.random.key(0), (5,)))
    assert (draws[:, mask] == LOC[mask]).all() and (np.std(draws[:, ~mask], axis=0) > 0).all()
    np.testing.assert_allclose(tilted.log_prob(draws), each(draws)[:, ~mask].sum(1), rtol=1e-12)
    np.testing.assert_array_equal(tilted.mean, np.where(mask, LOC, MEAN))
    np.testing.assert_allclose(tilted.variance, np.where(mask, 0.0, VARIANCE), rtol=1e-12)


BIT_FACTORS = {
    "elementwise": lambda: Elementwise([[0.5, -1.0], [3.0, 0.0]], 0.2),
    "delta": lambda: Delta([[1, 0], [0, 0]], [[True, True], [False, False]]),
    "both": lambda: simplify(BIT_FACTORS["delta"]() * BIT_FACTORS["elementwise"](), SHAPE),
    "two_deltas": lambda: BIT_FACTORS["delta"]() * Delta([[1, 1], [1, 0]], [[True, False], [True, False]]),
}


@pytest.mark.parametrize("name", BIT_FACTORS)
def test_multiplied_bits_by_enumeration(name):
    factor = BIT_FACTORS[name]()

    @jax.jit
    def run(states):
        log_z, tilted = factor.multiply(bits())
        joint = jax.vmap(lambda x: bits().log_prob(x) + factor.log_r(x))(states)
        return joint, log_z, tilted, jax.vmap(tilted.log_prob)(states)

    joint, log_z, tilted, got = run(jnp.asarray(STATES))
    np.testing.assert_allclose(log_z, logsumexp(joint), rtol=1e-9)
    possible = np.isfinite(joint)
    np.testing.assert_allclose(got[possible], joint[possible] - log_z, rtol=1e-9)
    np.testing.assert_allclose(tilted.mean, np.tensordot(np.exp(joint - log_z), STATES, 1), rtol=1e-9, atol=1e-12)


def test_two_deltas_that_disagree_leave_nothing():
    known = np.ones(SHAPE, bool)
    log_z, _ = (Delta(LOC, known) * Delta(LOC + 1, known)).multiply(law())
    assert log_z == -np.inf


@pytest.mark.parametrize(
    "factor",
    [
        Factor(lambda x: -jnp.sum(x**2)),
        Factor(jnp.sum) * Gaussian(0.0, 1.0),
        LinearGaussian(Y, A, SCALE) * Delta(LOC, LOC > 0),
    ],
    ids=["factor", "product", "delta_after_linear"],
)
def test_what_has_no_closed_form_says_so(factor):
    assert factor.multiply(law()) is None


def test_families_do_not_mix():
    assert Gaussian(LOC, 1.0).multiply(bits()) is None
    assert LinearGaussian(Y, A, 1.0).multiply(bits()) is None
    assert Elementwise(1.0).multiply(law()) is None


# ---- simplify

SIMPLE = {
    "two_matrices": lambda: LinearGaussian(Y, A, SCALE) * LinearGaussian(Y[:2], A[:2] + 1, 0.5, mask=[True, False]),
    "gaussian_and_callable": lambda: (
        Gaussian(LOC, SOME_INF) * LinearGaussian(Y.reshape(3, 1), lambda x: (A @ x.reshape(-1))[:, None], 0.3)
    ),
    "with_covariance": lambda: LinearGaussian(Y, A, COVARIANCE) * LinearGaussian(Y, A[::-1].copy(), SCALE),
    "gaussian_and_covariance": lambda: Gaussian(LOC, 0.7) * LinearGaussian(Y, A, COVARIANCE),
    "masks_and_covariance": lambda: (
        Gaussian(LOC, SOME_INF)
        * LinearGaussian(Y, A, COVARIANCE)
        * LinearGaussian(Y, A + 1, 0.4, mask=[False, True, True])
    ),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_simplified_products_are_the_same_factor(name):
    product = SIMPLE[name]()
    simple = simplify(product, SHAPE)
    assert isinstance(simple, LinearGaussian)
    simple.check(SHAPE, constraints.real)
    log_r, log_z, _, _, density = product_with_law(simple)
    expected = eqx.filter_jit(batched_log_r)(product, POINTS, SHAPE)
    np.testing.assert_allclose(log_r, expected, rtol=1e-10)
    prior = norm(MEAN, np.sqrt(VARIANCE)).logpdf(POINTS).sum((1, 2))
    np.testing.assert_allclose(density, prior + expected - log_z, rtol=1e-9)


def test_simplify_keeps_other_factors_and_puts_known_elements_last():
    other, known = Factor(jnp.sum), Delta(LOC, LOC > 0)
    product = simplify(known * LinearGaussian(Y, A, SCALE) * other * Gaussian(LOC, 1.0), SHAPE)
    assert [type(part) for part in product.factors] == [LinearGaussian, Factor, Delta]
    assert simplify(other, SHAPE) is other


# ---- LoweredNormal

DIRECTIONS = np.random.default_rng(2).normal(size=(3, 2, 2)) * 0.3


def lowered(directions=DIRECTIONS):
    return LoweredNormal(jnp.asarray(MEAN), jnp.sqrt(jnp.asarray(VARIANCE)), jnp.asarray(directions))


def dense_covariance():
    rows, root = DIRECTIONS.reshape(3, 4), np.diag(np.sqrt(VARIANCE).ravel())
    return root @ (np.eye(4) - rows.T @ rows) @ root


def test_a_lowered_normal_has_the_density_of_the_dense_one():
    dense = multivariate_normal(MEAN.ravel(), dense_covariance())
    np.testing.assert_allclose(lowered().log_prob(POINTS), dense.logpdf(POINTS.reshape(-1, 4)), rtol=1e-9)
    np.testing.assert_allclose(lowered().variance.ravel(), np.diag(dense_covariance()), rtol=1e-9)


def test_a_lowered_normal_draws_from_the_dense_one():
    draws = np.asarray(lowered().sample(jax.random.key(3), (40_000,))).reshape(-1, 4)
    covariance = dense_covariance()
    variance = np.diag(covariance)
    assert (abs(draws.mean(0) - MEAN.ravel()) < 5 * np.sqrt(variance / len(draws))).all()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / len(draws))
    assert (abs(np.cov(draws.T) - covariance) < 5 * error).all()


def test_directions_that_take_too_much_are_cut():
    """With singular values above 1 there would be no density; almost all of the variance goes instead."""
    wide = lowered(DIRECTIONS * 100)
    assert np.isfinite(wide.log_prob(POINTS)).all()
    assert (np.asarray(wide.variance) > 0).all() and (np.asarray(wide.variance) < VARIANCE).all()
    np.testing.assert_allclose(wide.remaining, 1e-6, rtol=1e-6)


# ---- pytrees


def test_a_factor_of_other_numbers_compiles_once():
    traces = []

    @eqx.filter_jit
    def log_r(factor, x):
        traces.append(1)
        return factor.log_r(x)

    operator = lambda x: x.sum()
    one, two = (log_r(LinearGaussian(y, operator, 1.0), np.zeros(SHAPE)) for y in (0.0, 2.0))
    np.testing.assert_allclose(one - two, 2.0, rtol=1e-6)
    assert len(traces) == 1


def test_many_observations_are_one_factor_under_vmap():
    generator = np.random.default_rng(4)
    locs, ys = generator.normal(size=(5, 2, 2)), generator.normal(size=(5, 3))
    x, log_r = jnp.asarray(POINTS[:5]), jax.jit(jax.vmap(lambda factor, x: factor.log_r(x)))
    ones = jnp.ones_like(locs)
    expected = norm(POINTS[:5], 1.0).logpdf(locs).sum((1, 2))
    np.testing.assert_allclose(log_r(Gaussian(locs, ones, ones), x), expected, rtol=1e-10)
    made = jax.jit(jax.vmap(lambda y: LinearGaussian(y, A, SCALE)))(ys)
    expected = norm(POINTS[:5].reshape(5, 4) @ A.T, SCALE).logpdf(ys).sum(1)
    np.testing.assert_allclose(log_r(made, x), expected, rtol=1e-10)
    evidence = jax.jit(jax.vmap(lambda factor: factor.multiply(law())[0]))(made)
    expected = [dense_product(A, y, np.diag(SCALE**2))[0] for y in ys]
    np.testing.assert_allclose(evidence, expected, rtol=1e-10)


def test_a_modules_arrays_are_the_factors_leaves():
    class Shift(eqx.Module):
        by: jax.Array

        def __call__(self, x):
            return -jnp.sum((x - self.by) ** 2)

    factor = Factor(Shift(jnp.asarray(2.0)))
    assert len(jax.tree.leaves(factor)) == 1
    slope = jax.grad(lambda factor: factor.log_r(jnp.zeros(3)))(factor)
    np.testing.assert_allclose(slope.function.by, -12.0)


# ---- bad input

MAKING = {
    "nan": (lambda: Gaussian(np.nan, 1.0), "loc: expected finite numbers"),
    "negative": (lambda: Gaussian(0.0, [1.0, -2.0]), "scale: expected positive numbers, got a minimum of -2.0"),
    "nan_scale": (lambda: Gaussian(0.0, np.nan), "scale: expected positive numbers"),
    "inf_gain": (lambda: Gaussian(0.0, 1.0, np.inf), "gain: expected finite"),
    "linear_nan": (lambda: LinearGaussian([np.nan], np.eye(1), 1.0), "observation: expected finite"),
    "operator_nan": (lambda: LinearGaussian([1.0], np.full((1, 1), np.nan), 1.0), "operator: expected finite"),
    "rows": (lambda: LinearGaussian(Y, A[:2], 1.0), r"operator: expected shape \(3, x.size\)"),
    "noise": (lambda: LinearGaussian(Y, A, [1.0, 1.0]), r"scale: expected a shape that broadcasts to \(3,\)"),
    "zero_noise": (lambda: LinearGaussian(Y, A, 0.0), "scale: expected positive numbers, got a minimum of 0"),
    "singular": (lambda: LinearGaussian(Y, A, np.ones((3, 3))), "scale: expected a symmetric positive definite"),
    "asymmetric": (
        lambda: LinearGaussian(Y, A, np.eye(3) + np.triu(np.full((3, 3), 0.1), 1)),
        "scale: expected a symmetric positive definite",
    ),
    "mask_shape": (lambda: LinearGaussian(Y, A, 1.0, mask=[True]), r"mask: expected shape \(3,\)"),
    "mask_covariance": (lambda: LinearGaussian(Y, A, COVARIANCE, mask=[True] * 3), "mask: .* no covariance"),
    "delta_shapes": (lambda: Delta(np.zeros(3), np.ones(2, bool)), r"mask: expected the shape of values, \(3,\)"),
    "delta_mask": (lambda: Delta(np.zeros(3), np.ones(3)), "mask: expected booleans, True where known, got float"),
    "delta_nan": (lambda: Delta([np.nan], [False]), "values: expected finite numbers"),
    "known_bits": (lambda: Elementwise(np.inf), "log_one: expected finite"),
    "zero_bits": (lambda: Elementwise(0.0, -np.inf), "log_zero: expected finite"),
    "no_function": (lambda: Factor(3.0), "log_r: expected a callable of one example, got 3.0"),
    "no_factor": (lambda: Product((Gaussian(0.0, 1.0), 2.0)), "factors: expected factors, got 2.0"),
}


@pytest.mark.parametrize("name", MAKING)
def test_bad_arguments_are_named(name):
    make, message = MAKING[name]
    with refused(message):
        make()


FITTING = {
    "loc": (Gaussian(np.zeros(3), 1.0), False, r"loc: expected a shape that broadcasts to \(2, 2\), got \(3,\)"),
    "wider": (Gaussian(np.zeros((5, 2, 2)), 1.0), False, "loc: expected a shape that broadcasts"),
    "bits": (Gaussian(0.0, 1.0), True, "factor: Gaussian is for real numbers, got a prior over bits"),
    "linear_bits": (LinearGaussian(Y, A, 1.0), True, "factor: LinearGaussian is for real numbers"),
    "reals": (Elementwise(0.0), False, "factor: Elementwise is for bits or classes, got a prior over real numbers"),
    "log_zero": (Elementwise(0.0, np.zeros(3)), True, "log_zero: expected a shape that broadcasts"),
    "matrix": (LinearGaussian(Y, A[:, :3], 1.0), False, r"operator: expected 3 rows for examples of shape \(2, 2\)"),
    "result": (LinearGaussian(Y, lambda x: x, 1.0), False, r"operator: expected a result of .* \(3,\), got \(2, 2\)"),
    "square": (LinearGaussian([0.0] * 4, lambda x: x.reshape(-1) ** 2, 1.0), False, "operator: expected a linear map"),
    "affine": (LinearGaussian([0.0] * 4, lambda x: x.reshape(-1) + 1, 1.0), False, "operator: expected a linear map"),
    "abs": (LinearGaussian(0.0, lambda x: jnp.abs(x).sum(), 1.0), False, "operator: expected a linear map"),
    "delta": (Delta(np.zeros(4), np.ones(4, bool)), False, "values: expected a shape that broadcasts"),
    "delta_one": (Delta(np.zeros((1, 2)), np.ones((1, 2), bool)), False, r"values: expected the event shape \(2, 2\)"),
    "delta_bits": (
        Delta(np.full(SHAPE, 0.5), np.ones(SHAPE, bool)),
        True,
        "values: expected values on the prior's support",
    ),
    "vector": (Factor(lambda x: x), False, r"factor: expected log r\(x\) of shape \(\) .* got \(2, 2\)"),
    "broken": (Factor(lambda x: x @ jnp.zeros(7)), False, "factor: expected one for examples of shape .* failed"),
    "product": (Gaussian(0.0, 1.0) * Gaussian(np.zeros(3), 1.0), False, "loc: expected a shape"),
}


@pytest.mark.parametrize("name", FITTING)
def test_factors_that_do_not_fit_the_prior_say_why(name):
    factor, discrete, message = FITTING[name]
    with pytest.raises(ValueError, match=message):
        factor.check(SHAPE, constraints.boolean if discrete else constraints.real)


def test_only_the_known_bits_must_be_bits():
    mask = np.array([[False, True], [True, False]])
    assert Delta([[0.5, 1.0], [0.0, 7.0]], mask).check(SHAPE, constraints.boolean) is None
    with pytest.raises(ValueError, match="values: expected values on the prior's support"):
        Delta([[0.5, 1.0], [0.0, 7.0]], ~mask).check(SHAPE, constraints.boolean)
