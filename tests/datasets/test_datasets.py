"""Data sets against their own laws."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import datasets

KEY = jax.random.key(0)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_swiss_roll_has_unit_variance(noise: float) -> None:
    """The two coordinates' variances average 1: by quadrature exactly, and in a sample within its error."""
    angle = np.linspace(1.5 * np.pi, 4.5 * np.pi, 200_001)
    roll = np.stack([angle * np.cos(angle), angle * np.sin(angle)])
    mean, square = np.trapezoid(roll) / 2e5, np.trapezoid(roll**2) / 2e5
    variance = (square - mean**2).mean() + noise**2
    assert datasets.swiss_roll_scale(noise) == pytest.approx(variance**-0.5, rel=1e-6)
    x = np.asarray(datasets.swiss_roll(KEY, 20_000, noise))
    assert x.shape == (20_000, 2) and np.issubdtype(x.dtype, np.floating)
    assert x.var(axis=0).mean() == pytest.approx(1, abs=4 * 0.9 / math.sqrt(20_000))


def test_swiss_roll_without_noise_lies_on_the_roll() -> None:
    """The radius is the angle, up to whole turns, and both are spread over their range."""
    x = np.asarray(datasets.swiss_roll(KEY, 2_000), np.float64) / datasets.swiss_roll_scale()
    radius = np.hypot(*x.T)
    turns = (radius - np.arctan2(x[:, 1], x[:, 0])) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-4)
    fraction = (radius / (1.5 * np.pi) - 1) / 2
    assert 0 <= fraction.min() + 1e-6 and fraction.max() <= 1 + 1e-6
    assert fraction.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 2_000))


def test_swiss_roll_density_integrates_to_one() -> None:
    """The trapezoid rule over a grid gives 1, and the same second moment as unit variance demands."""
    noise, side = 0.5, np.linspace(-4, 4, 161)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    with jax.enable_x64(True):
        density = np.exp(np.asarray(datasets.swiss_roll_log_prob(grid, noise)))
    assert density.shape == (161, 161)

    def integrate(values: np.ndarray) -> float:
        return np.trapezoid(np.trapezoid(values, side), side)

    assert integrate(density) == pytest.approx(1, abs=1e-5)
    mean = np.array([integrate(density * grid[..., i]) for i in range(2)])
    squares = np.array([integrate(density * grid[..., i] ** 2) for i in range(2)])
    assert (squares - mean**2).mean() == pytest.approx(1, abs=1e-4)


def test_swiss_roll_density_against_a_dense_sum() -> None:
    """The quadrature agrees to 1e-6 nats with a plain trapezoid sum over many more points."""
    noise = 0.1
    scale = datasets.swiss_roll_scale(noise)
    with jax.enable_x64(True):
        x = np.asarray(datasets.swiss_roll(KEY, 8, noise))
        log_prob = np.asarray(datasets.swiss_roll_log_prob(x, noise))
    u = np.linspace(0, 1, 500_001)
    angle = 1.5 * np.pi * (1 + 2 * u)
    roll = scale * np.stack([angle * np.cos(angle), angle * np.sin(angle)])
    variance = (scale * noise) ** 2
    for point, value in zip(x, log_prob, strict=True):
        kernel = np.exp(-((point[:, None] - roll) ** 2).sum(0) / (2 * variance)) / (2 * np.pi * variance)
        assert value == pytest.approx(np.log(np.trapezoid(kernel, u)), abs=1e-6)


def test_swiss_roll_density_shapes_jit_and_gradient() -> None:
    """Leading axes are kept, float32 is close, and the score is finite."""
    x = np.linspace(-1.5, 1.5, 12, dtype=np.float32).reshape(2, 3, 2)
    log_prob = jax.jit(lambda x: datasets.swiss_roll_log_prob(x, 1.0))
    assert jax.eval_shape(log_prob, x[0, 0]).shape == ()
    with jax.enable_x64(True):
        exact = datasets.swiss_roll_log_prob(x.astype(np.float64), 1.0)
    assert exact.shape == (2, 3)
    np.testing.assert_allclose(log_prob(x), exact, rtol=1e-4)
    score = jax.jit(jax.grad(lambda x: log_prob(x).sum()))(x)
    difference = (log_prob(x + np.float32([0.01, 0])) - log_prob(x - np.float32([0.01, 0]))) / 0.02
    np.testing.assert_allclose(score[..., 0], difference, rtol=0.02, atol=0.02)


def test_heartbeats_are_valid_and_cover_every_phase() -> None:
    """Each sample is one of the states, and the phases are uniform."""
    states = np.asarray(datasets.heartbeat_states(20, 5))
    expected = [[int(bin % 5 == phase) for bin in range(20)] for phase in range(5)]
    np.testing.assert_array_equal(states, expected)
    x = np.asarray(datasets.heartbeat(KEY, 2_000))
    assert x.shape == (2_000, 20) and x.dtype == np.int32
    counts = (x[:, None] == states).all(-1).sum(0)
    assert counts.sum() == 2_000
    assert np.abs(counts - 400).max() < 4 * math.sqrt(2_000 * 0.2 * 0.8)


def test_heartbeat_length_need_not_divide() -> None:
    """A length that is no multiple of the period still gives distinct states."""
    states = np.asarray(datasets.heartbeat_states(7, 3))
    assert states.shape == (3, 7) and len(np.unique(states, axis=0)) == 3
    np.testing.assert_array_equal(states.sum(1), [3, 2, 2])


def test_digits_are_split_as_promised() -> None:
    """Counts, range and classes; the split is fixed and loses no image."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    digits = datasets.digits()
    assert digits.train_images.shape == (1500, 8, 8) and digits.test_images.shape == (297, 8, 8)
    assert digits.train_labels.shape == (1500,) and digits.test_labels.shape == (297,)
    assert digits.train_images.min() == 0 and digits.train_images.max() == 1
    both = np.concatenate([digits.train_labels, digits.test_labels])
    np.testing.assert_array_equal(np.bincount(both), np.bincount(load_digits().target))
    assert len(np.unique(digits.test_labels)) == 10
    images = np.concatenate([digits.train_images, digits.test_images]).sum(axis=0) * 16
    np.testing.assert_allclose(images, load_digits().images.sum(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(datasets.digits().test_images, digits.test_images)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn the error says what to install."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"numpyro-diffusion\[datasets\]"):
        datasets.digits()


def test_bad_arguments_are_named() -> None:
    """Errors name the argument."""
    with pytest.raises(ValueError, match="num_samples"):
        datasets.swiss_roll(KEY, 0)
    with pytest.raises(ValueError, match="noise"):
        datasets.swiss_roll(KEY, 3, -0.1)
    with pytest.raises(ValueError, match="noise.*no density"):
        datasets.swiss_roll_log_prob(jnp.zeros(2), 0.0)
    with pytest.raises(ValueError, match=r"x: expected shape \(..., 2\), got \(3,\)"):
        datasets.swiss_roll_log_prob(jnp.zeros(3), 0.1)
    with pytest.raises(TypeError, match="num_samples"):
        datasets.heartbeat(KEY, 2.5)
    with pytest.raises(ValueError, match="period"):
        datasets.heartbeat_states(4, 5)
    with pytest.raises(ValueError, match="length"):
        datasets.heartbeat(KEY, 2, length=0)
