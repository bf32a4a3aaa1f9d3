"""A prior from data in one call: what is chosen, that it is said, and that it learns."""

import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from refusals import refused
from sklearn.covariance import LedoitWolf

import numpyro_diffusion as nd
from numpyro_diffusion import schedules
from numpyro_diffusion.training import baselines, fit_prior, plan_prior

# `numpyro_diffusion.training.loop` the attribute is the function.
loop = importlib.import_module("numpyro_diffusion.training.loop")

KEY = jax.random.key(0)


class Affine(eqx.Module):
    slope: jax.Array
    offset: jax.Array

    def __init__(self, steps, size):
        self.slope, self.offset = jnp.zeros((steps, size)), jnp.zeros((steps, size))

    def __call__(self, x, t):
        step = jnp.asarray(t).astype(int) - 1
        return self.slope[step] * x + self.offset[step]


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _said(plan, start):
    lines = [line for line in str(plan).splitlines() if line.startswith(start)]
    assert len(lines) == 1
    return lines[0]


# ---- What is chosen


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_binary_data_become_bits(dtype):
    data = (np.random.default_rng(0).random((50, 12)) < 0.3).astype(dtype)
    plan = plan_prior(KEY, data)
    diffusion = plan.process.diffusion
    assert isinstance(diffusion, nd.BinomialDiffusion) and plan.process.denoiser.predicts == "logits"
    assert float(diffusion.rate) == pytest.approx(data.astype(float).mean(), rel=1e-5)
    assert plan.process.event_shape == (12,) and plan.dequantize == 0
    assert "binomial (only 0 and 1 in the data)" in _said(plan, "family")
    assert f"Bernoulli({data.astype(float).mean():.4g})" in _said(plan, "noise law")
    assert f"schedule: {diffusion.num_steps} steps" in str(plan)


def test_bits_may_be_taken_for_real_values_but_not_the_reverse():
    plan = plan_prior(KEY, np.eye(6), family="gaussian")
    assert isinstance(plan.process.diffusion, nd.GaussianDiffusion) and plan.dequantize == 1
    with pytest.raises(ValueError, match="family: expected 'gaussian' for data with other values than 0 and 1"):
        plan_prior(KEY, 2 * np.eye(6), family="binomial")


def test_vectors_are_scaled_by_element_and_images_by_one_constant():
    scales, locs = np.array([0.1, 1.0, 50.0]), np.array([5.0, 0.0, -100.0])
    data = _normal(400, 3) * scales + locs
    plan = plan_prior(KEY, data)
    np.testing.assert_allclose(plan.transform.loc, data.mean(0), rtol=1e-5)
    root = np.asarray(plan.transform.scale_tril)
    np.testing.assert_allclose(np.diag(root @ root.T), data.var(0), rtol=1e-4)
    assert plan.is_table and plan.process.diffusion.scale.shape == ()
    diffusion = plan_prior(KEY, data, loc=data.mean(0)).process.diffusion  # a choice of one's own: no table
    np.testing.assert_allclose(diffusion.loc, data.mean(0), rtol=1e-5)
    np.testing.assert_allclose(diffusion.scale, data.std(0), rtol=1e-5)
    images = 3 + 2 * _normal(40, 4, 5)
    images[:, 0, 0] = 3.0  # a constant pixel is no trouble
    plan = plan_prior(KEY, images)
    assert not plan.is_table and plan.process.event_shape == (4, 5) and plan.process.diffusion.scale.shape == ()
    assert float(plan.process.diffusion.scale) == pytest.approx(images.std(), rel=1e-5)
    assert f"N({images.mean():.4g}, {images.std():.4g}²)" in _said(plan, "noise law")


@pytest.mark.parametrize(
    ("data", "spacing"),
    [
        (np.random.default_rng(0).integers(0, 17, (60, 8, 8)), 1),
        (np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.float32) / np.float32(255), 1 / 255),
        (np.random.default_rng(0).integers(-5, 5, (60, 4)) * 0.3 + 0.1, 0.3),
        (np.random.default_rng(0).integers(0, 1000, (600, 4)).astype(np.float32) / np.float32(1000) + 7, 1e-3),
        (np.random.default_rng(0).integers(0, 17, (60, 8, 8)) / 16 * (np.arange(8) > 1), 1 / 16),
        (np.random.default_rng(0).choice([10, 30, 60], (60, 4)), 10),
        (np.random.default_rng(0).integers(0, 60_000, (600, 4)), 1),
        (np.random.default_rng(0).choice([-1.0, 1.0], (60, 4)), 2),
        (np.random.default_rng(0).normal(size=(60, 4)), 0),
        (np.random.default_rng(0).normal(size=(4000, 2)), 0),
        (np.random.default_rng(0).choice([0.0, 1.0, 2.5], (60, 4)), 0),
        (np.random.default_rng(0).normal(size=(4, 1)), 0),
        (np.array([[0.3], [1.7]]), 0),
        (np.append(np.arange(1_200_000) % 256, 0.1234).reshape(-1, 1), 0),
    ],
    ids=[
        "levels", "eight bits", "offset", "float32", "constant pixels", "whole, with gaps", "sixteen bits", "signs",
        "few reals", "many reals", "uneven", "four reals", "two reals", "one of many",
    ],
)  # fmt: skip
def test_the_spacing_is_found(data, spacing):
    plan = plan_prior(KEY, data)
    assert plan.dequantize == pytest.approx(spacing, rel=1e-3)
    words = "the data's spacing" if spacing else "do not come in equal steps"
    assert words in _said(plan, "dequantize")


def test_the_ends_of_the_schedule_follow_from_the_data():
    """At T the signal is 1% of the noise; at 1 the noise is a fifth of the finest detail."""
    ends = lambda plan: np.asarray(plan.process.diffusion.schedule.log_snr(np.array([1.0, 100.0])))
    levels = np.random.default_rng(0).integers(0, 17, (60, 8, 8))
    grey = 1 / np.sqrt(12) / levels.std()
    np.testing.assert_allclose(
        ends(plan_prior(KEY, levels, loc=levels.mean())), [-2 * np.log(grey / 5), 2 * np.log(0.01)], rtol=1e-4
    )
    # Clusters of width 0.01 in data of scale 1: finer detail, hence a higher end; scaling the data changes nothing.
    coarse = _normal(500, 2)
    fine = np.sign(_normal(500, 2, seed=1)) + 0.01 * _normal(500, 2, seed=2)
    first = lambda data: float(plan_prior(KEY, data).process.diffusion.schedule.log_snr(1))
    assert first(fine) > first(coarse) + 2
    assert first(1e3 * fine) == pytest.approx(first(fine), rel=1e-3)
    # A scale of half the data's makes the data louder than the noise: the chain has to go further.
    half = plan_prior(KEY, coarse, scale=0.5 * coarse.std(0))
    assert ends(half)[1] == pytest.approx(2 * np.log(0.005), rel=1e-3)


def test_vectors_in_steps_are_scaled_with_the_noise_that_fills_the_gaps():
    """An element that is 0 but once has a deviation far below that noise, and would be far out of scale."""
    data = np.random.default_rng(0).integers(0, 17, (400, 3))
    data[:, 1] = np.arange(400) == 7
    root = np.asarray(plan_prior(KEY, data).transform.scale_tril)
    np.testing.assert_allclose(np.diag(root @ root.T), data.var(0) + 1 / 12, rtol=1e-4)
    diffusion = plan_prior(KEY, data, loc=data.mean(0)).process.diffusion
    np.testing.assert_allclose(diffusion.scale, np.sqrt(data.var(0) + 1 / 12), rtol=1e-5)
    assert float(diffusion.schedule.log_snr(100.0)) == pytest.approx(2 * np.log(0.01), rel=1e-4)
    given = plan_prior(KEY, data, scale=1.0).process.diffusion
    spread = np.sqrt(np.mean(data.var(0) + np.square(data.mean(0) - given.loc)) + 1 / 12)
    assert float(given.schedule.log_snr(100.0)) == pytest.approx(2 * np.log(0.01 / spread), rel=1e-3)


def test_every_choice_can_be_overridden():
    data, schedule, network = _normal(60, 2), schedules.cosine(7), Affine(7, 2)
    plan = plan_prior(
        KEY, data, loc=1.0, scale=[2.0, 3.0], schedule=schedule, network=network, dequantize=0.25, max_steps=12
    )
    diffusion = plan.process.diffusion
    assert diffusion.schedule is schedule and plan.process.denoiser.fn is network
    assert float(diffusion.loc) == 1 and diffusion.scale.tolist() == [2.0, 3.0]
    assert plan.dequantize == 0.25 and plan.max_steps == 12
    assert all("given" in _said(plan, start) for start in ("noise law", "dequantize", "schedule", "network"))
    assert _said(plan, "training") == "training: 12 steps (given)"
    default = plan_prior(KEY, data)
    assert "given" not in str(default) and default.max_steps == 1_000
    assert isinstance(default.process.denoiser, nd.denoisers.Residual)
    large = plan_prior(KEY, _normal(20, 17, 17))
    assert large.max_steps == 20_000 and large.process.denoiser.predicts == "velocity"


@pytest.mark.parametrize(
    ("shape", "width", "steps"), [((2, 1), 128, 10_000), ((5, 8), 256, 20_000), ((12, 12), 512, 20_000)]
)
def test_the_network_grows_with_the_event(shape, width, steps):
    plan = plan_prior(KEY, _normal(10, *shape), loc=0.0)
    assert plan.process.denoiser.fn.width == width and plan.max_steps == steps
    assert f"MLP of width {width}" in _said(plan, "network") and str(steps) in _said(plan, "training")


@pytest.mark.parametrize(
    ("count", "size", "width", "steps"), [(60, 12, 64, 1_000), (2_000, 12, 128, 10_000), (6_000, 12, 256, 20_000)]
)
def test_a_tables_network_grows_with_the_number_of_examples(count, size, width, steps):
    plan = plan_prior(KEY, _normal(count, size))
    assert plan.process.denoiser.fn.width == width and plan.max_steps == steps
    assert f"MLP of width {width}, for {count} examples" in _said(plan, "network")
    assert "whitened" in _said(plan, "coordinates") and "Gaussian" in _said(plan, "baseline")


def test_an_untrained_tables_prior_is_the_gaussian_of_its_data():
    """Correlations as Ledoit and Wolf shrink them, by scikit-learn; K is its log density, in few steps."""
    data = _normal(40, 3) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.3, 5.0], [0.0, 0.0, 2.0]]) + [3.0, 0.0, -2.0]
    plan = plan_prior(KEY, data)
    prior = nd.DiffusionPrior(plan.process, transform=plan.transform)
    scale = data.std(0)
    covariance = LedoitWolf().fit(data / scale).covariance_ * np.outer(scale, scale)
    exact = dist.MultivariateNormal(data.mean(0), covariance).log_prob(data[:5])
    np.testing.assert_allclose(prior.log_prob(jnp.asarray(data[:5], jnp.float32)), exact, atol=0.02)


def test_small_images_start_from_a_gaussian_too():
    """In their own coordinates: the untrained process is about the shrunk Gaussian of flattened images."""
    images = np.random.default_rng(0).integers(0, 5, (60, 3, 2)) / 4
    plan = plan_prior(KEY, images)
    assert plan.is_table and plan.transform is None and plan.process.event_shape == (3, 2)
    assert float(plan.process.diffusion.scale) == pytest.approx(images.std(), rel=0.1)
    law = plan.process.denoiser.baseline.data()
    flat = images.reshape(60, 6)
    covariance = baselines.shrunk_gaussian(flat, 1 / 16 / 12).covariances[0]
    np.testing.assert_allclose(law.component_distribution.covariance_matrix[0], covariance, rtol=1e-4, atol=1e-6)
    assert plan.process.predict(np.zeros((4, 3, 2)), 3).shape == (4, 3, 2)
    constant = np.where(np.arange(6).reshape(3, 2) == 1, 0.3, _normal(60, 3, 2))
    assert not plan_prior(KEY, constant).is_table


def test_from_few_examples_a_gaussian_is_fitted_and_it_says_so(capsys):
    data = _normal(12, 2) * [1.0, 5.0]
    prior = fit_prior(KEY, data)
    assert "training: none, a Gaussian is all that is fitted to 12 examples (fewer than 20)" in capsys.readouterr().out
    assert prior.process.denoiser.is_exact and prior.report().steps == 0 and prior.report().prior is None
    exact = dist.MultivariateNormal(data.mean(0), baselines.shrunk_gaussian(data).covariances[0]).log_prob(data)
    np.testing.assert_allclose(prior.log_prob(jnp.asarray(data, jnp.float32)), exact, atol=1e-3)
    assert prior.report() == fit_prior(KEY, data, progress_bar=False).report()


def test_elements_that_are_the_same_are_named():
    data = _normal(50, 3)
    assert "data:" not in str(plan_prior(KEY, data))
    plan = plan_prior(KEY, np.append(data, 3 - 2 * data[:, :1], axis=1))
    assert "elements 0 and 3 are the same but for their units" in _said(plan, "data")
    assert np.isfinite(np.asarray(plan.transform.scale_tril)).all()


# ---- What is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((5, 2), 3.0), r"data: expected examples that differ, got 5 equal ones \(constant data\)"),
        (
            np.stack([np.arange(5.0), np.ones(5)], 1),
            r"data: expected every element to vary, got constant ones at \[1\]",
        ),
        (np.array([[0.0, 1.0], [np.inf, 2.0]]), "data: expected finite numbers, got 1 NaN or infinite"),
        (np.zeros((0, 2)), r"data: expected shape \(n, \*event\) with n >= 2 .* got \(0, 2\)"),
        (np.zeros((1, 2)), r"data: expected shape .* with n >= 2 .* got \(1, 2\)"),
        (np.zeros((3, 0)), r"data: expected shape .* got \(3, 0\)"),
        (np.arange(5.0), r"data: expected shape .* an event of rank 1 or more, got \(5,\)"),
        (np.array([["a", "b"], ["c", "d"]]), "data: expected numbers, got dtype <U1"),
        (np.array([[1, None], [2, 3]]), "data: expected numbers, got dtype object"),
        ([[1.0, 2.0], [3.0]], "data: expected an array of numbers, got list"),
        (np.ones((3, 2)) * 1j, "data: expected numbers, got dtype complex128"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)) if isinstance(value, dict) else "bad",
)
def test_bad_data(data, message):
    for function in (plan_prior, fit_prior):
        with refused(message):
            function(KEY, data)


def test_a_plan_is_made_of_complete_data():
    """`fit_prior` learns from missing cells too, see test_missing.py."""
    with pytest.raises(ValueError, match=r"data: expected finite numbers, got 1 NaN .* first at \(0, 1\)"):
        plan_prior(KEY, np.array([[0.0, np.nan], [1.0, 2.0]]))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"family": "poisson"}, "family: expected one of 'gaussian', 'binomial', 'categorical', got 'poisson'"),
        ({"loc": np.nan}, "loc: expected finite numbers"),
        ({"loc": [1.0, 2.0, 3.0]}, r"loc: expected a shape that broadcasts to \(2,\), got \(3,\)"),
        ({"scale": 0.0}, "scale: expected positive numbers, got a minimum of 0.0"),
        ({"scale": [[1.0, 2.0]]}, r"scale: expected a shape that broadcasts to \(2,\), got \(1, 2\)"),
        ({"schedule": "cosine"}, "schedule: expected a schedule from numpyro_diffusion.schedules, got 'cosine'"),
        ({"network": 3}, r"network: expected a callable fn\(x_t, t\), got 3"),
        ({"network": lambda x, t: x[:1]}, r"fn: expected an output of the shape of its input, \(2,\), got \(1,\)"),
        ({"dequantize": -1.0}, r"dequantize: expected a width of at least 0 \(0 for bits and classes\), got -1.0"),
        ({"max_steps": 0}, "max_steps: expected a whole number of at least 1, got 0"),
        ({"max_steps": 1.5}, "max_steps: expected a whole number of at least 1, got 1.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)) if isinstance(value, dict) else "bad",
)
def test_bad_choices(choice, message):
    with refused(message):
        plan_prior(KEY, _normal(10, 2), **choice)


@pytest.mark.parametrize(
    "choice", [{"loc": 0.5}, {"scale": 1.0}, {"dequantize": 1.0}], ids=lambda choice: next(iter(choice))
)
def test_choices_that_bits_do_not_have(choice):
    name = next(iter(choice))
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {choice[name]}"):
        plan_prior(KEY, np.eye(4), **choice)


# ---- From data to a prior


def _k(process, x):
    """The mean of K, estimated and compiled as `fit` does for as many held-out examples."""
    return float(loop.held_out_values(nd.KBound(2, 7, chunk=2048), jax.random.key(1), process, x, 0.0).mean())


@pytest.mark.parametrize("family", ["gaussian", pytest.param("binomial", marks=pytest.mark.slow)])
def test_a_prior_is_learned(family, capsys):
    if family == "gaussian":
        data = _normal(2000, 2) * [1.0, 0.8] + 3
        # A noise law that is far from the data's, or there would be nothing to learn.
        choices = {"schedule": schedules.log_snr(8, -9.0, 4.0), "loc": 2.0, "scale": 2.0}
        # Minus the data's entropy, which no prior beats on average.
        best = -np.log(2 * np.pi * np.e) - np.log(0.8)
    else:
        data = np.random.default_rng(0).random((2000, 3)) < np.array([0.1, 0.5, 0.95])
        choices = {"schedule": schedules.erasing(8)}
        chance = np.array([0.1, 0.5, 0.95])
        best = (chance * np.log(chance) + (1 - chance) * np.log(1 - chance)).sum()
    network = Affine(8, data.shape[1])
    choices |= {"network": network, "max_steps": 600}
    prior = fit_prior(KEY, data, learning_rate=0.03, **choices)
    shown = capsys.readouterr()
    plan = plan_prior(KEY, data, **choices)
    assert shown.out.startswith(str(plan)) and "verdict: " in shown.out and "600/600" in shown.err
    assert isinstance(prior, nd.DiffusionPrior) and prior.event_shape == data.shape[1:]
    x = jnp.asarray(data[:200], jnp.float32)
    before, after = _k(plan.process, x), _k(prior.process, x)
    assert before + 0.1 < after < best + 0.25
    assert after > best - 0.4
    np.testing.assert_array_equal(prior.process.diffusion.schedule.table, choices["schedule"].table)


def test_quiet_and_checkpointed(tmp_path, capsys):
    data, path = _normal(2000, 2), tmp_path / "run"
    # The compiled code of the test above serves here too.
    choices = {"schedule": schedules.log_snr(8, -7.0, 4.0), "network": Affine(8, 2), "max_steps": 600, "loc": 0.0}
    options = {"scale": 2.0, "learning_rate": 0.03, "checkpoint": path, "progress_bar": False}
    prior = fit_prior(KEY, data, **choices, **options)
    shown = capsys.readouterr()
    assert path.is_file() and shown.out == shown.err == ""
    again = fit_prior(KEY, data, **choices, **options)
    np.testing.assert_array_equal(prior.process.denoiser.fn.slope, again.process.denoiser.fn.slope)
    with pytest.raises(ValueError, match="learning_rate: expected a positive number .* got -1"):
        fit_prior(KEY, data, learning_rate=-1, progress_bar=False, **choices)
