"""Twists against E[r(x_0) | x_t] and the optimal proposal, in closed form for Gaussian priors and independent bits."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit, logsumexp
from scipy.stats import multivariate_normal, norm

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.factors import Delta, Elementwise, Factor, Gaussian, LinearGaussian
from numpyro_diffusion.laws import bit_logits
from numpyro_diffusion.samplers import with_moments

pytestmark = pytest.mark.usefixtures("x64")

NUM_STEPS = 10
TIMES = np.array([10, 6, 3, 2])
LOC, SCALE = np.array([0.5, -1.0, 0.0]), np.array([1.2, 0.6, 2.0])  # of the data
NOISE_LOC, NOISE_SCALE = 0.2, 1.5
A = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]])
Y = np.array([1.5, -0.7])
NOISE = np.array([[0.5, 0.1], [0.1, 0.3]])
X = np.array([[0.3, -1.2, 2.0], [-0.8, 0.4, 0.1], [1.4, -0.9, -0.5], [0.2, -0.3, 1.1]])  # one x_t for each time
X_S = X[::-1] * 0.7


def gaussian_process(num_steps=NUM_STEPS):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps), NOISE_LOC, NOISE_SCALE)
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(LOC, SCALE), 3)


def mixture_process():
    denoiser = nd.denoisers.GaussianMixture(np.array([[-1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), [0.5, 0.4], [0.3, 0.7])
    return nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS)), denoiser, 3)


def learned_process(size=3):
    network = nd.networks.MLP(jax.random.key(0), (size,), num_steps=NUM_STEPS)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS))
    return nd.ReverseProcess(diffusion, nd.denoisers.Network(network, "velocity"), size)


def linear():
    return LinearGaussian(Y, A, NOISE)


def kept_and_lost(t):
    snr = np.exp(np.asarray(gaussian_process().diffusion.schedule.log_snr(t)))
    return snr / (1 + snr), 1 / (1 + snr)


def posterior(x_t, t):
    """E[x_0 | x_t], Var[x_0 | x_t] and the slope of the first in x_t, element by element."""
    kept, lost = kept_and_lost(t)
    spread = kept * SCALE**2 + lost * NOISE_SCALE**2
    slope = np.sqrt(kept) * SCALE**2 / spread
    return (
        LOC + slope * (x_t - NOISE_LOC - np.sqrt(kept) * (LOC - NOISE_LOC)),
        lost * NOISE_SCALE**2 * SCALE**2 / spread,
        slope,
    )


def from_data(t, s):
    """Weight of x_0 in the mean of x_s given x_t and x_0."""
    kept_t, lost_t = kept_and_lost(t)
    kept_s, _ = kept_and_lost(s)
    return np.sqrt(kept_s) * (1 - kept_t / kept_s) / lost_t


@eqx.filter_jit
def run(twist, factor):
    """At every t: log ψ_t(x_t), moments of kernel and proposal, and log of kernel · ψ_s / (ψ_t · proposal) at x_s."""
    process = gaussian_process()
    process = with_moments(process) if twist.needs_moments else process
    twist.check(process, factor)
    shared = twist.prepare(process, factor)
    look = lambda x, t: twist.step(process, factor, shared, x, t, t - 1)
    both = jax.vmap(look)(jnp.concatenate([X, X_S]), jnp.concatenate([TIMES, TIMES - 1]))
    step, before = jax.tree.map(lambda leaf: leaf[:4], both), jax.tree.map(lambda leaf: leaf[4:], both)
    log_ratio = lambda step, x: step.kernel.log_prob(x) - step.proposal.log_prob(x) - step.log_psi
    ratio = jax.vmap(log_ratio)(step, jnp.asarray(X_S)) + before.log_psi
    moments = jax.vmap(lambda step: [(law.mean, law.variance) for law in (step.kernel, step.proposal)])(step)
    return step.log_psi, *moments, ratio


def dense(factor_covariance, matrix, observation):
    """log N(y; A E[x_0|x_t], covariance + A V Aᵀ), and mean and variance of x_s given x_t and y, at every t."""
    out = []
    for x, t in zip(X, TIMES, strict=True):
        mean, variance, _ = posterior(x, t)
        total = matrix @ np.diag(variance) @ matrix.T + factor_covariance
        residual = observation - matrix @ mean
        cross = from_data(t, t - 1) * np.diag(variance) @ matrix.T
        solved = np.linalg.solve(total, np.column_stack([residual, cross.T]))
        log_psi = multivariate_normal(np.zeros(len(residual)), total).logpdf(residual)
        out.append((log_psi, cross @ solved[:, 0], np.einsum("ij,ji->i", cross, solved[:, 1:])))
    return [np.array(part) for part in zip(*out, strict=True)]


def assert_optimal(got, matrix, observation, covariance):
    log_psi, shift, taken = dense(covariance, matrix, observation)
    np.testing.assert_allclose(got[0], log_psi, rtol=1e-7, atol=1e-7)
    (kernel_mean, kernel_variance), (mean, variance) = got[1], got[2]
    np.testing.assert_allclose(mean, kernel_mean + shift, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(variance, kernel_variance - taken, rtol=1e-5, atol=1e-8)


# ---- MomentMatched


def test_moment_matching_is_exact_for_gaussian_data():
    """ψ_t = E[r(x_0)|x_t], the proposal is p(x_s|x_t, r), and no weight changes where t − 2 ≥ 1."""
    got = run(twists.MomentMatched("exact"), linear())
    assert_optimal(got, A, Y, NOISE)
    np.testing.assert_allclose(got[3][:-1], 0.0, atol=1e-6)


SINGLE = {
    "gaussian": ("diagonal", Gaussian(0.7, [0.5, np.inf, 1.0], [2.0, 1.0, -1.0]), [2.0, -1.0], [0.25, 1.0]),
    "gaussian_exact": ("exact", Gaussian(0.7, [0.5, np.inf, 1.0], [2.0, 1.0, -1.0]), [2.0, -1.0], [0.25, 1.0]),
    "delta": ("diagonal", Delta(np.full(3, 0.7), [True, False, True]), [1.0, 1.0], [0.0, 0.0]),
    "delta_exact": ("exact", Delta(np.full(3, 0.7), [True, False, True]), [1.0, 1.0], [(1e-3 * NOISE_SCALE) ** 2] * 2),
}


@pytest.mark.parametrize("name", SINGLE)
def test_moment_matching_is_exact_for_single_elements(name):
    """Elements that are independent in the prior have no correlations to miss; ``"exact"`` sees a `Delta` in noise."""
    covariance, factor, gain, noise = SINGLE[name]
    got = run(twists.MomentMatched(covariance), factor)
    assert_optimal(got, np.diag([gain[0], 1.0, gain[1]])[[0, 2]], np.full(2, 0.7), np.diag(noise))
    np.testing.assert_allclose(got[3][:-1], 0.0, atol=1e-6)


def test_laplace_is_exact_for_gaussian_data_and_observations():
    """Its covariance is then that of x_0 given x_t, without any derivative of the denoiser."""
    got = run(twists.Laplace(), linear())
    assert_optimal(got, A, Y, NOISE)
    np.testing.assert_allclose(got[3][:-1], 0.0, atol=1e-6)


def test_laplace_multiplies_gaussian_parts_and_known_elements_in_closed_form():
    parts = (
        LinearGaussian(Y[:1], A[:1], 0.7)
        * Gaussian(0.7, [0.5, np.inf, np.inf])
        * Delta([0, 0.3, 0], [False, True, False])
    )
    matrix, seen = np.array([A[0], [1, 0, 0], [0, 1, 0]]), np.array([Y[0], 0.7, 0.3])
    noise = np.diag([0.7**2, 0.25, (1e-3 * NOISE_SCALE) ** 2])
    assert_optimal(run(twists.Laplace(), parts), matrix, seen, noise)


def test_laplace_finds_a_gaussian_factor_that_it_is_not_told_of():
    """As any function: Newton's step leads to the mode at once; 32 draws weigh what the normal law there has missed."""
    factor = linear()
    hidden = run(twists.Laplace(), Factor(factor.log_r))
    exact = run(twists.Laplace(), factor)
    np.testing.assert_allclose(hidden[0], exact[0], atol=0.25)
    np.testing.assert_allclose(hidden[2][0], exact[2][0], atol=0.1)


def test_flat_leads_nowhere():
    got = run(twists.Flat(), linear())
    np.testing.assert_array_equal(got[0], 0.0)
    np.testing.assert_array_equal(got[2], got[1])


def pseudo_covariance(t):
    return NOISE + kept_and_lost(t)[1] * NOISE_SCALE**2 * A @ A.T


def test_conjugate_gradients_find_the_exact_proposal_mean():
    exact, got = run(twists.MomentMatched("exact"), linear()), run(twists.MomentMatched("iterative"), linear())
    np.testing.assert_allclose(got[2][0], exact[2][0], rtol=1e-7)
    np.testing.assert_array_equal(got[2][1], got[1][1])
    # Only the log determinant is that of the pseudo-inverse.
    for i, t in enumerate(TIMES):
        _, variance, _ = posterior(X[i], t)
        log_det = [np.linalg.slogdet(c)[1] for c in (pseudo_covariance(t), NOISE + A @ np.diag(variance) @ A.T)]
        np.testing.assert_allclose(got[0][i] - exact[0][i], -0.5 * (log_det[0] - log_det[1]), atol=1e-7)


def test_few_iterations_never_reward_misfit():
    """Cut short, the solve still moves part of the way, and ψ_t is at most the peak of its normal density."""
    got = run(twists.MomentMatched("iterative", iterations=1), linear())
    exact = run(twists.MomentMatched("exact"), linear())
    far, left = np.abs(exact[2][0] - got[1][0]), np.abs(exact[2][0] - got[2][0])
    assert 0 < left.max() < 0.5 * far.max()
    for log_psi, t in zip(got[0], TIMES, strict=True):
        assert log_psi <= -0.5 * (np.linalg.slogdet(pseudo_covariance(t))[1] + 2 * np.log(2 * np.pi)) + 1e-9


def independent_bits(num_steps=NUM_STEPS):
    """A chain of three independent bits: its kernels are exact, and so is every factorised posterior."""
    states = np.array(list(itertools.product([0, 1], repeat=3)))
    rate = np.array([0.3, 0.8, 0.55])
    shares = np.prod(np.where(states == 1, rate, 1 - rate), axis=1)
    diffusion = nd.BinomialDiffusion(nd.schedules.log_snr(num_steps, -4.0, 4.0), 0.4)
    return nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(states, shares), 3)


STATES = np.array(list(itertools.product([0, 1], repeat=3)))
ONE, ZERO = np.array([0.4, -2.0, 1.0]), np.array([0.0, 0.5, -1.0])


@eqx.filter_jit
def run_bits(twist, factor, t):
    """log ψ_t and the logits of posterior, kernel and proposal at one x_t, and log weights at every x_s."""
    process, x_t = independent_bits(), jnp.array([1, 0, 1])
    step = twist.step(process, factor, None, x_t, t, t - 1)
    before = jax.vmap(lambda x: twist.step(process, factor, None, x, t - 1, t - 2).log_psi)(STATES)
    ratio = jax.vmap(lambda x: step.kernel.log_prob(x) - step.proposal.log_prob(x))(jnp.asarray(STATES))
    posterior = process.denoiser.posterior(process.diffusion, x_t, t)
    laws = [bit_logits(law) for law in (posterior, step.kernel, step.proposal)]
    return step.log_psi, *laws, ratio + before - step.log_psi


def test_bits_have_the_product_of_denoised_probabilities():
    log_psi, clean, _, _, ratio = run_bits(twists.MomentMatched(), Elementwise(ONE, ZERO), 5)
    chance = expit(clean)
    np.testing.assert_allclose(log_psi, np.log(chance * np.exp(ONE) + (1 - chance) * np.exp(ZERO)).sum(), rtol=1e-9)
    np.testing.assert_allclose(ratio, 0.0, atol=1e-9)  # bits that are independent leave nothing to weigh


def test_known_bits_lead_to_themselves():
    factor = Delta([1, 0, 0], [True, False, True])
    log_psi, clean, kernel, proposal, ratio = run_bits(twists.MomentMatched(), factor, 5)
    chance = expit(clean)
    np.testing.assert_allclose(log_psi, np.log(chance[0]) + np.log(1 - chance[2]), rtol=1e-9)
    np.testing.assert_allclose(ratio, 0.0, atol=1e-9)
    assert proposal[0] > kernel[0] and proposal[2] < kernel[2] and np.isclose(proposal[1], kernel[1])


# ---- PseudoInverse, Tweedie


def assert_led_by(got, gradients):
    """The proposal is the kernel moved by what a gradient in E[x_0 | x_t] adds, its variance kept."""
    for i, t in enumerate(TIMES):
        kept, lost = kept_and_lost(t)
        slope = posterior(X[i], t)[2]
        amount = from_data(t, t - 1) * lost / np.sqrt(kept) * NOISE_SCALE**2 * slope * gradients[i]
        np.testing.assert_allclose(got[2][0][i], got[1][0][i] + amount, rtol=1e-7)
    np.testing.assert_array_equal(got[2][1], got[1][1])


def test_pseudo_inverse_by_its_formula():
    got, gradients = run(twists.PseudoInverse(), linear()), []
    for i, t in enumerate(TIMES):
        residual, covariance = Y - A @ posterior(X[i], t)[0], pseudo_covariance(t)
        np.testing.assert_allclose(got[0][i], multivariate_normal(np.zeros(2), covariance).logpdf(residual), rtol=1e-8)
        gradients.append(A.T @ np.linalg.solve(covariance, residual))
    assert_led_by(got, gradients)


@pytest.mark.parametrize("name", ["gaussian", "delta"])
def test_pseudo_inverse_of_single_elements(name):
    factor = Gaussian(0.7, 0.5) if name == "gaussian" else Delta(np.full(3, 0.7), np.ones(3, bool))
    got, gradients = run(twists.PseudoInverse(), factor), []
    for i, t in enumerate(TIMES):
        mean, own = posterior(X[i], t)[0], 0.25 if name == "gaussian" else 0.0
        variance = own + kept_and_lost(t)[1] * NOISE_SCALE**2
        np.testing.assert_allclose(got[0][i], norm(mean, np.sqrt(variance)).logpdf(0.7).sum(), rtol=1e-8)
        gradients.append((0.7 - mean) / variance)
    assert_led_by(got, gradients)


def test_tweedie_is_the_factor_at_the_denoised_state():
    got = run(twists.Tweedie(), Factor(lambda x: -0.1 * jnp.sum(jnp.cosh(x) + x * x[0])))
    means = np.array([posterior(x, t)[0] for x, t in zip(X, TIMES, strict=True)])
    np.testing.assert_allclose(got[0], -0.1 * np.sum(np.cosh(means) + means * means[:, :1], axis=1), rtol=1e-9)
    gradients = -np.sinh(means) - means[:, :1] - np.eye(3)[0] * means.sum(1, keepdims=True)
    assert_led_by(got, 0.1 * gradients)


def test_tweedie_moves_the_prediction_by_at_most_one_deviation_of_the_noise_law():
    got = run(twists.Tweedie(), Factor(lambda x: -1e6 * jnp.sum(x - 5.0)))
    for i, t in enumerate(TIMES):
        moved = from_data(t, t - 1) * np.sqrt(kept_and_lost(t)[1]) * NOISE_SCALE
        np.testing.assert_allclose(got[2][0][i], got[1][0][i] - moved, rtol=1e-7)


def test_tweedie_of_bits_tilts_the_denoised_bits():
    coupled = Factor(lambda x: 2.0 * x[0] * x[1] - x[2] ** 2)
    log_psi, clean, _, proposal, _ = run_bits(twists.Tweedie(), coupled, 5)
    chance = expit(clean)
    np.testing.assert_allclose(log_psi, 2 * chance[0] * chance[1] - chance[2] ** 2, rtol=1e-9)
    gradient = np.array([2 * chance[1], 2 * chance[0], -2 * chance[2]])
    diffusion, x_t = independent_bits().diffusion, np.array([1, 0, 1])
    on, off = (expit(bit_logits(diffusion.bridge(x_t, np.full(3, b), 5))) for b in (1, 0))
    tilted = expit(clean + gradient)
    np.testing.assert_allclose(expit(proposal), tilted * on + (1 - tilted) * off, rtol=1e-9)


# ---- Constant, Annealed


def test_constant_r_has_the_printed_perturbed_kernels():
    """Bits: logit c̃ = logit c + logit d. Gaussian: precisions add."""
    d = np.array([0.9, 0.2, 0.5])
    log_psi, _, kernel, proposal, _ = run_bits(twists.Constant(), Elementwise(np.log(d), np.log(1 - d)), 5)
    np.testing.assert_allclose(proposal, kernel + logit(d), rtol=1e-9)
    np.testing.assert_allclose(log_psi, np.log([0.9, 0.8, 0.5]).sum(), rtol=1e-9)
    got = run(twists.Constant(), Gaussian(0.7, 0.5))
    np.testing.assert_allclose(got[0], norm(X, 0.5).logpdf(0.7).sum(1), rtol=1e-9)
    (mean, variance), (moved, narrowed) = got[1], got[2]
    np.testing.assert_allclose(narrowed, 1 / (1 / variance + 4), rtol=1e-9)
    np.testing.assert_allclose(moved, narrowed * (mean / variance + 4 * 0.7), rtol=1e-9)


def test_where_r_has_no_closed_form_its_gradient_leads():
    """The mean moves by Σ ∇ log r at the mean; annealed, r fades to 1 towards the first step."""
    quartic = Factor(lambda x: -0.1 * jnp.sum(x**4))
    for twist, power in ((twists.Constant(), np.ones), (twists.Annealed(), None)):
        at = lambda t, power=power: 1 - t / NUM_STEPS if power is None else power(len(t))
        got = run(twist, quartic)
        np.testing.assert_allclose(got[0], -0.1 * at(TIMES) * np.sum(X**4, axis=1), rtol=1e-9, atol=1e-12)
        (mean, variance), (moved, same) = got[1], got[2]
        lead = -0.4 * at(TIMES - 1)[:, None] * variance * mean**3
        np.testing.assert_allclose(moved, mean + lead, rtol=1e-9)
        np.testing.assert_array_equal(same, variance)


# ---- Tempered


BETWEEN = {
    "correlated": (twists.MomentMatched("exact"), gaussian_process, linear()),
    "elements": (twists.MomentMatched("diagonal"), gaussian_process, Gaussian(0.7, [0.5, np.inf, 1.0])),
    "known": (twists.MomentMatched("diagonal"), gaussian_process, Delta(np.full(3, 0.7), [True, False, True])),
    "bits": (twists.MomentMatched(), independent_bits, Elementwise([1.0, -2.0, 0.0])),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_tempered_proposal_is_the_kernel_times_a_power_of_psi(name):
    """log proposal − log kernel is a share of the whole twist's, but for a constant; so is log ψ; power 0 is all."""
    twist, make, factor = BETWEEN[name]
    process, points = make(), X if name != "bits" else np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])

    @eqx.filter_jit
    def gains(twist):
        step = twist.step(process, factor, twist.prepare(process, factor), jnp.asarray(points[0], float), 6, 3)
        each = lambda law: jax.vmap(law.log_prob)(jnp.asarray(points))
        return step.log_psi, each(step.proposal) - each(step.kernel)

    whole, same, half = gains(twist), gains(twists.Tempered(twist, 0)), gains(twists.Tempered(twist))
    np.testing.assert_allclose(same[0], whole[0], rtol=1e-10)
    np.testing.assert_allclose(same[1], whole[1], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(half[0], 0.4**0.5 * whole[0], rtol=1e-10)
    np.testing.assert_allclose(np.diff(half[1]), 0.7**0.5 * np.diff(whole[1]), rtol=1e-5, atol=1e-8)


def test_tempering_refuses_what_is_no_twist_or_power():
    with pytest.raises(TypeError, match="twist: expected one from numpyro_diffusion.twists, got 'x'"):
        twists.Tempered("x")
    with pytest.raises(ValueError, match="power: expected a finite number of at least 0, got -1"):
        twists.Tempered(power=-1)


# ---- the last step


LAST = {
    "linear": linear,
    "gaussian": lambda: Gaussian(0.7, 0.5),
    "delta": lambda: Delta(X_S[0], [True, False, True]),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_step_is_exact_where_r_multiplies_its_kernel(name):
    """p(x_0 | x_1) r(x_0) = ψ_1(x_1) · proposal(x_0): no weight is left to change."""
    process, factor = gaussian_process(), LAST[name]()

    @jax.jit
    def gap(x_1, x_0):
        step = twists.last_step(process, factor, x_1)
        return step.kernel.log_prob(x_0) + factor.log_r(x_0) - step.proposal.log_prob(x_0) - step.log_psi

    np.testing.assert_allclose(gap(X[0], X_S[0]), 0.0, atol=1e-8)
    np.testing.assert_allclose(gap(X[2], X_S[0]), 0.0, atol=1e-8)


def test_the_last_step_of_bits_is_exact():
    process, factor, x_1 = independent_bits(), Elementwise(ONE, ZERO), jnp.array([0, 1, 1])

    @jax.jit
    def run(states):
        step = twists.last_step(process, factor, x_1)
        joint = jax.vmap(lambda x: step.kernel.log_prob(x) + factor.log_r(x))(states)
        return step.log_psi, joint, jax.vmap(step.proposal.log_prob)(states)

    log_psi, joint, proposal = run(jnp.asarray(STATES))
    np.testing.assert_allclose(log_psi, logsumexp(joint), rtol=1e-9)
    np.testing.assert_allclose(proposal, joint - log_psi, rtol=1e-9)


def test_the_last_step_of_any_factor_is_its_integral():
    """Element by element against Gauss-Hermite quadrature; the proposal is as narrow as the product at its mode."""
    process, x_1 = gaussian_process(), jnp.asarray(X[0])
    step = twists.last_step(process, Factor(lambda x: -jnp.sum(x**4)), x_1)
    kernel = process.last_kernel(x_1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x = np.asarray(kernel.mean)[:, None] + np.sqrt(np.asarray(kernel.variance))[:, None] * nodes
    mass = weights * np.exp(-(x**4)) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(step.log_psi, np.log(mass.sum(1)).sum(), atol=0.03)
    mean = (mass * x).sum(1) / mass.sum(1)
    np.testing.assert_allclose(step.proposal.mean, mean, atol=0.05)
    assert (np.asarray(step.proposal.variance) <= np.asarray(kernel.variance) + 1e-12).all()


def test_the_last_step_of_known_elements_beside_any_factor():
    """ψ_1 counts the density of what is known, and the rest is integrated given it."""
    process, x_1 = gaussian_process(), jnp.asarray(X[0])
    known = Delta([0.4, 0.0, 0.0], [True, False, False])
    step = twists.last_step(process, known * Factor(lambda x: x[0] * x[1]), x_1)
    kernel = process.last_kernel(x_1)
    mean, variance = np.asarray(kernel.mean), np.asarray(kernel.variance)
    expected = norm(mean[0], np.sqrt(variance[0])).logpdf(0.4) + 0.4 * mean[1] + 0.08 * variance[1]
    np.testing.assert_allclose(step.log_psi, expected, atol=0.02)
    draws = np.asarray(step.proposal.sample(jax.random.key(0), (5,)))
    np.testing.assert_array_equal(draws[:, 0], 0.4)


# ---- choices and refusals

PLAIN, ANY, BITS, KNOWN = Gaussian(0.0, 1.0), Factor(jnp.sum), Elementwise(0.0), Delta(np.zeros(3), np.ones(3, bool))
SUM = LinearGaussian(0.0, lambda x: x.sum(), 1.0)
MANY = LinearGaussian(np.zeros(17), np.zeros((17, 3)), 1.0)
CHOICES = {
    "gaussian": (gaussian_process, PLAIN, twists.MomentMatched),
    "delta": (gaussian_process, KNOWN, twists.MomentMatched),
    "linear": (gaussian_process, SUM, twists.MomentMatched),
    "large": (gaussian_process, MANY, twists.Laplace),
    "mixture": (mixture_process, SUM * KNOWN, twists.MixtureMatched),
    "large_mixture": (mixture_process, MANY, twists.MixtureMatched),
    "mixture_and_any": (mixture_process, SUM * ANY, twists.Tempered),
    "learned": (learned_process, SUM, twists.Tempered),
    "learned_and_any": (learned_process, ANY, twists.Tempered),
    "product": (gaussian_process, PLAIN * KNOWN, twists.MomentMatched),
    "linear_and_any": (gaussian_process, SUM * ANY, twists.Laplace),
    "any": (gaussian_process, ANY, twists.Laplace),
    "bits": (independent_bits, BITS, twists.MomentMatched),
    "known_bits": (independent_bits, BITS * KNOWN, twists.MomentMatched),
    "any_bits": (independent_bits, ANY, twists.Averaged),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_default_twist_fits_the_factor(name):
    process, factor, kind = CHOICES[name]
    twist = twists.default_twist(process(), factor)
    assert type(twist) is kind
    twist.check(process(), factor)


def test_the_default_is_tempered_but_of_normal_laws():
    """Laplace where the covariance is known in full, the cheap one where it is not and the observation is normal.

    Of exact mixtures those that are seen by more elements than `MixtureMatched` is taken for.
    """
    small, large = learned_process(), learned_process(300)
    inverse, laplace = twists.Tempered(twists.PseudoInverse(), 1.0), twists.Tempered(twists.Laplace(), 0.5)
    assert twists.default_twist(large, PLAIN) == inverse
    assert twists.default_twist(small, MANY) == twists.default_twist(small, ANY) == laplace
    assert twists.default_twist(large, ANY) == laplace and twists.Tempered().twist is None
    assert twists.default_twist(small, MANY, 3) == twists.default_twist(small, MANY * KNOWN, 2) == laplace
    assert twists.default_twist(small, MANY, 2) == inverse and twists.default_twist(small, SUM, 2) == laplace
    iterative = twists.MomentMatched("iterative")
    for size, observed, known in ((20, laplace, laplace), (160, iterative, laplace), (300, iterative, iterative)):
        locs = np.zeros((65, size))
        mixture = nd.denoisers.GaussianMixture(locs, np.full(len(locs), 0.5), np.full(len(locs), 1 / len(locs)))
        process, entries = nd.ReverseProcess(small.diffusion, mixture, size), np.arange(size) < 20
        assert twists.default_twist(process, Gaussian(np.zeros(size), 1.0)) == observed
        assert twists.default_twist(process, ANY) == laplace
        assert twists.default_twist(process, Delta(np.zeros(size), entries)) == known


def test_automatic_covariances():
    how = lambda factor, **options: twists.MomentMatched(**options).how(gaussian_process(), factor)
    assert how(linear()) == how(PLAIN) == how(KNOWN) == "exact"
    assert how(MANY) == how(linear(), max_exact=1) == how(PLAIN, max_exact=2) == "iterative"
    assert how(linear(), covariance="diagonal") == "diagonal"
    assert twists.MomentMatched().how(independent_bits(), BITS) == "diagonal"


REFUSED = {
    "factor": (gaussian_process, twists.MomentMatched(), ANY, "twist: MomentMatched .* got Factor; Tweedie"),
    "bits": (independent_bits, twists.MomentMatched(), PLAIN, "multiplies a BernoulliLogits in closed form"),
    "exact": (independent_bits, twists.MomentMatched("exact"), BITS, "covariance: 'exact' is for linear-Gaussian fact"),
    "pseudo": (independent_bits, twists.PseudoInverse(), BITS, "twist: PseudoInverse is for a GaussianDiffusion"),
    "tweedie": (gaussian_process, twists.Tweedie(), PLAIN * KNOWN, "twist: Tweedie has no gradient for a Delta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_twists_that_do_not_fit_are_refused(name):
    process, twist, factor, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        twist.check(process(), factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "full"}, "covariance: expected one of 'auto', 'exact'"),
        ({"max_exact": -1}, "max_exact: expected a whole number of at least 0"),
        ({"iterations": 0}, "iterations: expected a whole number of at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        twists.MomentMatched(**options)
