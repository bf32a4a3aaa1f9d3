"""Training a prior inside a NumPyro model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO

import numpyro_diffusion as nd

KEY = jax.random.key(5)


def _data(key, count):
    """Points about two centres."""
    side, noise = (
        jax.random.bernoulli(key, 0.5, (count, 1)),
        jax.random.normal(jax.random.fold_in(key, 1), (count, 2)),
    )
    return jnp.where(side, 1.0, -1.0) * jnp.array([1.0, 0.5]) + 0.2 * noise


def _fit(model, steps, data):
    svi = SVI(model, lambda data: None, numpyro.optim.Adam(0.02), Trace_ELBO())
    return svi.run(KEY, steps, data, progress_bar=False)


@pytest.mark.slow
def test_a_process_learns_inside_svi(processes):
    """The ELBO and K on fresh data rise; what is fixed about the forward process does not move at all."""
    process, data, fresh = processes["network"](0.5), _data(KEY, 256), _data(jax.random.key(6), 64)

    def model(data):
        learned = eqx_module("net", process)
        with numpyro.plate("rows", 256, subsample_size=32):
            batch = numpyro.subsample(data, event_dim=1)
            numpyro.sample("x", nd.DiffusionPrior(learned, nd.KBound(2, num_times=4)), obs=batch)

    result = _fit(model, 300, data)
    assert np.isfinite(result.losses).all()
    assert np.mean(result.losses[-50:]) < np.mean(result.losses[:20]) - 0.3 * len(data)
    trained = eqx.combine(result.params["net$params"], process)
    before, after = (nd.DiffusionPrior(p, nd.KBound(8)).log_prob(fresh) for p in (process, trained))
    assert np.mean(after) > np.mean(before) + 0.3
    old, new = process.diffusion, trained.diffusion
    np.testing.assert_array_equal(new.schedule.table, old.schedule.table)
    np.testing.assert_array_equal(new.schedule.times, old.schedule.times)
    np.testing.assert_array_equal(new.scale, old.scale)
    np.testing.assert_array_equal(new.loc, old.loc)
    assert np.isfinite(nd.DiffusionPrior(trained).sample(KEY, (4,))).all()


@pytest.mark.slow
def test_only_a_network_learns_inside_svi(processes):
    """The network alone may be the module, with the process built around it in the model."""
    process, data = (
        processes["bits-network"](0.5),
        jnp.array([[0, 0, 1], [1, 0, 1], [1, 1, 0]])[jnp.arange(60) % 3],
    )

    def model(data):
        net = eqx_module("net", process.denoiser.fn)
        denoiser = nd.denoisers.Network(net, predicts="logits")
        with numpyro.plate("rows", len(data)):
            prior = nd.DiffusionPrior(nd.ReverseProcess(process.diffusion, denoiser, 3), nd.KBound(2))
            numpyro.sample("x", prior, obs=data)

    losses = np.asarray(_fit(model, 150, data).losses)
    assert np.isfinite(losses).all()
    assert losses[-20:].mean() < losses[:5].mean() - 0.2 * len(data)
