"""Fixtures that several test files use."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def ask_xla_to_compile_quickly() -> None:
    """Two settings that more than halve the time to compile for a CPU, where this jaxlib knows them: else it aborts."""
    given = os.environ.get("XLA_FLAGS", "")
    wanted = f"{given} --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1".strip()
    probe = {**os.environ, "XLA_FLAGS": wanted, "JAX_PLATFORMS": "cpu"}
    known = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=probe, capture_output=True)
    if known.returncode == 0:
        os.environ["XLA_FLAGS"] = wanted


if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what was set for them
    ask_xla_to_compile_quickly()

# Tests compile a lot and compute little, and an unoptimised program is ready in half the time.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # for tests that start a process of their own

# Compiled programs are what the tests leave behind, and the collector goes through all of them again and again: a sixth
# of the time, and gigabytes. They are thrown away file by file instead.
gc.disable()


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs() -> Iterator[None]:
    """No file of tests uses the programs of another."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test in double precision, so that it can be compared with numpy to many digits."""
    with enable_x64(True):
        yield
