"""Learning p(x | c) from pairs whose law is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from scipy.stats import multivariate_normal, norm

import numpyro_diffusion as nd
from numpyro_diffusion.likelihoods import AbstractLikelihood, Estimate
from numpyro_diffusion.networks import ContextFeatures
from numpyro_diffusion.training import _arguments, conditional

WEIGHT, OFFSET = np.array([[1.5, 0.0], [-0.5, 1.0], [0.3, 0.3]]), np.array([1.0, 0.0, -2.0])
ROOT = np.array([[0.8, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.6]])
COVARIANCE = ROOT @ ROOT.T
NOISE = 0.5


class Scaled(eqx.Module):
    """A network of one weight, which does not listen to the context."""

    weight: jax.Array

    def __call__(self, x, t, c):
        return self.weight * x


class Untold(AbstractLikelihood):
    """1 for an example whose context is left out, and 0 for others."""

    chunk: int | None = None

    def estimate(self, key, process, x_0):
        value = process.denoiser.told.value
        missing = jnp.any(value < 0 if jnp.issubdtype(value.dtype, jnp.integer) else jnp.isnan(value))
        return Estimate(missing.astype(float), jnp.zeros(()), None)


def pairs(count, seed=0):
    """c ~ N(0, 1), x ~ N(WEIGHT c + OFFSET, COVARIANCE)."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(count, 2))
    return c @ WEIGHT.T + OFFSET + rng.normal(size=(count, 3)) @ ROOT.T, c


pytestmark = pytest.mark.usefixtures("small")


def test_the_regression_is_that_of_least_squares_where_there_is_enough_to_learn_from():
    x, c = pairs(4000)
    features = ContextFeatures((2,), None, c.mean(0), c.std(0))
    model = conditional.regressed(conditional.Pairs(x, c), features, 0.0)
    np.testing.assert_allclose(model.weight[:, :2] / c.std(0), WEIGHT, atol=0.06)
    np.testing.assert_allclose(model.residual.covariances[0], COVARIANCE, atol=0.06)
    few, told = pairs(12)
    noise = np.random.default_rng(3).normal(
        size=(12, 40)
    )  # more features than examples: the ridge keeps it from learning by heart
    model = conditional.regressed(conditional.Pairs(few, noise), ContextFeatures((40,)), 0.0)
    assert np.trace(model.residual.covariances[0]) > 0.3 * np.trace(np.cov(few.T))


def test_labels_of_a_regression_add_nothing_on_average():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 600)
    x = np.array([[0.0], [1.0], [5.0]])[labels] + 0.1 * rng.normal(size=(600, 1))
    model = conditional.regressed(conditional.Pairs(x, labels), ContextFeatures((), 3), 0.0)
    means = model.residual.means[0] + model.weight[:, :].T[:, 0]
    np.testing.assert_allclose(means, [0.0, 1.0, 5.0], atol=0.03)
    np.testing.assert_allclose(model.residual.means[0], x.mean(0), atol=1e-6)


@pytest.mark.slow
def test_linear_gaussian_pairs_and_an_unknown_context():
    """K of unseen pairs within 0.1 nats of the truth; c given y by the learned prior, against conjugacy."""
    x, c = pairs(3000)
    prior = nd.fit_prior(jax.random.key(0), x, context=c, max_steps=100, progress_bar=False)
    unseen, told = pairs(400, 1)
    truth = multivariate_normal.logpdf(unseen - told @ WEIGHT.T - OFFSET, np.zeros(3), COVARIANCE)
    difference = np.asarray(prior.given(told).log_prob(unseen), np.float64) - truth
    assert abs(difference.mean()) < 0.1
    assert prior.report().baselines[0].name == "linear regression"
    y = np.array([2.0, 1.0, -2.0])

    def model():
        c = numpyro.sample("c", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        x = numpyro.sample("x", prior.with_(sampler=nd.samplers.Ancestral(8)).given(c))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)

    kernel = NUTS(reparam(model, config={"x": nd.infer.DiffusionReparam()}), max_tree_depth=6)
    mcmc = MCMC(kernel, num_warmup=200, num_samples=600, progress_bar=False)
    mcmc.run(jax.random.key(1))
    draws = np.asarray(mcmc.get_samples()["c"], np.float64)
    spread = COVARIANCE + NOISE**2 * np.eye(3)
    covariance = np.linalg.inv(np.eye(2) + WEIGHT.T @ np.linalg.solve(spread, WEIGHT))
    mean = covariance @ WEIGHT.T @ np.linalg.solve(spread, y - OFFSET)
    size = effective_sample_size(draws[None])
    assert (size > 50).all()
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean(0) - mean) < 4 * sd / np.sqrt(size) + 0.1 * sd).all()  # a tenth for what was learned
    assert (np.abs(draws.std(0) / sd - 1) < 4 / np.sqrt(2 * size) + 0.1).all()


@pytest.mark.slow
def test_labels_left_out_now_and_then():
    """One network for p(x | label), whose spread differs, and for p(x); a file keeps it."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 2000)
    x = np.where(labels == 0, -1.0, 1.5)[:, None] + np.where(labels == 0, 0.3, 0.6)[:, None] * rng.normal(
        size=(2000, 1)
    )
    prior = nd.fit_prior(jax.random.key(0), x, context=labels, context_dropout=0.3, max_steps=2000, progress_bar=False)
    draw = jax.jit(jax.vmap(lambda key, label: prior.given(label).sample(key)))
    draws = lambda label: np.asarray(draw(jax.random.split(jax.random.key(2), 4000), jnp.full(4000, label)))
    for label in (0, 1):
        own = x[labels == label]
        assert abs(draws(label).mean() - own.mean()) < 0.1 and abs(draws(label).std() / own.std() - 1) < 0.2
    assert abs(draws(-1).mean() - x.mean()) < 0.15 and abs(draws(-1).std() / x.std() - 1) < 0.15


@pytest.mark.parametrize(
    ("dropout", "held_out", "share"),
    [(0.3, 20, 0.3), (0.05, 4, 0.25), (0.9, 4, 0.75), (0.3, 1, 0.0), (0.0, 20, 0.0)],
)
@pytest.mark.parametrize("num_labels", [None, 3])
def test_validation_leaves_out_the_share_of_contexts_that_training_does(dropout, held_out, share, num_labels):
    """As near as whole numbers come, one of each kind at least where there are two; the same at each validation."""
    told = nd.denoisers.Context((2,), num_labels, optional=True)
    denoiser = nd.denoisers.Network(Scaled(jnp.ones(())), told=told)
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), denoiser, 1)
    x, c = np.zeros((30, 1)), np.zeros((30, 2), float if num_labels is None else int)
    result = nd.fit(
        jax.random.key(1), process, x, context=c, context_dropout=dropout, validation=x[:held_out],
        validation_context=c[:held_out], likelihood=Untold(), max_steps=2, log_every=1, validate_every=1, batch_size=4,
        progress_bar=False,
    )  # fmt: skip
    np.testing.assert_allclose(result.history["validation"], [share] * 3, rtol=1e-6)


@pytest.mark.slow
def test_weights_are_kept_that_know_examples_without_their_context():
    """x = c + small noise, so that the start, a regression, is right for p(x | c) and hopeless for p(x)."""
    rng = np.random.default_rng(5)
    make = lambda count: (c := rng.normal(size=count), c[:, None] + 0.1 * rng.normal(size=(count, 1)))
    (c, x), (told, unseen) = make(1000), make(400)
    prior = nd.fit_prior(jax.random.key(0), x, context=c, context_dropout=0.3, max_steps=1500, progress_bar=False)
    below = norm.logpdf(unseen[:, 0], 0, np.sqrt(1.01)) - np.asarray(prior.given(None).log_prob(unseen))
    assert below.mean() < 3  # for a small network; the regression is some 60 nats below
    below = norm.logpdf(unseen[:, 0], told, 0.1) - np.asarray(prior.given(told).log_prob(unseen))
    assert below.mean() < 0.2


def test_a_gradient_by_the_context_goes_through_network_and_baseline():
    """Of what HMC moves: checked against differences, in double precision."""
    with jax.enable_x64(True):
        told, size = nd.denoisers.Context((2,)), 3
        gaussian = nd.denoisers.FullGaussianMixture(np.zeros((1, size)), np.eye(size)[None])
        make = nd.denoisers.Regression(ContextFeatures((2,)), np.pad(WEIGHT, ((0, 0), (0, 2))), gaussian)
        fn = lambda x, t, c: (0.1 * x * jnp.sin(c[0]), 0.1 * c[1] * x)
        denoiser = nd.denoisers.Residual(fn, nd.denoisers.Conditional(make, (2,)), told)
        process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(3)), denoiser, size)
        log_prob = jax.jit(lambda c: nd.ReverseTrajectory(process.given(c)).log_prob(jnp.ones((4, size))))
        c, step = jnp.array([0.3, -0.4]), 1e-5
        for i, slope in enumerate(jax.grad(log_prob)(c)):
            change = log_prob(c.at[i].add(step)) - log_prob(c.at[i].add(-step))
            np.testing.assert_allclose(slope, change / (2 * step), rtol=1e-6)


BAD = {
    "too few": ({"context": np.zeros((5, 2))}, ValueError, "context: expected one for each of 40 examples"),
    "unknown": ({"context": np.full((40, 2), np.nan)}, ValueError, "context: expected finite numbers"),
    "words": ({"context": ["a"] * 40}, TypeError, "context: expected"),
    "negative": ({"context": np.full(40, -1)}, ValueError, "context: expected labels"),
    "many labels": ({"context": np.arange(40) * 100}, ValueError, "context: expected labels below 1000"),
    "dropout of nothing": ({"context_dropout": 0.5}, ValueError, "context_dropout: expected 0 without a context"),
    "all dropped": (
        {"context": np.zeros((40, 2)), "context_dropout": 1.0},
        ValueError,
        "context_dropout: expected a share",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_contexts_are_named(case):
    options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        nd.fit_prior(jax.random.key(0), pairs(40)[0], **options, max_steps=1, progress_bar=False)


def test_fit_wants_contexts_where_its_process_does():
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(4))
    plain = nd.ReverseProcess(diffusion, nd.denoisers.Network(lambda x, t: 0 * x), 3)
    told = nd.denoisers.Context((2,))
    open_ = nd.ReverseProcess(diffusion, nd.denoisers.Network(lambda x, t, c: 0 * x, told=told), 3)
    x, c = pairs(20)
    for process, context, message in (
        (plain, c, "context: expected a process whose denoiser takes a context"),
        (open_, None, r"context: expected real numbers of shape .*, one for each of 20 examples, got None"),
        (open_, c[:7], r"context: expected shape \(20, 2\), one for each example, got \(7, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            nd.fit(jax.random.key(0), process, x, context=context, max_steps=1, progress_bar=False)
    with pytest.raises(ValueError, match="validation_context: expected real numbers"):
        nd.fit(jax.random.key(0), open_, x, context=c, validation=x, max_steps=1, progress_bar=False)
    with pytest.raises(ValueError, match="validation_context: expected None without validation data"):
        nd.fit(jax.random.key(0), open_, x, context=c, validation_context=c, max_steps=1, progress_bar=False)


def test_contexts_go_where_their_examples_go():
    process = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(4)),
        nd.denoisers.Network(lambda x, t, c: 0 * x, told=nd.denoisers.Context()),
        1,
    )
    x = jnp.arange(30.0)[:, None]
    train, held_out = _arguments.split(jax.random.key(3), x, 0.2, process)
    own, other = _arguments.split_context(jax.random.key(3), x[:, 0], 0.2, None, process, len(held_out))
    np.testing.assert_array_equal(train[:, 0], own)
    np.testing.assert_array_equal(held_out[:, 0], other)
