"""Two faults of XLA on CPUs, kept away where that is still possible: wrong sums, and waiting for ever.

jaxlib 0.10.2 and 0.12.0 hand some sums and maxima on a CPU to YNNPACK; 0.8.3, 0.9.2 and 0.10.0 do not. Where log(a s)
and log(b s) occur together, for different constants a and b, it takes one for the other; likewise log1p and expm1. Log
densities of some thousand particles then lack a constant such as log √(2π), and nothing shows it. XLA's own sums are
right.

A batched decomposition of matrices waits for threads of a pool that has as many as the machine has cores. Several at
once take all threads of a small pool and then wait for one another's for ever.

JAX is imported where it is used, since importing the package makes both settings, and does not load it.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import warnings

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# XLA ends the process when it is given a flag that it does not know, so only versions that are known to know it get it.
FIRST, BEYOND = (0, 10, 1), (0, 13)
THREADS = 16  # more than the decompositions that one program runs at once
_SHAPE = (8192, 2)  # fewer numbers are not handed over


class CompilerWarning(UserWarning):
    """The compiler of this process gives wrong sums: any log density and any evidence may be wrong."""


def keep_wrong_sums_away() -> None:
    """Ask XLA to sum by itself; for it to hear, before the first computation of the process."""
    version = importlib.metadata.version("jaxlib")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    flags = os.environ.get("XLA_FLAGS", "")
    # A TPU's compiler reads the flags too, and is of a version of its own.
    if FIRST <= numbers < BEYOND and FLAG not in flags and importlib.util.find_spec("libtpu") is None:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()


def keep_enough_threads() -> None:
    """Ask XLA for a pool in which decompositions find threads; for it to hear, before the first computation."""
    if (os.cpu_count() or 1) < THREADS:
        os.environ.setdefault("NPROC", str(THREADS))


def sums_are_right() -> bool:
    """Whether a sum in which the fault would show is right, on JAX's default device."""
    import jax
    import jax.numpy as jnp

    with jax.ensure_compile_time_eval():
        gap = jax.jit(lambda s: jnp.sum(jnp.log(2.0 * s), -1) - jnp.sum(jnp.log(s), -1))(jnp.ones(_SHAPE))
        return bool(jnp.all(jnp.abs(gap - 2 * jnp.log(2.0)) < 0.1))


@functools.cache
def check_sums() -> None:
    """A `CompilerWarning`, once a process, where sums are wrong."""
    if not sums_are_right():
        warnings.warn(
            f"jaxlib {importlib.metadata.version('jaxlib')} gives wrong sums of logarithms in this process, so that "
            f"log densities and evidences may be wrong by whole nats. Import numpyro_diffusion before the first "
            f"computation with JAX, or set XLA_FLAGS={FLAG}=-reduce before Python starts.",
            CompilerWarning,
            stacklevel=3,
        )
