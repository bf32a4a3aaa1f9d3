"""p(x | c): a prior that is told its context.

Once c is given, p(x | c) is a prior like any other: the denoiser is told c, and all else stays as it is. Contexts with
dimensions in front make a batch of priors, one for each. As c may be another unknown of a model, its gradient goes on
through the denoiser. The result is as exact as the denoiser is for each c.
"""

import copy
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp

from .base import ModuleDistribution


class Conditioned:
    """What a prior whose denoiser takes a context can do."""

    @property
    def context_shape(self) -> tuple[int, ...] | None:
        """Shape of one context that is still to be given; None for a prior that takes none, or has one."""
        told: Any = self._wanted
        return None if told is None or told.value is not None else told.shape

    @property
    def _wanted(self) -> Any:
        module: Any = getattr(self, "module")  # noqa: B009, which a mixin does not declare
        return module.process.denoiser.wanted

    def given(self, context: Any) -> Self:
        """p(x | c), a prior like any other, of the batch shape that contexts have in front.

        Args:
            context: shape (*batch, *context_shape), known or the value of another site; None for p(x), where the
                network has learned it.

        Raises:
            ValueError: a prior that takes no context; another shape; a label that is none; None or NaN for a network
                that has not learned to do without; a prior that has a batch shape already.
            TypeError: no numbers, or labels that are no whole numbers.
        """
        prior: Any = self
        told = self._wanted
        if told is None:
            raise ValueError("context: expected a prior of p(x | c) to give one to, got one that takes none")
        if prior.batch_shape:
            raise ValueError(
                f"given: expected a prior of batch shape (), got {prior.batch_shape}; expand it afterwards"
            )
        values = told.checked(context)
        lead = values.shape[: values.ndim - len(told.shape)]
        one = jnp.zeros(told.shape, values.dtype) if lead else values
        parts = prior.module
        parts = eqx.tree_at(lambda parts: parts.process, parts, parts.process.given(one))
        new = copy.copy(prior)
        ModuleDistribution.__init__(new, parts, prior.event_shape, validate_args=prior._validate_args)
        if not lead:
            return new
        same = parts.process.denoiser.wanted.value
        leaves, structure = jax.tree.flatten(new)
        return jax.tree.unflatten(structure, [_over(leaf, same, values) for leaf in leaves])._of_batch(lead)


def _over(leaf: Any, one: Any, values: Any) -> Any:
    """All contexts in place of the one."""
    return values if leaf is one else leaf
