"""Progressive coding and generation, against the closed forms of a Gaussian source and the K bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion import denoisers, plots, schedules
from numpyro_diffusion.diagnostics import ProgressiveCode, progressive_coding, progressive_generation

KEY = jax.random.key(0, impl="unsafe_rbg")
T, SIZE, SCALE = 6, 400, 1.7


def _process(last_step="learned"):
    diffusion = nd.GaussianDiffusion(schedules.log_snr(T, -4.0, 3.0), 2.0, 3.0)
    return nd.ReverseProcess(diffusion, denoisers.Gaussian(2.0, SCALE), (SIZE,), last_step=last_step)


def test_a_gaussian_source_has_its_rates_and_distortions():
    """Rates of the exact chain add up to KL(q(x_t|x_0) ‖ p(x_t)), on average the mutual information of x_0 and x_t.

    The distortion is the posterior's standard deviation.
    """
    process = _process()
    x_0 = 2.0 + SCALE * np.random.default_rng(0).normal(size=(4, SIZE))
    code = progressive_coding(KEY, nd.DiffusionPrior(process), x_0, num_samples=8, chunk=16)
    assert code.rate.shape == code.distortion.shape == (4, T) and code.last.shape == code.total.shape == (4,)
    kept = np.asarray(process.diffusion.schedule.alpha_bar(code.step))
    spread, square = (SCALE / 3) ** 2, np.square((x_0 - 2.0) / 3).mean(axis=1)[:, None]
    signal = kept * spread + 1 - kept  # of x_t, standardised
    kl = 0.5 * (np.log(signal / (1 - kept)) + (1 - kept + kept * square) / signal - 1)
    np.testing.assert_allclose(code.rate, kl / np.log(2), rtol=0.05)
    # Error of the mean square of 8 · 400 draws: 2.5%, four of these, half of it for the root.
    posterior = 9 * spread * (1 - kept) / signal
    pull = kept * spread / signal
    expected = np.sqrt(9 * ((1 - pull) ** 2 * square + pull**2 * (1 - kept) / kept))
    np.testing.assert_allclose(code.distortion, expected, rtol=0.05)
    np.testing.assert_allclose(np.square(code.distortion).mean(0), posterior, rtol=0.1)
    assert np.all(np.diff(code.rate) < 0) and np.all(np.diff(code.distortion) > 0)
    # The last step's kernel is the posterior; its cost is that of an error of the distortion's size.
    nats = 0.5 * np.log(2 * np.pi * posterior[0]) + np.square(code.distortion[:, 0]) / (2 * posterior[0])
    np.testing.assert_allclose(code.last, nats / np.log(2), rtol=0.01)
    np.testing.assert_allclose(code.total, code.rate[:, 0] + code.last, rtol=1e-6)
    lines = code.table().splitlines()
    assert len(lines) == T + 2 and lines[1].split()[0] == str(T) and "total" in lines[-1]
    assert [line.split()[0] for line in code.table([1, 3]).splitlines()[1:-1]] == ["3", "1"]


@pytest.mark.slow
def test_generation_shows_predictions_along_the_very_chain():
    process, key = _process(nd.DiscretisedStep(8)), jax.random.key(1)  # of a generator that `vmap` does not change
    shown = progressive_generation(key, process, (2,), num_steps=4)
    assert shown.shape == (2, 5, SIZE)
    chain = jax.jit(lambda key: nd.samplers.Ancestral(4).sample_trajectory(key, process))(jax.random.split(key, 2)[1])
    times = nd.samplers.Ancestral(4).times(process)[::-1]
    np.testing.assert_array_equal(shown[1, 0], chain[0])
    np.testing.assert_allclose(shown[1, 2], process.predict(chain[2], times[1]), rtol=1e-4, atol=1e-4)
    # From noise little is known: predictions begin at the mean and spread out.
    assert np.all(np.diff(np.asarray(shown[:, 1:]).std(axis=-1)) < 0)


def test_the_curve_is_drawn():
    import matplotlib.pyplot as plt

    code = ProgressiveCode(
        np.arange(1, 4), np.array([[3.0, 1.0, 0.0]] * 2), np.array([[0.1, 1.0, 2.0]] * 2), np.ones(2)
    )
    ax = plots.rate_distortion(code, label="one")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[3, 0.1], [1, 1], [0, 2]])
    assert plots.rate_distortion(code, ax, label="two") is ax and len(ax.get_legend().get_texts()) == 2
    plt.close("all")


def test_errors():
    process = _process(nd.DiscretisedStep(8))
    cases = [
        (lambda: progressive_coding(KEY, process, jnp.zeros(3)), r"x_0: expected a shape that ends in the event shape"),
        (
            lambda: progressive_coding(KEY, process, jnp.full(SIZE, 0.5)),
            "x_0: expected whole numbers from 0 to 7, got 0.5",
        ),
        (
            lambda: progressive_coding(KEY, 3, jnp.zeros(SIZE)),
            "prior: expected a DiffusionPrior or a ReverseProcess, got 3",
        ),
        (
            lambda: progressive_coding(KEY, process, jnp.zeros(SIZE), num_samples=0),
            "num_samples: expected a whole number",
        ),
        (lambda: progressive_generation(KEY, process, num_steps=99), "num_steps: expected at most T = 6, got 99"),
    ]
    for call, message in cases:
        with refused(message):
            call()
