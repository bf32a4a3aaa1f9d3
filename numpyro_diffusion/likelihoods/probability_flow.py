r"""log p(x_0) by the change of variables along the probability-flow ODE (Song et al. 2021).

The deterministic flow that a denoiser defines changes log densities by its divergence, so that log p(x_0) is that of
the noise at the flow's end plus an integral along the way (Song et al. 2021, eqs. 13 and 39). *Exact up to
discretisation* for the flow's own law, which is that of the data where the denoiser is exact; of a learned one it
bounds nothing. In many dimensions random probes estimate the divergence (Hutchinson 1990), without bias.
"""

# Over 300 lines: one estimator, with its solver and its trace.

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, Shaped

from .._batching import batched_map
from .._checks import check_choice, check_count, check_optional_positive
from .._compiled import compiled
from .._shapes import Example
from ..process import ReverseProcess
from ._integral.denoising import log_snr_ends
from .base import AbstractLikelihood, Estimate, StandardError, require_gaussian, standard_error

EXACT_UP_TO = 64
DEFAULT_PROBES = 8
STAGES = 6  # network calls a step, after the first
# Gauss and Legendre's rule on (0, 1) of sixth order, one more than the solver's.
NODES, WEIGHTS = 0.5 + np.sqrt(0.15) * np.arange(-1, 2), np.array([5, 8, 5]) / 18

Adjoint = Literal["checkpoint", "backsolve"]
Directions = Callable[[Array], Array]


class FlowTerms(NamedTuple):
    """The parts of the flow's log density for one example: value = log_terminal + log_volume.

    Attributes:
        log_terminal: log density of the law at T at the flow's end, in nats, shape ().
        log_volume: log of the flow's Jacobian determinant, for each probe, shape (num_probes,), or (1,) if exact.
        x_end: where the flow takes x_0, shape `event`.
    """

    log_terminal: Array
    log_volume: Array
    x_end: Array


class ProbabilityFlow(AbstractLikelihood):
    r"""log p(x_0) of the deterministic flow that the denoiser defines: *exact up to discretisation*.

    In standardised units z and with u = −λ/2 the flow is

    .. math:: dz/du = \sqrt{\bar\alpha}\,\big(\sqrt{\bar\alpha}\,z - \hat z_0(z, u)\big) ,

    and log p changes along it by its divergence (Song et al. 2021, eqs. 13 and 39). It runs from t = 1 to T; before
    that, from the data to t = 1, goes one step that is right to first order in the noise's variance there. The law at T
    is taken to be π, its mean moved to where the denoiser has it, √ᾱ E[z_0 | z_T = 0].

    The flow is a model of its own. It has the chain's law where the denoiser is exact and T large; a learned denoiser's
    flow and chain differ, and neither density bounds the other.

    Needs diffrax: ``pip install "numpyro_diffusion[ode]"``. For `GaussianDiffusion`.

    Args:
        num_solver_steps: steps of the solver (Tsitouras' fifth order), equal in log-SNR.
        num_probes: random signs by which the divergence is estimated (Hutchinson 1989), without bias, with a standard
            error from 2 on; new ones at every place of the path. 0 takes it exactly, by as many Jacobian-vector
            products as there are elements. Exact up to 64 elements and 8 probes beyond, unless given.
        num_traces: at how many places on the path the divergence is taken, evenly in log-SNR, once the path is known.
            It is needed nowhere else, fades at both ends and is smooth, so that few places serve, and in many
            dimensions most of the cost is saved. Unless given, with the solver's order: at three places of every step
            by probes, at all its stages if exact.
        adjoint: how gradients are taken: ``"checkpoint"`` differentiates the solver, and is exact for the value as it
            is computed; ``"backsolve"`` solves the adjoint equation backwards, and keeps no more of the steps than the
            places where the divergence is taken.
        accuracy: in nats per dimension. If given, a call on arrays (not in compiled code) solves again with twice the
            steps (and traces) and warns when the values differ by more.
        chunk: at most so many Jacobian-vector products at a time.

    Example:
        >>> diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(20))
        >>> process = nd.ReverseProcess(diffusion, nd.denoisers.Gaussian(0.0, 1.0), 2)
        >>> estimate = nd.ProbabilityFlow()(jax.random.key(0), process, jnp.zeros(2))
        >>> exact = dist.Normal(0.0, 1.0).expand([2]).to_event(1).log_prob(jnp.zeros(2))
        >>> bool(abs(estimate.value - exact) < 1e-2)
        True

    Raises:
        ValueError: counts that are not whole numbers, an unknown adjoint, `accuracy` not positive; bits, or grey levels
            (when used).
        ImportError: diffrax is not installed (when used).
    """

    num_solver_steps: int = eqx.field(static=True)
    num_probes: int | None = eqx.field(static=True)
    adjoint: Adjoint = eqx.field(static=True)
    accuracy: float | None = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    num_traces: int | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        num_solver_steps: int = 32,
        num_probes: int | None = None,
        *,
        num_traces: int | None = None,
        adjoint: Adjoint = "checkpoint",
        accuracy: float | None = None,
        chunk: int | None = None,
    ) -> None:
        self.num_solver_steps = check_count("num_solver_steps", num_solver_steps)
        self.num_probes = None if num_probes is None else check_count("num_probes", num_probes, 0)
        self.num_traces = None if num_traces is None else check_count("num_traces", num_traces)
        self.adjoint = check_choice("adjoint", adjoint, ("checkpoint", "backsolve"))
        self.accuracy = check_optional_positive("accuracy", accuracy)
        self.chunk = None if chunk is None else check_count("chunk", chunk)

    def check(self, process: ReverseProcess) -> None:
        """Densities of Gaussian diffusions only."""
        require_gaussian("ProbabilityFlow", process)
        if process.num_levels is not None:
            raise ValueError(
                f"process: ProbabilityFlow is for densities, got whole numbers 0 … {process.num_levels - 1}; for those "
                "use KBound, ContinuousBound, ImportanceWeighted or PathIntegral"
            )
        _diffrax()

    def calls(self, process: ReverseProcess) -> int:
        """One for each Jacobian-vector product, of which one more for the prediction itself."""
        return 1 + (self._probes(process) or _size(process))

    def evaluations(self, process: ReverseProcess) -> int:
        """All stages of all steps, the step from the data to t = 1, and the mean of the law at T."""
        stages, traces = STAGES * self.num_solver_steps + 1, self.num_traces
        if traces is None and not self._probes(process):
            return self.calls(process) * (stages + 1) + 1
        return self.calls(process) * ((traces or len(NODES) * self.num_solver_steps) + 1) + stages + 1

    def estimate(self, key: PRNGKeyArray, process: ReverseProcess, x_0: Example) -> Estimate:
        """log p(x_0) for one example, shape () in nats; smooth in `x_0` for one `key`."""
        return self._estimate(process, x_0, self._directions(key, process))

    def _estimate(self, process: ReverseProcess, x_0: Array, directions: Directions) -> Estimate:
        diffusion: Any = process.diffusion
        x_0 = jnp.asarray(x_0, diffusion.schedule.times.dtype)
        low, high = log_snr_ends(diffusion.schedule)
        signal, z = jnp.sqrt(jax.nn.sigmoid(high)), diffusion.standardize(x_0)
        size = float(_size(process))
        # To the noise of t = 1: to first order in its variance, z grows by half of what the prediction takes away.
        prediction, trace = self._predict(process, signal * z, high, directions(jnp.array(0)))
        first = 0.5 * (size - signal * trace) + size * jnp.log(signal)
        start = signal * (z + 0.5 * (z - prediction))
        follow = self._quadrature if self._probes(process) or self.num_traces else self._flow
        z_end, growth = follow(process, start, (-high / 2, -low / 2), directions)
        parts = jnp.concatenate([first[None], growth])
        log_terminal = -0.5 * jnp.sum(jnp.square(z_end - self._terminal_mean(process, low)) + jnp.log(2 * jnp.pi))
        log_terminal -= jnp.sum(jnp.broadcast_to(jnp.log(diffusion.scale), x_0.shape))
        terms = FlowTerms(log_terminal, jnp.sum(parts, axis=0), diffusion.unstandardize(z_end))
        value = log_terminal + jnp.mean(terms.log_volume)
        error = standard_error(parts.T) if self._probes(process) else StandardError(jnp.zeros_like(value), jnp.inf)
        return Estimate(value, error.value, terms, "exact up to discretisation", error.degrees_of_freedom)

    def examine(
        self, key: PRNGKeyArray, process: ReverseProcess, x_0: Shaped[Array, "..."], estimate: Estimate
    ) -> None:
        """Warn if the solver's steps are too few for `accuracy`."""
        if self.accuracy is None:
            return
        gap = float(_change(self, key, process, x_0)) / _size(process)
        if gap > self.accuracy:
            warnings.warn(
                f"ProbabilityFlow: num_solver_steps={self.num_solver_steps} is too small for "
                f"accuracy={self.accuracy:g}: twice as "
                f"many change the value by {gap:.2g} nats per dimension",
                stacklevel=3,
            )

    def _probes(self, process: ReverseProcess) -> int:
        """How many probes, 0 for the exact divergence."""
        if self.num_probes is not None:
            return self.num_probes
        return 0 if _size(process) <= EXACT_UP_TO else DEFAULT_PROBES

    def _directions(self, key: Array, process: ReverseProcess, fresh: bool = True) -> Directions:
        """What the Jacobian is applied to at a place of the path, by its number, shape (count, *event).

        Unit vectors, or random signs. Those of different places are independent, unless not `fresh`: the noise of
        places then averages out as well, and a probe's sum over them is more nearly normal than its parts.
        """
        shape, dtype = process.event_shape, process.diffusion.schedule.times.dtype
        probes = self._probes(process)
        if not probes:
            return lambda place: jnp.eye(_size(process), dtype=dtype).reshape(-1, *shape)
        own = lambda place: jax.random.fold_in(key, place if fresh else 0)
        return lambda place: jax.random.rademacher(own(place), (probes, *shape), dtype)

    def _terminal_mean(self, process: ReverseProcess, log_snr: Array) -> Array:
        diffusion: Any = process.diffusion
        centre = diffusion.unstandardize(jnp.zeros(process.event_shape, log_snr.dtype))
        prediction = process.predict(centre, diffusion.schedule.time_at(log_snr))
        return jnp.sqrt(jax.nn.sigmoid(log_snr)) * diffusion.standardize(prediction)

    def _predict(self, process: ReverseProcess, z: Array, log_snr: Array, directions: Array) -> tuple[Array, Array]:
        """Standardised prediction, and the trace of its Jacobian: by each probe, shape (num_probes,), or exact (1,)."""
        diffusion: Any = process.diffusion
        t = diffusion.schedule.time_at(log_snr)
        predict = lambda z: diffusion.standardize(process.predict(diffusion.unstandardize(z), t))
        prediction, push = jax.linearize(predict, z)
        traces = batched_map(lambda v: jnp.sum(v * push(v)), directions, self.chunk)
        return prediction, traces if self._probes(process) else jnp.sum(traces, keepdims=True)

    def _rates(self, process: ReverseProcess, z: Array, u: Array, directions: Array) -> tuple[Array, Array]:
        """dz/du, and the growth of the log volume along it, for each probe."""
        root = jnp.sqrt(jax.nn.sigmoid(-2 * u))
        prediction, trace = self._predict(process, z, -2 * u, directions)
        return root * (root * z - prediction), root * (root * float(_size(process)) - trace)

    def _flow(
        self, process: ReverseProcess, start: Array, ends: tuple[Array, Array], directions: Directions
    ) -> tuple[Array, Array]:
        """z at the other end and the growth of the log volume, shape (1, 1), solved for together."""
        arrays, static = eqx.partition(process, eqx.is_inexact_array)

        def field(u: Array, state: tuple[Array, Array], args: tuple[Any, Array]) -> tuple[Array, Array]:
            return self._rates(eqx.combine(args[0], static), state[0], u, args[1])

        z, volume = self._solve(field, (start, jnp.zeros((1,), start.dtype)), ends, (arrays, directions(jnp.array(0))))
        return z[-1], volume

    def _quadrature(
        self, process: ReverseProcess, start: Array, ends: tuple[Array, Array], directions: Directions
    ) -> tuple[Array, Array]:
        """The same where z is solved for by itself; the growth at each place of its path, shape (places, probes)."""
        arrays, static = eqx.partition(process, eqx.is_inexact_array)

        def field(u: Array, z: Array, arrays: Any) -> Array:
            diffusion: Any = eqx.combine(arrays, static).diffusion
            t, root = diffusion.schedule.time_at(-2 * u), jnp.sqrt(jax.nn.sigmoid(-2 * u))
            prediction = eqx.combine(arrays, static).predict(diffusion.unstandardize(z), t)
            return root * (root * z - diffusion.standardize(prediction))

        nodes, weights = self._rule()
        span, count = ends[1] - ends[0], len(nodes)
        places = ends[0] + span * jnp.asarray(nodes, start.dtype)
        path = self._solve(field, start, ends, arrays, jnp.append(places, ends[1]))
        # One place at a time unless a few are asked for, so that memory does not grow with the steps.
        chunk = self.calls(process) if self.chunk is None and self.num_traces is None else self.chunk
        together = None if chunk is None else max(1, chunk // self.calls(process))
        rate = lambda at: self._rates(process, at[0], at[1], directions(at[2]))[1]
        rates = batched_map(rate, (path[:-1], places, 1 + jnp.arange(count)), together)
        return path[-1], span * jnp.asarray(weights, start.dtype)[:, None] * rates

    def _rule(self) -> tuple[np.ndarray, np.ndarray]:
        """Places on (0, 1) and their weights: midpoints, or Gauss's in each of the solver's steps."""
        if self.num_traces is not None:
            return (np.arange(self.num_traces) + 0.5) / self.num_traces, np.full(self.num_traces, 1 / self.num_traces)
        nodes = (np.arange(self.num_solver_steps)[:, None] + NODES) / self.num_solver_steps
        return nodes.reshape(-1), np.tile(WEIGHTS / self.num_solver_steps, self.num_solver_steps)

    def _solve(self, field: Any, start: Any, ends: tuple[Array, Array], args: Any, times: Array | None = None) -> Any:
        """The solution at some times, or at the other end, on a leading axis."""
        diffrax = _diffrax()
        adjoint = diffrax.RecursiveCheckpointAdjoint() if self.adjoint == "checkpoint" else diffrax.BacksolveAdjoint()
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=ends[0],
            t1=ends[1],
            dt0=(ends[1] - ends[0]) / self.num_solver_steps,
            y0=start,
            args=args,
            saveat=diffrax.SaveAt(t1=True) if times is None else diffrax.SaveAt(ts=times),
            adjoint=adjoint,
            max_steps=self.num_solver_steps + 2,  # rounding may leave a last bit
        )
        return solution.ys


@compiled
def _change(flow: ProbabilityFlow, key: Array, process: ReverseProcess, x_0: Array) -> Array:
    """How far twice as many steps change a value of the batch, at most; shape () in nats."""
    traces = None if flow.num_traces is None else 2 * flow.num_traces
    again = ProbabilityFlow(
        2 * flow.num_solver_steps, flow.num_probes, num_traces=traces, adjoint=flow.adjoint, chunk=flow.chunk
    )

    def change(pair: tuple[Array, Array]) -> Array:
        # The same signs all along, for both: else the change would be that of the noise.
        values = (f._estimate(process, pair[1], f._directions(pair[0], process, False)).value for f in (flow, again))
        return jnp.abs(jnp.subtract(*values))

    flat = x_0.reshape((-1, *process.event_shape))
    together = None if flow.chunk is None else max(1, flow.chunk // flow.calls(process))
    return jnp.max(batched_map(change, (jax.random.split(key, len(flat)), flat), together))


def _size(process: ReverseProcess) -> int:
    return int(np.prod(process.event_shape))


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            'ProbabilityFlow needs diffrax, which is not installed: pip install "numpyro_diffusion[ode]"'
        ) from error
    return diffrax
