"""The swiss-roll network of Sohl-Dickstein et al. 2015: shared radial bases, one read-out per step.

The value is a linear function, of its own at each step, of radial basis functions that add up to one and are shared by
all steps: the network of the swiss roll of Sohl-Dickstein et al. (2015, App. D.1.1). Between whole steps the answer is
interpolated. It is for a few dimensions, which some tens of centres can cover.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_count, check_key
from .._shapes import AnyExample, AnyTime
from . import layers
from .embedding import scalar_time


class RBF(eqx.Module):
    """Normalised radial basis functions with a separate linear read-out at every step.

    φ_k(x) = softmax_k(−|x − c_k|² / 2w_k²), so that Σ_k φ_k(x) = 1, and net(x, t) = A_t φ(x) + b_t, t = 1…T.
    Centres c and widths w are learned and shared by all steps and outputs. A and b start at zero, so the
    initial output is exactly zero. Between whole steps the answer is interpolated linearly in t; t is clipped
    to [1, T].

    Source: Sohl-Dickstein et al. 2015, appendix D.1.1 (16 centres, T = 40, two outputs: mean and variance).
    """

    centers: Float[Array, " num_centers *event"]
    log_widths: Float[Array, " num_centers"]
    weight: Float[Array, "num_steps outputs *event num_centers"]
    bias: Float[Array, "num_steps outputs *event"]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    num_centers: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        event_shape: Sequence[int],
        *,
        num_steps: int,
        num_centers: int = 16,
        outputs: int = 2,
    ) -> None:
        """Draw the centres from N(0, I), to suit data of unit variance, and set the widths to their spacing.

        Args:
            key: JAX key for the centres.
            event_shape: shape of one example; `()` is a scalar.
            num_steps: T, the number of read-outs.
            num_centers: number of basis functions.
            outputs: how many arrays of shape `event_shape` to return.

        Raises:
            ValueError: if a size is not positive.
        """
        self.event_shape = layers.check_event_shape(event_shape)
        self.num_steps = check_count("num_steps", num_steps)
        self.num_centers = check_count("num_centers", num_centers)
        self.outputs = check_count("outputs", outputs)
        size = layers.event_size(self.event_shape)
        # Two draws of N(0, I) lie √(2d) apart; the nearest of n is closer by about n^(−1/d).
        spacing = math.sqrt(2 * size) * self.num_centers ** (-1 / size)
        self.centers = jax.random.normal(check_key("key", key), (self.num_centers, *self.event_shape))
        self.log_widths = jnp.full((self.num_centers,), math.log(spacing), float)
        self.weight = jnp.zeros((self.num_steps, self.outputs, *self.event_shape, self.num_centers))
        self.bias = jnp.zeros((self.num_steps, self.outputs, *self.event_shape))

    def basis(self, x: AnyExample) -> Float[Array, " num_centers"]:
        """Return the values φ_k(x) of the basis functions, which are positive and sum to 1.

        Raises:
            ValueError: if the shape of `x` is not `event_shape`.
        """
        x = layers.flatten_event(x, self.event_shape)
        offsets = x - self.centers.reshape(self.num_centers, -1)
        return jax.nn.softmax(-0.5 * jnp.sum(offsets**2, axis=-1) * jnp.exp(-2 * self.log_widths))

    def __call__(self, x: AnyExample, t: AnyTime) -> Float[Array, "..."]:
        """Return the network's value at one example.

        Args:
            x: one example, of shape `event_shape`; float or int.
            t: step index, clipped to [1, T]; may be fractional.

        Returns:
            Array of shape `event_shape` if `outputs` is 1, else `(outputs, *event_shape)`.

        Raises:
            ValueError: if `x` or `t` has the wrong shape.
        """
        position = jnp.clip(scalar_time(t), 1, self.num_steps) - 1
        lower = jnp.floor(position).astype(int)
        upper = jnp.minimum(lower + 1, self.num_steps - 1)
        fraction = position - lower
        basis = self.basis(x)
        below, above = (self.weight[i] @ basis + self.bias[i] for i in (lower, upper))
        return layers.split_outputs((1 - fraction) * below + fraction * above, self.outputs, self.event_shape)
