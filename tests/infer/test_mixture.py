"""A site whose law is one of several priors: the labels' probabilities, the evidence and the draws, by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp

import numpyro_diffusion as nd

ONE = nd.denoisers.GaussianMixture([[-2.0], [1.5]], [0.6, 0.4], [0.4, 0.6])
OTHER = nd.denoisers.GaussianMixture([[-1.0], [2.5]], [0.5, 0.8], [0.5, 0.5])
SHARES = np.array([0.3, 0.7])
Y = np.array([[0.5], [-1.0]])


def mixture(*num_steps):
    pairs = zip((ONE, OTHER), num_steps, strict=True)
    diffusion = lambda steps: nd.GaussianDiffusion(nd.schedules.log_snr(steps, -9, 7))
    priors = [nd.DiffusionPrior(nd.ReverseProcess(diffusion(steps), law, 1)) for law, steps in pairs]
    return dist.MixtureGeneral(dist.Categorical(probs=jnp.asarray(SHARES)), priors)


def plated(law):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", law)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=Y)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [(160, 160), (160, 150)])
def test_labels_evidence_and_draws_against_quadrature(num_steps):
    """Chains of one length share a program, others do not. 160 steps leave about .003 of the labels' shares."""
    smc = nd.infer.SMC(plated, num_particles=256, num_islands=6).run(jax.random.key(0), mixture(*num_steps))
    grid = np.linspace(-12, 12, 12_001)
    prior = np.stack([np.asarray(law.data().log_prob(grid[:, None])) for law in (ONE, OTHER)])
    prior = prior + np.log(SHARES)[:, None]
    likelihood = np.asarray(dist.Normal(grid, 0.5).log_prob(Y))
    joint = prior + likelihood[:, None]  # element, label, grid
    log_z = logsumexp(joint, (1, 2))
    exact = np.exp(logsumexp(joint, 2) - log_z[:, None])
    off = np.abs(np.asarray(smc.labels.probabilities) - exact)
    assert off.max() < 0.02
    assert (off < 3 * np.asarray(smc.labels.errors) + 0.003).all(), off
    evidence = log_z.sum() + 2 * np.log(grid[1] - grid[0])
    assert abs(smc.log_evidence - evidence) < 3 * smc.log_evidence_error + 0.01
    x = smc.get_samples()["x"]
    assert x.shape == (6 * 2 * 256, 2, 1)
    weight = np.exp(joint - log_z[:, None, None]).sum(1)
    mean, sd = weight @ grid, np.sqrt(weight @ grid**2 - (weight @ grid) ** 2)
    np.testing.assert_allclose(x[..., 0].mean(0), mean, atol=5 * sd.max() / np.sqrt(len(x) / 2))


def test_a_mixture_is_refused_where_it_has_no_meaning():
    """Elements with labels of their own that are used together; samplers that know one prior; no mixture at all."""
    law = mixture(4, 4)

    def together():
        x = numpyro.sample("x", law.expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x.sum(0), 0.5).to_event(1), obs=Y[0])

    with pytest.raises(ValueError, match="label of its own"):
        nd.infer.SMC(together, num_particles=4, num_islands=1, twist=nd.twists.Flat()).run(jax.random.key(0))
    with pytest.raises(ValueError, match="got a mixture of several"):
        nd.infer.TemperedSMC(plated).run(jax.random.key(0), law)
    with pytest.raises(ValueError, match="expected a DiffusionPrior"):
        numpyro.infer.MCMC(nd.infer.ParticleGibbs(plated), num_warmup=1, num_samples=1).run(jax.random.key(0), law)
    smc = nd.infer.SMC(plated, num_particles=4, num_islands=1)
    with pytest.raises(ValueError, match="finished run"):
        _ = smc.labels
