"""The reverse process: batches, traced steps, strides and last steps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from refusals import refused

from numpyro_diffusion import (
    BinomialDiffusion,
    CategoricalDiffusion,
    GaussianDiffusion,
    MixedDiffusion,
    ReverseProcess,
    schedules,
)
from numpyro_diffusion.denoisers import AbstractDenoiser, Enumerated, Gaussian, Network
from numpyro_diffusion.process import DiscretisedStep, FixedStep, ForwardStep, LearnedStep, trainable

BETA = np.array([0.02, 0.1, 0.3, 0.15, 0.5])
T = len(BETA)
KEPT = np.concatenate([[1.0], np.cumprod(1 - BETA)])
LOC, SCALE = np.array([0.7, -3.0]), np.array([2.5, 0.3])
DATA_LOC, DATA_SCALE = np.array([1.5, -2.8]), np.array([0.6, 0.2])


def _gaussian(last_step: Any = "learned", denoiser: Any = None) -> ReverseProcess:
    denoiser = Gaussian(DATA_LOC, DATA_SCALE) if denoiser is None else denoiser
    diffusion = GaussianDiffusion(schedules.from_beta(BETA), LOC, SCALE)
    return ReverseProcess(diffusion, denoiser, 2, last_step=last_step)


def _coupled(z: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(z + 0.5 * z[::-1]) + 0.1 * t


class _Timeless(eqx.Module):
    """A network that is not told the time."""

    layers: eqx.nn.MLP

    def __call__(self, z: jax.Array, t: jax.Array) -> jax.Array:
        """Output for one example."""
        return self.layers(z)


@eqx.filter_jit
def _moments(process: ReverseProcess, x_t: Any, t: Any, s: Any = None) -> tuple[jax.Array, jax.Array]:
    law = process.kernel(x_t, t, s)
    return law.mean, law.variance


def test_kernels_of_the_gaussian_oracle_are_exact(x64: None) -> None:
    """Every step and stride is q(x_s | x_t) of the joint normal law, the last step included."""
    process, x_t = _gaussian(), LOC + SCALE * np.array([0.3, -1.2])
    mean_0, spread_0 = (DATA_LOC - LOC) / SCALE, (DATA_SCALE / SCALE) ** 2
    z = (x_t - LOC) / SCALE
    pairs = [(1, 0), *((t, s) for t in range(2, T + 1) for s in range(1, t))]
    kernel = eqx.filter_jit(lambda p, t, s: jax.vmap(lambda t, s: _moments(p, x_t, t, s))(t, s))
    means, variances = kernel(process, *np.array(pairs).T)
    for (t, s), mean, variance in zip(pairs, means, variances, strict=True):
        spread = lambda u: KEPT[u] * spread_0 + 1 - KEPT[u]
        shared = np.sqrt(KEPT[t] / KEPT[s]) * spread(s)
        expected = np.sqrt(KEPT[s]) * mean_0 + shared / spread(t) * (z - np.sqrt(KEPT[t]) * mean_0)
        np.testing.assert_allclose((mean - LOC) / SCALE, expected, rtol=1e-9)
        np.testing.assert_allclose(variance / SCALE**2, spread(s) - shared**2 / spread(t), rtol=1e-9)


def test_batches_are_loops() -> None:
    """The kernel of a batch has its batch shape, and each row is the kernel of one example."""
    process = _gaussian(denoiser=Network(_coupled))
    x_t = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    law = process.kernel(x_t, 3)
    assert law.batch_shape == (2, 3)
    assert law.event_shape == (2,)
    sample = law.sample(jax.random.key(0), (4,))
    assert sample.shape == (4, 2, 3, 2)
    assert law.log_prob(sample).shape == (4, 2, 3)
    predict = jax.jit(lambda x: process.predict(x, 3))
    predictions = predict(x_t)
    assert predictions.shape == (2, 3, 2)
    for i in np.ndindex(2, 3):
        one = _moments(process, x_t[i], 3)
        np.testing.assert_allclose(law.mean[i], one[0], rtol=1e-5)
        np.testing.assert_allclose(law.variance[i], one[1], rtol=1e-5)
        np.testing.assert_allclose(predictions[i], predict(x_t[i]), rtol=1e-5)
    assert process.kernel(x_t[0, 0], 3).batch_shape == ()
    assert process.terminal().event_shape == (2,)
    assert process.num_steps == T


@pytest.mark.parametrize("last_step", ["learned", "forward"])
@pytest.mark.parametrize("family", ["gaussian", "bits"])
def test_traced_steps_equal_concrete_ones(family: str, last_step: str, x64: None) -> None:
    """One compiled kernel serves all t and s, the last step included."""
    if family == "gaussian":
        process, x_t = _gaussian(last_step, Network(_coupled)), np.array([[0.3, -2.0], [1.0, 0.0]])
    else:
        diffusion = BinomialDiffusion(schedules.from_beta(BETA), 0.3)
        process = ReverseProcess(diffusion, Enumerated([[0, 1], [1, 1]]), 2, last_step=last_step)
        x_t = np.array([[0.0, 1.0], [1.0, 1.0]])
    traced = eqx.filter_jit(lambda p, t, s: _moments(p, x_t, t, s))
    for t, s in [(1, 0), (5, 2)]:
        got = traced(process, jnp.asarray(t), jnp.asarray(s))
        law = process.kernel(x_t, t, s)
        np.testing.assert_allclose(got[0], law.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(got[1], law.variance, rtol=1e-9, atol=1e-12)
    default = eqx.filter_jit(lambda p, t: _moments(p, x_t, t))(process, jnp.asarray(1))
    np.testing.assert_allclose(default, traced(process, jnp.asarray(1), jnp.asarray(0)), rtol=1e-9, atol=1e-12)


def test_last_steps(x64: None) -> None:
    """Each choice of p(x_0 | x_1), in numpy."""
    x_1 = LOC + SCALE * np.array([0.5, -0.2])
    z = (x_1 - LOC) / SCALE
    guess = np.tanh(z + 0.5 * z[::-1]) + 0.1
    head = Network(_coupled, "data")
    cases = [
        ("forward", np.sqrt(1 - BETA[0]) * z, BETA[0]),
        ("learned", guess, BETA[0]),  # a fixed variance gets a trainable scale, that starts at beta_1
        (LearnedStep(np.log([0.3, 0.1])), guess, np.array([0.09, 0.01])),
        (LearnedStep(), guess, BETA[0]),
    ]
    for last_step, mean, variance in cases:
        got = _moments(_gaussian(last_step, head), x_1, 1)
        np.testing.assert_allclose((got[0] - LOC) / SCALE, mean, rtol=1e-9)
        np.testing.assert_allclose(got[1] / SCALE**2, np.broadcast_to(variance, 2), rtol=1e-9)


def test_the_default_last_step_fits_the_denoiser() -> None:
    """Only a network with a fixed variance needs a scale of its own."""
    pair = lambda z, t: (z, z)
    assert _gaussian().last_step.log_scale is None
    assert _gaussian(denoiser=Network(pair, "mean")).last_step.log_scale is None
    assert _gaussian(denoiser=Network(pair, "noise", "learned")).last_step.log_scale is None
    np.testing.assert_allclose(
        _gaussian(denoiser=Network(_coupled)).last_step.log_scale, 0.5 * np.log(BETA[0]), rtol=1e-5
    )
    bits = BinomialDiffusion(schedules.from_beta(BETA))
    assert ReverseProcess(bits, Network(_coupled, "logits"), 2).last_step.log_scale is None
    assert isinstance(_gaussian("forward").last_step, ForwardStep)
    assert isinstance(_gaussian().kernel(np.zeros((3, 2)), 1).base_dist, dist.Normal)


def test_trainable_marks_what_training_may_change() -> None:
    """Floating arrays of the denoiser and the last step, a learned schedule's steps, and nothing else."""
    network = Network(_Timeless(eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))))
    process = _gaussian(denoiser=network)
    mask = trainable(process)
    assert jax.tree.structure(mask) == jax.tree.structure(process)
    assert mask.last_step.log_scale is True
    assert not any(jax.tree.leaves(mask.diffusion))
    arrays = eqx.filter(process, eqx.is_array)
    chosen = jax.tree.leaves(eqx.filter(arrays, jax.tree.map(bool, mask)))
    assert {a.shape for a in chosen} == {(4, 2), (4,), (2, 4), (2,), ()}
    assert len(chosen) == 5
    diffusion = GaussianDiffusion(schedules.learned(5))
    learned = trainable(ReverseProcess(diffusion, network, 2, last_step="forward"))
    assert learned.diffusion.schedule.logits is True
    assert sum(bool(leaf) for leaf in jax.tree.leaves(learned.diffusion)) == 1
    assert not any(jax.tree.leaves(learned.last_step))


def test_supports() -> None:
    """Real numbers or bits, of the rank of the event."""
    bits = ReverseProcess(BinomialDiffusion(schedules.from_beta(BETA)), Enumerated([[[0, 1]]]), (1, 2))
    assert bits.support(np.array([[0.0, 1.0]]))
    assert not bits.support(np.array([[0.0, 0.5]]))
    assert bits.support.event_dim == 2
    assert not _gaussian().support(np.array([0.0, np.nan]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ReverseProcess(schedules.linear(5), Gaussian(0, 1), 2),
            "diffusion: expected a GaussianDiffusion or .* got Schedule",
        ),
        (
            lambda: ReverseProcess(_gaussian().diffusion, _coupled, 2),
            "denoiser: expected one from numpyro_diffusion.denoisers, got <function _coupled",
        ),
        (
            lambda: _gaussian("none"),
            "last_step: expected 'learned', 'forward', 'discretised' or a last step module, got 'none'",
        ),
        (
            lambda: ReverseProcess(GaussianDiffusion(schedules.linear(5)), Gaussian(np.zeros(3), 1.0), 1),
            r"denoiser: expected answers of the event shape \(1,\), got \(3,\)",
        ),
        (
            lambda: _gaussian().kernel(np.zeros((4, 3)), 2),
            r"x_t: expected a shape that ends in the event shape \(2,\), got \(4, 3\)",
        ),
        (
            lambda: _gaussian().predict(0.0, 2),
            r"x_t: expected a shape that ends in the event shape \(2,\), got \(\)",
        ),
        (
            lambda: _gaussian().kernel(np.zeros(2), 3, 0),
            "t, s: expected t = 1 for the last step, s = 0, got t = 3",
        ),
        (
            lambda: ReverseProcess(
                BinomialDiffusion(schedules.from_beta(BETA)),
                Enumerated([[0, 1]]),
                2,
                last_step=LearnedStep(0.0),
            ).kernel(np.zeros(2), 1),
            "log_scale: only GaussianDiffusion has a scale, got BinomialDiffusion",
        ),
    ],
)
def test_errors(build: Callable[[], Any], message: str) -> None:
    """Wrong parts and shapes are named, with what was expected and what came."""
    with refused(message):
        build()


class _Foreign(AbstractDenoiser):
    """A denoiser whose posterior is of any law."""

    law: Callable[[Any], dist.Distribution]

    def posterior(self, diffusion: Any, x_t: Any, t: Any) -> dist.Distribution:
        """That law at x_t."""
        return self.law(x_t)


FOREIGN = {
    "a Laplace law": (GaussianDiffusion, lambda x: dist.Laplace(x, 1.0), "mean_and_variance: .* got one of Laplace"),
    "bits": (GaussianDiffusion, lambda x: dist.Bernoulli(logits=x), "mean_and_variance: .* got one of BernoulliLogits"),
    "normal for bits": (BinomialDiffusion, lambda x: dist.Normal(x, 1.0), "bit_logits: .* got one of Normal"),
    "normal for classes": (
        lambda schedule: CategoricalDiffusion(schedule, 3),
        lambda x: dist.Normal(x, 1.0),
        "class_logits: .* got one of Normal",
    ),
    "normal for mixed columns": (
        lambda schedule: MixedDiffusion([GaussianDiffusion(schedule), CategoricalDiffusion(schedule, 3)], [[0], [1]]),
        lambda x: dist.Normal(x, 1.0),
        "expected a law of mixed columns, as ProductMixture has, got one of Independent",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_posterior_of_another_family_is_refused(case: str) -> None:
    """Neither a Laplace law nor bits are taken for a normal law, and no normal law for bits or classes."""
    family, law, message = FOREIGN[case]
    with pytest.raises(TypeError, match=f"denoiser: expected laws of the diffusion's family; {message}"):
        ReverseProcess(family(schedules.from_beta(BETA)), _Foreign(lambda x: law(x * 1.0).to_event(1)), 2)


@pytest.mark.parametrize("last_step", [LearnedStep(0.0), FixedStep(), DiscretisedStep(4)])
def test_last_steps_refuse_laws_that_are_not_normal(last_step: Any) -> None:
    """Also where the denoiser has become another one since the process was made."""
    process = eqx.tree_at(lambda process: process.denoiser, _gaussian(last_step), _Foreign(FOREIGN["bits"][1]))
    with pytest.raises(TypeError, match="expected a law of .*Normal.*, got one of BernoulliLogits"):
        process.kernel(np.zeros(2), 1)
