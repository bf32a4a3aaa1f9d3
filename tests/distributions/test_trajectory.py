"""Trajectories and samples against closed forms and enumeration, in numpy."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from numpyro_diffusion import (
    BinomialDiffusion,
    DiffusionPrior,
    ForwardTrajectory,
    GaussianDiffusion,
    ReverseProcess,
    ReverseTrajectory,
    schedules,
)
from numpyro_diffusion.denoisers import Gaussian, GaussianMixture, Network
from numpyro_diffusion.distributions import joint_log_ratio

BETA = np.array([0.05, 0.1, 0.3, 0.6])
T = len(BETA)
KEPT = np.concatenate([[1.0], np.cumprod(1 - BETA)])
LOST = 1 - KEPT
LOC, SCALE = np.array([0.5, -2.0]), np.array([2.0, 0.3])
SLOPE, OFFSET = np.array([0.0, 0.9, 0.7, 0.8, 0.3]), np.array([0.0, 0.1, -0.3, 0.2, 0.4])
STATES = np.array(list(itertools.product([0, 1], repeat=3)))


def _normal_log_density(x: np.ndarray, mean: np.ndarray, variance: Any) -> np.ndarray:
    return (-0.5 * (x - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum(-1)


def _affine(z: jax.Array, t: jax.Array) -> jax.Array:
    index = jnp.asarray(t, int)
    return jnp.asarray(SLOPE, z.dtype)[index] * z + jnp.asarray(OFFSET, z.dtype)[index]


def _affine_process(loc: Any = LOC, scale: Any = SCALE) -> ReverseProcess:
    diffusion = GaussianDiffusion(schedules.from_beta(BETA), loc, scale)
    return ReverseProcess(diffusion, Network(_affine, "data"), 2, last_step="forward")


def test_affine_chain_by_hand(x64: None) -> None:
    """The joint density of a chain, of its noising, and their ratio; the scale is a change of variables."""
    z = np.random.default_rng(0).normal(size=(3, 2, T + 1, 2))
    x = LOC + SCALE * z
    log_p = _normal_log_density(z[..., T, :], 0.0, 1.0)
    log_q = 0.0
    for t in range(1, T + 1):
        now, before, beta = z[..., t, :], z[..., t - 1, :], BETA[t - 1]
        log_q = log_q + _normal_log_density(now, np.sqrt(1 - beta) * before, beta)
        data = np.sqrt(KEPT[t - 1]) * beta / LOST[t]
        noise = np.sqrt(1 - beta) * LOST[t - 1] / LOST[t]
        mean = data * (SLOPE[t] * now + OFFSET[t]) + noise * now
        log_p = log_p + _normal_log_density(before, np.sqrt(1 - beta) * now if t == 1 else mean, beta)
    volume = np.log(SCALE).sum()
    process = _affine_process()
    reverse, ratio = jax.jit(lambda x: (ReverseTrajectory(process).log_prob(x), joint_log_ratio(process, x)))(x)
    np.testing.assert_allclose(reverse, log_p - (T + 1) * volume, rtol=1e-10)
    np.testing.assert_allclose(ratio, log_p - log_q - volume, rtol=1e-9)
    forward = jax.jit(lambda x: ForwardTrajectory(process.diffusion, x[:, :, 0], event_dim=1).log_prob(x[:, :, 1:]))(x)
    np.testing.assert_allclose(forward, log_q - T * volume, rtol=1e-10)
    bare = jax.jit(lambda z: ReverseTrajectory(_affine_process(0.0, 1.0)).log_prob(z))(z)
    np.testing.assert_allclose(bare, log_p, rtol=1e-10)


def _logits(z: jax.Array, t: jax.Array) -> jax.Array:
    mixing = jnp.array([[1.0, 0.5, -0.7], [0.2, 1.5, 0.3], [-0.4, 0.1, 0.9]], z.dtype)
    return 2 * mixing @ (z - 0.4) / jnp.sqrt(t) + 0.2


def _bit_process() -> ReverseProcess:
    diffusion = BinomialDiffusion(schedules.from_beta(BETA[1:]), 0.3)
    return ReverseProcess(diffusion, Network(_logits, "mean"), 3, last_step="forward")


def _bit_tables() -> list[np.ndarray]:
    """p(x_{t-1} | x_t) over the 8 states for t = 1, 2, 3: reversed forward odds times the free ones."""
    tables = []
    for t, beta in enumerate(BETA[1:], start=1):
        ones = STATES * (1 - beta) + 0.3 * beta
        if t > 1:
            mixing = np.array([[1.0, 0.5, -0.7], [0.2, 1.5, 0.3], [-0.4, 0.1, 0.9]])
            odds = ones / (1 - ones) * np.exp(2 * (STATES - 0.4) @ mixing.T / np.sqrt(t) + 0.2)
            ones = odds / (1 + odds)
        tables.append(np.prod(np.where(STATES[None], ones[:, None], 1 - ones[:, None]), axis=2))
    return tables


def test_all_paths_of_three_bits(x64: None) -> None:
    """The joint law of 8^4 paths is that of the tables and adds up to one; so does the noising."""
    paths = np.array(list(itertools.product(range(8), repeat=4)))
    process = _bit_process()
    log_p, ratio = jax.jit(lambda x: (ReverseTrajectory(process).log_prob(x), joint_log_ratio(process, x)))(
        STATES[paths]
    )
    expected = np.log(np.prod(np.where(STATES, 0.3, 0.7), axis=1))[paths[:, 3]]
    for t, table in enumerate(_bit_tables(), start=1):
        expected = expected + np.log(table)[paths[:, t], paths[:, t - 1]]
    np.testing.assert_allclose(log_p, expected, rtol=1e-9)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-10)
    forward = np.bincount(paths[:, 0], np.exp(log_p - ratio))
    np.testing.assert_allclose(forward, 1, rtol=1e-10)


def test_samples_of_bits_have_the_enumerated_law() -> None:
    """A chi-square test of the prior's samples against p(x_0) by transition tables."""
    prior = DiffusionPrior(_bit_process())
    draws = np.asarray(jax.jit(lambda k: prior.sample(k, (20_000,)))(jax.random.key(1)))
    assert draws.shape == (20_000, 3)
    counts = np.bincount(draws.astype(int) @ [4, 2, 1], minlength=8)
    law = np.prod(np.where(STATES, 0.3, 0.7), axis=1)
    for table in reversed(_bit_tables()):
        law = law @ table
    assert law.min() * len(draws) > 20
    assert stats.chisquare(counts, law * len(draws)).pvalue > 1e-3


@eqx.filter_jit
def _sample(law: Any, seed: int, count: int) -> jax.Array:
    return law.sample(jax.random.key(seed), (count,))


def _close(draws: np.ndarray, mean: Any, variance: Any, sigmas: float = 4.5) -> None:
    """Moments of independent normal draws within so many standard errors."""
    draws = np.asarray(draws, np.float64)
    error = np.sqrt(np.asarray(variance) / len(draws))
    assert (abs(draws.mean(0) - mean) < sigmas * error).all()
    assert (abs(draws.var(0) / variance - 1) < sigmas * np.sqrt(2 / len(draws))).all()


def test_step_marginals_of_the_reverse_chain() -> None:
    """At every step the sampled chain has the normal law and the correlations that its kernels imply."""
    count = 40_000
    draws = np.asarray(_sample(ReverseTrajectory(_affine_process()), 2, count), np.float64)
    assert draws.shape == (count, T + 1, 2)
    mean, variance = 0.0, 1.0
    for t in range(T, -1, -1):
        _close(draws[:, t], LOC + SCALE * mean, SCALE**2 * variance)
        if t == 0:
            break
        beta = BETA[t - 1]
        slope, offset = np.sqrt(1 - beta), 0.0
        if t > 1:
            data = np.sqrt(KEPT[t - 1]) * beta / LOST[t]
            slope = data * SLOPE[t] + np.sqrt(1 - beta) * LOST[t - 1] / LOST[t]
            offset = data * OFFSET[t]
        after = slope**2 * variance + beta
        correlation = np.corrcoef(draws[:, t, 0], draws[:, t - 1, 0])[0, 1]
        assert abs(correlation - slope * np.sqrt(variance / after)) < 4.5 / np.sqrt(count)
        mean, variance = slope * mean + offset, after


def test_step_marginals_of_the_forward_chain() -> None:
    """Sampled one step at a time, every x_t has the law of the marginal, for each example of a batch."""
    x_0 = LOC + SCALE * np.array([[0.5, -1.5], [2.0, 0.0]])
    diffusion = GaussianDiffusion(schedules.from_beta(BETA), LOC, SCALE)
    law = ForwardTrajectory(diffusion, x_0, event_dim=1)
    assert law.batch_shape == (2,)
    assert law.event_shape == (T, 2)
    draws = np.asarray(_sample(law, 3, 40_000), np.float64)
    assert draws.shape == (40_000, 2, T, 2)
    for t in range(1, T + 1):
        _close(
            draws[:, :, t - 1],
            LOC + np.sqrt(KEPT[t]) * (x_0 - LOC),
            np.broadcast_to(SCALE**2 * LOST[t], (2, 2)),
        )
    covariance = np.cov(draws[:, 0, 0, 0], draws[:, 0, T - 1, 0])[0, 1] / SCALE[0] ** 2
    expected = np.sqrt(KEPT[T] / KEPT[1]) * LOST[1]
    assert abs(covariance - expected) < 4.5 * np.sqrt((LOST[1] * LOST[T] + expected**2) / 40_000)
    other = np.asarray(
        jax.jit(jax.vmap(lambda k: diffusion.marginal(x_0[0], 3).sample(k)))(
            jax.random.split(jax.random.key(4), 10_000)
        )
    )
    for i in range(2):
        assert stats.ks_2samp(draws[:10_000, 0, 2, i], other[:, i]).pvalue > 1e-3


def test_forward_chain_of_bits() -> None:
    """Bits stay bits, and are ones as often as the marginal says."""
    diffusion = BinomialDiffusion(schedules.from_beta(BETA), 0.3)
    x_0 = np.array([1, 0, 1])
    draws = np.asarray(_sample(ForwardTrajectory(diffusion, x_0), 5, 20_000), np.float64)
    assert set(np.unique(draws)) == {0.0, 1.0}
    for t in range(1, T + 1):
        ones = KEPT[t] * x_0 + LOST[t] * 0.3
        assert (abs(draws[:, t - 1].mean(0) - ones) < 4.5 * np.sqrt(ones * (1 - ones) / 20_000)).all()


def test_exact_gaussian_prior_samples_its_data_law() -> None:
    """With the exact denoiser of data N(m, s^2), samples have that law."""
    loc, scale = np.array([1.5, -2.8]), np.array([0.6, 0.2])
    diffusion = GaussianDiffusion(schedules.log_snr(50), LOC, SCALE)
    prior = DiffusionPrior(ReverseProcess(diffusion, Gaussian(loc, scale), 2))
    draws = np.asarray(_sample(prior, 6, 20_000))
    assert draws.shape == (20_000, 2)
    _close(draws, loc, scale**2)
    for i in range(2):
        assert stats.kstest(draws[:, i], stats.norm(loc[i], scale[i]).cdf).pvalue > 1e-3


def test_mixture_prior_samples_its_data_law() -> None:
    """With the exact posterior mean and variance of a mixture, weights and moments of each mode are right."""
    locs, scales, weights = np.array([[-1.0], [1.5]]), np.array([0.3, 0.5]), np.array([0.3, 0.7])
    diffusion = GaussianDiffusion(schedules.log_snr(200, scale=1.3))
    prior = DiffusionPrior(ReverseProcess(diffusion, GaussianMixture(locs, scales, weights), 1))
    draws = np.asarray(_sample(prior, 7, 5_000), np.float64)[:, 0]
    law = lambda x: sum(w * stats.norm.cdf(x, m[0], s) for w, m, s in zip(weights, locs, scales, strict=True))
    # The best Gaussian steps are not exact: the distance is below sampling error plus 1%.
    assert stats.kstest(draws, law).statistic < 0.01 + 1.95 / np.sqrt(len(draws))
    mean = weights @ locs[:, 0]
    variance = weights @ (scales**2 + locs[:, 0] ** 2) - mean**2
    assert abs(draws.mean() - mean) < 4.5 * np.sqrt(variance / len(draws))


def test_trajectory_ends_in_the_prior() -> None:
    """Shapes of whole chains, x_0 first, and what belongs together."""
    prior = DiffusionPrior(_affine_process())
    chains = jax.jit(lambda k: prior.sample_trajectory(k, (3,)))(jax.random.key(8))
    draws = jax.jit(lambda k: prior.sample(k, (3,)))(jax.random.key(8))
    assert chains.shape == (3, T + 1, 2)
    np.testing.assert_allclose(chains[:, 0], draws, rtol=1e-5)
    assert prior.trajectory.event_shape == (T + 1, 2)


@pytest.mark.parametrize("event_dim", [-1, 3])
def test_event_dim_must_fit(event_dim: int) -> None:
    """The number of dimensions of an example is between 0 and those of the data."""
    diffusion = _affine_process().diffusion
    with pytest.raises(ValueError, match=rf"event_dim: expected a number from 0 to 2 .* got {event_dim}"):
        ForwardTrajectory(diffusion, np.zeros((2, 2)), event_dim=event_dim)


def test_path_shape_must_fit() -> None:
    """A path of the wrong length is named."""
    with pytest.raises(ValueError, match=r"trajectory: .* event shape \(5, 2\), got \(4, 2\)"):
        joint_log_ratio(_affine_process(), np.zeros((4, 2)))
