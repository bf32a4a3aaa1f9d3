"""Networks by kind of event: which are chosen, that this is said, where they start, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion import networks, schedules
from numpyro_diffusion.training import baselines, fit_prior, kinds, plan_prior

KEY = jax.random.key(0)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _waves(count, length, seed=0):
    """Sines of any phase and of many frequencies, with some noise, of which a Gaussian knows little."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0.4, 1.4, (count, 1)) * np.arange(length) + 2 * np.pi * rng.random((count, 1))
    return np.sin(angle) + 0.2 * rng.normal(size=(count, length))


@pytest.mark.parametrize(
    ("shape", "kind", "network", "said"),
    [
        ((9,), None, networks.MLP, "MLP of width 64, for 40 examples"),
        ((4, 3), None, networks.MLP, "MLP of width 64, for 40 examples"),
        ((20, 8), None, networks.MLP, "MLP of width 64, for 40 examples"),
        ((16, 16), None, networks.MLP, "MLP of width 64, for 40 examples"),
        ((8, 9), None, networks.UNet, "U-Net of 16 channels, for 40 examples"),
        ((8, 8, 2), None, networks.UNet, "U-Net of 16, 32 channels, for 40 examples"),
        ((8, 8), "vector", networks.MLP, "MLP of width 64, for 40 examples"),
        ((9,), "vector", networks.MLP, "MLP of width 64, for 40 examples"),
        ((9,), "series", networks.Series, "1-d convolutions of 24 channels, with zeros beyond the ends"),
        ((7, 2), "series", networks.Series, "1-d convolutions of 24 channels, with zeros beyond the ends"),
        ((4, 6), "image", networks.UNet, "U-Net of 16, 32 channels, for 40 examples"),
        ((5, 3, 2), "image", networks.UNet, "U-Net of 16 channels, for 40 examples"),
        (
            (16, 16),
            "image",
            networks.Patched,
            "U-Net of 16, 32 channels, over patches of 2 × 2 pixels, for 40 examples",
        ),
    ],
)
def test_the_kind_chooses_the_network_and_the_plan_says_so(shape, kind, network, said):
    plan = plan_prior(KEY, _normal(40, *shape), kind=kind)
    fn = plan.process.denoiser.fn
    lines = str(plan).splitlines()
    found = "image" if network is networks.UNet else "vector"
    assert isinstance(fn, network) and plan.is_table and plan.kind == (kind or found)
    assert sum(line.startswith("network: ") and said in line for line in lines) == 1
    given = (
        f"kind: {kind} (given)" if kind else 'kind: image, by the shape; kind="vector" takes an MLP, which is faster'
    )
    vector = [] if len(shape) == 1 else ['kind: vector; kind="series" or "image" is for convolutions']
    assert [line for line in lines if line.startswith("kind")] == (vector if plan.kind == "vector" else [given])
    out = fn(jnp.ones(shape), 3.0)
    assert out.shape == (2, *shape) and not out.any()


def test_what_is_no_table_is_a_vector_unless_it_is_said():
    images = _normal(40, 8, 8)
    for data, options in ((images > 0, {}), (images, {"loc": 0.0}), (_normal(40, 17, 17), {})):
        assert plan_prior(KEY, data, **options).kind == "vector"
        assert plan_prior(KEY, data, **options, kind="image").kind == "image"


@pytest.mark.parametrize(("shape", "patch"), [((28, 28), 2), ((32, 32, 3), 4), ((17, 17), 17), ((14, 14), 1)])
def test_large_images_are_folded_into_patches(shape, patch):
    fn = kinds.KINDS["image"].network(KEY, shape, kinds.Sizes(10, 8))
    assert getattr(fn, "patch", 1) == patch and jax.eval_shape(fn, jnp.ones(shape), 1.0).shape == shape


@pytest.mark.parametrize(("shape", "kind"), [((6,), "series"), ((4, 2), "series"), ((4, 4), "image")])
def test_convolutions_start_at_the_gaussian_of_the_data(shape, kind):
    """The untrained prediction of x_0 is the Gaussian's, by linear algebra; of a series in elementwise coordinates."""
    size = int(np.prod(shape))
    data = _normal(200, size) @ _normal(size, size, seed=1) / np.sqrt(size) + np.arange(size)
    plan = plan_prior(KEY, data.reshape(200, *shape), kind=kind)
    (law,) = baselines.shrunk_gaussian(data).affine(np.eye(size), np.zeros(size)).covariances
    loc, scale = data.mean(0), np.sqrt(np.diag(law))
    if len(shape) > 1:
        own = plan.process.diffusion
        assert plan.transform is None
        loc, scale = np.full(size, float(own.loc)), np.full(size, float(own.scale))
    t, z_t = 30, _normal(size, seed=2)
    alpha_bar = float(plan.process.diffusion.schedule.alpha_bar(t))
    covariance, centre = law / np.outer(scale, scale), (data.mean(0) - loc) / scale
    gain = np.sqrt(alpha_bar) * covariance @ np.linalg.inv(alpha_bar * covariance + (1 - alpha_bar) * np.eye(size))
    expected = centre + gain @ (z_t - np.sqrt(alpha_bar) * centre)
    if len(shape) > 1:  # the process is one of the data themselves
        z_t, expected = loc + scale * z_t, loc + scale * expected
    else:
        np.testing.assert_allclose(jax.vmap(plan.transform)(jnp.eye(size)), loc + np.diag(scale), rtol=1e-4, atol=1e-4)
    found = plan.process.predict(jnp.asarray(z_t.reshape(shape), jnp.float32), t)
    np.testing.assert_allclose(np.asarray(found).reshape(-1), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_bits_are_series_and_images_too_without_a_simple_model():
    bits = (np.random.default_rng(0).random((50, 4, 4)) < 0.3).astype(int)
    for kind, network in (("series", networks.Series), ("image", networks.UNet)):
        plan = plan_prior(KEY, bits, kind=kind)
        assert isinstance(plan.process.denoiser.fn, network) and not plan.has_baseline and plan.max_steps == 5_000
        assert plan.process.predict(np.zeros((2, 4, 4)), 3).shape == (2, 4, 4)


def test_validation_of_convolutions_is_kept_to_a_budget():
    """Fewer network calls than the default's, as many as 4,000 where rows allow it, and at most 500 rows."""
    process = plan_prior(KEY, _normal(40, 9), kind="series").process
    for count in (4, 25, 100, 500):
        found = kinds.KINDS["series"].validation(process, count)
        calls = count * found.num_samples * found.num_times
        assert calls <= 8_000 and (found.num_samples == 8 or calls > 2_000 or found.num_samples <= 2)
    assert (
        kinds.KINDS["vector"].validation(process, 100) is None and kinds.KINDS["series"].validation(process, 0) is None
    )
    assert kinds.KINDS["image"].share_held_out(60_000) * 60_000 == pytest.approx(500)
    assert kinds.KINDS["vector"].share_held_out(60_000) == 0.1 and kinds.KINDS["image"].share_held_out(50) == 0.25


VECTORS, MAPS, COLOURS = _normal(40, 6), _normal(40, 4, 4), _normal(40, 4, 4, 2)


@pytest.mark.parametrize(
    ("data", "options", "match"),
    [
        (VECTORS, {"kind": "sereis"}, "kind: expected one of 'vector', 'series', 'image', got 'sereis'"),
        (VECTORS, {"kind": 1}, "kind: expected one of .* got 1"),
        (VECTORS, {"kind": "image"}, r"kind: expected data of shape \(n, height, width\) or .*'image', got \(n, 6\)"),
        (COLOURS, {"kind": "series"}, r"kind: expected data of shape \(n, length\) or .*'series', got \(n, 4, 4, 2\)"),
        (MAPS, {"kind": "image", "network": lambda x, t: x}, "kind: expected None with a network of your own, got 'im"),
        (
            abs(MAPS).astype(int),
            {"kind": "image", "family": "categorical"},
            "kind: expected None or .* for the categorical",
        ),
        (np.where(VECTORS > 1, np.nan, VECTORS), {"kind": "series"}, "kind: expected None or 'vector' with missing"),
        (
            pandas.DataFrame({"a": VECTORS[:, 0], "b": np.where(VECTORS[:, 1] > 0, "yes", "no")}),
            {"kind": "series"},
            "kind: expected None for a frame of mixed columns, got 'series'",
        ),
        (
            pandas.DataFrame({"b": np.where(VECTORS[:, 1] > 0, "yes", "no")}),
            {"kind": "series"},
            "kind: expected None or 'vector' for the categorical family, got 'series'",
        ),
    ],
)
def test_kinds_that_do_not_fit_are_refused_by_name(data, options, match):
    with refused(match):
        fit_prior(KEY, data, **options, progress_bar=False)


@pytest.mark.slow
def test_a_context_reaches_convolutions():
    """The mean is a multiple of the context, which the regression finds; the network is told it too."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=(80, 1))
    x = 3 * c + _normal(80, 5)
    options = {"schedule": schedules.log_snr(6), "max_steps": 2, "progress_bar": False}
    prior = fit_prior(KEY, x, context=c, kind="series", **options)
    assert isinstance(prior.process.denoiser.fn, networks.Series) and prior.transform is None
    means = [np.asarray(prior.given(jnp.array([v])).sample(KEY, (200,))).mean() for v in (-2.0, 2.0)]
    assert abs(means[0] + 6) < 0.6 and abs(means[1] - 6) < 0.6, means


@pytest.mark.slow
def test_a_series_is_learned_better_than_its_gaussian_and_kept(tmp_path):
    """Above the Gaussian on held-out rows, the same from a file, and no program compiled again."""
    options = {"schedule": schedules.log_snr(60), "max_steps": 200, "progress_bar": False}
    prior = fit_prior(KEY, _waves(400, 16), kind="series", **options)
    (gaussian, *_) = prior.report().baselines
    assert prior.report().trained == 360 and gaussian.gain > 2 * gaussian.gain_error, prior.report()
    prior.save(tmp_path / "waves.safetensors")
    read = nd.load(tmp_path / "waves.safetensors")
    draw = jax.jit(lambda prior, key: prior.sample(key, (64,)))
    draws = draw(prior, KEY)
    np.testing.assert_array_equal(draw(read, KEY), draws)
    assert draw._cache_size() == 1
    assert 0.6 < float(jnp.std(draws)) < 0.9  # √(½ + 0.2²) = 0.73
