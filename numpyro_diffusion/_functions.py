"""Functions of JAX that layers hold (activations, poolings), each with a name of this closed list.

A file or a pickle keeps the name in place of the function: JAX's own functions do not know theirs, and nothing that a
file could name is ever looked up anywhere but here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

_ACTIVATIONS = (
    "celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh", "identity", "leaky_relu", "log_sigmoid",
    "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softmax", "softplus", "squareplus",
    "standardize", "tanh",
)  # fmt: skip
_UFUNCS = ("abs", "arctan", "cos", "exp", "expm1", "log1p", "max", "mean", "sin", "sinh", "square", "sqrt", "sum")

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"jax.nn.{name}": getattr(jax.nn, name) for name in _ACTIVATIONS if hasattr(jax.nn, name)},
    **{f"jax.numpy.{name}": getattr(jnp, name) for name in _UFUNCS},
    "jax.lax.add": jax.lax.add,
    "jax.lax.max": jax.lax.max,
    # The last activation of an MLP for which none was asked for.
    "equinox.nn.MLP.final_activation": inspect.signature(eqx.nn.MLP).parameters["final_activation"].default,
}
_NAMES = {id(function): name for name, function in FUNCTIONS.items()}


def name_of(function: Any) -> str | None:
    """The name of a function in `FUNCTIONS`; None for any other object."""
    return _NAMES.get(id(function))
