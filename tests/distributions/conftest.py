"""One table of named constructors; the laws of `test_laws_*.py` are checked for each of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


CONSTRUCTORS: dict[str, Callable[..., dist.Distribution]] = {
    "forward-gaussian": _forward,
    "forward-bits": _forward_bits,
    "forward-batch": _forward_batch,
    **{f"trajectory-{name}": _trajectory(process) for name, process in PROCESSES.items()},
    **{f"prior-{name}": _prior(process) for name, process in PROCESSES.items()},
}


class Case(NamedTuple):
    """A distribution of the table: how it is built from one number, and one of it."""

    name: str
    build: Callable[..., Any]
    made: Any
    values: Array  # four draws, shape (4, *batch, *event)

    @property
    def bits(self) -> bool:
        return self.name.endswith(("bits", "enumerated", "bits-network"))

    @property
    def batch(self) -> tuple[int, ...]:
        return (2,) if self.name == "forward-batch" else ()

    @property
    def event(self) -> tuple[int, ...]:
        size = 3 if self.bits else 2
        steps = {"forward": (NUM_STEPS,), "trajectory": (NUM_STEPS + 1,), "prior": ()}
        return (*steps[self.name.split("-")[0]], size)


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """The table, each row with a distribution and draws of it."""
    table = {}
    for name, build in CONSTRUCTORS.items():
        made = build(0.4)
        table[name] = Case(name, build, made, made.sample(jax.random.key(1), (4,)))
    return table


@pytest.fixture
def case(cases: dict[str, Case], request: pytest.FixtureRequest) -> Case:
    """One row of the table, for tests parametrized by its name."""
    return cases[request.param]


@pytest.fixture
def processes() -> dict[str, Callable[[Any], nd.ReverseProcess]]:
    """The reverse processes of the table, by name, each built from one number."""
    return PROCESSES


@pytest.fixture
def traces() -> list[int]:
    """How often Python has run a network of the table so far; one number."""
    return TRACES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `case` on every row."""
    if "case" in metafunc.fixturenames and not any(
        "case" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize("case", list(CONSTRUCTORS), indirect=True)
