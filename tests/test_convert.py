import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Predictive

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
    predicted = {"y": np.zeros((60, 2))}  # of islands that are mixed: one chain
    data = to_arviz(smc, dims={"x": ["element"], "y": ["element"]}, prior=draws, posterior_predictive=predicted)
    assert data["posterior"]["x"].dims == ("chain", "draw", "element")
    assert data["posterior"]["x"].shape == (3, 20, 2)
    stats = data["sample_stats"]
    assert stats["log_weight"].dims == ("chain", "particle") and stats["log_weight"].shape == (3, 20)
    assert stats["effective_size"].shape == (3, 7)
    np.testing.assert_allclose(stats["log_evidence"].values, smc.particles.log_evidence)
    x = data["posterior"]["x"].values
    expected = -0.5 * ((x - [1.0, -1.0]) ** 2).sum(-1) - np.log(2 * np.pi)
    np.testing.assert_allclose(data["log_likelihood"]["y"].values, expected, rtol=1e-4)
    assert data["prior"]["x"].shape == (1, 7, 2) and data["posterior_predictive"]["y"].shape == (1, 60, 2)
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "element")
    assert data["posterior"].attrs["inference_library"] == "numpyro_diffusion"
    data.to_netcdf(str(tmp_path / "smc.nc"))


def test_effective_sizes_are_drawn(smc):
    ax = nd.plots.effective_size(smc)
    assert len(ax.lines) == 4  # three islands and the number of particles
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["an island", "all particles"]
    plt.close(ax.figure)


def plates(y=None):
    with numpyro.plate("place", 3, dim=-2):
        height = numpyro.sample("height", dist.Normal(0.0, 1.0))
        with numpyro.plate("year", 4, dim=-1):
            pair = dist.Normal(height[..., None], 1.0).expand((3, 4, 2)).to_event(1)
            numpyro.sample("y", pair, obs=y, infer={"event_dims": ["side"]})
    numpyro.deterministic("mean", jnp.mean(height))


@pytest.fixture(scope="module")
def planned():
    """A run with plates, its extra fields, and draws of what it predicts."""
    fields = ("num_steps", "adapt_state.step_size", "accept_prob", "potential_energy")
    mcmc = MCMC(NUTS(plates), num_warmup=5, num_samples=6, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.zeros((3, 4, 2)), extra_fields=fields)
    prior = Predictive(plates, num_samples=7)(jax.random.key(1))
    return mcmc, prior, Predictive(plates, mcmc.get_samples())(jax.random.key(2))


def test_everything_is_as_in_the_conversion_of_numpyro(planned):
    """Groups, variables, dimensions, values and attributes; plates that start further to the left apart."""
    mcmc, prior, predicted = planned
    found = to_arviz(mcmc, prior=prior, posterior_predictive=predicted, coords={"side": ["l", "r"]})
    # ArviZ 1.x takes the first dimension of draws of the prior for chains.
    chained = prior if az.__version__.startswith("0.") else {name: value[None] for name, value in prior.items()}
    expected = az.from_numpyro(
        mcmc, prior=chained, posterior_predictive=predicted, log_likelihood=True, coords={"side": ["l", "r"]}
    )
    names = ("posterior", "sample_stats", "log_likelihood", "prior", "prior_predictive", "posterior_predictive")
    for name in (*names, "observed_data"):
        left, right = found[name], expected[name]
        own = {"reached_max_tree_depth"}  # ArviZ 0.x does not have it
        assert set(left.data_vars) - own == set(right.data_vars) - own, name
        for each in right.data_vars:
            np.testing.assert_allclose(left[each].values.squeeze(), right[each].values.squeeze(), rtol=1e-5)
            if each != "height" and name != "prior_predictive":  # of one plate of two, see below
                assert left[each].dims == right[each].dims, (name, each)
        kinds = {key for key in right.attrs if "library" in key or key in ("created_at", "arviz_version")}
        assert kinds <= set(left.attrs) and left.attrs["inference_library"] == "numpyro"
        assert left.attrs["inference_library_version"] == numpyro.__version__
    assert found["posterior"]["height"].dims == ("chain", "draw", "place", "height_dim_1")
    assert found["prior_predictive"]["y"].dims == ("chain", "draw", "place", "year", "side")
    assert {"tree_depth", "step_size", "lp", "n_steps", "acceptance_rate"} <= set(found["sample_stats"].data_vars)
    depth, steps = (np.asarray(found["sample_stats"][name]) for name in ("tree_depth", "n_steps"))
    assert (2 ** (depth - 1) <= steps).all() and (steps < 2**depth).all()


def test_predictions_keep_the_chains(planned):
    mcmc, _, predicted = planned
    value = np.asarray(to_arviz(mcmc, posterior_predictive=predicted)["posterior_predictive"]["y"])
    np.testing.assert_array_equal(value, np.asarray(predicted["y"]).reshape(2, 6, 3, 4, 2))
    grouped = {"y": value}
    again = to_arviz(mcmc, posterior_predictive=grouped, log_likelihood=False)["posterior_predictive"]["y"]
    np.testing.assert_array_equal(np.asarray(again), value)
    with pytest.warns(UserWarning, match="posterior_predictive: expected 2 chains of 6 draws of 'y', got shape"):
        few = to_arviz(mcmc, posterior_predictive={"y": value[0, :5]}, log_likelihood=False)
    assert few["posterior_predictive"]["y"].shape == (1, 5, 3, 4, 2)


def test_other_results_are_refused():
    with pytest.raises(TypeError, match=r"result: expected a numpyro.infer.MCMC, a SMC or a TemperedSMC, got dict"):
        to_arviz({})
