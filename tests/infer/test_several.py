"""Sites of different priors that meet in one statement are one state: against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import numpyro_diffusion as nd

ONE = nd.denoisers.GaussianMixture([[-2.0], [2.0]], [0.3, 0.3], [0.28, 0.72])
OTHER = nd.denoisers.GaussianMixture([[[-2.5]], [[1.5]]], [0.4, 0.3], [0.5, 0.5])
Y = -0.3


def prior(denoiser, num_steps, shape=1, loc=0.0, scale=1.0, transform=None):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9, 7), loc, scale)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, denoiser, shape), transform=transform)


def laws(num_steps):
    """Of different shapes, in diffusions of different units."""
    return prior(ONE, num_steps), prior(OTHER, num_steps, (1, 1), 0.3, 1.5)


def summed(one, other):
    x_1, x_2 = numpyro.sample("x_1", one), numpyro.sample("x_2", other)
    numpyro.sample("y", dist.Normal(x_1 + x_2[0], 0.3).to_event(1), obs=jnp.array([Y]))


def exact():
    """Log evidence, share of x_1 above 0 and the sites' means, by quadrature."""
    grid = np.linspace(-6, 6, 1201)
    one = np.log(norm.pdf(grid[:, None], [-2.0, 2.0], 0.3) @ [0.28, 0.72])
    other = np.log(norm.pdf(grid[:, None], [-2.5, 1.5], [0.4, 0.3]) @ [0.5, 0.5])
    joint = one[:, None] + other + norm.logpdf(Y, grid[:, None] + grid, 0.3)
    share = np.exp(joint - logsumexp(joint))
    log_z = logsumexp(joint) + 2 * np.log(grid[1] - grid[0])
    return log_z, share[grid > 0].sum(), share.sum(1) @ grid, share.sum(0) @ grid


@pytest.mark.slow
def test_two_laws_summed_by_smc():
    log_z, share, *means = exact()
    assert abs(share - 0.7) < 0.02
    smc = nd.infer.SMC(summed, num_islands=8).run(jax.random.key(0), *laws(100))
    assert smc.log_evidence_error < 0.02
    assert abs(smc.log_evidence - log_z) < 3 * smc.log_evidence_error + 1e-3
    x = smc.get_samples()
    assert {name: value.shape[1:] for name, value in x.items()} == {"x_1": (1,), "x_2": (1, 1)}
    assert abs((x["x_1"] > 0).mean() - share) < 0.03
    for name, mean in zip(("x_1", "x_2"), means, strict=True):
        assert abs(x[name].mean() - mean) < 0.1
    posterior = nd.to_arviz(smc).posterior
    assert posterior["x_2"].shape == (8, 512, 1, 1)


@pytest.mark.slow
def test_a_second_run_compiles_nothing():
    """Arrays among the arguments may have other values."""
    seen, (one, other) = [], (prior(nd.denoisers.Gaussian(loc, 1.0), 3) for loc in (-1.0, 1.0))

    def model(y):
        seen.append(isinstance(y, jax.core.Tracer))
        total = numpyro.sample("x_1", one) + numpyro.sample("x_2", other)
        numpyro.sample("y", dist.Normal(total, 1.0).to_event(1), obs=y)

    smc = nd.infer.SMC(model, num_particles=16, num_islands=2, twist=nd.twists.Flat())
    smc.run(jax.random.key(0), jnp.ones(1))
    assert any(seen)
    seen.clear()
    smc.run(jax.random.key(1), jnp.zeros(1))
    assert seen and not any(seen)


@pytest.mark.slow
def test_two_laws_summed_by_particle_gibbs():
    """The two explanations change places; R-hat of two such sites one at a time is above 3."""
    _, share, *_ = exact()
    mcmc = MCMC(nd.infer.ParticleGibbs(summed), num_warmup=20, num_samples=800, progress_bar=False)
    mcmc.run(jax.random.key(1), *laws(50))
    positive = np.asarray(mcmc.get_samples()["x_1"] > 0, dtype=float)[:, 0]
    effective = float(numpyro.diagnostics.effective_sample_size(positive[None]))
    assert effective > 250
    assert abs(positive.mean() - share) < 0.03 + 2 * np.sqrt(share * (1 - share) / effective)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_plates_and_transforms_with_closed_forms(inside):
    """x_1 ~ N(1, 4) in a plate of three, and x_2 ~ N((0, 1), 1), in it or outside; exact for Gaussian data."""
    one = prior(nd.denoisers.Gaussian(0.0, 1.0), 8, transform=dist.transforms.AffineTransform(1.0, 2.0))
    other = prior(nd.denoisers.Gaussian(jnp.array([0.0, 1.0]), 1.0), 8, 2)
    y = np.array([0.5, -1.0, 2.0])

    def model():
        x_2 = None if inside else numpyro.sample("x_2", other)
        with numpyro.plate("n", 3):
            x_1 = numpyro.sample("x_1", one)
            x_2 = numpyro.sample("x_2", other) if inside else x_2
            numpyro.sample("y", dist.Normal(x_1[..., 0] + x_2.sum(-1), 0.3), obs=y)

    smc = nd.infer.SMC(model, num_particles=64, num_islands=4).run(jax.random.key(0))
    shared = 2 * (np.eye(3) if inside else np.ones((3, 3)))
    log_z = multivariate_normal(2 * np.ones(3), shared + 4.09 * np.eye(3)).logpdf(y)
    assert abs(smc.log_evidence - log_z) < 3 * smc.log_evidence_error + 0.01
    x = smc.get_samples()
    assert x["x_1"].shape == (256, 3, 1)
    assert x["x_2"].shape == ((256, 3, 2) if inside else (256, 2))
    assert smc.log_evidences.shape == (4,)
    assert smc.particles.log_evidence.shape == ((4, 3) if inside else (4,))


def test_what_cannot_be_one_state_is_refused_by_name():
    one = prior(ONE, 4)

    def of(law, **kwargs):
        def model():
            x_1 = numpyro.sample("x_1", one)
            x_2 = numpyro.sample("x_2", law(x_1))
            numpyro.sample("y", dist.Normal(x_1 + x_2, 0.3).to_event(1), obs=jnp.array([Y]))

        return nd.infer.SMC(model, **kwargs)

    for law, said in (
        (lambda x: prior(ONE, 5), "priors of one schedule"),
        (lambda x: prior(nd.denoisers.Gaussian(x, 1.0), 4), "'x_2' that depends on none of"),
        (lambda x: one * nd.factors.Gaussian(0.0, 1.0), "to be a draw of a DiffusionPrior, got one times"),
    ):
        with pytest.raises(ValueError, match=said):
            of(law).run(jax.random.key(0))

    def tied():
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        x_1 = numpyro.sample("x_1", prior(nd.denoisers.Gaussian(mean, 1.0), 4))
        x_2 = numpyro.sample("x_2", one)
        numpyro.sample("y", dist.Normal(x_1 + x_2, 0.3).to_event(1), obs=jnp.array([Y]))

    blocks = [(nd.infer.ParticleGibbs(tied), ["x_1", "x_2"]), (NUTS(tied), None)]
    for sampler, said in (
        (numpyro.infer.Gibbs, "'x_1' that depends on no other"),
        (nd.infer.Gibbs, "numpyro.infer.Gibbs"),
    ):
        with pytest.raises(ValueError, match=said):
            MCMC(sampler(blocks), num_warmup=1, num_samples=1, progress_bar=False).run(jax.random.key(0))
