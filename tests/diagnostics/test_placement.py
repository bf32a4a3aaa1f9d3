import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import diagnostics

ENDS = (-8.0, 6.0)


def chain(denoiser, size, num_steps=40):
    return nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(num_steps, *ENDS), 0.5, 2.0), denoiser, (size,))


def test_exact_kernels_are_spread_evenly():
    """Nothing is lost where the kernels are exact: elements that are independent and Gaussian."""
    process = chain(nd.denoisers.Gaussian(0.5, np.array([0.3, 5.0])), 2)
    got = diagnostics.place_steps(jax.random.key(0), process, np.ones((4, 2)), 25)
    np.testing.assert_allclose(got.table[1:], np.linspace(ENDS[1], ENDS[0], 25), atol=2e-2)
    np.testing.assert_allclose(got.times[jnp.array([0, 1, 25])], [0, 1, 40], atol=1e-3)


def shares(table, level, density):
    """Where each of the steps lies on the integral of the density, a tenth of it even."""
    share = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2))
    even = (level - level[0]) / (level[-1] - level[0])
    return np.interp(np.asarray(table)[:0:-1], level, 0.9 * share / share[-1] + 0.1 * even)


LEVEL = np.linspace(*ENDS, 1000)
SNR = np.exp(LEVEL)


def test_density_of_a_denoiser_without_a_variance():
    """Data N(m, c² s²) and kernels of variance β̃: all of SNR · Cov is lost."""
    square = 0.3**2

    def predict(z, time):
        kept, lost = nd.schedules.log_snr(40, *ENDS).signal_and_noise(time)
        return jnp.sqrt(kept) * square / (kept * square + lost) * z

    process = chain(nd.denoisers.Network(predict, predicts="data", variance="beta_tilde"), 3)
    got = diagnostics.place_steps(jax.random.key(0), process, np.ones((3, 3)), chunk=50)
    share = shares(got.table, LEVEL, SNR * square / (1 + SNR * square))
    np.testing.assert_allclose(share, np.linspace(0, 1, 40), atol=3e-3)


def test_density_of_two_modes():
    """They differ by Δ in every element: Cov − diag is r(1−r)(ΔΔᵀ − diag), and the log odds of r are Gaussian."""
    modes = nd.denoisers.GaussianMixture(np.outer([-4.0, 4.0], np.ones(8)), np.ones(2), [0.5, 0.5])
    process = chain(modes, 8)
    place = jax.jit(lambda key, x_0: diagnostics.place_steps(key, process, x_0, 30, num_times=40).table)
    table = place(jax.random.key(1), modes.data().sample(jax.random.key(0), (4000,)))  # in compiled code too
    distance = 8 * 4.0**2 * SNR / (1 + 0.25 * SNR)  # of the modes in noise, squared, in standardised units
    odds = np.linspace(-60, 60, 4001)[:, None]
    law = np.exp(-0.5 * (odds - distance / 2) ** 2 / distance) / np.sqrt(2 * np.pi * distance)
    undecided = (law / (2 + 2 * np.cosh(odds)) ** 2).sum(0) * 0.03
    share = shares(table, LEVEL, SNR * np.sqrt(undecided * (64 - 8)) * 4.0**2)
    np.testing.assert_allclose(share, np.linspace(0, 1, 30), atol=0.06)


def test_bad_input_is_said():
    process = chain(nd.denoisers.Gaussian(0.0, 1.0), 2)
    for data, options, message in (
        (np.ones(2), {}, r"data: expected shape \(n, \*\(2,\)\), got \(2,\)"),
        (np.full((3, 2), np.nan), {}, "data: expected finite numbers"),
        (np.ones((3, 2)), {"num_steps": 1}, "num_steps: expected a whole number of at least 2"),
        (np.ones((3, 2)), {"num_times": 1}, "num_times: expected a whole number of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            diagnostics.place_steps(jax.random.key(0), process, data, **options)
    coins = nd.ReverseProcess(nd.BinomialDiffusion(nd.schedules.erasing(4)), nd.denoisers.Enumerated([[0, 1]]), 2)
    with pytest.raises(ValueError, match="process: expected a GaussianDiffusion, got BinomialDiffusion"):
        diagnostics.place_steps(jax.random.key(0), coins, np.ones((3, 2)))
