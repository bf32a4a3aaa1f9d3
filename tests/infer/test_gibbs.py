"""Priors that depend on other unknowns, in Gibbs, by NUTS on noise, and by tempered SMC, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.distributions.transforms import AffineTransform, LowerCholeskyAffine
from numpyro.handlers import reparam
from numpyro.infer import HMC, MCMC, NUTS, DiscreteGibbs
from numpyro.infer.util import log_density
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer.handed import Handed, Handing, prior_parents, tied_by_data
from numpyro_diffusion.samplers import chain_of_noise, noise_of_chain

Y, NOISE = 3.0, 0.5
# mu ~ N(0, 1), x ~ N(mu, 1), y ~ N(x, NOISE²), by conjugacy.
SPREAD = 2 + NOISE**2
TRUTH = {"mu": (Y / SPREAD, np.sqrt(1 - 1 / SPREAD)), "x": (2 * Y / SPREAD, np.sqrt(2 - 4 / SPREAD))}
LOG_EVIDENCE = norm.logpdf(Y, 0.0, np.sqrt(SPREAD))


def diffusion(num_steps=3):
    return nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, -9.0, 6.0))


def prior(loc, scale=1.0, num_steps=3, shape=1, **options):
    """A cheap bound, so that what relies on it is found out."""
    process = nd.ReverseProcess(diffusion(num_steps), nd.denoisers.Gaussian(loc, scale), shape)
    return nd.DiffusionPrior(process, nd.KBound(1, 1, antithetic=False), **options)


def model():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", prior(mu))
    numpyro.deterministic("double", 2 * x)
    numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.array([Y]))


def run(kernel, num_samples, key=0):
    mcmc = MCMC(kernel, num_warmup=150, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(key))
    return {name: np.asarray(value, np.float64) for name, value in mcmc.get_samples(group_by_chain=True).items()}


def assert_moments(draws, mean, sd, slack=5e-3):
    """Mean and standard deviation, with errors from the effective sample size; shape (chains, steps)."""
    size = effective_sample_size(draws)
    assert size > 50 * draws.size / 1000, size
    assert abs(draws.mean() - mean) < 4 * sd / np.sqrt(size) + slack
    square = effective_sample_size((draws - mean) ** 2)
    assert abs(draws.std() / sd - 1) < 4 / np.sqrt(2 * square) + slack


@pytest.mark.slow
def test_a_mean_that_is_unknown():
    """The case in which a bound in place of the chain's density gives 2.24 for 1.33."""
    kernel = nd.infer.Gibbs([(nd.infer.ParticleGibbs(model, num_particles=4), ["x"]), (NUTS(model), None)])
    mcmc = MCMC(kernel, num_warmup=150, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    posterior = nd.to_arviz(mcmc).posterior  # by the model whose site is x, and not the one whose site is a chain
    draws = {name: np.asarray(posterior[name], np.float64) for name in posterior}
    assert draws["x"].shape == (1, 2000, 1)
    np.testing.assert_allclose(draws["double"], 2 * draws["x"], rtol=1e-5)
    assert_moments(draws["mu"], *TRUTH["mu"])
    assert_moments(draws["x"][..., 0], *TRUTH["x"])


@pytest.mark.slow
def test_unknown_scales_in_a_plate_of_transformed_and_strided_priors():
    """One scale for each element, and one shift for all, moved together with the noise; by quadrature."""
    ys, loc, steps = np.array([0.4, 2.5]), 0.5, nd.samplers.Ancestral(3)

    def plated():
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 2):
            scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
            one = lambda scale: prior(loc, num_steps=6, sampler=steps, transform=AffineTransform(shift, scale))
            x = numpyro.sample("x", jax.vmap(one)(scale))
            numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=ys[:, None])

    kernel = nd.infer.ParticleGibbs(plated, num_particles=4)
    draws = run(nd.infer.Gibbs([(kernel, ["x"]), (HMC(plated), None)], interweave="joint"), 1000)
    assert draws["x"].shape == (1, 1000, 2, 1) and draws["scale"].shape == (1, 1000, 2)
    shift, scale = np.meshgrid(np.linspace(-5, 5, 401), np.exp(np.linspace(-3, 3, 601)), indexing="ij")
    each = [
        norm.logpdf(np.log(scale), 0, 0.5) + norm.logpdf(y, shift + scale * loc, np.hypot(scale, NOISE)) for y in ys
    ]  # by log scale, in which the grid is even
    integral = [np.logaddexp.reduce(part, axis=1) for part in each]
    posterior = np.exp(norm.logpdf(shift[:, 0]) + sum(integral) - max(norm.logpdf(shift[:, 0]) + sum(integral)))
    posterior /= posterior.sum()
    mean = (posterior * shift[:, 0]).sum()
    assert_moments(draws["shift"], mean, np.sqrt((posterior * (shift[:, 0] - mean) ** 2).sum()), 1e-2)
    for i in range(2):
        share = posterior[:, None] * np.exp(each[i] - integral[i][:, None])
        mean = (share * np.log(scale)).sum()
        sd = np.sqrt((share * (np.log(scale) - mean) ** 2).sum())
        assert_moments(np.log(draws["scale"][..., i]), mean, sd, 1e-2)


@pytest.mark.slow
def test_bits_with_an_unknown_label():
    """A label that chooses the law of three bits, against draws of both chains."""
    made = nd.BinomialDiffusion(nd.schedules.erasing(4))
    laws = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    bits = lambda label: nd.DiffusionPrior(
        nd.ReverseProcess(made, nd.denoisers.Enumerated(np.eye(3, dtype=int), laws[label]), 3), nd.KBound(1, 1)
    )

    def noisy():
        label = numpyro.sample("label", dist.Bernoulli(0.4))
        x = numpyro.sample("x", bits(label))
        numpyro.sample("y", dist.Bernoulli(0.8 * x + 0.2 * (1 - x)).to_event(1), obs=np.array([0, 0, 1]))

    kernel = nd.infer.Gibbs([(nd.infer.ParticleGibbs(noisy, num_particles=4), ["x"]), (DiscreteGibbs(noisy), None)])
    draws = run(kernel, 3000)
    weights = []
    for label in (0, 1):
        x = np.asarray(bits(label).sample(jax.random.key(5), (100_000,)))
        weights.append((0.6, 0.4)[label] * np.where(x == [0, 0, 1], 0.8, 0.2).prod(1).mean())
    truth = weights[1] / sum(weights)
    assert_moments(draws["label"], truth, np.sqrt(truth * (1 - truth)), 1e-2)


@pytest.mark.slow
def test_other_exact_ways_agree():
    """NUTS on the noise and the mean together, and tempered SMC, with the evidence of the whole model."""
    whole = reparam(model, config={"x": nd.infer.DiffusionReparam()})
    draws = run(NUTS(whole), 2000)
    assert_moments(draws["mu"], *TRUTH["mu"])
    assert_moments(draws["x"][..., 0], *TRUTH["x"])
    smc = nd.infer.TemperedSMC(model, num_particles=512, num_islands=4, progress_bar=False).run(jax.random.key(1))
    assert abs(smc.log_evidence - LOG_EVIDENCE) < 4 * smc.log_evidence_error + 5e-3
    samples = smc.get_samples()
    for name, (mean, sd) in TRUTH.items():
        each = np.asarray(samples[name], np.float64).ravel()
        assert abs(each.mean() - mean) < 5 * sd * np.sqrt(2 / each.size)
        assert abs(each.std() / sd - 1) < 5 / np.sqrt(each.size)


def test_a_prior_that_depends_on_another_block_is_refused_without_chains():
    kernel = numpyro.infer.Gibbs([(nd.infer.ParticleGibbs(model, num_particles=2), ["x"]), (NUTS(model), None)])
    mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    expected = (
        r"model: expected a prior of 'x' that depends on no other latent site, got one of \['mu'\].*nd.infer.Gibbs"
    )
    with pytest.raises(ValueError, match=expected):
        mcmc.run(jax.random.key(0))


def test_joint_moves_need_a_gradient():
    def discrete():
        label = numpyro.sample("label", dist.Bernoulli(0.4))
        x = numpyro.sample("x", prior(1.0 * label))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.array([Y]))

    blocks = [(nd.infer.ParticleGibbs(discrete, num_particles=2), ["x"]), (DiscreteGibbs(discrete), None)]
    mcmc = MCMC(nd.infer.Gibbs(blocks, interweave="joint"), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match="interweave: expected a block of HMC or NUTS"):
        mcmc.run(jax.random.key(0))
    with pytest.raises(ValueError, match="interweave: expected one of 'auto', 'noise', 'joint', 'none', got 'both'"):
        nd.infer.Gibbs(blocks, interweave="both")


def test_parents_are_read_off_the_program():
    def several():
        a, b = numpyro.sample("a", dist.Normal(0.0, 1.0)), numpyro.sample("b", dist.HalfNormal(1.0))
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", prior(2 * a + 0 * c, transform=AffineTransform(0.0, jnp.exp(b))))
        numpyro.sample("y", dist.Normal(c * x.sum(), 1.0), obs=1.0)

    values = {name: jnp.asarray(0.5) for name in "abc"}
    assert prior_parents(several, "x", (), {}, values) == {"a", "b", "c"}  # what the program uses, if only times 0
    fixed = lambda: numpyro.sample("x", prior(0.0)) + numpyro.sample("a", dist.Normal(0.0, 1.0))
    assert prior_parents(fixed, "x", (), {}, {"a": jnp.zeros(())}) == frozenset()


def test_what_shares_the_location_of_data_with_x_is_read_off_the_program():
    def several(outcome):
        gain, shift = numpyro.sample("gain", dist.Normal(0.0, 1.0)), numpyro.sample("shift", dist.Normal(0.0, 1.0))
        scale, apart = numpyro.sample("scale", dist.HalfNormal(1.0)), numpyro.sample("apart", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", prior(0.0))
        numpyro.sample("y", outcome(gain * x[0] + shift, scale), obs=1)
        numpyro.sample("z", dist.Normal(apart, 1.0), obs=0.0)

    values = {name: jnp.asarray(0.5) for name in ("gain", "shift", "scale", "apart")} | {"x": jnp.ones(1)}
    tied = lambda outcome: tied_by_data(several, "x", (outcome,), {}, values)
    assert tied(dist.Normal) == {"gain", "shift"}
    assert tied(lambda loc, scale: dist.Poisson(jnp.exp(loc))) == {"gain", "shift"}
    # Neither has a mean: all that the law is made of counts.
    assert tied(dist.Cauchy) == {"gain", "shift", "scale"}
    assert tied(lambda loc, scale: dist.OrderedLogistic(loc, jnp.array([0.0, 1.0]))) == {"gain", "shift"}


@pytest.mark.slow
def test_an_amplitude_mixes():
    """y = a x + noise of 20 values with one unknown a, by quadrature: without joint moves a hundredth is effective."""
    y, points = 1.5 * np.random.default_rng(0).normal(size=20), np.linspace(0.01, 8, 4000)

    def amplified():
        a = numpyro.sample("a", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", prior(0.0, shape=20))
        numpyro.sample("y", dist.Normal(a * x, 0.1).to_event(1), obs=y)

    kernel = nd.infer.ParticleGibbs(amplified, num_particles=8)
    draws = run(nd.infer.Gibbs([(kernel, ["x"]), (HMC(amplified), None)]), 1000)
    log_p = norm.logpdf(np.log(points), 0, 0.5) - np.log(points)
    log_p += norm.logpdf(y, 0, np.hypot(points, 0.1)[:, None]).sum(1)
    share = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    mean = (share * points).sum()
    assert_moments(draws["a"], mean, np.sqrt((share * (points - mean) ** 2).sum()), 1e-2)


@pytest.mark.parametrize("num_steps", [None, 3])
def test_chains_and_their_noise_are_one_to_one(num_steps):
    """And the chain's density is the noise's, less the log of how much the map stretches."""
    with jax.enable_x64(True):
        process = nd.ReverseProcess(
            diffusion(5), nd.denoisers.GaussianMixture([[-1.0], [1.0]], [0.5, 0.3], [0.4, 0.6]), 1
        )
        trajectory = nd.ReverseTrajectory(process, num_steps)
        noise = jax.random.normal(jax.random.key(0), trajectory.event_shape)

        @jax.jit
        def there_and_back(noise):
            chain = chain_of_noise(process, noise, num_steps)
            stretch = jax.jacobian(lambda noise: chain_of_noise(process, noise, num_steps).ravel())(noise)
            end = nd.samplers.Ancestral(num_steps).from_noise(noise, process)
            return chain, end, noise_of_chain(process, chain, num_steps), stretch, trajectory.log_prob(chain)

        chain, end, back, stretch, log_prob = map(np.asarray, there_and_back(noise))
    np.testing.assert_allclose(back, noise, rtol=1e-9)
    np.testing.assert_allclose(chain[0], end, rtol=1e-9)
    log_det = np.linalg.slogdet(stretch.reshape(noise.size, -1))[1]
    np.testing.assert_allclose(log_prob, norm.logpdf(np.asarray(noise)).sum() - log_det, rtol=1e-9)


def test_the_model_of_chains_has_the_chains_density():
    """In a plate, beside its factor, as chain and as noise; the model itself sees x_0."""
    seen = []

    def plated():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", prior(mu) * nd.factors.Gaussian(jnp.ones(1), 0.7))
            seen.append(x)
            numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.zeros((2, 1)))

    mu, noise = jnp.asarray(0.3), jax.random.normal(jax.random.key(1), (2, 4, 1))
    process = prior(mu).process
    chain = jax.vmap(lambda noise: chain_of_noise(process, noise))(noise)
    rest = norm.logpdf(0.3) + norm.logpdf(0.0, chain[:, 0], NOISE).sum() + norm.logpdf(1.0, chain[:, 0], 0.7).sum()
    cases = (
        ({}, chain, nd.ReverseTrajectory(process).log_prob(chain).sum()),
        ({"free": frozenset({"x"})}, chain, 0.0),
        ({"noises": frozenset({"x"})}, noise, norm.logpdf(noise).sum()),
    )
    for options, value, own in cases:
        handed = Handed(plated, Handing({"x": None}, **options))
        total, _ = log_density(handed, (), {}, {"mu": mu, "x": value})
        np.testing.assert_allclose(seen[-1], chain[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(total, rest + own, rtol=1e-4)


@pytest.mark.slow
def test_a_learned_prior_under_counts_with_an_unknown_context():
    """Neither the denoiser is exact nor the likelihood Gaussian; the truth is draws of c and x, reweighted."""
    rng = np.random.default_rng(0)
    c = rng.standard_normal(800)
    data = np.stack([c + 0.5 * rng.standard_normal(800), 0.5 * c**2 + 0.3 * rng.standard_normal(800)], 1)
    features, told = nd.networks.ContextFeatures(()), nd.denoisers.Context(())
    network = nd.networks.MLP(jax.random.key(0), (2,), num_steps=12, width=32, context=features)
    denoiser = nd.denoisers.Network(network, "velocity", told=told)
    untrained = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(12, -8, 6)), denoiser, (2,))
    key, options = jax.random.key(0), {"max_steps": 300, "batch_size": 128, "validation": 0.0, "progress_bar": False}
    prior = nd.DiffusionPrior(nd.fit(key, untrained, data, context=c, **options).process)
    log_r = lambda x: dist.Poisson(jnp.exp(x[0] + x[1])).log_prob(4)

    def model():
        x = numpyro.sample("x", prior.given(numpyro.sample("c", dist.Normal(0.0, 1.0))))
        numpyro.factor("y", log_r(x))

    drawn = jax.random.normal(jax.random.key(9), (50_000,))
    one = lambda key, c: log_r(prior.given(c).sample(key))
    log_weight = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(8), 50_000), drawn)
    weight = np.asarray(jax.nn.softmax(log_weight), np.float64)
    mean = weight @ np.asarray(drawn)
    sd = np.sqrt(weight @ (np.asarray(drawn) - mean) ** 2)
    blocks = [(nd.infer.ParticleGibbs(model), ["x"]), (HMC(model, trajectory_length=1.0), ["c"])]
    mcmc = MCMC(nd.infer.Gibbs(blocks), num_warmup=200, num_samples=800, progress_bar=False)
    mcmc.run(jax.random.key(1))
    draws = np.asarray(mcmc.get_samples()["c"], np.float64)
    size = float(effective_sample_size(draws[None]))
    assert size > 40
    assert abs(draws.mean() - mean) < 4 * sd / np.sqrt(size)
    assert abs(draws.std() / sd - 1) < 4 / np.sqrt(2 * size)


@pytest.mark.slow
def test_known_cells_keep_their_values_under_a_transform_that_mixes_them():
    """As of a prior by `fit_prior`, beside an unknown slope: both blocks see the cells that are known."""
    root = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), nd.denoisers.Gaussian(0.0, 1.0), 2)
    prior = nd.DiffusionPrior(process, transform=LowerCholeskyAffine(jnp.zeros(2), root))
    cells, known = jnp.array([[0.7, 0.0], [0.0, -1.1]]), jnp.array([[True, False], [False, True]])

    def model():
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 2):
            x = numpyro.sample("x", jax.vmap(lambda x, known: prior * nd.factors.Delta(x, known))(cells, known))
            numpyro.sample("y", dist.Normal(slope * x.sum(-1), 0.5), obs=jnp.ones(2))

    blocks = [(nd.infer.ParticleGibbs(model, num_particles=4), ["x"]), (HMC(model), ["slope"])]
    mcmc = MCMC(nd.infer.Gibbs(blocks), num_warmup=10, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(0))
    found = mcmc.get_samples()
    np.testing.assert_array_equal(found["x"][:, known], np.broadcast_to(cells[known], (10, 2)))
    assert np.ptp(found["x"][:, ~known], axis=0).min() > 0 and np.ptp(found["slope"]) > 0


def test_the_name_of_one_site_stands_for_a_list_of_it():
    """And not for its letters."""
    kernel = nd.infer.Gibbs([(NUTS(model), "mu"), (nd.infer.ParticleGibbs(model, num_particles=2), None)])
    assert kernel._specs == (("mu",), None)
