"""A prior of p(x | c) on the command line: fitted, drawn from and evaluated with files of contexts."""

import json

import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import cli
from numpyro_diffusion.cli._context import contexts_for
from numpyro_diffusion.training import kinds


@pytest.mark.slow
def test_one_prior_goes_through_all_commands(tmp_path, capsys, monkeypatch):
    small = lambda key, shape, *, num_steps, width, context, outputs: nd.networks.MLP(
        key, shape, num_steps=num_steps, width=8, depth=1, outputs=outputs, context=context
    )
    monkeypatch.setattr(kinds, "MLP", small)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    files = {"data": rng.normal(10.0 * labels[:, None], 1.0, (200, 2)), "labels": labels, "one": np.array(1)}
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    place = lambda name: str(tmp_path / name)
    run = lambda *arguments: cli.main([*arguments, "--quiet"])
    fitted = ["fit", place("data.npy"), "-o", place("prior"), "--max-steps", "20"]
    assert run(*fitted, "--context", place("labels.npy"), "--context-dropout", "0.1") == 0
    assert run("sample", place("prior"), "-n", "40", "-o", place("draws.npy"), "--context", place("one.npy")) == 0
    assert abs(np.load(tmp_path / "draws.npy").mean() - 10) < 1
    capsys.readouterr()
    evaluated = ["evaluate", place("prior"), place("data.npy"), "--json", "--limit", "50"]
    assert run(*evaluated, "--context", place("labels.npy")) == 0
    assert abs(json.loads(capsys.readouterr().out)["bound"] + 2 * 1.42) < 0.5  # the entropy of two unit normals
    for arguments, message in (
        (evaluated, "--context: expected a file of contexts of shape ()"),
        ([*evaluated, "--context", place("data.npy")], "data.npy: expected shape ()"),
        ([*fitted, "--context", place("labels.npy"), "--network", "unet-tiny"], "--network: expected 'mlp'"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_a_prior_without_a_context_takes_none():
    process = nd.ReverseProcess(nd.GaussianDiffusion(nd.schedules.log_snr(4)), nd.denoisers.Gaussian(0.0, 1.0), 1)
    assert contexts_for(nd.DiffusionPrior(process), None, 3) is None
    with pytest.raises(ValueError, match="--context: expected none, as the prior takes none, got 'file'"):
        contexts_for(nd.DiffusionPrior(process), "file", 3)
