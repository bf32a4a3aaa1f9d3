"""The default of SMC on priors that were learned, under likelihoods of many kinds, against reweighted draws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from programs import programs_optimised

import numpyro_diffusion as nd

CHAIN = nd.samplers.Ancestral(15)  # what answers are about: each second step, for the draws and for SMC


@functools.cache
def many_clusters():
    """By `fit_prior`: twelve clusters on a circle, so that its baseline has as many components or more."""
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * rng.integers(12, size=1200) / 12
    data = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.15 * rng.normal(size=(1200, 2))
    schedule = nd.schedules.log_snr(30, -8, 6)
    prior = nd.fit_prior(jax.random.key(0), data, max_steps=200, schedule=schedule, progress_bar=False)
    assert int(re.search(r"mixture of (\d+) Gaussians", str(prior.report()))[1]) >= 8
    return prior.with_(sampler=CHAIN)


@functools.cache
def draws_of_many_clusters():
    """Of its own chain."""
    return drawn(many_clusters())


def exponentials():
    """The law of positive numbers whose logarithms are 0.7 times those of the clusters, and its draws."""
    prior = many_clusters()
    own = [] if prior.transform is None else [prior.transform]
    parts = [*own, transforms.AffineTransform(0.0, 0.7), transforms.ExpTransform()]
    positive = nd.DiffusionPrior(prior.process, sampler=CHAIN, transform=transforms.ComposeTransform(parts))
    return positive, np.exp(0.7 * draws_of_many_clusters())


def drawn(prior):
    """So many that their error is a small part of that of SMC."""
    with programs_optimised():
        return np.asarray(prior.sample(jax.random.key(7), (60_000,)), np.float64)


def own_network():
    """By `fit`, which keeps the covariance of the data: a bent cloud, and an element that is the same but for noise."""
    rng = np.random.default_rng(1)
    first = rng.standard_normal(800)
    data = np.stack([first, 0.5 * first**2 + 0.3 * rng.standard_normal(800), np.zeros(800)], 1)
    network = nd.networks.MLP(jax.random.key(0), (3,), num_steps=20, width=32)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20, -8, 6))
    process = nd.ReverseProcess(diffusion, nd.denoisers.Network(network, "velocity"), 3)
    options = {"max_steps": 400, "batch_size": 128, "dequantize": 0.5, "validation": 0.0, "progress_bar": False}
    found = nd.fit(jax.random.key(1), process, data, **options).process
    assert found.moments is not None
    return nd.DiffusionPrior(found)


@pytest.mark.slow
@pytest.mark.parametrize("learn", [many_clusters, own_network])
def test_counts_and_a_modulus_against_reweighted_draws(learn):
    prior = learn()
    x = draws_of_many_clusters() if learn is many_clusters else drawn(prior)
    last = prior.event_shape[0] - 1

    def log_r(x):
        return dist.Poisson(jnp.exp(x[0])).log_prob(3) + dist.Normal(jnp.abs(x[last]), 0.2).log_prob(0.3)

    def model():
        numpyro.factor("seen", log_r(numpyro.sample("x", prior)))

    log_weight = np.asarray(jax.jit(jax.vmap(log_r))(jnp.asarray(x, float)), np.float64)
    weight = np.exp(log_weight - log_weight.max())
    value = log_weight.max() + np.log(weight.mean())
    error = weight.std() / weight.mean() / np.sqrt(len(weight))
    weight /= weight.sum()
    mean = weight @ x
    sd = np.sqrt(weight @ (x - mean) ** 2)
    smc = nd.infer.SMC(model, num_islands=16, progress_bar=False).run(jax.random.key(3))
    assert abs(smc.log_evidence - value) < 4 * np.hypot(smc.log_evidence_error, error)
    assert smc.log_evidence_error < 0.05
    draws = np.asarray(smc.get_samples()["x"], np.float64)
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.1)
    np.testing.assert_allclose(draws.std(0) / sd, 1.0, atol=0.1)


@functools.cache
def about_three():
    """By `fit`, about three Gaussians in three dimensions, of which the data are bent; and draws of its own chain."""
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=1500)
    centres = np.array([[-2.0, 0.0, 1.0], [2.0, 1.0, -1.0], [0.0, 3.0, 0.0]])
    data = centres[label] + np.array([0.3, 0.6, 1.0])[label][:, None] * rng.normal(size=(1500, 3))
    data[:, 2] += 0.3 * data[:, 0] ** 2
    parts = [data[label == k] for k in range(3)]
    mixture = nd.denoisers.FullGaussianMixture([x.mean(0) for x in parts], [np.cov(x.T) for x in parts])
    network = nd.networks.MLP(jax.random.key(0), (3,), num_steps=20, width=32, outputs=2)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20, -8, 6), 0.0, 2.0)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Residual(network, mixture), 3)
    options = {"max_steps": 300, "batch_size": 128, "validation": 0.0, "progress_bar": False}
    prior = nd.DiffusionPrior(nd.fit(jax.random.key(1), process, data, **options).process)
    return prior, drawn(prior)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_not_gaussian_about_three_components(beside):
    """A count and a modulus, with a linear observation beside them or not, against reweighted draws."""
    prior, x = about_three()
    linear = lambda x: dist.Normal(x[0] + x[1], 0.5).log_prob(1.0) if beside else 0.0
    bent = lambda x: dist.Poisson(jnp.exp(x[0])).log_prob(3) + dist.Normal(jnp.abs(x[2]), 0.2).log_prob(0.8)

    def model():
        x = numpyro.sample("x", prior)
        numpyro.factor("bent", bent(x))
        if beside:
            numpyro.sample("y", dist.Normal(x[0] + x[1], 0.5), obs=1.0)

    log_weight = np.asarray(jax.jit(jax.vmap(lambda x: bent(x) + linear(x)))(jnp.asarray(x, float)), np.float64)
    weight = np.exp(log_weight - log_weight.max())
    value = log_weight.max() + np.log(weight.mean())
    error = weight.std() / weight.mean() / np.sqrt(len(weight))
    weight /= weight.sum()
    mean = weight @ x
    sd = np.sqrt(weight @ (x - mean) ** 2)
    smc = nd.infer.SMC(model).run(jax.random.key(0))
    assert smc.plan.sampler.twist == nd.twists.Tempered(nd.twists.MixtureMatched(), 0.5)
    assert abs(smc.log_evidence - value) < 4 * np.hypot(smc.log_evidence_error, error)
    draws = np.asarray(smc.get_samples()["x"], np.float64)
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.15)
    np.testing.assert_allclose(draws.std(0) / sd, 1.0, atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["MixtureMatched", "Linearized"])
def test_a_twist_of_the_components_that_a_network_is_about(chosen):
    """A linear observation of a learned prior, whose reweighted draws know nothing of components."""
    prior, x = exponentials() if chosen == "Linearized" else (many_clusters(), draws_of_many_clusters())

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0] + 0.5 * x[1], 0.3), obs=1.0)

    weight = np.exp(-0.5 * ((x[:, 0] + 0.5 * x[:, 1] - 1.0) / 0.3) ** 2) / (0.3 * np.sqrt(2 * np.pi))
    error = weight.std() / weight.mean() / np.sqrt(len(weight))
    share = weight / weight.sum()
    mean = share @ x
    sd = np.sqrt(share @ (x - mean) ** 2)
    smc = nd.infer.SMC(model, num_islands=16, progress_bar=False).run(jax.random.key(3))
    assert f"Tempered({chosen}, power=0.5), chosen by rule" in str(smc.plan)
    assert abs(smc.log_evidence - np.log(weight.mean())) < 4 * np.hypot(smc.log_evidence_error, error)
    assert smc.log_evidence_error < 0.05
    draws = np.asarray(smc.get_samples()["x"], np.float64)
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.1)
    np.testing.assert_allclose(draws.std(0) / sd, 1.0, atol=0.1)
