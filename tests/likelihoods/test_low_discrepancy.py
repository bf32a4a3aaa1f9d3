"""Randomised low-discrepancy points: uniform one by one, even together."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.likelihoods._integral.low_discrepancy import low_discrepancy_point


def test_points_are_uniform_and_even() -> None:
    """Every point is uniform over keys; every set has one point in each of 64 slices of every coordinate."""
    dims, index = 5, jnp.arange(64)
    sets = jax.jit(jax.vmap(lambda key: jax.vmap(lambda i: low_discrepancy_point(key, i, 64, dims))(index)))
    points = np.asarray(sets(jax.random.split(jax.random.key(0), 2000)), np.float64)
    assert ((points > 0) & (points < 1)).all()
    assert (np.sort((points * 64).astype(int), axis=1) == np.arange(64)[:, None]).all()
    error = 1 / np.sqrt(12 * 2000)
    assert (abs(points.mean(0) - 0.5) < 4.5 * error).all()  # 320 means
    assert (abs((points**2).mean(0) - 1 / 3) < 4.5 * np.sqrt(4 / 45 / 2000)).all()
    # Integrals of products are far better than those of independent points.
    product = np.prod(1 + (points[..., :3] - 0.5), axis=-1).mean(1)
    independent = np.sqrt(((1 + 1 / 12) ** 3 - 1) / 64)
    assert abs(product.mean() - 1) < 4 * product.std() / np.sqrt(2000)
    assert product.std() < independent / 5


def test_many_dimensions_and_odd_counts() -> None:
    """Coordinates beyond the table are independent, and any number of points will do."""
    point = jax.jit(jax.vmap(lambda i: low_discrepancy_point(jax.random.key(1), i, 5, 2100)))(jnp.arange(5))
    assert point.shape == (5, 2100)
    assert abs(float(point.mean()) - 0.5) < 4 / np.sqrt(12 * 10_500)
    assert len(np.unique(np.asarray(point))) > 10_000
