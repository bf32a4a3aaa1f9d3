"""`denoise` is `posterior` and `reverse` from one call of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.denoisers import Enumerated, Gaussian, GaussianMixture, Network

REAL = nd.GaussianDiffusion(nd.schedules.log_snr(6), 0.2, 1.5)
BITS = nd.BinomialDiffusion(nd.schedules.log_snr(6, -3.0, 3.0), 0.4)
CALLS = []


def one(x, t):
    CALLS.append(1)
    return 0.3 * x[::-1] - 0.1 * t


def pair(x, t):
    return one(x, t), 0.2 * jnp.sin(x)


HEADS = {
    "noise": (REAL, Network(one, "noise")),
    "data_beta_tilde": (REAL, Network(one, "data", "beta_tilde")),
    "velocity_learned": (REAL, Network(pair, "velocity", "learned")),
    "mean": (REAL, Network(pair, "mean")),
    "logits": (BITS, Network(one, "logits")),
    "bits_mean": (BITS, Network(one, "mean")),
    "gaussian": (REAL, Gaussian(0.5, 1.2)),
    "mixture": (REAL, GaussianMixture(np.eye(3), np.full(3, 0.3), np.full(3, 1 / 3))),
    "enumerated": (BITS, Enumerated(np.eye(3, dtype=int))),
}


@pytest.mark.parametrize("s", [None, 2])
@pytest.mark.parametrize("name", HEADS)
def test_both_laws_come_from_one_call(name, s):
    """For strides too: the posterior and the kernel are those asked for one by one."""
    diffusion, denoiser = HEADS[name]
    x_t = jnp.array([1.0, 0.0, 1.0]) if diffusion is BITS else jnp.array([0.4, -1.0, 2.0])

    def moments(x, ask):
        return [(law.mean, law.variance) for law in ask(x)]

    CALLS.clear()
    both = jax.jit(lambda x: moments(x, lambda x: denoiser.denoise(diffusion, x, 5, s)))(x_t)
    assert len(CALLS) == (1 if isinstance(denoiser, Network) else 0)
    apart = jax.jit(
        lambda x: moments(x, lambda x: (denoiser.posterior(diffusion, x, 5), denoiser.reverse(diffusion, x, 5, s)))
    )(x_t)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), both, apart)
    default = jax.jit(lambda x: denoiser.denoise(diffusion, x, 5, 4)[1].mean)(x_t)
    assert np.allclose(default, both[1][0], rtol=1e-5) is (s is None)


@pytest.mark.parametrize("name", ["noise", "velocity_learned", "mean", "logits", "bits_mean"])
def test_an_answer_given_before_is_the_same_answer(name):
    """Bits with the head "mean" have one output, real numbers two."""
    diffusion, denoiser = HEADS[name]
    x_t = jnp.array([1.0, 0.0, 1.0]) if diffusion is BITS else jnp.array([0.4, -1.0, 2.0])
    again = denoiser.with_outputs(denoiser.outputs(diffusion, x_t, 5.0))
    for ask in (lambda d: d.posterior(diffusion, x_t, 5.0), lambda d: d.reverse(diffusion, x_t, 5.0)):
        np.testing.assert_allclose(ask(again).mean, ask(denoiser).mean, rtol=1e-6)


def test_denoisers_say_what_they_can_be_trained_for_and_whether_they_have_a_variance():
    said = {
        name: (denoiser.objectives(diffusion), denoiser.has_variance) for name, (diffusion, denoiser) in HEADS.items()
    }
    assert said == {
        "noise": (("bound", "simple"), False),
        "data_beta_tilde": (("bound", "simple"), False),
        "velocity_learned": (("bound", "hybrid"), True),
        "mean": (("bound",), True),
        "logits": (("bound", "simple"), True),
        "bits_mean": (("bound", "simple"), True),
        "gaussian": (("bound", "simple"), True),
        "mixture": (("bound", "simple"), True),
        "enumerated": (("bound", "simple"), True),
    }
