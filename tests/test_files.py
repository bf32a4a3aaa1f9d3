"""Files that cannot be written, and what killed runs leave behind."""

import errno
import os
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import _files, cli, denoisers, networks, schedules
from numpyro_diffusion.training import CheckpointNotWritten

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(20, 2))


@pytest.fixture
def left(tmp_path):
    """Half-written files beside tmp_path / "run[1]": an old one, a young one, and old ones of other files."""
    names = [f".{name}.{'0' * 31}{i}.tmp" for name, i in (("run[1]", 1), ("run[1]", 2), ("run", 3), ("run1", 4))]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (0, time.time() - (0 if name.endswith("2.tmp") else 3600)))
    return names


def full_disk(file):
    raise OSError(errno.ENOSPC, "No space left on device")


def fit(path, **options):
    diffusion = nd.GaussianDiffusion(schedules.cosine(4))
    network = denoisers.Network(networks.RBF(KEY, (2,), num_steps=4, outputs=1))
    options = {
        "max_steps": 4,
        "log_every": 2,
        "checkpoint_every": 2,
        "validation": 0.0,
        "progress_bar": False,
    } | options
    return nd.fit(KEY, nd.ReverseProcess(diffusion, network, 2), DATA, checkpoint=path, **options)


@pytest.mark.parametrize(
    "use", [lambda path: _files.write_whole(path, b"whole"), lambda path: _files.check_writable("x", path)]
)
def test_leftovers_of_killed_runs_are_removed_and_no_others(use, left, tmp_path):
    use(tmp_path / "run[1]")
    assert {path.name for path in tmp_path.iterdir()} - {"run[1]"} == set(left[1:])


PRIOR = nd.DiffusionPrior(nd.ReverseProcess(nd.GaussianDiffusion(schedules.cosine(4)), denoisers.Gaussian(0.0, 1.0), 2))


def saved_as_array(path):
    PRIOR.save(path.parent / "prior")
    try:
        if cli.main(["sample", str(path.parent / "prior"), "-o", str(path), "-n", "1", "--quiet"]) == 2:
            raise OSError("--output: " + str(path))
    finally:
        (path.parent / "prior").unlink()


WRITERS = {
    "path": PRIOR.save,
    "checkpoint": fit,
    "--output": saved_as_array,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_file_is_never_replaced(writer, linked, tmp_path):
    """A named pipe stands for a device, which root would destroy for the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    target = tmp_path / "link" if linked else tmp_path / "pipe"
    if linked:
        target.symlink_to(tmp_path / "pipe")
    before = {file.name: file.lstat().st_ino for file in tmp_path.iterdir()}
    with pytest.raises(OSError, match=f"^{writer}: .*{target.name}"):
        WRITERS[writer](target)
    assert {file.name: file.lstat().st_ino for file in tmp_path.iterdir()} == before
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("writer", ["path", "checkpoint"])
def test_a_folder_in_the_place_of_a_file_is_called_one(writer, tmp_path):
    with pytest.raises(IsADirectoryError, match=f"^{writer}: expected a file, got the folder '{tmp_path}'$"):
        WRITERS[writer](tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", ["path", "checkpoint"])
def test_what_is_no_path_is_named(writer):
    with pytest.raises(TypeError, match=f"^{writer}: expected the path of a file, got 3$"):
        WRITERS[writer](3)


def test_nothing_is_trained_for_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    """Whether the folder is closed or the disk is full; nothing is left there."""
    steps = []
    monkeypatch.setattr("numpyro_diffusion.training.sources.advance", lambda *_: steps.append(1))
    monkeypatch.setattr("os.fsync", full_disk)
    said = r"checkpoint: expected a file that can be written, got '.*run' \(No space left on device\)"
    with pytest.raises(OSError, match=said):
        fit(tmp_path / "run")
    real_open = open

    def closed(path, mode="r", *arguments, **options):
        if "x" in mode:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(PermissionError, match=r"checkpoint: expected a file that can be written, got '.*run'"):
        fit(tmp_path / "run")
    assert not steps and not list(tmp_path.iterdir())


def test_no_output_that_cannot_be_written_on_the_command_line(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "data.npy", DATA)
    monkeypatch.setattr("os.fsync", full_disk)
    assert cli.main(["fit", str(tmp_path / "data.npy"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "--output: expected a file that can be written" in said and len(said.splitlines()) == 1


def test_a_disk_that_fills_up_does_not_lose_the_weights(tmp_path, monkeypatch):
    """The error comes when the next checkpoint is due, with what a run of as many steps returns."""
    calls, fsync = [], os.fsync

    def filling(file):
        calls.append(file)
        return fsync(file) if len(calls) < 3 else full_disk(file)  # the probe and the first save

    options = {"optimizer": optax.sgd(1e-3)}
    expected = fit(None, max_steps=6, **options).process
    monkeypatch.setattr("os.fsync", filling)
    path = tmp_path / "run"
    with pytest.raises(
        CheckpointNotWritten, match=r"checkpoint: expected to write '.*run', got No space left"
    ) as error:
        fit(path, max_steps=8, **options)
    result = error.value.result
    assert result.steps == 6 and result.stopped == "unsaved" and error.value.errno == errno.ENOSPC
    jax.tree.map(np.testing.assert_array_equal, result.process, expected)
    assert [file.name for file in Path(tmp_path).iterdir()] == ["run"]  # that of step 2, from which a run goes on
    monkeypatch.setattr("os.fsync", fsync)
    assert fit(path, max_steps=8, **options).steps == 8
