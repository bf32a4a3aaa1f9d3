"""Bad input over the whole public interface: every message names the argument, what was expected and what came."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas
import pytest
from jax import random

import numpyro_diffusion as nd
from numpyro_diffusion import datasets, denoisers, networks, samplers, schedules
from numpyro_diffusion.checkpoints import CheckpointError

NAN, INF = float("nan"), float("inf")
KEY = random.key(0)
SCHEDULE = schedules.cosine(4)
REALS, BITS = nd.GaussianDiffusion(SCHEDULE), nd.BinomialDiffusion(schedules.erasing(4))
PROCESS = nd.ReverseProcess(REALS, denoisers.Gaussian(0.0, 1.0), 2)
COINS = nd.ReverseProcess(BITS, denoisers.Network(lambda x, t: x, "logits"), 2)
PRIOR = nd.DiffusionPrior(PROCESS, nd.KBound(1))
STRICT = nd.DiffusionPrior(PROCESS, nd.KBound(1), validate_args=True)
STRICT_COINS = nd.DiffusionPrior(COINS, nd.KBound(1), validate_args=True)
ZERO = np.zeros(2)
FACTOR = nd.factors.Gaussian(ZERO, 1.0)
POSTERIOR = PRIOR * FACTOR
MODEL = lambda: numpyro.sample("x", PRIOR)
OBSERVED = lambda: numpyro.sample("y", dist.Normal(MODEL(), 1.0).to_event(1))
DATA = np.random.default_rng(0).normal(size=(8, 2))
TOSSES = np.tile([[0, 1], [1, 1]], (4, 1))
LEARNING = nd.ReverseProcess(REALS, denoisers.Network(networks.RBF(KEY, (2,), num_steps=4, outputs=1)), 2)


def _fit(process=LEARNING, data=DATA, key=KEY, **options):
    return nd.fit(key, process, data, progress_bar=False, **({"max_steps": 2} | options))


def _mixture(locs=((0.0,) * 3,) * 2, scales=(1.0, 1.0), weights=(0.5, 0.5)):
    return denoisers.GaussianMixture(locs, scales, weights)


def _network(fn, predicts="noise", diffusion=REALS, event_shape=2, **options):
    return nd.ReverseProcess(diffusion, denoisers.Network(fn, predicts, **options), event_shape)


VALUE_ERRORS = {
    # schedules
    "one step": (lambda: schedules.linear(1), "num_steps: expected a whole number of at least 2, got 1"),
    "no steps": (lambda: schedules.log_snr(0), "num_steps: expected a whole number of at least 2, got 0"),
    "beta of nan": (lambda: schedules.from_beta([0.1, NAN]), "beta: expected finite numbers, got 1 NaN"),
    "beta above 1": (lambda: schedules.from_beta([0.1, 1.5]), "beta: expected every step in (0, 1], got"),
    "one beta": (lambda: schedules.from_beta([0.1]), "beta: expected at least 2 steps"),
    "rising schedule": (lambda: schedules.Schedule([INF, 1.0, 2.0]), "schedule: expected alpha_bar to decrease"),
    "late start": (lambda: schedules.Schedule([3.0, 1.0, 0.0]), "schedule: expected alpha_bar(0) = 1, got log-SNR 3.0"),
    "rising ends": (lambda: schedules.log_snr(4, 2.0, -2.0), "minimum, maximum: expected finite ends"),
    "infinite end": (lambda: schedules.log_snr(4, -INF, 2.0), "minimum, maximum: expected finite ends"),
    "no detail": (lambda: schedules.log_snr(4, detail=0.0), "detail: expected positive numbers, got 1.0 and 0.0"),
    "first beta": (lambda: schedules.learned(4, 1.0), "first_beta: expected a number in (0, 1), got 1.0"),
    "objective of a schedule": (
        lambda: schedules.learned(4, objective="foo"),
        "objective: expected one of 'bound', 'variance', got 'foo'",
    ),
    "init of another T": (lambda: schedules.learned(5, init=SCHEDULE), "init: expected a schedule of 5 steps, got 4"),
    "respace up": (lambda: SCHEDULE.respace(5), "num_steps: expected at most 4, got 5"),
    "respace to 1": (lambda: SCHEDULE.respace(1), "num_steps: expected a whole number of at least 2, got 1"),
    # diffusions
    "zero scale": (lambda: nd.GaussianDiffusion(SCHEDULE, scale=[1.0, 0.0]), "scale: expected positive numbers, got a"),
    "scale of nan": (lambda: nd.GaussianDiffusion(SCHEDULE, scale=NAN), "scale: expected finite numbers, got 1 NaN"),
    "infinite loc": (lambda: nd.GaussianDiffusion(SCHEDULE, INF), "loc: expected finite numbers, got 1 NaN or inf"),
    "rate of 0": (lambda: nd.BinomialDiffusion(SCHEDULE, 0.0), "rate: expected a probability strictly .* got 0.0"),
    "rate of 1": (lambda: nd.BinomialDiffusion(SCHEDULE, 1.0), "rate: expected a probability strictly .* got 1.0"),
    "rate of nan": (lambda: nd.BinomialDiffusion(SCHEDULE, NAN), "rate: expected a probability strictly .* got nan"),
    # denoisers
    "unknown head": (lambda: denoisers.Network(abs, "score"), "predicts: expected one of .* got 'score'"),
    "unknown variance": (lambda: denoisers.Network(abs, "noise", "big"), "variance: expected one of .* got 'big'"),
    "scale below 0": (lambda: denoisers.Gaussian(0.0, -1.0), "scale: expected positive numbers, got a minimum of -1"),
    "loc of nan": (lambda: denoisers.Gaussian(NAN, 1.0), "loc: expected finite numbers, got 1 NaN"),
    "weights of 0.9": (lambda: _mixture(weights=[0.5, 0.4]), "weights: expected probabilities that add up to 1, got"),
    "weight below 0": (lambda: _mixture(weights=[1.5, -0.5]), "weights: expected probabilities that add up to 1, got"),
    "three weights": (lambda: _mixture(weights=[0.2, 0.3, 0.5]), "weights: expected shape (2,) .* got (3,)"),
    "three scales": (lambda: _mixture(scales=[1.0, 1.0, 1.0]), "scales: expected shape (2,) or (2, 3), got (3,)"),
    "zero scales": (lambda: _mixture(scales=[1.0, 0.0]), "scales: expected positive numbers, got a minimum of 0"),
    "locs of inf": (lambda: _mixture(locs=np.full((2, 3), INF)), "locs: expected finite numbers, got 6 NaN or inf"),
    "states of -1": (lambda: denoisers.Enumerated([[0, -1]]), "states: expected whole numbers of at least 0, got"),
    "chances of 2": (
        lambda: denoisers.Enumerated([[0, 1]], [2.0]),
        "probabilities: expected probabilities that add up",
    ),
    # networks in a process
    "wrong shape": (
        lambda: _network(lambda x, t: x[:1]),
        "fn: expected an output of the shape of its input, (2,), got (1,)",
    ),
    "wrong shape of bits": (
        lambda: _network(lambda x, t: x.sum(), "logits", BITS),
        "fn: expected an output of the shape of its input, (2,), got ()",
    ),
    "no pair": (lambda: _network(lambda x, t: jnp.zeros(3), "mean"), "fn: predicts='mean', .* needs a pair of outputs"),
    "logits of reals": (
        lambda: _network(lambda x, t: x, "logits"),
        "predicts: expected 'noise' or 'data' or 'velocity' or 'mean' with GaussianDiffusion, got 'logits'",
    ),
    "noise of bits": (
        lambda: _network(lambda x, t: x, "noise", BITS),
        "predicts: expected 'logits' or 'mean' with Bin",
    ),
    "oracle of reals for bits": (
        lambda: nd.ReverseProcess(BITS, denoisers.Gaussian(0.0, 1.0), 2),
        "diffusion: Gaussian oracles are for GaussianDiffusion, got BinomialDiffusion",
    ),
    "event of another shape": (
        lambda: _network(networks.MLP(KEY, (3,), num_steps=4, width=2, depth=1)),
        "x: expected one example of shape (3,), got shape (2,)",
    ),
    "unknown last step": (
        lambda: nd.ReverseProcess(REALS, denoisers.Gaussian(0.0, 1.0), 2, last_step="none"),
        "last_step: expected 'learned', 'forward', 'discretised' or a last step module, got 'none'",
    ),
    "kernel off the event": (
        lambda: PROCESS.kernel(np.zeros(3), 2),
        "x_t: expected a shape that ends in .* (2,), got (3,)",
    ),
    "predict off the event": (lambda: PROCESS.predict(0.0, 2), "x_t: expected a shape that ends in .* (2,), got ()"),
    # times, values and keys
    "kernel before the data": (lambda: PROCESS.kernel(ZERO, -1), "t: expected a time from 1 to 4, got -1"),
    "kernel of the data": (lambda: PROCESS.kernel(ZERO, 0), "t: expected a time from 1 to 4, got 0"),
    "kernel after noise": (lambda: PROCESS.kernel(ZERO, 5), "t: expected a time from 1 to 4, got 5"),
    "kernel of nan": (lambda: PROCESS.kernel(ZERO, NAN), "t: expected a time from 1 to 4, got nan"),
    "kernel backwards": (lambda: PROCESS.kernel(ZERO, 2, 3), "s: expected a time from 0 to 2, got 3"),
    "kernel on the spot": (lambda: PROCESS.kernel(ZERO, 2, 2), "t, s: expected s below t, got t = 2 and s = 2"),
    "predict after noise": (lambda: PROCESS.predict(ZERO, 5), "t: expected a time from 0 to 4, got 5"),
    "beta backwards": (lambda: SCHEDULE.beta(3, 4), "s: expected a time from 0 to 3, got 4"),
    "beta of the data": (lambda: SCHEDULE.beta(0), "t: expected a time from 1 to 4, got 0"),
    "one time of many": (
        lambda: SCHEDULE.alpha_bar(np.array([1.0, 2.0, 4.5])),
        "t: expected a time .* got 4.5",
    ),
    "time after noise": (lambda: SCHEDULE.time(4.1), "t: expected a time from 0 to 4, got 4.1"),
    "marginal before the data": (lambda: REALS.marginal(ZERO, -1), "t: expected a time from 0 to 4, got -1"),
    "bridge backwards": (lambda: REALS.bridge(ZERO, ZERO, 2, 3), "s: expected a time from 0 to 2, got 3"),
    "step of bits backwards": (lambda: BITS.step(ZERO, 2, 3), "s: expected a time from 0 to 2, got 3"),
    "half bits in a marginal": (lambda: BITS.marginal(0.5 + ZERO, 2), "x_0: expected only 0 and 1, got"),
    "half bits in a step": (lambda: BITS.step(0.5 + ZERO, 2), "x_s: expected only 0 and 1, got"),
    "half bits in a kernel": (lambda: COINS.kernel(0.5 + ZERO, 2), "x_t: expected only 0 and 1, got"),
    "half bits in K": (lambda: nd.KBound(1)(KEY, COINS, 0.5 + ZERO), "x_0: expected only 0 and 1, got"),
    "half bits in an estimate": (lambda: STRICT_COINS.estimate(0.5 + ZERO), "value: expected values on the support"),
    "keys for a draw": (lambda: PRIOR.sample(random.split(KEY)), "key: expected one JAX key, .* got"),
    "no islands": (lambda: POSTERIOR.smc(KEY, 0), "num_islands: expected a whole number of at least 1, got 0"),
    "negative draws": (lambda: PRIOR.sample(KEY, (-1,)), "sample_shape: expected sizes of at least 0, got (-1,)"),
    "negative batch": (lambda: PRIOR.expand((-1,)), "batch_shape: expected sizes of at least 0, got (-1,)"),
    "expand across": (
        lambda: PRIOR.expand((3,)).expand((4,)),
        "batch_shape: Cannot broadcast distribution of shape (3,) to shape (4,)",
    ),
    "negative event": (
        lambda: nd.ReverseProcess(REALS, denoisers.Gaussian(0.0, 1.0), -2),
        "event_shape: expected sizes of at least 0, got (-2,)",
    ),
    # likelihoods
    "odd samples": (lambda: nd.KBound(3), "num_samples: expected an even number (antithetic pairs), got 3"),
    "no samples": (lambda: nd.KBound(0), "num_samples: expected a whole number of at least 1, got 0"),
    "no times": (lambda: nd.KBound(2, 0), "num_times: expected a whole number of at least 1, got 0"),
    "too many times": (
        lambda: nd.KBound(1, 4)(KEY, PROCESS, [0.0, 0.0]),
        "num_times: expected at most T - 1 = 3, got 4",
    ),
    "K off the event": (
        lambda: nd.KBound(1)(KEY, PROCESS, [0.0]),
        "x_0: expected a shape that ends in .* (2,), got (1,)",
    ),
    # samplers
    "one sampler step": (lambda: samplers.Ancestral(1), "num_steps: expected a whole number of at least 2, got 1"),
    "too many sampler steps": (
        lambda: samplers.Ancestral(5).sample(KEY, PROCESS),
        "num_steps: expected at most T = 4, got 5",
    ),
    # distributions
    "many keys": (lambda: nd.DiffusionPrior(PROCESS, key=random.split(KEY)), "key: expected one JAX key, .* got"),
    "value off the event": (lambda: PRIOR.log_prob(np.zeros(3)), "value: expected a shape that ends in .* got (3,)"),
    "trajectory off the event": (
        lambda: nd.ReverseTrajectory(PROCESS).log_prob(np.zeros((4, 2))),
        "value: expected a shape that ends in the event shape (5, 2), got (4, 2)",
    ),
    "start that is no bit": (lambda: nd.ForwardTrajectory(BITS, [0.5]), "x_0: expected values on the support"),
    "start of nan": (lambda: nd.ForwardTrajectory(REALS, [NAN]), "x_0: expected values on the support"),
    "event dimensions": (
        lambda: nd.ForwardTrajectory(REALS, [0.0], event_dim=2),
        "event_dim: expected a number from 0 to 1 (x_0 has (1,)), got 2",
    ),
    "ratio off the event": (lambda: nd.joint_log_ratio(PROCESS, np.zeros((3, 2))), "trajectory: expected a shape that"),
    "no blocks": (lambda: nd.infer.Gibbs([]), "blocks: Gibbs requires at least one block"),
    # training
    "fit nothing": (lambda: _fit(COINS, TOSSES), "process: expected something to train .* got none"),
    "fit with keys": (lambda: _fit(key=random.split(KEY)), "key: expected one JAX key, .* got"),
    "data of nan": (lambda: _fit(data=[[0.0, NAN]]), "data: expected finite numbers, got 1 NaN .* first at (0, 1)"),
    "data of inf": (lambda: _fit(data=[[0.0, INF]]), "data: expected finite numbers, got 1 NaN or infinite"),
    "huge data": (
        lambda: _fit(data=[[0.0, 1e300]]),
        "data: expected numbers whose squares float32 can hold, got 1e+300",
    ),
    "tiny data": (lambda: _fit(data=1e-40 * DATA), "data: expected numbers whose squares float32 can hold, got"),
    "data off zero": (lambda: _fit(data=1e6 + 0.01 * DATA), "data: expected numbers that float32 tells apart, got a"),
    "a plan of data off zero": (
        lambda: nd.plan_prior(KEY, 1e6 + 0.01 * DATA),
        "data: expected numbers that float32 tells apart, got a standard deviation of .* about 1e+06 in element",
    ),
    "kernels off zero": (
        lambda: denoisers.KernelDensity(1e6 + 0.01 * DATA, 0.003),
        "locs: expected numbers that float32 tells apart",
    ),
    "kernels that are apart": (
        lambda: denoisers.KernelDensity([[0.0], [1000000.01]], 0.003),
        "locs: expected numbers that float32 rounds by little .* got 1000000.01, moved by 0.01 beside 0.003",
    ),
    "a Gaussian off zero": (lambda: denoisers.Gaussian(1e6 + 0.01, 0.01), "loc: expected numbers that float32 rounds"),
    "a mixture off zero": (
        lambda: denoisers.GaussianMixture(1e6 + 0.01 * DATA[:2], [0.01, 0.02], [0.5, 0.5]),
        "locs: expected numbers that float32 rounds by little beside their standard deviation, got",
    ),
    "a full mixture off zero": (
        lambda: denoisers.FullGaussianMixture(1e6 + 0.01 * DATA[:1], 1e-4 * np.eye(2)[None]),
        "locs: expected numbers that float32 rounds by little beside their standard deviation, got",
    ),
    "products off zero": (
        lambda: denoisers.ProductMixture([[1000000.01]], [[0.01]], np.ones((1, 1, 1))),
        "locs: expected numbers that float32 rounds by little beside their standard deviation, got",
    ),
    "information off zero": (
        lambda: nd.diagnostics.mutual_information(KEY, PROCESS, 1e6 + 0.01 * DATA),
        "data: expected numbers that float32 tells apart",
    ),
    "steps off zero": (
        lambda: nd.diagnostics.place_steps(KEY, PROCESS, 1e6 + 0.01 * DATA),
        "data: expected numbers that float32 tells apart",
    ),
    "a code off zero": (
        lambda: nd.diagnostics.progressive_coding(KEY, PROCESS, 1e6 + 0.01 * DATA),
        "x_0: expected numbers that float32 tells apart",
    ),
    "an observation off zero": (
        lambda: nd.factors.Gaussian([1000000.01, 0.0], 1e-3),
        "loc: expected numbers that float32 rounds by little .* got 1000000.01, moved by 0.01 beside 0.001",
    ),
    "a sum off zero": (
        lambda: nd.factors.LinearGaussian([1000000.01], np.ones((1, 2)), 1e-3),
        "observation: expected numbers that float32 rounds by little",
    ),
    "correlated sums off zero": (
        lambda: nd.factors.LinearGaussian([0.0, 1000000.01], np.eye(2), 1e-6 * np.eye(2)),
        "observation: expected numbers that float32 rounds by little",
    ),
    "a level that would be another": (
        lambda: nd.factors.Delta([16777217, 1], [True, True]),
        "values: expected whole numbers that float32 holds, got 16777217 among others",
    ),
    "images off zero": (
        lambda: nd.plan_prior(KEY, 2.0**24 + DATA.reshape(4, 2, 2)),
        "data: expected numbers that float32 tells apart, .* subtract what they have in common",
    ),
    "missing data": (
        lambda: _fit(data=pandas.DataFrame(DATA).astype("Float64").mask(DATA > 1)),
        "data: expected finite numbers, got",
    ),
    "overflowing scale": (
        lambda: nd.GaussianDiffusion(SCHEDULE, scale=1e30),
        "scale: expected numbers whose squares float32 can hold, got 1e+30",
    ),
    "underflowing scale": (
        lambda: nd.GaussianDiffusion(SCHEDULE, scale=1e-30),
        "scale: expected numbers whose squares",
    ),
    "overflowing observation": (lambda: nd.factors.Gaussian([1e39, 0.0], 1.0), "loc: expected numbers in the range of"),
    "overflowing noise": (lambda: nd.factors.Gaussian(ZERO, 1e30), "scale: expected numbers whose squares float32"),
    "underflowing noise": (lambda: nd.factors.Gaussian(ZERO, [1e-30, INF]), "scale: expected numbers whose squares"),
    "overflowing operator": (
        lambda: nd.factors.LinearGaussian(ZERO, 1e39 * np.eye(2), 1.0),
        "operator: expected numbers in the range of float32",
    ),
    "underflowing noise of an operator": (
        lambda: nd.factors.LinearGaussian(ZERO, np.eye(2), 1e-30),
        "scale: expected numbers whose squares float32 can hold",
    ),
    "overflowing loc": (lambda: nd.GaussianDiffusion(SCHEDULE, 1e60), "loc: expected numbers in the range of float32"),
    "overflowing scale of a plan": (lambda: nd.plan_prior(KEY, DATA, scale=1e300), "scale: expected numbers whose"),
    "overflowing scale of data": (lambda: denoisers.Gaussian(0.0, 1e30), "scale: expected numbers whose squares"),
    "no data": (lambda: _fit(data=np.zeros((0, 2))), "data: expected shape (n, 2) with n >= 1, got (0, 2)"),
    "data off the event": (lambda: _fit(data=np.zeros((5, 3))), "data: expected shape (n, 2) with n >= 1, got (5, 3)"),
    "a scalar for data": (lambda: _fit(data=3.0), "data: expected shape (n, 2) with n >= 1, got ()"),
    "ragged data": (lambda: _fit(data=[[1.0, 2.0], [3.0]]), "data: expected an array of numbers, got list"),
    "data that are no bits": (lambda: _fit(COINS, 0.5 * TOSSES), "data: expected only 0 and 1, got"),
    "fit objective": (
        lambda: _fit(objective="elbo"),
        "objective: expected one of 'bound', 'simple', 'hybrid', got 'elbo'",
    ),
    "ema of 1": (lambda: _fit(ema=1.0), "ema: expected a decay in [0, 1), got 1.0"),
    "ema below 0": (lambda: _fit(ema=-0.1), "ema: expected a decay in [0, 1), got -0.1"),
    "ema of nan": (lambda: _fit(ema=NAN), "ema: expected a decay in [0, 1), got nan"),
    "learning rate below 0": (lambda: _fit(learning_rate=-1e-3), "learning_rate: expected a positive .* got -0.001"),
    "infinite learning rate": (lambda: _fit(learning_rate=INF), "learning_rate: expected a positive number .* got inf"),
    "dequantize below 0": (lambda: _fit(dequantize=-0.5), "dequantize: expected a width of at least 0 .* got -0.5"),
    "dequantize of nan": (lambda: _fit(dequantize=NAN), "dequantize: expected a width of at least 0 .* got nan"),
    "dequantized bits": (lambda: _fit(COINS, TOSSES, dequantize=1.0), "dequantize: expected .* (0 for bits, .*), got"),
    "everything held out": (lambda: _fit(validation=1.0), "validation: expected a share in [0, 1) .* got 1.0"),
    "nearly all held out": (lambda: _fit(validation=0.95), "validation: expected a share in [0, 1) that leaves data"),
    "share below 0": (lambda: _fit(validation=-0.1), "validation: expected a share in [0, 1) .* got -0.1"),
    "validation of nan": (lambda: _fit(validation=[[NAN, 0.0]]), "validation: expected finite numbers, got 1 NaN"),
    "validation off the event": (lambda: _fit(validation=np.ones(4)), "validation: expected shape (n, 2) .* got (4,)"),
    "validation times": (lambda: _fit(likelihood=nd.KBound(2, 9), validation=0.5), "num_times: expected at most T - 1"),
    "patience without validation": (lambda: _fit(validation=0.0, patience=3), "patience: expected None without valid"),
    "no patience": (lambda: _fit(patience=0), "patience: expected a whole number of at least 1, got 0"),
    "zero steps": (lambda: _fit(max_steps=0), "max_steps: expected a whole number of at least 1, got 0"),
    "never validated": (lambda: _fit(validate_every=0), "validate_every: expected a whole number of at least 1, got 0"),
    "never saved": (lambda: _fit(checkpoint_every=-1), "checkpoint_every: expected a whole number .* got -1"),
    "never logged": (lambda: _fit(log_every=0), "log_every: expected a whole number of at least 1, got 0"),
    "weights divided among nothing": (
        lambda: _fit(shard_weights=True),
        "shard_weights: expected False without devices to divide weights among, got True",
    ),
    "no devices": (lambda: _fit(devices=0), "devices: expected a whole number of at least 1, got 0"),
    "an empty list of devices": (
        lambda: _fit(devices=[]),
        "devices: expected different devices, as from jax.devices()",
    ),
    "more devices than there are": (lambda: _fit(devices=999), "devices: expected at most the .* got 999"),
    "simple with a learned variance": (
        lambda: _fit(_network(lambda x, t: (x, x), "noise", variance="learned"), objective="simple"),
        "objective: expected 'bound' for a learned variance, got 'simple'",
    ),
    "hybrid with a fixed variance": (
        lambda: _fit(objective="hybrid"),
        "objective: expected 'bound' or 'simple' without a Network of variance='learned', got 'hybrid'",
    ),
    "hybrid for bits": (lambda: _fit(COINS, TOSSES, objective="hybrid"), "objective: expected 'bound' or 'simple'"),
    "simple with a mean": (
        lambda: _fit(_network(lambda x, t: (x, x), "mean"), objective="simple"),
        "objective: expected 'bound' for a learned variance, got 'simple'",
    ),
    # a prior in one call (more in tests/training/test_auto.py)
    "constant data": (lambda: nd.fit_prior(KEY, np.ones((5, 2))), "data: expected examples that differ, got 5 equal"),
    "constant column": (lambda: nd.plan_prior(KEY, [[0.0, 1.3], [0.0, 2.1]]), "data: expected every element to vary"),
    "unknown family": (lambda: nd.plan_prior(KEY, DATA, family="t"), "family: expected one of .* got 't'"),
    "reals for bits": (lambda: nd.plan_prior(KEY, DATA, family="binomial"), "family: expected 'gaussian' .* got 'bin"),
    "unknown dtype": (lambda: PRIOR.save("prior", dtype="int8"), "dtype: expected None, .* got 'int8'"),
    # networks and data sets
    "no width": (lambda: networks.MLP(KEY, (2,), num_steps=4, width=0), "width: expected a whole number of at least 1"),
    "activation": (
        lambda: networks.Dense(KEY, (2,), outputs=1, width=2, depth=1, activation="sin"),
        "activation: expected one of .* got 'sin'",
    ),
    "noise below 0": (
        lambda: datasets.swiss_roll(KEY, 5, -1.0),
        "noise: expected a finite number of at least 0, got -1",
    ),
    "no draws": (lambda: datasets.heartbeat(KEY, 0), "num_samples: expected a whole number of at least 1, got 0"),
    "long period": (lambda: datasets.heartbeat(KEY, 2, 3, 4), "period: expected at most the length, 3, got 4"),
}


def _pattern(message):
    """The message as a regular expression in which only " .* " is one."""
    return ".*".join(re.escape(part) for part in message.split(".*"))


@pytest.mark.parametrize("name", VALUE_ERRORS)
def test_values(name):
    call, message = VALUE_ERRORS[name]
    with pytest.raises(ValueError, match=_pattern(message)) as error:
        call()
    # The argument comes first, then what is wrong with it.
    assert re.match(r"[a-z_0-9]+(, [a-z_0-9]+)*: ", str(error.value)), str(error.value)


def _hidden():
    return np.ma.masked_array([1.0, -9999.0], [False, True])


def test_numbers_that_lose_nothing_are_taken(x64):
    """In double precision, where nothing is seen, and whole numbers that the type holds; all of it below in float32."""
    nd.factors.Gaussian([1000000.01, 0.0], 1e-3), nd.factors.Delta([16777217], [True])
    denoisers.KernelDensity(1e6 + 0.01 * DATA, 0.003), denoisers.Gaussian(1e6 + 0.01, 0.01)


def test_numbers_that_lose_nothing_in_single_precision_are_taken():
    """Some of them equal but for rounding, or few that happen to be alike, and integers that are not known."""
    nd.factors.Gaussian([1000000.01, 0.0], [INF, 1e-3]), nd.factors.Gaussian([16777216, 3], 1e-3)
    nd.factors.LinearGaussian([1000000.01, 0.0], np.eye(2), 1e-3, mask=[False, True])
    nd.factors.Gaussian(jnp.array([1000000.01]), 1e-3)  # rounded before it came
    nd.factors.Delta([16777216, 3], [True, True]), nd.factors.Delta([1000000.01], [True])
    denoisers.Gaussian(1e6, 0.1), denoisers.KernelDensity(1e3 + DATA, 0.01)
    jax.jit(lambda loc: nd.factors.Gaussian([loc, 1.0], 1e-3).log_r(jnp.zeros(2)))(1000000.01)
    jax.jit(lambda x: denoisers.KernelDensity(x, 0.1).locs)(1e6 + 0.01 * DATA)
    denoisers.KernelDensity([[0.1, 1.0], [0.1, 2.0], [0.1 + 1e-16, 3.0]], 0.5)
    process = nd.ReverseProcess(nd.GaussianDiffusion(schedules.log_snr(4)), denoisers.Gaussian(0.0, 1.0), 1)
    nd.diagnostics.mutual_information(KEY, process, np.array([[2020.0], [2020.01]]), num_times=2)
    nd.factors.Delta([2**31 - 1, 3], [False, True])
    with pytest.raises(ValueError, match="values: expected whole numbers that float32 holds, got 2147483647"):
        nd.factors.Delta([2**31 - 1, 3], [True, True])


TYPE_ERRORS = {
    "half a step": (lambda: schedules.cosine(2.5), "num_steps: expected a whole number of at least 2, got 2.5"),
    "steps as text": (lambda: schedules.erasing("4"), "num_steps: expected a whole number of at least 2, got '4'"),
    "true steps": (lambda: schedules.erasing(True), "num_steps: expected a whole number of at least 2, got True"),
    "no schedule": (lambda: nd.GaussianDiffusion("cosine"), "schedule: expected a schedule from numpyro_diffusion"),
    "beta for schedule": (lambda: nd.BinomialDiffusion([0.1, 0.2]), "schedule: expected a schedule .* got [0.1, 0.2]"),
    "no function": (lambda: denoisers.Network(3), "fn: expected a callable fn(x_t, t), got 3"),
    "no diffusion": (lambda: nd.ReverseProcess(SCHEDULE, denoisers.Gaussian(0, 1), 2), "diffusion: expected a Gauss"),
    "bare function": (lambda: nd.ReverseProcess(REALS, lambda x, t: x, 2), "denoiser: expected one from numpyro_diff"),
    "seed for a draw": (lambda: PRIOR.sample(3), "key: expected one JAX key, .* got 3"),
    "numbers for a key": (lambda: PRIOR.sample_trajectory(jnp.zeros(2)), "key: expected one JAX key, .* got"),
    "seed for K": (lambda: nd.KBound(1)(3, PROCESS, ZERO), "key: expected one JAX key, .* got 3"),
    "seed for SMC": (lambda: nd.infer.SMC(MODEL).run(3), "key: expected one JAX key, .* got 3"),
    "seed for islands": (lambda: POSTERIOR.smc(3), "key: expected one JAX key, .* got 3"),
    "half a chunk": (lambda: nd.KBound(2, chunk=0.5), "chunk: expected a whole number of at least 1, got 0.5"),
    "no process": (lambda: nd.DiffusionPrior(REALS), "process: expected a ReverseProcess, got Gaussian"),
    "no likelihood": (lambda: nd.DiffusionPrior(PROCESS, "K"), "likelihood: expected a AbstractLikelihood, got 'K'"),
    "no sampler": (lambda: nd.DiffusionPrior(PROCESS, sampler=3), "sampler: expected a AbstractSampler, got 3"),
    "seed for key": (lambda: nd.DiffusionPrior(PROCESS, key=3), "key: expected one JAX key, .* got 3"),
    "no sampling key": (lambda: PRIOR.sample(None), "key: expected a JAX random key, got None"),
    "no trajectory process": (lambda: nd.ReverseTrajectory(3), "process: expected a ReverseProcess, got 3"),
    "no forward process": (
        lambda: nd.ForwardTrajectory(PROCESS, [0.0]),
        "diffusion: expected a AbstractDiffusion, got",
    ),
    "fit no process": (lambda: _fit(REALS), "process: expected a ReverseProcess, got Gaussian"),
    "fit with a seed": (lambda: _fit(key=3), "key: expected one JAX key, as from jax.random.key(0), got 3"),
    "a frame of text": (lambda: _fit(data=pandas.DataFrame({"a": ["x"], "b": [1]})), "data: expected numbers, got"),
    "data of text": (lambda: _fit(data=[["a", "b"]]), "data: expected numbers, got dtype <U1"),
    "objects for data": (lambda: _fit(data=[[None, 1.0]]), "data: expected numbers, got dtype object"),
    "ema of text": (lambda: _fit(ema="0.9"), "ema: expected a decay in [0, 1), got '0.9'"),
    "learning rate of text": (lambda: _fit(learning_rate="fast"), "learning_rate: expected a positive .* got 'fast'"),
    "optimiser by name": (lambda: _fit(optimizer="adam"), "optimizer: expected an optax optimiser, got 'adam'"),
    "uncalled optimiser": (lambda: _fit(optimizer=optax.adam), "optimizer: expected an optax optimiser, got <function"),
    "share of nothing": (lambda: _fit(validation=None), "validation: expected a share in [0, 1) .* got None"),
    "validation by name": (lambda: _fit(likelihood="K"), "likelihood: expected an estimator such as KBound, got 'K'"),
    "half a batch": (lambda: _fit(batch_size=0.5), "batch_size: expected a whole number of at least 1, got 0.5"),
    "devices by number": (
        lambda: _fit(devices=[0, 1]),
        "devices: expected different devices, as from jax.devices(), got",
    ),
    "plan with a seed": (lambda: nd.plan_prior(3, DATA), "key: expected one JAX key, .* got 3"),
    "a number for a prior": (lambda: nd.load(3), "source: expected a path or the name of a packaged prior, got 3"),
    "event by name": (
        lambda: networks.RBF(KEY, "2", num_steps=4),
        "event_shape: expected a tuple of positive .* got '2'",
    ),
    "complex value": (lambda: PRIOR.log_prob(1j + ZERO), "value: expected real numbers, got complex ones"),
    "complex K": (lambda: nd.KBound(1)(KEY, PROCESS, 1j + ZERO), "x_0: expected real numbers, got complex ones"),
    "complex state": (lambda: PROCESS.kernel(1j + ZERO, 2), "x_t: expected real numbers, got complex ones"),
    "complex marginal": (lambda: REALS.marginal(1j + ZERO, 2), "x: expected real numbers, got complex ones"),
    "complex start": (lambda: nd.ForwardTrajectory(REALS, 1j + ZERO), "x_0: expected real numbers, got complex ones"),
    "complex under jit": (lambda: jax.jit(PRIOR.log_prob)(1j + ZERO), "value: expected real numbers, got complex ones"),
    "hidden value": (lambda: PRIOR.log_prob(_hidden()), "value: expected an array without hidden values, got a masked"),
    "hidden data": (lambda: _fit(data=np.ma.masked_greater(DATA, 0.5)), "data: expected an array without hidden"),
    "hidden data of a plan": (
        lambda: nd.plan_prior(KEY, np.ma.masked_greater(DATA, 0.5)),
        "data: expected an array",
    ),
    "hidden samples": (
        lambda: nd.diagnostics.parzen(np.ma.masked_greater(DATA, 0.5), DATA),
        "samples: expected an array without hidden values",
    ),
    "hidden test data": (
        lambda: nd.diagnostics.parzen(DATA, np.ma.masked_greater(DATA, 0.5), bandwidth=0.5),
        "test: expected an array without hidden values",
    ),
    "hidden bandwidth": (
        lambda: nd.diagnostics.parzen(DATA, DATA, DATA, bandwidth=np.ma.masked_greater([0.5, 1.0], 0.7)),
        "bandwidth: expected an array without hidden values",
    ),
    "hidden code": (
        lambda: nd.diagnostics.progressive_coding(KEY, PROCESS, _hidden()),
        "x_0: expected an array without hidden values",
    ),
    "hidden data of steps": (
        lambda: nd.diagnostics.place_steps(KEY, PROCESS, np.ma.masked_greater(DATA, 0.5)),
        "data: expected an array without hidden values",
    ),
    "hidden data of information": (
        lambda: nd.diagnostics.mutual_information(KEY, PROCESS, np.ma.masked_greater(DATA, 0.5)),
        "data: expected an array without hidden values",
    ),
    "hidden observed": (
        lambda: nd.diagnostics.surprise(KEY, OBSERVED, observed={"y": _hidden()}),
        "observed: expected an array without hidden values",
    ),
    "hidden kernels": (
        lambda: denoisers.KernelDensity(np.ma.masked_greater(DATA, 0.5), 1.0),
        "locs: expected an array without hidden values",
    ),
    "hidden observation": (lambda: nd.factors.Gaussian(_hidden(), 1.0), "loc: expected an array without hidden values"),
    "time of text": (lambda: SCHEDULE.beta("3", 1), "t: expected a number from 0 to 4, got '3'"),
    "number of draws": (lambda: PRIOR.sample(KEY, 3), "sample_shape: expected a tuple of whole numbers, .* got 3"),
    "half a draw": (
        lambda: PRIOR.sample(KEY, (2.5,)),
        "sample_shape: expected a tuple of whole numbers, .* got (2.5,)",
    ),
    "draws by name": (lambda: PRIOR.sample(KEY, "ab"), "sample_shape: expected a tuple of whole numbers, .* got 'ab'"),
    "half an event": (
        lambda: nd.ReverseProcess(REALS, denoisers.Gaussian(0.0, 1.0), (2.5,)),
        "event_shape: expected a tuple of whole numbers, .* got (2.5,)",
    ),
    "prior for process": (
        lambda: nd.KBound(1)(KEY, PRIOR, ZERO),
        "process: expected a ReverseProcess, got Diff",
    ),
    "a distribution for a model": (lambda: nd.infer.SMC(PRIOR), "model: expected a function, got DiffusionPrior("),
    "a posterior for a model": (
        lambda: nd.diagnostics.surprise(KEY, POSTERIOR, observed={"y": ZERO}),
        "model: expected a function, got DiffusionPosterior(",
    ),
    "model of SMC": (lambda: nd.infer.SMC(3), "model: expected a function, got 3"),
    "model of ParticleGibbs": (
        lambda: nd.infer.ParticleGibbs(PRIOR.module),
        "model: expected a function, got",
    ),
    "blocks of Gibbs": (lambda: nd.infer.Gibbs(3), "blocks: expected pairs of a kernel and the names .* got 3"),
    "kernel of a block": (lambda: nd.infer.Gibbs([(3, "x")]), "blocks: expected pairs of a kernel .* got (3, 'x')"),
    "sites of a block": (
        lambda: nd.infer.Gibbs([(numpyro.infer.NUTS(MODEL), 3)]),
        "blocks: expected pairs of a kernel and the names of its sites, .* got (<numpyro",
    ),
    "classes of a file": (
        lambda: nd.load("digits", classes=3),
        "classes: expected a list of classes, as [Mine], got 3",
    ),
    "one class of a file": (
        lambda: nd.load("digits", classes=denoisers.Network),
        "classes: expected a list of classes, as [Mine], got <class",
    ),
    "checkpoint of fit": (lambda: _fit(checkpoint=3), "checkpoint: expected the path of a file, got 3"),
    "checkpoint of fit_prior": (
        lambda: nd.fit_prior(KEY, DATA, checkpoint=3, progress_bar=False),
        "checkpoint: expected the path of a file, got 3",
    ),
    "checkpoint of impute": (
        lambda: nd.impute(KEY, np.where(DATA > 1, NAN, DATA), checkpoint=3, progress_bar=False),
        "checkpoint: expected the path of a file, got 3",
    ),
    "checkpoint of SMC": (
        lambda: nd.infer.SMC(MODEL, target_log_evidence_sd=0.1, checkpoint=3),
        "checkpoint: expected the path of a file, got 3",
    ),
    "model of TemperedSMC": (lambda: nd.infer.TemperedSMC("x"), "model: expected a function, got 'x'"),
    "model of a factor": (lambda: nd.infer.extract_factor(3, "x"), "model: expected a function, got 3"),
    "model to calibrate": (
        lambda: nd.diagnostics.calibrate(KEY, 3, nd.infer.SMC, observed="y"),
        "model: expected a function, got 3",
    ),
    "site by number": (lambda: nd.infer.SMC(MODEL, 3), "site: expected the name of a site, or None .* got 3"),
    "prior times 3": (lambda: PRIOR * 3, "unsupported operand"),
    "3 times prior": (lambda: 3 * PRIOR, "unsupported operand"),
}


@pytest.mark.parametrize("name", TYPE_ERRORS)
def test_types(name):
    call, message = TYPE_ERRORS[name]
    with pytest.raises(TypeError, match=_pattern(message)):
        call()


WITH_KEYS = {  # calls that begin with a key, beside those above
    "Ancestral": lambda key: samplers.Ancestral().sample(key, PROCESS),
    "from a time": lambda key: samplers.Ancestral().sample_from(key, PROCESS, ZERO, 3),
    "trajectory": lambda key: samplers.Ancestral().sample_trajectory(key, PROCESS),
    "DDIM": lambda key: samplers.DDIM().sample(key, PROCESS),
    "SDE": lambda key: samplers.SDE().sample_trajectory(key, PROCESS),
    "SDE from a time": lambda key: samplers.SDE().sample_from(key, PROCESS, ZERO, 3),
    "TwistedSMC": lambda key: samplers.TwistedSMC(4).run(key, PROCESS, FACTOR),
    "one of TwistedSMC": lambda key: samplers.TwistedSMC(4).sample(key, PROCESS, FACTOR),
    "ParticleGibbs": lambda key: samplers.ParticleGibbs(4).init(key, PROCESS, FACTOR),
    "Guided": lambda key: samplers.Guided().sample(key, PROCESS, FACTOR),
    "Perturbed": lambda key: samplers.Perturbed().sample(key, PROCESS, FACTOR),
    "Replacement": lambda key: samplers.Replacement().sample(key, PROCESS, nd.factors.Delta(ZERO, [True, False])),
    "interpolate": lambda key: samplers.interpolate(key, PROCESS, ZERO, ZERO, [0.5], 3),
    "systematic": lambda key: samplers.systematic(key, jnp.zeros(4)),
    "MLP": lambda key: networks.MLP(key, (2,), num_steps=4),
    "RBF": lambda key: networks.RBF(key, (2,), num_steps=4),
    "Dense": lambda key: networks.Dense(key, (2,), outputs=1, width=2, depth=1),
    "Series": lambda key: networks.Series(key, (8,), num_steps=4),
    "UNet": lambda key: networks.UNet(key, (8, 8)),
    "MultiScale": lambda key: networks.MultiScale(key, (8, 8), outputs=1),
    "dead_leaves": lambda key: datasets.dead_leaves(key, 2),
    "heartbeat": lambda key: datasets.heartbeat(key, 2),
    "swiss_roll": lambda key: datasets.swiss_roll(key, 2),
    "surprise": lambda key: nd.diagnostics.surprise(key, OBSERVED, observed={"y": ZERO}),
    "mutual_information": lambda key: nd.diagnostics.mutual_information(key, PROCESS, DATA),
    "place_steps": lambda key: nd.diagnostics.place_steps(key, PROCESS, DATA),
    "progressive_coding": lambda key: nd.diagnostics.progressive_coding(key, PRIOR, DATA),
    "progressive_generation": lambda key: nd.diagnostics.progressive_generation(key, PRIOR),
    "plot": lambda key: nd.plots.trajectory(key, PROCESS, DATA),
    "compare_priors": lambda key: nd.compare_priors(key, MODEL, {"a": PRIOR, "b": PRIOR}),
    "bound_loss": lambda key: nd.training.bound_loss(key, PROCESS, jnp.asarray(DATA)),
}


@pytest.mark.parametrize("name", WITH_KEYS)
def test_keys(name):
    """Arrays of wrong numbers are left to `shape_checks`, which is first in tests."""
    for key in (3, "0"):
        with pytest.raises(TypeError, match="^key: expected one JAX key, as from "):
            WITH_KEYS[name](key)


def test_numbers_of_other_libraries_are_taken():
    """Pandas' nullable types, and types of few bits."""
    frames = [pandas.DataFrame(DATA).astype("Float64"), pandas.DataFrame(DATA), np.ma.masked_array(DATA)]
    whole = pandas.DataFrame(np.round(4 * DATA)).astype("Int64")
    expected = str(nd.plan_prior(KEY, DATA))
    assert [str(nd.plan_prior(KEY, frame)) for frame in frames] == [expected] * 3
    assert nd.plan_prior(KEY, whole).dequantize == 1.0
    low = jnp.asarray(DATA, jnp.bfloat16)
    assert str(nd.plan_prior(KEY, low)) == str(nd.plan_prior(KEY, np.asarray(low, np.float32)))


def test_validation_is_that_of_numpyro():
    """A warning and no probability, in batches too; infer_shapes knows that it does not know."""
    with pytest.warns(UserWarning, match="value: expected values on the support of DiffusionPrior.* got 1 of 2"):
        found = STRICT.log_prob([[0.0, 1.0], [0.0, NAN]])
    assert np.isfinite(found[0]) and found[1] == -INF
    for kind in (nd.DiffusionPrior, nd.ForwardTrajectory):
        with pytest.raises(NotImplementedError, match=f"{kind.__name__}.infer_shapes: the event shape is the process"):
            kind.infer_shapes(process=())


UNKNOWN = {
    "linear": lambda **bad: schedules.linear(4, **bad),
    "cosine": lambda **bad: schedules.cosine(4, **bad),
    "log_snr": lambda **bad: schedules.log_snr(4, **bad),
    "erasing": lambda **bad: schedules.erasing(4, **bad),
    "learned": lambda **bad: schedules.learned(4, **bad),
    "GaussianDiffusion": lambda **bad: nd.GaussianDiffusion(SCHEDULE, **bad),
    "BinomialDiffusion": lambda **bad: nd.BinomialDiffusion(SCHEDULE, **bad),
    "Network": lambda **bad: denoisers.Network(abs, **bad),
    "Gaussian": lambda **bad: denoisers.Gaussian(0.0, 1.0, **bad),
    "ReverseProcess": lambda **bad: nd.ReverseProcess(REALS, denoisers.Gaussian(0.0, 1.0), 2, **bad),
    "KBound": lambda **bad: nd.KBound(**bad),
    "Ancestral": lambda **bad: samplers.Ancestral(**bad),
    "DDIM": lambda **bad: samplers.DDIM(**bad),
    "SDE": lambda **bad: samplers.SDE(**bad),
    "DiffusionPrior": lambda **bad: nd.DiffusionPrior(PROCESS, **bad),
    "ForwardTrajectory": lambda **bad: nd.ForwardTrajectory(REALS, [0.0], **bad),
    "ReverseTrajectory": lambda **bad: nd.ReverseTrajectory(PROCESS, **bad),
    "with_": lambda **bad: PRIOR.with_(**bad),
    "save": lambda **bad: PRIOR.save("prior", **bad),
    "load": lambda **bad: nd.load("digits", **bad),
    "card": lambda **bad: nd.card("digits", **bad),
    "fit": lambda **bad: _fit(**bad),
    "fit_prior": lambda **bad: nd.fit_prior(KEY, DATA, **bad),
    "plan_prior": lambda **bad: nd.plan_prior(KEY, DATA, **bad),
    "MLP": lambda **bad: networks.MLP(KEY, (2,), num_steps=4, **bad),
    "RBF": lambda **bad: networks.RBF(KEY, (2,), num_steps=4, **bad),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_keywords(name):
    with pytest.raises(TypeError, match="unexpected keyword argument '?num_stepz'?"):
        UNKNOWN[name](num_stepz=3)


def test_files(tmp_path):
    path = tmp_path / "prior.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"source: expected a file or a packaged prior .* got '.*prior\.safetensors'"
    ):
        nd.load(path)
    with pytest.raises(FileNotFoundError, match="source: expected a file .* got"):
        nd.load(tmp_path)
    path.write_bytes(b"broken")
    for read in (nd.load, nd.card):
        with pytest.raises(CheckpointError, match=r"prior\.safetensors: not a safetensors file"):
            read(path)
    with pytest.raises(CheckpointError, match=r"prior\.safetensors: not a safetensors file"):
        _fit(checkpoint=path)
    with pytest.raises(FileNotFoundError, match="expected a file in a folder that exists"):
        PRIOR.save(tmp_path / "nowhere" / "prior")
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a file in a folder that exists, got '.*nowhere"):
        _fit(checkpoint=tmp_path / "nowhere" / "run")
    assert path.read_bytes() == b"broken" and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_values_off_the_support_under_jit_have_no_probability():
    """What cannot raise says -inf."""
    values = jnp.array([[0.0, 1.0], [0.5, 1.0], [NAN, 0.0]])
    finite = np.isfinite(jax.jit(STRICT_COINS.log_prob)(values))
    assert finite.tolist() == [True, False, False]
