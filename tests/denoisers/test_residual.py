"""Mixtures with correlations against dense algebra in numpy, and networks that learn what a baseline leaves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion import schedules
from numpyro_diffusion.denoisers import FullGaussianMixture, GaussianMixture, Network, Residual
from numpyro_diffusion.process import trainable

LOC, SCALE = 0.5, 2.0
ROOTS = np.array([[[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-0.5, 0.2, 0.7]], np.diag([0.3, 2.0, 0.9])])
COVARIANCES = ROOTS @ ROOTS.transpose(0, 2, 1)
MEANS, WEIGHTS = np.array([[0.0, 1.0, -1.0], [2.0, -0.5, 0.3]]), np.array([0.3, 0.7])


def _diffusion(scale=SCALE):
    return nd.GaussianDiffusion(schedules.log_snr(6, -5.0, 4.0), LOC, scale)


def _mixture():
    return FullGaussianMixture(MEANS, COVARIANCES, WEIGHTS)


def _outputs(x, t):
    return jnp.sin(x + t), 0.3 * jnp.cos(x)


def test_the_mixtures_posterior_is_that_of_dense_algebra(x64):
    diffusion = _diffusion()
    x_t = np.random.default_rng(0).normal(size=3) * 2
    for t in (1, 3, 6):
        kept = float(diffusion.schedule.alpha_bar(t))
        noise, y = SCALE**2 * (1 - kept) * np.eye(3), x_t - LOC + np.sqrt(kept) * LOC  # = √ᾱ x_0 + noise
        means, covariances, shares = [], [], []
        for mean, covariance, weight in zip(MEANS, COVARIANCES, WEIGHTS, strict=True):
            total = kept * covariance + noise
            gain, apart = np.sqrt(kept) * covariance @ np.linalg.inv(total), y - np.sqrt(kept) * mean
            means.append(mean + gain @ apart)
            covariances.append(covariance - np.sqrt(kept) * gain @ covariance)
            density = np.exp(-0.5 * apart @ np.linalg.solve(total, apart)) / np.sqrt(np.linalg.det(total))
            shares.append(weight * density)
        shares, means = np.array(shares) / sum(shares), np.array(means)
        mean = shares @ means
        variance = shares @ (np.diagonal(covariances, axis1=1, axis2=2) + (means - mean) ** 2)
        law = _mixture().posterior(diffusion, jnp.asarray(x_t), t)
        np.testing.assert_allclose(law.mean, mean, rtol=1e-9)
        np.testing.assert_allclose(law.variance, variance, rtol=1e-9)


def test_the_mixtures_law_and_covariance(x64):
    x = np.random.default_rng(1).normal(size=(4, 3))
    apart = x[:, None] - MEANS
    square = np.einsum("nki,kij,nkj->nk", apart, np.linalg.inv(COVARIANCES), apart)
    log_density = -0.5 * (square + np.log(np.linalg.det(2 * np.pi * COVARIANCES))) + np.log(WEIGHTS)
    found = jax.jit(_mixture().data().log_prob)(x)
    np.testing.assert_allclose(found, np.logaddexp.reduce(log_density, axis=1), rtol=1e-9)
    between = MEANS - WEIGHTS @ MEANS
    covariance = np.tensordot(WEIGHTS, COVARIANCES, 1) + (between * WEIGHTS[:, None]).T @ between
    found = _mixture().covariance(_diffusion(), (3,))
    np.testing.assert_allclose(found, covariance / SCALE**2, rtol=1e-9, atol=1e-12)
    # Without correlations it is the mixture that there was before.
    diagonal = FullGaussianMixture(MEANS, [np.diag([0.5, 1.0, 2.0]), np.eye(3)], WEIGHTS)
    other = GaussianMixture(MEANS, np.sqrt([[0.5, 1.0, 2.0], [1.0, 1.0, 1.0]]), WEIGHTS)

    @jax.jit
    def moments(x):
        laws = [d.posterior(_diffusion(), x, 2.0) for d in (diagonal, other)]
        return [jnp.stack([law.mean, law.variance]) for law in laws]

    np.testing.assert_allclose(*moments(x[0]), rtol=1e-9)


def test_outputs_of_zero_are_the_baseline(x64):
    zero = Residual(lambda x, t: (jnp.zeros(3), jnp.zeros(3)), _mixture())
    both = [nd.ReverseProcess(_diffusion(), denoiser, 3) for denoiser in (zero, _mixture())]

    @jax.jit
    def answers(x):
        kernels = [[process.kernel(x, t) for t in (1, 2, 5)] for process in both]
        laws = [jnp.stack([jnp.stack([law.mean, law.variance]) for law in own]) for own in kernels]
        return laws, [nd.KBound(4).estimate(jax.random.key(0), process, x).value for process in both]

    laws, values = answers(np.random.default_rng(2).normal(size=3))
    np.testing.assert_allclose(*laws, rtol=1e-12)
    np.testing.assert_allclose(*values, rtol=1e-9)


def test_zero_about_the_noise_law_is_that_law_in_any_number_of_steps(x64):
    """K of such a chain is log N(x; loc, scale²), apart from noise, in as few steps as one likes."""
    baseline = FullGaussianMixture(np.full((1, 3), LOC), SCALE**2 * np.eye(3)[None])
    zero = Residual(lambda x, t: (jnp.zeros(3), jnp.zeros(3)), baseline)
    process = nd.ReverseProcess(_diffusion(), zero, 3)
    x = jnp.asarray([1.0, -2.0, 6.0])
    found = jax.jit(lambda x: nd.KBound(4, low_discrepancy=True).estimate(jax.random.key(0), process, x).value)(x)
    exact = -0.5 * np.sum(((np.asarray(x) - LOC) / SCALE) ** 2) - 3 * np.log(SCALE * np.sqrt(2 * np.pi))
    assert float(found) == pytest.approx(exact, abs=0.01)


def test_about_the_noise_law_the_output_is_the_velocity(x64):
    baseline = nd.denoisers.Gaussian(LOC, SCALE)
    diffusion, x = _diffusion(), jnp.asarray([0.3, -1.0, 2.0])
    ours = Residual(lambda x, t: (jnp.sin(x + t), jnp.zeros(3)), baseline)
    velocity = Network(lambda x, t: jnp.sin(x + t), "velocity")
    for t in (1, 4):
        laws = [denoiser.posterior(diffusion, x, t) for denoiser in (ours, velocity)]
        np.testing.assert_allclose(laws[0].mean, laws[1].mean, rtol=1e-9)
        np.testing.assert_allclose(laws[0].variance, laws[1].variance, rtol=1e-9)


def test_an_answer_is_remembered():
    diffusion, x, denoiser = _diffusion(), jnp.ones(3), Residual(_outputs, _mixture())
    law, again = (
        d.posterior(diffusion, x, 2) for d in (denoiser, denoiser.with_outputs(denoiser.outputs(diffusion, x, 2)))
    )
    np.testing.assert_array_equal(law.mean, again.mean)
    np.testing.assert_array_equal(law.variance, again.variance)


def test_the_baseline_is_never_trained():
    fn = nd.networks.MLP(jax.random.key(0), (3,), num_steps=6, width=4, depth=1, outputs=2)
    process = nd.ReverseProcess(_diffusion(), Residual(fn, _mixture()), 3)
    params = eqx.filter(process, trainable(process))
    assert not jax.tree.leaves(params.denoiser.baseline)
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(eqx.filter(fn, eqx.is_inexact_array)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullGaussianMixture(MEANS[0], COVARIANCES), r"locs: expected shape \(k, d\), got \(3,\)"),
        (
            lambda: FullGaussianMixture(MEANS, COVARIANCES[:1]),
            r"covariances: expected shape \(2, 3, 3\), got \(1",
        ),
        (
            lambda: FullGaussianMixture(MEANS, -COVARIANCES),
            "covariances: expected positive definite ones, got an",
        ),
        (lambda: FullGaussianMixture(MEANS, COVARIANCES, [0.5, 0.2]), "weights: expected probabilities that add up to"),
        (lambda: FullGaussianMixture(MEANS, COVARIANCES, [1.0]), r"weights: expected shape \(2,\), got \(1,\)"),
        (lambda: Residual(3, _mixture()), r"fn: expected a callable fn\(x_t, t\), got 3"),
        (lambda: Residual(_outputs, 3), "baseline: expected an exact denoiser, got 3"),
        (
            lambda: nd.ReverseProcess(_diffusion(), Residual(lambda x, t: x, _mixture()), 3),
            r"fn: expected a pair of outputs, each of shape \(3,\), got \(3,\)",
        ),
        (
            lambda: nd.ReverseProcess(_diffusion(scale=np.ones(3)), _mixture(), 3),
            r"diffusion: expected one scale for all elements, got shape \(3,\)",
        ),
    ],
    ids=range(9),
)
def test_what_is_refused(make, message):
    with refused(message):
        make()
