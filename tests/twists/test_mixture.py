"""The twist that knows components, against E[r(x_0) | x_t] and E[x_0 | x_t, r] of mixtures in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.factors import Delta, Factor, Gaussian, LinearGaussian

pytestmark = pytest.mark.usefixtures("x64")

STEPS, SIZE = 10, 3
LOCS = np.array([[-1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
WEIGHTS = np.array([0.3, 0.7])
ROOTS = np.array(
    [[[0.8, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.6]], [[0.5, 0.0, 0.0], [-0.4, 0.7, 0.0], [0.1, 0.1, 0.3]]]
)
FULL = ROOTS @ np.swapaxes(ROOTS, 1, 2)
DIAGONAL = np.array([np.diag([0.25, 0.36, 0.09]), np.diag([0.16, 0.04, 0.49])])
LOC, SCALE = 0.2, 1.5  # of the noise
EACH = np.array([0.7, 1.5, 2.0])
A = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]])
Y, NOISE = np.array([1.5, -0.7]), np.array([[0.5, 0.1], [0.1, 0.3]])
FACTORS = {
    "linear": (LinearGaussian(Y, A, NOISE), A, Y, NOISE),
    "one by one": (Gaussian(np.array([0.5, 0.0, -1.0]), 0.4), np.eye(3), np.array([0.5, 0.0, -1.0]), 0.16 * np.eye(3)),
    "two": (
        LinearGaussian(Y[:1], A[:1], 0.5) * LinearGaussian(Y[1:], A[1:], 0.3), A, Y, np.diag([0.25, 0.09]),
    ),
}  # fmt: skip


def process(kind):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(STEPS), LOC, EACH if kind == "each" else SCALE)
    if kind == "full":
        return nd.ReverseProcess(diffusion, nd.denoisers.FullGaussianMixture(LOCS, FULL, WEIGHTS), SIZE), FULL
    scales = np.sqrt(np.diagonal(DIAGONAL, axis1=1, axis2=2))
    return nd.ReverseProcess(diffusion, nd.denoisers.GaussianMixture(LOCS, scales, WEIGHTS), SIZE), DIAGONAL


def given(own, covariances, x_t, t):
    """Log P(k | x_t), means and covariances of x_0 in each component."""
    alpha_bar, noise = (float(each) for each in own.diffusion.schedule.signal_and_noise(t))
    lost = noise * np.diag(np.broadcast_to(np.asarray(own.diffusion.scale) ** 2, SIZE))
    loc, root = (1 - np.sqrt(alpha_bar)) * LOC, np.sqrt(alpha_bar)
    share, means, left = [], [], []
    for weight, mean, covariance in zip(WEIGHTS, LOCS, covariances, strict=True):
        total = alpha_bar * covariance + lost
        gain = root * covariance @ np.linalg.inv(total)
        share.append(np.log(weight) + multivariate_normal(loc + root * mean, total).logpdf(x_t))
        means.append(mean + gain @ (x_t - loc - root * mean))
        left.append(covariance - root * gain @ covariance)
    return np.array(share) - logsumexp(share), np.array(means), np.array(left)


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("kind", ["full", "diagonal", "each"])
def test_it_is_the_expectation_of_r_and_moves_as_the_mean_given_r_does(kind, name):
    (own, covariances), (factor, rows, seen, noise) = process(kind), FACTORS[name]
    twist = twists.MixtureMatched()
    twist.check(own, factor)
    shared = twist.prepare(own, factor)
    run = jax.jit(lambda x, t, s: twist.step(own, factor, shared, x, t, s))
    for t, s, x_t in ((10, 9, [0.3, -1.2, 2.0]), (6, 5, [-0.8, 0.4, 0.1]), (3, 1, [0.2, -0.3, 1.1])):
        step = run(jnp.asarray(x_t), float(t), float(s))
        share, means, left = given(own, covariances, np.array(x_t), t)
        total = rows @ left @ rows.T + noise
        misfit = seen - means @ rows.T
        density = np.array(
            [multivariate_normal(np.zeros(len(seen)), c).logpdf(r) for c, r in zip(total, misfit, strict=True)]
        )
        np.testing.assert_allclose(step.log_psi, logsumexp(share + density), rtol=1e-5)
        moved = means + np.stack(
            [v @ rows.T @ np.linalg.solve(c, r) for v, c, r in zip(left, total, misfit, strict=True)]
        )
        shift = np.exp(share + density - step.log_psi) @ moved - np.exp(share) @ means
        from_data = float(own.diffusion.bridge_coefficients(float(t), float(s))[0])
        np.testing.assert_allclose(step.proposal.mean, step.kernel.mean + from_data * shift, rtol=1e-5)
        assert (np.asarray(step.proposal.variance) <= np.asarray(step.kernel.variance) * (1 + 1e-12)).all()


def test_a_network_moves_all_components():
    """By as much as it moves the mean of x_0."""
    own, _ = process("full")
    add = jnp.array([0.3, -0.2, 0.1])
    network = nd.denoisers.Residual(lambda x, t: (add, jnp.zeros(3)), own.denoiser)
    moved = nd.ReverseProcess(own.diffusion, network, SIZE)
    factor, rows, seen, noise = FACTORS["linear"]
    x_t, t = np.array([0.3, -1.2, 2.0]), 6
    step = twists.MixtureMatched().step(moved, factor, twists.MixtureMatched().prepare(moved, factor), x_t, 6.0, 5.0)
    share, means, left = given(own, FULL, x_t, t)
    means = means + np.asarray(moved.predict(x_t, t) - own.predict(x_t, t))
    total, misfit = rows @ left @ rows.T + noise, seen - means @ rows.T
    density = [multivariate_normal(np.zeros(2), c).logpdf(r) for c, r in zip(total, misfit, strict=True)]
    np.testing.assert_allclose(step.log_psi, logsumexp(share + np.array(density)), rtol=1e-5)


def test_what_it_does_not_fit_is_refused_by_name():
    own, _ = process("full")
    plain = nd.ReverseProcess(own.diffusion, nd.denoisers.Gaussian(0.0, 1.0), SIZE)
    with pytest.raises(
        ValueError, match="twist: MixtureMatched needs a prior about a mixture of Gaussians, got Gaussian"
    ):
        twists.MixtureMatched().check(plain, FACTORS["linear"][0])
    with pytest.raises(ValueError, match="num_newton: expected a whole number of at least 1, got 0"):
        twists.MixtureMatched(num_newton=0)


def test_the_default_of_a_network_about_components():
    """As long as there are several, and enough particles to share matrices."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(STEPS), 0.0, SCALE)
    network = lambda x_t, t: (0 * x_t, 0 * x_t)
    about = lambda count: nd.ReverseProcess(
        diffusion,
        nd.denoisers.Residual(
            network, nd.denoisers.FullGaussianMixture(LOCS[:count], FULL[:count], np.ones(count) / count)
        ),
        SIZE,
    )
    matched, laplace = twists.Tempered(twists.MixtureMatched(), 0.5), twists.Tempered(twists.Laplace(), 0.5)
    factor, many = FACTORS["linear"][0], LinearGaussian(np.zeros(17), np.ones((17, 3)), 1.0)
    assert twists.default_twist(about(1), factor) == laplace
    assert twists.default_twist(about(2), factor) == twists.default_twist(about(2), many) == matched
    assert twists.default_twist(about(2), many, 2) == twists.Tempered(twists.PseudoInverse(), 1.0)
    assert twists.default_twist(about(2), factor * Factor(jnp.sum)) == matched
    assert twists.default_twist(about(1), Factor(jnp.sum)) == laplace


def test_the_default_of_many_components_and_what_is_not_gaussian():
    """A search of the mode in each would take far longer than one for all."""
    own, _ = process("full")
    many = nd.denoisers.FullGaussianMixture(np.zeros((5, 3)), np.tile(np.eye(3), (5, 1, 1)))
    laplace = twists.Tempered(twists.Laplace(), 0.5)
    assert twists.default_twist(own, Factor(jnp.sum)) == twists.Tempered(twists.MixtureMatched(), 0.5)
    assert twists.default_twist(nd.ReverseProcess(own.diffusion, many, SIZE), Factor(jnp.sum)) == laplace


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kind", ["full", "diagonal", "each"])
def test_what_is_not_gaussian_is_integrated_over_each_component(kind, beside):
    """E[r | x_t] and E[x_0 | x_t, r] against 400,000 draws of x_0 given x_t, with an observation beside it or not."""
    own, covariances = process(kind)
    bent, linear = Factor(lambda x: -jnp.abs(jnp.sum(x**2) - 4.0)), FACTORS["two"][0]
    factor = linear * bent if beside else bent
    twist = twists.MixtureMatched(8192)
    shared, x_t, t, s = twist.prepare(own, factor), np.array([-0.8, 0.4, 0.1]), 6, 5
    step = jax.jit(lambda x: twist.step(own, factor, shared, x, float(t), float(s)))(x_t)
    log_share, means, left = given(own, covariances, x_t, t)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(400_000, np.exp(log_share) / np.exp(log_share).sum())
    x = np.concatenate([rng.multivariate_normal(m, v, n) for m, v, n in zip(means, left, counts, strict=True)])
    log_r = np.asarray(jax.vmap(factor.log_r)(x))
    weight = np.exp(log_r - log_r.max())
    assert abs(float(step.log_psi) - np.log(weight.mean()) - log_r.max()) < 0.05
    shift = weight @ x / weight.sum() - np.exp(log_share) @ means
    from_data = float(own.diffusion.bridge_coefficients(float(t), float(s))[0])
    moved = (np.asarray(step.proposal.mean) - np.asarray(step.kernel.mean)) / from_data
    np.testing.assert_allclose(moved, shift, atol=0.05)


PARTLY = Delta(np.array([0.4, 0.0, 0.0]), np.array([True, False, False]))
EVIDENCES = {
    "known": (PARTLY, np.eye(3)[:1], np.zeros((1, 1)), np.array([0.4])),
    "observed": (LinearGaussian(Y[:1], A[:1], 0.2), A[:1], np.array([[0.04]]), Y[:1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVIDENCES)
def test_log_evidences_are_right_with_the_default(name):
    """Which it is, against the mixture's own density; the 64 steps of the chain are among the errors."""
    factor, rows, noise, seen = EVIDENCES[name]
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(64), 0.0, 1.5)
    own = nd.ReverseProcess(diffusion, nd.denoisers.FullGaussianMixture(LOCS, FULL, WEIGHTS), SIZE)
    assert twists.default_twist(own, factor) == twists.MixtureMatched()
    total = rows @ FULL @ rows.T + noise
    exact = [multivariate_normal(mean, c).logpdf(seen) for mean, c in zip(LOCS @ rows.T, total, strict=True)]
    sampler = nd.samplers.TwistedSMC(1024)
    found = jax.jit(jax.vmap(lambda key: sampler.run(key, own, factor)))(jax.random.split(jax.random.key(0), 8))
    error = np.asarray(found.log_evidence) - logsumexp(np.log(WEIGHTS) + np.array(exact))
    assert abs(error.mean()) < 0.03 and error.std() < 0.05
    assert found.effective_size.min() > 700  # a tempered Laplace has 432 and 692
