"""How many steps the candidates for a table take, and where.

A chain with kernels of independent elements loses what x_0 given x_t has of correlations, about in inverse proportion
to the number of its steps (`numpyro_diffusion.placement`). The baseline's loss is known before anything is trained, to
the leading order in the steps' length: steps are placed where it is largest, and are as few as keep it small. What a
network will add to the baseline is not known, so that the number is *approximate*.
"""

import numpy as np
from jax import Array

from .._compiled import compiled
from ..placement import Placement, placement
from .tables import Candidate, Table

MORE_TIMES = (64, 128, 256)  # T: the first that loses less than LEAST_LOSS nats
LEAST_LOSS = 0.03
LOOKED_AT = 100  # examples, to place steps by


def with_placed_steps(key: Array, tried: list[Candidate], data: Table) -> tuple[list[Candidate], str]:
    """The candidates with their steps where reverse kernels lose most, and the reason.

    Such a kernel has no correlations, so that steps lose where x_0 given x_t has some: see `place_steps`. The loss,
    which K has too, is inversely proportional to their number. All that are trained have as many as the one that needs
    fewest, so that they share programs.
    """
    x = data.train[:LOOKED_AT]
    found = [placement(key, candidate.process, candidate.latent(x)) for candidate in tried]
    lost = np.array([_lost(each) for each in found])
    of_trained = lost[[c.is_trained for c in tried]]
    # A Gaussian in whitened coordinates loses nothing; what it leaves is for the network, and not known yet.
    needing = of_trained[of_trained[:, 0] > LEAST_LOSS] if (of_trained[:, 0] > LEAST_LOSS).any() else of_trained
    fewest = needing.min(0)
    losses = [fewest if candidate.is_trained else own for candidate, own in zip(tried, lost, strict=True)]
    counts = [_enough(loss) for loss in losses]
    placed = [c.of_schedule(each.schedule(count)) for c, each, count in zip(tried, found, counts, strict=True)]
    loss = fewest[MORE_TIMES.index(counts[0])]
    said = f"steps: {counts[0]}, placed where the baseline's kernels lose most, {loss:.2g} nats or more"
    own = [f"; {count} of {c.name}" for c, count in zip(tried, counts, strict=True) if not c.is_trained]
    return placed, "".join([said, *own])


def _enough(losses: np.ndarray) -> int:
    """The fewest steps that lose little."""
    return MORE_TIMES[int(np.argmax(np.append(losses[:-1] < LEAST_LOSS, True)))]


@compiled
def _lost(each: Placement) -> list[Array]:
    """What steps lose together, for each number of them."""
    return [each.loss(count) for count in MORE_TIMES]
