"""What all observations share, such as a noise scale: the maximisation of its part of the likelihood.

The maximisation step of EM for parameters that observations share: the mean over draws of x of log p(y | x, parameters)
is raised by Adam (Kingma and Ba 2015) from where the parameters are. With exact draws this raises the evidence
(Dempster, Laird and Rubin 1977); with those of SMC it does so *approximately*.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from .._compiled import compiled
from ..distributions import DiffusionPrior
from ..training.posterior_draws import Current
from .reading import Observed, Unknowns

STEPS = 200
RATE = 0.05
MOST = 4096  # observations


def improved(
    key: Array, observed: Observed, shared: Unknowns, now: Current, observations: Any, x: np.ndarray
) -> dict[str, Array]:
    """The parameters that make the observations likeliest given draws of x, from where they are now.

    Args:
        key: JAX random key, that picks observations where there are more than 4,096.
        observed: the model.
        shared: its parameters and where they may lie.
        now: where they are.
        observations: pytree of arrays with a leading axis n.
        x: a draw given each, shape (n, *event).
    """
    if not now.params:
        return now.params
    picked = np.asarray(jax.random.permutation(key, len(x)))[:MOST]
    some, draws = jax.tree.map(lambda leaf: jnp.asarray(leaf[picked]), (observations, x))
    return _maximised(observed, shared, now.prior, now.params, some, draws)


@compiled
def _maximised(
    observed: Observed, shared: Unknowns, prior: DiffusionPrior, params: dict[str, Array], some: Any, x: Array
) -> dict[str, Array]:
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    def loss(free: dict[str, Array]) -> Array:
        bound = shared.bound(free)
        return -jnp.mean(jax.vmap(lambda one, x: observed.log_density(bound, prior, one, x))(some, x))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        free, state = carry
        updates, state = optimizer.update(jax.grad(loss)(free), state)
        return (optax.apply_updates(free, updates), state), None

    free = shared.free(params)
    (free, _), _ = jax.lax.scan(step, (free, optimizer.init(free)), None, length=STEPS)
    return shared.bound(free)
