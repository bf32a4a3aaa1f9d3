"""Laws of every distribution: shapes, batches, supports and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer.util import log_density
from refusals import refused

import numpyro_diffusion as nd

KEY = jax.random.key(3)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def test_shapes_of_draws_and_densities(case):
    """Samples are sample + batch + event; densities drop the event and broadcast the value with the batch."""
    made, values, batch = case.made, case.values, case.batch
    assert isinstance(made, dist.Distribution)
    assert (made.batch_shape, made.event_shape) == (batch, case.event)
    assert made.shape() == batch + case.event
    assert values.shape == made.shape((4,))
    draws = made.sample(KEY, sample_shape=(2, 2))
    assert draws.shape == (2, 2, *batch, *case.event)
    assert len(np.unique(np.asarray(draws).reshape(4, -1), axis=0)) > 1
    log_prob = made.log_prob(values)
    assert log_prob.shape == (4, *batch)
    assert np.isfinite(log_prob).all()
    assert np.all(made.support(values))
    np.testing.assert_array_equal(made.log_prob(np.asarray(values), intermediates=None), log_prob)
    squares = values.reshape(2, 2, *batch, *case.event)
    np.testing.assert_array_equal(made.log_prob(squares), log_prob.reshape(2, 2, *batch))


def test_values_broadcast_with_the_batch(rows):
    """A value without the batch is seen by every row of it."""
    made = rows("forward-batch").made
    value = rows("forward-gaussian").values
    assert made.log_prob(value[0]).shape == (2,)
    assert made.log_prob(value[:, None]).shape == (4, 2)
    np.testing.assert_allclose(
        made.log_prob(value[:, None])[:, 0], rows("forward-gaussian").made.log_prob(value), **CLOSE
    )
    with pytest.raises(ValueError, match="broadcast"):
        made.log_prob(value[:3])
    draw, rest = made.sample_with_intermediates(KEY)
    np.testing.assert_array_equal(draw, made.sample(KEY))
    np.testing.assert_array_equal(draw, made(rng_key=KEY))
    assert rest == []
    assert made.sample(KEY, (0,)).shape == (0, 2, 8, 2)


def test_support_and_flags(any_case):
    """The support is that of the data with the event's rank, and draws are of its kind."""
    case, made = any_case, any_case.made
    data, noise = (constraints.independent(of_one, len(case.event)) for of_one in (case.one.data, case.one.noise))
    if case.name.startswith("trajectory") and data != noise:
        for step, place, number in itertools.product((0, 1), range(case.one.size), (0.5, 3.0, -1.0, np.nan)):
            chain = np.array(made.support.feasible_like(jnp.zeros(case.event)))
            chain[step, place] = number
            assert made.support(chain) == constraints.independent((data, noise)[step].base_constraint, 1)(chain[step])
    else:
        assert made.support == (noise if case.name.startswith("forward") else data)
    assert made.support == case.build(0.7).support == jax.tree.map(lambda leaf: leaf, made.support)
    assert np.all(made.support(made.support.feasible_like(jnp.zeros((4, *made.shape())))))
    assert made.event_dim == made.support.event_dim == len(case.event)
    assert made.is_discrete is case.discrete
    assert made.has_rsample is case.smooth
    assert not made.has_enumerate_support
    drawn = jax.eval_shape(made.sample, KEY)
    assert drawn.shape == case.batch + case.event
    assert jnp.issubdtype(drawn.dtype, jnp.integer if case.whole else jnp.floating)
    if case.smooth:
        assert jax.eval_shape(made.rsample, KEY).shape == drawn.shape
    else:
        with pytest.raises(NotImplementedError):
            made.rsample(KEY)


def test_expand_broadcasts_the_batch(case):
    """`expand` and `expand_by` add independent copies, keep the class, and compose with each other."""
    made, values = case.made, case.values
    wide = made.expand((4, *case.batch))
    assert type(wide) is type(made)
    assert wide.batch_shape == (4, *case.batch)
    assert made.expand(case.batch) is made
    draws = wide.sample(KEY)
    assert draws.shape == (4, *case.batch, *case.event)
    np.testing.assert_allclose(wide.log_prob(draws), made.log_prob(draws), **CLOSE)
    np.testing.assert_allclose(wide.log_prob(values), made.log_prob(values), **CLOSE)
    assert wide.log_prob(values[0]).shape == (4, *case.batch)
    higher = wide.expand_by((3, 1)).expand((3, 2, 4, *case.batch))
    assert higher.batch_shape == (3, 2, 4, *case.batch)
    assert higher.shape() == (*higher.batch_shape, *case.event)
    with pytest.raises(ValueError, match="batch_shape"):
        wide.expand((5, *case.batch))
    with pytest.raises(ValueError, match="batch_shape"):
        wide.expand(case.batch)


def test_to_event_and_mask(case):
    """`to_event` adds densities up over the batch; a mask puts zeros where it is false."""
    made, values = case.made, case.values
    log_prob = np.asarray(made.log_prob(values))
    whole = made.expand((4, *case.batch)).to_event(1 + len(case.batch))
    assert (whole.batch_shape, whole.event_shape) == ((), (4, *case.batch, *case.event))
    assert whole.support.event_dim == 1 + len(case.batch) + len(case.event)
    np.testing.assert_allclose(whole.log_prob(values), log_prob.sum(), rtol=1e-4)
    assert whole.sample(KEY).shape == whole.event_shape
    keep = np.array([True, False, True, False]).reshape(4, *[1] * len(case.batch))
    masked = made.mask(jnp.broadcast_to(keep, (4, *case.batch)))
    assert masked.batch_shape == (4, *case.batch)
    np.testing.assert_allclose(masked.log_prob(values), np.where(keep, log_prob, 0.0), **CLOSE)
    hidden = jnp.where(keep.reshape(keep.shape + (1,) * len(case.event)), values, 7)
    np.testing.assert_allclose(masked.log_prob(hidden), np.where(keep, log_prob, 0.0), **CLOSE)
    np.testing.assert_array_equal(made.mask(False).log_prob(values), np.zeros((4, *case.batch)))


def test_plates_and_subsampling(case):
    """A plate stands to the left of the batch, draws differ in it, and a subsample's density is scaled up."""
    dim = -1 - len(case.batch)

    def model(size):
        with numpyro.plate("rows", 12, subsample_size=size, dim=dim):
            return numpyro.sample("x", case.made)

    drawn = numpyro.handlers.trace(numpyro.handlers.seed(model, KEY)).get_trace(4)["x"]
    assert drawn["value"].shape == (4, *case.batch, *case.event)
    assert len(np.unique(np.asarray(drawn["value"]).reshape(4, -1), axis=0)) > 1
    assert type(drawn["fn"]) is type(case.made)
    part, rows = jnp.arange(4), case.values
    rng = numpyro.handlers.seed(model, KEY)
    scaled, _ = log_density(rng, (4,), {}, {"rows": part, "x": rows})
    np.testing.assert_allclose(scaled, 3 * np.sum(case.made.log_prob(rows)), rtol=1e-5)


def test_one_batch_dimension_of_size_one_or_zero():
    """Sizes 1 broadcast within a batch, and an empty batch is no error."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(4))
    row = nd.ForwardTrajectory(diffusion, jnp.ones((1, 2)), event_dim=1)
    assert row.expand((3,)).sample(KEY).shape == (3, 4, 2)
    values = row.expand((2, 3)).sample(KEY)
    np.testing.assert_allclose(row.expand((2, 3)).log_prob(values), row.log_prob(values[:, :, None])[..., 0], **CLOSE)
    assert row.log_prob(values[0]).shape == (3,)
    empty = nd.ForwardTrajectory(diffusion, jnp.ones((0, 2)), event_dim=1)
    assert empty.log_prob(empty.sample(KEY, (5,))).shape == (5, 0)


def test_wrong_values_are_refused_by_name(quick_case):
    """With validation on, NaN or half a bit is −inf, with a warning where it is known; shapes always count."""
    case = quick_case
    checked, unchecked = case.build(0.4, validate_args=True), case.build(0.4, validate_args=False)
    good = case.values.astype(float)
    bad = good.at[(0,) * good.ndim].set(case.bad)
    np.testing.assert_allclose(checked.log_prob(good), unchecked.log_prob(good), **CLOSE)
    with pytest.warns(UserWarning, match="support"):
        checked.log_prob(bad)
    inside = jax.jit(checked.log_prob)(bad)
    assert inside.ravel()[0] == -jnp.inf
    assert np.isfinite(inside.ravel()[1:]).all()
    assert unchecked.log_prob(bad).shape == (4, *case.batch)
    for shape in ((5,), (*case.event[:-1], 1), (*case.event, 1), ()):
        with pytest.raises(ValueError, match=r"value: expected .* event shape"):
            unchecked.log_prob(jnp.zeros(shape))
    with pytest.raises(TypeError, match="key: expected a JAX random key, got None"):
        checked.sample(None)


def test_legacy_and_new_keys_draw_the_same(quick_case):
    """Both kinds of JAX key are keys, with and without a sample shape."""
    case, old, new = quick_case, jax.random.PRNGKey(5), jax.random.key(5)
    np.testing.assert_array_equal(case.made.sample(old, (4,)), case.made.sample(new, (2, 2)).reshape(case.values.shape))


def test_double_precision(x64, quick_case):
    """Everything follows JAX's precision; exact densities agree with single precision."""
    case = quick_case
    made, values = case.build(0.4), np.asarray(case.values)
    value = jnp.asarray(values) if case.whole else jnp.asarray(values, dtype=jnp.float64)
    assert jax.eval_shape(made.log_prob, value).dtype == jnp.float64
    assert jax.eval_shape(made.sample, KEY).dtype == (jnp.int64 if case.whole else jnp.float64)
    if case.name == "forward-batch":
        with jax.enable_x64(False):
            single = case.made.log_prob(values)
        np.testing.assert_allclose(made.log_prob(value), single, rtol=1e-3)


def test_whole_numbers_are_numbers():
    """Values of an integer type mean the same as floating ones, and do not round the data they follow."""
    made = nd.ForwardTrajectory(nd.GaussianDiffusion(nd.schedules.log_snr(4)), [0.7, 0.3])
    np.testing.assert_allclose(made.log_prob(jnp.zeros((4, 2), int)), made.log_prob(jnp.zeros((4, 2))), **CLOSE)


def test_constructors_refuse_by_name(processes):
    """Parts of the wrong kind, data off the support and keys that are none are named where they are given."""
    gaussian, bits = processes["gaussian"](0.4), processes["enumerated"](0.4)
    wrong = {
        "process": [
            lambda: nd.DiffusionPrior(gaussian.diffusion),
            lambda: nd.ReverseTrajectory(gaussian.diffusion),
        ],
        "likelihood": [lambda: nd.DiffusionPrior(gaussian, nd.samplers.Ancestral())],
        "sampler": [lambda: nd.DiffusionPrior(gaussian, sampler=nd.KBound())],
        "key": [lambda key=key: nd.DiffusionPrior(gaussian, key=key) for key in (0, jnp.ones(2))],
        "diffusion": [lambda: nd.ForwardTrajectory(gaussian, jnp.zeros(2))],
        "x_0": [
            lambda: nd.ForwardTrajectory(bits.diffusion, [0.5, 1.0]),
            lambda: nd.ForwardTrajectory(gaussian.diffusion, [jnp.nan, 1.0]),
        ],
        "event_dim": [lambda: nd.ForwardTrajectory(gaussian.diffusion, jnp.zeros(2), event_dim=2)],
    }
    for name, calls in wrong.items():
        for call in calls:
            with refused(f"^{name}: expected"):
                call()
    with pytest.raises(ValueError, match="^key: expected one JAX key"):
        nd.DiffusionPrior(gaussian, key=jax.random.split(KEY, 2))


@pytest.mark.parametrize(
    "case", ["prior-network", pytest.param("prior-bits-network", marks=pytest.mark.slow)], indirect=True
)
def test_prior_answers_beside_its_density(case):
    """The density is a fixed function; the estimate behind it has an error; `with_` replaces one part."""
    prior, values = case.made, case.values
    np.testing.assert_array_equal(prior.log_prob(values), prior.log_prob(values))
    estimate = prior.estimate(values)
    np.testing.assert_allclose(estimate.value, prior.log_prob(values), **CLOSE)
    assert estimate.standard_error.shape == estimate.terms.kl.shape == (4,)
    assert (np.asarray(estimate.widened_error) > 0).all()
    fresh = jax.jit(prior.estimate)(values, key=jax.random.key(8))
    assert fresh.value.shape == (4,)
    assert (fresh.value != estimate.value).all()
    other = prior.with_(key=jax.random.key(1))
    assert (other.log_prob(values) != prior.log_prob(values)).all()
    assert other.likelihood == prior.likelihood
    better = prior.with_(likelihood=nd.KBound(64)).estimate(values)
    assert np.sum(better.widened_error) < np.sum(estimate.widened_error)
    spread = np.asarray(better.widened_error + estimate.widened_error)
    assert (np.abs(better.value - estimate.value) < 6 * spread + 1e-3).all()
    short = prior.with_(sampler=nd.samplers.Ancestral(3))
    assert jax.eval_shape(lambda: short.sample_trajectory(KEY, (2,))).shape == (2, 4, *case.event)
    np.testing.assert_array_equal(prior.sample_trajectory(KEY, (4,))[:, 0], prior.sample(KEY, (4,)))
    assert prior.trajectory.event_shape == (9, *case.event)


def test_prior_takes_both_kinds_of_key(rows):
    """A legacy key freezes the same noise as a new one, and comes back as it was given."""
    prior, values = rows("prior-network").made, rows("prior-network").values
    legacy = nd.DiffusionPrior(prior.process, key=jax.random.PRNGKey(0))
    np.testing.assert_allclose(legacy.log_prob(values), prior.log_prob(values), **CLOSE)
    assert jnp.issubdtype(prior.key.dtype, jax.dtypes.prng_key)
    assert legacy.key.dtype == jnp.uint32


@pytest.mark.slow
def test_prior_with_a_batch_keeps_it(rows):
    """What is derived from an expanded or mapped prior has its batch, each row its own parameters."""
    case = rows("prior-network")
    mapped, key = jax.vmap(case.build)(jnp.array([0.2, 0.4, 0.9])), jax.random.key(9)
    values = 0.01 * case.values  # an untrained network draws values in the hundreds, of which float32 keeps little
    batches = {(3,): case.made.expand((3,)), (1, 3): mapped.expand((1, 3)), (2, 3): mapped.expand((2, 3))}
    for batch, prior in batches.items():
        trajectory, other = prior.trajectory, prior.with_(key=key)
        assert trajectory.batch_shape == other.batch_shape == prior.batch_shape == batch
        assert (type(trajectory), type(other)) == (nd.ReverseTrajectory, nd.DiffusionPrior)
        with pytest.raises(ValueError, match="key: expected None"):
            prior.estimate(values[0], key=KEY)
        with pytest.raises(ValueError, match="save: expected"):
            prior.save("never-written.safetensors")
    expected = case.made.with_(key=key).log_prob(values)
    np.testing.assert_allclose(other.log_prob(values[1])[..., 1], np.full(2, expected[1]), **CLOSE)
    chain = jax.random.normal(KEY, (9, 2))
    expected = case.made.trajectory.log_prob(chain)
    np.testing.assert_allclose(trajectory.log_prob(chain)[..., 1], np.full(2, expected), **CLOSE)
    estimate = jax.eval_shape(prior.estimate, jnp.zeros((4, 1, 1, 2)))
    assert estimate.value.shape == (4, 2, 3)
    assert estimate.terms.step_kl.shape == (4, 2, 3, 4, 7)
    assert jax.eval_shape(prior.sample_trajectory, KEY).shape == (2, 3, 9, 2)
