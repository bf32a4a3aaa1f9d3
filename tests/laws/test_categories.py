"""Laws of classes against their definitions, with classes that cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions.kl import kl_divergence

from numpyro_diffusion import laws

CHANCES = np.array([[0.5, 0.2, 0.3, 0.0], [0.0, 0.0, 0.9, 0.1]])


def law_of(chances):
    with np.errstate(divide="ignore"):
        return laws.categories(jnp.asarray(np.log(chances)))


def test_densities_moments_and_draws():
    """By enumeration; a uniform number at either end makes a class that can be, and noise is mirrored."""
    law, numbers = law_of(CHANCES), np.arange(4)
    each = np.asarray([law.base_dist.log_prob(jnp.full(2, c)) for c in (*numbers, 1.5, -1, 4)]).T
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(each[:, :4], np.log(CHANCES), rtol=1e-6)
    assert (each[:, 4:] == -np.inf).all()
    np.testing.assert_allclose(law.mean, CHANCES @ numbers, rtol=1e-6)
    np.testing.assert_allclose(law.variance, CHANCES @ numbers**2 - (CHANCES @ numbers) ** 2, rtol=1e-5)
    ends = jax.vmap(lambda u: laws.from_noise(law, jnp.full(2, u)))(jnp.array([0.0, 1 - 2**-24, 1.0]))
    np.testing.assert_array_equal(ends, [[2, 3], [0, 2], [0, 2]])
    keys = jax.random.split(jax.random.key(0), 20_000)
    mirrored = jax.jit(jax.vmap(lambda key, mirror: laws.mirrored(law, key, mirror), (0, None)))
    plain, other = (np.asarray(mirrored(keys, jnp.asarray(mirror))) for mirror in (False, True))
    for draws in (plain, other, np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(1)))):
        seen = np.stack([np.bincount(column, minlength=4) for column in draws.T]) / 20_000
        assert (abs(seen - CHANCES) < 4.5 * np.sqrt(CHANCES * (1 - CHANCES) / 20_000) + 1e-12).all()
    assert (np.mean((plain - plain.mean(0)) * (other - other.mean(0)), 0) < 0).all()


@pytest.mark.slow
def test_products_and_distances():
    """Weights, geometric means, known elements and KL, by their sums over classes."""
    law, other = law_of(CHANCES), law_of(np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]]))
    weight = np.array([[0.3, -1.0, 2.0, 5.0], [1.0, 0.0, -0.5, 0.7]])
    log_mean, product = laws.weighted(law, lambda c: jnp.asarray(weight)[:, c])
    total = (CHANCES * np.exp(weight)).sum(1)
    np.testing.assert_allclose(log_mean, np.log(total).sum(), rtol=1e-5)
    np.testing.assert_allclose(product.base_dist.probs, CHANCES * np.exp(weight) / total[:, None], atol=1e-6)
    impossible = laws.weighted(law, lambda c: jnp.where(c == 3, 0.0, laws.IMPOSSIBLE) * jnp.ones(2))
    assert impossible[0] == -np.inf
    mixed = CHANCES**0.7 * np.exp(0.3 * np.asarray(other.base_dist.logits))
    got = laws.between(other, law, jnp.asarray(0.3)).base_dist.probs
    np.testing.assert_allclose(got, mixed / mixed.sum(1, keepdims=True), atol=1e-6)
    log_known, known = laws.known(law, jnp.array([2, 2]), jnp.array([True, False]))
    np.testing.assert_allclose(log_known, np.log(0.3), rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(laws.class_logits(known)), [[0, 0, 1, 0], CHANCES[1]], atol=1e-6)
    np.testing.assert_allclose(laws.chosen(law, other, jnp.array([True, False])).base_dist.probs[0], 0.25, rtol=1e-6)
    ratio = np.where(CHANCES > 0, CHANCES, 1.0) / np.where(CHANCES > 0, np.exp(np.asarray(other.base_dist.logits)), 1.0)
    np.testing.assert_allclose(laws.event_kl(law, other), (CHANCES * np.log(ratio)).sum(), rtol=1e-5)
    assert np.isinf(kl_divergence(other.base_dist, law.base_dist)).all()
    slope = jax.grad(lambda x: laws.event_kl(laws.categories(x), laws.categories(x + 1.0 * jnp.arange(4))))
    assert np.isfinite(slope(jnp.asarray(np.where(CHANCES > 0, 0.1, -np.inf), float))).all()
