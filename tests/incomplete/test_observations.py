"""A prior from observations: what is read from the model, what is shared, laps, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from refusals import refused

import numpyro_diffusion as nd
from numpyro_diffusion.checkpoints import CheckpointError
from numpyro_diffusion.incomplete.reading import Observed, unknowns
from numpyro_diffusion.incomplete.shared import improved
from numpyro_diffusion.incomplete.start import Start, gaussian_start
from numpyro_diffusion.training.laps import Climb, History, climb
from numpyro_diffusion.training.posterior_draws import Current, Draws, Effort, draw
from numpyro_diffusion.twists import Laplace

KEY = jax.random.key(0)
NOISE = 0.4
MEAN, ROOT = np.array([1.0, -2.0]), np.array([[1.0, 0.0], [0.9, 0.6]])


def model(prior, seen):
    """One row through its own operator, with noise of unknown scale."""
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(seen["operator"] @ x, scale).to_event(1), obs=seen["y"])


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    operator = rng.standard_normal((count, 2, 2))
    x = MEAN + rng.standard_normal((count, 2)) @ ROOT.T
    y = np.einsum("nij,nj->ni", operator, x) + NOISE * rng.standard_normal((count, 2))
    return {"operator": operator.astype(np.float32), "y": y.astype(np.float32)}


def evidences(seen, mean, covariance, noise):
    """Of each observation under a Gaussian law, exactly."""
    operator, y = (np.asarray(seen[name], np.float64) for name in ("operator", "y"))
    whole = operator @ covariance @ np.swapaxes(operator, 1, 2) + noise**2 * np.eye(2)
    residual = y - operator @ mean
    square = np.einsum("ni,ni->n", residual, np.linalg.solve(whole, residual[:, :, None])[:, :, 0])
    return -0.5 * (square + np.linalg.slogdet(2 * np.pi * whole)[1])


def test_the_shared_unknowns_are_found_and_maximised():
    """Given x itself, the noise scale of most likelihood is the residuals' root mean square."""
    seen, prior = data(300), Start((2,), 0.0, 1.0).prior
    one = jax.tree.map(lambda leaf: leaf[0], seen)
    shared = unknowns(model, "x", prior, one)
    assert list(shared.first) == ["scale"]
    x = np.random.default_rng(1).standard_normal((300, 2)).astype(np.float32)
    found = improved(KEY, Observed(model, "x"), shared, Current(prior, shared.first), seen, x)
    residual = seen["y"] - np.einsum("nij,nj->ni", seen["operator"], x)
    np.testing.assert_allclose(found["scale"], np.sqrt(np.mean(residual**2)), rtol=5e-3)


def lap(key, number, now, draws):
    return Current(now.prior, {"value": now.params["value"] + jax.random.normal(key) * draws.log_evidence.mean()})


def look(key, now):
    away = np.array([1.0, 1.2]) - abs(float(now.params["value"]) - 2.0)
    return Draws(np.zeros((2, 1, 1)), away, away, away, away)


@pytest.fixture(scope="module")
def beginning():
    now = Current(Start((1,), 0.0, 1.0).prior, {"value": jnp.zeros(())})
    values = look(KEY, now).log_evidence
    return Climb(now, now, values, History([], []).then(values))


def test_laps_go_on_where_they_stopped_and_keep_the_best(beginning, tmp_path):
    whole = climb(KEY, beginning, lap, look, num_laps=6, patience=9)
    part = {"checkpoint": tmp_path / "laps", "settings": {"name": "a"}, "patience": 9}
    climb(KEY, beginning, lap, look, num_laps=2, **part)
    again = climb(KEY, beginning, lap, look, num_laps=6, **part)
    np.testing.assert_allclose(again.history.score, whole.history.score, rtol=1e-6)
    assert len(whole.history.score) == 7
    assert whole.values.mean() == max(whole.history.score)
    np.testing.assert_allclose(again.best.params["value"], whole.best.params["value"], rtol=1e-6)
    with pytest.raises(CheckpointError, match="name = 'b'"):
        climb(KEY, beginning, lap, look, num_laps=6, **part | {"settings": {"name": "b"}})


def test_laps_stop_when_none_is_better(beginning):
    still = lambda key, number, now, draws: now
    found = climb(KEY, beginning, still, look, num_laps=50, patience=3)
    assert found.laps == 3
    assert found.history.best == 0


def fails(prior, seen):
    numpyro.sample("x", prior)
    numpyro.sample("other", dist.Normal(0.0, 1.0))


SEEN = data(20)
BAD = [
    (model, SEEN | {"y": SEEN["y"][:5]}, {}, "observations: expected arrays with a common leading axis"),
    (model, SEEN | {"y": np.full_like(SEEN["y"], np.nan)}, {}, "observations: expected finite values"),
    (model, {"y": np.array(["a"] * 20)}, {}, "observations: expected arrays of numbers"),
    (model, {}, {}, "observations: expected a pytree of arrays"),
    (model, data(5), {}, "observations: expected at least 8"),
    (model, SEEN, {"event_shape": (300,)}, "start: expected a prior to begin with"),
    (model, SEEN, {"num_laps": 0}, "num_laps"),
    (model, SEEN, {"num_particles": 1}, "num_particles"),
    (fails, SEEN, {}, r"model: expected no latent site beside 'x', got \['other'\]"),
]


@pytest.mark.parametrize(("function", "seen", "options", "said"), BAD)
def test_what_cannot_be_learned_from_is_refused_by_name(function, seen, options, said):
    with refused(said):
        nd.fit_prior_from_observations(KEY, function, seen, **{"event_shape": 2, "progress_bar": False} | options)


@pytest.mark.parametrize(("name", "said"), [("max_steps", "first_steps and lap_steps"), ("width", "got 'width'")])
def test_options_that_are_not_passed_on_are_refused_before_the_first_lap(name, said):
    with pytest.raises(TypeError, match=said):
        nd.fit_prior_from_observations(KEY, model, SEEN, event_shape=2, progress_bar=False, **{name: 10})


@pytest.mark.slow
def test_draws_and_the_gaussian_start_against_closed_forms():
    """Evidence of each observation; then mean, covariance and noise near the truth, no worse than it on evidence."""
    seen, begin = data(400), Start((2,), 0.0, 3.0)
    observed = Observed(model, "x")
    shared = unknowns(model, "x", begin.prior, jax.tree.map(lambda leaf: leaf[0], seen))
    some = jax.tree.map(lambda leaf: leaf[:50], seen)
    found = draw(KEY, Current(begin.prior, shared.first), some, observed, Effort(64, None, 1, Laplace()), 64)
    exact = evidences(some, np.zeros(2), 9 * np.eye(2), 1.0)
    np.testing.assert_allclose(found.log_evidence, exact, atol=0.1)
    operator, y = some["operator"], some["y"]
    precision = np.swapaxes(operator, 1, 2) @ operator + np.eye(2) / 9
    mean = np.linalg.solve(precision, np.einsum("nij,ni->nj", operator, y)[:, :, None])[:, :, 0]
    error = np.sqrt(np.diagonal(np.linalg.inv(precision), axis1=1, axis2=2) / 64)
    assert np.abs((found.x.mean(1) - mean) / error).max() < 4.5
    lines = []
    now = gaussian_start(KEY, begin, observed, shared, seen, lines.append)
    assert "laps of expectation maximisation on 400 observations" in lines[0]
    np.testing.assert_allclose(now.params["scale"], NOISE, rtol=0.15)
    draws = np.asarray(now.prior.sample(KEY, (4000,)))
    np.testing.assert_allclose(draws.mean(0), MEAN, atol=0.2)
    np.testing.assert_allclose(np.cov(draws.T), ROOT @ ROOT.T, atol=0.3)
    other = data(500, 5)
    fitted = evidences(other, draws.mean(0), np.cov(draws.T), float(now.params["scale"]))
    assert fitted.mean() > evidences(other, MEAN, ROOT @ ROOT.T, NOISE).mean() - 0.05
