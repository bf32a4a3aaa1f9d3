"""No twist."""

from typing import Any

import jax.numpy as jnp

from .._shapes import Example, Time
from ..factors import AbstractFactor
from ..process import ReverseProcess
from .base import AbstractTwist, TwistedStep


class Flat(AbstractTwist):
    """ψ_t = 1: the reverse chain as it is, weighted by r at the end alone (the bootstrap).

    Nothing is led astray, and nothing is led: right where r is wide, hopeless where few of the prior's draws fit it.
    """

    def step(
        self, process: ReverseProcess, factor: AbstractFactor, shared: Any, x_t: Example, t: Time, s: Time
    ) -> TwistedStep:
        """log ψ_t = 0, and the kernel as proposal."""
        del factor, shared
        kernel = process.inner_kernel(x_t, t, s)
        return TwistedStep(jnp.zeros(()), kernel, kernel)
