"""Whole programs for a CPU, compiled in about two thirds of the time that XLA's own choices take.

Of an answer that takes seconds, most goes into compiling hundreds of small kernels, each optimised as if it ran for
hours. With LLVM's first level of optimisation, and without a second compiler for fused loops, they run about as fast
and are ready sooner (`examples/benchmarks/first_call.py`).
"""

import functools
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax

# What jaxlib may know (0.12 has one compiler for fused loops only); what it does not is left out.
OPTIONS: dict[str, bool | int] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, donate: Literal["none", "all-except-first"] = "none") -> Function:
    """`equinox.filter_jit` with `OPTIONS`, which JAX takes for a whole program only: not inside of another one.

    Args:
        function: what to compile.
        donate: whose buffers the program may write over, as of `equinox.filter_jit`.
    """
    inside = eqx.filter_jit(function, donate=donate)

    @functools.cache
    def whole() -> Any:  # options are known when JAX's devices are, and importing a package asks for none
        jit: Any = eqx.filter_jit
        return jit(function, donate=donate, compiler_options=options())

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (inside if _is_traced(args, kwargs) else whole())(*args, **kwargs)

    return call  # type: ignore[return-value]


@functools.cache
def options() -> dict[str, bool | int]:
    """Those of `OPTIONS` that this jaxlib knows and nobody has set; none off the CPU, or where less is asked for."""
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return {}
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in OPTIONS.items() if name not in given and _is_known(name, value)}


def _is_known(name: str, value: bool | int) -> bool:
    number = jax.ShapeDtypeStruct((), "float32")  # nothing is sent to a device, which may be forbidden
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(number).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def is_tracing() -> bool:
    """Whether JAX records what is computed now, as under `jax.jit`, not under `jax.vmap`."""
    return isinstance(jax.lax.iota(int, 1), jax.core.Tracer)  # which nothing has to be sent to a device for


def _is_traced(args: Any, kwargs: Any) -> bool:
    """Whether a transformation of JAX is at work, on the arguments or on everything."""
    return is_tracing() or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs)))
