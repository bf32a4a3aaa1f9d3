"""The Gaussian forward process against conditioning of its joint normal law and quadrature, in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from refusals import refused

from numpyro_diffusion import GaussianDiffusion, schedules

BETA = np.array([0.02, 0.1, 0.3, 0.15, 0.5])
T = len(BETA)
KEPT = np.concatenate([[1.0], np.cumprod(1 - BETA)])
PAIRS = np.array([(t, s) for t in range(1, T + 1) for s in range(t)])
BARE = np.array([0.4, -1.3, 2.0])
LOC, SCALE = np.array([0.7, -3.0, 10.0]), np.array([2.5, 0.3, 4.0])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def _diffusion(loc: Any = 0.0, scale: Any = 1.0) -> GaussianDiffusion:
    return GaussianDiffusion(schedules.from_beta(BETA), loc, scale)


def _moments(law: Any) -> tuple[jax.Array, jax.Array]:
    return law.mean, law.variance


def _joint() -> np.ndarray:
    """Covariance of (x_1, ..., x_T) given x_0, by its recursion from step to step."""
    mixing = np.zeros((T, T))
    for t in range(T):
        mixing[t] = np.sqrt(1 - BETA[t]) * mixing[t - 1] if t else 0
        mixing[t, t] = np.sqrt(BETA[t])
    return mixing @ mixing.T


def test_marginal_and_step_follow_the_recursion(x64: None) -> None:
    """q(x_t | x_0) and q(x_t | x_s), strides included, are those of the chain of single steps."""
    diffusion, cov = _diffusion(), _joint()
    marginal = jax.jit(jax.vmap(lambda t: _moments(diffusion.marginal(BARE, t))))(jnp.arange(T + 1))
    np.testing.assert_allclose(marginal[0], np.sqrt(KEPT)[:, None] * BARE, rtol=1e-12)
    expected = np.concatenate([[0.0], np.diag(cov)])
    np.testing.assert_allclose(marginal[1], np.repeat(expected[:, None], 3, 1), rtol=1e-12, atol=1e-15)
    step = jax.jit(jax.vmap(lambda t, s: _moments(diffusion.step(BARE, t, s))))(*PAIRS.T)
    for (t, s), mean, variance in zip(PAIRS, *step, strict=True):
        np.testing.assert_allclose(mean, np.sqrt(np.prod(1 - BETA[s:t])) * BARE, rtol=1e-12)
        chain = 0.0
        for beta in BETA[s:t]:
            chain = (1 - beta) * chain + beta
        np.testing.assert_allclose(variance, chain, rtol=1e-12)
    single = jax.jit(lambda: diffusion.step(BARE, 3).variance)()
    np.testing.assert_allclose(single, BETA[2], rtol=1e-12)


def test_bridge_is_bayes(x64: None) -> None:
    """q(x_s | x_t, x_0) is the conditional of the joint normal law, and the papers' formula."""
    diffusion, cov = _diffusion(), _joint()
    x_t = np.array([-0.8, 0.1, 1.7])
    means, variances = jax.jit(jax.vmap(lambda t, s: _moments(diffusion.bridge(x_t, BARE, t, s))))(*PAIRS.T)
    for (t, s), mean, variance in zip(PAIRS, means, variances, strict=True):
        if s == 0:
            np.testing.assert_allclose(mean, BARE, rtol=1e-12)
            np.testing.assert_allclose(variance, 0, atol=1e-15)
            continue
        gain = cov[s - 1, t - 1] / cov[t - 1, t - 1]
        np.testing.assert_allclose(mean, np.sqrt(KEPT[s]) * BARE + gain * (x_t - np.sqrt(KEPT[t]) * BARE), rtol=1e-10)
        np.testing.assert_allclose(variance, cov[s - 1, s - 1] - gain * cov[s - 1, t - 1], rtol=1e-10)
        if s == t - 1:
            beta, lost = BETA[t - 1], 1 - KEPT
            by_paper = np.sqrt(KEPT[s]) * beta / lost[t] * BARE + np.sqrt(1 - beta) * lost[s] / lost[t] * x_t
            np.testing.assert_allclose(mean, by_paper, rtol=1e-10)
            np.testing.assert_allclose(variance, beta * lost[s] / lost[t], rtol=1e-10)


def test_average_bridge_has_the_moments_of_the_average(x64: None) -> None:
    """Averaged over a normal posterior of x_0, by quadrature in data units."""
    diffusion = _diffusion(LOC, SCALE)
    x_t, mean, deviation = LOC + SCALE * 0.3, LOC - SCALE, SCALE * np.array([0.2, 0.7, 1.5])
    posterior = dist.Normal(mean, deviation).to_event(1)
    got = jax.jit(lambda: _moments(diffusion.average_bridge(x_t, posterior, 4, 2)))()
    nodes = mean + deviation * NODES[:, None]
    bridge = jax.jit(jax.vmap(lambda x_0: _moments(diffusion.bridge(x_t, x_0, 4, 2))))(nodes)
    expected = WEIGHTS @ bridge[0]
    np.testing.assert_allclose(got[0], expected, rtol=1e-10)
    np.testing.assert_allclose(got[1], WEIGHTS @ (bridge[1] + bridge[0] ** 2) - expected**2, rtol=1e-8)


def test_data_units_are_a_change_of_variables(x64: None) -> None:
    """Every density with loc and scale is the standard one at (x - loc)/scale, minus log scale."""
    bare, units = _diffusion(), _diffusion(LOC, SCALE)
    z_t, z_s = np.array([-0.8, 0.1, 1.7]), np.array([0.5, 0.2, -2.0])
    to_data = lambda z: LOC + SCALE * z

    def densities(diffusion: GaussianDiffusion, x_0: Any, x_s: Any, x_t: Any) -> dict[str, jax.Array]:
        return {
            "step": diffusion.step(x_s, 4, 2).log_prob(x_t),
            "marginal": diffusion.marginal(x_0, 4).log_prob(x_t),
            "bridge": diffusion.bridge(x_t, x_0, 4, 2).log_prob(x_s),
            "terminal": diffusion.terminal((3,)).log_prob(x_t),
            "prior_step": diffusion.reverse_prior_step(x_t, 4, 2).log_prob(x_s),
            "cross": diffusion.expected_log_terminal(x_0, 2.0),
            "marginal_entropy": -diffusion.marginal_entropy(x_0, 2.0),
            "step_entropy": -diffusion.step_entropy(x_0, 2.0),
            "terminal_entropy": -diffusion.terminal_entropy((3,)),
        }

    standard = jax.jit(lambda: densities(bare, BARE, z_s, z_t))()
    scaled = jax.jit(lambda: densities(units, to_data(BARE), to_data(z_s), to_data(z_t)))()
    for name, value in standard.items():
        np.testing.assert_allclose(scaled[name], value - np.log(SCALE).sum(), rtol=1e-11, err_msg=name)
    np.testing.assert_allclose(standard["terminal"], -0.5 * (z_t @ z_t + 3 * np.log(2 * np.pi)), rtol=1e-12)
    np.testing.assert_allclose(units.unstandardize(units.standardize(z_t)), z_t, rtol=1e-12)


def test_the_chain_is_reversible_under_its_noise_law(x64: None) -> None:
    """reverse_prior_step is q(x_t | x_s) pi(x_s) / pi(x_t), pointwise."""
    diffusion = _diffusion(LOC, SCALE)
    x_s, x_t = LOC + SCALE * 0.4, LOC - SCALE * 1.1

    def both(t: Any, s: Any) -> tuple[jax.Array, jax.Array]:
        noise = diffusion.terminal((3,))
        bayes = diffusion.step(x_s, t, s).log_prob(x_t) + noise.log_prob(x_s) - noise.log_prob(x_t)
        return diffusion.reverse_prior_step(x_t, t, s).log_prob(x_s), bayes

    np.testing.assert_allclose(*jax.jit(jax.vmap(both))(*PAIRS.T), rtol=1e-11)


def test_entropies_by_quadrature(x64: None) -> None:
    """Each entropy is minus the mean of the log density, which numpy averages over Gauss-Hermite nodes."""
    diffusion = _diffusion(LOC, SCALE)
    x_0 = LOC + SCALE * BARE
    answers = jax.jit(
        jax.vmap(
            lambda t: (
                diffusion.marginal_entropy(x_0, t),
                diffusion.step_entropy(x_0, t),
                diffusion.step_entropy(x_0, 5, t - 1),
                diffusion.expected_log_terminal(x_0, t),
            )
        )
    )(jnp.arange(1, T + 1))
    entropy = lambda variance: (0.5 * (np.log(2 * np.pi * variance) + WEIGHTS @ NODES**2) + np.log(SCALE)).sum()
    for t in range(1, T + 1):
        x = np.sqrt(KEPT[t]) * BARE + np.sqrt(1 - KEPT[t]) * NODES[:, None]
        cross = WEIGHTS @ (-0.5 * x**2 - 0.5 * np.log(2 * np.pi) - np.log(SCALE)).sum(1)
        expected = [entropy(1 - KEPT[t]), entropy(BETA[t - 1]), entropy(1 - KEPT[5] / KEPT[t - 1]), cross]
        np.testing.assert_allclose([a[t - 1] for a in answers], expected, rtol=1e-11)
    np.testing.assert_allclose(diffusion.terminal_entropy((3,)), entropy(1.0), rtol=1e-12)
    np.testing.assert_allclose(
        _diffusion(0.0, 2.0).terminal_entropy((4, 2)), 4 * np.log(2 * np.pi * np.e * 4), rtol=1e-12
    )


def _mixture_entropy(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> float:
    grid = np.linspace(-14, 14, 40001)
    density = (weights * np.exp(-0.5 * (grid[:, None] - means) ** 2 / variances) / np.sqrt(2 * np.pi * variances)).sum(
        1
    )
    return float(-np.sum(density * np.log(np.maximum(density, 1e-300))) * (grid[1] - grid[0]))


def _reverse_entropy(weights: np.ndarray, means: np.ndarray, variances: np.ndarray, t: int, s: int) -> float:
    """Entropy H(X^s | X^t) = H(X^s) + H(X^t | X^s) - H(X^t) of the diffused mixture."""
    at = lambda u: _mixture_entropy(weights, np.sqrt(KEPT[u]) * means, KEPT[u] * variances + 1 - KEPT[u])
    return at(s) + 0.5 * np.log(2 * np.pi * np.e * (1 - KEPT[t] / KEPT[s])) - at(t)


MIXTURES = {
    "noise": (np.ones(1), np.zeros(1), np.ones(1)),
    "two_modes": (np.full(2, 0.5), np.array([-1, 1]) * np.sqrt(0.96), np.full(2, 0.04)),
    "lopsided": (np.array([0.9, 0.1]), np.array([-0.2, 1.8]), np.array([0.7, 0.1])),
    "wide": (np.ones(1), np.zeros(1), np.full(1, 6.0)),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_reverse_entropy_bounds(name: str, x64: None) -> None:
    """Equation 24 of the 2015 paper, for laws whose reverse entropy is found by quadrature."""
    weights, means, variances = MIXTURES[name]
    if name == "lopsided":
        means = means * np.sqrt((1 - weights @ variances) / (weights @ means**2))
    pairs = PAIRS[PAIRS[:, 1] > 0]
    diffusion = _diffusion()
    lower, upper = jax.jit(jax.vmap(lambda t, s: diffusion.reverse_entropy_bounds(0.3, t, s)))(*pairs.T)
    beta = 1 - KEPT[pairs[:, 0]] / KEPT[pairs[:, 1]]
    tilde = beta * (1 - KEPT[pairs[:, 1]]) / (1 - KEPT[pairs[:, 0]])
    np.testing.assert_allclose(lower, 0.5 * np.log(2 * np.pi * np.e * tilde), rtol=1e-10)
    np.testing.assert_allclose(upper, 0.5 * np.log(2 * np.pi * np.e * beta), rtol=1e-10)
    exact = np.array([_reverse_entropy(weights, means, variances, t, s) for t, s in pairs])
    assert (lower <= exact).all()
    if name == "noise":
        np.testing.assert_allclose(exact, upper, atol=1e-9)
    elif name == "wide":  # a second moment above that of noise: the condition of the upper bound is needed
        assert (exact > upper).all()
    else:
        np.testing.assert_allclose(weights @ (means**2 + variances), 1, rtol=1e-12)
        assert (exact < upper).all()


def test_the_first_reverse_step_has_no_lower_bound() -> None:
    """Given x_0 itself nothing is uncertain at s = 0, so the lower bound is minus infinity."""
    lower, upper = jax.jit(lambda: _diffusion().reverse_entropy_bounds(np.zeros(2), 1))()
    assert lower == -np.inf
    np.testing.assert_allclose(upper, np.log(2 * np.pi * np.e * BETA[0]), rtol=1e-5)


def test_draws_from_standard_noise(x64: None) -> None:
    """The reparameterised draw maps noise nodes to the marginal's, mirrored noise to their reflections."""
    diffusion = _diffusion(LOC, SCALE)
    x_0 = LOC + SCALE * BARE
    noise = np.tile(NODES[:, None], 3)
    draw = jax.jit(lambda e, t: jax.vmap(lambda n: diffusion.marginal_from_noise(n, x_0, t))(e), static_argnums=1)
    for t in (0, 2, 5):
        x = draw(noise, t)
        np.testing.assert_allclose(WEIGHTS @ x, LOC + SCALE * np.sqrt(KEPT[t]) * BARE, rtol=1e-11)
        second = WEIGHTS @ (x - WEIGHTS @ x) ** 2
        np.testing.assert_allclose(second, SCALE**2 * (1 - KEPT[t]), rtol=1e-10, atol=1e-14)
    mirrored = draw(diffusion.mirror_noise(noise), 2)
    np.testing.assert_allclose(mirrored + draw(noise, 2), 2 * np.tile(WEIGHTS @ draw(noise, 2), (40, 1)), rtol=1e-10)


def test_standard_noise_is_standard() -> None:
    """Moments of the noise within four standard errors."""
    noise = np.asarray(_diffusion().marginal_noise(jax.random.key(1), (100_000,)), dtype=np.float64)
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs((noise**power).mean() - mean) < 4 * np.sqrt(variance / noise.size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BETA,), "schedule: expected a schedule from numpyro_diffusion.schedules, got array"),
        ((schedules.linear(5), np.nan), "loc: expected finite numbers, got 1 NaN or infinite"),
        ((schedules.linear(5), 0.0, [1.0, np.inf]), r"scale: expected finite numbers, .* first at \(1,\)"),
        ((schedules.linear(5), 0.0, [1.0, -2.0]), "scale: expected positive numbers, got a minimum of -2.0"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    """Wrong arguments are named, with what was expected and what came."""
    with refused(message):
        GaussianDiffusion(*arguments)
