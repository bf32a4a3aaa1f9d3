import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd
from numpyro_diffusion.convert import to_arviz


@pytest.fixture(scope="module")
def run():
    def model(y):
        noise = numpyro.sample("noise", dist.Normal(0.0, 1.0).expand((4,)).to_event(1))
        x = numpyro.deterministic("x", jnp.reshape(noise, (2, 2)))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(2), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=6, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.arange(4.0).reshape(2, 2))
    return mcmc


def test_groups_dimensions_and_values(run, tmp_path):
    data = to_arviz(run, dims={"x": ["row", "column"]}, coords={"row": ["a", "b"]}, exclude=["noise"])
    posterior = data["posterior"]
    assert list(posterior.data_vars) == ["x"]
    assert posterior["x"].dims == ("chain", "draw", "row", "column")
    np.testing.assert_array_equal(posterior["x"].values, run.get_samples(group_by_chain=True)["x"])
    assert list(posterior["x"].coords["row"].values) == ["a", "b"]
    np.testing.assert_array_equal(np.ravel(data["observed_data"]["y"].values), np.arange(4))
    assert "diverging" in data["sample_stats"]
    data.to_netcdf(str(tmp_path / "run.nc"))
    assert (tmp_path / "run.nc").stat().st_size > 0


def test_nothing_is_excluded_unless_asked(run):
    assert set(to_arviz(run)["posterior"].data_vars) == {"noise", "x"}


def test_an_unknown_site_is_said(run):
    with pytest.raises(ValueError, match=r"exclude: expected some of the sites \['noise', 'x'\], got \['nose'\]"):
        to_arviz(run, exclude=["nose"])


@pytest.fixture(scope="module")
def smc():
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(6, -8, 3))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), (2,)))

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    return nd.infer.SMC(model, num_particles=20, num_islands=3).run(jax.random.key(0), jnp.array([1.0, -1.0]))


def test_smc_runs(smc, tmp_path):
    draws = {"x": np.zeros((7, 2))}
    data = to_arviz(smc, dims={"x": ["element"]}, prior=draws, posterior_predictive={"y": np.zeros((5, 2))})
    assert data["posterior"]["x"].dims == ("chain", "draw", "element")
    assert data["posterior"]["x"].shape == (3, 20, 2)
    stats = data["sample_stats"]
    assert stats["log_weight"].dims == ("chain", "particle") and stats["log_weight"].shape == (3, 20)
    assert stats["effective_size"].shape == (3, 7)
    np.testing.assert_allclose(stats["log_evidence"].values, smc.particles.log_evidence)
    x = data["posterior"]["x"].values
    expected = -0.5 * ((x - [1.0, -1.0]) ** 2).sum(-1) - np.log(2 * np.pi)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values, expected, rtol=1e-4)
    assert data["prior"]["x"].shape == (1, 7, 2) and data["posterior_predictive"]["y"].shape == (1, 5, 2)
    data.to_netcdf(str(tmp_path / "smc.nc"))


def test_effective_sizes_are_drawn(smc):
    ax = nd.plots.effective_size(smc)
    assert len(ax.lines) == 4  # three islands and the number of particles
    plt.close(ax.figure)


def test_other_results_are_refused():
    with pytest.raises(TypeError, match=r"result: expected a numpyro.infer.MCMC, a SMC or a TemperedSMC, got dict"):
        to_arviz({})
