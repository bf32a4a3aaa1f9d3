"""The K bound against closed forms, enumeration of all paths, and path averages, in numpy."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from numpyro_diffusion import (
    BinomialDiffusion,
    ForwardTrajectory,
    GaussianDiffusion,
    KBound,
    ReverseProcess,
    schedules,
)
from numpyro_diffusion.denoisers import Enumerated, Gaussian, GaussianMixture, Network
from numpyro_diffusion.distributions import joint_log_ratio
from numpyro_diffusion.likelihoods.k_bound import reconstruction, step_kl, stratified_steps, terminal_kl
from numpyro_diffusion.process import LearnedStep

BETA = np.array([0.05, 0.1, 0.3, 0.2, 0.6, 0.4])
T = len(BETA)
KEPT = np.concatenate([[1.0], np.cumprod(1 - BETA)])
LOST = 1 - KEPT
STATES = np.array(list(itertools.product([0, 1], repeat=3)))
LOC, SCALE = np.array([0.5, -2.0]), np.array([2.0, 0.3])
X_0 = np.array([1.4, -2.2])
SIGNS = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))


class Coins(GaussianDiffusion):
    """A diffusion whose noise is a fair sign: with mirrored pairs, averages of quadratics are exact."""

    def marginal_noise(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Plus one, of which minus one is the mirror image."""
        del key
        return jnp.ones(shape)


def _schedule() -> schedules.Schedule:
    return schedules.from_beta(BETA)


@eqx.filter_jit
def _run(bound: KBound, process: ReverseProcess, x_0: Any, seed: Any = 0) -> Any:
    """One compiled estimate for one example."""
    return bound.estimate(jax.random.key(seed), process, jnp.asarray(x_0))


@eqx.filter_jit
def _run_all(bound: KBound, process: ReverseProcess, x_0: Any, seed: int = 0) -> Any:
    """One compiled estimate for each example of a batch."""
    keys = jax.random.split(jax.random.key(seed), len(x_0))
    return jax.vmap(lambda k, x: bound.estimate(k, process, x))(keys, jnp.asarray(x_0))


# ---- Gaussian chains with affine denoisers: everything is a quadratic, so numpy has it in closed form.

SLOPE = np.array([0.0, 0.9, 0.7, 0.8, 0.3, 0.5, 0.2])
OFFSET = np.array([0.0, 0.1, -0.3, 0.2, 0.4, -0.8, 1.5])
LAST_SCALE = 0.4


def _affine(z: jax.Array, t: jax.Array) -> jax.Array:
    index = jnp.asarray(t, int)
    return jnp.asarray(SLOPE, z.dtype)[index] * z + jnp.asarray(OFFSET, z.dtype)[index]


def _affine_process(variance: str, last: str, kind: type = GaussianDiffusion) -> ReverseProcess:
    step = "forward" if last == "forward" else LearnedStep(np.log(LAST_SCALE))
    return ReverseProcess(kind(_schedule(), LOC, SCALE), Network(_affine, "data", variance), 2, last_step=step)


def _affine_kernel(variance: str, last: str, t: int) -> tuple[float, float, float]:
    """Slope, offset and variance of the kernel x_t -> x_{t-1}, in standardised units."""
    beta = BETA[t - 1]
    if t == 1:
        return (np.sqrt(1 - beta), 0.0, beta) if last == "forward" else (SLOPE[1], OFFSET[1], LAST_SCALE**2)
    data = np.sqrt(KEPT[t - 1]) * beta / LOST[t]
    noise = np.sqrt(1 - beta) * LOST[t - 1] / LOST[t]
    return (
        data * SLOPE[t] + noise,
        data * OFFSET[t],
        beta if variance == "beta" else beta * LOST[t - 1] / LOST[t],
    )


def _affine_k(variance: str, last: str, x_0: np.ndarray) -> dict[str, float]:
    """K and its parts for one example in data units, by the moments of q."""
    z = (x_0 - LOC) / SCALE
    kl = 0.0
    for t in range(2, T + 1):
        slope, offset, spread = _affine_kernel(variance, last, t)
        data = np.sqrt(KEPT[t - 1]) * BETA[t - 1] / LOST[t]
        noise = np.sqrt(1 - BETA[t - 1]) * LOST[t - 1] / LOST[t]
        tilde = BETA[t - 1] * LOST[t - 1] / LOST[t]
        gap = data * z + (noise - slope) * np.sqrt(KEPT[t]) * z - offset
        square = gap**2 + (noise - slope) ** 2 * LOST[t]
        kl += (0.5 * np.log(spread / tilde) + (tilde + square) / (2 * spread) - 0.5).sum()
    slope, offset, spread = _affine_kernel(variance, last, 1)
    square = (z - slope * np.sqrt(KEPT[1]) * z - offset) ** 2 + slope**2 * LOST[1]
    reconstruction = (-0.5 * square / spread - 0.5 * np.log(2 * np.pi * spread) - np.log(SCALE)).sum()
    kl_terminal = 0.5 * (KEPT[T] * z**2 + LOST[T] - np.log(LOST[T]) - 1).sum()
    return {
        "kl": kl,
        "reconstruction": reconstruction,
        "kl_terminal": kl_terminal,
        "value": reconstruction - kl - kl_terminal,
    }


def _affine_log_prob(variance: str, last: str, x_0: np.ndarray) -> float:
    """Exact log p(x_0) of the affine chain, by its recursion for mean and variance."""
    mean, spread = 0.0, 1.0
    for t in range(T, 0, -1):
        slope, offset, noise = _affine_kernel(variance, last, t)
        mean, spread = slope * mean + offset, slope**2 * spread + noise
    z = (x_0 - LOC) / SCALE
    return float((-0.5 * (z - mean) ** 2 / spread - 0.5 * np.log(2 * np.pi * spread) - np.log(SCALE)).sum())


AFFINE = pytest.mark.parametrize(("variance", "last"), [("beta", "forward"), ("beta_tilde", "learned")])


@AFFINE
def test_affine_chains_have_k_in_closed_form(variance: str, last: str, x64: None) -> None:
    """Every part of K, averaged over q analytically, to ten digits; and it is below the exact log p(x_0)."""
    got = _run(KBound(2), _affine_process(variance, last, Coins), X_0)
    expected = _affine_k(variance, last, X_0)
    np.testing.assert_allclose(got.value, expected["value"], rtol=1e-10)
    for name in ("kl", "reconstruction", "kl_terminal"):
        np.testing.assert_allclose(getattr(got.terms, name), expected[name], rtol=1e-10, err_msg=name)
    assert got.value < _affine_log_prob(variance, last, X_0)
    assert np.isnan(got.widened_error)  # one pair says nothing about its own error
    assert (got.terms.correction == 0) == (last == "learned")


def test_k_is_exact_at_every_point_for_data_that_are_noise() -> None:
    """For data with the noise law p reverses q exactly, so K = log p(x) at every x, in float32 too."""
    process = ReverseProcess(Coins(schedules.linear(6), LOC, SCALE), Gaussian(LOC, SCALE), 2, last_step="forward")
    z = np.random.default_rng(0).normal(size=(20, 2)) * 2
    got = _run_all(KBound(2), process, z * SCALE + LOC)
    expected = (-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(SCALE)).sum(1)
    np.testing.assert_allclose(got.value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.terms.null, expected, rtol=1e-5)


# ---- Path averages: K is the mean over q of log p(path) - log q(path), for every kind of head.


def _pair(z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.tanh(z * 0.8 + z[::-1] * 0.3) * 0.9 - 0.05 * t, 0.3 * jnp.sin(z * 2) + 0.1 * t


def _bits_fn(z: jax.Array, t: jax.Array) -> jax.Array:
    mixing = jnp.array([[1.0, 0.5, -0.7], [0.2, 1.5, 0.3], [-0.4, 0.1, 0.9]])
    return 2 * mixing @ (z - 0.4) / jnp.sqrt(t) + 0.2


PROCESSES: dict[str, Callable[[], ReverseProcess]] = {
    "noise": lambda: ReverseProcess(
        GaussianDiffusion(_schedule(), LOC, SCALE), Network(lambda z, t: _pair(z, t)[0], "noise"), 2
    ),
    "velocity": lambda: ReverseProcess(
        GaussianDiffusion(_schedule()), Network(_pair, "velocity", "learned"), 2, last_step="learned"
    ),
    "mean": lambda: ReverseProcess(
        GaussianDiffusion(_schedule(), LOC, SCALE), Network(_pair, "mean"), 2, last_step="forward"
    ),
    "mixture": lambda: ReverseProcess(
        GaussianDiffusion(_schedule(), LOC, SCALE),
        GaussianMixture(np.array([[1.0, -2.0], [-1.0, -1.5]]), np.array([0.5, 0.3]), np.array([0.3, 0.7])),
        2,
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ("noise", "velocity", "mixture") else ()) for n in PROCESSES],
)
def test_k_is_the_average_over_paths(name: str) -> None:
    """The sum of closed forms agrees with plain averages of log p(x_0..x_T) - log q(x_1..x_T | x_0)."""
    process = PROCESSES[name]()
    x_0 = jnp.asarray(X_0)

    def ratio(key: jax.Array) -> jax.Array:
        path = ForwardTrajectory(process.diffusion, x_0).sample(key)
        return joint_log_ratio(process, jnp.concatenate([x_0[None].astype(path.dtype), path]))

    ratios = np.asarray(jax.jit(jax.vmap(ratio))(jax.random.split(jax.random.key(1), 20_000)), np.float64)
    got = _run(KBound(2000), process, x_0)
    error = np.hypot(ratios.std() / np.sqrt(ratios.size), got.widened_error)
    assert error < 0.05
    assert abs(ratios.mean() - got.value) < 4 * error


# ---- Bits: all 8^4 paths of three bits and four steps, in numpy.


BIT_BETA = np.array([0.05, 0.1, 0.3, 0.6])
BIT_T = len(BIT_BETA)
BIT_KEPT = np.concatenate([[1.0], np.cumprod(1 - BIT_BETA)])
BIT_LOST = 1 - BIT_KEPT


def _table() -> np.ndarray:
    """Logits of three bits for each step (1 to T) and each of the 8 states."""
    return np.random.default_rng(5).normal(size=(BIT_T + 1, 8, 3)) * 2


def _lookup(z: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.asarray(_table(), z.dtype)[jnp.asarray(t, int), jnp.asarray(z @ jnp.array([4.0, 2.0, 1.0]), int)]


def _flip(beta: float, rate: float) -> np.ndarray:
    return (1 - beta) * np.eye(2) + beta * np.array([[1 - rate, rate]] * 2)


def _states_table(ones: np.ndarray) -> np.ndarray:
    """From P(bit = 1) for each state, shape (8, 3), to transition probabilities over states, shape (8, 8)."""
    return np.prod(np.where(STATES[None], ones[:, None], 1 - ones[:, None]), axis=2)


def _forward_table(t: int, s: int, rate: float) -> np.ndarray:
    chain = np.linalg.multi_dot([np.eye(2), np.eye(2), *(_flip(b, rate) for b in BIT_BETA[s:t])])
    return _states_table(chain[STATES, 1])


def _reverse_table(t: int, head: str, last: str, rate: float) -> np.ndarray:
    """p(x_{t-1} | x_t) over states, by Bayes for each bit."""
    step = _flip(BIT_BETA[t - 1], rate)
    noise = np.array([1 - rate, rate])
    backwards = (step * noise[:, None]).T / noise[:, None]  # [x_t, x_{t-1}]
    if t == 1 and last == "forward":
        return _states_table(backwards[STATES, 1])
    out = _table()[t]
    if head == "mean":
        odds = backwards[STATES, 1] / backwards[STATES, 0] * np.exp(out)
        return _states_table(odds / (1 + odds))
    if t == 1:
        return _states_table(1 / (1 + np.exp(-out)))
    ones = 0.0
    for bit, weight in ((1, 1 / (1 + np.exp(-out))), (0, 1 / (1 + np.exp(out)))):
        before = BIT_KEPT[t - 1] * np.eye(2)[bit] + BIT_LOST[t - 1] * noise
        joint = before * step[:, STATES].transpose(1, 2, 0)  # [state, place, x_{t-1}]
        ones = ones + weight * joint[..., 1] / joint.sum(-1)
    return _states_table(ones)


PATHS = np.array(list(itertools.product(range(8), repeat=BIT_T + 1)))


def _enumerate(head: str, last: str, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """log p(path) and log q(path after x_0 | x_0) for all paths of state indices, x_0 first."""
    log_q = sum(np.log(_forward_table(t, t - 1, rate))[PATHS[:, t - 1], PATHS[:, t]] for t in range(1, BIT_T + 1))
    log_p = np.log(_states_table(np.full((8, 3), rate)))[0][PATHS[:, BIT_T]]
    for t in range(1, BIT_T + 1):
        log_p = log_p + np.log(_reverse_table(t, head, last, rate))[PATHS[:, t], PATHS[:, t - 1]]
    return log_p, log_q


BITS = pytest.mark.parametrize(
    ("head", "last", "rate"),
    [
        ("logits", "learned", 0.3),
        ("mean", "forward", 0.3),
        pytest.param("logits", "forward", 0.5, marks=pytest.mark.slow),
    ],
)


@BITS
def test_bits_by_enumeration_of_all_paths(head: str, last: str, rate: float, x64: None) -> None:
    """K, its bound, the path densities and the importance identity, all over 8^5 enumerated paths."""
    process = ReverseProcess(
        BinomialDiffusion(schedules.from_beta(BIT_BETA), rate), Network(_lookup, head), 3, last_step=last
    )
    log_p, log_q = _enumerate(head, last, rate)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-12)
    first = PATHS[:, 0]
    exact_k = np.bincount(first, np.exp(log_q) * (log_p - log_q))
    exact_log_prob = np.log(np.bincount(first, np.exp(log_p)))

    # Uniform noise of 0 makes a one and of 1 a zero, so every x_t can be asked for.
    grid = np.meshgrid(np.arange(8), np.arange(2, BIT_T + 1), np.arange(8), indexing="ij")
    x_0, t, x_t = (index.ravel() for index in grid)
    term = jax.jit(jax.vmap(lambda x, t, noise: step_kl(process, x, t, noise)))
    kl = np.asarray(term(STATES[x_0], t, 1.0 - STATES[x_t])).reshape(grid[0].shape)
    weights = np.stack([_forward_table(t, 0, rate) for t in range(2, BIT_T + 1)], 1)
    recon = _forward_table(1, 0, rate) @ np.log(_reverse_table(1, head, last, rate))
    end, noise = _forward_table(BIT_T, 0, rate), _states_table(np.full((8, 3), rate))
    kl_terminal = (end * np.log(end / noise)).sum(1)
    np.testing.assert_allclose(np.diag(recon) - (weights * kl).sum((1, 2)) - kl_terminal, exact_k, rtol=1e-9)
    assert (exact_k < exact_log_prob).all()

    some = np.random.default_rng(6).integers(0, len(PATHS), 500)
    ratio = jax.jit(lambda path: joint_log_ratio(process, path))(STATES[PATHS[some]])
    np.testing.assert_allclose(ratio, (log_p - log_q)[some], rtol=1e-8, atol=1e-9)

    if last == "learned":
        got = _run_all(KBound(500), process, STATES)
        assert (abs(got.value - exact_k) < 4 * got.widened_error).all()
        np.testing.assert_allclose(got.terms.kl_terminal, kl_terminal, rtol=1e-9)


# ---- The parts, by name.


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_equation_14_and_its_correction(family: str, x64: None) -> None:
    """The entropies of equation 14 and what it leaves out add up to K, with the correction by formula."""
    rng = np.random.default_rng(2)
    if family == "gaussian":
        process, x = PROCESSES["mean"](), rng.normal(size=(6, 2)) * 2
        z = (x - LOC) / SCALE
        entropy = lambda lost: np.log(2 * np.pi * np.e * lost) + np.log(SCALE).sum()
        entropies = entropy(LOST[T]), entropy(BETA[0]), entropy(1.0)
        correction = -0.5 * ((z**2).sum(1) - 2) * (KEPT[T] + BETA[0])
        null = (-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(SCALE)).sum(1)
    else:
        diffusion, rate = BinomialDiffusion(_schedule(), 0.2), 0.2
        process = ReverseProcess(diffusion, Network(_bits_fn, "mean"), 3, last_step="forward")
        x = rng.integers(0, 2, (6, 3)).astype(float)
        h = lambda p: -p * np.log(p) - (1 - p) * np.log1p(-p)
        activity = lambda kept: kept * x + (1 - kept) * rate
        cross = lambda kept: -(activity(kept) * np.log(rate) + (1 - activity(kept)) * np.log(1 - rate)).sum(1)
        entropies = h(activity(KEPT[T])).sum(1), h(activity(KEPT[1])).sum(1), 3 * h(rate)
        correction = -(cross(KEPT[T]) - 3 * h(rate)) - (cross(1.0) - cross(KEPT[1]))
        null = -cross(1.0)
    got = _run_all(KBound(4), process, x)
    k = got.terms
    eq_14 = k.entropy_terminal - k.entropy_first - k.entropy_prior - k.kl
    np.testing.assert_allclose(eq_14 + k.correction, got.value, rtol=1e-12)
    np.testing.assert_allclose(k.correction, correction, rtol=1e-9, atol=1e-12)
    for part, value in zip((k.entropy_terminal, k.entropy_first, k.entropy_prior), entropies, strict=True):
        np.testing.assert_allclose(part, np.broadcast_to(value, 6), rtol=1e-10)
    np.testing.assert_allclose(k.null, null, rtol=1e-10)
    np.testing.assert_allclose(k.kl, k.step_kl.sum(2).mean(1), rtol=1e-12)
    assert (np.asarray(k.step_kl) > 0).all() and (np.asarray(got.widened_error) > 0).all()


def test_equation_14_alone_is_no_bound(x64: None) -> None:
    """Where p is q reversed, K = log p(x), and eq. 14 exceeds it for data larger than noise."""
    process = ReverseProcess(Coins(_schedule()), Gaussian(0.0, 1.0), 2, last_step="forward")
    x = np.array([2.0, -1.5])
    got = _run(KBound(2), process, x)
    k, log_prob = got.terms, -0.5 * (x @ x) - np.log(2 * np.pi)
    np.testing.assert_allclose(got.value, log_prob, rtol=1e-10)
    eq_14 = k.entropy_terminal - k.entropy_first - k.entropy_prior - k.kl
    np.testing.assert_allclose(eq_14 - log_prob, 0.5 * (x @ x - 2) * (KEPT[T] + BETA[0]), rtol=1e-8)


def test_the_fixed_last_step_caps_what_can_be_gained(x64: None) -> None:
    """With unit second moment K - L_null is at most -(d/2) log beta_1, even for a perfect denoiser."""
    data = LOC + SCALE * SIGNS
    oracle = GaussianMixture(data, 1e-3 * SCALE * np.ones((4, 2)), np.full(4, 0.25))
    process = ReverseProcess(GaussianDiffusion(_schedule(), LOC, SCALE), oracle, 2, last_step="forward")
    got = _run_all(KBound(4), process, data)
    np.testing.assert_allclose(got.terms.reconstruction - got.terms.null, -np.log(BETA[0]), rtol=1e-10)
    np.testing.assert_allclose(got.terms.gain, got.value - got.terms.null, rtol=1e-10)
    for name, nats in (("value", got.value), ("null", got.terms.null), ("gain", got.value - got.terms.null)):
        np.testing.assert_allclose(got.terms.bits[name], np.asarray(nats) / np.log(2), rtol=1e-10)
    assert (got.value - got.terms.null < -np.log(BETA[0])).all()


# ---- Against log p(x): below it, closer with more steps, unbiased when exponentiated.


@eqx.filter_jit
def _k_by_nodes(process: ReverseProcess, x_0: Any, noise: Any, weights: Any) -> jax.Array:
    """K for each example, with sums over noise nodes for averages; weights for each example, t and node."""

    def one(x: jax.Array, weights: jax.Array) -> jax.Array:
        recon = jax.vmap(lambda e: reconstruction(process, x, e))(noise)
        times = jnp.arange(2, process.num_steps + 1)
        kl = jax.vmap(lambda t: jax.vmap(lambda e: step_kl(process, x, t, e))(noise))(times)
        return weights[0] @ recon - jnp.sum(weights[1:] * kl) - terminal_kl(process, x)

    return jax.vmap(one)(jnp.asarray(x_0), jnp.broadcast_to(weights, (len(x_0), process.num_steps, len(noise))))


@pytest.mark.slow
def test_k_approaches_the_log_density_of_a_mixture_from_below(x64: None) -> None:
    """Averaged over a mixture by quadrature, K is below log p(x) and the gap shrinks in proportion to 1/T."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    means, scales, shares = np.array([-1.0, 1.2]), np.array([0.3, 0.5]), np.array([0.4, 0.6])
    which = np.repeat([0, 1], 24)
    x = means[which] + scales[which] * np.tile(nodes, 2)
    mass = shares[which] * np.tile(weights / weights.sum(), 2)
    density = np.exp(-0.5 * ((x[:, None] - means) / scales) ** 2) / (np.sqrt(2 * np.pi) * scales) @ shares
    gaps = []
    for num_steps in (10, 40, 160):
        diffusion = GaussianDiffusion(schedules.log_snr(num_steps, -8.0, 8.0))
        process = ReverseProcess(diffusion, GaussianMixture(means[:, None], scales, shares), 1)
        k = _k_by_nodes(process, x[:, None], jnp.asarray(nodes[:, None]), weights / weights.sum())
        gaps.append(mass @ (np.log(density) - np.asarray(k)))
    assert gaps[-1] > 0
    assert gaps[1] < 0.4 * gaps[0] and gaps[2] < 0.4 * gaps[1]
    assert gaps[2] < 0.01


@AFFINE
def test_the_exponential_of_path_ratios_averages_to_the_density(variance: str, last: str) -> None:
    """Importance identity: the mean over q of p(path)/q(path) is the affine chain's exact p(x_0)."""
    process = _affine_process(variance, last)
    x_0 = jnp.asarray(LOC + SCALE * np.array([0.3, -0.2]))

    def ratio(key: jax.Array) -> jax.Array:
        path = ForwardTrajectory(process.diffusion, x_0).sample(key)
        return joint_log_ratio(process, jnp.concatenate([x_0[None], path]))

    ratios = np.asarray(jax.jit(jax.vmap(ratio))(jax.random.split(jax.random.key(5), 30_000)), np.float64)
    relative = np.exp(ratios - _affine_log_prob(variance, last, np.asarray(x_0)))
    error = relative.std() / np.sqrt(relative.size)
    assert error < 0.05
    assert abs(relative.mean() - 1) < 4 * error


# ---- Estimation: subsets of steps, antithetic pairs, standard errors, chunks.


@pytest.mark.parametrize(("num_steps", "count"), [(2, 1), (9, 1), (9, 3), (9, 8), (40, 7), (1000, 16)])
def test_strata_cover_every_step_once(num_steps: int, count: int) -> None:
    """The weights add up to T - 1, strata do not overlap, and each step's expected weight is 1."""
    draws = 4000 if num_steps < 100 else 500
    keys = jax.random.split(jax.random.key(6), draws)
    step, weight = jax.jit(jax.vmap(lambda k: stratified_steps(k, num_steps, count)))(keys)
    step, weight = np.asarray(step), np.asarray(weight, np.float64)
    assert step.shape == weight.shape == (draws, count)
    np.testing.assert_array_equal(weight.sum(1), num_steps - 1)
    assert step.min() >= 2 and step.max() <= num_steps
    assert (step[:, :-1].max(0) < step[:, 1:].min(0)).all()
    for stratum in range(count):
        seen, times = np.unique(step[:, stratum], return_counts=True)
        if num_steps < 100:
            assert len(seen) == weight[0, stratum]
            expected = draws / weight[0, stratum]
            assert (abs(times - expected) <= 4.5 * np.sqrt(expected * (1 - 1 / weight[0, stratum]))).all()


ESTIMATORS = {
    "pairs": KBound(16),
    "plain": KBound(16, antithetic=False),
    "one_step": KBound(64, 1),
    "two_steps": KBound(64, 2, antithetic=False),
}


FAR = LOC + SCALE * np.array([2.5, -2.0])


@functools.cache
def _estimates(name: str) -> Any:
    """400 estimates of one K, with keys of their own."""
    return _run_all(ESTIMATORS[name], _affine_process("beta", "learned"), np.tile(FAR, (400, 1)), 8)


def _errors(name: str) -> np.ndarray:
    return np.asarray(_estimates(name).value, np.float64) - _affine_k("beta", "learned", FAR)["value"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_unbiased_and_their_standard_errors_honest(name: str) -> None:
    """Errors average to 0, few steps or all of them, and their spread is what the standard error says."""
    errors, standard = _errors(name), np.asarray(_estimates(name).widened_error, np.float64)
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(errors.size)
    np.testing.assert_allclose(np.sqrt((standard**2).mean()), errors.std(), rtol=0.15)
    # Eight pairs of few terms, each a skewed square, are too few for the last tenth.
    low, high = (0.95, 1.25) if name == "pairs" else (0.9, 1.1)
    assert low < (errors / standard).std() < high


def test_errors_of_independent_terms_add_up() -> None:
    """The squared standard error is the sum of the terms' own, which the fixed last step has no share in, times the
    variance of Student's t with Welch's degrees of freedom."""
    got = _run(KBound(8, 3), _affine_process("beta", "forward"), X_0)
    kl = np.asarray(got.terms.step_kl, np.float64).reshape(4, 2, 3).mean(1)
    squares = kl.var(0, ddof=1) / 4
    freedom = squares.sum() ** 2 / (squares**2 / 5).sum() - 2
    assert freedom > 3.5
    np.testing.assert_allclose(got.widened_error, np.sqrt(squares.sum() * freedom / (freedom - 2)), rtol=1e-4)


@pytest.mark.slow
def test_antithetic_pairs_lower_the_variance_at_equal_cost() -> None:
    """Mirrored noise cancels what is odd in it."""
    assert _errors("pairs").var() < 0.7 * _errors("plain").var()


@pytest.mark.slow
def test_a_chain_that_erases_everything_has_its_control_variate() -> None:
    """Low-discrepancy draws have the K of independent ones where β_T is 1 and nothing is left at T."""
    diffusion = GaussianDiffusion(schedules.erasing(6), 0.2, 1.3)
    process = ReverseProcess(diffusion, Gaussian(LOC, SCALE), 2)
    even, plain = (_run(bound, process, X_0) for bound in (KBound(32, low_discrepancy=True), KBound(2000)))
    error = np.hypot(even.widened_error, plain.widened_error)
    assert abs(even.value - plain.value) < 4 * error < 1


def test_num_times_takes_all_steps_or_fewer() -> None:
    """All T - 1 steps are the default; a subset reports which steps it took."""
    every, some = _estimates("pairs").terms, _estimates("one_step").terms
    np.testing.assert_array_equal(every.step, np.tile(np.arange(2, T + 1), (400, 16, 1)))
    assert some.step.shape == some.step_kl.shape == (400, 64, 1)
    assert set(np.unique(some.step)) == set(range(2, T + 1))
    np.testing.assert_array_equal(some.step[:, ::2], some.step[:, 1::2])  # pairs share their steps
    for terms in (every, some):
        np.testing.assert_allclose(terms.kl, terms.step_kl.sum(2).mean(1), rtol=1e-5)


def test_chunks_change_neither_value_nor_gradient() -> None:
    """Also where the chunk does not divide the number of terms."""

    def value(x: jax.Array, scale: jax.Array, chunk: int | None) -> jax.Array:
        head = Network(lambda z, t: scale * jnp.tanh(z) + 0.1 * t, "data")
        process = ReverseProcess(GaussianDiffusion(_schedule(), LOC, SCALE), head, 2, last_step="forward")
        return KBound(2, 3, chunk=chunk).estimate(jax.random.key(10), process, x).value

    both = jax.jit(jax.value_and_grad(value, (0, 1)), static_argnums=2)
    x = jnp.asarray(X_0)
    whole, parts = both(x, 0.7, None), both(x, 0.7, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), whole, parts)


def test_smooth_in_the_data_for_one_key(x64: None) -> None:
    """The gradient of the frozen estimate is its finite difference."""
    process, step = PROCESSES["mixture"](), 1e-5
    estimate = lambda x: KBound(2, 2).estimate(jax.random.key(11), process, x).value
    points = np.concatenate([X_0[None], X_0 + step * np.eye(2), X_0 - step * np.eye(2)])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(estimate)))(points)
    np.testing.assert_allclose(gradient[0], (value[1:3] - value[3:]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_batches_keys_and_compilation() -> None:
    """One key gives one value, another key another; batches keep their shape; nothing is traced twice, without jit."""
    traces = []

    def fn(z: jax.Array, t: jax.Array) -> jax.Array:
        traces.append(1)
        return 0.5 * z

    process = ReverseProcess(GaussianDiffusion(_schedule(), LOC, SCALE), Network(fn, "data"), 2)
    x = LOC + SCALE * np.random.default_rng(12).normal(size=(2, 3, 2))
    first = lambda k, x: KBound(2)(k, process, x)
    one, count = first(jax.random.key(0), x), len(traces)
    again, other = first(jax.random.key(0), x), first(jax.random.key(1), x + 1)
    assert len(traces) == count
    assert one.value.shape == one.standard_error.shape == one.terms.kl.shape == (2, 3)
    assert one.terms.step.shape == (2, 3, 2, T - 1)
    np.testing.assert_array_equal(one.value, again.value)
    assert (np.asarray(one.value) != np.asarray(other.value)).all()
    # Each example of a batch has noise of its own.
    same = first(jax.random.key(0), np.tile(X_0, (2, 3, 1)))
    assert len(np.unique(np.asarray(same.value))) == 6


@pytest.mark.slow
def test_exact_bits_give_k_below_their_log_probability(x64: None) -> None:
    """With the exact posterior of listed states, K averages below log p and the gap shrinks with T."""
    states, chances = np.array([[0, 0, 1], [1, 1, 0], [1, 1, 1]]), np.array([0.2, 0.5, 0.3])
    gaps = []
    for num_steps in (5, 20, 80):
        kept = 1 / (1 + np.exp(np.linspace(-6, 6, num_steps)))
        ones = kept[:, None, None] * states + 0.4 * (1 - kept[:, None, None])
        weights = np.prod(np.where(STATES[:, None, None] == 1, ones, 1 - ones), axis=-1).transpose(2, 1, 0)
        diffusion = BinomialDiffusion(schedules.log_snr(num_steps, -6.0, 6.0), 0.4)
        process = ReverseProcess(diffusion, Enumerated(states, chances), 3)
        k = _k_by_nodes(process, states.astype(float), jnp.asarray(1.0 - STATES), weights)
        gaps.append(chances @ (np.log(chances) - np.asarray(k)))
    assert gaps[-1] > 0
    assert gaps[1] < 0.5 * gaps[0] and gaps[2] < 0.5 * gaps[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KBound(0), "num_samples: expected a whole number of at least 1, got 0"),
        (lambda: KBound(3), r"num_samples: expected an even number \(antithetic pairs\), got 3"),
        (lambda: KBound(2, 0), "num_times: expected a whole number of at least 1, got 0"),
        (lambda: KBound(2, chunk=1.5), "chunk: expected a whole number of at least 1, got 1.5"),
        (
            lambda: KBound(2, 6)(jax.random.key(0), _affine_process("beta", "forward"), X_0),
            "num_times: expected at most T - 1 = 5, got 6",
        ),
        (
            lambda: KBound()(jax.random.key(0), _affine_process("beta", "forward"), np.zeros(3)),
            r"x_0: .* event shape \(2,\), got \(3,\)",
        ),
        (
            lambda: KBound()(jax.random.key(0), _affine_process("beta", "forward"), 1.0),
            r"x_0: .* event shape \(2,\), got \(\)",
        ),
    ],
)
def test_errors(build: Callable[[], Any], message: str) -> None:
    """Wrong arguments are named, with what was expected and what came."""
    with refused(message):
        build()
