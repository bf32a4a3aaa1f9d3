"""Sites of classes in models: what is seen to speak of single elements, posteriors, files, and learning."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion import schedules
from numpyro_diffusion.factors import Categorical, Elementwise, Factor
from numpyro_diffusion.infer import extract_factor

TABLE = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
LISTED, SHARES = np.array([[0, 0], [1, 0], [2, 1], [2, 2]]), np.array([0.1, 0.3, 0.4, 0.2])
SEEN, KEY = np.array([2, 0]), jax.random.key(0)


def prior(noise="uniform", num_classes=3):
    diffusion = nd.CategoricalDiffusion(schedules.erasing(4), num_classes, noise)
    return nd.DiffusionPrior(nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(LISTED, SHARES), 2))


def looked_up(x, y):
    numpyro.sample("y", dist.Categorical(logits=jnp.asarray(TABLE)[x]).to_event(1), obs=y)


def by_vectors(x, y):
    weights = jax.nn.one_hot(x, 3) @ jnp.asarray(TABLE)
    numpyro.sample("y", dist.Categorical(logits=weights).to_event(1), obs=y)


def by_columns(x, y):
    tables = jnp.stack([jnp.asarray(TABLE), jnp.asarray(TABLE)])
    numpyro.sample("y", dist.Categorical(logits=tables[jnp.arange(2), x]), obs=y)


def by_branches(x, y):
    loc, scale = jnp.where(x == 1, 2.0, -1.0), 1.0 + 0.5 * (x == 2)
    numpyro.sample("y", dist.Normal(loc, scale).mask(np.array([True, False])), obs=1.0 * y)


SINGLE = {each.__name__: each for each in (looked_up, by_vectors, by_columns, by_branches)}
JOINT = {
    "reversed": lambda x, y: looked_up(x[::-1], y),
    "summed": lambda x, y: looked_up(jnp.cumsum(x) % 3, y),
    "same": lambda x, y: looked_up(jnp.stack([x[0], x[0]]), y),
    "mixed": lambda x, y: numpyro.sample(
        "y", dist.Categorical(logits=jnp.flip(jnp.asarray(TABLE)[x], 0)).to_event(1), obs=y
    ),
    "squared": lambda x, y: numpyro.sample("y", dist.Normal(jnp.dot(x, x), jnp.ones(2)), obs=1.0 * y),
}


def model_of(statement, law=None):
    def model(y):
        x = numpyro.sample("x", prior() if law is None else law)
        statement(x, y)

    return model


@pytest.mark.parametrize("name", SINGLE)
def test_what_single_classes_say_is_seen(name):
    """As a factor of the classes that is the model's own density, for every value."""
    factor = extract_factor(model_of(SINGLE[name]), "x", SEEN)
    assert isinstance(factor, Categorical) and factor.log_values.shape == (2, 3)
    model = lambda x: SINGLE[name](x, SEEN)
    own = lambda x: numpyro.infer.util.log_density(model, (x,), {}, {})[0]
    x = jnp.array([[0, 1], [2, 2], [1, 0]])
    both = jax.jit(jax.vmap(lambda x: (factor.log_r(x), own(x))))(x)
    np.testing.assert_allclose(*both, rtol=1e-5)


@pytest.mark.parametrize("name", JOINT)
def test_what_classes_say_together_is_no_such_factor(name):
    assert isinstance(extract_factor(model_of(JOINT[name]), "x", SEEN), Factor)


def test_elements_with_numbers_of_classes_of_their_own(tmp_path):
    """Data, draws, factors and files keep to each element's classes."""
    law = prior("absorbing", [3, 4])
    assert law.event_shape == (2,) and law.process.diffusion.num_states == 5
    np.testing.assert_array_equal(law.support(np.array([[2, 3], [3, 0], [0, 4]])), [True, False, False])
    draws = jax.jit(lambda key: law.sample(key, (200,)))(jax.random.key(0))
    assert jnp.issubdtype(draws.dtype, jnp.integer) and law.support(draws).all()
    seen = {tuple(row) for row in np.asarray(draws)}
    assert {tuple(row) for row in LISTED} <= seen
    law.save(tmp_path / "classes.safetensors")
    loaded = nd.load(tmp_path / "classes.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(law)
    factor = Categorical(np.zeros((2, 4)))
    assert (law * factor).event_shape == (2,)


BAD = {
    "count": (lambda: nd.CategoricalDiffusion(schedules.erasing(4), 0), "num_classes: expected a whole number of at"),
    "counts": (lambda: nd.CategoricalDiffusion(schedules.erasing(4), [2, 0]), "num_classes: expected whole numbers of"),
    "schedule": (
        lambda: nd.CategoricalDiffusion(schedules.cosine(4), 3, "absorbing"),
        r"schedule: expected one that leaves nothing at T .* got alpha_bar\(T\) = ",
    ),
    "noise": (lambda: nd.CategoricalDiffusion(schedules.erasing(4), 3, "masking"), "noise: expected 'uniform', 'abs"),
    "law": (
        lambda: nd.CategoricalDiffusion(schedules.erasing(4), 3, [0.5, 0.5, 0.0]),
        "positive ones of each class",
    ),
    "axis": (lambda: nd.CategoricalDiffusion(schedules.erasing(4), 3, [0.5, 0.5]), "noise: expected the last axis to"),
    "estimate": (lambda: prior().estimate(np.array([0, 3])), "value: expected values on the support"),
    "states": (lambda: prior(num_classes=2).sample(jax.random.key(0)), "states: expected whole numbers from 0 to 1"),
    "masked data": (
        lambda: nd.KBound(2)(jax.random.key(0), prior("absorbing").process, np.array([3, 0])),
        "x_0: expected whole numbers from 0 to 2, got 3",
    ),
    "bits": (lambda: prior() * Elementwise([1.0, 2.0]), "factor: Elementwise is for 2 classes, got a prior on"),
    "more": (lambda: prior() * Categorical(np.zeros((2, 4))), "factor: Categorical is for 4 classes, got a prior on"),
    "shape": (lambda: prior() * Categorical(np.zeros((5, 3))), "log_values: expected a shape that broadcasts to"),
    "one": (lambda: Categorical(1.0), "log_values: expected an axis of classes"),
    "known": (
        lambda: prior("absorbing") * nd.factors.Delta([3, 0], [True, False]),
        "values: expected values on the prior's support",
    ),
    "forward": (
        lambda: nd.ReverseProcess(
            prior("absorbing").process.diffusion, prior().process.denoiser, 2, last_step="forward"
        ),
        "last_step: expected another than ForwardStep for absorbing noise",
    ),
    "head": (
        lambda: nd.ReverseProcess(prior().process.diffusion, nd.denoisers.Network(lambda z, t: z, "mean"), 2),
        "predicts: expected 'logits' with CategoricalDiffusion, got 'mean'",
    ),
    "output": (
        lambda: nd.ReverseProcess(prior().process.diffusion, nd.denoisers.Network(lambda z, t: z[..., 0], "logits"), 2),
        r"fn: expected an output of the shape of its input, \(2, 3\), got \(2,\)",
    ),
    "Tweedie": (
        lambda: nd.twists.Tweedie().check(prior().process, Categorical(TABLE[:2])),
        "twist: Tweedie needs a slope of r, got CategoricalDiffusion",
    ),
    "annealed": (
        lambda: jax.eval_shape(
            lambda key: nd.samplers.Perturbed("annealed").sample(key, prior().process, Categorical(TABLE[:2])), KEY
        ),
        "factor: expected a closed form of r times a law of Categories, which no slope tilts, got a power of Cat",
    ),
    "codes": (
        lambda: nd.plan_prior(jax.random.key(0), np.array([[0.0, 1.5], [1.0, 0.0]]), family="categorical"),
        "data: expected whole numbers from 0 for the categorical family, got 1.5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.slow
def test_models_of_classes():
    """Two rows in a plate: SMC and particle Gibbs agree with weighted draws of the prior."""
    law = prior("absorbing")
    seen = np.array([[2, 0], [1, 1]])

    def model(y):
        with numpyro.plate("rows", 2):
            x = numpyro.sample("x", law)
            numpyro.sample("y", dist.Categorical(logits=jnp.asarray(TABLE)[x]).to_event(1), obs=y)

    draws = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(0)))
    weights = np.exp(TABLE[draws[:, None], seen].sum(-1))  # of each draw for each row
    expected = np.stack([[w @ (draws[:, 0] == c) / w.sum() for c in range(3)] for w in weights.T])
    log_evidence = np.log(weights.mean(0)).sum()
    smc = nd.infer.SMC(model, num_particles=256, num_islands=8).run(jax.random.key(1), seen)
    assert abs(smc.log_evidence - log_evidence) < 0.05
    x = np.asarray(smc.get_samples()["x"])
    np.testing.assert_allclose([[(x[:, i, 0] == c).mean() for c in range(3)] for i in range(2)], expected, atol=0.04)
    mcmc = MCMC(nd.infer.ParticleGibbs(model, num_particles=8), num_warmup=20, num_samples=1_200, progress_bar=False)
    mcmc.run(jax.random.key(3), seen)
    x = np.asarray(mcmc.get_samples()["x"])
    np.testing.assert_allclose([[(x[:, i, 0] == c).mean() for c in range(3)] for i in range(2)], expected, atol=0.06)
