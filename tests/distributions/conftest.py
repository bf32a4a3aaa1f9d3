"""One table of named constructors; the laws of `test_laws_*.py` are checked for each of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.distributions import constraints, transforms

import numpyro_diffusion as nd
from numpyro_diffusion.laws import ByColumns

NUM_STEPS = 8
POINTS = ((0.4, -0.7), (1.2, 0.3))
STATES = ((0, 0, 1), (1, 0, 1), (1, 1, 0))
CLASSES = ((0, 1), (2, 0), (1, 1))  # of three and of two classes
COLUMNS = ((0, 3), (1,), (2,))  # real ones, one of three classes, a rounded one


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
    return nd.ReverseProcess(binomial_diffusion(), nd.denoisers.Enumerated(STATES, three(theta)), 3)


def bits_process(theta: Any) -> nd.ReverseProcess:
    return nd.ReverseProcess(binomial_diffusion(), nd.denoisers.Network(Net(3, theta, TRACES), predicts="logits"), 3)


def levels_process(theta: Any) -> nd.ReverseProcess:
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS, detail=0.5), loc=3.5, scale=3.5)
    return nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(3 + theta, 2.0), 2, last_step=nd.DiscretisedStep(8))


def three(theta: Any) -> Array:
    """Three probabilities."""
    return jnp.stack([theta / 2, theta / 2, 1 - jnp.asarray(theta)])


def classes_process(theta: Any) -> nd.ReverseProcess:
    diffusion = nd.CategoricalDiffusion(nd.schedules.erasing(NUM_STEPS), (3, 2), "absorbing")
    return nd.ReverseProcess(diffusion, nd.denoisers.Enumerated(CLASSES, three(theta)), 2)


def mixed_process(theta: Any) -> nd.ReverseProcess:
    classes = nd.CategoricalDiffusion(nd.schedules.erasing(NUM_STEPS), 3)
    rounded = nd.GaussianDiffusion(nd.schedules.log_snr(NUM_STEPS), loc=1.5, scale=1.5)
    diffusion = nd.MixedDiffusion((gaussian_diffusion(), classes, rounded), COLUMNS)
    locs = theta * jnp.array([[-1.0, 0.0, 1.0, 0.5], [1.0, 0.0, 3.0, -0.5]])
    probabilities = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])[:, None] * jnp.ones((2, 4, 3))
    denoiser = nd.denoisers.ProductMixture(locs, jnp.full((2, 4), 0.8), probabilities)
    return nd.ReverseProcess(diffusion, denoiser, 4, last_step=nd.MixedStep((None, None, 4)))


def about(context: Array) -> nd.denoisers.Gaussian:
    """The denoiser of data about a context, of which the law is N(c, 0.7²)."""
    return nd.denoisers.Gaussian(context, 0.7)


PROCESSES = {
    "gaussian": gaussian_process,
    "mixture": mixture_process,
    "network": network_process,
    "enumerated": enumerated_process,
    "bits-network": bits_process,
    "levels": levels_process,
    "classes": classes_process,
    "mixed": mixed_process,
}


def _forward(theta: Any, **kwargs: Any) -> dist.Distribution:
    return nd.ForwardTrajectory(gaussian_diffusion(), theta * jnp.array(POINTS[0]), **kwargs)


def _forward_bits(theta: Any, **kwargs: Any) -> dist.Distribution:
    return nd.ForwardTrajectory(binomial_diffusion(theta), jnp.array(STATES[1]), **kwargs)


def _forward_categories(theta: Any, **kwargs: Any) -> dist.Distribution:
    diffusion = nd.CategoricalDiffusion(nd.schedules.erasing(NUM_STEPS), 3, three(theta))
    return nd.ForwardTrajectory(diffusion, jnp.array(CLASSES[1]), **kwargs)


def _forward_batch(theta: Any, **kwargs: Any) -> dist.Distribution:
    return nd.ForwardTrajectory(gaussian_diffusion(), theta * jnp.array(POINTS), event_dim=1, **kwargs)


def _trajectory(process: Callable[[Any], nd.ReverseProcess]) -> Callable[..., dist.Distribution]:
    return lambda theta, **kwargs: nd.ReverseTrajectory(process(theta), **kwargs)


def _prior(process: Callable[[Any], nd.ReverseProcess]) -> Callable[..., dist.Distribution]:
    return lambda theta, **kwargs: nd.DiffusionPrior(process(theta), **kwargs)


def _transformed(theta: Any, **kwargs: Any) -> dist.Distribution:
    """Positive data, of units that are a parameter too."""
    parts = [transforms.AffineTransform(0.2, 0.5 + jnp.asarray(theta)), transforms.ExpTransform()]
    return nd.DiffusionPrior(mixture_process(theta), transform=transforms.ComposeTransform(parts), **kwargs)


def _given(points: Any) -> Callable[..., dist.Distribution]:
    process = nd.ReverseProcess(gaussian_diffusion(), nd.denoisers.Conditional(about, (2,)), 2)
    return lambda theta, **kwargs: nd.DiffusionPrior(process, **kwargs).given(theta * jnp.array(points))


def _product(theta: Any, **kwargs: Any) -> dist.Distribution:
    return _prior(mixture_process)(theta, **kwargs) * _prior(gaussian_process)(1.0, **kwargs)


def _power(theta: Any, **kwargs: Any) -> dist.Distribution:
    return _prior(mixture_process)(1.0, **kwargs) ** theta


def _seen(size: int) -> Callable[[Any], nd.factors.AbstractFactor]:
    return lambda theta: nd.factors.Gaussian(theta * jnp.arange(1.0, size + 1), 0.5)


def _seen_in_part(theta: Any) -> nd.factors.AbstractFactor:
    """Two real columns of a mixed row, and what its class is said to be."""
    seen = nd.factors.Gaussian(theta * jnp.arange(4.0), jnp.array([0.5, jnp.inf, jnp.inf, 0.5]))
    return seen * nd.factors.Categorical(jnp.zeros((4, 3)).at[1].set(jnp.array([1.0, 0.0, 0.5])))


def _voted(theta: Any) -> nd.factors.AbstractFactor:
    """What single bits are said to be."""
    return nd.factors.Elementwise(theta * jnp.array([1.0, -1.0, 0.5]))


def _told(theta: Any) -> nd.factors.AbstractFactor:
    """What single classes are said to be."""
    return nd.factors.Categorical(theta * jnp.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]))


def _posterior(
    prior: Callable[..., Any], factor: Callable[[Any], nd.factors.AbstractFactor]
) -> Callable[..., dist.Distribution]:
    few = nd.samplers.TwistedSMC(4)
    return lambda theta, **kwargs: (prior(theta, **kwargs) * factor(theta)).with_(sampler=few)


CONSTRUCTORS: dict[str, Callable[..., dist.Distribution]] = {
    "forward-gaussian": _forward,
    "forward-bits": _forward_bits,
    "forward-batch": _forward_batch,
    "forward-categories": _forward_categories,
    **{f"trajectory-{name}": _trajectory(process) for name, process in PROCESSES.items()},
    **{f"prior-{name}": _prior(process) for name, process in PROCESSES.items()},
    "prior-transformed": _transformed,
    "prior-given": _given(POINTS[0]),
    "prior-given-batch": _given(POINTS),
    "pool-product": _product,
    "pool-power": _power,
    "posterior-mixture": _posterior(_prior(mixture_process), _seen(2)),
    "posterior-enumerated": _posterior(_prior(enumerated_process), _voted),
    "posterior-levels": _posterior(_prior(levels_process), _seen(2)),
    "posterior-classes": _posterior(_prior(classes_process), _told),
    "posterior-mixed": _posterior(_prior(mixed_process), _seen_in_part),
    "posterior-transformed": _posterior(_transformed, _seen(2)),
    "posterior-given": _posterior(_given(POINTS[0]), _seen(2)),
    "posterior-product": _posterior(_product, _seen(2)),
    "posterior-power": _posterior(_power, _seen(2)),
}


class Values(NamedTuple):
    """What one example is, said here and not by what is tested: its size, and the support of an element."""

    size: int = 2
    data: Any = constraints.real
    noise: Any = constraints.real  # of the steps after the first
    whole: bool = False  # whether draws of the data are of an integer type


def _levels(highest: Any) -> Any:
    return constraints.integer_interval(0, highest)


BITS = Values(3, constraints.boolean, constraints.boolean, True)
MIXED = Values(
    4,
    ByColumns([constraints.real, _levels(2), _levels(3)], COLUMNS),
    ByColumns([constraints.real, _levels(2), constraints.real], COLUMNS),
)
VALUES = {
    "bits": BITS,
    "enumerated": BITS,
    "bits-network": BITS,
    "levels": Values(2, _levels(7), whole=True),
    "categories": Values(2, _levels(2), _levels(2), True),
    "classes": Values(2, _levels(np.array([2, 1])), _levels(3), True),
    "mixed": MIXED,
    "transformed": Values(2, constraints.positive),
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
    def one(self) -> Values:
        """What one example is."""
        return VALUES.get(self.name.split("-", 1)[1], Values())

    @property
    def discrete(self) -> bool:
        """Whether some elements have no slope."""
        return self.one.data.is_discrete

    @property
    def whole(self) -> bool:
        """Whether draws are of an integer type."""
        return self.one.whole and (self.one.noise.is_discrete or self.event == (self.one.size,))

    @property
    def bad(self) -> float:
        """A number that the first element is never."""
        return 0.5 if self.one.whole else np.nan

    @property
    def smooth(self) -> bool:
        """Whether draws are a smooth function of noise: not those of bits, nor of resampled particles."""
        return not (self.discrete or self.name.startswith(("pool", "posterior")))

    @property
    def batch(self) -> tuple[int, ...]:
        return (2,) if self.name.endswith("-batch") else ()

    @property
    def event(self) -> tuple[int, ...]:
        steps = {"forward": (NUM_STEPS,), "trajectory": (NUM_STEPS + 1,)}
        return (*steps.get(self.name.split("-")[0], ()), self.one.size)


# Rows that every run checks; a law marks the others slow, or all but the few quickest of these, and leaves out the rows
# that repeat what others run: each class is left with several families, and each denoiser with some class, but for the
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
    "forward-categories": "forward-bits",
    "trajectory-classes": "prior-classes",
    "trajectory-mixed": "prior-mixed",
    "prior-levels": "trajectory-levels",
    "prior-given": "prior-given-batch",
    "pool-product": "pool-power",
    "posterior-levels": "posterior-mixture",
    "posterior-classes": "prior-classes",
    "posterior-mixed": "prior-mixed",
    "posterior-given": "prior-given-batch",
    "posterior-product": "pool-power",
    "posterior-power": "pool-power",
}
# Under transformations of JAX these are their arrays, as the others are, and their programs take long to compile.
REPEATED_INSIDE = REPEATED | {
    "trajectory-levels": "trajectory-mixture",
    "prior-mixed": "prior-mixture",
    "prior-transformed": "posterior-transformed",
    "posterior-mixture": "posterior-transformed",
    "pool-power": "prior-mixture",
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
    every = tuple(CONSTRUCTORS)
    for fixture, quick, left_out in (
        ("any_case", every, {}),
        ("case", MAIN, REPEATED),
        ("quick_case", QUICK, REPEATED_INSIDE),
    ):
        if fixture in metafunc.fixturenames and fixture not in own:
            names = [name for name in CONSTRUCTORS if name in quick or name not in left_out]
            params = [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]
            metafunc.parametrize(fixture, params, indirect=True)
