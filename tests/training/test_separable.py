"""Mixtures of Gaussians along turned axes, a simple model of events that are too large for covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training import chosen_separable, fit_separable

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


def test_a_prior_of_pictures_is_compared_with_it():
    """An untrained network knows less than a mixture that takes a second, and the report and a warning say so."""
    x, _ = pictures(400)
    with pytest.warns(nd.BelowBaselineWarning, match="mixture of 4 Gaussians along principal axes"):
        prior = nd.fit_prior(KEY, x, max_steps=1, progress_bar=False)
    gaussian, law = prior.report().baselines
    assert (gaussian.name, law.name) == ("Gaussian", "mixture of 4 Gaussians along principal axes")
    assert law.value - gaussian.value > 50 and law.gain < -50


def test_the_chain_about_it_loses_little_to_its_steps():
    """K of 200 steps is a few nats of 272 elements below the log density."""
    x, _ = pictures(400)
    law = fit_separable(x.reshape(400, -1), SHAPE, 4)
    detail = float(np.sqrt(np.quantile(law.variances, 0.05)) / x.std())
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(200, detail=detail), x.mean(), x.std())
    process = nd.ReverseProcess(diffusion, law.denoiser(), SHAPE)
    seen = pictures(30, 1)[0]
    bound = nd.KBound(4, 50)(KEY, process, jnp.asarray(seen, jnp.float32))
    gap = law.log_prob(seen.reshape(30, -1)) - np.asarray(bound.value)
    error = gap.std() / np.sqrt(30)
    assert -3 * error < gap.mean() < 8 + 3 * error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": "waves"}, "basis: expected one of 'cosines', 'principal axes', got 'waves'"),
        ({"event_shape": (3, 5)}, r"x: expected shape \(n, 15\), flat events \(3, 5\), got \(8, 12\)"),
        ({"count": 9}, "count: expected at most as many as the 8 examples, of at least 2, got 9"),
        ({"count": 0}, "count: expected"),
        ({"x": np.full((8, 12), np.nan)}, "x: expected finite numbers"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    given = {"x": np.random.default_rng(0).normal(size=(8, 12)), "event_shape": (3, 4), "count": 1}
    with pytest.raises(ValueError, match=message):
        fit_separable(**given | change)


@pytest.mark.parametrize(("basis", "count"), [("cosines", 2), ("principal axes", 3)])
def test_a_vector_of_numbers_has_one_axis(basis, count):
    """Copies of nothing: its chain's denoiser has the mixture's own density."""
    x = np.random.default_rng(0).normal(size=(200, 12)) * np.linspace(0.1, 2, 12) + 1
    law = fit_separable(x, (12,), count, basis)
    assert len(law.weights) == count and abs(law.weights.sum() - 1) < 1e-9
    np.testing.assert_allclose(law.denoiser().data().log_prob(x[:5]), law.log_prob(x[:5]), rtol=1e-4)
