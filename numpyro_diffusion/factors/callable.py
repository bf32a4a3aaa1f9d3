"""Any factor."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Real, Shaped

from .base import AbstractFactor, as_function


class Factor(AbstractFactor):
    """r(x) = exp(log_r(x)) for any function, differentiable where a sampler needs its gradient.

    Args:
        log_r: from one unbatched example to log r(x) in nats, shape (). It must be bounded above for r to be a
            factor. An `equinox.Module` or `jax.tree_util.Partial` keeps its arrays as the factor's own leaves.

    Example:
        >>> positive_sum = nd.factors.Factor(lambda x: jax.nn.log_sigmoid(20 * x.sum()))
        >>> (nd.load("digits") * positive_sum).event_shape
        (8, 8)

    Raises:
        TypeError: not callable.
    """

    function: Callable[[Array], Array]

    def __init__(self, log_r: Callable[[Array], Array]) -> None:
        if not callable(log_r):
            raise TypeError(f"log_r: expected a callable of one example, got {log_r!r}")
        self.function = as_function(log_r)

    def log_r(self, x: Shaped[Array, "..."]) -> Real[Array, "..."]:
        """log r(x) in nats."""
        return jnp.asarray(self.function(x))
