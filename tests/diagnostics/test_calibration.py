import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics, plots


def model():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1))


class Conjugate:
    """The exact posterior of `model`, or one whose spread is wrong by `factor`."""

    def __init__(self, model, factor=1.0):
        self.factor = factor

    def run(self, key, **kwargs):
        y = kwargs[diagnostics.OBSERVED_KWARG]["y"]
        self.draws = y / 2 + self.factor * jnp.sqrt(0.5) * jax.random.normal(key, (99, 2))

    def get_samples(self):
        return {"x": self.draws}


def calibrate(inference, **options):
    return diagnostics.calibrate(
        jax.random.key(0), model, inference, observed="y", site="x", num_replicates=150, progress_bar=False, **options
    )


def test_an_exact_inference_has_uniform_ranks():
    result = calibrate(Conjugate)
    assert result.ranks["x"].shape == (150, 2)
    assert result.worst() > 0.01
    assert np.abs(result.coverage(0.9)["x"] - 0.9).max() < 4 * result.coverage_error(0.9)
    assert np.abs(result.z_scores()["x"]).max() < 4


def test_a_wrong_spread_is_found():
    narrow = calibrate(lambda model: Conjugate(model, 0.5))
    assert narrow.worst() < 1e-4
    assert narrow.coverage(0.9)["x"].max() < 0.8


@pytest.mark.slow
def test_an_mcmc_runs_many_replicates_in_one_program():
    traces = []

    def counted():
        traces.append(1)
        model()

    def inference(model):
        return MCMC(NUTS(model), num_warmup=200, num_samples=300)

    result = diagnostics.calibrate(
        jax.random.key(0), counted, inference, observed="y", site="x", num_replicates=63, num_draws=49, batch_size=16,
        progress_bar=False,
    )  # fmt: skip
    before = len(traces)
    assert result.ranks["x"].shape == (63, 2)
    assert result.worst() > 0.01
    diagnostics.calibrate(
        jax.random.key(0), counted, inference, observed="y", site="x", num_replicates=16, num_draws=49, batch_size=16,
        progress_bar=False,
    )  # fmt: skip
    assert len(traces) - before == before  # as often for one batch as for four


def test_ranks_are_drawn():
    axes = plots.ranks(calibrate(Conjugate))
    assert [panel.get_title() for panel in axes] == ["x"]
    plt.close(axes[0].figure)


def test_quantities_replace_the_sites():
    result = calibrate(Conjugate, quantities=lambda values: {"sum": values["x"].sum()})
    assert result.ranks["sum"].shape == (150,)


def test_ties_are_broken_at_random():
    draws = {"b": jnp.zeros((9, 1000), int)}
    ranks = diagnostics.calibration._rank(jax.random.key(0), {"b": jnp.zeros(1000, int)}, draws)["b"]
    assert set(np.unique(ranks)) == set(range(10))


def test_bad_input_is_said():
    with pytest.raises(ValueError, match=r"site, observed: expected sites of the model, \['x', 'y'\], got \['z'\]"):
        diagnostics.calibrate(jax.random.key(0), model, Conjugate, observed="y", site="z", progress_bar=False)
    with pytest.raises(ValueError, match="num_draws: expected at most the 99 draws"):
        calibrate(Conjugate, num_draws=100)


def test_information_and_entropy_of_a_gaussian():
    """I-MMSE in closed form: ½ Σ log(1 + SNR s²/c²), and ½ log 2πe s² for the entropy."""
    deviations, scale = np.array([0.3, 2.0]), 1.5
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(30, -10, 8), 0.5, scale)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.2, deviations), (2,))
    draws = 0.2 + deviations * jax.random.normal(jax.random.key(0), (1500, 2))
    result = diagnostics.mutual_information(jax.random.key(1), process, draws, num_times=80)
    expected = 0.5 * np.log1p(np.exp(result.log_snr[:, None]) * (deviations / scale) ** 2).sum(1)
    assert (result.t[0], result.t[-1]) == (30, 1)
    assert (np.abs(result.information - expected) < 4.5 * result.standard_error + 3e-3).all()
    entropy = 0.5 * np.log(2 * np.pi * np.e * deviations**2).sum()
    assert abs(result.entropy - entropy) < 4.5 * result.entropy_error + 3e-3
    assert result.standard_error[-1] < 0.1
    ax = plots.mutual_information(result, label="here")
    assert ax.get_xlabel().startswith("log-SNR")
    plt.close(ax.figure)
    for data, message in ((1, "data: expected a whole number of at least 2"), (draws[0], "data: expected shape")):
        with pytest.raises(ValueError, match=message):
            diagnostics.mutual_information(jax.random.key(1), process, data)
    coins = nd.ReverseProcess(nd.BinomialDiffusion(nd.schedules.erasing(4)), nd.denoisers.Enumerated([[0, 1]]), 2)
    with pytest.raises(ValueError, match="process: expected a GaussianDiffusion, got BinomialDiffusion"):
        diagnostics.mutual_information(jax.random.key(1), coins, 10)
