"""A compiler's wrong sums are kept away, and seen where they are not."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

from numpyro_diffusion import _compiler
from numpyro_diffusion._compiler import FLAG

PRIOR = """
import warnings
{first}
import numpyro_diffusion as nd
from numpyro_diffusion._compiler import sums_are_right
process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), nd.denoisers.Gaussian(0.0, 1.0), 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    nd.DiffusionPrior(process), nd.DiffusionPrior(process)
print(sums_are_right(), [warning.category.__name__ for warning in caught])
"""


DIGITS = """
import numpyro_diffusion as nd
from numpyro_diffusion.demo import *
prior, keys = nd.load("digits"), jax.random.split(jax.random.key(0), 2)
observed = observe(keys[1], jnp.asarray(digits().test_images[:3]))
smc = SMC(model, num_particles=512, twist=Tempered(Laplace(), 0.5))
smc.run(keys[0], short_chain(prior), observed.mask, observed.y, jnp.asarray(0.2))
print(smc.log_evidence)
"""


def said(first):
    """What a process says that does something before it imports the package."""
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    script = PRIOR.format(first=first)
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout


def test_sums_of_logarithms_are_right():
    """Of the laws of many particles, as `TwistedSMC` has them in its last step."""
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(8192, 2)), np.exp(rng.normal(size=(8192, 2)))

    @jax.jit
    def both(x, scale):
        return dist.Normal(0.0, scale).to_event(1).log_prob(x) + 0.5 * jnp.log(scale).sum(-1)

    expected = norm(0.0, scale).logpdf(x).sum(-1) + 0.5 * np.log(scale).sum(-1)
    np.testing.assert_allclose(both(jnp.asarray(x), jnp.asarray(scale)), expected, rtol=1e-4, atol=1e-4)
    assert _compiler.sums_are_right()


COMPUTED = "import jax; jax.numpy.ones(3) + 1"


@pytest.mark.parametrize("first", ["import jax", f"import numpyro_diffusion; {COMPUTED}", COMPUTED])
def test_sums_are_right_or_a_warning_says_that_they_are_not(first):
    """JAX reads its flags at the first computation; before that the import is in time, whenever a name is used."""
    out = said(first)
    if first != COMPUTED:
        assert out == "True []\n"
    else:
        assert out in ("True []\n", "False ['CompilerWarning']\n")


@pytest.mark.parametrize(
    ("version", "flags", "expected"),
    [
        ("0.10.0", "--a=1", "--a=1"),
        ("0.10.2", "", f"{FLAG}=-reduce"),
        ("0.12.0.1", "--a=1", f"--a=1 {FLAG}=-reduce"),
        ("0.12.0", f"{FLAG}=none", f"{FLAG}=none"),
        ("0.13.0", "--a=1", "--a=1"),
    ],
)
def test_only_versions_that_know_the_flag_get_it(monkeypatch, version, flags, expected):
    """Others would end the process; and what somebody has set stays."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(_compiler.importlib.metadata, "version", lambda name: version)
    _compiler.keep_wrong_sums_away()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(("cores", "given", "expected"), [(2, None, "16"), (2, "4", "4"), (64, None, None)])
def test_the_pool_of_threads_is_made_large_enough(monkeypatch, cores, given, expected):
    """And what somebody has set stays."""
    monkeypatch.setattr(_compiler.os, "cpu_count", lambda: cores)
    monkeypatch.delenv("NPROC", raising=False)
    if given is not None:
        monkeypatch.setenv("NPROC", given)
    _compiler.keep_enough_threads()
    assert os.environ.get("NPROC") == expected


@pytest.mark.slow
def test_decompositions_do_not_wait_for_ever():
    """With two threads this never ended on two cores, not even the first run; with 64 particles it did."""
    env = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "NPROC", "OMP_NUM_THREADS")}
    command = [sys.executable, "-c", DIGITS]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=400)
    assert float(run.stdout) < 0


def test_a_warning_names_the_remedy(monkeypatch):
    monkeypatch.setattr(_compiler, "sums_are_right", lambda: False)
    with pytest.warns(_compiler.CompilerWarning, match=f"Import numpyro_diffusion before .* or set XLA_FLAGS={FLAG}"):
        _compiler.check_sums.__wrapped__()
