import functools
import runpy
import sys

import arviz as az
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import cli, demo


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this posterior may be wrong:UserWarning")  # of few particles and a short chain
def test_demo_writes_the_figure_and_the_arviz_file(tmp_path, capsys, monkeypatch):
    fewer = functools.partial(demo.log_evidence, num_particles=64)
    monkeypatch.setattr(demo, "log_evidence", fewer)
    sizes = ["--digits", "1", "--warmup", "10", "--samples", "10"]
    assert cli.main(["demo", "--quiet", *sizes, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "sigma" in said
    assert "r_hat" in said
    data = az.from_netcdf(str(tmp_path / "out" / "posterior.nc"))
    assert data["posterior"]["x"].shape == (2, 10, 1, 8, 8)
    assert data["posterior"]["sigma"].shape == (2, 10)
    evidence = data["posterior"].attrs["log_evidence"]
    assert f"log evidence, over all noise scales: {evidence:.2f} ±" in said
    particles = az.from_netcdf(str(tmp_path / "out" / "evidence.nc"))
    assert particles["posterior"]["x"].shape == (4, 64, 1, 8, 8)
    assert particles["sample_stats"]["log_evidence"].shape == (4, 1)
    assert data["observed_data"]["y"].shape == (1, 8, 8)
    assert (tmp_path / "out" / "posterior.png").read_bytes().startswith(b"\x89PNG")


def test_help_version_and_module_entry(capsys, monkeypatch):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == nd.__version__
    monkeypatch.setattr(sys, "argv", ["numpyro-diffusion", "demo", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("numpyro_diffusion", run_name="__main__")
    assert "--train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--samples", "0"], "expected a whole number of at least 1, got '0'"),
        (["demo", "--smaples", "3"], "unrecognized arguments: --smaples"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        ([], "required: command"),
    ],
)
def test_a_bad_command_line_is_said(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert message in capsys.readouterr().err


def test_a_failure_is_one_line_and_status_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("numpyro_diffusion.demo.load", lambda name: nd.load(tmp_path / "missing"))
    assert cli.main(["demo", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("numpyro-diffusion: source: expected a file or a packaged prior")
    assert np.size(error.splitlines()) == 1


@pytest.mark.slow
def test_the_packaged_prior_reaches_its_recorded_bound():
    import jax

    from numpyro_diffusion.demo import held_out_bound

    card = nd.card("digits")
    value, error = held_out_bound(jax.random.key(5), nd.load("digits"))
    # The images are the same, so only the noise of the bound differs: well within the error over images.
    assert abs(value - card["bound"]) < 3 * card["bound_error"]
    assert error < 2
