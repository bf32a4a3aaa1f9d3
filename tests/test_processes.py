"""Two processes of four devices each, against one process with one device."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import _devices, checkpoints
from numpyro_diffusion._devices import check_devices, check_hashing
from numpyro_diffusion.training import resume

CHAIN = 3
STEPS, DIES_AT = 8, 6


def _batch(step):
    return np.random.default_rng(step).normal(size=(16, 2)).cumsum(axis=1)


def _fit(data, **options):
    network = nd.networks.RBF(jax.random.key(0), (2,), num_steps=CHAIN, num_centers=5, outputs=1)
    diffusion = nd.GaussianDiffusion(nd.schedules.log_snr(CHAIN), 0.0, 2.0)
    process = nd.ReverseProcess(diffusion, nd.denoisers.Network(network, "velocity"), (2,))
    often = {"log_every": 2, "checkpoint_every": 2, "validate_every": 4, "validation": _batch(100)}
    options |= {"objective": "simple", "progress_bar": False}
    return nd.fit(jax.random.key(1), process, data, max_steps=STEPS, **often, **options)


def _smc(num_islands, **options):
    denoiser = nd.denoisers.Gaussian(jnp.zeros(2), jnp.ones(2))
    prior = nd.DiffusionPrior(nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(CHAIN)), denoiser, (2,)))

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 0.5).to_event(1), obs=y)

    options = {"num_particles": 64, "twist": nd.twists.Tweedie(), "antithetic": False} | options
    smc = nd.infer.SMC(model, num_islands=num_islands, **options).run(jax.random.key(0), jnp.ones(2))
    return np.asarray(smc.log_evidences).tolist()


def _say(folder, rank, *words):
    """For the test, in a file: libraries print too, and into the middle of lines."""
    with open(Path(folder) / f"said by {rank}", "a") as file:
        print(*words, file=file)


def _take_part(rank, port, folder):
    """What each of the two processes does: SMC twice, training with divided weights, and a run in the middle of
    which the second one is killed."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank, heartbeat_timeout_seconds=10)
    assert (jax.device_count(), jax.local_device_count()) == (8, 4)
    _say(folder, rank, "particles", *_smc(2, devices=8))
    _say(folder, rank, "islands", *_smc(8, devices=8))
    _devices.SMALLEST_DIVIDED = 8
    _say(folder, rank, "parts", *_fit(_batch(7), devices=8, shard_weights=True).history["loss"])
    write = checkpoints.write_training_state
    resume.write_training_state = lambda *args, **options: (_say(folder, rank, "written"), write(*args, **options))

    def batch(step):
        if step == DIES_AT and rank == 1:
            os._exit(7)
        return _batch(step)

    _fit(batch, devices=8, checkpoint=Path(folder) / "run")


def _start(rank, port, folder, seed, what):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": seed, "NPROC": "16"}
    program = f"import runpy; runpy.run_path({__file__!r})[{what!r}]({rank}, {port}, {str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **settings}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def _free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _both(folder, seeds=("0", "0"), what="_take_part"):
    port = _free_port()
    running = [_start(rank, port, folder, seed, what) for rank, seed in enumerate(seeds)]
    try:
        return [(child.communicate(timeout=300), child.returncode) for child in running]
    finally:
        for child in running:
            child.kill()


def _said(folder, rank, word):
    lines = (Path(folder) / f"said by {rank}").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == word]


def _compare_hashes(rank, port, folder):
    """Processes whose sets are in another order make other programs, and would wait for one another's for ever."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank, heartbeat_timeout_seconds=10)
    for devices in (8, 4):  # all, and those of the first process
        try:
            check_hashing(check_devices(devices, 8))
        except ValueError as error:
            _say(folder, rank, "refused", error)


@pytest.mark.slow
def test_processes_that_would_make_other_programs_are_told(tmp_path):
    found = _both(tmp_path, ("0", "1"), "_compare_hashes")
    first, second = (_said(tmp_path, rank, "refused") for rank in range(2))
    assert len(first) == 1 and len(second) == 2, found
    assert "PYTHONHASHSEED" in first[0] and "PYTHONHASHSEED" in second[0]
    assert "or some of each of 2 processes, got those of [0]" in second[1]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    """Particles and islands shared, the same evidence and losses; one is killed, and one goes on alone."""
    ((_, errors), code), (_, killed) = _both(tmp_path)
    assert (code, killed) == (-signal.SIGABRT, 7), errors[-3000:]
    assert "another task died" in errors and "stopped sending heartbeats" in errors
    for name, count in (("particles", 2), ("islands", 8)):
        expected = _smc(count)
        for rank in range(2):
            np.testing.assert_allclose(np.array(_said(tmp_path, rank, name)[0].split(), float), expected, atol=2e-5)
    losses = _fit(_batch(7)).history["loss"]
    for rank in range(2):
        np.testing.assert_allclose(np.array(_said(tmp_path, rank, "parts")[0].split(), float), losses, rtol=1e-5)
    assert _said(tmp_path, 0, "written") and not _said(tmp_path, 1, "written")
    begun = checkpoints.describe(tmp_path / "run")["metadata"]["history"]["step"][-1]
    assert 2 <= begun < STEPS
    resumed, whole = _fit(_batch, checkpoint=tmp_path / "run"), _fit(_batch)
    assert resumed.steps == STEPS and len(resumed.history["loss"]) == STEPS // 2
    for name, values in whole.history.items():
        np.testing.assert_allclose(resumed.history[name], values, rtol=1e-5)
