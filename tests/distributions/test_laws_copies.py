"""Copies and pickles: of every distribution, and of NumPyro's objects that hold one."""

import copy
import pickle

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.einstein import RBFKernel, SteinVI
from numpyro.infer import HMC, MCMC, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import numpyro_diffusion as nd

KEY, VALUE = jax.random.key(0), np.array([1.0, -0.5])
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_the_same_parameters(any_case, how):
    """Expanded too; the parts can be put together again, which is what failed where the structure was copied."""
    for made in (any_case.made, any_case.made.expand((3, *any_case.batch))):
        copied = COPIES[how](made)
        assert type(copied) is type(made) and copied.batch_shape == made.batch_shape
        assert copied.event_shape == made.event_shape
        assert_equal(jax.tree.leaves(copied.module), jax.tree.leaves(made.module))
        if how == "deepcopy" or "network" not in any_case.name:  # that one's counter is equal to itself only
            assert jax.tree.structure(copied) == jax.tree.structure(made)  # so that they share compiled programs


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_priors_with_a_transform_and_of_whole_numbers(how, processes):
    transform = dist.transforms.AffineTransform(1.0, np.array([2.0, 3.0]))
    diffusion, last = nd.GaussianDiffusion(nd.schedules.cosine(4), 3.5, 3.5), nd.DiscretisedStep(8)
    levels = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(3.0, 2.0), 2, last_step=last)
    for made in (nd.DiffusionPrior(processes["gaussian"](0.4), transform=transform), nd.DiffusionPrior(levels)):
        for each in (made, made * nd.factors.Gaussian(np.zeros(2), 1.0)):
            copied = COPIES[how](each)
            assert jax.tree.structure(copied) == jax.tree.structure(each) and copied.is_discrete == each.is_discrete
            assert_equal(jax.tree.leaves(copied.module), jax.tree.leaves(each.module))
            assert copied.support(VALUE).shape == ()


@pytest.mark.slow
def test_pickles_of_networks_draw_and_score_alike(rows):
    """Equal parts make equal programs but for the network's counter, see above."""
    made = rows("trajectory-network").made
    copied, draws = COPIES["pickle"](made), made.sample(KEY)
    assert_equal(copied.sample(KEY), draws)
    assert_equal(copied.log_prob(draws), made.log_prob(draws))


def model(prior, y):
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def _mcmc(prior):
    mcmc = MCMC(HMC(model, trajectory_length=0.5), num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(KEY, prior, VALUE)
    return mcmc


def _on(mcmc, prior):
    first = mcmc.get_samples()
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, prior, VALUE)
    return first, mcmc.get_samples()


def _guide(prior):
    guide = AutoNormal(model)
    svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO())
    guide.found = svi.run(KEY, 2, prior, VALUE, progress_bar=False).params
    return guide


def _smc(prior):
    return nd.infer.SMC(model, num_particles=8, num_islands=2, twist=nd.twists.Laplace()).run(KEY, prior, VALUE)


HOLDERS = {
    "MCMC": (_mcmc, _on),
    "guide": (_guide, lambda guide, prior: guide.sample_posterior(KEY, guide.found, prior, VALUE)),
    "SMC": (_smc, lambda smc, prior: (smc.get_samples(), smc.run(KEY, prior, VALUE).get_samples())),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*More particles or another twist may help:UserWarning")
@pytest.mark.parametrize("name", HOLDERS)
def test_what_holds_a_prior_can_be_copied_and_goes_on_alike(name, rows):
    make, use = HOLDERS[name]
    prior = rows("prior-gaussian").made.with_(likelihood=nd.KBound(1, 1))
    made = make(prior)
    copied = copy.deepcopy(pickle.loads(pickle.dumps(made)))
    assert_equal(use(copied, prior), use(made, prior))


@pytest.mark.slow
def test_stein_vi_copies_its_guide(rows):
    prior = rows("prior-gaussian").made.with_(likelihood=nd.KBound(1, 1))
    guide = AutoNormal(model)
    stein = SteinVI(model, guide, numpyro.optim.Adam(0.1), RBFKernel(), num_stein_particles=3)
    copied = copy.deepcopy(stein)
    states = [each.init(KEY, prior, VALUE) for each in (stein, copied)]  # which copies the guide once more
    assert_equal(copied.get_params(states[1]), stein.get_params(states[0]))
