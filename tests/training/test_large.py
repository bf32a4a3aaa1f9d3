"""Priors of events that are too large for covariances start at a mixture of Gaussians along turned axes."""

import jax
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.denoisers import Network, Residual
from numpyro_diffusion.training import chosen_separable, fit_separable, plan_prior

KEY, SHAPE = jax.random.key(0), (17, 16)


def pictures(count, seed=0):
    """Smooth fields of one of two contrasts, and their exact law's log density, by cosines."""
    rng = np.random.default_rng(seed)
    bases = [np.linalg.qr(np.vander(np.linspace(-1, 1, size), size, increasing=True))[0] for size in SHAPE]
    speed = np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1]))
    scales = np.exp(-0.15 * speed)
    contrast = np.where(rng.random(count) < 0.4, 0.3, 2.0)
    z = rng.normal(size=(count, *SHAPE)) * scales * contrast[:, None, None]
    x = np.einsum("nab,ia,jb->nij", z, *bases) + 5.0
    parts = [
        np.log(share) - 0.5 * (np.square(z / (scales * own)) + np.log(2 * np.pi * (scales * own) ** 2)).sum((1, 2))
        for share, own in ((0.4, 0.3), (0.6, 2.0))
    ]
    return x, np.logaddexp(*parts)


def test_the_fit_finds_a_mixture_of_two_contrasts():
    """Held-out log density within a few nats of the law's own, and far above one Gaussian's."""
    (train, _), (held_out, exact) = pictures(2_000), pictures(500, 1)
    flat = lambda x: x.reshape(len(x), -1)
    law = chosen_separable(flat(train), flat(held_out), SHAPE)
    one = fit_separable(flat(train), SHAPE, 1)
    gap = exact - law.log_prob(flat(held_out))
    assert (
        law.basis == "principal axes"
        and len(law.weights) == 4
        and law.said == "mixture of 4 Gaussians along principal axes"
    )
    assert 0 < gap.mean() < 5 and (law.log_prob(flat(held_out)) - one.log_prob(flat(held_out))).mean() > 50
    np.testing.assert_allclose(
        law.denoiser().data().log_prob(held_out[:5]), law.log_prob(flat(held_out[:5])), rtol=1e-4
    )
    np.testing.assert_allclose(np.mean(np.square(flat(train) - 5)), 0.4 * 0.09 * 2.4 + 0.6 * 4 * 2.4, rtol=1)


def test_plans_of_large_events_have_the_baseline():
    x, _ = pictures(60)
    plan = plan_prior(KEY, x)
    assert plan.is_large and plan.has_baseline and not plan.is_table and plan.process.num_steps == 200
    assert isinstance(plan.process.denoiser, Residual)
    assert any(line.startswith("baseline: a Gaussian or mixtures of up to 64") for line in plan.reasons)
    series = plan_prior(KEY, x.reshape(60, -1), kind="series")
    assert series.is_large and series.process.diffusion.scale.shape == ()
    assert series.process.predict(np.full(272, 5.0, np.float32), 3).shape == (272,)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda x: x, {"loc": 0.0}),
        (lambda x: x, {"network": lambda x, t: x}),
        (lambda x: x[:10], {}),
        (lambda x: x.reshape(60, -1) * np.linspace(1, 100, 272), {}),  # a vector of several units
        (lambda x: x > 5, {}),
    ],
)
def test_plans_of_others_have_none(change, options):
    plan = plan_prior(KEY, change(pictures(60)[0]), **options)
    assert not plan.is_large and isinstance(plan.process.denoiser, Network)


def test_a_prior_is_no_worse_than_its_baseline_but_for_the_steps():
    """Before anything is learned, K is the mixture's log density less the few nats that 200 steps lose."""
    x, _ = pictures(400)
    prior = nd.fit_prior(KEY, x, max_steps=1, learning_rate=1e-9, progress_bar=False)
    report = prior.report()
    law, gaussian = report.baselines
    assert law.name == "mixture of 4 Gaussians along principal axes" and gaussian.name == "Gaussian"
    assert -8 < report.prior.value - law.value < 4 * law.gain_error and report.prior.value - gaussian.value > 50
    draws = np.asarray(prior.sample(jax.random.key(1), (200,)))
    np.testing.assert_allclose(draws.std(), x.std(), rtol=0.15)


def test_contexts_are_told_to_a_network_alone():
    """The mixture knows no context, and is left out."""
    x, _ = pictures(60)
    prior = nd.fit_prior(KEY, x, context=x.mean((1, 2)), max_steps=2, progress_bar=False)
    assert isinstance(prior.process.denoiser, Network)
    assert not any(line.startswith("baseline") for line in prior.report().reasons)
