"""Random arrays for data, and wrong arguments of every kind for every public call: an error says which argument."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import denoisers, factors, samplers, schedules
from numpyro_diffusion.training._arguments import check_data

KEY, ZERO = jax.random.key(0), np.zeros(2)
SCHEDULE = schedules.cosine(4)
REALS, BITS = nd.GaussianDiffusion(SCHEDULE), nd.BinomialDiffusion(schedules.erasing(4))
PROCESS = nd.ReverseProcess(REALS, denoisers.Gaussian(0.0, 1.0), 2)
PRIOR = nd.DiffusionPrior(PROCESS, nd.KBound(1))
NAMED = r"[A-Za-z_0-9., ]+: "

DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    np.int64,
    np.uint8,
    bool,
    np.complex64,
    object,
    str,
    jnp.bfloat16,
    "M8[s]",
]


def array(rng):
    """Of any type, shape and size of numbers, in any container."""
    shape = tuple(rng.integers(0, 5, rng.integers(0, 5)))
    if rng.random() < 0.6:
        shape = (int(rng.integers(1, 30)), 2) if rng.random() < 0.7 else (int(rng.integers(2, 9)), 3, 4)
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)
    change = rng.random(6) < (0.3, 0.2, 0.3, 0.2, 0.2, 0.1)
    x = np.asarray(x * 10.0 ** rng.integers(-320, 300) if change[0] else x)
    x = x + 10.0 ** rng.integers(0, 18) if change[1] else x
    x = np.round(x) if change[2] else x
    x = np.array((x > 0).astype(float) if change[3] else x)
    if change[4] and x.size:
        x.reshape(-1)[rng.integers(x.size)] = rng.choice([np.nan, np.inf, -np.inf])
    x = np.broadcast_to(x[:1], x.shape) if change[5] and x.ndim else x
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = np.asarray(x.astype(DTYPES[rng.integers(len(DTYPES))]))
    plain = x.dtype in (np.float64, np.float32, np.int64, np.uint8, bool)
    match rng.integers(7):
        case 0:
            return x.tolist()
        case 1 if plain and x.ndim == 2:
            return pandas.DataFrame(x)
        case 2 if plain and x.ndim == 2 and x.size:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", RuntimeWarning
                )  # of pandas 3.0, where a value is no whole number of 64 bits
                return pandas.DataFrame(x).convert_dtypes()
        case 3 if plain:
            return np.ma.masked_array(x, rng.random(x.shape) < 0.1)
        case 4:
            return x.T
        case 5:
            return [None, 3, "data", b"x"][rng.integers(4)]
    return x


def check_arrays(seed, count):
    """Either a plan with a sound schedule, and finite data; or an error that names the argument."""
    rng, taken, refused = np.random.default_rng(seed), 0, 0
    for _ in range(count):
        data = array(rng)
        for use in (lambda data: nd.plan_prior(KEY, data, network=len), lambda data: check_data("data", data, PROCESS)):
            try:
                found = use(data)
            except (TypeError, ValueError) as error:
                assert re.match(NAMED, str(error)), (data, error)
                refused += 1
                continue
            taken += 1
            if isinstance(found, nd.training.PriorPlan):
                assert (np.diff(np.asarray(found.process.diffusion.schedule.table)) < 0).all()
            else:
                assert np.isfinite(found).all() and found.shape[1:] == (2,)
    assert taken > count / 10 and refused > count / 2


def test_data_are_taken_or_refused_by_name():
    check_arrays(0, 60)


@pytest.mark.slow
def test_much_data_is_taken_or_refused_by_name():
    check_arrays(1, 2500)


WRONG = [
    None, True, -1, 99, 2**40, 2.5, -0.5, float("nan"), float("inf"), 1j, "", "noise", b"x", (), (-1,), (2.5,), [1, 2],
    {"a": 1}, np.zeros(3), np.full(2, np.nan), 1j * ZERO, np.array(["a", "b"]), np.array([None, 1]), KEY,
    jax.random.split(KEY), SCHEDULE, REALS, PROCESS, PRIOR, nd.KBound(1), object, len,
]  # fmt: skip
CALLS = {  # with arguments that are right
    "cosine": (schedules.cosine, [4, 0.008, 0.999]),
    "linear": (schedules.linear, [4, 1e-4, 0.02]),
    "log_snr": (schedules.log_snr, [4, -4.0, 3.0]),
    "learned": (schedules.learned, [4, 0.1, SCHEDULE]),
    "Schedule": (schedules.Schedule, [[np.inf, 1.0, -1.0], "log_snr", [0.0, 1.0, 2.0]]),
    "from_beta": (schedules.from_beta, [[0.1, 0.2]]),
    "beta": (SCHEDULE.beta, [3, 1]),
    "respace": (SCHEDULE.respace, [3]),
    "GaussianDiffusion": (nd.GaussianDiffusion, [SCHEDULE, 0.0, 1.0]),
    "BinomialDiffusion": (nd.BinomialDiffusion, [SCHEDULE, 0.5]),
    "CategoricalDiffusion": (nd.CategoricalDiffusion, [SCHEDULE, 3, "uniform"]),
    "MixedDiffusion": (nd.MixedDiffusion, [[REALS], [[0, 1]]]),
    "marginal": (REALS.marginal, [ZERO, 2]),
    "step of bits": (BITS.step, [ZERO, 2, 1]),
    "Gaussian": (denoisers.Gaussian, [0.0, 1.0]),
    "GaussianMixture": (denoisers.GaussianMixture, [np.zeros((2, 2)), [1.0, 1.0], [0.5, 0.5]]),
    "Enumerated": (denoisers.Enumerated, [[[0, 1], [1, 1]], [0.5, 0.5]]),
    "Network": (denoisers.Network, [len, "noise", "beta", (-1.0, 1.0), "float32"]),
    "ProductMixture": (denoisers.ProductMixture, [np.zeros((1, 2)), np.ones((1, 2)), np.ones((1, 2, 2)), [1.0]]),
    "ContextFeatures": (nd.networks.ContextFeatures, [(), None, 0.0, 1.0]),
    "LearnedStep": (nd.LearnedStep, [0.0]),
    "MixedStep": (nd.MixedStep, [[None, 3]]),
    "ReverseProcess": (nd.ReverseProcess, [REALS, denoisers.Gaussian(0.0, 1.0), 2]),
    "moments": (lambda each: nd.ReverseProcess(REALS, denoisers.Gaussian(0.0, 1.0), 2, moments=each), [None]),
    "kernel": (PROCESS.kernel, [ZERO, 2, 1]),
    "predict": (PROCESS.predict, [ZERO, 2]),
    "KBound": (nd.KBound, [2, 2]),
    "DiffusionPrior": (nd.DiffusionPrior, [PROCESS, nd.KBound(1), samplers.Ancestral(), KEY]),
    "ForwardTrajectory": (nd.ForwardTrajectory, [REALS, ZERO]),
    "event_dim": (lambda rank: nd.ForwardTrajectory(REALS, ZERO, event_dim=rank), [1]),
    "ReverseTrajectory": (nd.ReverseTrajectory, [PROCESS]),
    "sample": (PRIOR.sample, [KEY, ()]),
    "log_prob": (PRIOR.log_prob, [ZERO]),
    "expand": (PRIOR.expand, [(2,)]),
    "from_noise": (PRIOR.from_noise, [np.zeros(PRIOR.noise_shape)]),
    "estimate": (lambda value, key: PRIOR.estimate(value, key=key), [ZERO, KEY]),
    "joint_log_ratio": (nd.joint_log_ratio, [PROCESS, np.zeros((5, 2))]),
    "DiffusionPosterior": (nd.DiffusionPosterior, [PRIOR, factors.Gaussian(ZERO, 1.0)]),
    "factors.Gaussian": (factors.Gaussian, [ZERO, 1.0]),
    "Delta": (factors.Delta, [ZERO, np.array([True, False])]),
    "Elementwise": (factors.Elementwise, [ZERO]),
    "factors.Categorical": (factors.Categorical, [np.zeros((2, 3))]),
    "LinearGaussian": (factors.LinearGaussian, [ZERO, np.eye(2), 1.0]),
    "mask": (lambda mask: factors.LinearGaussian(ZERO, np.eye(2), 1.0, mask=mask), [[True, False]]),
    "Ancestral": (samplers.Ancestral, [3]),
    "TwistedSMC": (lambda *parts: samplers.TwistedSMC(*parts[:2], threshold=parts[2]), [4, None, 0.5]),
    "Guided": (samplers.Guided, [None]),
    "SDE": (lambda noise, grid: samplers.SDE(noise, grid=grid), [1.0, [4.0, 2.0, 1.0]]),
    "Tempered": (nd.twists.Tempered, [None, 0.5]),
    "SMC": (nd.infer.SMC, [len, "x", 4, 2]),
    "ParticleGibbs": (nd.infer.ParticleGibbs, [len, "x", 4]),
    "TemperedSMC": (nd.infer.TemperedSMC, [len, 4, 2]),
    "load": (nd.load, ["digits"]),
}


def check_calls(places):
    refused = 0
    for name, place, wrong in places:
        call, arguments = CALLS[name]
        arguments = [wrong if i == place else argument for i, argument in enumerate(arguments)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(*arguments)
        except (TypeError, ValueError, FileNotFoundError) as error:
            assert re.match(NAMED, str(error)), (name, place, wrong, error)
            refused += 1
    assert refused > len(places) / 2


def all_places():
    return [(name, i, wrong) for name, (_, right) in CALLS.items() for i in range(len(right)) for wrong in WRONG]


def test_wrong_arguments_are_named():
    places = all_places()
    check_calls([places[i] for i in np.random.default_rng(0).choice(len(places), 150, replace=False)])


@pytest.mark.slow
def test_every_wrong_argument_of_every_call_is_named():
    check_calls(all_places())
