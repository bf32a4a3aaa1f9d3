"""SMC on the twisted chain: closed-form Gaussians, mixtures, and bits enumerated over the model's own chain."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused
from scipy.special import expit, logsumexp
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import twists
from numpyro_diffusion.factors import Delta, Elementwise, Factor, Gaussian, LinearGaussian
from numpyro_diffusion.factors.base import batched_log_r
from numpyro_diffusion.laws import bit_logits
from numpyro_diffusion.moments import moments_of_covariance
from numpyro_diffusion.samplers import TwistedSMC, effective_size
from numpyro_diffusion.samplers.resampling import normalise, systematic

LOC, SCALE = np.array([0.5, -1.0]), np.array([1.2, 0.6])
A, Y, NOISE = np.array([[1.0, -0.7]]), np.array([2.5]), 1.5


@pytest.fixture(autouse=True)
def quick_compilation():
    """Slow tests compute little here too; what takes time is compiling."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def gaussian_process(num_steps=8):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps), 0.2, 1.5)
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(LOC, SCALE), 2)


def chain_law(process, times):
    """Mean and variance of x_0 under the chain that visits `times`, by the recursion of its affine kernels."""
    mean, variance = np.full(2, 0.2), np.full(2, 1.5**2)
    for t, s in itertools.pairwise([*times, 0]):
        at = lambda x, t=t, s=s: process.kernel(jnp.asarray(x, dtype=float), t, s)
        offset = np.asarray(at(np.zeros(2)).mean, np.float64)
        slope = np.asarray(at(np.ones(2)).mean, np.float64) - offset
        mean = slope * mean + offset
        variance = slope**2 * variance + np.asarray(at(np.zeros(2)).variance, np.float64)
    return mean, variance


def gaussian_truth(num_steps=8):
    """Mean, covariance and log Z of the chain's posterior given Y."""
    mean, variance = chain_law(gaussian_process(num_steps), range(num_steps, 0, -1))
    total = A @ np.diag(variance) @ A.T + NOISE**2
    gain = np.diag(variance) @ A.T / total
    log_z = norm(0, np.sqrt(total[0, 0])).logpdf(Y - A @ mean)[0]
    return mean + gain @ (Y - A @ mean), np.diag(variance) - gain @ A @ np.diag(variance), log_z


@eqx.filter_jit
def runs(sampler, process, factor, keys):
    return jax.vmap(lambda key: sampler.run(key, process, factor))(keys)


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def within(values, truth, k=4.5, slack=0.0):
    """Whether the mean of independent values is within k standard errors of the truth."""
    values = np.asarray(values, np.float64)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    return (abs(values.mean(0) - truth) < k * error + slack).all()


# ---- weights


def test_systematic_counts_are_rounded_either_way_and_right_on_average():
    log_weight = jnp.log(jnp.array([0.05, 0.4, 0.0, 0.3, 0.25])) + 3
    draws = jax.jit(jax.vmap(lambda key: systematic(key, log_weight)))(keys(0, 4000))
    counts = (np.asarray(draws)[:, :, None] == np.arange(5)).sum(1)
    expected = 5 * np.array([0.05, 0.4, 0.0, 0.3, 0.25])
    assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
    assert within(counts[:, [0, 3, 4]], expected[[0, 3, 4]])
    assert (counts[:, 1] == 2).all()


def test_effective_size_is_between_one_and_all():
    assert np.isclose(effective_size(jnp.zeros(7) - 900), 7, rtol=1e-4)
    assert np.isclose(effective_size(jnp.array([0.0, -jnp.inf, -jnp.inf])), 1)
    weight = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(effective_size(jnp.log(weight) + 50), 1 / (weight**2).sum(), rtol=1e-5)


def test_weights_that_all_vanish_are_equal_and_no_nan():
    none = jnp.full(4, -jnp.inf)
    np.testing.assert_allclose(normalise(none), -np.log(4), rtol=1e-6)
    assert np.isclose(effective_size(none), 4)
    np.testing.assert_array_equal(np.sort(systematic(jax.random.key(0), none)), np.arange(4))


# ---- Gaussian data, a linear observation: everything in closed form

TWISTS = {
    "exact": twists.MomentMatched("exact"),
    "iterative": twists.MomentMatched("iterative"),
    "pseudo_inverse": twists.PseudoInverse(),
    "tweedie": twists.Tweedie(),
    "annealed": twists.Annealed(),
    "tempered": twists.Tempered(),
}
SLOW = pytest.mark.slow
EACH = [pytest.param(name, marks=() if name == "exact" else SLOW) for name in TWISTS]


@pytest.mark.parametrize("num_steps", [5, 20, 50])
def test_tempered_twists_begin_at_one(num_steps):
    """Compiled, 1 − T/T is a product with 1/T, and for most T was a little below 0: its square root is no number."""
    process = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(num_steps)), nd.denoisers.Gaussian(np.zeros(2), np.ones(2)), 2
    )
    sampler = TwistedSMC(512, twists.Tempered(twists.MomentMatched()))
    found = sampler.run(jax.random.key(0), process, Gaussian(np.ones(2), 0.5))
    assert abs(found.log_evidence - norm(0, np.sqrt(1.25)).logpdf([1.0, 1.0]).sum()) < 0.1


@pytest.mark.parametrize("name", EACH)
def test_every_twist_has_the_gaussian_posterior(name):
    """Mean, covariance and evidence; ratios of means over independent runs, so that only noise is left."""
    sampler = TwistedSMC(128, TWISTS[name])
    got = runs(sampler, gaussian_process(), LinearGaussian(Y, A, NOISE), keys(1, 50))
    mean, covariance, log_z = gaussian_truth()
    relative = np.exp(np.asarray(got.log_evidence, np.float64) - log_z)
    assert within(relative, 1.0, slack=1e-4)
    # Z-weighted averages are unbiased for Z E[f]: of f minus its truth they have mean 0.
    weight = np.exp(np.asarray(got.log_weight, np.float64)) * relative[:, None]
    x = np.asarray(got.x, np.float64) - mean
    assert within(np.einsum("rn,rni->ri", weight, x), 0.0, slack=1e-4)
    assert within(np.einsum("rn,rni,rnj->rij", weight, x, x) - relative[:, None, None] * covariance, 0.0, slack=1e-4)
    if name == "exact":
        assert relative.std() < 2e-3  # and no weight changes: only its rounding is left
        np.testing.assert_allclose(got.effective_size, 128, rtol=1e-3)


@pytest.mark.slow
def test_the_evidence_is_unbiased_at_four_particles():
    """With a poor twist single runs are far off, and their mean is right."""
    sampler = TwistedSMC(4, twists.Annealed())
    log_evidence = runs(sampler, gaussian_process(), Gaussian([1.0, -1.5], 0.8), keys(2, 8_000)).log_evidence
    mean, variance = chain_law(gaussian_process(), range(8, 0, -1))
    log_z = norm(mean, np.sqrt(variance + 0.64)).logpdf([1.0, -1.5]).sum()
    relative = np.exp(np.asarray(log_evidence, np.float64) - log_z)
    assert relative.std() > 0.2
    assert within(relative, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("antithetic", [False, True])
def test_known_elements_are_exactly_there(antithetic):
    """Inpainting: log Z is the log density of the known elements, the others keep their law."""
    factor = Delta([1.7, 0.0], [True, False])
    got = runs(TwistedSMC(128, antithetic=antithetic), gaussian_process(), factor, keys(4 + antithetic, 20))
    mean, variance = chain_law(gaussian_process(), range(8, 0, -1))
    assert (np.asarray(got.x)[..., 0] == np.float32(1.7)).all()
    density = norm(mean[0], np.sqrt(variance[0])).logpdf(1.7)
    np.testing.assert_allclose(got.log_evidence, density, atol=2e-3)
    assert abs(np.mean(got.log_evidence) - density) < 5e-4
    free = np.asarray(got.x)[..., 1].ravel()
    assert abs(free.mean() - mean[1]) < 5 * np.sqrt(variance[1] / free.size)
    assert abs(free.var() / variance[1] - 1) < 5 * np.sqrt(2 / free.size)


# ---- a mixture: two modes, and a posterior that is a mixture too


@pytest.mark.slow
def test_a_mixtures_modes_have_their_weights():
    """On 150 steps the chain's law is the mixture to about 1% in Z and in the modes' weights."""
    means, shares, width = np.array([[-1.0, 0.5], [1.0, -0.5]]), np.array([0.3, 0.7]), 0.3
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(150, detail=0.3))
    mixture = nd.denoisers.GaussianMixture(means, np.full(2, width), shares)
    process = nd.ReverseProcess(diffusion, mixture, 2)
    matrix, y, noise = np.array([[1.0, 0.5]]), np.array([-0.2]), 0.6
    total = width**2 * (matrix @ matrix.T)[0, 0] + noise**2
    each = np.log(shares) + norm(means @ matrix[0], np.sqrt(total)).logpdf(y[0])
    got = runs(TwistedSMC(128, twists.MomentMatched()), process, LinearGaussian(y, matrix, noise), keys(5, 20))
    relative = np.exp(np.asarray(got.log_evidence, np.float64) - logsumexp(each))
    right = np.asarray(got.x)[..., 0] > 0
    share = (np.exp(np.asarray(got.log_weight, np.float64)) * right).sum(1)
    truth = np.exp(each[1] - logsumexp(each))
    assert within(relative, 1.0, slack=0.02)
    assert within(relative * (share - truth), 0.0, slack=0.02)


# ---- bits: the target is the model's own chain, multiplied out over all states

STATES = np.array(list(itertools.product([0, 1], repeat=4)))
LISTED = np.array([[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
SHARES = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
ONE = np.array([1.0, -1.5, 0.5, 2.0])
SCHEDULES = {"erasing": nd.schedules.erasing(5), "log_snr": nd.schedules.log_snr(4, -3.0, 3.0)}


def bits_process(name="erasing"):
    diffusion = nd.BinomialDiffusion(SCHEDULES[name], 0.4)
    return nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(LISTED, SHARES), 4)


@functools.cache
def chain_probabilities(name):
    """p(x_0) of the chain for all 16 states, by multiplying its transition matrices."""
    process, states = bits_process(name), jnp.asarray(STATES)

    @jax.jit
    def logits():
        inner = lambda t: jax.vmap(lambda x: bit_logits(process.inner_kernel(x, t, t - 1)))(states)
        last = jax.vmap(lambda x: bit_logits(process.last_kernel(x)))(states)
        return jnp.append(jax.vmap(inner)(jnp.arange(process.num_steps, 1, -1)), last[None], axis=0)

    p = np.prod(np.where(STATES == 1, 0.4, 0.6), axis=1)
    for one in expit(np.asarray(logits(), np.float64)):
        p = p @ np.prod(np.where(STATES == 1, one[:, None], 1 - one[:, None]), axis=-1)
    return p


BIT_FACTORS = {
    "elementwise": Elementwise(ONE, -ONE),
    "delta": Delta([1, 0, 0, 0], [True, False, False, True]),
    "coupled": Factor(lambda x: 2.0 * x[0] * x[1] - 1.5 * x[2] * x[3]),
}


def bits_truth(name, factor):
    """The chain's posterior over STATES and log Z."""
    p = chain_probabilities(name) * np.exp(batched_log_r(factor, STATES, (4,)))
    return p / p.sum(), np.log(p.sum())


def frequencies(x, weight):
    """Weighted frequencies of STATES, one row for each run."""
    index = np.asarray(x).astype(int) @ (2 ** np.arange(3, -1, -1))
    return np.stack([np.bincount(i, w, minlength=16) for i, w in zip(index, weight, strict=True)])


CASES = [
    pytest.param("erasing", "elementwise", None, marks=SLOW),
    pytest.param("erasing", "coupled", None, marks=SLOW),
    pytest.param("log_snr", "delta", None, marks=SLOW),
    pytest.param("log_snr", "elementwise", twists.Constant(), marks=SLOW),
]


@pytest.mark.parametrize(("schedule", "name", "twist"), CASES)
def test_bits_have_the_posterior_of_their_own_chain(schedule, name, twist):
    process, factor = bits_process(schedule), BIT_FACTORS[name]
    truth, log_z = bits_truth(schedule, factor)
    got = runs(TwistedSMC(128, twist), process, factor, keys(6, 50))
    relative = np.exp(np.asarray(got.log_evidence, np.float64) - log_z)
    assert within(relative, 1.0, slack=1e-5)
    seen = frequencies(got.x, np.exp(np.asarray(got.log_weight, np.float64)))
    assert (seen[:, truth == 0] == 0).all()
    common = truth > 1e-3  # rarer states are seen too seldom for a normal law of their frequencies
    assert within((relative[:, None] * (seen - truth))[:, common], 0.0, k=5, slack=1e-5)
    error = (relative[:, None] * (seen - truth)).std(0, ddof=1) / np.sqrt(len(seen))
    variation = 0.5 * abs(np.average(seen, axis=0, weights=relative) - truth).sum()
    assert variation < 0.5 * 3 * error.sum() + 2e-3 and 0.5 * error.sum() < 0.1


@pytest.mark.slow
def test_one_draw_is_from_the_particles():
    """`sample` of many runs has the posterior's mean, up to the bias of 32 particles."""
    process, factor = bits_process(), BIT_FACTORS["elementwise"]
    draw = eqx.filter_jit(jax.vmap(lambda key: TwistedSMC(32).sample(key, process, factor)))
    x = np.asarray(draw(keys(7, 1000)))
    truth = bits_truth("erasing", factor)[0] @ STATES
    assert (abs(x.mean(0) - truth) < 4.5 * np.sqrt(truth * (1 - truth) / 1000) + 1 / 32).all()


# ---- the machine


@pytest.mark.slow
def test_chunks_change_no_number():
    process, factor = gaussian_process(4), Factor(lambda x: -jnp.sum(jnp.abs(x - 1.0)))
    whole, parts = (
        eqx.filter_jit(TwistedSMC(10, chunk=chunk).run)(jax.random.key(8), process, factor) for chunk in (None, 4)
    )
    np.testing.assert_array_equal(whole.ancestors, parts.ancestors)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)


def test_a_factor_of_zero_gives_no_nan():
    nowhere = Factor(lambda x: jnp.where(jnp.sum(x) > 1e6, 0.0, -jnp.inf))
    got = eqx.filter_jit(TwistedSMC(8).run)(jax.random.key(9), gaussian_process(4), nowhere)
    assert got.log_evidence == -np.inf
    assert np.isfinite(got.x).all() and np.isfinite(got.effective_size).all()
    np.testing.assert_allclose(got.log_weight, -np.log(8), rtol=1e-6)


@pytest.mark.slow
def test_weights_and_ancestors_are_what_they_say():
    process, factor = gaussian_process(4), LinearGaussian(Y, A, NOISE)
    never, always, ordered = (
        eqx.filter_jit(TwistedSMC(16, twists.Constant(), threshold=threshold, antithetic=antithetic).run)(
            jax.random.key(10), process, factor
        )
        for threshold, antithetic in ((0.0, False), (1.0, False), (0.0, True))
    )
    for got in (never, always, ordered):
        assert got.x.shape == (16, 2) and got.ancestors.shape == (4, 16) and got.effective_size.shape == (5,)
        assert np.isclose(logsumexp(got.log_weight), 0, atol=1e-5)
        assert ((np.asarray(got.effective_size) >= 1) & (np.asarray(got.effective_size) <= 16.001)).all()
    np.testing.assert_array_equal(never.ancestors, np.tile(np.arange(16), (4, 1)))
    assert (np.asarray(always.ancestors)[0] != np.arange(16)).any()
    # Antithetic particles are put in another order, and none of them is lost.
    np.testing.assert_array_equal(np.sort(ordered.ancestors, 1), np.tile(np.arange(16), (4, 1)))


def counted(calls, bits):
    def fn(x, t):
        calls.append(1)
        return 0.3 * x - 0.1 * t

    if bits:
        diffusion = nd.BinomialDiffusion(nd.schedules.erasing(6))
        return nd.ReverseProcess(diffusion, nd.denoisers.Network(fn, "logits"), 3)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(6))
    return nd.ReverseProcess(diffusion, nd.denoisers.Network(fn, "noise"), 3, moments=moments_of_covariance(np.eye(3)))


@pytest.mark.parametrize(
    ("factor", "twist"),
    [
        (Factor(lambda x: -jnp.sum(x**2)), None),
        (LinearGaussian([1.0], np.ones((1, 3)), 0.5), None),
        (Gaussian(1.0, 0.5), None),
        (Elementwise(1.0), None),
        pytest.param(LinearGaussian([1.0], np.ones((1, 3)), 0.5), twists.MomentMatched("iterative"), marks=SLOW),
        pytest.param(LinearGaussian([1.0], np.ones((1, 3)), 0.5), twists.PseudoInverse(), marks=SLOW),
        pytest.param(Gaussian(1.0, 0.5), twists.Constant(), marks=SLOW),
    ],
)
def test_the_denoiser_is_called_once_for_each_particle_and_step(factor, twist):
    """Traced in the scanned body and for the last step, once each; and once only for its shapes."""
    calls = []
    process = counted(calls, isinstance(factor, Elementwise))
    calls.clear()
    sampler = TwistedSMC(4, twist)
    shapes = jax.eval_shape(lambda key: sampler.run(key, process, factor), jax.random.key(0))
    assert shapes.x.shape == (4, 3)
    assert len(calls) == 3


BAD = {
    "one": (lambda: TwistedSMC(1), "num_particles: expected a whole number of at least 2, got 1"),
    "threshold": (lambda: TwistedSMC(threshold=1.5), r"threshold: expected a fraction in \[0, 1\], got 1.5"),
    "nan": (lambda: TwistedSMC(threshold=np.nan), "threshold: expected a fraction"),
    "steps": (lambda: TwistedSMC(num_steps=1), "num_steps: expected a whole number of at least 2, got 1"),
    "chunk": (lambda: TwistedSMC(chunk=0), "chunk: expected a whole number of at least 1, got 0"),
    "devices": (lambda: TwistedSMC(devices=0), "devices: expected .*, got 0"),
    "too_many": (
        lambda: TwistedSMC(4, num_steps=9).run(jax.random.key(0), gaussian_process(), Gaussian(0.0, 1.0)),
        "num_steps: expected at most T = 8, got 9",
    ),
    "factor": (
        lambda: TwistedSMC(4).run(jax.random.key(0), gaussian_process(), lambda x: 0.0),
        "factor: expected one from numpyro_diffusion.factors",
    ),
    "family": (
        lambda: TwistedSMC(4).run(jax.random.key(0), bits_process(), Gaussian(0.0, 1.0)),
        "factor: Gaussian is for real numbers",
    ),
    "twist": (
        lambda: TwistedSMC(4, twists.PseudoInverse()).run(jax.random.key(0), bits_process(), Factor(jnp.sum)),
        "twist: PseudoInverse is for a GaussianDiffusion",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    make, message = BAD[name]
    with refused(message):
        make()
