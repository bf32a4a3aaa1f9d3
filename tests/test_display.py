"""How priors and results show themselves."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training.laps import History

PRIOR = nd.DiffusionPrior(
    nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(6)), nd.denoisers.Gaussian(0.0, 1.0), 2)
)


def model(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("x", PRIOR), 0.5).to_event(1), obs=y)


def fitted():
    network = nd.networks.MLP(jax.random.key(0), (2,), num_steps=6, width=4, depth=1)
    process = nd.ReverseProcess(PRIOR.process.diffusion, nd.denoisers.Network(network, "velocity"), 2)
    return nd.fit(jax.random.key(1), process, np.eye(20)[:, :2], max_steps=2, progress_bar=False)


def smc():
    return nd.infer.SMC(model, num_particles=32, num_islands=2).run(jax.random.key(0), jnp.zeros(2))


def tempered():
    run = nd.infer.TemperedSMC(model, 16, 2, move="pcn", num_moves=2, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nd.ReliabilityWarning)  # so few particles are for show
        return run.run(jax.random.key(0), jnp.zeros(2))


def gibbs():
    return nd.infer.Gibbs([(nd.infer.ParticleGibbs(model), ["x"]), (numpyro.infer.NUTS(model), None)])


def observed():
    history = History([-2.0, -1.5], [0.3, 0.2])
    return nd.incomplete.ObservationsFit(PRIOR, {"scale": np.array(2.0)}, history)


SHOWN = {
    "prior": (lambda: PRIOR, ["event_shape=(2,)", "num_steps=6", "denoiser=Gaussian", "sampler=Ancestral"]),
    "batch": (lambda: PRIOR.expand((3,)), ["batch_shape=(3,)"]),
    "packaged": (lambda: nd.load("digits"), ["event_shape=(8, 8)", "denoiser=Network (MLP, velocity)"]),
    "posterior": (
        lambda: PRIOR * nd.factors.Gaussian(0.0, 1.0) * nd.factors.Factor(jnp.sum),
        ["DiffusionPosterior(", "factor=Gaussian * Factor", "sampler=TwistedSMC"],
    ),
    "noising": (lambda: nd.ForwardTrajectory(PRIOR.process.diffusion, jnp.zeros(2)), ["diffusion=GaussianDiffusion"]),
    "chain": (lambda: PRIOR.trajectory, ["ReverseTrajectory(event_shape=(7, 2)", "num_steps=6"]),
    "smc to be run": (lambda: nd.infer.SMC(model), ["model=model", "log_evidence=not run"]),
    "smc": (smc, ["site=x", " nats", "twist MomentMatched", "effective particles"]),
    "tempered": (
        lambda: nd.infer.TemperedSMC(model, num_particles=32, num_islands=2, progress_bar=False),
        ["TemperedSMC(model=model", "2 × 32"],
    ),
    "tempered run": (tempered, ["log_evidence=-", " nats", "temperatures=", "acceptance=at least"]),
    "fit": (fitted, ["denoiser=Network (MLP, velocity)", "steps=2", "stopped=finished", "validation="]),
    "calibration": (
        lambda: nd.diagnostics.Calibration({"x": np.arange(40) % 10}, 9),
        ["quantities=x", "replicates=40"],
    ),
    "information": (
        lambda: nd.diagnostics.MutualInformation(*np.linspace(1.0, 4.0, 8).reshape(4, 2), 1.234, 0.1),
        ["levels=2", "entropy=1.23 ± 0.10 nats"],
    ),
    "particle Gibbs": (
        lambda: nd.infer.ParticleGibbs(model, "x", num_particles=4),
        ["ParticleGibbs(model=model", "site=x", "num_particles=4", "twist=by rule"],
    ),
    "Gibbs": (gibbs, ["model=model", "ParticleGibbs of ('x',)", "NUTS of all others", "interweave=auto"]),
    "imputations": (
        lambda: nd.impute(jax.random.key(0), np.array([[1.0, np.nan], [0.5, 2.0]]), PRIOR, progress_bar=False),
        ["imputations", "imputed: 1 cells in 1 rows", "median"],
    ),
    "observations": (
        observed,
        ["prior=DiffusionPrior(", "scale=2.", "laps=1 kept of 1", "log_evidence=-1.500 ± 0.200 nats"],
    ),
    "plan": (
        lambda: nd.plan_prior(jax.random.key(0), np.random.default_rng(0).normal(size=(40, 2))),
        ["family: gaussian"],
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_says_what_it_is(name):
    make, words = SHOWN[name]
    value = make()
    text, page = repr(value), value._repr_html_()
    assert all(word in text for word in words), text
    assert len(text) < 2_000 and "object at 0x" not in text and "<script" not in page
    assert page.startswith(("<table>", "<pre>"))
    assert text == str(value) if page.startswith("<pre>") else page.count("<tr>") == page.count("<th>")


def test_a_traced_prior_is_shown_too():
    found = []
    jax.jit(lambda prior: found.append(repr(prior)))(PRIOR)
    assert found == [repr(PRIOR)]


def test_marks_of_html_are_text():
    class Odd(nd.denoisers.Gaussian):
        @property
        def said(self):
            return "<b>"

    process = nd.ReverseProcess(PRIOR.process.diffusion, Odd(0.0, 1.0), 2)
    assert "&lt;b&gt;" in nd.DiffusionPrior(process)._repr_html_()
