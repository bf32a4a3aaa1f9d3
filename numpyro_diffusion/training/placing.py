"""How many steps the candidates for a table take, and where."""

import numpy as np
from jax import Array

from .._compiled import compiled
from ..placement import Placement, placement
from .tables import Candidate, Table

MORE_TIMES = (64, 128, 256)  # T: the first that loses less than LEAST_LOSS nats
LEAST_LOSS = 0.03
LOOKED_AT = 100  # examples, to place steps by


def with_placed_steps(key: Array, tried: list[Candidate], data: Table) -> tuple[list[Candidate], str]:
    """The candidates with their steps where kernels lose most, as many as the one that needs fewest; and the reason.

    A kernel has no correlations, so that steps lose where x_0 given x_t has some: see `place_steps`. The loss, which K
    has too, is inversely proportional to their number.
    """
    x = data.train[:LOOKED_AT]
    found = [placement(key, candidate.process, candidate.latent(x)) for candidate in tried]
    lost = np.array([_lost(each) for each in found])
    # A Gaussian in whitened coordinates loses nothing; what it leaves is for the network, and not known yet.
    needing = lost[lost[:, 0] > LEAST_LOSS] if (lost[:, 0] > LEAST_LOSS).any() else lost
    fewest = needing.min(0)
    chosen = int(np.argmax(np.append(fewest[:-1] < LEAST_LOSS, True)))
    count = MORE_TIMES[chosen]
    placed = [c.of_schedule(each.schedule(count)) for c, each in zip(tried, found, strict=True)]
    return placed, f"steps: {count}, placed where the baseline's kernels lose most, {fewest[chosen]:.2g} nats or more"


@compiled
def _lost(each: Placement) -> list[Array]:
    """What steps lose together, for each number of them."""
    return [each.loss(count) for count in MORE_TIMES]
