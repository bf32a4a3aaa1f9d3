"""A baseline whose spread depends on the context: against laws that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.linalg import hadamard
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.networks import ContextFeatures, SplineFeatures
from numpyro_diffusion.training import conditional, plan_prior
from numpyro_diffusion.training.variances import fitted_variances

PLACES = np.linspace(0, 1, 10)


def covariance(length):
    """Matérn 3/2."""
    distance = np.sqrt(3) * np.abs(PLACES[:, None] - PLACES) / length
    return (1 + distance) * np.exp(-distance) + 1e-4 * np.eye(10)


def fields(count, seed):
    rng = np.random.default_rng(seed)
    length = rng.uniform(0.05, 1.0, count)
    return np.stack([rng.multivariate_normal(np.zeros(10), covariance(each)) for each in length]), length


def exact(x, length):
    pairs = zip(x, map(covariance, length), strict=True)
    return np.array([multivariate_normal.logpdf(each, np.zeros(10), spread) for each, spread in pairs])


def planned(x, context):
    values, told, features = conditional.described(context, len(x), 0.0)
    plan = plan_prior(jax.random.key(0), x, max_steps=1)
    return conditional.conditional_plan(jax.random.key(1), plan, conditional.Pairs(x, values), told, features, None)


@pytest.mark.slow
def test_fields_of_an_unknown_length_scale_start_near_their_law(tmp_path):
    """Without any training: the model's density, and that of the chain, which is the same at any number of steps."""
    x, length = fields(3000, 0)
    plan, model = planned(x, length)
    unseen, told = fields(200, 1)
    truth, found = exact(unseen, told), model.given(told).log_prob(unseen)
    one = model._replace(variances=None).given(told).log_prob(unseen)
    assert -1.5 < (found - truth).mean() < 0 and (one - truth).mean() < -4
    prior = nd.DiffusionPrior(plan.process, transform=plan.transform)
    prior = prior.with_(likelihood=nd.ImportanceWeighted(1))  # no noise is left of it where the chain is exact
    weighted = np.asarray(prior.given(told).log_prob(unseen), np.float64)
    np.testing.assert_allclose(weighted, found, atol=0.05)
    prior.save(tmp_path / "fields.safetensors")
    loaded = nd.load(tmp_path / "fields.safetensors")
    assert loaded.transform == prior.transform
    for one, other in zip(*(jax.tree.leaves(each.process) for each in (loaded, prior)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_variances_are_found_where_they_depend_and_left_alone_where_not():
    rng = np.random.default_rng(2)
    c = rng.normal(size=(3000, 2))
    log_variances = np.stack([np.sin(2 * c[:, 0]), c[:, 1] - 0.5, 0 * c[:, 0], -c[:, 0]], 1)
    basis, scale = hadamard(4) / 2, np.array([3.0, 1.0, 0.3, 0.1])  # each element varies as much as any other
    noise = rng.normal(size=(3000, 4))
    features = ContextFeatures((2,), None, c.mean(0), c.std(0))
    z = noise * np.exp(log_variances / 2) * scale
    variances = fitted_variances(z @ basis.T, np.cov((z @ basis.T).T), c, features)
    truth = -0.5 * (noise**2 + log_variances + np.log(2 * np.pi) + 2 * np.log(scale)).sum(1)
    assert variances is not None and abs((variances.log_prob(z @ basis.T, c) - truth).mean()) < 0.05
    assert fitted_variances(noise, np.cov(noise.T), c, features) is None
    labels = (c[:, 0] > 0).astype(int)
    scale = np.array([[0.5, 2.0, 1.0, 1.0], [2.0, 0.5, 1.0, 1.0]])[labels]
    variances = fitted_variances(noise * scale, np.diag((scale**2).mean(0)), labels, ContextFeatures((), 2))
    assert variances is not None
    truth = -0.5 * (noise**2 + 2 * np.log(scale) + np.log(2 * np.pi)).sum(1)
    assert abs((variances.log_prob(noise * scale, labels) - truth).mean()) < 0.05


def test_splines_are_the_natural_ones():
    """Those through any values at the knots are a combination of the features, beyond the knots too."""
    knots = np.array([-1.5, -0.4, 0.1, 0.9, 1.6])
    features = SplineFeatures(ContextFeatures(), knots[None])
    spline = CubicSpline(knots, [0.3, -1.0, 0.5, 2.0, 1.0], bc_type="natural")
    table = lambda x: np.asarray(jax.vmap(features)(jnp.asarray(x)), np.float64)
    weight = np.linalg.lstsq(table(knots), spline(knots), rcond=None)[0]
    between = np.linspace(-1.5, 1.6, 40)
    np.testing.assert_allclose(table(between) @ weight, spline(between), atol=1e-4)
    outside = np.array([1.6, 2.6, 3.6, -1.5, -2.5, -3.5])
    first, second, third, *other = table(outside) @ weight
    np.testing.assert_allclose([third - second, other[2] - other[1]], [second - first, other[1] - other[0]], atol=1e-4)
    np.testing.assert_allclose(second - first, spline(1.6, 1), atol=1e-4)
    np.testing.assert_array_equal(features(jnp.nan), np.zeros(features.size))
    with pytest.raises(ValueError, match=r"knots: expected shape \(1, m\), m = 0 or at least 3, got \(1, 2\)"):
        SplineFeatures(ContextFeatures(), np.zeros((1, 2)))


def test_principal_axes_and_back():
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    transform = nd.transforms.PrincipalAxes([1.0, 2.0, -1.0], [1.0, 2.0, 0.5], basis, [3.0, 1.0, 0.1])
    z = rng.normal(size=(4, 3))
    x = transform(z)
    np.testing.assert_allclose(transform.inv(x), z, atol=1e-5)
    slope = np.linalg.slogdet(jax.jacobian(transform)(jnp.asarray(z[0])))[1]
    np.testing.assert_allclose(transform.log_abs_det_jacobian(z, x), np.full(4, slope), atol=1e-5)
    assert transform == nd.transforms.PrincipalAxes(*transform.tree_flatten()[0])
    with pytest.raises(ValueError, match="loc, unit, axes, scale: expected shapes"):
        nd.transforms.PrincipalAxes([1.0, 2.0], [1.0], basis, [1.0])
