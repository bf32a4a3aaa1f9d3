"""The twist of transformed elements: against closed forms where nothing is bent, against draws and quadrature else."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from scipy.special import logsumexp

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.factors import Delta, Factor, Gaussian, LinearGaussian, pull_back

LOCS = np.array([[-1.0, 0.0], [1.0, 0.8], [0.0, -1.2]])
SCALES = np.array([[0.3, 0.6], [0.5, 0.2], [0.7, 0.3]])
WEIGHTS = np.array([0.3, 0.4, 0.3])
ROOT = np.array([[0.8, 0.0], [0.4, 0.5]])
POSITIVE = transforms.ComposeTransform([transforms.AffineTransform(0.2, 0.8), transforms.ExpTransform()])
TURNED = transforms.ComposeTransform([transforms.LowerCholeskyAffine(jnp.zeros(2), ROOT), transforms.ExpTransform()])
MIXED = transforms.ComposeTransform([*TURNED.parts, *TURNED.parts])
SUM, BOTH = LinearGaussian(np.array([2.0]), np.ones((1, 2)), 0.3), Gaussian(np.array([1.5, 2.5]), 0.4)
KNOWN = Delta(np.array([1.5, 0.0]), np.array([True, False]))


def process(kind="diagonal"):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(64), 0.1, 1.2)
    if kind == "full":
        covariances = SCALES[:, :, None] ** 2 * np.eye(2) + 0.1
        return nd.ReverseProcess(diffusion, nd.denoisers.FullGaussianMixture(LOCS, covariances, WEIGHTS), 2)
    return nd.ReverseProcess(diffusion, nd.denoisers.GaussianMixture(LOCS, SCALES, WEIGHTS), 2)


def stepped(twist, own, factor, x_t, t):
    twist.check(own, factor)
    return twist.step(own, factor, twist.prepare(own, factor), x_t, t, t - 1)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
@pytest.mark.parametrize("factor", [SUM, BOTH, SUM * BOTH], ids=["sum", "both", "product"])
def test_linear_observations_have_the_closed_form(x64, kind, factor):
    own, x_t = process(kind), jnp.array([0.7, -0.4])
    for t in (3, 30, 63):
        found = stepped(twists.Linearized(), own, factor, x_t, t)
        closed = stepped(twists.MixtureMatched(), own, factor, x_t, t)
        np.testing.assert_allclose(found.log_psi, closed.log_psi, atol=1e-6)
        np.testing.assert_allclose(found.proposal.mean, closed.proposal.mean, atol=1e-6)


@pytest.mark.parametrize("transform", [POSITIVE, TURNED], ids=["one by one", "turned"])
@pytest.mark.parametrize("factor", [SUM, BOTH, SUM * BOTH], ids=["sum", "both", "product"])
def test_exponentials_are_near_an_average_over_draws(transform, factor):
    """ψ_t of an approximation: within a tenth of a nat where data are likely, and x_0 moved as it is by weights.

    The components' laws of x_0 given x_t, which are drawn from, are those of test_mixture.py's closed forms.
    """
    own, x_t, t = process(), jnp.array([0.7, 0.3]), 24
    pulled = pull_back(factor, transform, (2,))[0]
    assert twists.default_twist(own, pulled) == twists.Tempered(twists.Linearized(), 0.5)
    found = stepped(twists.Linearized(), own, pulled, x_t, t)
    parts = own.denoiser.components.standardized(own.diffusion, (2,))
    log_share, means = parts.given(own.diffusion, x_t, t)
    rng, left = np.random.default_rng(0), np.sqrt(np.asarray(parts.left(own.diffusion, t)))
    chances = np.exp(np.asarray(log_share, np.float64))
    which = rng.choice(3, size=200_000, p=chances / chances.sum())
    draws = 0.1 + 1.2 * (np.asarray(means)[which] + left[which] * rng.normal(size=(200_000, 2)))
    log_r = np.asarray(jax.jit(jax.vmap(pulled.log_r))(jnp.asarray(draws, jnp.float32)), np.float64)
    assert abs(float(found.log_psi) - (logsumexp(log_r) - np.log(len(log_r)))) < 0.1
    weight = np.exp(log_r - logsumexp(log_r))
    shift = (np.asarray(found.proposal.mean) - np.asarray(found.kernel.mean)) / float(
        own.diffusion.bridge_coefficients(t, t - 1)[0]
    )
    np.testing.assert_allclose(shift, weight @ draws - draws.mean(0), atol=0.05)


def test_known_elements_beside_a_sum_of_exponentials():
    own = process()
    pulled = pull_back(KNOWN * SUM, POSITIVE, (2,))[0]
    assert twists.default_twist(own, pulled) == twists.Tempered(twists.Linearized(), 0.5)
    found = stepped(twists.Linearized(), own, pulled, jnp.array([0.7, 0.3]), 24)
    assert np.isfinite(found.log_psi)
    # The first element is known, so that the second is what the sum leaves: z with exp(0.2 + 0.8 z) = 2 − 1.5.
    wanted = (np.log(0.5) - 0.2) / 0.8
    last = stepped(twists.Linearized(), own, pulled, jnp.array([(np.log(1.5) - 0.2) / 0.8, wanted]), 2)
    first = stepped(twists.Linearized(), own, pulled, jnp.array([(np.log(1.5) - 0.2) / 0.8, wanted + 1.0]), 2)
    assert last.log_psi > first.log_psi + 1.0


def test_numbers_that_overflow_leave_a_weight():
    pulled = pull_back(SUM, transforms.ComposeTransform([transforms.AffineTransform(0.0, 300.0), POSITIVE]), (2,))[0]
    found = stepped(twists.Linearized(), process(), pulled, jnp.array([3.0, 3.0]), 60)
    assert np.isfinite(found.log_psi) and np.isfinite(found.proposal.mean).all()


def test_what_it_does_not_fit_is_refused_by_name():
    own = process()
    plain = nd.ReverseProcess(own.diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
    with pytest.raises(ValueError, match="twist: Linearized needs a prior about a mixture of Gaussians, got Gaussian"):
        twists.Linearized().check(plain, pull_back(SUM, POSITIVE, (2,))[0])
    with pytest.raises(ValueError, match="Linearized is for Gaussian observations of transformed elements, got F"):
        twists.Linearized().check(own, Factor(jnp.sum))
    with pytest.raises(ValueError, match="num_rounds: expected a whole number of at least 1, got 0"):
        twists.Linearized(0)


def test_the_default_elsewhere():
    """Elements that are mixed after they were bent, factors of another kind, too many components."""
    own, laplace = process(), twists.Tempered(twists.Laplace(), 0.5)
    matched = twists.Tempered(twists.MixtureMatched(), 0.5)
    assert twists.default_twist(own, pull_back(SUM, MIXED, (2,))[0]) == matched
    assert twists.default_twist(own, pull_back(SUM * Factor(jnp.sum), POSITIVE, (2,))[0]) == matched
    many = nd.denoisers.GaussianMixture(np.zeros((65, 2)), np.ones((65, 2)), np.full(65, 1 / 65))
    assert twists.default_twist(nd.ReverseProcess(own.diffusion, many, 2), pull_back(SUM, POSITIVE, (2,))[0]) == laplace


SHARES = transforms.ComposeTransform([transforms.AffineTransform(0.2, 0.8), transforms.SigmoidTransform()])
SEEN = {
    "a sum": (POSITIVE, np.ones((1, 2)), 0.1, [2.0]),
    "a sum far out": (POSITIVE, np.ones((1, 2)), 0.3, [12.0]),
    "a difference": (POSITIVE, np.array([[1.0, -1.0]]), 0.05, [1.0]),
    "both far out": (POSITIVE, np.eye(2), 0.2, [6.0, 0.05]),
    "one that is negative": (POSITIVE, np.eye(2)[:1], 0.1, [-0.2]),
    "a sum of shares": (SHARES, np.ones((1, 2)), 0.05, [1.5]),
    "a share beyond 1": (SHARES, np.eye(2)[:1], 0.03, [1.02]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN)
def test_evidences_and_means_of_transformed_elements_against_quadrature(name):
    """By the twist alone; the 64 steps of the chain are among the errors, up to a tenth of a nat far out."""
    transform, rows, noise, y = SEEN[name]
    prior = nd.DiffusionPrior(process(), transform=transform)
    grid = np.linspace(-6, 6, 2401)
    z = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    each = [-0.5 * (((z - loc) / scale) ** 2).sum(-1) - np.log(2 * np.pi * scale.prod())
            for loc, scale in zip(LOCS, SCALES, strict=True)]  # fmt: skip
    x = np.exp(0.2 + 0.8 * z)
    x = x if transform is POSITIVE else x / (1 + x)
    log_r = (-0.5 * ((np.asarray(y) - x @ rows.T) / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))).sum(-1)
    joint = logsumexp(np.log(WEIGHTS)[:, None, None] + np.array(each), axis=0) + log_r
    exact = logsumexp(joint) + 2 * np.log(grid[1] - grid[0])
    share = np.exp(joint - logsumexp(joint))
    mean = np.einsum("ij,ijk->k", share, x)
    sd = np.sqrt(np.einsum("ij,ijk->k", share, (x - mean) ** 2))

    def model():
        seen = jnp.asarray(rows, jnp.float32) @ numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(seen, noise).to_event(1), obs=jnp.asarray(y))

    twist = twists.Tempered(twists.Linearized(), 0.5)
    smc = nd.infer.SMC(model, num_islands=8, num_particles=512, twist=twist, progress_bar=False).run(jax.random.key(0))
    assert abs(smc.log_evidence - exact) < 3 * smc.log_evidence_error + 0.1
    assert smc.reliability.deviation < 0.15 and smc.reliability.least_size > 100
    draws = np.asarray(smc.get_samples()["x"], np.float64)
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.1)
