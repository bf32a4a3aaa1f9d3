"""Programs that are compiled quickly: the same answers, inside of other programs too, with what a jaxlib knows."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import _compiled
from numpyro_diffusion._compiled import OPTIONS, compiled, is_tracing


@compiled
def wave(x: jax.Array, times: int) -> jax.Array:
    """`times` is static, as under `equinox.filter_jit`."""
    assert isinstance(times, int)
    return jnp.sin(x) * times


def test_wherever_it_is_called() -> None:
    x = jnp.linspace(-1.0, 1.0, 5)
    expected = np.sin(np.asarray(x)) * 3
    for called in (wave, jax.jit(wave, static_argnums=1), jax.vmap(wave, (0, None))):
        np.testing.assert_allclose(called(x, 3), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: wave(x, 3))(0.5), np.cos(0.5) * 3, rtol=1e-5)
    constant = jnp.asarray(0.5)
    within = jax.jit(lambda y: y + wave(constant, 3))  # nothing that it is given is traced, and still it is inside
    np.testing.assert_allclose(within(1.0), 1 + np.sin(0.5) * 3, rtol=1e-5)
    summed = jax.lax.scan(lambda total, _: (total + wave(constant, 3), None), 0.0, length=2)[0]
    np.testing.assert_allclose(summed, 6 * np.sin(0.5), rtol=1e-5)
    assert jax.eval_shape(lambda: wave(constant, 3)).shape == ()


def test_what_is_written_over() -> None:
    add = compiled(lambda first, state: first + state, "all-except-first")
    first, state = jnp.ones(3), jnp.ones(3)
    np.testing.assert_array_equal(add(first, state), 2.0)
    np.testing.assert_array_equal(first, 1.0)
    assert state.is_deleted()


def test_nothing_is_sent_to_a_device() -> None:
    x = jnp.ones(3)
    first = wave(x, 2)
    with jax.transfer_guard("disallow"):
        again = wave(x, 2)
    np.testing.assert_array_equal(first, again)


def test_tracing_is_seen() -> None:
    found = []
    jax.jit(lambda x: found.append(is_tracing()) or x)(1.0)
    jax.vmap(lambda x: found.append(is_tracing()) or x)(jnp.ones(2))
    assert found == [True, False]
    assert not is_tracing()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`options` as in a process in which nobody has asked for anything."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    _compiled.options.cache_clear()
    yield monkeypatch
    jax.config.update("jax_disable_most_optimizations", before)
    _compiled.options.cache_clear()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="options of the CPU's compiler")
def test_options_that_are_known_and_not_given(fresh: pytest.MonkeyPatch) -> None:
    with jax.transfer_guard("disallow"):
        known = _compiled.options()
    assert known.items() <= OPTIONS.items()
    assert known["xla_backend_optimization_level"] == 1
    x = jnp.linspace(0.1, 4.0, 4_000)  # by programs with these options, as the others of this file have none
    logs = compiled(lambda x: jnp.sum(jnp.log(2 * x)) - jnp.sum(jnp.log(x)))(x)
    np.testing.assert_allclose(logs, 4_000 * np.log(2), rtol=1e-4)
    fresh.setitem(OPTIONS, "xla_no_such_option", 1)
    _compiled.options.cache_clear()
    assert _compiled.options() == known
    fresh.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    _compiled.options.cache_clear()
    assert set(known) - set(_compiled.options()) == {"xla_backend_optimization_level"}
    jax.config.update("jax_disable_most_optimizations", True)
    _compiled.options.cache_clear()
    assert _compiled.options() == {}


def test_importing_asks_for_no_device() -> None:
    program = "import numpyro_diffusion, jax._src.xla_bridge as b; assert not b._backends"
    subprocess.run([sys.executable, "-c", program], check=True)
