"""The divergence of two laws of one event, against NumPyro's own and a Gaussian's closed form in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence

from numpyro_diffusion.laws import event_kl

KEY = jax.random.key(0)


def _normal(seed: int, shape: tuple[int, ...], scale: float | None = None) -> dist.Distribution:
    loc = jax.random.normal(jax.random.fold_in(KEY, seed), shape)
    spread = jnp.exp(jax.random.normal(jax.random.fold_in(KEY, seed + 100), shape)) if scale is None else scale
    return dist.Normal(loc, spread).to_event(len(shape))


def _bits(seed: int, shape: tuple[int, ...]) -> dist.Distribution:
    return dist.BernoulliLogits(jax.random.normal(jax.random.fold_in(KEY, seed), shape)).to_event(len(shape))


def _dense(seed: int, size: int) -> dist.Distribution:
    lower = jnp.tril(jax.random.normal(jax.random.fold_in(KEY, seed), (size, size))) + 3 * jnp.eye(size)
    return dist.MultivariateNormal(jnp.zeros(size), scale_tril=lower)


@pytest.mark.parametrize(
    "pair",
    [
        (_normal(0, (3, 4)), _normal(1, (3, 4))),
        (_normal(2, (5,), 0.3), _normal(3, (5,))),  # one scale for all elements
        (_normal(4, ()), _normal(5, ())),  # a number
        (_bits(6, (7,)), _bits(7, (7,))),
        (_dense(8, 3), _dense(9, 3)),  # no product of laws
    ],
)
def test_event_kl_is_that_of_numpyro(pair: tuple[dist.Distribution, dist.Distribution], x64: None) -> None:
    got = event_kl(*pair)
    assert got.shape == ()
    np.testing.assert_allclose(got, kl_divergence(*pair), rtol=2e-6)
    assert float(got) > 0


def test_event_kl_keeps_single_precision_over_many_elements() -> None:
    """A product with ones must not be computed in fewer digits than the sum that it stands for."""
    mean, spread = np.random.default_rng(0).normal(size=(2, 100_000)).astype("f")
    p, q = dist.Normal(mean, np.exp(spread)).to_event(1), dist.Normal(jnp.zeros(100_000), 1.5).to_event(1)
    ratio = (np.exp(spread.astype("d")) / 1.5) ** 2
    exact = 0.5 * np.sum(ratio + (mean.astype("d") / 1.5) ** 2 - 1 - np.log(ratio))
    np.testing.assert_allclose(jax.jit(event_kl)(p, q), exact, rtol=3e-6)


def test_event_kl_is_infinite_where_the_second_law_excludes_a_point_of_the_first() -> None:
    p = dist.BernoulliLogits(jnp.zeros(3)).to_event(1)
    q = dist.BernoulliLogits(jnp.array([0.0, -jnp.inf, 0.0]), validate_args=False).to_event(1)
    assert np.isposinf(event_kl(p, q))


def test_event_kl_has_the_gradient_of_the_sum() -> None:
    q = _normal(1, (4, 4))
    mean = jnp.linspace(-1.0, 1.0, 16).reshape(4, 4)
    of = lambda kl: jax.grad(lambda mean: kl(dist.Normal(mean, 0.5).to_event(2), q))(mean)
    np.testing.assert_allclose(of(event_kl), of(kl_divergence), rtol=1e-6)
