"""Priors of p(x | c): exact conditional Gaussians, contexts known or not, in batches, files and models."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import seed, trace
from scipy.stats import norm

import numpyro_diffusion as nd

DIFFUSION = nd.GaussianDiffusion(nd.schedules.log_snr(6, -9.0, 6.0))
SCALE = 0.7


def exact():
    """N(c, SCALE²) in two dimensions."""
    denoiser = nd.denoisers.Conditional(lambda c: nd.denoisers.Gaussian(c, SCALE), (2,))
    return nd.DiffusionPrior(nd.ReverseProcess(DIFFUSION, denoiser, 2), nd.KBound(4, low_discrepancy=True))


def learned(optional=True):
    """A network of three labels."""
    fn = nd.networks.MLP(
        jax.random.key(0), (2,), num_steps=6, width=8, depth=1, context=nd.networks.ContextFeatures((), 3)
    )
    fn = jax.tree.map(lambda leaf: leaf + 0.1 if hasattr(leaf, "dtype") else leaf, fn)  # away from its zero output
    denoiser = nd.denoisers.Network(fn, "velocity", told=nd.denoisers.Context((), 3, optional))
    return nd.DiffusionPrior(nd.ReverseProcess(DIFFUSION, denoiser, 2))


@pytest.mark.slow
def test_a_batch_of_contexts_is_a_batch_of_priors():
    prior, c = exact(), np.array([[0.0, 1.0], [2.0, -1.0], [5.0, 3.0]])
    told = prior.given(c)
    assert prior.context_shape == (2,) and told.context_shape is None
    assert told.batch_shape == (3,) and told.event_shape == (2,) and told.trajectory.batch_shape == (3,)
    x = told.sample(jax.random.key(0), (4000,))
    np.testing.assert_allclose(x.mean(0), c, atol=4 * SCALE / np.sqrt(4000) + 5e-3)
    np.testing.assert_allclose(told.log_prob(c), norm.logpdf(0, 0, SCALE) * 2 * np.ones(3), atol=0.05)
    noise = jax.random.normal(jax.random.key(1), (3, *told.noise_shape))
    for i in range(3):
        one = prior.given(c[i])
        assert one.batch_shape == ()
        np.testing.assert_allclose(one.from_noise(noise[i]), told.from_noise(noise)[i], rtol=1e-5, atol=1e-6)
    assert prior.given(c.reshape(3, 1, 2)).batch_shape == (3, 1)


@pytest.mark.slow
def test_the_posterior_given_contexts_in_a_plate():
    """SMC with a context for each element: N(c, SCALE² + 1) is the evidence."""
    c, y = np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])

    def model():
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", exact().given(c))
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    smc = nd.infer.SMC(model, num_particles=64, num_islands=2).run(jax.random.key(0))
    assert abs(smc.log_evidence - norm.logpdf(y, c, np.hypot(SCALE, 1)).sum()) < 2e-2


def test_a_context_that_is_a_site_has_a_gradient_and_plates():
    def model():
        c = numpyro.sample("c", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        with numpyro.plate("n", 3):
            own = numpyro.sample("own", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
            numpyro.sample("x", exact().given(c + own))

    shown = trace(seed(model, 0)).get_trace()
    assert shown["x"]["value"].shape == (3, 2)
    slope = jax.jit(jax.grad(lambda c: exact().given(c).log_prob(jnp.array([1.0, 0.0]))))(jnp.zeros(2))
    np.testing.assert_allclose(slope, [1 / SCALE**2, 0.0], atol=0.03)


def test_labels_and_nothing_known():
    prior = learned()
    draw = jax.jit(jax.vmap(lambda label: prior.given(label).sample(jax.random.key(0))))
    x = np.asarray(draw(jnp.array([0, 1, 2, -1])))
    assert len(np.unique(x[:, 0])) == 4
    np.testing.assert_allclose(jax.jit(lambda: prior.given(None).sample(jax.random.key(0)))(), x[3], rtol=1e-5)
    assert prior.given(jnp.arange(3)).batch_shape == (3,)


@pytest.mark.parametrize("context", [None, 2])
def test_files(context, tmp_path):
    """With the context open, and with one."""
    prior = learned() if context is None else learned().given(context)
    prior.save(tmp_path / "prior")
    again = nd.load(tmp_path / "prior")
    assert again.context_shape == prior.context_shape == (() if context is None else None)
    leaves, leaves_again = (jax.tree.leaves(each.module) for each in (prior, again))
    for leaf, leaf_again in zip(leaves, leaves_again, strict=True):
        np.testing.assert_array_equal(leaf, leaf_again)
    assert again.given(1).batch_shape == () if context is None else True


BAD = {
    "no context": (
        lambda: exact().sample(jax.random.key(0)),
        ValueError,
        r"real numbers of shape .*2\), got none; use given",
    ),
    "none given": (lambda: exact().given(None), ValueError, r"context: expected real numbers .*, got None"),
    "another shape": (lambda: exact().given(jnp.zeros(3)), ValueError, r"context: expected .*2\), got shape \(3,\)"),
    "no numbers": (lambda: exact().given("a"), TypeError, "context: expected real numbers, got 'a'"),
    "unknown": (lambda: exact().given(jnp.array([np.nan, 0.0])), ValueError, "context: expected numbers, got NaN"),
    "batch": (
        lambda: exact().expand((2,)).given(jnp.zeros(2)),
        ValueError,
        r"given: expected a prior of batch shape \(\)",
    ),
    "twice": (
        lambda: exact().given(jnp.zeros((2, 2))).given(jnp.zeros(2)),
        ValueError,
        r"given: expected a prior of batch shape \(\)",
    ),
    "many for a process": (
        lambda: exact().process.given(jnp.zeros((3, 2))),
        ValueError,
        r"context: expected one, .* got shape \(3, 2\)",
    ),
    "fraction": (lambda: learned().given(0.5), TypeError, "context: expected whole numbers for labels, got float32"),
    "label": (lambda: learned().given(3), ValueError, r"context: expected labels from -1 to 2, got \[3\]"),
    "missing label": (
        lambda: learned(False).given(-1),
        ValueError,
        r"context: expected labels from 0 to 2, got \[-1\]",
    ),
    "unconditional": (
        lambda: nd.DiffusionPrior(nd.ReverseProcess(DIFFUSION, nd.denoisers.Gaussian(0.0, 1.0), 2)).given(0.0),
        ValueError,
        r"context: expected a prior of p\(x \| c\)",
    ),
    "denoiser": (lambda: nd.denoisers.Gaussian(0.0, 1.0).given(1), ValueError, "context: expected none for Gaussian"),
    "what is told": (
        lambda: nd.denoisers.Network(lambda x, t: x, told=3),
        TypeError,
        "told: expected a denoisers.Context",
    ),
    "no maker": (lambda: nd.denoisers.Conditional(3), TypeError, "make: expected a callable from a context"),
    "what is made": (
        lambda: nd.denoisers.Conditional(lambda c: c).given(1.0).made,
        ValueError,
        "make: expected a denoiser",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_contexts_are_named(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
