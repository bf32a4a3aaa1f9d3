"""Saved priors: what is written is what comes back, and whatever else is refused with a reason."""

import hashlib
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import numpyro_diffusion as nd
from numpyro_diffusion import checkpoints, hub, networks, schedules
from numpyro_diffusion.checkpoints import CheckpointError
from numpyro_diffusion.denoisers import Network

CARD = {
    "data": "two numbers",
    "licence": "CC0",
    "command": "python train.py",
    "bound": -1.5,
    "shares": [0.1, 0.2],
    "note": None,
}


def _stirred(module, seed=0):
    """Networks start at zero; these weights would be missed."""
    leaves, structure = jax.tree.flatten(module)
    rng = np.random.default_rng(seed)
    new = [
        leaf + 0.3 * rng.normal(size=leaf.shape).astype("f") if eqx.is_inexact_array(leaf) else leaf for leaf in leaves
    ]
    return jax.tree.unflatten(structure, new)


def _real():
    net = networks.MLP(jax.random.key(0), (2,), num_steps=4, width=4, depth=1, time_features=2)
    diffusion = nd.GaussianDiffusion(schedules.log_snr(4, -4.0, 3.0), [1.0, -2.0], [0.5, 3.0])
    process = nd.ReverseProcess(diffusion, Network(_stirred(net), "velocity"), 2)
    sampler = nd.samplers.Ancestral(3)
    return nd.DiffusionPrior(process, nd.KBound(2, 2, chunk=50), sampler, jax.random.key(7, impl="rbg"))


def _bits():
    body = networks.Dense(jax.random.key(0), (3,), outputs=2, width=4, depth=1)
    net = networks.BumpReadout(_stirred(body), num_steps=4, num_bumps=2, outputs=1)
    diffusion = nd.BinomialDiffusion(schedules.erasing(4), 0.3)
    process = nd.ReverseProcess(diffusion, Network(net, "mean"), 3, last_step="forward")
    return nd.DiffusionPrior(process, nd.KBound(1), key=jax.random.PRNGKey(3))


PRIORS = {
    "real": (_real, np.array([[0.3, 0.5], [1.0, -2.0]], "f")),
    "bits": (_bits, np.array([[0, 1, 1], [1, 0, 0.0]])),
}


@eqx.filter_jit
def _answers(prior, x):
    return prior.log_prob(x), prior.sample(jax.random.key(5), (20,))


@pytest.fixture(scope="module", params=PRIORS)
def saved(request, tmp_path_factory):
    make, x = PRIORS[request.param]
    prior, path = make(), tmp_path_factory.mktemp("priors") / "prior.safetensors"
    prior.save(path, card=CARD)
    return prior, path, jnp.asarray(x, jnp.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "prior.safetensors"
    _real().save(path, card=CARD)
    return path


def test_a_prior_comes_back_as_it_was(saved):
    prior, path, x = saved
    back = nd.load(path)
    for left, right in zip(_answers(prior, x), _answers(back, x), strict=True):
        assert left.tobytes() == right.tobytes() and left.dtype == right.dtype
    assert jax.tree.structure(back) == jax.tree.structure(prior)
    assert back.likelihood == prior.likelihood and back.sampler == prior.sampler
    assert back.event_shape == prior.event_shape and back.key.dtype == prior.key.dtype
    assert nd.load(str(path)).event_shape == prior.event_shape


def test_a_model_that_is_traced_may_load_its_prior(path):
    """As a newcomer writes it: the file is read once for each trace, and its values can be checked."""
    draw = lambda key: nd.load(path).sample(key, (3,))
    key = jax.random.key(0)
    np.testing.assert_allclose(jax.jit(draw)(key), draw(key), rtol=1e-5, atol=1e-5)


def test_half_precision_is_close_and_smaller(saved, tmp_path):
    prior, path, x = saved
    half = tmp_path / "half.safetensors"
    prior.save(half, dtype="float16")
    back, exact = nd.load(half), nd.load(path)
    np.testing.assert_allclose(_answers(back, x)[0], _answers(prior, x)[0], atol=0.02)
    weights = [jax.tree.leaves(eqx.filter(p.process.denoiser, eqx.is_inexact_array)) for p in (back, exact)]
    pairs = list(zip(*weights, strict=True))
    assert all(a.dtype == b.dtype == jnp.float32 for a, b in pairs)
    assert any(not np.array_equal(a, b) for a, b in pairs)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=2**-10, atol=1e-6)
    # What is small stays exact: schedules, scales.
    assert back.process.diffusion.schedule.table.tobytes() == prior.process.diffusion.schedule.table.tobytes()


def test_a_card_is_read_without_the_arrays(path):
    assert nd.card(path) == nd.card(str(path)) == CARD
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert nd.card(path) == CARD
    with pytest.raises(CheckpointError, match="expected the recorded sha256"):
        nd.load(path)
    _real().save(path)
    assert nd.card(path) == {}


def test_a_card_must_be_json(path):
    before = path.read_bytes()
    with pytest.raises(TypeError, match="metadata: expected what JSON can hold"):
        _real().save(path, card={"bound": np.float32(1.0)})
    assert path.read_bytes() == before


def test_a_function_for_a_network_cannot_be_saved(tmp_path):
    diffusion = nd.GaussianDiffusion(schedules.log_snr(4, -4.0, 3.0))
    prior = nd.DiffusionPrior(nd.ReverseProcess(diffusion, Network(lambda x, t: x, "noise"), 2))
    with pytest.raises(TypeError, match=r"process\.denoiser\.fn: expected .* got <class 'function'>"):
        prior.save(tmp_path / "prior.safetensors")
    assert list(tmp_path.iterdir()) == []


# ---- Packaged priors


def test_every_packaged_prior_loads_and_has_its_card():
    names = nd.packaged()
    assert list(names) == sorted(path.stem for path in hub._FOLDER.iterdir() if path.suffix == ".safetensors")
    assert set(names) == {"digits", "heartbeat", "mnist", "swiss-roll"}
    sizes = {name: (hub._FOLDER / f"{name}.safetensors").stat().st_size for name in names}
    assert all(size <= 1_000_000 for name, size in sizes.items() if name != "mnist"), sizes
    assert sum(sizes.values()) <= 12_000_000, sizes
    for name in names:
        prior, card = nd.load(name), nd.card(name)
        assert isinstance(prior, nd.DiffusionPrior) and prior.event_shape
        for entry in ("data", "licence", "command", "unit"):
            assert isinstance(card[entry], str) and card[entry], f"{name}: {entry}"
        assert np.isfinite(card["bound"]) and 0 < card["bound_error"] < 10, name
        assert all(
            np.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(prior.process.denoiser, eqx.is_array))
        )


def _digits(key):
    images = jnp.asarray(nd.datasets.digits().test_images)
    return images + (jax.random.uniform(key, images.shape) - 0.5) * nd.card("digits")["dequantize"]


def _mnist(key):
    """Every fiftieth test image of MNIST (LeCun and Cortes, CC BY-SA 3.0)."""
    with np.load(Path(__file__).parent / "golden" / "mnist.npz") as file:
        images = file["images"] / np.float32(255)
    return images + (jax.random.uniform(key, images.shape) - 0.5) * nd.card("mnist")["dequantize"]


# Data that no training has seen: generated afresh, or the part of a data set that is held out.
HELD_OUT = {
    "digits": _digits,
    "heartbeat": lambda key: nd.datasets.heartbeat(key, 2000),
    "mnist": _mnist,
    "swiss-roll": lambda key: nd.datasets.swiss_roll(key, 2000, 0.5),
}
TERMS = {"mnist": 4}  # few for a large network; K per pixel is what its card holds


def test_every_packaged_prior_has_held_out_data():
    assert set(HELD_OUT) == set(nd.packaged())


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD_OUT)
def test_a_packaged_prior_reaches_its_recorded_bound(name):
    prior, card = nd.load(name), nd.card(name)
    data_key, key = jax.random.split(jax.random.key(11))
    x_0 = HELD_OUT[name](data_key)
    bound = nd.KBound(2, min(prior.process.num_steps - 1, TERMS.get(name, 50)), chunk=4096)
    value = np.asarray(eqx.filter_jit(bound)(key, prior.process, x_0).value, np.float64)
    value = value / np.prod(prior.event_shape) if name in TERMS else value
    error = np.hypot(value.std() / np.sqrt(len(value)), card["bound_error"])
    assert abs(value.mean() - card["bound"]) < 3 * error
    assert error < (0.2 if name in TERMS else 2)


def test_a_name_is_looked_up_among_the_packaged_and_a_file_wins(path, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_FOLDER", path.parent)
    monkeypatch.chdir(tmp_path)
    assert nd.packaged() == ("prior",)
    assert nd.load("prior").event_shape == (2,) and nd.card("prior") == CARD
    _bits().save(tmp_path / "prior")
    assert nd.load("prior").event_shape == (3,) and nd.card("prior") == {}


@pytest.mark.parametrize("read", [nd.load, nd.card])
def test_a_missing_prior_lists_those_there_are(read, path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"source: expected a file or a packaged prior \(.*'digits'.*\), got 'digit'"
    ):
        read("digit")
    with pytest.raises(FileNotFoundError, match="source: .* got '.*nowhere'"):
        read(path.parent / "nowhere")
    with pytest.raises(TypeError, match="source: expected a path or the name of a packaged prior, got 3"):
        read(3)
    monkeypatch.setattr(hub, "_FOLDER", path.parent / "empty")
    with pytest.raises(FileNotFoundError, match=r"a packaged prior \(none\)"):
        read("digits")


# ---- Files that are no priors


def _rewrite(path, change, version="1"):
    """Change a file's description and make its checksums right again."""
    with safetensors.safe_open(path, "np") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    description = json.loads(header["description"])
    change(description)
    text = json.dumps(description)
    header |= {"description": text, "format_version": version, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.numpy.save_file(tensors, path, header)


@pytest.mark.parametrize("read", [nd.load, nd.card])
def test_damaged_foreign_and_newer_files(read, path):
    whole = path.read_bytes()
    for bad in (b"", b"not a prior", whole[: len(whole) // 3], whole[:60] + b"#" + whole[61:]):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=f"{path.name}: "):
            read(path)
    safetensors.numpy.save_file({"w": np.ones(2)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{path.name}: another program's file"):
        read(path)
    path.write_bytes(whole)
    _rewrite(path, lambda description: None, version="2")
    with pytest.raises(CheckpointError, match=r"expected at most 1 \(upgrade numpyro_diffusion\), got 2"):
        read(path)


def test_checkpoints_of_other_things(path):
    checkpoints.write_module(path, schedules.cosine(5))
    with pytest.raises(
        CheckpointError, match=f"{path.name}: expected a DiffusionPrior, got a file that holds a Schedule"
    ):
        nd.load(path)
    with pytest.raises(CheckpointError, match="expected a file of DiffusionPrior.save, got another checkpoint"):
        nd.card(path)
    checkpoints.write_training_state(path, {"w": jnp.ones(2)})
    with pytest.raises(CheckpointError, match="kind: expected module, got training state"):
        nd.load(path)


def test_a_prior_with_foreign_parts(path):
    def swap(description):
        fields = description["content"]["fields"]
        fields["likelihood"] = fields["sampler"]

    _rewrite(path, swap)
    with pytest.raises(CheckpointError, match="expected the parts of a DiffusionPrior, got others .*likelihood"):
        nd.load(path)
