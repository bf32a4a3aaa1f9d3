"""Fixtures that several test files use."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import shape_checks
from programs import programs_optimised

shape_checks.install("numpyro_diffusion")  # before anything imports it

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
QUICK += " --xla_backend_optimization_level=1"  # for the few programs that are optimised at all: see `optimised`


def ask_xla_to_compile_quickly() -> None:
    """Settings that more than halve the time to compile for a CPU, where this jaxlib knows them: else it aborts."""
    given = os.environ.get("XLA_FLAGS", "")
    wanted = f"{given} {QUICK}".strip()
    probe = {**os.environ, "XLA_FLAGS": wanted, "JAX_PLATFORMS": "cpu"}
    known = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=probe, capture_output=True)
    if known.returncode == 0:
        os.environ["XLA_FLAGS"] = wanted


if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what was set for them
    ask_xla_to_compile_quickly()

# Tests compile a lot and compute little, and an unoptimised program is ready in half the time.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 0)  # programs need not say which line of Python made which part
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
def optimised() -> Iterator[None]:
    """For a test that is so as a whole."""
    with programs_optimised():
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Run the test in double precision, so that it can be compared with numpy to many digits."""
    with enable_x64(True):
        yield


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Small networks, where nothing hangs on the network that learns."""
    from small_networks import small_networks  # which imports the package, after its checks of shapes

    with small_networks():
        yield


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """A file that one of the test processes writes, and that the others wait for."""
    begun = path.with_suffix(".begun")
    while not path.exists():
        try:
            begun.touch(exist_ok=False)
        except FileExistsError:
            time.sleep(0.2)
            continue
        try:
            part = path.with_stem(f"{path.stem}-part")
            make(part)
            part.rename(path)
        finally:
            begun.unlink()
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all test processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def shared_file(shared_folder: Path) -> Callable[[str, Callable[[Path], None]], Path]:
    """`shared_file(name, make)`: the file of that name, which is made once for all test processes."""
    return lambda name, make: made_once(shared_folder / name, make)


@pytest.fixture(scope="session")
def banana(shared_folder: Path) -> object:
    """A prior that was learned, a network's bend, of which nothing is exact."""
    import numpyro_diffusion as nd

    def learn(path: Path) -> None:
        rng = np.random.default_rng(0)
        first = rng.standard_normal(800)
        data = np.stack([first, 0.5 * first**2 + 0.3 * rng.standard_normal(800)], 1)
        schedule = nd.schedules.log_snr(20, -8, 6)
        nd.fit_prior(jax.random.key(0), data, max_steps=300, schedule=schedule, progress_bar=False).save(path)

    return nd.load(made_once(shared_folder / "banana.safetensors", learn))


@pytest.fixture(scope="session")
def banana_draws(shared_folder: Path, banana: object) -> np.ndarray:
    """Of the chain of `banana`, shape (200000, 2)."""

    def draw(path: Path) -> None:
        with programs_optimised():
            np.save(path, banana.sample(jax.random.key(99), (200_000,)))

    return np.load(made_once(shared_folder / "banana.npy", draw))
