"""The factor of a model is the model's own density of all that depends on the site."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import block, mask, scale, substitute
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion._structure import depends, is_affine, is_elementwise
from numpyro_diffusion.factors import Elementwise, Factor, Gaussian, LinearGaussian, Product
from numpyro_diffusion.infer import SMC, extract_factor
from numpyro_diffusion.infer.extract import extract

A = np.random.default_rng(0).normal(size=(2, 3))
Y2, Y3 = np.array([0.5, -1.0]), np.array([1.0, 0.0, 2.0])
COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.5]])
KEEP = np.array([True, False, True])
POINTS = np.random.default_rng(1).normal(size=(4, 3))
BITS = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0]])


def reals():
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(3))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 3))


def bits():
    diffusion = nd.BinomialDiffusion(nd.schedules.erasing(3))
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(np.eye(3, dtype=int)), 3))


REALS, BIT_PRIOR = reals(), bits()


def draw_x(prior=REALS):
    return numpyro.sample("x", prior)


def observe(name, law, value):
    numpyro.sample(name, law, obs=value)


# ---- what a function is

X = jnp.asarray([0.3, -1.0, 2.0])
FUNCTIONS = {
    # name: (function, affine, elementwise)
    "itself": (lambda x: x, True, True),
    "shifted": (lambda x: 2 * x + jnp.arange(3.0), True, True),
    "matrix": (lambda x: jnp.asarray(A) @ x, True, False),
    "sum": (jnp.sum, True, False),
    "cumsum": (jnp.cumsum, True, False),
    "reverse": (lambda x: x[::-1], True, False),
    "part": (lambda x: x[1:], True, False),
    "where": (lambda x: jnp.where(jnp.arange(3) > 1, x, 1.0), True, True),
    "convolution": (lambda x: jnp.convolve(x, jnp.ones(3), "same"), True, False),
    "constant": (lambda x: jnp.ones(3), True, False),
    "jit": (jax.jit(lambda x: x / 3), True, True),
    "scan": (lambda x: jax.lax.scan(lambda c, w: (c + w * x, 2 * c), x, jnp.arange(3.0))[0], True, False),
    "loop": (lambda x: jax.lax.fori_loop(0, 3, lambda i, c: jnp.roll(c, i), x), True, False),
    "cond": (lambda x: jax.lax.cond(True, lambda x: 2 * x, lambda x: -x, x), True, False),
    "fft": (lambda x: jnp.fft.rfft(x).real, True, False),
    "cond_on_x": (lambda x: jax.lax.cond(x[0] > 0, lambda x: 2 * x, lambda x: -x, x), False, False),
    "while_on_x": (lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), False, False),
    "scan_of_squares": (lambda x: jax.lax.scan(lambda c, _: (c * x, None), x, None, length=2)[0], False, False),
    "round": (lambda x: x + jnp.round(x), False, True),
    "integers": (lambda x: jnp.floor(3 * x).astype(int), False, True),
    "step": (lambda x: jnp.where(x > 0, 1.0, 0.0), False, True),
    "index": (lambda x: jnp.arange(5.0)[jnp.argmax(x)] * jnp.ones(3), False, False),
    "callback": (lambda x: jax.pure_callback(lambda x: 2 * x, x, x), False, False),
    "exp": (jnp.exp, False, True),
    "square": (lambda x: x**2, False, True),
    "softplus": (jax.nn.softplus, False, True),
    "relu": (jax.nn.relu, False, True),
    "product": (lambda x: x * x.sum(), False, False),
    "softmax": (jax.nn.softmax, False, False),
    "sort": (jnp.sort, False, False),
    "max": (lambda x: x.max(), False, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_seen_through(name):
    function, affine, elementwise = FUNCTIONS[name]
    assert is_affine(function, X) is affine
    assert is_elementwise(function, X) is elementwise


def test_linearity_is_the_same_in_compiled_and_batched_code():
    found = []

    def look(scale):
        found.append((is_affine(lambda x: scale * x, X), is_affine(lambda x: scale * x**2, X)))
        return scale

    jax.jit(look)(2.0)
    jax.vmap(look)(jnp.ones(3))
    assert found == [(True, False), (True, False)]


def test_what_uses_x():
    found = depends(lambda x: {"mean": x.mean(), "number": jnp.ones(2), "shape": jnp.zeros(x.shape)}, X)
    assert found == {"mean": True, "number": False, "shape": False}


# ---- models of one x


def normal_elements():
    observe("y", dist.Normal(2 * draw_x() - 1, 0.5).to_event(1), Y3)


def normal_elements_without_event():
    x = draw_x()
    with numpyro.plate("elements", 3):
        observe("y", dist.Normal(x, jnp.array([0.5, 1.0, 2.0])), Y3)


def normal_matrix():
    observe("y", dist.Normal(jnp.asarray(A) @ draw_x() + 0.3, jnp.array([0.5, 2.0])).to_event(1), Y2)


def correlated():
    observe("y", dist.MultivariateNormal(jnp.asarray(A) @ draw_x(), jnp.asarray(COVARIANCE)), Y2)


def correlated_and_elements():
    x = draw_x()
    observe("y", dist.MultivariateNormal(jnp.asarray(A) @ x, jnp.asarray(COVARIANCE)), Y2)
    observe("z", dist.Normal(x, 0.7).to_event(1), Y3)


def unknown_gain_and_noise():
    gain, noise = numpyro.sample("gain", dist.Normal(0.0, 1.0)), numpyro.sample("noise", dist.HalfNormal(1.0))
    observe("y", dist.Normal(gain * draw_x(), noise).to_event(1), Y3)


def nonlinear():
    observe("y", dist.Normal(jnp.exp(draw_x()), 0.5).to_event(1), Y3)


def noise_that_grows():
    x = draw_x()
    observe("y", dist.Normal(x, jnp.exp(0.1 * x)).to_event(1), Y3)


def potential():
    x = draw_x()
    numpyro.factor("potential", -jnp.sum(jnp.abs(x)) + x[0] * x[1])


def counts():
    observe("y", dist.Poisson(jnp.exp(draw_x())).to_event(1), np.array([1, 0, 3]))


def masked_inside():
    observe("y", dist.Normal(draw_x(), 0.5).mask(KEEP).to_event(1), Y3)


def masked_outside():
    observe("y", dist.Normal(draw_x(), 0.5).to_event(1).mask(jnp.asarray(False)), Y3)


def masked_by_handler():
    x = draw_x()
    with mask(mask=jnp.asarray(KEEP[:2])), numpyro.plate("elements", 2):
        observe("y", dist.Normal(jnp.asarray(A) @ x, 0.5), Y2)


def masked_with_nan():
    observe("y", dist.Normal(draw_x(), 0.5).mask(KEEP).to_event(1), np.where(KEEP, Y3, 0.0))


def scaled():
    x = draw_x()
    with scale(scale=0.25):
        observe("y", dist.Normal(x, 0.5).to_event(1), Y3)


def through_deterministic():
    x = draw_x()
    total = numpyro.deterministic("total", x.sum())
    observe("y", dist.Normal(total, 0.5), 1.5)


def latent_that_depends():
    x = draw_x()
    numpyro.sample("gain", dist.Normal(x.sum(), 1.0))
    observe("y", dist.Normal(x, 0.5).to_event(1), Y3)


def with_a_constant():
    x = draw_x()
    observe("other", dist.Normal(0.0, 1.0), 1.7)
    observe("y", dist.Normal(x, 0.5).to_event(1), Y3)


def with_its_own_factor():
    x = draw_x(REALS * Gaussian(Y3, 2.0))
    observe("y", dist.Normal(x.sum(), 0.5), 1.5)


def noisy_bits():
    x = draw_x(BIT_PRIOR)
    observe("y", dist.Bernoulli(0.9 * x + 0.2 * (1 - x)).to_event(1), np.array([1, 0, 1]))


def masked_bits():
    x = draw_x(BIT_PRIOR)
    observe("y", dist.Bernoulli(logits=3.0 * x - 1).mask(KEEP).to_event(1), np.array([1, 0, 1]))


def counts_of_bits():
    observe("y", dist.Poisson(1.0 + 4.0 * draw_x(BIT_PRIOR)).to_event(1), np.array([1, 0, 3]))


def bits_together():
    observe("y", dist.Normal(draw_x(BIT_PRIOR).sum(), 0.5), 1.5)


MODELS = {
    normal_elements: Gaussian,
    normal_elements_without_event: Gaussian,
    normal_matrix: LinearGaussian,
    correlated: LinearGaussian,
    correlated_and_elements: LinearGaussian,
    unknown_gain_and_noise: Gaussian,
    nonlinear: Factor,
    noise_that_grows: Factor,
    potential: Factor,
    counts: Factor,
    masked_inside: Gaussian,
    masked_outside: Gaussian,
    masked_by_handler: LinearGaussian,
    masked_with_nan: Gaussian,
    scaled: Factor,
    through_deterministic: LinearGaussian,
    latent_that_depends: LinearGaussian,
    with_a_constant: Gaussian,
    with_its_own_factor: LinearGaussian,
    noisy_bits: Elementwise,
    masked_bits: Elementwise,
    counts_of_bits: Elementwise,
    bits_together: Factor,
}
VALUES = {"gain": jnp.array(1.7), "noise": jnp.array(0.4)}
OTHERS = {unknown_gain_and_noise: ("gain", "noise"), latent_that_depends: ("gain",)}


def given(model):
    """The model with values for its other latent sites."""
    data = {name: VALUES[name] for name in OTHERS.get(model, ())}
    return substitute(model, data=data) if data else model


def model_density(model, x):
    """The density of everything but x: NumPyro's own."""
    return log_density(block(substitute(model, data={"x": x}), hide=["x"]), (), {}, {})[0]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_factor_is_the_models_density(model):
    conditioned = given(model)
    found = extract(conditioned, "x", (), {})
    assert type(found.factor) is MODELS[model]
    values = BITS if found.prior.support.is_discrete else POINTS
    got = jax.jit(jax.vmap(found.factor.log_r))(jnp.asarray(values)) + found.log_constant
    expected = jax.jit(jax.vmap(lambda x: model_density(conditioned, x)))(jnp.asarray(values))
    if model is with_its_own_factor:  # which is in the site's density, hidden above
        expected = expected + dist.Normal(Y3, 2.0).log_prob(POINTS).sum(-1)
    if model is unknown_gain_and_noise:  # latent sites that do not depend on x are in neither part
        expected = expected - dist.Normal(0.0, 1.0).log_prob(1.7) - dist.HalfNormal(1.0).log_prob(0.4)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    found.factor.check((3,), found.prior.process.diffusion.data_support)


def test_observed_sites_that_do_not_depend_on_x_are_constant():
    np.testing.assert_allclose(
        extract(with_a_constant, "x", (), {}).log_constant, dist.Normal(0.0, 1.0).log_prob(1.7), rtol=1e-6
    )
    assert extract(normal_elements, "x", (), {}).log_constant == 0


def test_a_linear_factor_takes_whole_numbers():
    """As grey levels are drawn."""
    factor = extract_factor(normal_matrix, "x")
    np.testing.assert_allclose(factor.log_r(jnp.array([3, 0, -1])), factor.log_r(jnp.array([3.0, 0.0, -1.0])))


def test_arguments_may_be_traced():
    """As in a kernel: the model's data are arguments of a compiled function."""

    def model(y, *, noise):
        observe("y", dist.Normal(draw_x(), noise).to_event(1), y)

    run = jax.jit(lambda y, noise: extract_factor(model, "x", y, noise=noise).log_r(POINTS[0]))
    expected = dist.Normal(POINTS[0], 0.5).log_prob(Y3).sum()
    np.testing.assert_allclose(run(Y3, 0.5), expected, rtol=1e-5)


# ---- plates: one factor for each of the batch

YS = np.random.default_rng(2).normal(size=(4, 3))


def plated(law, event=True):
    """A model of four x, each seen through `law(x)` of shape (4, 3)."""

    def model():
        with numpyro.plate("n", 4):
            x = draw_x()
            observe("y", law(x).to_event(1) if event else law(x), YS if event else YS[:, 0])

    return model


def two_plates():
    with numpyro.plate("m", 2, dim=-1), numpyro.plate("n", 2, dim=-2):
        x = draw_x()
        observe("y", dist.Normal(x.sum(-1), 0.5), YS[:2, :2])


def inner_plate():
    """Five looks at each of four x: the inner plate is in front of the outer one."""
    with numpyro.plate("n", 4, dim=-1):
        x = draw_x()
        with numpyro.plate("looks", 5, dim=-2):
            observe("y", dist.Normal(x[:, 0], 0.5), np.linspace(-1, 1, 20).reshape(5, 4))


def two_sites():
    with numpyro.plate("n", 4):
        x = draw_x()
        observe("y", dist.Normal(x @ jnp.ones((3, 2)), 0.5).to_event(1), YS[:, :2])
        observe("z", dist.Normal(x, 0.7).to_event(1), YS)


def plated_mask():
    with numpyro.plate("n", 4):
        x = draw_x()
        with mask(mask=jnp.array([True, False, True, True])):
            observe("y", dist.Normal(x @ jnp.ones(3), 0.5), YS[:, 0])


def plated_bits():
    with numpyro.plate("n", 4):
        x = draw_x(BIT_PRIOR)
        observe("y", dist.Bernoulli(0.9 * x + 0.2 * (1 - x)).to_event(1), (YS > 0).astype(int))


def correlated_in_plate():
    with numpyro.plate("n", 4):
        observe("y", dist.MultivariateNormal(draw_x(), jnp.eye(3) + 0.1), YS)


PLATED = {
    "elements": (plated(lambda x: dist.Normal(x, 0.5)), Gaussian),
    "matrix": (plated(lambda x: dist.Normal(x @ jnp.ones((3, 3)), 0.5)), LinearGaussian),
    "scalar": (plated(lambda x: dist.Normal(x.sum(-1), 0.5), event=False), LinearGaussian),
    "nonlinear": (plated(lambda x: dist.Normal(jnp.exp(x), 0.5)), Factor),
    "correlated": (correlated_in_plate, Factor),
    "two_plates": (two_plates, LinearGaussian),
    "inner_plate": (inner_plate, LinearGaussian),
    "two_sites": (two_sites, Product),
    "mask": (plated_mask, LinearGaussian),
    "bits": (plated_bits, Elementwise),
}


@pytest.mark.parametrize("name", PLATED)
def test_each_of_a_batch_has_its_own_factor(name):
    model, kind = PLATED[name]
    found = extract(model, "x", (), {})
    batch = found.prior.batch_shape
    assert type(found.factor) is kind
    assert all(leaf.shape[: len(batch)] == batch for leaf in jax.tree.leaves(found.factor))
    generator = np.random.default_rng(3)
    draw = lambda: generator.integers(0, 2, (*batch, 3)) if name == "bits" else generator.normal(size=(*batch, 3))
    log_r = lambda factor, x: factor.log_r(x)
    for _ in batch:
        log_r = jax.vmap(log_r)
    log_r, total = jax.jit(log_r), jax.jit(lambda x: model_density(model, x))
    before, after = jnp.asarray(draw()), jnp.asarray(draw())
    one, two = np.asarray(log_r(found.factor, before)), np.asarray(log_r(found.factor, after))
    np.testing.assert_allclose(one.sum(), total(before), rtol=2e-5)
    for index in np.ndindex(batch):
        moved = total(before.at[index].set(after[index])) - total(before)
        np.testing.assert_allclose(two[index] - one[index], moved, rtol=1e-4, atol=1e-4)


# ---- elements that are used together: one state


def across():
    with numpyro.plate("n", 4):
        x = draw_x()
    observe("y", dist.Normal(x.sum(0), 1.0).to_event(1), Y3)


def one_of_a_plate():
    """A site inside of the plate besides, which alone would hold the elements apart."""
    with numpyro.plate("n", 1):
        x = draw_x()
        observe("z", dist.Normal(x, 0.7).to_event(1), YS[:1])
    observe("y", dist.Normal(x[0, 0], 1.0), 0.3)


def product_of_a_plate():
    with numpyro.plate("n", 2):
        x = draw_x()
    with numpyro.plate("elements", 3):
        observe("y", dist.Normal(x.prod(0), 1.0), Y3)


def sums_in_a_plate():
    """Five looks at sums of two x each; looks stay apart."""
    with numpyro.plate("looks", 5, dim=-2):
        with numpyro.plate("n", 2, dim=-1):
            x = draw_x()
        observe("y", dist.Normal(x.sum(-2, keepdims=True), 1.0).to_event(1), np.linspace(-1, 1, 15).reshape(5, 1, 3))
        numpyro.factor("potential", jnp.sin(x[..., 0] * x[:, ::-1, 1]).sum(1, keepdims=True))


def sums_over_the_left_plate():
    """What is to the right of a plate that is summed over is in the state too."""
    with numpyro.plate("looks", 3, dim=-1):
        with numpyro.plate("n", 2, dim=-2):
            x = draw_x()
        observe("y", dist.Normal(x.sum((0, 2)), 1.0), Y3)


def bits_of_a_plate():
    with numpyro.plate("n", 2):
        x = draw_x(BIT_PRIOR)
    observe("y", dist.Normal(x.sum(0), 0.5).to_event(1), Y3)


def own_batch():
    x = numpyro.sample("x", REALS.expand((4,)))
    observe("y", dist.Normal(x, 1.0).to_event(2), YS)


def made_an_event():
    x = numpyro.sample("x", REALS.expand((2,)).to_event(1))
    observe("y", dist.Normal(x[0] - x[1], 1.0).to_event(1), Y3)


def events_in_a_plate():
    with numpyro.plate("looks", 4):
        x = numpyro.sample("x", REALS.expand((2,)).to_event(1))
        observe("y", dist.Normal(x[:, 0] - x[:, 1], 1.0).to_event(1), YS)


TOGETHER = {
    # model: (kind of factor, batch shape, event shape)
    across: (LinearGaussian, (), (4, 3)),
    one_of_a_plate: (LinearGaussian, (), (1, 3)),
    product_of_a_plate: (Factor, (), (2, 3)),
    sums_in_a_plate: (Product, (5,), (2, 3)),
    sums_over_the_left_plate: (LinearGaussian, (), (2, 3, 3)),
    bits_of_a_plate: (Factor, (), (2, 3)),
    own_batch: (Gaussian, (), (4, 3)),
    made_an_event: (LinearGaussian, (), (2, 3)),
    events_in_a_plate: (LinearGaussian, (4,), (2, 3)),
}


@pytest.mark.parametrize("model", TOGETHER, ids=lambda model: model.__name__)
def test_elements_used_together_are_one_state(model):
    kind, batch, event = TOGETHER[model]
    found = extract(model, "x", (), {})
    assert type(found.factor) is kind
    assert (found.prior.batch_shape, found.prior.event_shape) == (batch, event)
    log_r = lambda factor, x: factor.log_r(x)
    if batch:
        log_r = jax.vmap(log_r)
    generator = np.random.default_rng(3)
    bits = found.prior.support.is_discrete
    x = jnp.asarray(generator.integers(0, 2, batch + event) if bits else generator.normal(size=batch + event))
    each = np.asarray(jax.jit(log_r)(found.factor, x))
    assert each.shape == batch
    np.testing.assert_allclose(each.sum(), jax.jit(lambda x: model_density(model, x))(x), rtol=2e-5)


# ---- what cannot be extracted


def other_latent():
    gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
    observe("y", dist.Normal(gain * draw_x(), 0.5).to_event(1), Y3)


def later_latent():
    x = draw_x()
    numpyro.sample("gain", dist.Normal(x.sum(), 1.0))


def in_a_scan():
    def step(carry, y):
        x = draw_x()
        observe("y", dist.Normal(x.sum(), 1.0), y)
        return carry, None

    scan(step, 0.0, jnp.zeros(3))


def subsampled():
    x = draw_x()
    with numpyro.plate("n", 10, subsample_size=4):
        observe("y", dist.Normal(x.sum(), 1.0), np.zeros(4))


def across_inside():
    with numpyro.plate("n", 4):
        x = draw_x()
        observe("y", dist.Normal(jnp.roll(x, 1, 0).sum(-1), 1.0), np.zeros(4))


def neighbours():
    """Only the last but one says something of another element."""
    with numpyro.plate("n", 4):
        x = draw_x()
        observe("y", dist.Normal(x[:, 0] + jnp.array([0.0, 0.0, 1.0, 0.0]) * x[3, 1], 1.0), np.zeros(4))


def nothing():
    draw_x()
    observe("y", dist.Normal(0.0, 1.0), 0.3)


def observed():
    numpyro.sample("x", REALS, obs=np.zeros(3))


def no_prior():
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def masked_site():
    with mask(mask=False):
        observe("y", dist.Normal(draw_x(), 1.0).to_event(1), Y3)


def scaled_site():
    with scale(scale=2.0):
        observe("y", dist.Normal(draw_x(), 1.0).to_event(1), Y3)


def different_priors():
    locs = jnp.array([0.0, 1.0])
    process = REALS.process
    made = lambda loc: nd.ReverseProcess(process.diffusion, nd.denoisers.Gaussian(loc, 1.0), 3)
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", jax.vmap(lambda loc: nd.DiffusionPrior(made(loc)))(locs))
    observe("y", dist.Normal(x.sum(0), 1.0).to_event(1), Y3)


def factors_together():
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", REALS * Gaussian(0.0, 1.0))
    observe("y", dist.Normal(x.sum(0), 1.0).to_event(1), Y3)


def powers_together():
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", REALS**2)
    observe("y", dist.Normal(x.sum(0), 1.0).to_event(1), Y3)


REFUSED = {
    nothing: r"site: nothing in the model depends on 'x'",
    observed: "site: expected a latent site outside of any scan, got 'x', which is observed",
    no_prior: "site: expected a DiffusionPrior, .* got Normal",
    in_a_scan: "site: expected a latent site outside of any scan, got 'x', which is .* inside a scan",
    other_latent: "model: expected a value for the other latent site 'gain'",
    later_latent: "model: expected a value for the other latent site 'gain'",
    subsampled: "model: plate 'n' subsamples",
    neighbours: "model: 'y' depends on 'x' across the plate they share",
    across_inside: "model: 'y' depends on 'x' across the plate they share",
    masked_site: "site: expected a DiffusionPrior, or one times a factor, and no mask, got MaskedDistribution",
    scaled_site: "site: expected 'x' without a scale",
    different_priors: "site: expected the elements of 'x', which other sites use together, .* parameters with a batch",
    factors_together: "site: expected the elements of 'x', which other sites use together, .* got one times a factor",
    powers_together: "site: expected the elements of 'x', which other sites use together, .* or a power of one",
}


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.__name__)
def test_what_has_no_factor_is_said(model):
    with pytest.raises(ValueError, match=REFUSED[model]):
        extract_factor(model, "x")


@pytest.mark.slow
def test_a_plate_may_stand_further_to_the_left():
    """The dimensions between it and the site are of size one, and are kept."""

    def model(dim):
        with numpyro.plate("n", 4, dim=dim):
            x = draw_x()
            y = YS.reshape(x.shape)
            observe("y", dist.Normal(2.0 * x, 1.0).to_event(1), y)

    near, far = (extract_factor(model, "x", dim) for dim in (-1, -2))
    np.testing.assert_array_equal(far.loc, near.loc[:, None])
    np.testing.assert_array_equal(far.scale, near.scale[:, None])
    run = SMC(partial(model, -2), num_particles=8, num_islands=2, twist=nd.twists.MomentMatched()).run(
        jax.random.key(0)
    )
    assert run.get_samples()["x"].shape == (16, 4, 1, 3)
    assert np.isfinite(run.log_evidence)


def test_elements_of_a_plate_are_held_apart_where_other_values_are_traced():
    """Chains under `jax.vmap` have traced values of the other sites; what mixes elements is refused there too."""

    def model(mixing):
        with numpyro.plate("n", 4):
            x = draw_x()
            gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
            neighbour = jnp.roll(x, 1, 0) if mixing else x
            observe("y", dist.Normal(gain[:, None] * neighbour, 1.0).to_event(1), YS)

    def loc(gain, mixing):
        return extract_factor(substitute(model, data={"gain": gain}), "x", mixing).loc

    assert jax.vmap(lambda gain: loc(gain, False))(jnp.ones((2, 4))).shape == (2, 4, 3)
    with pytest.raises(ValueError, match="'y' depends on 'x' across the plate they share"):
        jax.vmap(lambda gain: loc(gain, True))(jnp.ones((2, 4)))


def test_an_absent_site_is_told_the_others():
    given = substitute(normal_elements, data={"x": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"site: expected the name of a latent site .*, \['x', 'y'\], got 'z'"):
        extract_factor(given, "z")
