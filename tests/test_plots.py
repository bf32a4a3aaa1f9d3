import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion import denoisers, plots, schedules

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _close_figures():
    plt.close("all")  # those of other files' tests
    yield
    plt.close("all")


def fit_result(validation=True):
    history = {
        "step": [100, 200, 300],
        "loss": [3.0, 2.0, 1.5],
        "validation_step": [200, 300] if validation else [],
        "validation": [-1.8, -1.6] if validation else [],
        "validation_error": [0.1, 0.2] if validation else [],
    }
    return nd.FitResult(process=None, history=history, steps=300, stopped="finished")


def images(count=5, shape=(4, 6)):
    return np.random.default_rng(0).uniform(size=(count, *shape))


def plane(num_steps=6):
    diffusion = nd.GaussianDiffusion(schedules.log_snr(num_steps, -6, 4))
    return nd.ReverseProcess(diffusion, denoisers.Gaussian(jnp.array([1.0, -1.0]), jnp.array([0.5, 0.2])), (2,))


class Run:
    """What the picture asks of an SMC run."""

    def __init__(self, log_evidence, log_evidence_error):
        self.log_evidence, self.log_evidence_error = log_evidence, log_evidence_error


def comparison():
    runs = {"ring": Run(-4.0, 0.1), "blob": Run(-5.0, 0.2)}
    intervals = {"ring": (0.6, 0.8), "blob": (0.2, 0.4)}
    return nd.PriorComparison(runs, {"ring": 0.4, "blob": 0.6}, intervals, dict.fromkeys(runs, ()))


def surprise(value=-5.0):
    drawn = np.random.default_rng(0).normal(-3.0, 1.0, 99)
    return nd.diagnostics.Surprise(value, 0.1, drawn, np.full(99, 0.1))


SINGLE = [
    lambda ax: plots.history(fit_result(), ax),
    lambda ax: plots.prior_comparison(comparison(), ax),
    lambda ax: plots.prior_comparison(comparison(), ax, show="evidence"),
    lambda ax: plots.surprise(surprise(), ax),
    lambda ax: plots.schedule(schedules.linear(10), ax),
    lambda ax: plots.samples(images(), ax),
]


@pytest.mark.parametrize("draw", SINGLE)
def test_single_panels_draw_on_the_axes_they_are_given(draw):
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(left) is left
    assert left.has_data() and not right.has_data()
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("draw", SINGLE)
def test_single_panels_make_a_figure_of_their_own(draw):
    ax = draw(None)
    assert isinstance(ax, matplotlib.axes.Axes)
    assert ax.figure.get_layout_engine() is not None
    ax.figure.canvas.draw()


def test_history_shows_the_loss_and_minus_the_bound():
    ax = plots.history(fit_result())
    loss, bound = ax.lines[:2]
    np.testing.assert_allclose(loss.get_xydata(), [[100, 3], [200, 2], [300, 1.5]])
    np.testing.assert_allclose(bound.get_xydata(), [[200, 1.8], [300, 1.6]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training loss", "−K, held-out"]


def test_history_without_validation_or_entries():
    assert len(plots.history(fit_result(validation=False)).lines) == 1
    empty = fit_result()._replace(history={"step": [], "loss": [], "validation": []})
    with pytest.raises(ValueError, match="result: expected a history with at least one entry"):
        plots.history(empty)


def test_schedule_leaves_infinite_ends_out():
    schedule = schedules.erasing(10)  # infinite at t = 0 and at T
    (line,) = plots.schedule(schedule).lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 10))
    np.testing.assert_allclose(line.get_ydata(), schedule.table[1:10], rtol=1e-6)


def test_schedules_can_share_axes():
    ax = plots.schedule(schedules.linear(10), label="linear")
    plots.schedule(schedules.cosine(10), ax, label="cosine")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["linear", "cosine"]


def test_samples_tiles_the_images_on_one_scale():
    data = images(5, (14, 14))
    (drawn,) = plots.samples(data, columns=3).images
    grid = np.ma.filled(drawn.get_array(), np.nan)
    assert grid.shape == (2 * 14 + 1, 3 * 14 + 2)
    np.testing.assert_array_equal(grid[:14, :14], data[0])
    np.testing.assert_array_equal(grid[15:, 15:29], data[4])
    assert np.isnan(grid[14]).all() and np.isnan(grid[15:, 30:]).all()
    np.testing.assert_allclose(drawn.get_clim(), (data.min(), data.max()))


def test_samples_in_colour_and_with_limits():
    (drawn,) = plots.samples(images(4, (3, 3, 3))).images
    assert drawn.get_array().shape == (7, 7, 3)
    (drawn,) = plots.samples(images(), limits=(-1, 2)).images
    assert drawn.get_clim() == (-1, 2)


@pytest.mark.parametrize("shape", [(4, 6), (0, 4, 6), (2, 4, 6, 2), (1, 2, 4, 6, 3)])
def test_samples_rejects_other_shapes(shape):
    with pytest.raises(ValueError, match="images: expected shape"):
        plots.samples(np.zeros(shape))


def test_posterior_panels_carry_their_images():
    draws, known = images(9), np.zeros((4, 6), bool)
    known[:, :3] = True
    truth, observation = images(1)[0], np.ones((4, 6))
    axes = plots.posterior(truth, observation, draws, known=known, num_draws=3)
    assert axes.shape == (7,)
    shown = [ax.images[0].get_array() for ax in axes]
    np.testing.assert_array_equal(shown[0], truth)
    np.testing.assert_array_equal(shown[1].mask, ~known)
    np.testing.assert_allclose(shown[2], draws.mean(0))
    np.testing.assert_allclose(shown[3], draws.std(0, ddof=1))
    for image, index in zip(shown[4:], (0, 4, 8), strict=True):
        np.testing.assert_array_equal(image, draws[index])
    limits = {axes[i].images[0].get_clim() for i in (0, 1, 2, 4, 5, 6)}
    assert limits == {(truth.min(), truth.max())}
    axes[0].figure.canvas.draw()


def test_posterior_shows_quantiles_and_ranks():
    draws, truth = images(9), images(1)[0]
    axes = plots.posterior(truth, truth, draws, quantiles=(0.05, 0.5), ranks=True, num_draws=0)
    titles = ["truth", "observation", "posterior mean", "posterior sd", "5% quantile", "50% quantile"]
    assert [ax.get_title() for ax in axes] == [*titles, "rank of the truth"]
    np.testing.assert_allclose(axes[5].images[0].get_array(), np.median(draws, axis=0))
    # The truth is the first of the draws: half of it counts.
    np.testing.assert_allclose(axes[6].images[0].get_array(), ((draws[1:] < truth).sum(0) + 0.5) / 9)
    assert axes[6].images[0].get_clim() == (0, 1)


def test_posterior_hides_nan_in_a_colour_off_the_scale():
    observation = np.ones((4, 6))
    observation[0, 0] = np.nan
    drawn = plots.posterior(None, observation, images())[0].images[0]
    hidden, seen = drawn.cmap(drawn.norm(drawn.get_array()))[0, :2]
    assert np.ptp(seen[:3]) == 0 and np.ptp(hidden[:3]) > 0.1


def test_posterior_draws_on_the_axes_it_is_given():
    figure, axes = plt.subplots(1, 5)
    returned = plots.posterior(None, np.ones((4, 6)), images(), axes, num_draws=2)
    assert list(returned) == list(axes)
    assert plt.get_fignums() == [figure.number]


def test_posterior_names_what_does_not_fit():
    draws, image = images(), np.ones((4, 6))
    for match, call in [
        ("draws: expected shape", lambda: plots.posterior(image, image, image)),
        ("draws: expected shape", lambda: plots.posterior(image, image, draws[:1])),
        ("truth: expected shape", lambda: plots.posterior(image[:2], image, draws)),
        ("observation: expected shape", lambda: plots.posterior(image, image[:2], draws)),
        ("known: expected shape", lambda: plots.posterior(image, image, draws, known=np.ones(3))),
        ("ax: expected Axes of shape", lambda: plots.posterior(image, image, draws, plt.subplots(1, 3)[1])),
        ("num_draws: expected", lambda: plots.posterior(image, image, draws, num_draws=-1)),
        (r"quantiles: expected levels in \[0, 1\]", lambda: plots.posterior(image, image, draws, quantiles=[5])),
        ("ranks: expected False where truth is None", lambda: plots.posterior(None, image, draws, ranks=True)),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


def test_trajectory_starts_at_the_data_and_ends_in_noise():
    process = plane()
    data = jnp.array([1.0, -1.0]) + jnp.array([0.5, 0.2]) * jax.random.normal(KEY, (400, 2))
    axes = plots.trajectory(KEY, process, data)
    assert axes.shape == (3, 3)
    points = [[np.asarray(ax.collections[0].get_offsets()) for ax in row] for row in axes[:2]]
    np.testing.assert_allclose(points[0][0], data, rtol=1e-6)
    for row in points:  # the exact denoiser: both chains have the same marginals
        np.testing.assert_allclose(row[0].mean(0), [1, -1], atol=0.15)
        np.testing.assert_allclose(row[0].std(0), [0.5, 0.2], atol=0.1)
        np.testing.assert_allclose(row[2].std(0), 1, atol=0.15)
    axes[0, 0].figure.canvas.draw()


def test_trajectory_drift_is_that_of_the_kernel():
    process, grid_size = plane(), 17
    axes = plots.trajectory(KEY, process, jnp.zeros((5, 2)), plt.subplots(3, 2)[1], times=[3, 6])
    for ax, t in zip(axes[2], (3, 6), strict=True):
        (arrows,) = ax.collections
        assert arrows.N == grid_size**2
        drift = process.kernel(jnp.asarray(arrows.XY), t).mean - arrows.XY
        length = np.linalg.norm(drift, axis=1, keepdims=True)
        shown = np.stack([arrows.U, arrows.V], -1)
        np.testing.assert_allclose(shown, drift / (length + np.median(length)), atol=1e-4)


def test_trajectory_names_what_does_not_fit():
    process, data = plane(), np.zeros((5, 2))
    for match, call in [
        ("event shape", lambda: plots.trajectory(KEY, process, np.zeros((5, 3)))),
        ("event shape", lambda: plots.trajectory(KEY, process, np.zeros((0, 2)))),
        ("times: expected steps", lambda: plots.trajectory(KEY, process, data, times=[7])),
        ("times: expected a whole number", lambda: plots.trajectory(KEY, process, data, times=[0.5])),
        ("ax: expected Axes of shape", lambda: plots.trajectory(KEY, process, data, plt.subplots(2, 3)[1])),
    ]:
        with refused(match):
            call()


def test_prior_comparison_shows_probabilities_or_evidences():
    result = comparison()
    ax = plots.prior_comparison(result)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], list(result.probabilities.values()))
    np.testing.assert_allclose(sum(result.probabilities.values()), 1)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["ring", "blob"]
    spread, before = (np.array(lines.get_segments())[:, :, 1] for lines in ax.collections)
    np.testing.assert_allclose(before, [[0.4, 0.4], [0.6, 0.6]])
    np.testing.assert_allclose(spread, [[0.6, 0.8], [0.2, 0.4]])
    ax = plots.prior_comparison(result, show="evidence")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [-4, -5])
    (spread,) = ax.collections
    np.testing.assert_allclose(np.array(spread.get_segments())[:, :, 1], [[-4.2, -3.8], [-5.4, -4.6]])
    with pytest.raises(ValueError, match="show: expected one of 'probability', 'evidence', got 'factor'"):
        plots.prior_comparison(result, show="factor")


def test_surprise_shows_the_data_among_the_replicates():
    result = surprise()
    ax = plots.surprise(result)
    assert sum(bar.get_height() for bar in ax.patches) == 99
    assert set(ax.lines[0].get_xdata()) == {-5.0}
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["drawn by the model", f"the data, p = {result.p_value:.2g}"]
    assert not plots.surprise(surprise(-np.inf)).lines  # no place for a probability of 0


# ---- The report of a prior


def test_report_shows_scores_curves_and_draws_over_data():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(15, 2)) * [1, 4]
    plain = nd.fit_prior(KEY, data, progress_bar=False)  # so few examples that there is nothing to train
    score = nd.distributions.report.Score
    found = plain.report()._replace(
        prior=score("prior (K)", -2.0, 0.1), baselines=(score("Gaussian", -2.5, 0.1, 0.5, 0.05),),
        curves={"whitened, Gaussian": {"step": [0, 50], "validation": [-2.5, -2.0]}},
    )  # fmt: skip
    prior = plain.with_report(found)
    axes = plots.report(prior, data, names=["a", "b"])
    assert len(axes) == 5
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["prior (K)", "Gaussian"]
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), [-2.5, -2.0])
    assert [ax.get_xlabel() for ax in axes[2:]] == ["a", "b", "a"]
    given = plt.figure().subplots(1, 2)
    assert plots.report(prior, ax=given)[0] is given[0]
    assert "no example held out" in plots.report(plain)[0].get_title()
    with pytest.raises(ValueError, match="data: expected shape"):
        plots.report(prior, data[:, :1])
    with pytest.raises(ValueError, match="names: expected 2 names, one an element, got 1"):
        plots.report(prior, data, names=["a"])
    with pytest.raises(ValueError, match="report: expected a prior made by fit_prior"):
        plots.report(nd.DiffusionPrior(plane()))
