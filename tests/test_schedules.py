"""Schedules against the papers' products of (1 - beta), computed in numpy in double precision."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from numpyro_diffusion import schedules
from numpyro_diffusion.schedules import AbstractSchedule

T = 12
SOME_BETA = np.array([0.001, 0.3, 0.02, 0.5, 0.07, 0.11, 0.9, 0.2, 0.4, 0.05, 0.6, 0.3])


def _linear_beta() -> np.ndarray:
    return np.minimum(np.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T), 0.999)


def _cosine_beta() -> np.ndarray:
    kept = lambda t: np.cos((t / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.array([min(1 - kept(t) / kept(t - 1), 0.999) for t in range(1, T + 1)])


def _log_snr_beta(maximum: float, minimum: float) -> np.ndarray:
    kept = 1 / (1 + np.exp(-np.linspace(maximum, minimum, T)))
    return 1 - kept / np.concatenate([[1.0], kept[:-1]])


CASES: dict[str, tuple[Callable[[], AbstractSchedule], np.ndarray]] = {
    "linear": (lambda: schedules.linear(T), _linear_beta()),
    "cosine": (lambda: schedules.cosine(T), _cosine_beta()),
    "log_snr": (lambda: schedules.log_snr(T), _log_snr_beta(2 * np.log(100), -2 * np.log(100))),
    "log_snr_ends": (lambda: schedules.log_snr(T, -4.0, 5.0), _log_snr_beta(5.0, -4.0)),
    "log_snr_data": (
        lambda: schedules.log_snr(T, scale=3.0, detail=0.5),
        _log_snr_beta(-2 * np.log(0.1), -2 * np.log(300.0)),
    ),
    "erasing": (lambda: schedules.erasing(T), 1 / (T - np.arange(1, T + 1) + 1)),
    "learned": (lambda: schedules.learned(T, 2e-3), _log_snr_beta(np.log(998 / 2), -2 * np.log(100))),
    "learned_init": (
        lambda: schedules.learned(T, 0.01, schedules.from_beta(SOME_BETA)),
        np.concatenate([[0.01], SOME_BETA[1:]]),
    ),
    "learned_variance": (
        lambda: schedules.learned(T, 0.01, schedules.from_beta(SOME_BETA), objective="variance"),
        np.concatenate([[0.01], SOME_BETA[1:]]),
    ),
    "from_beta": (lambda: schedules.from_beta(SOME_BETA), SOME_BETA),
}
NAMES = pytest.mark.parametrize("name", CASES)


def _alpha_bar(beta: np.ndarray) -> np.ndarray:
    return np.concatenate([[1.0], np.cumprod(1 - beta)])


@jax.jit
def _values(schedule: AbstractSchedule, t: jax.Array, s: jax.Array) -> dict[str, jax.Array]:
    methods = ("log_snr", "alpha_bar", "log_alpha_bar", "noise_variance", "time")
    values = {m: jax.vmap(getattr(schedule, m))(t) for m in methods} | {"beta": jax.vmap(schedule.beta)(t, s)}
    return values | {"time_at": schedule.time_at(values["log_snr"])}


def _at(schedule: AbstractSchedule, method: str, t: Any, s: Any = None) -> np.ndarray:
    """Values of a method at an array of times, padded so that few shapes are compiled."""
    t = np.asarray(t, dtype=np.float32)
    s = np.maximum(t - 1, 0) if s is None else np.asarray(s, dtype=np.float32)
    pad = np.zeros(128 - t.size, np.float32)
    return np.asarray(_values(schedule, np.append(t, pad), np.append(s, pad))[method])[: t.size]


@NAMES
def test_alpha_bar_is_the_product_of_what_is_kept(name: str) -> None:
    """At whole steps, the three functions of the log-SNR are those of the product over (1 - beta)."""
    build, beta = CASES[name]
    schedule, expected = build(), _alpha_bar(beta)
    t = np.arange(T + 1)
    assert schedule.num_steps == T
    np.testing.assert_allclose(_at(schedule, "alpha_bar", t), expected, rtol=2e-5, atol=1e-12)
    np.testing.assert_allclose(_at(schedule, "noise_variance", t), 1 - expected, rtol=2e-5)
    np.testing.assert_allclose(_at(schedule, "beta", t[1:]), beta, rtol=3e-5)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(_at(schedule, "log_alpha_bar", t), np.log(expected), rtol=2e-5)
        np.testing.assert_allclose(
            _at(schedule, "log_snr", t), np.log(expected) - np.log1p(-expected), rtol=1e-5, atol=2e-5
        )
    assert _at(schedule, "alpha_bar", t)[0] == 1
    assert _at(schedule, "noise_variance", t)[0] == _at(schedule, "log_alpha_bar", t)[0] == 0


@NAMES
def test_fractions_decrease_and_lie_between_their_neighbours(name: str) -> None:
    """Fractional times interpolate monotonically, exactly through the whole steps."""
    schedule = CASES[name][0]()
    fine = np.arange(8 * T + 1) / 8
    kept, lost = _at(schedule, "alpha_bar", fine), _at(schedule, "noise_variance", fine)
    assert (np.diff(kept) < 0).all() and (np.diff(lost)[kept[:-1] > 1e-4] > 0).all()
    np.testing.assert_allclose(kept + lost, 1, atol=2e-7)
    whole = _at(schedule, "alpha_bar", np.arange(T + 1))
    np.testing.assert_array_equal(kept[::8], whole)
    below, above = np.repeat(whole[1:], 7), np.repeat(whole[:-1], 7)
    inside = np.delete(kept, np.arange(0, 8 * T + 1, 8))
    assert ((below < inside) & (inside < above)).all()
    np.testing.assert_allclose(_at(schedule, "time_at", fine), fine, atol=1e-3)


@NAMES
def test_whole_steps_are_looked_up_and_are_those_of_fractional_times(name: str) -> None:
    schedule = CASES[name][0]()
    whole = np.arange(T + 1)
    looked_up = np.asarray(schedule.log_snr(whole))
    np.testing.assert_array_equal(looked_up, np.asarray(schedule.table))
    np.testing.assert_allclose(looked_up, schedule.log_snr(whole.astype(float)), rtol=1e-5, atol=1e-4)
    assert schedule.log_snr(3) == looked_up[3]
    assert schedule.log_snr(()).shape == (0,)


@pytest.mark.parametrize("name", ["linear", "cosine", "log_snr", "learned", "from_beta"])
def test_log_snr_is_linear_between_steps(name: str) -> None:
    """Halfway between two steps the log-SNR is their mean; before the first step alpha_bar is linear."""
    build, beta = CASES[name]
    kept = _alpha_bar(beta)
    log_snr = np.log(kept[1:]) - np.log1p(-kept[1:])
    got = _at(build(), "log_snr", np.arange(1, T) + 0.25)
    np.testing.assert_allclose(got, 0.75 * log_snr[:-1] + 0.25 * log_snr[1:], rtol=2e-5, atol=3e-5)
    np.testing.assert_allclose(_at(build(), "noise_variance", [0.25]), 0.25 * beta[0], rtol=1e-5)


def test_erasing_removes_an_equal_share_each_step() -> None:
    """alpha_bar = 1 - t/T at whole and fractional t, and nothing is left at T."""
    schedule, t = schedules.erasing(7), np.linspace(0, 7, 50)
    np.testing.assert_allclose(_at(schedule, "alpha_bar", t), 1 - t / 7, atol=2e-7)
    np.testing.assert_allclose(_at(schedule, "noise_variance", t), t / 7, atol=2e-7)
    assert _at(schedule, "alpha_bar", [7])[0] == 0
    assert _at(schedule, "noise_variance", [7])[0] == _at(schedule, "beta", [7])[0] == 1


def test_linear_with_a_thousand_steps_ends_where_ddpm_says() -> None:
    """The published schedule keeps 4.036e-5 of the variance; shorter ones forget about as much."""
    full, short = schedules.linear(1000), schedules.linear(250)
    np.testing.assert_allclose(_at(full, "alpha_bar", [1000]), 4.036e-5, rtol=2e-4)
    np.testing.assert_allclose(_at(full, "beta", [1, 1000]), [1e-4, 0.02], rtol=2e-4)
    np.testing.assert_allclose(_at(short, "log_alpha_bar", [250]), np.log(4.036e-5), rtol=0.05)


@NAMES
def test_beta_of_strides(name: str) -> None:
    """beta(t, s) is one minus the product of what each step between keeps."""
    build, beta = CASES[name]
    pairs = np.array([(t, s) for t in range(1, T + 1) for s in range(t)])
    expected = [1 - np.prod(1 - beta[s:t]) for t, s in pairs]
    np.testing.assert_allclose(_at(build(), "beta", *pairs.T), expected, rtol=3e-5)


def test_noise_variance_keeps_its_digits_near_one() -> None:
    """In float32, noise far below the rounding of 1 - alpha_bar is still right to six digits."""
    beta = np.array([1e-9, 3e-9, 1e-8, 1e-6, 1e-4])
    expected = -np.expm1(np.cumsum(np.log1p(-beta)))
    got = _at(schedules.from_beta(beta), "noise_variance", np.arange(1, 6))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=5e-6)
    np.testing.assert_allclose(_at(schedules.from_beta(beta), "beta", np.arange(1, 6)), beta, rtol=1e-5)


def test_respace_keeps_a_subset_and_the_original_numbering() -> None:
    """A respaced chain visits steps of the old one, both ends included, and says which."""
    full = schedules.cosine(100)
    short = full.respace(7)
    kept = np.round(np.arange(8) * 100 / 7)
    np.testing.assert_array_equal(_at(short, "time", np.arange(8)), kept)
    np.testing.assert_allclose(
        _at(short, "alpha_bar", np.arange(8)), _at(full, "alpha_bar", kept.astype(int)), rtol=1e-6
    )
    np.testing.assert_allclose(_at(short, "time", [1.5]), (kept[1] + kept[2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(_at(full, "time", [3.25]), 3.25)
    np.testing.assert_array_equal(_at(short.respace(2), "time", np.arange(3)), [0, kept[4], 100])
    np.testing.assert_allclose(_at(schedules.erasing(14).respace(7), "alpha_bar", [3.5]), 0.5, rtol=1e-6)
    np.testing.assert_allclose(_at(schedules.learned(12).respace(12), "alpha_bar", [12]), 1 / 10001, rtol=1e-4)
    with pytest.raises(ValueError, match="num_steps: expected at most 100, got 101"):
        full.respace(101)
    with pytest.raises(ValueError, match="num_steps: expected a whole number of at least 2, got 1"):
        full.respace(1)


def test_learned_steps_have_gradients_and_the_first_is_fixed() -> None:
    """d log alpha_bar_t / d logit_j is -beta_j for 2 <= j <= t; beta_1 is not among the arrays."""
    schedule = schedules.learned(5, 0.03)
    beta = _at(schedule, "beta", np.arange(1, 6))
    np.testing.assert_allclose(beta[0], 0.03, rtol=1e-6)
    assert schedule.logits.shape == (4,)
    slopes = jax.jit(jax.vmap(jax.grad(lambda s, t: s.log_alpha_bar(t), allow_int=True), (None, 0)))
    slope = np.asarray(slopes(schedule, jnp.append(jnp.arange(6.0), jnp.array([0.5, 1.5, 3.7, 4.9]))).logits)
    expected = [[-beta[j] if j < t else 0.0 for j in range(1, 5)] for t in range(6)]
    np.testing.assert_allclose(slope[:6], expected, atol=1e-6)
    assert np.isfinite(slope).all() and slope[6].max() == 0 and (slope[-1] < 0).all()
    moved = eqx.tree_at(lambda s: s.logits, schedule, schedule.logits + 1)
    odds = beta[1:] / (1 - beta[1:]) * np.e
    np.testing.assert_allclose(_at(moved, "beta", np.arange(1, 6)), [0.03, *(odds / (1 + odds))], rtol=1e-5)


def test_a_fixed_schedule_is_never_trained() -> None:
    """The gradient with respect to a fixed table is zero."""
    grad = jax.jit(jax.grad(lambda s: s.alpha_bar(2.0) + s.beta(3.0)))(schedules.log_snr(5, -3.0, 3.0))
    assert not np.asarray(grad.log_snr_table).any()


NAN = float("nan")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.linear(1), "num_steps: expected a whole number of at least 2, got 1"),
        (lambda: schedules.cosine(2.5), "num_steps: expected a whole number of at least 2, got 2.5"),
        (lambda: schedules.erasing(True), "num_steps: expected a whole number of at least 2, got True"),
        (lambda: schedules.log_snr(0), "num_steps: expected a whole number of at least 2, got 0"),
        (lambda: schedules.log_snr(5, 3.0, 3.0), "minimum, maximum: expected finite ends, .* got 3.0, 3.0"),
        (lambda: schedules.log_snr(5, NAN, 3.0), "minimum, maximum: expected finite ends, .* got nan, 3.0"),
        (lambda: schedules.log_snr(5, scale=-1.0), "scale, detail: expected positive numbers, got -1.0"),
        (
            lambda: schedules.log_snr(5, detail=NAN),
            "scale, detail: expected positive numbers, got 1.0 and nan",
        ),
        (lambda: schedules.learned(5, 0.0), r"first_beta: expected a number in \(0, 1\), got 0.0"),
        (lambda: schedules.learned(5, NAN), r"first_beta: expected a number in \(0, 1\), got nan"),
        (
            lambda: schedules.learned(5, init=schedules.linear(6)),
            "init: expected a schedule of 5 steps, got 6",
        ),
        (
            lambda: schedules.from_beta([0.1, NAN]),
            r"beta: expected finite numbers, got 1 NaN .* first at \(1,\)",
        ),
        (
            lambda: schedules.from_beta([0.1, -0.2]),
            r"beta: expected every step in \(0, 1\], got .* -0.2 to 0.1",
        ),
        (
            lambda: schedules.from_beta([0.1, 1.2]),
            r"beta: expected every step in \(0, 1\], got .* 0.1 to 1.2",
        ),
        (
            lambda: schedules.from_beta([0.0, 0.2]),
            r"beta: expected every step in \(0, 1\], got .* 0.0 to 0.2",
        ),
        (
            lambda: schedules.from_beta([0.1]),
            r"beta: expected at least 2 steps, shape \(T,\), got shape \(1,\)",
        ),
        (lambda: schedules.from_beta([0.1, 1.0, 0.2]), "expected alpha_bar to decrease .* got .* at t = 3"),
        (
            lambda: schedules.Schedule([np.inf, 1.0, 2.0]),
            "expected alpha_bar to decrease .* 1 at t = 1 and 2 at t = 2",
        ),
        (lambda: schedules.Schedule([np.inf, 1.0, NAN]), "expected alpha_bar to decrease .* nan at t = 2"),
        (
            lambda: schedules.Schedule([3.0, 1.0, 0.0]),
            r"expected alpha_bar\(0\) = 1, got log-SNR 3.0 at t = 0",
        ),
        (
            lambda: schedules.Schedule([np.inf, 1.0]),
            r"expected a table of at least 2 steps .* got shape \(2,\)",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(build: Callable[[], Any], message: str) -> None:
    """Wrong arguments are named, with what was expected and what came."""
    with refused(message):
        build()


@pytest.mark.parametrize("make", [schedules.log_snr, schedules.cosine, schedules.erasing, schedules.linear])
def test_time_at_inverts_log_snr(make) -> None:
    """At whole and fractional steps, next to both ends too; beyond the ends it stays at them."""
    schedule = make(20)
    t = np.concatenate([np.linspace(0.05, 19.95, 57), np.arange(1, 20)]).astype(np.float32)
    np.testing.assert_allclose(schedule.time_at(schedule.log_snr(t)), t, atol=2e-4)
    assert schedule.time_at(np.inf) == 0
    assert schedule.time_at(-1e9) == 20
