"""Priors that were learned, together, mixed, scaled and of classes, under counts: against reweighted prior draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

pytestmark = pytest.mark.slow
COUNT = 40_000
KEY = jax.random.key(3)


def learned(seed, data, diffusion, shape=(2,), head="velocity"):
    """A small network, trained briefly: what is wrong with the prior is no concern here."""
    network = nd.networks.MLP(jax.random.key(seed), shape, num_steps=diffusion.num_steps, width=32, depth=1)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Network(network, head), data.shape[1:])
    return nd.DiffusionPrior(nd.fit(KEY, process, data, max_steps=400, batch_size=128, progress_bar=False).process)


def draws(prior, seed):
    many = jax.jit(jax.vmap(prior.sample))
    return np.asarray(many(jax.random.split(jax.random.key(10 * seed), COUNT)))


def reweighted(log_weight):
    """Log evidence, its standard error, and the draws' shares."""
    weight = np.exp(np.asarray(log_weight, np.float64))
    error = weight.std() / weight.mean() / np.sqrt(len(weight))
    return np.log(weight.mean()), error, weight / weight.sum()


def check_evidence(smc, log_weight):
    """Returns the draws' shares."""
    truth, error, share = reweighted(log_weight)
    assert error < 0.02 and smc.log_evidence_error < 0.1
    assert abs(smc.log_evidence - truth) < 3 * np.hypot(smc.log_evidence_error, error) + 0.01
    return share


@pytest.fixture(scope="module")
def two():
    """A banana and two modes, learned with one diffusion, and their draws."""
    rng = np.random.default_rng(0)
    u, diffusion = rng.normal(size=1500), nd.GaussianDiffusion(nd.schedules.log_snr(30))
    banana = np.stack([u, 0.5 * u**2 - 0.5 + 0.3 * rng.normal(size=1500)], 1)
    modes = 0.5 * rng.normal(size=(1500, 2)) + np.where(rng.random((1500, 1)) < 0.4, [-1.2, 0.3], [1.0, 0.3])
    priors = [learned(seed, data, diffusion) for seed, data in enumerate((banana, modes))]
    return priors, [draws(prior, seed + 1) for seed, prior in enumerate(priors)]


def test_two_sites_are_one_state(two):
    priors, (first, second) = two
    y = np.array([6, 1])

    def model():
        a, b = numpyro.sample("a", priors[0]), numpyro.sample("b", priors[1])
        numpyro.sample("y", dist.Poisson(jnp.exp(a + b)).to_event(1), obs=y)

    smc = nd.infer.SMC(model).run(KEY)
    share = check_evidence(smc, dist.Poisson(np.exp(first + second)).log_prob(y).sum(1))
    for name, x in {"a": first, "b": second}.items():
        found = np.asarray(smc.get_samples()[name])
        mean = share @ x
        sd = np.sqrt(share @ (x - mean) ** 2)
        assert (abs(found.mean(0) - mean) < 0.1 * sd).all() and (abs(found.std(0) / sd - 1) < 0.1).all()


def test_a_mixture_of_them(two):
    priors, found = two

    def model():
        x = numpyro.sample("x", dist.MixtureGeneral(dist.Categorical(probs=jnp.array([0.4, 0.6])), priors))
        numpyro.sample("y", dist.Poisson(jnp.exp(x).sum()), obs=9)

    smc = nd.infer.SMC(model).run(KEY)
    log_weight = [dist.Poisson(np.exp(x).sum(1)).log_prob(9) for x in found]
    share = check_evidence(smc, np.concatenate([log_weight[0] + np.log(0.8), log_weight[1] + np.log(1.2)]))
    label = float(smc.labels.probabilities[0])
    assert abs(label - share[:COUNT].sum()) < 3 * float(smc.labels.errors[0]) + 0.01


def test_an_amplitude_by_gibbs(two):
    """Moved together with the noise, as the model shows that it should be."""
    priors, (_, x) = two
    y = np.array([7, 2])

    def model():
        gain = numpyro.sample("gain", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Poisson(3 * gain * jnp.exp(numpyro.sample("x", priors[1]))).to_event(1), obs=y)

    blocks = [(nd.infer.ParticleGibbs(model), ["x"]), (NUTS(model, max_tree_depth=5), None)]
    mcmc = MCMC(nd.infer.Gibbs(blocks), num_warmup=100, num_samples=300, progress_bar=False)
    mcmc.run(KEY)
    log_gain = 0.5 * np.random.default_rng(1).normal(size=COUNT)
    _, _, share = reweighted(dist.Poisson(3 * np.exp(log_gain[:, None] + x)).log_prob(y).sum(1))
    found = np.log(np.asarray(mcmc.get_samples()["gain"], np.float64))
    mean = share @ log_gain
    sd, size = np.sqrt(share @ (log_gain - mean) ** 2), effective_sample_size(found[None])
    assert size > 100
    assert abs(found.mean() - mean) < 3 * sd / np.sqrt(size) and abs(found.std() / sd - 1) < 3 / np.sqrt(size)


def test_classes_that_a_count_ties_together():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 1500)
    data = np.stack([first, np.where(rng.random(1500) < 0.7, first, rng.integers(0, 3, 1500))], 1)
    diffusion = nd.CategoricalDiffusion(nd.schedules.erasing(15), 3, "absorbing")
    prior = learned(0, data, diffusion, (2, 4), "logits")
    rate, x = np.array([0.5, 2.0, 5.0]), draws(prior, 1).astype(int)

    def model():
        numpyro.sample("y", dist.Poisson(jnp.asarray(rate)[numpyro.sample("x", prior)].sum()), obs=6)

    smc = nd.infer.SMC(model).run(KEY)
    share = check_evidence(smc, dist.Poisson(rate[x].sum(1)).log_prob(6))
    found = np.asarray(smc.get_samples()["x"]).astype(int)
    for value in range(3):
        assert (abs((found == value).mean(0) - share @ (x == value)) < 0.04).all()


def test_a_product_of_them():
    """Of one-dimensional priors, whose densities are histograms of draws; what their bounds lack counts, too."""
    rng, diffusion = np.random.default_rng(0), nd.GaussianDiffusion(nd.schedules.log_snr(60, -9, 7))
    modes = np.where(rng.random(2000) < 0.4, -1.5, 1.2) + 0.5 * rng.normal(size=2000)
    skewed = np.exp(0.6 * rng.normal(size=2000)) - 1
    priors = [learned(seed, data[:, None], diffusion, (1,)) for seed, data in enumerate((modes, skewed))]
    edges = np.linspace(-5, 8, 131)
    densities = [np.histogram(draws(prior, 1 + i), edges, density=True)[0] for i, prior in enumerate(priors)]
    x = (edges[1:] + edges[:-1]) / 2
    counts = nd.factors.Factor(lambda x: dist.Poisson(jnp.exp(x[0])).log_prob(3))
    found = (priors[0] * priors[1] * counts).with_(sampler=nd.samplers.TwistedSMC(512)).smc(KEY, 8)
    truth = densities[0] * densities[1] * np.exp(dist.Poisson(np.exp(x)).log_prob(3))
    evidence = np.asarray(found.log_evidence)
    assert abs(evidence.mean() - np.log(truth.sum() * (x[1] - x[0]))) < 0.1
    weight = np.exp(np.asarray(found.log_weight))
    mean = truth @ x / truth.sum()
    sd = np.sqrt(truth @ (x - mean) ** 2 / truth.sum())
    assert abs((weight * found.x[..., 0]).sum(1).mean() - mean) < 0.1 * sd
