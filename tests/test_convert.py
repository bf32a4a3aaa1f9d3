import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

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
