"""The binomial forward process against exhaustive enumeration of bits, in numpy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from refusals import refused
from scipy.optimize import brentq

from numpyro_diffusion import BinomialDiffusion, schedules

BETA = np.array([0.02, 0.1, 0.3, 0.15, 1.0])
T = len(BETA)
KEPT = np.concatenate([[1.0], np.cumprod(1 - BETA)])
PAIRS = np.array([(t, s) for t in range(1, T + 1) for s in range(t)])
STATES = np.array(list(itertools.product([0, 1], repeat=3)))
RATES = pytest.mark.parametrize("rate", [0.5, 0.3])


def _diffusion(rate: Any = 0.5) -> BinomialDiffusion:
    return BinomialDiffusion(schedules.from_beta(BETA), rate)


def _bit_step(beta: float, rate: float) -> np.ndarray:
    """Transition matrix of one bit, [from, to]."""
    toss = np.array([1 - rate, rate])
    return (1 - beta) * np.eye(2) + beta * np.tile(toss, (2, 1))


def _bit_chain(t: int, s: int, rate: float) -> np.ndarray:
    chain = np.eye(2)
    for beta in BETA[s:t]:
        chain = chain @ _bit_step(beta, rate)
    return chain


def _cube(matrix: np.ndarray) -> np.ndarray:
    """The same for three bits, over all 8 states."""
    return np.kron(np.kron(matrix, matrix), matrix)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


@RATES
def test_steps_and_marginals_are_those_of_the_chain(rate: float, x64: None) -> None:
    """Single steps, strides and marginals are products of transition matrices."""
    diffusion, bits = _diffusion(rate), np.array([0, 1])
    step = jax.jit(jax.vmap(lambda t, s: diffusion.step(bits, t, s).mean))(*PAIRS.T)
    marginal = jax.jit(jax.vmap(lambda t: diffusion.marginal(bits, t).mean))(np.arange(T + 1))
    np.testing.assert_allclose(step, [_bit_chain(t, s, rate)[:, 1] for t, s in PAIRS], rtol=1e-12)
    np.testing.assert_allclose(marginal, [_bit_chain(t, 0, rate)[:, 1] for t in range(T + 1)], rtol=1e-12)
    np.testing.assert_allclose(marginal, KEPT[:, None] * bits + (1 - KEPT[:, None]) * rate, rtol=1e-12)


@RATES
def test_bridge_is_bayes(rate: float, x64: None) -> None:
    """q(x_s | x_t, x_0) by enumeration of both bits, and the closed form of the papers for single steps."""
    diffusion = _diffusion(rate)
    x_0, x_t = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    got = np.asarray(jax.jit(jax.vmap(lambda t, s: diffusion.bridge(x_t, x_0, t, s).mean))(*PAIRS.T))
    for (t, s), probability in zip(PAIRS, got, strict=True):
        joint = _bit_chain(s, 0, rate)[x_0] * _bit_chain(t, s, rate)[:, x_t].T
        np.testing.assert_allclose(probability, joint[:, 1] / joint.sum(1), rtol=1e-11, atol=1e-15)
        if s == t - 1:
            beta, m = BETA[t - 1], KEPT[s] * x_0 + (1 - KEPT[s]) * rate
            u = x_t * (1 - beta + rate * beta) + (1 - x_t) * (1 - rate) * beta
            v = x_t * rate * beta + (1 - x_t) * (1 - rate * beta)
            np.testing.assert_allclose(probability, u * m / (u * m + v * (1 - m)), rtol=1e-11)


@RATES
def test_average_bridge_is_the_mixture_of_bridges(rate: float, x64: None) -> None:
    """Averaged over independent bits x_0, with certain ones among them."""
    diffusion, chance = _diffusion(rate), np.array([0.1, 0.8, 0.0, 1.0])
    x_t = np.array([1, 0, 0, 1])
    with np.errstate(divide="ignore"):
        posterior = dist.Bernoulli(logits=np.log(chance) - np.log1p(-chance), validate_args=False).to_event(1)
    got = jax.jit(jax.vmap(lambda t, s: diffusion.average_bridge(x_t, posterior, t, s).mean))(*PAIRS.T)
    for (t, s), probability in zip(PAIRS, got, strict=True):
        expected = 0.0
        for bit, weight in ((0, 1 - chance), (1, chance)):
            joint = _bit_chain(s, 0, rate)[bit] * _bit_chain(t, s, rate)[:, x_t].T
            expected = expected + weight * joint[:, 1] / joint.sum(1)
        np.testing.assert_allclose(probability, expected, rtol=1e-11, atol=1e-15)


@RATES
def test_the_chain_is_reversible_under_its_noise_law(rate: float, x64: None) -> None:
    """reverse_prior_step is q(x_t | x_s) pi(x_s) / pi(x_t), for all states."""
    diffusion, bits = _diffusion(rate), np.array([0, 1])
    got = jax.jit(jax.vmap(lambda t, s: diffusion.reverse_prior_step(bits, t, s).mean))(*PAIRS.T)
    noise = np.array([1 - rate, rate])
    expected = [_bit_chain(t, s, rate)[1] * noise[1] / noise for t, s in PAIRS]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(diffusion.terminal((2, 3)).mean, np.full((2, 3), rate), rtol=1e-12)


@RATES
def test_entropies_by_enumeration(rate: float, x64: None) -> None:
    """Every entropy and cross-entropy from tables of probabilities over the 8 states."""
    diffusion = _diffusion(rate)
    every = jax.jit(
        jax.vmap(
            jax.vmap(
                lambda x_0, t, s: (
                    diffusion.marginal_entropy(x_0, t),
                    diffusion.step_entropy(x_0, t, s),
                    diffusion.expected_log_terminal(x_0, t),
                ),
                (None, 0, 0),
            ),
            (0, None, None),
        )
    )(STATES, *PAIRS.T)
    log_noise = np.log(_cube(_bit_chain(T, 0, rate))[0])  # the last step erases everything
    for j, (t, s) in enumerate(PAIRS):
        to_t, to_s, step = (_cube(_bit_chain(*times, rate)) for times in ((t, 0), (s, 0), (t, s)))
        rows = np.array([_entropy(row) for row in step])
        for i in range(8):
            expected = _entropy(to_t[i]), to_s[i] @ rows, to_t[i] @ log_noise
            np.testing.assert_allclose([e[i, j] for e in every], expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(diffusion.terminal_entropy((3,)), _entropy(np.exp(log_noise)), rtol=1e-12)


def _laws(rate: float) -> dict[str, np.ndarray]:
    law, ones = np.random.default_rng(3).dirichlet(np.full(8, 0.5)), STATES.sum(1)

    def tilted(slope: float) -> np.ndarray:
        return law * np.exp(slope * ones) / (law @ np.exp(slope * ones))

    # An exponential tilt of the same law has the noise's mean activity.
    slope = brentq(lambda u: tilted(u) @ ones - 3 * rate, -20, 20, xtol=1e-14)
    return {"random": law, "same_activity": tilted(slope), "all_on": np.eye(8)[7] * 0.96 + 0.005}


@RATES
def test_reverse_entropy_bounds(rate: float, x64: None) -> None:
    """Equation 24 of the 2015 paper against the enumerated H(X^s | X^t), at every step and stride."""
    diffusion = _diffusion(rate)
    pairs = PAIRS[PAIRS[:, 1] > 0]
    bounds = jax.vmap(lambda t, s: jax.vmap(lambda x_0: diffusion.reverse_entropy_bounds(x_0, t, s))(STATES))
    lower, upper = jax.jit(bounds)(*pairs.T)
    exceeds = {}
    for name, law in _laws(rate).items():
        exact = []
        for t, s in pairs:
            joint = (law @ _cube(_bit_chain(s, 0, rate)))[:, None] * _cube(_bit_chain(t, s, rate))
            exact.append(_entropy(joint.ravel()) - _entropy(joint.sum(0)))
        assert (lower @ law <= np.array(exact) + 1e-12).all(), name
        exceeds[name] = bool((np.array(exact) > upper @ law + 1e-12).any())
        if name == "same_activity":
            np.testing.assert_allclose(law @ STATES.mean(1), rate, rtol=1e-12)
    # The upper bound needs the noise's mean activity, or the rate 1/2.
    assert exceeds == {"random": rate != 0.5, "same_activity": False, "all_on": rate != 0.5}


def test_draws_from_standard_noise() -> None:
    """Uniform noise and its mirror image both give the marginal's frequencies, with opposite errors."""
    diffusion, x_0 = _diffusion(0.3), np.array([0.0, 1.0])
    noise = diffusion.marginal_noise(jax.random.key(2), (100_000, 2))
    draw = jax.jit(jax.vmap(lambda n: diffusion.marginal_from_noise(n, x_0, 3)))
    plain, mirrored = np.asarray(draw(noise)), np.asarray(draw(diffusion.mirror_noise(noise)))
    assert set(np.unique(plain)) == {0.0, 1.0}
    expected = _bit_chain(3, 0, 0.3)[:, 1]
    for x in (plain, mirrored):
        assert (abs(x.mean(0) - expected) < 4 * np.sqrt(expected * (1 - expected) / len(x))).all()
    # Both ones at once only where the two intervals overlap.
    np.testing.assert_allclose((plain * mirrored).mean(0), np.maximum(2 * expected - 1, 0), atol=0.007)


def test_kl_between_bits(x64: None) -> None:
    """The registered closed form is a ln(a/b) + (1-a) ln((1-a)/(1-b)), also for certain bits."""
    a, b = np.array([0.3, 0.9, 1e-9, 0.5, 0.0, 1.0]), np.array([0.4, 0.2, 0.7, 0.5, 0.25, 0.125])
    with np.errstate(divide="ignore"):
        laws = [dist.Bernoulli(logits=np.log(p) - np.log1p(-p), validate_args=False) for p in (a, b)]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nan_to_num(a * np.log(a / b)) + np.nan_to_num((1 - a) * np.log((1 - a) / (1 - b)))
    np.testing.assert_allclose(dist.kl_divergence(*laws), expected, rtol=1e-9, atol=1e-15)
    joint = dist.kl_divergence(laws[0].to_event(1), laws[1].to_event(1))
    np.testing.assert_allclose(joint, expected.sum(), rtol=1e-9)


def test_rare_tosses_keep_their_digits_in_float32() -> None:
    """Bits that are nearly certain have log probabilities right to five digits."""
    diffusion = BinomialDiffusion(schedules.from_beta(np.array([1e-7, 2e-7, 0.5])), 0.2)
    flip = jax.jit(lambda: diffusion.step(np.zeros(1), 1).log_prob(np.ones(1)))()
    assert flip.dtype == jnp.float32
    np.testing.assert_allclose(flip, np.log(0.2e-7), rtol=1e-6)
    both = jax.jit(lambda: diffusion.bridge(np.ones(1), np.zeros(1), 2, 1).mean)()
    np.testing.assert_allclose(both, 1 / 3, rtol=1e-5)


def test_rate_per_bit(x64: None) -> None:
    """The rate may differ from bit to bit."""
    rates = np.array([0.1, 0.5, 0.8])
    got = jax.jit(lambda: _diffusion(rates).marginal(np.array([1, 0, 1]), 2).mean)()
    np.testing.assert_allclose(got, [_bit_chain(2, 0, r)[x, 1] for r, x in zip(rates, (1, 0, 1), strict=True)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BETA,), "schedule: expected a schedule from numpyro_diffusion.schedules, got array"),
        ((schedules.linear(5), 0.0), "rate: expected a probability strictly between 0 and 1, got 0.0"),
        ((schedules.linear(5), 1.5), "rate: expected a probability strictly between 0 and 1, got 1.5"),
        ((schedules.linear(5), np.nan), "rate: expected a probability strictly between 0 and 1, got nan"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    """Wrong arguments are named, with what was expected and what came."""
    with refused(message):
        BinomialDiffusion(*arguments)
