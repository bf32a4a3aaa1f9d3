"""Draws of rows' missing cells given their known ones, by SMC under one prior or several in turn.

Known cells are a `Delta` factor, and SMC draws the others, row by row in one compiled program: *consistent as particles
grow*, for the prior's chain. Each row has two independent runs to compare; rows against which something speaks are run
again with four and with sixteen times as many particles. Of several priors each has its turn, and a row's evidence is
that of their mixture.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ..distributions import DiffusionPrior
from ..moments import LARGEST_WHOLE
from ..samplers.reliability import FEWEST_SIZE, LARGEST_GAP, LARGEST_KHAT, pareto_khat
from ..training.posterior_draws import Current, Draws, Effort, draw, read_cells
from ..twists import Laplace

ISLANDS = 2
CALLS = 5_000_000  # of the denoiser, for all rows and priors
MORE = (4, 16)  # times the particles of the first run, for rows that are unreliable until then


class Wanted(NamedTuple):
    """What was asked for; None where the number of rows decides.

    Attributes:
        num_particles: of one island.
        num_steps: of the prior's chain.
    """

    num_particles: int | None
    num_steps: int | None

    def effort(self, prior: DiffusionPrior, count: int) -> Effort:
        """For so many rows: first all steps of the chain, as far as 32 particles go, and then more particles."""
        whole = prior.process.num_steps
        least = 32 if self.num_particles is None else self.num_particles
        fitting = int(np.clip(CALLS // (ISLANDS * least * count), min(16, whole), whole))
        steps = fitting if self.num_steps is None else min(self.num_steps, whole)
        fitting = int(np.clip(CALLS // (ISLANDS * steps * count), 32, 256))
        particles = fitting if self.num_particles is None else self.num_particles
        real = prior.process.diffusion.is_gaussian
        twist = Laplace() if real and int(np.prod(prior.event_shape)) <= LARGEST_WHOLE else None
        return Effort(particles, None if steps == whole else steps, ISLANDS, twist)


def draws_by_turns(
    key: Array,
    priors: tuple[DiffusionPrior, ...],
    values: np.ndarray,
    known: np.ndarray,
    wanted: Wanted,
    count: int,
    tick: Any,
) -> "RowDraws":
    """Draws for every row, of each prior in turn; of the diagnostics the worst, and the evidence of their mixture.

    Args:
        key: JAX random key.
        priors: of rows.
        values: shape (r, *event), NaN where missing.
        known: boolean, likewise.
        wanted: how much SMC does.
        count: draws of a row.
        tick: is told how many rows a prior has completed since it was last told.
    """
    several = len(priors)
    parts = []
    for first, (own, prior) in enumerate(zip(jax.random.split(key, several), priors, strict=True)):
        effort, share = wanted.effort(prior, several * len(values)), len(range(first, count, several))
        parts.append(_drawn(own, prior, values, known, effort, share, tick))
    x = np.empty((len(values), count, *values.shape[1:]), parts[0].x.dtype)
    for first, part in enumerate(parts):
        x[:, first::several] = part.x
    size, khat, gap, evidence, particles = (np.stack(each) for each in zip(*(part[1:] for part in parts), strict=True))
    mixed = np.logaddexp.reduce(evidence.astype(np.float64), axis=0) - np.log(several)
    return RowDraws(x, size.min(0), khat.max(0), gap.max(0), mixed, particles.min(0))


class RowDraws(NamedTuple):
    """Draws for each of r rows with missing cells, and their diagnostics by the names of `ImputationDiagnostics`.

    Attributes:
        x: shape (r, m, *event).
        least_size: shape (r,), and so are the rest.
        khat: Pareto k̂.
        gap: in nats.
        log_evidence: in nats.
        num_particles: of one island in the first run.
    """

    x: np.ndarray
    least_size: np.ndarray
    khat: np.ndarray
    gap: np.ndarray
    log_evidence: np.ndarray
    num_particles: np.ndarray

    @property
    def is_unreliable(self) -> np.ndarray:
        """Whether something speaks against a row, shape (r,)."""
        return ~((self.least_size >= FEWEST_SIZE) & (self.khat <= LARGEST_KHAT) & (self.gap <= LARGEST_GAP))


def _summarised(draws: Draws, effort: Effort) -> RowDraws:
    khat = np.array([pareto_khat(weights) for weights in draws.log_weight])
    with np.errstate(invalid="ignore"):
        gap = np.asarray(draws.islands.max(1) - draws.islands.min(1))
    particles = np.full(len(khat), effort.num_particles)
    return RowDraws(draws.x, draws.least_size, khat, gap, draws.log_evidence, particles)


def _drawn(
    key: Array, prior: DiffusionPrior, values: np.ndarray, known: np.ndarray, effort: Effort, count: int, tick: Any
) -> RowDraws:
    """Draws for every row; unreliable ones again from more particles, the worst of them if they are many."""
    now, filled = Current(prior, {}), np.where(known, values, 0.0).astype(np.float32)
    found = _summarised(draw(key, now, (filled, known), read_cells, effort, count, tick), effort)
    steps = prior.process.num_steps if effort.num_steps is None else effort.num_steps
    for times in MORE:
        more = effort._replace(num_particles=times * effort.num_particles)
        most = max(1, CALLS // (more.num_particles * ISLANDS * steps))
        unreliable = np.flatnonzero(found.is_unreliable)
        unreliable = unreliable[np.argsort(found.least_size[unreliable])][:most]
        if not len(unreliable):
            break
        again = jax.random.fold_in(key, times)
        draws = draw(again, now, (filled[unreliable], known[unreliable]), read_cells, more, count)
        for mine, theirs in zip(found, _summarised(draws, effort), strict=True):
            mine[unreliable] = theirs
    return found
