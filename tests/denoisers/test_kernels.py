"""A kernel density as a denoiser: what the mixture of its kernels says, in fewer operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import numpyro_diffusion as nd
from numpyro_diffusion.denoisers import GaussianMixture, KernelDensity

LOCS, SCALE = np.random.default_rng(0).normal(size=(40, 2, 3)) + 3.0, 0.2
MIXTURE = np.full(40, SCALE), np.full(40, 1 / 40)


def moments(denoiser, diffusion, x, times):
    def one(x, t):
        law = denoiser.posterior(diffusion, x, t)
        return law.mean, law.variance

    return jax.jit(jax.vmap(one))(x, times)


def diffusion():
    return nd.GaussianDiffusion(nd.schedules.log_snr(20, detail=SCALE), 2.5, 1.5)


def test_it_says_what_a_mixture_of_its_kernels_says(x64):
    """At every step, near the kernels and far from them, in units that are not the data's."""
    x = np.random.default_rng(1).normal(size=(20, 2, 3)) * 3 + 2.5
    times = np.arange(1, 21)
    one, two = KernelDensity(LOCS, SCALE), GaussianMixture(LOCS, *MIXTURE)
    for got, expected in zip(*(moments(d, diffusion(), x, times) for d in (one, two)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(one.covariance(diffusion(), (2, 3)), two.covariance(diffusion(), (2, 3)), rtol=1e-9)
    np.testing.assert_allclose(one.data().log_prob(x), two.data().log_prob(x), rtol=1e-9)
    assert one.is_exact and not one.is_gaussian


def test_single_precision_is_enough():
    """Of elements as far apart as a hundred scales, about a centre at a thousand, by Bayes' rule in numpy."""
    spread, scale = np.random.default_rng(2).normal(size=(300, 4)), 0.02
    schedule = nd.schedules.log_snr(20, detail=scale)
    process, times = nd.GaussianDiffusion(schedule, 1000.0, 1.0), np.arange(1, 21)
    x = np.float32(1000 + spread[:20] + scale)
    mean, variance = moments(KernelDensity(1000 + spread, scale), process, x, times)
    signal = np.asarray(schedule.alpha_bar(times), np.float64)[:, None]
    marginal = signal * scale**2 + 1 - signal
    apart = (x - 1000.0)[:, None] - np.sqrt(signal)[:, None] * spread
    share = softmax(-0.5 * np.square(apart).sum(-1) / marginal, 1)[..., None]
    each = spread + (np.sqrt(signal) * scale**2 / marginal)[:, None] * apart
    exact = (share * each).sum(1)
    spreads = (share * np.square(each - exact[:, None])).sum(1) + scale**2 * (1 - signal) / marginal
    off = np.abs(np.asarray(mean, np.float64) - 1000 - exact)
    np.testing.assert_array_less(off, 0.01 * np.sqrt(spreads) + 2e-4)  # of a thousand the last digit is 6e-5
    np.testing.assert_allclose(variance, spreads, rtol=0.02)


def test_its_chain_draws_the_density():
    """The mean log density of draws is that of the density's own, as many draws as there are of it."""
    exact = KernelDensity(LOCS.reshape(40, 6), SCALE)
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(64, scale=3.0, detail=SCALE)), exact, 6)
    draws = nd.DiffusionPrior(process).sample(jax.random.key(0), (500,))
    own = exact.data().sample(jax.random.key(1), (500,))
    one, two = (np.asarray(exact.data().log_prob(x)) for x in (draws, own))
    assert abs(one.mean() - two.mean()) < 4 * np.hypot(one.std(), two.std()) / np.sqrt(500)


def test_files_keep_it(tmp_path):
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion(), KernelDensity(LOCS, SCALE), (2, 3)))
    prior.save(tmp_path / "prior")
    again, x = nd.load(tmp_path / "prior"), jnp.ones((2, 3))
    np.testing.assert_array_equal(again.process.predict(x, 5), prior.process.predict(x, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: KernelDensity(np.zeros((0, 2)), 1.0),
            r"locs: expected shape \(k, \*event\) with k >= 1, got \(0, 2\)",
        ),
        (lambda: KernelDensity(1.0, 1.0), r"locs: expected shape \(k, \*event\)"),
        (lambda: KernelDensity(np.zeros((2, 2)), np.ones(2)), r"scale: expected one number, got shape \(2,\)"),
        (lambda: KernelDensity(np.zeros((2, 2)), 0.0), "scale: expected positive numbers"),
        (lambda: KernelDensity(np.full((2, 2), np.nan), 1.0), "locs: expected finite numbers"),
        (
            lambda: KernelDensity(np.zeros((2, 2)), 1.0).posterior(
                nd.GaussianDiffusion(nd.schedules.log_snr(4), 0.0, [1.0, 2.0]), jnp.zeros(2), 1
            ),
            "diffusion: expected one scale for all elements",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
