"""Laws of every distribution under JAX's transformations: vmap, jit, scan, grad, and the pytree contract."""

import functools
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.contrib.control_flow import scan as numpyro_scan
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.infer.util import log_density

import numpyro_diffusion as nd

KEY = jax.random.key(3)
THETAS = jnp.array([0.3, 0.4, 0.7, 0.8])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@functools.cache
def _loop(case):
    """Log densities of one value under each of the four distributions, one by one; shape (4, *batch)."""
    one = jax.jit(lambda theta, value: case.build(theta).log_prob(value))
    return np.stack([one(theta, case.values)[i] for i, theta in enumerate(THETAS)])


def test_vmap_over_values_and_parameters(quick_case):
    """Mapping over values or over parameters is the loop."""
    case, values = quick_case, quick_case.values
    moved = jnp.moveaxis(values, 0, -1)
    out = jax.vmap(case.made.log_prob, in_axes=-1, out_axes=-1)(moved)
    np.testing.assert_allclose(jnp.moveaxis(out, -1, 0), case.made.log_prob(values), **CLOSE)
    out = jax.vmap(lambda theta, value: case.build(theta).log_prob(value))(THETAS, values)
    np.testing.assert_allclose(out, _loop(case), **CLOSE)


def test_vmap_that_returns_the_distribution(quick_case):
    """What a map returns is a batch of distributions; that it can be mapped over again is the next test's claim."""
    case, values = quick_case, quick_case.values
    made = jax.vmap(case.build)(THETAS)
    assert type(made) is type(case.made)
    assert (made.batch_shape, made.event_shape) == ((4, *case.batch), case.event)
    expected = _loop(case)
    np.testing.assert_allclose(made.log_prob(values), expected, **CLOSE)
    assert made.sample(KEY).shape == made.shape()
    assert jax.eval_shape(lambda: made).batch_shape == jax.eval_shape(jax.vmap(case.build), THETAS).batch_shape
    assert jax.tree.map(lambda leaf: leaf[0], made).batch_shape == case.batch
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(case.build(theta) for theta in THETAS))
    assert stacked.batch_shape == made.batch_shape
    assert promote_batch_shape(made).batch_shape == made.batch_shape


def test_nested_vmap_and_expand(quick_case):
    """Batches of batches: the outer map comes first, an expanded or a data batch stays to the right of it."""
    case, values = quick_case, quick_case.values
    grid = THETAS.reshape(2, 2)
    square = jax.vmap(jax.vmap(case.build))(grid)
    assert square.batch_shape == (2, 2, *case.batch)
    expected = _loop(case).reshape(2, 2, *case.batch)
    squared = values.reshape(2, 2, *values.shape[1:])
    np.testing.assert_allclose(square.log_prob(squared), expected, **CLOSE)
    np.testing.assert_allclose(jax.vmap(lambda d, v: d.log_prob(v))(square, squared), expected, **CLOSE)
    pair = THETAS[1:3]
    inside = promote_batch_shape(jax.vmap(lambda theta: case.build(theta).expand((3, *case.batch)))(pair))
    outside = jax.vmap(lambda made: made.expand((3, *case.batch)))(jax.vmap(case.build)(pair))
    assert inside.batch_shape == outside.batch_shape == (2, 3, *case.batch)
    out = inside.log_prob(jnp.stack([values[:3], values[:3]]))
    np.testing.assert_allclose(out[0], case.made.log_prob(values)[:3], **CLOSE)


def test_pytree_round_trip(any_case):
    """Flattening loses nothing, and parts without values still hold together."""
    made = any_case.made
    leaves, treedef = jax.tree.flatten(made)
    assert leaves
    assert all(eqx.is_array(leaf) for leaf in leaves)
    again = jax.tree.unflatten(treedef, leaves)
    assert type(again) is type(made)
    assert (again.batch_shape, again.event_shape) == (made.batch_shape, made.event_shape)
    assert jax.tree.structure(again) == treedef
    assert hash(jax.tree.structure(any_case.build(0.7))) == hash(treedef)
    floating, rest = eqx.partition(made, eqx.is_inexact_array)
    assert eqx.tree_equal(eqx.combine(floating, rest), made)
    assert jax.tree.map(lambda leaf: None, made).batch_shape == any_case.batch
    wide = made.expand((3, *any_case.batch))
    assert jax.tree.unflatten(jax.tree.structure(wide), jax.tree.leaves(wide)).batch_shape == wide.batch_shape


def test_leaves_have_one_order(rows):
    """The order of the leaves does not hang on Python's hash seed."""
    script = """if True:
        import jax, jax.numpy as jnp, numpyro_diffusion as nd
        diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(8))
        mixture = nd.denoisers.GaussianMixture(jnp.zeros((2, 2)), jnp.ones(2), jnp.full(2, 0.5))
        prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, mixture, 2))
        print([leaf.shape for leaf in jax.tree.leaves(prior)])
    """
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.strip() == str([leaf.shape for leaf in jax.tree.leaves(rows("prior-mixture").made)]), run.stderr


def test_jit_compiles_once_for_new_weights(quick_case):
    """As an argument, equal layouts share one compilation; as a closure it is the same number."""
    case, values, count = quick_case, quick_case.values, []

    @jax.jit
    def log_prob(made, value):
        count.append(1)
        return made.log_prob(value)

    for theta in (0.4, 0.7):
        made = case.build(theta)
        np.testing.assert_allclose(log_prob(made, values), made.log_prob(values), **CLOSE)
    assert len(count) == 1
    np.testing.assert_allclose(jax.jit(case.made.log_prob)(values), case.made.log_prob(values), **CLOSE)
    returned = jax.jit(lambda theta: case.build(theta))(0.4)
    np.testing.assert_allclose(returned.log_prob(values), case.made.log_prob(values), **CLOSE)


def test_scan_with_closure_carry_and_inputs(quick_case):
    """A scan may close over distributions, carry them, run along a batch of them and return one."""
    case, values = quick_case, quick_case.values

    def step(carry, x):
        theta, along, value = x
        densities = case.made.log_prob(value), carry.log_prob(value), along.log_prob(value)
        return along, (densities, case.build(theta))

    made = jax.vmap(case.build)(THETAS)
    last, (densities, built) = jax.lax.scan(step, case.build(0.4), (THETAS, made, values))
    assert last.batch_shape == case.batch
    assert built.batch_shape == made.batch_shape
    closure, carried, along = map(np.asarray, densities)
    np.testing.assert_allclose(closure, case.made.log_prob(values), **CLOSE)
    np.testing.assert_allclose(along, _loop(case), **CLOSE)
    previous = np.stack([case.build(th).log_prob(values)[i] for i, th in enumerate([0.4, *THETAS[:3]])])
    np.testing.assert_allclose(carried, previous, **CLOSE)
    np.testing.assert_allclose(built.log_prob(values), along, **CLOSE)


def test_numpyro_scan_with_a_plate():
    """A site in a plate in NumPyro's own scan: its density depends on the step and is counted right."""
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(4))

    def model(starts):
        def step(carry, start):
            with numpyro.plate("rows", 3):
                x = numpyro.sample("x", nd.ForwardTrajectory(diffusion, start))
            return carry, x

        return numpyro_scan(step, 0.0, starts)[1]

    starts = jnp.array([[0.0, 0.0], [3.0, -1.0], [-2.0, 5.0]])
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, KEY)).get_trace(starts)
    drawn = trace["x"]["value"]
    assert drawn.shape == (3, 3, 4, 2)
    assert trace["x"]["fn"].batch_shape == (3, 3)
    expected = sum(
        nd.ForwardTrajectory(diffusion, start).log_prob(x).sum() for start, x in zip(starts, drawn, strict=True)
    )
    total, _ = log_density(model, (starts,), {}, {"x": drawn})
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_gradients_against_differences(x64, quick_case):
    """Gradients to values, to parameters and to the arrays inside are the differences'."""
    case = quick_case
    theta, step = jnp.asarray(0.4), 1e-5
    values = jnp.asarray(np.asarray(case.values), None if case.whole else jnp.float64)
    direction = np.zeros(()) if case.discrete else np.random.default_rng(3).normal(size=values.shape)

    @eqx.filter_jit
    def slopes(theta, shift):
        """The sum of log densities, and its gradients: to the parameter by the chain rule, through the arrays."""
        made, pull = eqx.filter_vjp(case.build, theta)
        value = values if case.discrete else values + shift * direction
        total = lambda both: jnp.sum(both[0].log_prob(both[1]))
        out, (arrays, slope) = eqx.filter_value_and_grad(total)((made, value))
        return out, arrays, pull(arrays)[0], 0.0 if case.discrete else jnp.sum(slope * direction)

    value = lambda *at: slopes(*map(jnp.asarray, at))[0]
    _, arrays, built, slope = slopes(theta, jnp.zeros(()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays))
    if case.name in ("forward-bits", "forward-categories"):
        assert built == 0  # the noise is a constant of the forward process, never trained
    else:
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(arrays))
        difference = value(theta + step, 0.0) - value(theta - step, 0.0)
        np.testing.assert_allclose(built, difference / (2 * step), rtol=1e-4, atol=1e-6)
    if not case.discrete:
        difference = value(theta, step) - value(theta, -step)
        np.testing.assert_allclose(slope, difference / (2 * step), rtol=1e-3, atol=1e-6)


def test_gradient_of_a_draw(rows):
    """Reparameterised draws have a gradient to the network."""
    made = rows("trajectory-network").made
    slope = eqx.filter_grad(lambda made: jnp.sum(made.rsample(KEY)))(made)
    assert np.isfinite(slope.process.denoiser.fn.gain)
    assert slope.process.denoiser.fn.gain != 0


@pytest.mark.parametrize("name", ["trajectory-network", "prior-network"])
def test_the_network_is_not_traced_again(rows, name, traces):
    """A second call of the same shape, with other weights, runs no Python of the network's."""
    case = rows(name)
    calls = {
        "sample": lambda made: made.sample(KEY, (4,)),
        "log_prob": lambda made: made.log_prob(case.values),
        "compiled sample": jax.jit(lambda made: made.sample(KEY, (4,))),
        "compiled log_prob": jax.jit(lambda made: made.log_prob(case.values)),
        "gradient": eqx.filter_jit(eqx.filter_grad(lambda made: jnp.sum(made.log_prob(case.values)))),
    }
    for call in calls.values():
        call(case.build(0.5))
    other = case.build(0.6)
    for name, call in calls.items():
        before = traces[0]
        out = call(other)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
        assert traces[0] == before, name
    assert out.process.denoiser.fn.gain != 0


@pytest.mark.slow
def test_a_batch_of_equals_is_only_more_values(rows, traces):
    """Where no parameter differs in a batch, it has the numbers and the program of as many values or draws."""
    made, values = rows("prior-network").made, rows("prior-network").values
    draws, densities = made.sample(KEY, (4,)), made.log_prob(values)
    before = traces[0]
    for batch in ((4,), (2, 2), (1, 4)):
        wide = made.expand(batch)
        np.testing.assert_array_equal(wide.sample(KEY), draws.reshape(*batch, 2))
        np.testing.assert_array_equal(wide.log_prob(values.reshape(*batch, 2)), densities.reshape(batch))
    assert traces[0] == before
    mixed = jax.vmap(rows("prior-network").build)(THETAS).expand((2, 4))
    assert mixed.sample(KEY).shape == (2, 4, 2)
    np.testing.assert_allclose(mixed.log_prob(values)[1], _loop(rows("prior-network")), **CLOSE)
