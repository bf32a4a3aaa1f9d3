"""The program of one element of a plate: values and derivatives of the whole plate's, at one element's cost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.infer.one_of_plate import OneOfPlate
from numpyro_diffusion.networks.convolution import convolve

PLATE, SIZE = 3, 4


@pytest.fixture(autouse=True)
def quick_compilation():
    """Little is computed here; what takes time is compiling."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


NORMAL = lambda *shape: jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype=float)
W, EACH, DATA = NORMAL(SIZE, 5), NORMAL(PLATE, 2, SIZE), NORMAL(PLATE, SIZE)
OFTEN = NORMAL(7, PLATE, SIZE)  # a plate inside, in front
COVARIANCE = jnp.eye(SIZE) + 0.1
IMAGE = NORMAL(2, 1, 3, 3)


def convolved(x):
    whole = jax.lax.conv_general_dilated(x.reshape(PLATE, 1, 2, 2), IMAGE, (1, 1), "SAME")
    return jnp.tanh(whole).sum((-1, -2))


def loop(x):
    """What is carried is data first, and x from the second step on; x is also what is looped over."""
    step = lambda carry, xs: ((carry[1], jnp.tanh(carry[0] + xs[0][:, None] * DATA)), (carry[0].sum(-1), xs[1]))
    (first, second), (sums, alone) = jax.lax.scan(step, (DATA, DATA * x), (x.T, jnp.arange(4.0)), reverse=True)
    return first + second + sums.T + alone


def network(x):
    hidden = jax.nn.softplus(jax.vmap(lambda row: jax.nn.relu(row @ W))(x))
    return jax.nn.logsumexp(jax.nn.gelu(hidden), -1)


def covariances(x):
    lower = jnp.linalg.cholesky(jnp.eye(SIZE) + x[..., :, None] * x[..., None, :])
    return jax.scipy.linalg.solve_triangular(lower, DATA[..., None], lower=True)[..., 0]


SEPARABLE = {
    "matrix": lambda x: x @ W,
    "matrix from the left": lambda x: (W.T @ x.T).T,
    "own matrices": lambda x: jnp.einsum("nij,nj->ni", EACH, x),
    "own matrices from the right": lambda x: jnp.einsum("nj,nij->in", x, EACH).T,
    "with itself": lambda x: jnp.einsum("ni,nj->nij", x, x),
    "data": lambda x: jnp.exp(-jnp.square(x - DATA)).sum(-1),
    "inner plate": lambda x: jnp.moveaxis((OFTEN - x) ** 2, 0, 1),
    "network": network,
    "checkpoint": jax.checkpoint(network),
    "convolution": convolved,
    "normalised": lambda x: jax.nn.log_softmax(x - x.mean(-1, keepdims=True)),
    "some": lambda x: x[:, jnp.array([3, 1])] * x[:, 1:3],
    "each its own": lambda x: jnp.take_along_axis(x, jnp.array([[1], [0], [3]]), -1)[:, 0],
    "by themselves": lambda x: jnp.take_along_axis(x, jnp.argsort(x, -1)[:, :2], -1),
    "later": lambda x: x[:, ::-1] + jnp.cumsum(jnp.sort(x, -1), -1),
    "moved": lambda x: jnp.pad(jnp.concatenate([x, DATA], -1), ((0, 0), (1, 0))),
    "reshaped": lambda x: x.reshape(PLATE, 2, 2).transpose(2, 1, 0).max(0).T,
    "argmax": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), SIZE) * x,
    "covariances": covariances,
    "one covariance": lambda x: dist.MultivariateNormal(jnp.sin(x), COVARIANCE).log_prob(DATA),
    "spectrum": lambda x: jnp.abs(jnp.fft.rfft(x)),
    "loop": lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x @ EACH[0].T @ EACH[1]), x),
    "loop with data": loop,
    "pictures": lambda x: jax.vmap(lambda x: convolve(x.reshape(2, 2, 1), W[:3, :3, None, None], 1, (1, 1)))(x),
    "unused": lambda x: (x.mean(0), x)[1] * 2,
    "choice": lambda x: jax.lax.cond(DATA.sum() > 0, lambda x: jnp.sin(x) @ W, lambda _: DATA @ W, x),
    "switch": lambda x: jax.lax.switch(jnp.asarray(2), [jnp.sin, jnp.cos, lambda x: x * DATA, lambda x: 2 * x], x),
    "choice for each": jax.vmap(lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)),
    "map": lambda x: jax.lax.map(lambda row: jnp.tanh(row @ W), x),
    "map with data": lambda x: jax.lax.map(lambda pair: (pair[0] * pair[1]) @ W, (x, DATA)),
    "the data alone": lambda x: DATA + 0.0,
}
QUICK = {
    *("matrix", "own matrices", "with itself", "inner plate", "network", "each its own", "moved", "unused"),
    *("choice", "map with data"),
}
INSEPARABLE = {
    "search": lambda x: jax.lax.while_loop(lambda x: jnp.abs(x).max() > 0.5, lambda x: 0.9 * jnp.sin(x), x),
    "loop over elements": lambda x: jax.lax.scan(lambda c, row: (c + 1, c + jnp.sin(row)), 0.0, x)[1],
    "map of all": lambda x: jax.lax.map(lambda row: jnp.sin(row + 0 * x.sum()), x),
    "branches apart": lambda x: jax.lax.cond(DATA.sum() > 0, lambda x: jnp.tile(x, (2, 1))[:PLATE], lambda x: x, x),
    "across": lambda x: x - x.mean(0),
    "the last": lambda x: x[::-1],
    "flat": lambda x: jnp.sin(x.reshape(-1)).reshape(x.shape),
}


def each_by_the_whole(function, x):
    """Element by element, with all of the plate set to that element."""
    return jnp.stack([function(jnp.broadcast_to(row, x.shape))[index] for index, row in enumerate(x)])


def answers(program, x):
    """Values, and derivatives of both kinds."""
    tangent = jax.jvp(program, (x,), (jnp.cos(x),))[1]
    return program(x), tangent, jax.grad(lambda x: jnp.sum(jnp.sin(program(x))))(x)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SEPARABLE]
)
def test_one_element_is_one_of_the_whole(name):
    """In value, forward and reverse derivative, under vmap."""
    function, x = SEPARABLE[name], NORMAL(PLATE, SIZE)
    one = OneOfPlate(function, x.shape, 1, x.dtype)
    assert one.is_separable
    programs = partial(each_by_the_whole, function), lambda x: jax.vmap(one)(jnp.arange(PLATE), x)
    whole, mapped = jax.jit(lambda x: [answers(program, x) for program in programs])(x)
    for left, right in zip(whole, mapped, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", INSEPARABLE)
def test_what_cannot_be_told_apart_is_run_whole(name):
    function, x = INSEPARABLE[name], NORMAL(PLATE, SIZE)
    one = OneOfPlate(function, x.shape, 1, x.dtype)
    assert not one.is_separable
    np.testing.assert_allclose(
        jax.jit(jax.vmap(one))(jnp.arange(PLATE), x), each_by_the_whole(function, x), rtol=1e-6, atol=1e-6
    )


def test_derivatives_of_their_own_are_kept():
    """At 0 the derivative of relu is 0, that of a maximum is a half; a tangent of one's own need be no derivative."""

    @jax.custom_jvp
    def mine(x):
        return x**2 + DATA

    mine.defjvp(lambda primals, tangents: (mine(*primals), (7.0 + 0 * primals[0] + DATA) * tangents[0]))
    for function, wanted in ((jax.nn.relu, 0.0), (mine, 7.0 + DATA[1])):
        one = OneOfPlate(function, DATA.shape, 1, DATA.dtype)
        assert one.is_separable
        gradient = jax.jit(jax.grad(lambda x, one=one: one(1, x).sum()))
        np.testing.assert_allclose(gradient(jnp.zeros(SIZE)), wanted)


def test_two_plates():
    """Some data are of one plate only, and run whole; others of both."""
    both, x = NORMAL(2, PLATE, SIZE, 3), NORMAL(2, PLATE, SIZE)
    function = lambda x: jnp.tanh(jnp.einsum("mnj,mnjk->mnk", x, both) + both[:, :, 0]).sum(-1)
    one = OneOfPlate(function, x.shape, 2, x.dtype)
    assert one.is_separable
    number = jnp.arange(2 * PLATE).reshape(2, PLATE)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(one)))(number, x), function(x), rtol=1e-5)
    of_one = OneOfPlate(lambda x: jnp.einsum("mnj,njk->mnk", x, both[0]), x.shape, 2, x.dtype)
    assert not of_one.is_separable
    both_ways = jax.jit(jax.vmap(jax.vmap(of_one)))(number, x), jnp.einsum("mnj,njk->mnk", x, both[0])
    np.testing.assert_allclose(*both_ways, rtol=1e-5)


PRIOR = nd.DiffusionPrior(
    nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), nd.denoisers.Gaussian(0.0, 1.0), (SIZE,))
)
NETWORK = nd.networks.MLP(jax.random.key(0), (SIZE,), num_steps=4, width=16, depth=2)
OBSERVED = {
    "matrix": lambda x: x @ W,
    "own matrices": lambda x: jnp.einsum("nij,nj->ni", jnp.ones((len(x), 2, SIZE)), x),
    "network": lambda x: jax.vmap(lambda x: NETWORK(x, jnp.asarray(1.0)))(x),
    "choice": lambda x: jax.lax.cond(DATA.sum() > 0, lambda x: jnp.sin(x @ W), lambda x: x @ W, x),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "network" else []) for name in OBSERVED]
)
def test_costs_grow_like_the_plate(name):
    """Floating-point operations of a factor and its gradient, for all elements of the plate."""

    def model(count):
        with numpyro.plate("n", count):
            x = numpyro.sample("x", PRIOR)
            loc = OBSERVED[name](x)
            numpyro.sample("y", dist.Normal(loc, 0.5).to_event(1), obs=jnp.ones(loc.shape))

    def flops(count):
        def program(x):
            factor = nd.infer.extract_factor(model, None, count)
            return jax.vmap(jax.value_and_grad(lambda x, factor: factor.log_r(x)))(x, factor)

        return jax.jit(program).lower(jnp.ones((count, SIZE))).cost_analysis()["flops"]

    few, many = flops(4), flops(16)
    assert many <= 4.4 * few, (few, many)
