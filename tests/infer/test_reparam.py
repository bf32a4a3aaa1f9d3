import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

import numpyro_diffusion as nd

LOC, SCALE = 0.5, 1.2


def gaussian_prior(num_steps=12, **options):
    process = nd.ReverseProcess(
        nd.GaussianDiffusion(nd.schedules.log_snr(num_steps), 0.2, 1.5), nd.denoisers.Gaussian(LOC, SCALE), (2,)
    )
    return nd.DiffusionPrior(process, **options)


def bits_prior():
    process = nd.ReverseProcess(
        nd.BinomialDiffusion(nd.schedules.erasing(5)), nd.denoisers.Enumerated(jnp.eye(3, dtype=int)), (3,)
    )
    return nd.DiffusionPrior(process)


def reparameterised(model):
    return numpyro.handlers.reparam(model, config={"x": nd.infer.DiffusionReparam()})


@pytest.mark.parametrize("num_steps", [None, 5])
def test_noise_makes_draws_of_the_prior(num_steps):
    prior = gaussian_prior(sampler=nd.samplers.Ancestral(num_steps))
    assert prior.noise_shape == ((num_steps or 12) + 1, 2)
    noise = jax.random.normal(jax.random.key(0), (40_000, *prior.noise_shape))
    x = np.asarray(jax.jit(prior.from_noise)(noise))
    error = SCALE / np.sqrt(x.size)
    assert abs(x.mean() - LOC) < 4 * error + 2e-3  # 2e-3: the noise law at T is missed by so much
    assert abs(x.std() - SCALE) < 4 * error / np.sqrt(2) + 2e-3


def test_the_chain_from_noise_is_the_chain_of_kernels():
    prior = gaussian_prior(num_steps=3)
    noise = np.asarray(jax.random.normal(jax.random.key(1), prior.noise_shape))
    x = 0.2 + 1.5 * noise[0]
    for z, t in zip(noise[1:], (3, 2, 1), strict=True):
        kernel = prior.process.kernel(jnp.asarray(x), t)
        x = np.asarray(kernel.mean) + np.sqrt(np.asarray(kernel.variance)) * z
    np.testing.assert_allclose(prior.from_noise(noise), x, rtol=1e-5)


def test_gradient_through_the_chain():
    prior = gaussian_prior(num_steps=4)
    noise = jax.random.normal(jax.random.key(2), prior.noise_shape)
    with jax.enable_x64(True):
        prior = gaussian_prior(num_steps=4)
        noise = jnp.asarray(np.asarray(noise), dtype=jnp.float64)
        gradient = jax.grad(lambda z: prior.from_noise(z)[0])(noise)
        for index in ((0, 0), (2, 0), (4, 0), (3, 1)):
            step = jnp.zeros_like(noise).at[index].set(1e-5)
            slope = (prior.from_noise(noise + step)[0] - prior.from_noise(noise - step)[0]) / 2e-5
            np.testing.assert_allclose(gradient[index], slope, atol=1e-8)


@pytest.mark.slow
def test_nuts_is_exact_with_a_plate_and_another_unknown():
    prior = gaussian_prior()
    y = jnp.asarray([[2.0, -1.0], [0.0, 0.5], [1.0, 1.0]])

    def model(y):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x + shift, 1.0).to_event(1), obs=y)

    mcmc = MCMC(NUTS(reparameterised(model)), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), y)
    draws = mcmc.get_samples()
    assert draws["x"].shape == (4000, 3, 2)
    assert draws["x_noise"].shape == (4000, 3, *prior.noise_shape)
    # Exact: x_i ~ N(LOC, SCALE²), shift ~ N(0, 1), y_i ~ N(x_i + shift, 1), jointly Gaussian over (x, shift).
    design = np.hstack([np.eye(6), np.ones((6, 1))])
    prior_precision = np.diag([1 / SCALE**2] * 6 + [1.0])
    covariance = np.linalg.inv(prior_precision + design.T @ design)
    mean = covariance @ (prior_precision @ np.array([LOC] * 6 + [0.0]) + design.T @ np.asarray(y).ravel())
    stacked = np.hstack([np.asarray(draws["x"]).reshape(-1, 6), np.asarray(draws["shift"])[:, None]])
    sizes = np.array([numpyro.diagnostics.effective_sample_size(stacked[None, :, i]) for i in range(7)])
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(stacked.mean(0) - mean) < 4 * sd / np.sqrt(sizes) + 3e-3).all()
    assert (np.abs(stacked.std(0) / sd - 1) < 4 / np.sqrt(2 * sizes) + 1e-2).all()


@pytest.mark.slow
def test_nuts_on_the_noises_crosses_between_modes():
    """Two modes thirteen standard deviations apart: one chain visits both as often as the posterior says."""
    mixture = nd.denoisers.GaussianMixture(jnp.array([[-1.0], [1.0]]), jnp.array([0.15, 0.15]), jnp.array([0.3, 0.7]))
    prior = nd.DiffusionPrior(nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(40)), mixture, (1,)))
    y = -0.5

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.5).to_event(1), obs=jnp.array([y]))

    mcmc = MCMC(NUTS(reparameterised(model)), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    right = np.asarray(mcmc.get_samples()["x"])[:, 0] > 0
    # The chain's own law, by importance: draws of `sample`, which never sees the noises, weighted by the likelihood.
    x = np.asarray(prior.sample(jax.random.key(1), (200_000,)))[:, 0]
    weight = np.exp(-0.5 * ((y - x) / 1.5) ** 2)
    truth = np.sum(weight * (x > 0)) / np.sum(weight)
    size = numpyro.diagnostics.effective_sample_size(right[None].astype(float))
    assert size > 100
    assert abs(right.mean() - truth) < 4 * np.sqrt(truth * (1 - truth) / size) + 5e-3


def test_predictive_and_event_dimensions():
    def model():
        numpyro.sample("x", gaussian_prior().expand((3,)).to_event(1))

    draws = Predictive(reparameterised(model), num_samples=5)(jax.random.key(0))
    assert draws["x"].shape == (5, 3, 2)
    trace = numpyro.handlers.trace(numpyro.handlers.seed(reparameterised(model), 0)).get_trace()
    assert trace["x"]["type"] == "deterministic"
    assert trace["x_noise"]["fn"].event_shape == (3, 13, 2)


@pytest.mark.parametrize("event", [False, True])
def test_the_factor_of_a_posterior_stays(event):
    """Noises and log r, in a plate or as one event."""
    posterior = gaussian_prior(2) * nd.factors.Gaussian(jnp.array([1.0, -1.0]), 0.5)

    def model():
        if event:
            return numpyro.sample("x", posterior.expand((3,)).to_event(1))
        with numpyro.plate("n", 3):
            return numpyro.sample("x", posterior)

    noise = jax.random.normal(jax.random.key(1), (3, 3, 2))
    total, trace = log_density(reparameterised(model), (), {}, {"x_noise": noise})
    x = posterior.prior.from_noise(noise)
    np.testing.assert_array_equal(trace["x"]["value"], x)
    expected = dist.Normal(0.0, 1.0).log_prob(noise).sum() + posterior.log_r(x).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_what_cannot_be_reparameterised_is_said():
    def observed():
        numpyro.sample("x", gaussian_prior(), obs=jnp.zeros(2))

    def other():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    def bits():
        numpyro.sample("x", bits_prior())

    def known():
        numpyro.sample("x", gaussian_prior(2) * nd.factors.Delta(jnp.zeros(2), jnp.array([True, False])))

    for model, message in (
        (known, "x: expected a factor without known coordinates for DiffusionReparam, got Delta"),
        (observed, "x: expected a latent site for DiffusionReparam, got an observed one"),
        (other, "x: expected a DiffusionPrior for DiffusionReparam, got Normal"),
        (bits, "process: expected a GaussianDiffusion, got BinomialDiffusion"),
    ):
        with numpyro.handlers.seed(rng_seed=0), pytest.raises(ValueError, match=message):
            reparameterised(model)()
    with pytest.raises(ValueError, match=r"noise: expected a shape that ends in .* \(13, 2\), got \(3, 2\)"):
        gaussian_prior().from_noise(jnp.zeros((3, 2)))


def test_noise_of_priors_that_were_made_by_vmap():
    """Every array has the batch's axis then, the schedule's too; noise makes the draw that each makes by itself."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(4, -9.0, 6.0))
    one = lambda loc: nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(loc, 1.0), 2))
    locs = jnp.arange(3.0)
    many = jax.vmap(one)(locs)
    assert many.batch_shape == (3,) and many.noise_shape == (5, 2)
    noise = jax.random.normal(jax.random.key(0), (3, 5, 2))
    each = [one(loc).from_noise(z) for loc, z in zip(locs, noise, strict=True)]
    np.testing.assert_allclose(many.from_noise(noise), each, rtol=1e-5)
