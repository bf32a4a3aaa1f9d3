"""The covariance of the data goes along with what has learned from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions.transforms import LowerCholeskyAffine

import numpyro_diffusion as nd
from numpyro_diffusion.training.data_moments import with_data_moments

SIZE, ROOT = 3, np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.4, 0.2]])


def process(family=nd.GaussianDiffusion, size=SIZE, **options):
    network = nd.networks.MLP(jax.random.key(0), (size,), num_steps=8, width=8, **options)
    if family is nd.GaussianDiffusion:
        diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8), loc=1.0, scale=2.0)
        return nd.ReverseProcess(diffusion, nd.denoisers.Network(network, predicts="velocity"), size)
    return nd.ReverseProcess(family(nd.schedules.log_snr(8)), nd.denoisers.Network(network, predicts="logits"), size)


def data(count=4000):
    return np.random.default_rng(0).normal(size=(count, SIZE)) @ ROOT.T


def fitted(process, data, **options):
    options = {"max_steps": 3, "validation": 0.0, "progress_bar": False} | options
    return nd.fit(jax.random.key(1), process, data, **options).process


def covariance(process):
    """In units of the data."""
    found = process.moments
    return 2.0**2 * np.asarray((found.basis * found.variances) @ found.basis.T)


@pytest.mark.parametrize("width", [0.0, 1.5])
def test_the_covariance_is_that_of_the_data_and_of_the_noise_that_training_adds(width):
    x = data()
    found = covariance(fitted(process(), x, dequantize=width))
    # An entry of a covariance of n examples has a standard error of at most 1.6 · √(2/n) here.
    np.testing.assert_allclose(found, ROOT @ ROOT.T + width**2 / 12 * np.eye(SIZE), atol=4 * 1.6 * np.sqrt(2 / len(x)))


def test_it_is_in_the_coordinates_of_the_process():
    transform = LowerCholeskyAffine(jnp.zeros(SIZE), jnp.asarray(ROOT, float))
    np.testing.assert_allclose(
        covariance(fitted(process(), data(), transform=transform)), np.eye(SIZE), atol=4 * np.sqrt(2 / 4000)
    )


def test_it_is_kept_in_a_file_and_not_trained(tmp_path):
    first = fitted(process(), data())
    again = fitted(first, 3 * data(), max_steps=5)
    nd.DiffusionPrior(again).save(tmp_path / "prior.safetensors")
    loaded = nd.load(tmp_path / "prior.safetensors").process
    np.testing.assert_array_equal(covariance(loaded), covariance(first))


def test_nothing_is_said_where_nothing_is_known():
    said = lambda process, data, width=0.0: with_data_moments(process, None, data, width).moments
    constant = data()
    constant[:, 1] = 0.5
    assert said(process(), data(20)) is not None and said(process(), data(19)) is None  # too few
    assert said(process(), constant) is None and said(process(), constant, 0.1) is not None
    assert said(process(nd.BinomialDiffusion), (data() > 0).astype(float)) is None


@pytest.mark.slow
def test_nothing_is_said_of_a_stream():
    assert fitted(process(), lambda step: data(64), max_steps=1).moments is None
