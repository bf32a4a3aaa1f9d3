"""`fit`, `sample`, `evaluate` and `info`: one prior, fitted on the command line, goes through all of them."""

import argparse
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import cli
from numpyro_diffusion.checkpoints import describe
from numpyro_diffusion.cli import fit
from numpyro_diffusion.cli._options import ADD, NETWORKS
from numpyro_diffusion.cli._options import KINDS as NAMED_KINDS
from numpyro_diffusion.networks import UNET_SIZES
from numpyro_diffusion.training.kinds import KINDS

FIT = ["--max-steps", "20", "--batch-size", "32", "--seed", "3"]


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """Less to compile than the network that is chosen for users."""
    small = lambda key, shape, *, num_steps, width, outputs, context: nd.networks.MLP(
        key, shape, num_steps=num_steps, width=8, depth=1, outputs=outputs, context=context
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("numpyro_diffusion.training.kinds.MLP", small)
        yield


@pytest.fixture(scope="module")
def folder(small_network, tmp_path_factory):
    """Images of 2 × 2 pixels in steps of ¼, and the prior that was fitted to them with a checkpoint that is kept."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    np.save(folder / "data.npy", rng.integers(0, 5, (120, 2, 2)) / 4)
    np.savez(folder / "one.npz", x=rng.integers(0, 5, (9, 2, 2)) / 4)
    np.savez(folder / "two.npz", x=np.zeros(3), y=np.zeros(3))
    np.save(folder / "wrong.npy", np.zeros((3, 5)))
    np.save(folder / "words.npy", np.array([["a"], ["b"]]))
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((3, 2, 2), np.nan))
    (folder / "text.npy").write_text("no array")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    arguments = ["fit", str(folder / "data.npy"), "-o", str(folder / "prior.safetensors"), *FIT]
    try:
        assert cli.main([*arguments, "--checkpoint", str(folder / "kept")]) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    return folder


def run(capsys, *arguments):
    """Run a command that succeeds; returns what it printed."""
    assert cli.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_fit_says_what_it_does_and_goes_on_from_its_checkpoint(folder, capsys):
    again = folder / "again.safetensors"
    said = run(capsys, "fit", folder / "data.npy", "-o", again, *FIT, "--checkpoint", folder / "kept")
    assert f"resuming from {folder / 'kept'}" in said and "family: gaussian" in said and "dequantize: 0.25" in said
    card = nd.card(again)
    assert f"validation K {card['bound']:.4f} ± {card['bound_error']:.4f} nats at step {card['bound_step']}" in said
    assert card["verdict"] in said and nd.load(again).report().verdict == card["verdict"]
    assert card["dequantize"] == 0.25 and card["data"].startswith("data.npy: 120 examples")
    assert describe(again) == describe(folder / "prior.safetensors")  # with a hash of the weights
    assert (folder / "kept").exists()


def test_the_command_in_the_card_is_the_one_that_was_given():
    """But for the places of files: every option that says what is learned is there."""
    parser = argparse.ArgumentParser()
    ADD["fit"](parser)
    given = "--max-steps 7 --batch-size 5 --learning-rate 0.02 --family categorical --dequantize 0.5 --network mlp"
    given += " --kind series --dtype float16 --context c.npy --context-dropout 0.25 --seed 3"
    options = parser.parse_args(["DATA", "-o", "FILE", *given.split()])
    plan = types.SimpleNamespace(max_steps=7, reasons=(), dequantize=0.5)
    recorded = fit._card(options, np.zeros((2, 3)), plan)["command"]
    assert parser.parse_args(recorded.split()[2:]) == options
    unsaid = {"checkpoint", "quiet"}
    assert all(value != parser.get_default(name) for name, value in vars(options).items() if name not in unsaid)


def test_an_interrupted_fit_says_where_its_state_is(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("numpyro_diffusion.cli.fit.fit_prior", interrupt)
    output = folder / "none.safetensors"
    assert cli.main(["fit", str(folder / "data.npy"), "-o", str(output)]) == 130
    assert f"the state is in {output}.checkpoint" in capsys.readouterr().err
    assert not output.exists()


def test_sample_draws_the_prior_whatever_the_number_and_batch(folder, capsys):
    command = ["sample", folder / "prior.safetensors", "--steps", 3, "--seed", 7, "--batch", 2, "--quiet", "-o"]
    said = run(capsys, *command, folder / "draws", "-n", 5, "--image", folder / "draws.png")
    draws = np.load(folder / "draws")
    assert draws.shape == (5, 2, 2) and np.isfinite(draws).all() and "5 draws of shape (2, 2)" in said
    assert len(np.unique(draws[:, 0, 0])) == 5
    assert (folder / "draws.png").read_bytes().startswith(b"\x89PNG")
    run(capsys, *command, folder / "few.npy", "-n", 2)
    np.testing.assert_array_equal(np.load(folder / "few.npy"), draws[:2])


def test_evaluate_says_what_training_said(folder, capsys):
    command = ["evaluate", folder / "prior.safetensors", folder / "data.npy", "--terms", 8, "--seed", 1]
    found = json.loads(run(capsys, *command, "--json"))
    assert found["examples"] == 120 and found["dequantize"] == 0.25
    card = nd.card(folder / "prior.safetensors")
    assert abs(found["bound"] - card["bound"]) < 4 * np.hypot(found["bound_error"], card["bound_error"])
    bits = -(found["bound"] / 4 + np.log(0.25)) / np.log(2)
    assert found["bits_per_dim"] == pytest.approx(bits)
    # Five equally likely levels take log2(5) bits, which nothing beats.
    assert np.log2(5) - 4 * found["bits_per_dim_error"] < bits < 4
    said = run(capsys, *command, "--quiet")
    assert said.startswith(f"K             {found['bound']:.4f} ± {found['bound_error']:.4f} nats per example")


def test_info_describes_files_and_packaged_priors(folder, capsys):
    assert "digits: the 8x8 handwritten digits" in run(capsys, "info")
    found = json.loads(run(capsys, "info", folder / "prior.safetensors", "--json"))
    assert found["family"] == "gaussian" and found["event_shape"] == [2, 2] and found["num_steps"] == 64
    assert found["denoiser"] == "Residual (MLP, about FullGaussianMixture)"
    assert found["card"]["dequantize"] == 0.25
    said = run(capsys, "info", "digits")
    assert "event_shape: [8, 8]" in said and "denoiser: Network (MLP, velocity)" in said and "card: licence:" in said
    assert "loc: 0.3047\n" in said and "card: bound: 75.64\n" in said and "None)" not in said
    said = run(capsys, "info", folder / "prior.safetensors")
    assert re.search(r"^card: plan: \d+ lines, with --json$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit missing.npy -o out", "missing.npy: no such file"),
        ("fit data.npy -o nowhere/out", "--output: expected a file in a folder that exists"),
        ("fit data.npy -o out --checkpoint nowhere/state", "--checkpoint: expected a file in a folder that exists"),
        ("fit text.npy -o out", "text.npy: expected an .npy file, or an .npz file of one array"),
        ("fit objects.npy -o out", "it holds Python objects, which are not read"),
        ("fit two.npz -o out", "expected one array, got 2: x, y"),
        ("fit words.npy -o out", "words.npy: expected numbers, got dtype <U1"),
        ("fit nan.npy -o out", "data: expected finite numbers"),
        ("fit wrong.npy -o out", "data: expected examples that differ"),
        ("fit data.npy -o out --family binomial", "family: expected 'gaussian'"),
        ("fit data.npy -o out --network unet-small", "event_shape: expected a height and width divisible by 4"),
        ("fit data.npy -o out --kind image --network unet-tiny", "kind: expected None with a network of your own"),
        ("fit data.npy -o out --checkpoint text.npy", "text.npy: not a safetensors file"),
        ("sample nobody -o out", "source: expected a file or a packaged prior"),
        ("sample data.npy -o out", "data.npy: not a safetensors file"),
        ("sample prior.safetensors -o nowhere/out", "--output: expected a file in a folder that exists"),
        ("sample prior.safetensors -o out --steps 1000", "num_steps: expected at most T = 64, got 1000"),
        ("sample swiss-roll -o out --image out.png", "--image: expected a prior of images"),
        ("evaluate digits wrong.npy", "expected a shape that ends in the event shape (8, 8), got (3, 5)"),
        ("evaluate prior.safetensors nan.npy", "nan.npy: expected finite numbers"),
        ("evaluate prior.safetensors words.npy", "words.npy: expected numbers, got dtype <U1"),
        ("evaluate prior.safetensors data.npy --samples 3", "num_samples: expected an even number"),
        ("info text.npy", "text.npy: not a safetensors file"),
    ],
)
def test_bad_input_is_one_line_and_status_two(arguments, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main([*arguments.split(), *([] if arguments.startswith("info") else ["--quiet"])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("numpyro-diffusion: ") and message in error
    assert len(error.splitlines()) == 1 and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "data.npy"], "required: -o/--output"),
        (["fit", "data.npy", "-o", "out", "--learning-rate", "-1"], "expected a positive number, got '-1'"),
        (["sample", "digits", "-o", "out", "--seed", "-3"], "expected a whole number from 0"),
        (["sample", "digits", "-o", "out", "-n", "1.5"], "expected a whole number of at least 1, got '1.5'"),
        (["evaluate", "digits"], "required: data"),
    ],
)
def test_a_bad_option_is_said(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert cli.COMMANDS[command] in " ".join(said.split()) and "options:" in said


@pytest.mark.parametrize("line", [["--help"], *([command, "--help"] for command in cli.COMMANDS), ["fit", "--kind"]])
def test_help_and_complaints_load_nothing_that_takes_a_while(line):
    program = (
        "import atexit, sys; from numpyro_diffusion.cli import main;"
        f"atexit.register(lambda: print(*sys.modules)); main({line!r})"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    wrong = line[-1] != "--help"
    assert run.returncode == 2 * wrong and "usage: numpyro-diffusion" in (run.stderr if wrong else run.stdout)
    loaded = run.stdout.splitlines()[-1].split()
    assert "numpyro_diffusion.cli" in loaded and not {"jax", "jaxlib", "numpy", "numpyro"} & set(loaded)


def test_names_that_the_command_line_has_once_more():
    assert NETWORKS == ("mlp", *(f"unet-{size}" for size in UNET_SIZES))
    assert set(NAMED_KINDS) == set(KINDS)


def test_a_command_loads_only_what_it_needs():
    """The entry point imports no command; those that only read a prior import neither training nor pictures."""
    source = {path.stem: path.read_text(encoding="utf-8") for path in Path(cli.__file__).parent.glob("*.py")}
    imports = {name: re.findall(r"^from (\.\S*) import (.+)$", text, re.MULTILINE) for name, text in source.items()}
    assert imports["__init__"] == [("..", "__version__"), ("._options", "ADD")] and not imports["_options"]
    used = {module for name in ("info", "evaluate") for module, _ in imports[name]}
    below = {".._checks", ".._compiled", ".._numbers", "..hub", "..likelihoods", "._arguments", "._context", "._tables"}
    assert used <= below
