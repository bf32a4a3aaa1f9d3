"""One table of named constructors; the laws of `test_laws_*.py` are checked for each of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from jax import Array

import numpyro_diffusion as nd

NUM_STEPS = 8
POINTS = ((0.4, -0.7), (1.2, 0.3))
STATES = ((0, 0, 1), (1, 0, 1), (1, 1, 0))


class Net(eqx.Module):
    """A small network that counts how often Python runs it: once for each trace."""

    mlp: eqx.nn.MLP
    gain: Array
    traces: list[int] = eqx.field(static=True)

    def __init__(self, size: int, gain: Any, traces: list[int]) -> None:
        self.mlp = eqx.nn.MLP(size + 1, size, 8, 1, activation=jax.nn.tanh, key=jax.random.key(7))
        self.gain = jnp.asarray(gain, dtype=float)
        self.traces = traces

    def __call__(self, x: Array, t: Array) -> Array:
        self.traces[0] += 1
        return self.gain * self.mlp(jnp.append(x, t / NUM_STEPS))


class Counter(list):
    """A list that may be static: hashed and compared by identity."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


TRACES = Counter([0])


def gaussian_diffusion() -> nd.GaussianDiffusion:
    return nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS, detail=0.5), loc=0.1, scale=1.5)


def binomial_diffusion(rate: Any = 0.4) -> nd.BinomialDiffusion:
    return nd.BinomialDiffusion(nd.schedules.erasing(NUM_STEPS), rate)


def gaussian_process(theta: Any) -> nd.ReverseProcess:
    return nd.ReverseProcess(gaussian_diffusion(), nd.denoisers.Gaussian(theta, 1.0), 2)


def mixture_process(theta: Any) -> nd.ReverseProcess:
    locs = theta * jnp.array([[-1.0, 0.0], [1.0, 0.5]])
    return nd.ReverseProcess(gaussian_diffusion(), nd.denoisers.GaussianMixture(locs, [0.5, 0.7], [0.3, 0.7]), 2)


def network_process(theta: Any) -> nd.ReverseProcess:
    return nd.ReverseProcess(gaussian_diffusion(), nd.denoisers.Network(Net(2, theta, TRACES), predicts="noise"), 2)


def enumerated_process(theta: Any) -> nd.ReverseProcess:
    shares = jnp.stack([theta / 2, theta / 2, 1 - jnp.asarray(theta)])
    return nd.ReverseProcess(binomial_diffusion(), nd.denoisers.Enumerated(STATES, shares), 3)


def bits_process(theta: Any) -> nd.ReverseProcess:
    return nd.ReverseProcess(binomial_diffusion(), nd.denoisers.Network(Net(3, theta, TRACES), predicts="logits"), 3)


PROCESSES = {
    "gaussian": gaussian_process,
    "mixture": mixture_process,
    "network": network_process,
    "enumerated": enumerated_process,
    "bits-network": bits_process,
}


def _forward(theta: Any, **kwargs: Any) -> dist.Distribution:
    return nd.ForwardTrajectory(gaussian_diffusion(), theta * jnp.array(POINTS[0]), **kwargs)


def _forward_bits(theta: Any, **kwargs: Any) -> dist.Distribution:
    return nd.ForwardTrajectory(binomial_diffusion(theta), jnp.array(STATES[1]), **kwargs)


def _forward_batch(theta: Any, **kwargs: Any) -> dist.Distribution:
    return nd.ForwardTrajectory(gaussian_diffusion(), theta * jnp.array(POINTS), event_dim=1, **kwargs)


def _trajectory(process: Callable[[Any], nd.ReverseProcess]) -> Callable[..., dist.Distribution]:
    return lambda theta, **kwargs: nd.ReverseTrajectory(process(theta), **kwargs)


def _prior(process: Callable[[Any], nd.ReverseProcess]) -> Callable[..., dist.Distribution]:
    return lambda theta, **kwargs: nd.DiffusionPrior(process(theta), **kwargs)


def _posterior(theta: Any, **kwargs: Any) -> dist.Distribution:
    factor = nd.factors.Gaussian(theta * jnp.array(POINTS[1]), 0.5)
    return nd.DiffusionPosterior(nd.DiffusionPrior(mixture_process(theta)), factor, nd.samplers.TwistedSMC(4), **kwargs)


def _posterior_bits(theta: Any, **kwargs: Any) -> dist.Distribution:
    factor = nd.factors.Elementwise(theta * jnp.array([1.0, -1.0, 0.5]))
    return nd.DiffusionPosterior(
        nd.DiffusionPrior(enumerated_process(theta)), factor, nd.samplers.TwistedSMC(4), **kwargs
    )


CONSTRUCTORS: dict[str, Callable[..., dist.Distribution]] = {
    "forward-gaussian": _forward,
    "forward-bits": _forward_bits,
    "forward-batch": _forward_batch,
    **{f"trajectory-{name}": _trajectory(process) for name, process in PROCESSES.items()},
    **{f"prior-{name}": _prior(process) for name, process in PROCESSES.items()},
    "posterior-mixture": _posterior,
    "posterior-enumerated": _posterior_bits,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A distribution of the table: how it is built from one number, and one of it."""

    name: str
    build: Callable[..., Any]

    # Kept for all tests, so of single precision, even where one of double precision is the first to ask.
    @functools.cached_property
    def made(self) -> Any:
        with jax.enable_x64(False):
            return self.build(0.4)

    @functools.cached_property
    def values(self) -> Array:
        """Four draws, shape (4, *batch, *event)."""
        with jax.enable_x64(False):
            return self.made.sample(jax.random.key(1), (4,))

    @property
    def bits(self) -> bool:
        return self.name.endswith(("bits", "enumerated", "bits-network"))

    @property
    def smooth(self) -> bool:
        """Whether draws are a smooth function of noise: not those of bits, nor of resampled particles."""
        return not (self.bits or self.name.startswith("posterior"))

    @property
    def batch(self) -> tuple[int, ...]:
        return (2,) if self.name == "forward-batch" else ()

    @property
    def event(self) -> tuple[int, ...]:
        size = 3 if self.bits else 2
        steps = {"forward": (NUM_STEPS,), "trajectory": (NUM_STEPS + 1,), "prior": (), "posterior": ()}
        return (*steps[self.name.split("-")[0]], size)


# Rows that every run checks; a law marks the others slow, or all but the few quickest of these, and leaves out the rows
# that repeat what others run: each class is left with both families, and each denoiser with some class, but for the
# single Gaussian, whose answers are of the mixture's kind. `any_case` takes them all.
MAIN = (
    "forward-gaussian",
    "forward-bits",
    "forward-batch",
    "trajectory-network",
    "prior-network",
    "prior-bits-network",
    "posterior-mixture",
)
QUICK = ("forward-batch", "trajectory-network")
REPEATED = {
    "forward-gaussian": "forward-batch",
    "trajectory-gaussian": "trajectory-network",
    "trajectory-mixture": "trajectory-network",
    "trajectory-bits-network": "trajectory-enumerated",
    "prior-gaussian": "prior-mixture",
    "prior-network": "prior-mixture",
    "prior-enumerated": "prior-bits-network",
    "posterior-enumerated": "posterior-mixture",
}


@functools.cache
def row(name: str) -> Case:
    """One row of the table, the same for every test."""
    return Case(name, CONSTRUCTORS[name])


@pytest.fixture(autouse=True)
def _quick_compilation() -> Iterator[None]:
    """Compile fast rather than run fast: everything here is small."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def any_case(request: pytest.FixtureRequest) -> Case:
    """Every row of the table."""
    return row(request.param)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The rows of the table that do not repeat others; those that are not among the main ones only in slow runs."""
    return row(request.param)


@pytest.fixture
def quick_case(request: pytest.FixtureRequest) -> Case:
    """The rows of the table that do not repeat others; all but the quickest only in slow runs."""
    return row(request.param)


@pytest.fixture
def rows() -> Callable[[str], Case]:
    """Rows of the table by name."""
    return row


@pytest.fixture
def processes() -> dict[str, Callable[[Any], nd.ReverseProcess]]:
    """The reverse processes of the table, by name, each built from one number."""
    return PROCESSES


@pytest.fixture
def traces() -> list[int]:
    """How often Python has run a network of the table so far; one number."""
    return TRACES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a case on the rows of the table."""
    own = {name for mark in metafunc.definition.iter_markers("parametrize") for name in mark.args[0].split(",")}
    for fixture, kept in (("any_case", tuple(CONSTRUCTORS)), ("case", MAIN), ("quick_case", QUICK)):
        if fixture in metafunc.fixturenames and fixture not in own:
            names = [name for name in CONSTRUCTORS if name in kept or name not in REPEATED]
            params = [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]
            metafunc.parametrize(fixture, params, indirect=True)
