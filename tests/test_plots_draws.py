"""Pictures of draws, predictive checks and chains: what they show is what they were given."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion import plots

RNG = np.random.default_rng(0)
DRAWS = RNG.normal(size=(4, 50, 3, 5))


@pytest.fixture(autouse=True)
def _close_figures():
    plt.close("all")
    yield
    plt.close("all")


def run(shape):
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)))
        numpyro.sample("scale", dist.HalfNormal(1.0))

    mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=20, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0))
    return mcmc


class Finished:
    """What the plot asks of a run."""

    log_evidences, log_evidence, log_evidence_error = np.array([-3.0, -2.0, -2.5]), -2.4, 0.2


def test_corner_has_histograms_and_pairs_of_all_sets():
    data, prior = RNG.normal(size=(700, 3)), RNG.normal(2.0, 0.5, (90, 3))
    data[0] = 1e6  # one far point hides nothing
    axes = plots.corner({"data": data, "prior": prior}, names=["a", "b", "c"], truth=[0.0, 1.0, 2.0])
    assert axes.shape == (3, 3)
    assert [axes[2, i].get_xlabel() for i in range(3)] == ["a", "b", "c"] and axes[1, 0].get_ylabel() == "b"
    assert not axes[0, 1].axison and axes[1, 1].axison
    first, second = axes[2, 0].lines[:2]
    assert len(first.get_xdata()) == 500  # of 700
    np.testing.assert_array_equal(second.get_xydata(), prior[:, [0, 2]])
    assert axes[2, 0].get_xlim()[1] < 10 and axes[2, 0].get_xlim() == axes[0, 0].get_xlim()
    assert [text.get_text() for text in axes[0, -1].get_legend().get_texts()] == ["data", "prior"]
    axes[0, 0].figure.canvas.draw()
    assert plots.corner({"x": data[:, :1]}).shape == (1, 1)


HIDDEN = np.ma.masked_greater(RNG.normal(size=(20, 2)), 0.5)
REFUSED = {
    "corner": (lambda: plots.corner({"data": HIDDEN}), r"sets\['data'\]: expected an array without hidden values"),
    "corner of an array": (lambda: plots.corner(HIDDEN), r"sets: expected arrays by name, as \{'data': x\}, got"),
    "truth": (
        lambda: plots.corner({"x": np.zeros((3, 2))}, truth=HIDDEN[HIDDEN.mask.any(1)][0]),
        "truth: expected an array without hidden values",
    ),
    "bands": (lambda: plots.bands(HIDDEN), "draws: expected an array without hidden values"),
    "predictive": (
        lambda: plots.predictive({"prior": HIDDEN}, np.zeros(2)),
        r"replicates\['prior'\]: expected an array without hidden values",
    ),
    "samples": (lambda: plots.samples(HIDDEN[None]), "images: expected an array without hidden values"),
    "log_prob": (lambda: plots.log_prob({"held out": HIDDEN}), r"values\['held out'\]: expected an array without"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hidden_values_are_not_drawn(name):
    call, message = REFUSED[name]
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


def test_bands_are_quantiles():
    draws, seen = RNG.normal(size=(200, 12)), np.full(12, np.nan)
    seen[3] = 1.0
    ax = plots.bands(draws, levels=(0.8,), observed=seen, truth=np.zeros(12), x=np.arange(12) * 2.0)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(draws, 0))
    band = ax.collections[0].get_paths()[0].vertices
    at_6 = np.sort(band[band[:, 0] == 6.0, 1])
    np.testing.assert_allclose(at_6, np.quantile(draws[:, 3], [0.1, 0.9]))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["80% of the draws", "median", "truth", "observed"]


def test_axes_of_bands_are_named():
    ax = plots.bands(RNG.normal(size=(20, 4)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("place in the series", "value")
    assert plots.bands(run((4,)), site="x").get_ylabel() == "x"


def bars(axes):
    """The bars of colours beside the panels, by label."""
    return [ax.get_ylabel() for ax in axes[0].figure.axes if ax not in list(axes)]


def test_colours_have_bars_with_units():
    draws, truth = RNG.normal(size=(9, 3, 5)), RNG.normal(size=(3, 5))
    assert bars(plots.posterior(truth, truth, draws)) == ["", ""]
    named = plots.posterior(truth, truth, draws, ranks=True, num_draws=0, units="counts")
    assert bars(named) == ["counts", "counts", ""]  # of the mean, of the standard deviation, of ranks
    given = plt.subplots(1, 6)[1]
    assert bars(plots.posterior(truth, truth, draws, given, num_draws=2)) == [""]  # rows may share one
    given = plt.subplots(1, 6)[1]
    assert bars(plots.posterior(truth, truth, draws, given, num_draws=2, units="counts")) == ["counts", "counts"]
    assert bars([plots.samples(draws)]) == []
    assert bars([plots.samples(draws, units="counts")]) == ["counts"]
    assert bars([plots.samples(RNG.uniform(size=(2, 3, 5, 3)), units="counts")]) == []


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_lines_and_bands_are_named_in_a_legend():
    calibration = nd.diagnostics.Calibration({"x": np.arange(40) % 10, "y": np.arange(40) % 10}, 9)
    for show in ("histogram", "ecdf"):
        first, second = plots.ranks(calibration, show=show)
        assert legend(first) == ["99% of uniform ranks", "uniform"] and second.get_legend() is None
        assert first.get_ylabel()
    (top,) = {panel.get_ylim()[1] for panel in plots.ranks(calibration)}
    assert top > 4  # replicates in each bin
    found = nd.diagnostics.MutualInformation(*np.ones((4, 3)), 0.0, 0.1)
    assert plots.mutual_information(found).get_legend() is None
    assert legend(plots.mutual_information(found, label="digits")) == ["digits"]


def test_predictive_shows_distribution_functions_or_a_statistic():
    observed = RNG.normal(size=30)
    sets = {"prior": RNG.normal(0.0, 3.0, (80, 30)), "posterior": RNG.normal(size=(80, 30))}
    ax = plots.predictive(sets, observed)
    (line,) = ax.lines
    middle = np.searchsorted(line.get_xdata(), 0.0)
    assert abs(line.get_ydata()[middle] - (observed <= line.get_xdata()[middle]).mean()) < 1e-12
    assert len(ax.collections) == 2
    ax = plots.predictive(sets, observed, statistic=np.max)
    below = (sets["prior"].max(1) < observed.max()).mean()
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"prior: {below:.0%} below" in said and "observed" in said
    assert set(ax.lines[-1].get_xdata()) == {observed.max()}


def test_islands_and_log_densities():
    ax = plots.islands(Finished())
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), [-3.0, -2.0, -2.5])
    assert set(ax.lines[0].get_ydata()) == {-2.4} and len(ax.patches) == 1
    values = {"training": RNG.normal(-3.0, 1.0, 100), "held out": np.r_[RNG.normal(-4.0, 1.0, 50), -np.inf]}
    ax = plots.log_prob(values, levels={"Gaussian": -5.0})
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said[0].startswith(f"training: {values['training'].mean():.2f} ±") and "Gaussian: -5.00" in said


def test_maps_show_r_hat_and_effective_draws():
    axes = plots.maps(DRAWS)
    np.testing.assert_allclose(axes[0].images[0].get_array(), split_gelman_rubin(DRAWS))
    np.testing.assert_allclose(axes[1].images[0].get_array(), effective_sample_size(DRAWS))
    mcmc = run((3, 4))
    expected = split_gelman_rubin(np.asarray(mcmc.get_samples(group_by_chain=True)["x"]))
    for source in (mcmc, nd.to_arviz(mcmc)):
        np.testing.assert_allclose(plots.maps(source)[0].images[0].get_array(), expected, rtol=1e-5)


def test_ranks_as_differences_of_distribution_functions():
    found = nd.diagnostics.Calibration({"x": RNG.integers(0, 10, (60, 2))}, 9)
    (ax,) = plots.ranks(found, show="ecdf")
    assert len(ax.lines) == 3  # one an element, and 0
    share = (found.ranks["x"][:, 0] <= 4).mean() - 0.5
    np.testing.assert_allclose(ax.lines[0].get_ydata()[4], share)
    with pytest.raises(ValueError, match="show: expected one of 'histogram', 'ecdf', got 'bars'"):
        plots.ranks(found, show="bars")


def test_draws_are_taken_from_runs_and_containers():
    mcmc = run((3, 4))
    x = np.asarray(mcmc.get_samples()["x"])
    for source in (mcmc, nd.to_arviz(mcmc)):
        axes = plots.posterior(None, x[0], source, num_draws=1)
        np.testing.assert_allclose(axes[1].images[0].get_array(), x.mean(0), atol=1e-5)
    series = run((6,))
    np.testing.assert_allclose(
        plots.bands(nd.to_arviz(series)).lines[0].get_ydata(), np.median(series.get_samples()["x"], 0), atol=1e-6
    )


BAD = [
    (lambda: plots.corner({}), "sets: expected arrays of one shape"),
    (lambda: plots.corner({"a": np.ones((5, 2)), "b": np.ones((5, 3))}), "sets: expected arrays of one shape"),
    (lambda: plots.corner({"a": np.ones((5, 9))}), "sets: expected 1 to 8 elements, got 9"),
    (lambda: plots.corner({"a": np.ones((5, 2))}, names=["x"]), "names: expected 2, one an element, got 1"),
    (lambda: plots.bands(np.ones(5)), r"draws: expected shape \(n, length\)"),
    (lambda: plots.bands(np.ones((5, 2)), levels=[2]), r"levels: expected numbers in \(0, 1\)"),
    (lambda: plots.bands(np.ones((5, 2)), truth=np.ones(3)), r"truth: expected shape \(2,\)"),
    (lambda: plots.bands(run((6,)), site="y"), r"site: expected the name of one .* of \['scale', 'x'\], got 'y'"),
    (lambda: plots.bands(np.ones((5, 2)), site="y"), "site: expected None for an array"),
    (lambda: plots.predictive({}, np.ones(3)), "replicates: expected some data sets"),
    (lambda: plots.predictive({"a": np.ones((4, 2))}, np.ones(3)), r"replicates: expected shape \(n, 3,\) for 'a'"),
    (lambda: plots.maps(np.ones((4, 3, 5))), r"draws: expected shape \(chains, n, height, width\)"),
    (lambda: plots.log_prob({"a": [np.nan]}), "values: expected finite log densities"),
]


@pytest.mark.parametrize(("call", "said"), BAD)
def test_what_does_not_fit_is_named(call, said):
    with refused(said):
        call()
