"""Mixed diffusion: vectors whose columns are of several families, each column with noise of its own kind.

The forward process of a table is the product of one forward process for each group of columns: laws are products,
entropies are sums, and the noise is independent, so that every answer is exact wherever the groups' own are. Groups
take the same number of steps; each may have a schedule of its own. Dependence between columns is not in q at all: it
comes from the denoiser, whose prediction of one column looks at all of them.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Shaped
from numpyro.distributions import constraints

from .._checks import check_count, check_real, is_concrete
from .._shapes import AnyExample, AnyTime, Example
from ..laws import ByColumns, Columns, Mixed, UnknownLaw, apart, together
from ..schedules import AbstractSchedule
from .base import AbstractDiffusion


class MixedDiffusion(AbstractDiffusion):
    """Columns of several kinds in one event: each group of columns has a diffusion of its own, of as many steps.

    An event is a vector of floating numbers, shape (d,), bits and classes as their whole numbers. The groups' noise is
    independent, so that every answer of the forward process is the groups' own, as *exact* as theirs: laws are
    `laws.Mixed`, entropies add up, and log densities are those of the real columns times probabilities of the others.
    What couples the columns is the denoiser, one for all of them. The groups' schedules may differ, in their number of
    steps they may not.

    A network (`denoisers.Residual` about a `denoisers.ProductMixture`) sees all columns in one flat vector, group after
    group: real ones standardised, bits as 0 and 1, classes as a row of 0 with one 1.

    Args:
        diffusions: of the groups, each of another family than this one, with fixed schedules.
        columns: the places of each group's columns in the event; together 0 … d − 1, each once.

    Example:
        >>> real = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> classes = nd.CategoricalDiffusion(nd.schedules.erasing(20), num_classes=4)
        >>> diffusion = nd.MixedDiffusion([real, classes], columns=[[0, 2], [1]])
        >>> diffusion.marginal(jnp.array([0.5, 3.0, -1.0]), 5).sample(jax.random.key(0)).shape
        (3,)

    Raises:
        TypeError: no sequences.
        ValueError: no groups, or not as many as there are places for; diffusions that are none, mixed themselves,
            with a learned schedule or with different numbers of steps; places that are missing or occur twice.
    """

    diffusions: tuple[AbstractDiffusion, ...]
    columns: Columns = eqx.field(static=True)

    def __init__(self, diffusions: Sequence[AbstractDiffusion], columns: Sequence[Sequence[int]]) -> None:
        self.diffusions = tuple(listed("diffusions", diffusions))
        groups = [listed("columns", own) for own in listed("columns", columns)]
        self.columns = tuple(tuple(check_count("columns", place, 0) for place in own) for own in groups)
        places = sorted(place for own in self.columns for place in own)
        if not places or not all(self.columns) or places != list(range(len(places))):
            raise ValueError(f"columns: expected the places 0 … d − 1, each in one group, got {columns!r:.80}")
        if len(self.diffusions) != len(self.columns):
            raise ValueError(f"diffusions: expected one for each of {len(self.columns)} groups, got {len(diffusions)}")
        for own in self.diffusions:
            if not isinstance(own, AbstractDiffusion) or isinstance(own, MixedDiffusion):
                raise TypeError(f"diffusions: expected some of other families, got {own!r:.80}")
            if own.schedule.is_learned:
                raise ValueError(f"diffusions: expected fixed schedules, got a {type(own.schedule).__name__}")
        counts = [own.num_steps for own in self.diffusions]
        if len(set(counts)) > 1:
            raise ValueError(f"diffusions: expected schedules of one number of steps, got {counts}")

    @property  # type: ignore[misc]
    def schedule(self) -> AbstractSchedule:  # type: ignore[override]
        """That of the first group, which says how many steps there are; the noise of others may be another's."""
        return self.diffusions[0].schedule

    @property
    def size(self) -> int:
        """d, the number of columns."""
        return sum(map(len, self.columns))

    @property
    def element_support(self) -> constraints.Constraint:
        """That of each group, for its columns."""
        return ByColumns([own.element_support for own in self.diffusions], self.columns)

    @property
    def data_support(self) -> constraints.Constraint:
        """That of each group, for its columns."""
        return ByColumns([own.data_support for own in self.diffusions], self.columns)

    def description(self) -> dict[str, Array | str]:
        """``"mixed"``, and the columns of each family."""
        said: dict[str, Array | str] = {"family": "mixed"}
        for own, places in zip(self.diffusions, self.columns, strict=True):
            family = str(own.description()["family"])
            said[family] = f"{said[family]}, {list(places)}" if family in said else f"columns {list(places)}"
        return said

    def check_values(self, name: str, x: ArrayLike) -> None:
        """What each group asks of its columns, which the message names."""
        self._check(name, x, lambda own: own.check_values)

    def check_state(self, name: str, x_t: AnyExample) -> None:
        """The same of a noisy state."""
        self._check(name, x_t, lambda own: own.check_state)

    @property
    def heads(self) -> Mapping[str, int]:
        """None, as what one output means differs between the columns."""
        return {}

    def network_input(self, x_t: Shaped[ArrayLike, "*lead d"]) -> Float[Array, "*lead numbers"]:
        """Each group's own, flat, one after the other."""
        seen = [own.network_input(x) for own, x in self._cut(x_t)]
        lead = jnp.ndim(x_t) - 1
        return jnp.concatenate([x.reshape(*x.shape[:lead], -1) for x in seen], -1)

    def network_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One axis, of all the groups' numbers."""
        self._check_shape(event_shape)
        return (sum(self._sizes),)

    def corrected(
        self, posterior: dist.Distribution, output: tuple[Float[Array, "..."], Float[Array, "..."]], x_t: Example
    ) -> dist.Distribution:
        """Each group's law, corrected by its part of the outputs."""
        ends = list(itertools.accumulate(self._sizes))[:-1]
        parts = zip(*(jnp.split(out, ends) for out in output), strict=True)
        pairs = zip(_laws(posterior), parts, self._cut(x_t), strict=True)
        laws = []
        for law, out, (own, x) in pairs:
            shape = own.network_shape(x.shape)
            laws.append(own.corrected(law, (out[0].reshape(shape), out[1].reshape(shape)), x))
        return self._law(laws)

    def simple_loss(self, posterior: dist.Distribution, x_0: Example, t: AnyTime) -> Float[Array, ""]:
        """The groups' losses, added up."""
        pairs = zip(_laws(posterior), self._cut(x_0), strict=True)
        return sum((own.simple_loss(law, x, t) for law, (own, x) in pairs), jnp.zeros(()))

    def step(self, x_s: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_t | x_s), exact; event shape that of `x_s`."""
        return self._law([own.step(x, t, s) for own, x in self._cut(x_s)])

    def marginal(self, x_0: AnyExample, t: AnyTime) -> dist.Distribution:
        """q(x_t | x_0), exact; event shape that of `x_0`."""
        return self._law([own.marginal(x, t) for own, x in self._cut(x_0)])

    def bridge(self, x_t: AnyExample, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """q(x_s | x_t, x_0), exact; event shape that of `x_t`."""
        return self._law([own.bridge(x, y, t, s) for own, x, y in self._cut(x_t, x_0)])

    def average_bridge(
        self, x_t: AnyExample, posterior: dist.Distribution, t: AnyTime, s: AnyTime | None = None
    ) -> dist.Distribution:
        """Each group's bridge averaged over its law of x_0: exact where that group's is, factorised over groups."""
        pairs = zip(_laws(posterior), self._cut(x_t), strict=True)
        return self._law([own.average_bridge(x, law, t, s) for law, (own, x) in pairs])

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        """π of each group; event shape `event_shape`."""
        self._check_shape(event_shape)
        pairs = zip(self.diffusions, self.columns, strict=True)
        return self._law([own.terminal((len(places),)) for own, places in pairs])

    def reverse_prior_step(self, x_t: AnyExample, t: AnyTime, s: AnyTime | None = None) -> dist.Distribution:
        """That of each group.

        Raises:
            ValueError: absorbing noise in one of them, under which no data are noise.
        """
        return self._law([own.reverse_prior_step(x, t, s) for own, x in self._cut(x_t)])

    def marginal_noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Standard noise of each group, normal for real columns, else uniform."""
        keys = jax.random.split(key, len(self.diffusions))
        parts = zip(keys, self.diffusions, self.columns, strict=True)
        return self._joined([own.marginal_noise(part, (*shape[:-1], len(places))) for part, own, places in parts])

    def noise_from_uniform(self, uniform: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Each group's, of its columns."""
        return self._joined([own.noise_from_uniform(part) for own, part in self._cut(uniform)])

    def mirror_noise(self, noise: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Each group's, of its columns."""
        return self._joined([own.mirror_noise(part) for own, part in self._cut(noise)])

    def marginal_from_noise(self, noise: Float[Array, "*event"], x_0: AnyExample, t: AnyTime) -> Float[Array, "*event"]:
        """A draw from q(x_t | x_0), as a function of standard noise."""
        return self._joined([own.marginal_from_noise(part, x, t) for own, part, x in self._cut(noise, x_0)])

    def marginal_entropy(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """The groups' entropies in nats, added up; exact, shape ()."""
        return self._sum(x_0, lambda own, x: own.marginal_entropy(x, t))

    def step_entropy(self, x_0: AnyExample, t: AnyTime, s: AnyTime | None = None) -> Float[Array, ""]:
        """The groups' entropies in nats, added up; exact, shape ()."""
        return self._sum(x_0, lambda own, x: own.step_entropy(x, t, s))

    def expected_log_terminal(self, x_0: AnyExample, t: AnyTime) -> Float[Array, ""]:
        """E log π(X^t) given x_0, in nats."""
        return self._sum(x_0, lambda own, x: own.expected_log_terminal(x, t))

    def log_null(self, x_0: AnyExample) -> Float[Array, ""]:
        """The groups' own, added up, in nats, shape ()."""
        return self._sum(x_0, lambda own, x: own.log_null(x))

    def terminal_entropy(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """The groups' entropies in nats, added up."""
        self._check_shape(event_shape)
        pairs = zip(self.diffusions, self.columns, strict=True)
        return sum((own.terminal_entropy((len(places),)) for own, places in pairs), jnp.zeros(()))

    @property
    def _sizes(self) -> list[int]:
        """How many numbers of a network's input each group has."""
        pairs = zip(self.diffusions, self.columns, strict=True)
        return [math.prod(own.network_shape((len(places),))) for own, places in pairs]

    def _cut(self, *arrays: ArrayLike) -> list[tuple[Any, ...]]:
        """Each group's diffusion, with its columns of arrays of shape (*lead, d)."""
        for array in arrays:
            self._check_shape(jnp.shape(array)[-1:])
        parts = zip(*(apart(jnp.asarray(array), self.columns) for array in arrays), strict=True)
        return [(own, *part) for own, part in zip(self.diffusions, parts, strict=True)]

    def _joined(self, parts: Sequence[Array]) -> Array:
        return together(parts, self.columns).astype(self.schedule.times.dtype)

    def _law(self, laws: Sequence[dist.Distribution]) -> Mixed:
        return Mixed(laws, self.columns)

    def _sum(self, x: ArrayLike, one: Callable[[AbstractDiffusion, Array], Array]) -> Array:
        return sum((one(own, part) for own, part in self._cut(x)), jnp.zeros(()))

    def _check(self, name: str, x: ArrayLike, check: Callable[[AbstractDiffusion], Callable[..., None]]) -> None:
        check_real(name, x)
        self._check_shape(jnp.shape(x)[-1:])
        x = np.asarray(x) if is_concrete(x) else jnp.asarray(x)
        for own, places in zip(self.diffusions, self.columns, strict=True):
            check(own)(f"{name} in columns {list(places)}", x[..., np.array(places)])

    def _check_shape(self, event_shape: tuple[int, ...]) -> None:
        if tuple(event_shape) != (self.size,):
            raise ValueError(f"event_shape: expected ({self.size},), one for each column, got {tuple(event_shape)}")


def listed(name: str, values: Any) -> list[Any]:
    """The values of a sequence, NumPy's included.

    Raises:
        TypeError: no sequence, or a string.
    """
    if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or not np.iterable(values):
        raise TypeError(f"{name}: expected a sequence, got {values!r:.80}")
    return list(values)


def _laws(law: dist.Distribution) -> tuple[dist.Distribution, ...]:
    """The groups' laws of x_0."""
    if not isinstance(law, Mixed):
        raise UnknownLaw(f"expected a law of mixed columns, as ProductMixture has, got one of {type(law).__name__}")
    return law.laws


def require_mixed(
    diffusion: AbstractDiffusion, expected: str = "diffusion: expected a MixedDiffusion"
) -> MixedDiffusion:
    """Return `diffusion` if its columns are of several kinds; `expected` names the argument.

    Raises:
        ValueError: another family.
    """
    if not isinstance(diffusion, MixedDiffusion):
        raise ValueError(f"{expected}, got {type(diffusion).__name__}")
    return diffusion
