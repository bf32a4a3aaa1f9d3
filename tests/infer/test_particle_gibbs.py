"""Particle Gibbs as a NumPyro kernel: alone, and as a block beside NUTS, against exact posteriors."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import HMC, MCMC, NUTS, Gibbs
from scipy.stats import halfnorm, norm

import numpyro_diffusion as nd
from numpyro_diffusion.checkpoints import CheckpointError
from numpyro_diffusion.infer import ParticleGibbs

LOC, SCALE, NOISE = 0.5, 1.2, 0.7
Y = np.array([2.0, -0.5])


def prior(size=2, num_steps=3):
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9.0, 6.0), 0.2, 1.5)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(LOC, SCALE), size))


PRIOR = prior()
POSTERIOR_MEAN = LOC + SCALE**2 / (SCALE**2 + NOISE**2) * (Y - LOC)
POSTERIOR_SD = SCALE * NOISE / np.hypot(SCALE, NOISE)


def model(y):
    x = numpyro.sample("x", PRIOR)
    numpyro.deterministic("total", x.sum())
    numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)


def make(num_samples=200, **options):
    kernel = ParticleGibbs(model, num_particles=4)
    return MCMC(kernel, num_warmup=20, num_samples=num_samples, progress_bar=False, **options)


def assert_means(draws, mean, sd, slack=0.0):
    """Means over chains and steps, with errors from the effective sample size; shape (chains, steps, …)."""
    size = effective_sample_size(draws)
    assert (np.abs(draws.mean((0, 1)) - mean) < 4.5 * sd / np.sqrt(size) + slack).all()


@pytest.fixture(scope="module")
def vectorized():
    """Two chains at once, which several tests look at."""
    mcmc = make(num_chains=2, chain_method="vectorized")
    mcmc.run(jax.random.key(0), Y, extra_fields=("changed", "effective_size", "path"))
    return mcmc


def test_chains_have_the_posterior(vectorized):
    draws = vectorized.get_samples(group_by_chain=True)["x"]
    assert draws.shape == (2, 200, 2)
    assert_means(np.asarray(draws, np.float64), POSTERIOR_MEAN, POSTERIOR_SD, 3e-3)
    assert (abs(np.asarray(draws).std((0, 1)) / POSTERIOR_SD - 1) < 0.25).all()
    assert (np.asarray(draws[0]) != np.asarray(draws[1])).any(axis=1).all()


def test_deterministic_sites_come_along(vectorized):
    draws = vectorized.get_samples()
    assert set(draws) == {"x", "total"}
    np.testing.assert_allclose(draws["total"], draws["x"].sum(-1), rtol=1e-5)


def test_extra_fields_say_how_it_went(vectorized):
    extra = vectorized.get_extra_fields(group_by_chain=True)
    assert extra["path"].shape == (2, 200, 4, 2)
    np.testing.assert_array_equal(extra["path"][:, :, 0], vectorized.get_samples(group_by_chain=True)["x"])
    assert ((np.asarray(extra["changed"]) >= 0) & (np.asarray(extra["changed"]) <= 1)).all()
    assert np.asarray(extra["changed"]).mean() > 0.4
    assert ((np.asarray(extra["effective_size"]) > 0.999) & (np.asarray(extra["effective_size"]) < 4.001)).all()
    assert "new states" in vectorized.sampler.get_diagnostics_str(vectorized.last_state)


def test_arviz_reads_it(vectorized):
    """By its own converter and by ours."""
    draws = np.asarray(vectorized.get_samples(group_by_chain=True)["x"])
    for data in (az.from_numpyro(vectorized, log_likelihood=False), nd.to_arviz(vectorized)):
        np.testing.assert_array_equal(data["posterior"]["x"].values, draws)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values, norm.logpdf(Y, draws, NOISE).sum(-1), rtol=1e-4)
    assert data["sample_stats"]["changed"].shape == (2, 200)


@pytest.mark.slow
def test_running_on_is_one_longer_run(tmp_path):
    """Also from a file, with a new kernel in a new MCMC, as in a new program: to the bit."""
    whole, parts = make(60), make(30)
    whole.run(jax.random.key(1), Y)
    parts.run(jax.random.key(1), Y)
    first = np.asarray(parts.get_samples()["x"])
    nd.infer.save_state(tmp_path / "state", parts.last_state)
    parts.post_warmup_state = parts.last_state
    parts.run(parts.post_warmup_state.rng_key, Y)
    again = MCMC(ParticleGibbs(model, None, num_particles=4), num_warmup=20, num_samples=30, progress_bar=False)
    again.post_warmup_state = nd.infer.load_state(tmp_path / "state")
    again.run(again.post_warmup_state.rng_key, Y)
    np.testing.assert_array_equal(again.get_samples()["x"], parts.get_samples()["x"])
    together = np.concatenate([first, parts.get_samples()["x"]])
    np.testing.assert_allclose(together, whole.get_samples()["x"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_sequential_chains_and_parallel_keys_agree():
    """A chain depends on its key alone."""
    one = make(20, num_chains=2, chain_method="sequential")
    two = make(20, num_chains=2, chain_method="vectorized")
    for mcmc in (one, two):
        mcmc.run(jax.random.key(2), Y)
    np.testing.assert_allclose(
        one.get_samples(group_by_chain=True)["x"], two.get_samples(group_by_chain=True)["x"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_two_draws_of_one_prior_and_an_unknown_shift():
    """A sum of a plate's elements, which are then one state, beside HMC for another site."""
    spread = 2 * SCALE**2 + NOISE**2

    def plated(y):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("sources", 2):
            x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x.sum(0) + shift, NOISE).to_event(1), obs=y)

    kernel = Gibbs([(ParticleGibbs(plated, num_particles=8), ["x"]), (HMC(plated), None)])
    mcmc = MCMC(kernel, num_warmup=60, num_samples=300, num_chains=2, chain_method=jax.vmap, progress_bar=False)
    mcmc.run(jax.random.key(5), Y)
    draws = {name: np.asarray(value, np.float64) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    assert draws["x"].shape == (2, 300, 2, 2)
    # The two elements of y share the shift: its posterior is that of their mean.
    residual = Y - 2 * LOC
    gain = 1 / (1 + spread / 2)
    assert_means(draws["shift"], gain * residual.mean(), np.sqrt(1 - gain), 3e-3)
    mean = LOC + SCALE**2 / spread * (residual - gain * residual.mean())
    variance = SCALE**2 - SCALE**4 / spread + (SCALE**2 / spread) ** 2 * (1 - gain)
    assert_means(draws["x"], np.stack([mean, mean]), np.sqrt(variance), 3e-3)


@pytest.mark.slow
def test_plates_and_masks():
    """One chain for each of the batch; where the mask hides the observation, the prior is left."""
    ys, seen = np.array([[2.0, -0.5], [0.0, 1.0], [np.e, -1.5]]), np.array([True, True, False])

    def plated(ys):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR)
            with numpyro.handlers.mask(mask=jnp.asarray(seen)):
                numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=ys)

    mcmc = MCMC(ParticleGibbs(plated, num_particles=4), num_warmup=50, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(3), ys, extra_fields=("path", "changed"))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64)
    assert draws.shape == (1, 1000, 3, 2)
    assert mcmc.get_extra_fields()["path"].shape == (1000, 3, 4, 2)
    assert mcmc.get_extra_fields()["changed"].shape == (1000, 3)
    mean = np.where(seen[:, None], LOC + SCALE**2 / (SCALE**2 + NOISE**2) * (ys - LOC), LOC)
    sd = np.where(seen[:, None], POSTERIOR_SD, SCALE)
    assert_means(draws, mean, sd, 5e-3)
    assert_means((draws - mean) ** 2 / sd**2, 1.0, np.sqrt(2), 5e-3)


@pytest.mark.slow
def test_bits_beside_nothing_else():
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(4))
    bits = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(np.eye(3, dtype=int)), 3))

    def noisy():
        x = numpyro.sample("x", bits)
        numpyro.sample("y", dist.Bernoulli(0.9 * x + 0.1 * (1 - x)).to_event(1), obs=np.array([1, 0, 0]))

    mcmc = MCMC(ParticleGibbs(noisy, num_particles=3), num_warmup=50, num_samples=800, progress_bar=False)
    mcmc.run(jax.random.key(4))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64)
    assert set(np.unique(draws)) == {0.0, 1.0}
    x = np.asarray(bits.sample(jax.random.key(5), (200_000,)))
    likelihood = np.where(x == [1, 0, 0], 0.9, 0.1).prod(1)
    truth = np.average(x, axis=0, weights=likelihood)
    assert_means(draws, truth, np.sqrt(truth * (1 - truth)), 5e-3)


SIZE = 6
SEEN = np.random.default_rng(6).normal(1.2, 1.5, SIZE)
MANY = prior(SIZE)


def with_unknowns(y):
    """An unknown shift and an unknown noise beside x."""
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    x = numpyro.sample("x", MANY)
    numpyro.deterministic("seen", x + shift)
    numpyro.sample("y", dist.Normal(x + shift, noise).to_event(1), obs=y)


def exact_unknowns():
    """Mean and sd of shift, noise and the mean of x, by quadrature: given both, x is Gaussian and integrates out."""
    shift, noise = np.meshgrid(np.linspace(-4, 4, 401), np.linspace(1e-3, 5, 500), indexing="ij")
    spread = np.sqrt(SCALE**2 + noise**2)
    log_p = norm.logpdf(shift) + halfnorm.logpdf(noise)
    log_p += norm.logpdf(SEEN[:, None, None], LOC + shift, spread).sum(0)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    x = (LOC + SCALE**2 / spread**2 * (SEEN[:, None, None] - LOC - shift)).mean(0)
    within = SCALE**2 * noise**2 / spread**2 / SIZE
    out = []
    for value, extra in ((shift, 0.0), (noise, 0.0), (x, within)):
        mean = (p * value).sum()
        out.append((mean, np.sqrt((p * ((value - mean) ** 2 + extra)).sum())))
    return out


@pytest.mark.slow
def test_beside_nuts_it_has_the_joint_posterior():
    kernel = Gibbs([(ParticleGibbs(with_unknowns, num_particles=4), ["x"]), (NUTS(with_unknowns), None)])
    mcmc = MCMC(kernel, num_warmup=200, num_samples=600, num_chains=2, chain_method=jax.vmap, progress_bar=False)
    mcmc.run(jax.random.key(7), SEEN)
    draws = {name: np.asarray(value, np.float64) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    assert set(draws) == {"x", "shift", "noise", "seen"}
    np.testing.assert_allclose(draws["seen"], draws["x"] + draws["shift"][..., None], rtol=1e-4, atol=1e-4)
    for values, (mean, sd) in zip((draws["shift"], draws["noise"], draws["x"].mean(-1)), exact_unknowns(), strict=True):
        assert_means(values, mean, sd, 5e-3)
        size = effective_sample_size((values - mean) ** 2)
        assert abs(values.std() / sd - 1) < 4.5 / np.sqrt(size) + 1e-2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_particles: expected a whole number of at least 2, got 1"):
        ParticleGibbs(model, num_particles=1)
    mcmc = MCMC(ParticleGibbs(with_unknowns), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match="model: expected a value for the other latent site 'shift'"):
        mcmc.run(jax.random.key(0), SEEN)


def test_a_sampler_or_the_keywords_that_make_one():
    sampler = nd.samplers.ParticleGibbs(7, nd.twists.Flat(), threshold=0.25)
    kernel = ParticleGibbs(model, sampler=sampler)
    assert kernel.sampler is sampler and kernel.site is None
    short = ParticleGibbs(model, num_particles=7, twist=nd.twists.Flat(), threshold=0.25).sampler
    assert (short.num_particles, short.twist, short.threshold) == (7, nd.twists.Flat(), 0.25)
    assert ParticleGibbs(model).sampler.num_particles == 16
    with pytest.raises(ValueError, match=r"sampler: expected a sampler or .* got both: \['num_particles'\]"):
        ParticleGibbs(model, num_particles=3, sampler=sampler)
    with pytest.raises(TypeError, match="sampler: expected a numpyro_diffusion.samplers.ParticleGibbs, got TwistedSMC"):
        ParticleGibbs(model, sampler=nd.samplers.TwistedSMC())


def test_the_kernel_of_another_model_keeps_its_settings():
    kernel = ParticleGibbs(model, "x", num_particles=7, threshold=0.25, chunk=3)
    wrapped = kernel.wrap_model(lambda inner: with_unknowns)
    assert wrapped.model is with_unknowns and kernel.model is model
    assert wrapped.sampler is kernel.sampler and wrapped.site == "x" and wrapped.sample_field == "z"


def test_states_in_files(vectorized, tmp_path):
    """Of several chains, with every field; other objects and files are refused."""
    path = tmp_path / "state"
    nd.infer.save_state(path, vectorized.last_state)
    back = nd.infer.load_state(path)
    assert jax.tree.structure(back) == jax.tree.structure(vectorized.last_state)
    assert back.rng_key.dtype == vectorized.last_state.rng_key.dtype
    data = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(vectorized.last_state), strict=True):
        np.testing.assert_array_equal(data(left), data(right))
    with pytest.raises(TypeError, match="state: expected a ParticleGibbsState, such as mcmc.last_state, got MCMC"):
        nd.infer.save_state(path, vectorized)
    PRIOR.save(path)
    with pytest.raises(CheckpointError, match="state: expected a ParticleGibbsState, got a file that holds something"):
        nd.infer.load_state(path)
