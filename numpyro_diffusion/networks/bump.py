"""The bump-function read-out of Sohl-Dickstein et al. 2015: one body, mixed by smooth functions of time.

One body network serves all steps; its outputs are mixed over time by normalised Gaussian bumps, so that what is said at
neighbouring steps is alike and the number of weights does not grow with T (Sohl-Dickstein et al. 2015, App. D.2, eqs.
62-63). The bumps are as wide as they are apart, as the paper has it; the authors' released code has half of that.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._checks import check_choice, check_count, check_key, check_scalar
from .._shapes import AnyExample, AnyTime
from . import layers
from .embedding import scalar_time


class BumpReadout(eqx.Module):
    """Mix a body network's outputs over time with normalised Gaussian bumps.

    The body yields y_oj for each element, output o and bump j; then z_o = Σ_j y_oj g_j(t), where
    g_j(t) = exp(−(t − τ_j)² / 2w²) / Σ_k exp(−(t − τ_k)² / 2w²). The centres τ_j = T (j − ½) / J, j = 1…J,
    lie evenly inside (0, T) and are T/J apart. The width w is that spacing, as in the paper; the authors'
    released code uses half the spacing and puts its outermost centres on the ends of the chain.

    Source: Sohl-Dickstein et al. 2015, appendix D.2, eq 62–63; J = 10 is from the authors' released code.
    """

    network: Callable[[Array, Array], Array]
    num_steps: int = eqx.field(static=True)
    num_bumps: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    width: float = eqx.field(static=True)

    def __init__(
        self,
        network: Callable[[Array, Array], Array],
        *,
        num_steps: int,
        num_bumps: int = 10,
        outputs: int = 2,
        width: float | None = None,
    ) -> None:
        """Wrap a body.

        Args:
            network: called as `network(x, t)`; returns shape `(outputs * num_bumps, *event_shape)`,
                output-major: all bumps of the first output, then all of the second. It may ignore t, as
                `Dense` does.
            num_steps: T.
            num_bumps: J.
            outputs: how many arrays of shape `event_shape` to return.
            width: w in steps; the spacing T/J of the centres if None.

        Raises:
            ValueError: if a size is not positive, or `width` is not positive.
        """
        self.network = network
        self.num_steps = check_count("num_steps", num_steps)
        self.num_bumps = check_count("num_bumps", num_bumps)
        self.outputs = check_count("outputs", outputs)
        if width is not None:
            check_scalar("width", width)
        self.width = float(self.num_steps / self.num_bumps if width is None else width)
        if not self.width > 0:
            raise ValueError(f"width: expected a positive number of steps, got {width!r}")

    def bumps(self, t: AnyTime) -> Float[Array, " num_bumps"]:
        """Return the weights g_j(t), which are positive and sum to 1 (eq 63).

        Raises:
            ValueError: if `t` is not a scalar.
        """
        t = scalar_time(t)
        centers = (jnp.arange(self.num_bumps, dtype=t.dtype) + 0.5) * (self.num_steps / self.num_bumps)
        return jax.nn.softmax(-0.5 * ((t - centers) / self.width) ** 2)

    def __call__(self, x: AnyExample, t: AnyTime, *context: ArrayLike) -> Float[Array, "..."]:
        """Return the mixed outputs at one example (eq 62).

        Args:
            x: one example, of shape `event_shape`.
            t: step index in [0, T]; may be fractional.
            *context: one context, for a body made for it.

        Returns:
            Array of shape `event_shape` if `outputs` is 1, else `(outputs, *event_shape)`.

        Raises:
            ValueError: if the body's output has another shape than promised, or `t` is not a scalar.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        values, event_shape = self.network(x, t, *context), jnp.shape(x)
        expected = (self.outputs * self.num_bumps, *event_shape)
        # A body with one output drops its leading axis.
        if values.shape != expected and (expected[0] > 1 or values.shape != event_shape):
            raise ValueError(f"network: expected output of shape {expected}, got {values.shape}")
        bumps = self.bumps(t)
        bumps = bumps if values.dtype.itemsize >= 4 else bumps.astype(values.dtype)
        mixed = jnp.einsum("oj...,j->o...", values.reshape(self.outputs, self.num_bumps, *event_shape), bumps)
        return layers.split_outputs(mixed, self.outputs, event_shape)


class Dense(eqx.Module):
    """Fully connected network that ignores time: a body for `BumpReadout`.

    `depth` hidden layers of `width` units, then a linear read-out that starts at zero. The paper's heartbeat
    network has three hidden layers of 50 units, with "sigmoid".

    Source: Sohl-Dickstein et al. 2015, appendices D.1.2 and D.2.
    """

    hidden: tuple[eqx.nn.Linear, ...]
    readout: eqx.nn.Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        event_shape: Sequence[int],
        *,
        outputs: int,
        width: int,
        depth: int,
        activation: str = "tanh",
    ) -> None:
        """Initialise the weights.

        Args:
            key: JAX key for the initial weights.
            event_shape: shape of one example; `()` is a scalar.
            outputs: values per element; `outputs * num_bumps` of the read-out it serves.
            width: units in each hidden layer.
            depth: hidden layers.
            activation: a name in `layers.ACTIVATIONS`.

        Raises:
            ValueError: if a size is not positive, or `activation` is unknown.
        """
        self.event_shape = layers.check_event_shape(event_shape)
        self.outputs = check_count("outputs", outputs)
        self.width = check_count("width", width)
        self.depth = check_count("depth", depth)
        self.activation = check_choice("activation", activation, tuple(layers.ACTIVATIONS))
        size = layers.event_size(self.event_shape)
        *keys, last = jax.random.split(check_key("key", key), self.depth + 1)
        inputs = (size, *[self.width] * (self.depth - 1))
        self.hidden = tuple(layers.linear(k, n, self.width) for k, n in zip(keys, inputs, strict=True))
        self.readout = layers.zero_linear(last, self.width, self.outputs * size)

    def __call__(self, x: AnyExample, t: AnyTime) -> Float[Array, "..."]:
        """Return the network's value at one example; `t` makes no difference.

        Args:
            x: one example, of shape `event_shape`; float or int.
            t: step index, not used.

        Returns:
            Array of shape `event_shape` if `outputs` is 1, else `(outputs, *event_shape)`.

        Raises:
            ValueError: if the shape of `x` is not `event_shape`.
        """
        h = layers.flatten_event(x, self.event_shape)
        for layer in self.hidden:
            h = layers.ACTIVATIONS[self.activation](layer(h))
        return layers.split_outputs(self.readout(h), self.outputs, self.event_shape)
