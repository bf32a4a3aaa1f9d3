"""Runs of SMC with more and more particles, until islands agree, and from where an earlier run stopped.

Errors of SMC fall with the root of the number of particles, by a constant that nobody knows beforehand. So runs are
made twice as large, each with a key of its own, until the standard deviation of the islands' log evidences is as small
as was asked for, or the largest size is reached. The last run is the answer, *consistent* as any other; a file of it
lets a later call go on from there.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from tqdm.auto import tqdm

from ..samplers import ReliabilityWarning
from .plan import Plan
from .resume import read_run, save_run, saved_particles


def doublings(
    key: Array,
    target: Any,
    plan: Plan,
    wanted: float,
    max_size: int,
    checkpoint: Any,
    settings: dict[str, Any],
    progress_bar: bool,
) -> Iterator[Any]:
    """Finished runs, each of twice the size, until the islands' log evidences agree as wanted; see `SMC`.

    Args:
        key: JAX random key.
        target: what is run, `Alone` or `Whole`.
        plan: the first one.
        wanted: standard deviation of the islands' log evidences, in nats.
        max_size: no run is larger.
        checkpoint: file of the last finished run, from which it goes on if there is one; None for none.
        settings: what that file must agree with.
        progress_bar: whether to show one.

    Warns:
        ReliabilityWarning: `max_size` is too small.
    """
    once = lambda plan: target.run(jax.random.fold_in(key, plan.size), plan)
    run, size = None, saved_particles(checkpoint, settings)
    if size is not None:
        plan = plan.with_size(size)
        run = target.restored(plan, read_run(checkpoint, lambda: once(plan)[1:]))
    bar = tqdm(disable=not progress_bar, desc="SMC", unit="run")
    while True:
        if run is None:
            run = once(plan)
            save_run(checkpoint, plan.size, run[1:], settings)
        yield run
        deviation = float(np.std(np.asarray(run.log_evidences), ddof=1))
        run = None
        bar.update()
        bar.set_postfix(particles=plan.size, sd=f"{deviation:.3f}")
        if deviation <= wanted:
            break
        if 2 * plan.size > max_size:
            warnings.warn(
                f"the islands' log evidences differ by a standard deviation of {deviation:.3g} nats at {plan.size} "
                f"particles, more than target_log_evidence_sd = {wanted}; max_particles = {max_size} allows no more",
                ReliabilityWarning,
                stacklevel=3,
            )
            break
        plan = plan.with_size(2 * plan.size)
    bar.close()
