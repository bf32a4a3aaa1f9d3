"""Laws of every distribution inside NumPyro: handlers, prediction, variational inference and HMC."""

import functools
import os
import subprocess
import sys

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide, log_likelihood
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.util import initialize_model, log_density

import numpyro_diffusion as nd

KEY = jax.random.key(11)


def _observed(prior, y=None, sigma=1.0):
    """A latent draw of the distribution, seen through noise."""
    x = numpyro.sample("x", prior)
    return numpyro.sample("y", dist.Normal(jnp.asarray(x, float), sigma).to_event(x.ndim), obs=y)


def _nuts(model, warmup, draws, **kwargs):
    return MCMC(
        NUTS(model, init_strategy=init_to_sample),
        num_warmup=warmup,
        num_samples=draws,
        progress_bar=False,
        **kwargs,
    )


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("forward-batch", "posterior-mixture")),
        "prior-bits-network",
    ],
    indirect=True,
)
def test_handlers(case):
    """`seed`, `trace`, `condition` and `substitute` see an ordinary site, whose densities add up."""
    made = case.made
    model = functools.partial(_observed, made.expand((4, *case.batch)).to_event(1 + len(case.batch)))
    trace = handlers.trace(handlers.seed(model, KEY)).get_trace()
    assert trace["x"]["value"].shape == case.values.shape
    assert trace["x"]["fn"].log_prob(trace["x"]["value"]).shape == ()
    for handler in (handlers.condition, handlers.substitute):
        site = handlers.trace(handlers.seed(handler(model, {"x": case.values}), KEY)).get_trace()["x"]
        np.testing.assert_array_equal(site["value"], case.values)
        assert site["is_observed"] is (handler is handlers.condition)
    y = jnp.zeros(case.values.shape)
    total, _ = log_density(model, (y,), {}, {"x": case.values})
    likelihood = dist.Normal(jnp.asarray(case.values, float), 1.0).log_prob(y).sum()
    np.testing.assert_allclose(total, np.sum(made.log_prob(case.values)) + likelihood, rtol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        "prior-network",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("forward-batch", "trajectory-enumerated", "posterior-mixture")
        ),
    ],
    indirect=True,
)
def test_predictive(case):
    """Draws from the prior, one by one or in parallel, and predictions and likelihoods from given draws."""
    shape = (4, *case.batch, *case.event)
    drawn = [Predictive(_observed, num_samples=4, parallel=parallel)(KEY, case.made)["x"] for parallel in (False, True)]
    assert drawn[0].shape == shape
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)
    assert np.all(case.made.support(drawn[0]))
    posterior = {"x": case.values}
    predicted = Predictive(_observed, posterior, parallel=True)(KEY, case.made)["y"]
    assert predicted.shape == shape
    out = log_likelihood(_observed, posterior, case.made, predicted[0])["y"]
    expected = jax.scipy.stats.norm.logpdf(predicted[0], case.values).reshape(4, -1).sum(1)
    np.testing.assert_allclose(out, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        "forward-gaussian",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("prior-network", "prior-mixture")),
    ],
    indirect=True,
)
def test_initialize_model(case):
    """NumPyro finds where to start, with a finite potential and gradient."""
    y = jnp.zeros(case.event)
    ready = initialize_model(KEY, _observed, model_args=(case.made, y), init_strategy=init_to_sample)
    assert ready.param_info.z["x"].shape == case.event
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ready.param_info))


@pytest.mark.slow
def test_nuts_on_a_trajectory(rows):
    """A whole chain may be the latent variable of HMC, as an argument of the model, its data seen."""
    made, y = rows("trajectory-network").made, jnp.array([1.0, -0.5])

    def model(made, y):
        path = numpyro.sample("path", made)
        numpyro.sample("y", dist.Normal(path[0], 0.5).to_event(1), obs=y)

    mcmc = _nuts(model, 20, 20, num_chains=2, chain_method="vectorized")
    mcmc.run(KEY, made, y)
    assert mcmc.get_samples(group_by_chain=True)["path"].shape == (2, 20, 9, 2)
    assert all(np.isfinite(value).all() for value in mcmc.get_samples().values())


@pytest.mark.slow
def test_nuts_with_plates_and_a_second_run(rows, traces):
    """Rows of a plate and their noise together, converted by ArviZ; a warm run traces no network."""
    prior, y = rows("prior-network").made, jnp.array([[0.5, -0.2], [1.0, 0.1], [-1.2, 0.3]])

    def model(y):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_warmup=10, num_samples=10, progress_bar=False)
    mcmc.run(KEY, y)
    draws = mcmc.get_samples()
    assert draws["x"].shape == (10, 3, 2)
    assert all(np.isfinite(value).all() for value in draws.values())
    assert np.std(draws["x"], axis=0).min() > 0
    data = az.from_numpyro(mcmc, log_likelihood=True)
    assert data["posterior"]["x"].shape == (1, 10, 3, 2)
    assert np.isfinite(data["log_likelihood"]["y"].values).all()
    before, mcmc.post_warmup_state = traces[0], mcmc.last_state
    mcmc.run(KEY, y)
    assert traces[0] == before


PARALLEL = """if True:
    import warnings; warnings.simplefilter("error", UserWarning)
    import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, numpyro_diffusion as nd
    from numpyro.infer import MCMC, NUTS
    assert jax.local_device_count() == 2
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2))
    def model(prior, y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)
    for args in (True, False):
        mcmc = MCMC(NUTS(model if args else lambda y: model(prior, y)), num_warmup=200, num_samples=400,
                    num_chains=2, chain_method="parallel", progress_bar=False)
        y = jnp.array([2.0, -1.0])
        mcmc.run(jax.random.key(0), *((prior, y) if args else (y,)))
        x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
        assert x.shape == (2, 400, 2), x.shape
        assert np.abs(x.mean((0, 1)) - [1.0, -0.5]).max() < 0.15, x.mean((0, 1))
        assert (x[0] != x[1]).any()
    print("ran")
"""


@pytest.mark.slow
def test_nuts_with_parallel_chains():
    """Chains on two devices, the prior an argument of the model or closed over; in a process of its own."""
    flags = os.environ.get("XLA_FLAGS", "")
    settings = {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2".strip(),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # as in tests/conftest.py
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", PARALLEL],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.stdout.strip() == "ran", run.stderr[-3000:]


@pytest.mark.slow
def test_bits_in_models(rows):
    """NUTS refuses latent bits by NumPyro's own rule; observed bits and predictions work."""
    prior = rows("prior-bits-network").made
    with pytest.raises(RuntimeError, match="discrete sites with enumerate support"):
        _nuts(_observed, 2, 2).run(KEY, prior, jnp.zeros(3))
    assert set(np.unique(Predictive(_observed, num_samples=4)(KEY, prior)["x"])) <= {0, 1}
    bits = rows("prior-bits-network").values

    def model(bits):
        gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 4):
            numpyro.sample("x", rows("prior-bits-network").build(gain), obs=bits)

    guide = autoguide.AutoDelta(model, init_loc_fn=numpyro.infer.init_to_value(values={"gain": 0.5}))
    svi = SVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
    losses = svi.run(KEY, 30, bits, progress_bar=False).losses
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "guide",
    [
        "AutoNormal",
        pytest.param("AutoDelta", marks=pytest.mark.slow),
        pytest.param("AutoMultivariateNormal", marks=pytest.mark.slow),
    ],
)
def test_svi_with_automatic_guides(rows, guide):
    """Automatic guides find the posterior of a Gaussian prior: mean 1, standard deviation √½."""
    process = nd.ReverseProcess(rows("prior-gaussian").made.process.diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
    prior = nd.DiffusionPrior(process)
    made = getattr(autoguide, guide)(_observed)
    svi = SVI(_observed, made, numpyro.optim.Adam(0.05), Trace_ELBO())
    result = svi.run(KEY, 600, prior, jnp.array([2.0, 2.0]), progress_bar=False)
    draws = made.sample_posterior(KEY, result.params, prior, jnp.array([2.0, 2.0]), sample_shape=(500,))["x"]
    np.testing.assert_allclose(np.mean(draws, 0), 1.0, atol=0.2)
    if guide != "AutoDelta":
        np.testing.assert_allclose(np.std(draws, 0), np.sqrt(0.5), atol=0.15)


class ScoreOnly(dist.Distribution):
    """A standard normal known only by its score: the log density is the constant 0, its gradient −x."""

    support = dist.constraints.real

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, sample_shape)

    def log_prob(self, value, intermediates=None):
        return _score_only(value)


@jax.custom_jvp
def _score_only(value):
    return jnp.zeros_like(value)


@_score_only.defjvp
def _score_only_jvp(primals, tangents):
    return jnp.zeros_like(primals[0]), -primals[0] * tangents[0]


def _one_posterior(prior, y=2.0, draws=2500):
    mcmc = _nuts(_observed, 500, draws, num_chains=4, chain_method="vectorized")
    mcmc.run(KEY, prior, jnp.asarray(y))
    return np.asarray(mcmc.get_samples(group_by_chain=True)["x"])


@pytest.mark.slow
def test_a_score_is_not_enough():
    """Conjugate case, posterior N(1, ½): right with a true log density, silently wrong with the score alone.

    HMC accepts by the value of the log density: without it the prior is left out of the acceptance step.
    """
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8))
    draws = _one_posterior(nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), ())))
    size = numpyro.diagnostics.effective_sample_size(draws)
    assert draws.std() / np.sqrt(size) < 0.015
    assert abs(draws.mean() - 1.0) < 0.05
    assert abs(draws.std() - np.sqrt(0.5)) < 0.05
    assert _one_posterior(ScoreOnly()).mean() > 1.5


@pytest.mark.slow
def test_mixture_posterior_by_quadrature():
    """NUTS on K draws from the density it is given; its posterior is the true one but for K's gap."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(64, detail=0.4), scale=1.2)
    mixture = nd.denoisers.GaussianMixture([-1.0, 1.2], [0.5, 0.4], [0.4, 0.6])
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, mixture, ()), nd.KBound(16))
    grid, y = jnp.linspace(-5, 5, 801), 0.3

    def moments(log_prior):
        weight = np.asarray(jax.nn.softmax(log_prior + dist.Normal(grid, 1.0).log_prob(y)))
        mean = np.sum(weight * grid)
        return mean, np.sqrt(np.sum(weight * (grid - mean) ** 2))

    bound, exact = moments(prior.log_prob(grid)), moments(mixture.data().log_prob(grid))
    np.testing.assert_allclose(bound, exact, atol=0.08)
    draws = _one_posterior(prior, y, 700)
    error = draws.std() / np.sqrt(numpyro.diagnostics.effective_sample_size(draws))
    assert error < 0.1
    assert abs(draws.mean() - bound[0]) < 4 * error
    assert abs(draws.std() - bound[1]) < 4 * error
