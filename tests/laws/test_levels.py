"""Whole numbers: the rounded normal law, the last step that has it, and all that is built on that step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused
from scipy.stats import chi2, norm

import numpyro_diffusion as nd
from numpyro_diffusion import denoisers, schedules
from numpyro_diffusion.laws import DiscretisedNormal
from numpyro_diffusion.likelihoods import bits_per_dim

KEY = jax.random.key(0, impl="unsafe_rbg")  # the generator that compiles fastest
LOCS = np.array([-1e4, -300.0, -3.0, 0.2, 100.3, 127.5, 255.0, 260.0, 1e6])
SCALES = np.array([1e-3, 0.05, 0.5, 3.0, 50.0, 1000.0])
T = 8
LOC, SCALE = 3.3, 1.6  # of a Gaussian source, in levels


def masses(loc, scale, num_levels):
    """What rounding leaves of N(loc, scale²), by scipy."""
    edges = np.concatenate([[-np.inf], np.arange(num_levels - 1) + 0.5, [np.inf]])
    return np.diff(norm.cdf(edges, loc, scale))


def source_process(num_levels=8, event_shape=(2,)):
    """The exact denoiser of N(LOC, SCALE²): before it is rounded, x_0 has that very law."""
    diffusion = nd.GaussianDiffusion(schedules.log_snr(T, -6.0, 3.0), 3.5, 3.5)
    oracle = denoisers.Gaussian(LOC, SCALE)
    return nd.ReverseProcess(diffusion, oracle, event_shape, last_step=nd.DiscretisedStep(num_levels))


@jax.jit
def _everywhere(locs, scales):
    levels = jnp.arange(256.0)
    law = lambda loc, scale: DiscretisedNormal(loc, scale).log_prob(levels)
    each = lambda loc, scale: (law(loc, scale), jax.jacfwd(law, (0, 1))(loc, scale), jax.hessian(law)(loc, scale))
    return jax.vmap(each)(locs, scales)


def test_masses_add_up_to_one_with_finite_derivatives_everywhere():
    """All 256 levels, in float32, for means far outside and scales from a thousandth of a level to many times all."""
    pairs = np.array(np.meshgrid(LOCS, SCALES)).reshape(2, -1)
    log_mass, gradient, second = _everywhere(*pairs)
    assert np.isfinite(log_mass).all()
    assert all(np.isfinite(part).all() for part in (*gradient, second))
    np.testing.assert_allclose(np.exp(log_mass).sum(axis=1), 1, rtol=1e-5)


def test_masses_and_gradients_are_those_of_the_normal_law(x64):
    """Against scipy, wherever a difference of its distribution functions has digits left."""
    locs, scales = np.array([-4.0, 3.3, 127.6, 250.0]), np.array([2.0, 0.7, 40.0, 6.0])
    log_mass, gradient, _ = _everywhere(locs, scales)
    for i, (loc, scale) in enumerate(zip(locs, scales, strict=True)):
        mass, k = masses(loc, scale, 256), np.arange(256)
        high, low = (k + 0.5 - loc) / scale, (k - 0.5 - loc) / scale
        low[0], high[-1] = -np.inf, np.inf
        good = mass > 1e-9
        np.testing.assert_allclose(log_mass[i][good], np.log(mass[good]), rtol=1e-6)
        edges = lambda x: np.where(np.isfinite(x), x, 0.0) * norm.pdf(x)  # x φ(x), which is 0 at infinity
        for got, flow in zip(gradient, (norm.pdf(low) - norm.pdf(high), edges(low) - edges(high)), strict=True):
            expected = flow[good] / scale / mass[good]
            np.testing.assert_allclose(got[i][good], expected, rtol=1e-5, atol=1e-6)


def test_draws_are_integers_of_that_law():
    law, count = DiscretisedNormal(np.array([LOC, 6.8]), np.array([SCALE, 2.0]), 8), 20_000
    draws, mean, variance = jax.jit(lambda law, key: (law.sample(key, (count,)), law.mean, law.variance))(law, KEY)
    assert draws.dtype == jnp.int32 and draws.shape == (count, 2)
    assert law.support(draws).all() and law.support.is_discrete
    levels = np.arange(8)
    for i in range(2):
        mass = masses(float(law.loc[i]), float(law.scale[i]), 8)
        counts = np.bincount(np.asarray(draws[:, i]), minlength=8)
        assert chi2.sf(np.sum((counts - count * mass) ** 2 / (count * mass)), 7) > 1e-4
        np.testing.assert_allclose(mean[i], mass @ levels, rtol=1e-5)
        np.testing.assert_allclose(variance[i], mass @ levels**2 - (mass @ levels) ** 2, rtol=1e-4)
    off = law.log_prob(np.array([[-1.0], [8.0], [2.5], [np.nan]]))
    assert np.isneginf(off).all()


STEPS = {
    "beta": (nd.FixedStep("beta"), lambda b1, b2: b1),
    "beta_tilde": (nd.FixedStep(), lambda b1, b2: b1 * b2 / (b1 + b2 - b1 * b2)),  # β̃_2 = β_2 (1 − ᾱ_1)/(1 − ᾱ_2)
    "scale": (nd.LearnedStep(np.log(0.2)), lambda b1, b2: 0.04),
    "learned": (None, lambda b1, b2: b1),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_last_step_is_the_rounded_gaussian(name, x64):
    """[DDPM 2020] eq. 13 with each choice of σ_1, in units of levels."""
    step, variance = STEPS[name]
    diffusion = nd.GaussianDiffusion(schedules.from_beta([0.01, 0.3, 0.5]), 3.5, 3.5)
    head = denoisers.Network(lambda z, t: 0.5 * z, "data")
    last = "discretised" if step is None else nd.DiscretisedStep(8, step)
    process = nd.ReverseProcess(diffusion, head, 2, last_step=last)
    num_levels = 256 if step is None else 8
    assert process.num_levels == num_levels and process.support.is_discrete
    x_1 = np.array([1.0, 6.0])
    kernel = process.kernel(x_1, 1)
    scale = 3.5 * np.sqrt(variance(0.01, 0.3))
    near = np.array([[2, 5], [3, 4], [1, 5]])  # where a difference of scipy's probabilities has digits
    expected = [masses(mean, scale, num_levels)[near[:, i]] for i, mean in enumerate(3.5 + 0.5 * (x_1 - 3.5))]
    np.testing.assert_allclose(jax.jit(kernel.log_prob)(near), np.log(expected).sum(axis=0), rtol=1e-6)


def test_the_code_length_of_a_gaussian_source_is_its_entropy():
    """256 levels, the exact denoiser: K is a log probability, and −K in bits/dim exceeds the entropy by 0.5% at most.

    The mean of log p(x) + its own bound's gap is compared example by example, so that the data's spread drops out.
    """
    loc, scale, shape = 120.0, 25.0, (16,)
    diffusion = nd.GaussianDiffusion(schedules.log_snr(20, -6.0, 7.0), 127.5, 127.5)
    process = nd.ReverseProcess(diffusion, denoisers.Gaussian(loc, scale), shape, last_step="discretised")
    noise = np.random.default_rng(0).normal(size=(400, *shape))
    x = np.clip(np.round(loc + scale * noise), 0, 255).astype(int)
    estimate = jax.jit(lambda x: nd.KBound(4)(KEY, process, x))(x)
    mass = masses(loc, scale, 256)
    entropy = -np.sum(mass[mass > 0] * np.log2(mass[mass > 0]))
    excess = np.asarray(bits_per_dim(estimate.value, shape)) + np.log2(mass)[x].mean(axis=1)
    error = excess.std() / np.sqrt(len(x))
    assert error < 0.002 * entropy
    assert -4 * error < excess.mean() < 0.005 * entropy
    # L_null is the rounded noise law's, in the same units.
    null = np.log(masses(127.5, 127.5, 256))[x].sum(axis=1)
    np.testing.assert_allclose(estimate.terms.null, null, rtol=1e-4)


@pytest.mark.slow
def test_the_marginal_is_a_distribution_and_the_exact_one():
    """p(x_0) over all pairs of levels by the mean of p(path)/q(path): adds up to 1, and is that of the source."""
    process = source_process()
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(8), jnp.arange(8), indexing="ij"), -1).reshape(-1, 2)

    def ratio(key, x):
        path = nd.ForwardTrajectory(process.diffusion, x.astype(float)).sample(key)
        return nd.joint_log_ratio(process, jnp.concatenate([x[None].astype(float), path]))

    keys = jax.random.split(KEY, 4000)
    ratios = jax.jit(jax.vmap(lambda x: jax.vmap(lambda key: ratio(key, x))(keys)))(pairs)
    chance = np.exp(np.asarray(ratios, np.float64))
    mean, error = chance.mean(axis=1), chance.std(axis=1) / np.sqrt(len(keys))
    exact = np.outer(*[masses(LOC, SCALE, 8)] * 2).ravel()
    assert np.max(np.abs(mean - exact) / error) < 4.5
    assert abs(mean.sum() - 1) < 4 * np.sqrt(np.sum(error**2))


@pytest.mark.slow
def test_trajectories_of_whole_numbers():
    """Draws, support, joint density, and what validation refuses."""
    process = source_process()
    joint = nd.ReverseTrajectory(process, validate_args=True)
    paths = joint.sample(KEY, (1000,))
    assert paths.shape == (1000, T + 1, 2)
    assert joint.support(paths).all() and not joint.support(paths + 0.25).any()
    last = jax.jit(jax.vmap(lambda path: process.last_kernel(path[1]).log_prob(path[0])))
    moved = paths.at[:, 0].set(7 - paths[:, 0])
    difference = joint.log_prob(paths) - joint.log_prob(moved)
    np.testing.assert_allclose(difference, last(paths) - last(moved), rtol=1e-3, atol=1e-3)
    with pytest.warns(UserWarning, match="value: expected values on the support of ReverseTrajectory"):
        joint.log_prob(paths + 0.25)
    draws = paths[:, 0].astype(int)
    frequency = np.bincount(np.asarray(draws).ravel(), minlength=8) / draws.size
    mass = masses(LOC, SCALE, 8)
    assert (np.abs(frequency - mass) < 4.5 * np.sqrt(mass * (1 - mass) / draws.size)).all()


def test_priors_of_whole_numbers(tmp_path):
    """Draws are integers; validation refuses other values; a file brings the last step back."""
    process, draws = source_process(), jnp.array([[0, 7], [3, 4], [2, 2], [5, 1], [6, 3]])
    prior = nd.DiffusionPrior(process, nd.KBound(1, 1), key=KEY, validate_args=True)
    assert prior.support(draws).all() and not prior.has_rsample
    assert jax.eval_shape(lambda: prior.sample(KEY, (5,))).dtype == jnp.int32
    assert np.isfinite(prior.log_prob(draws)).all()
    for bad in (draws + 8, draws - 8, draws + 0.5):
        with pytest.warns(UserWarning, match="value: expected values on the support of DiffusionPrior"):
            prior.log_prob(bad)
    prior.save(tmp_path / "prior")
    loaded = nd.load(tmp_path / "prior").process
    assert eqx.tree_equal(loaded, process) and loaded.num_levels == 8


def _learning():
    diffusion = nd.GaussianDiffusion(schedules.log_snr(T, -6.0, 4.0), 3.5, 3.5)
    head = denoisers.Network(nd.networks.RBF(KEY, (2,), num_steps=T, num_centers=4, outputs=1), "velocity")
    return nd.ReverseProcess(diffusion, head, 2, last_step=nd.DiscretisedStep(8))


@pytest.mark.slow
def test_training_on_whole_numbers():
    """The last step's scale is learned with the rest, and validation is a code length."""
    process, data = _learning(), np.random.default_rng(0).binomial(7, 0.4, (200, 2))
    result = nd.fit(KEY, process, data, max_steps=60, log_every=60, batch_size=64, learning_rate=3e-3,
                    progress_bar=False, validation=data[:50], likelihood=nd.KBound(2, 4))  # fmt: skip
    assert result.process.last_step.step.log_scale != process.last_step.step.log_scale
    assert -3 * np.log(8) < result.history["validation"][-1] < 0  # a code of 3 bits for each would do


def test_training_refuses_data_that_are_no_levels():
    process, data = _learning(), np.random.default_rng(0).binomial(7, 0.4, (20, 2))
    cases = [
        (data + 0.5, {}, "data: expected whole numbers from 0 to 7, got 3.5 among others"),
        (data + 7, {}, r"data: expected whole numbers from 0 to 7, got \d+ among others"),
        (data, {"validation": data[:5] - 9}, "validation: expected whole numbers from 0 to 7, got"),
        (data, {"dequantize": 1.0}, r"dequantize: expected a width of at least 0 \(0 for .* and grey levels\), got"),
    ]
    for values, more, message in cases:
        with pytest.raises(ValueError, match=message):
            nd.fit(KEY, process, values, max_steps=2, progress_bar=False, **more)


@pytest.mark.slow
def test_posteriors_of_whole_numbers():
    """SMC, whose weights correct the tilted last step, against the enumerated posterior of one pixel."""
    process, y, sigma = source_process(event_shape=(1,)), 5.4, 0.8
    posterior = nd.DiffusionPrior(process) * nd.factors.Gaussian(jnp.array([y]), sigma)
    particles = posterior.smc(KEY, 40)
    joint = masses(LOC, SCALE, 8) * norm.pdf(y, np.arange(8), sigma)
    evidence = np.asarray(jnp.exp(particles.log_evidence), np.float64)
    error = evidence.std(ddof=1) / np.sqrt(len(evidence))
    assert error < 0.02 * joint.sum()
    assert abs(evidence.mean() - joint.sum()) < 4 * error
    weight = np.exp(np.asarray(particles.log_weight, np.float64))
    means = (weight * np.asarray(particles.x)[..., 0]).sum(axis=1)
    exact = joint @ np.arange(8) / joint.sum()
    assert abs(means.mean() - exact) < 4 * means.std(ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nd.DiscretisedStep(1), "num_levels: expected a whole number of at least 2, got 1"),
        (
            lambda: nd.DiscretisedStep(8, nd.DiscretisedStep()),
            "step: expected a last step to round, .* got Discretised",
        ),
        (lambda: nd.DiscretisedStep(8, "learned"), "step: expected a last step to round, .* got 'learned'"),
        (lambda: nd.FixedStep("learned"), "variance: expected one of 'beta', 'beta_tilde', got 'learned'"),
        (
            lambda: nd.ReverseProcess(
                nd.BinomialDiffusion(schedules.erasing(4)), denoisers.Enumerated([[0, 1]]), 2, last_step="discretised"
            ),
            "last_step: whole numbers need a GaussianDiffusion, got BinomialDiffusion",
        ),
        (
            lambda: nd.KBound()(KEY, source_process(), np.array([0.1, 0.9])),
            "x_0: expected whole numbers from 0 to 7, got 0.1 among others",
        ),
        (lambda: nd.KBound()(KEY, source_process(), [9, 1]), "x_0: expected whole numbers from 0 to 7, got 9"),
        (
            lambda: nd.DiffusionPrior(source_process()).from_noise(np.zeros((T + 1, 2))),
            "process: expected a last step that is smooth, got one that rounds",
        ),
        (
            lambda: jax.jit(lambda s: source_process().kernel(np.zeros(2), 1, s).mean)(0),
            "s: expected a known step, since the last one rounds to whole numbers, got a traced one",
        ),
    ],
)
def test_errors(build, message):
    with refused(message):
        build()
