"""Prior files with right checksums: those of a user's own network are read, those that make no sense are refused."""

import copy
import hashlib
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import numpyro_diffusion as nd
from numpyro_diffusion import checkpoints, cli, denoisers, networks, schedules
from numpyro_diffusion.checkpoints import CheckpointError

KEY = jax.random.key(0)


class Mine(eqx.Module):
    """A network of a user's own, with activations of three kinds."""

    layers: list
    mlp: eqx.nn.MLP
    scale: float = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.layers = [eqx.nn.Linear(3, 4, key=keys[0]), jax.nn.tanh, eqx.nn.Linear(4, 2, key=keys[1])]
        self.mlp = eqx.nn.MLP(2, 2, 4, 1, activation=jax.nn.gelu, key=keys[2])
        self.scale = 0.5

    def __call__(self, x, t):
        h = jnp.append(x, t / 4)
        for layer in self.layers:
            h = layer(h)
        return self.scale * self.mlp(h)


class Other(eqx.Module):
    """Of another name."""


def prior_of(network):
    diffusion = nd.GaussianDiffusion(schedules.log_snr(4, -4.0, 3.0), [1.0, -2.0], [0.5, 3.0])
    process = nd.ReverseProcess(diffusion, denoisers.Network(network, "velocity", "learned", clip=(-3.0, 3.0)), 2)
    return nd.DiffusionPrior(process, nd.KBound(2, 2, chunk=50), nd.samplers.Ancestral(3))


def mlp(outputs=2):
    return networks.MLP(KEY, (2,), num_steps=4, width=4, depth=1, time_features=2, outputs=outputs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prior.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The description, the tensors and the header of a prior's file."""
    path = tmp_path_factory.mktemp("contents") / "prior.safetensors"
    prior_of(mlp()).save(path, card={"data": "none"})
    with safetensors.safe_open(path, "np") as file:
        header = file.metadata()
        return json.loads(header["description"]), {name: file.get_tensor(name) for name in file.keys()}, header


def forge(path, saved, change):
    """Write the file anew after `change(description, tensors)`, with all its checksums right."""
    description, tensors, header = copy.deepcopy(saved)
    change(description, tensors)
    text = json.dumps(description | {"sha256": checkpoints._digest(tensors)})
    header |= {"description": text, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.numpy.save_file(tensors, path, header)


def test_a_network_of_ones_own_is_saved_and_read_where_its_class_is_given(path):
    process = nd.ReverseProcess(
        nd.GaussianDiffusion(schedules.log_snr(4, -4.0, 3.0)), denoisers.Network(Mine(KEY), "noise"), 2
    )
    prior = nd.DiffusionPrior(process)
    prior.save(path)
    x = jnp.array([0.3, -1.0])
    for classes in ([Mine], [Other, Mine], (each for each in [Mine])):
        back = nd.load(path, classes=classes)
        assert jax.tree.structure(back) == jax.tree.structure(prior)
        assert back.process.predict(x, 2).tobytes() == prior.process.predict(x, 2).tobytes()
    moved = type("Mine", (Mine,), {"__module__": "elsewhere", "__init__": Mine.__init__})  # as from another script
    assert type(nd.load(path, classes=[moved]).process.denoiser.fn) is moved
    for classes in ([], [Other]):
        with pytest.raises(CheckpointError, match=r"fn: expected a class of .* given by classes=\[…\], got '.*:Mine'"):
            nd.load(path, classes=classes)
    for classes in ([3], [Mine(KEY)], [dict]):
        with pytest.raises(TypeError, match="classes: expected subclasses of equinox.Module, got"):
            nd.load(path, classes=classes)


@pytest.mark.parametrize("bits", [False, True])
def test_exact_denoisers_come_back(bits, path):
    """With a share that is 0, and a schedule that ends at no signal."""
    if bits:
        denoiser = denoisers.Enumerated([[0, 1], [1, 1], [0, 0]], [0.5, 0.5, 0.0])
        process = nd.ReverseProcess(nd.BinomialDiffusion(schedules.erasing(4), [0.2, 0.5]), denoiser, 2)
    else:
        denoiser = denoisers.GaussianMixture(np.eye(2), [0.5, 2.0], [0.0, 1.0])
        process = nd.ReverseProcess(nd.GaussianDiffusion(schedules.learned(4), 2.0, [1.0, 3.0]), denoiser, 2)
    prior = nd.DiffusionPrior(process)
    prior.save(path)
    assert jax.tree.structure(nd.load(path)) == jax.tree.structure(prior)


def at(*keys, to):
    """Sets one field of the prior's parts, by the path of its modules' fields."""

    def change(description, _):
        node = description["content"]
        for key in keys[:-1]:
            node = node["fields"][key]
        node["fields"][keys[-1]] = to

    return change


def tensor(name, change):
    def changed(description, tensors):
        full = next(key for key in tensors if key.endswith(name))
        tensors[full] = new = change(tensors[full]).copy()

        def reshape(node):
            if isinstance(node, dict):
                if node.get("array") == full:
                    node["shape"] = list(new.shape)
                for each in node.values():
                    reshape(each)
            elif isinstance(node, list):
                for each in node:
                    reshape(each)

        reshape(description["content"])

    return changed


def filled(value):
    return lambda array: np.full_like(array, value)


NETWORK = ("process", "denoiser", "fn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("process", "denoiser", "variance", to="../../etc/passwd"), "process.denoiser.variance: expected Literal"),
        (at("process", "denoiser", "predicts", to="score"), "process.denoiser.predicts: expected Literal"),
        (at("process", "denoiser", "clip", to={"tuple": [3.0, -3.0]}), "process.denoiser: clip: expected"),
        (at("process", "denoiser", "clip", to=3.0), "process.denoiser.clip: expected tuple"),
        (at("process", "diffusion", "schedule", "interpolation", to="no"), "schedule.interpolation: expected Literal"),
        (at(*NETWORK, "activation", to="os.system"), "process: 'os.system'"),
        (at(*NETWORK, "num_steps", to=-1), "process.denoiser.fn.num_steps: expected <class 'int'>, got -1"),
        (at(*NETWORK, "width", to=10**30), "process.denoiser.fn.width: expected <class 'int'>, got 1000"),
        (at(*NETWORK, "width", to=True), "process.denoiser.fn.width: expected <class 'int'>, got True"),
        (at(*NETWORK, "event_shape", to={"tuple": [3]}), "process: .*shape"),
        (at("process", "event_shape", to={"tuple": [3]}), "process: "),
        (at("process", "event_shape", to={"tuple": [-2]}), "process.event_shape: expected tuple"),
        (at("process", "last_step", to=None), "process.last_step: expected .*AbstractLastStep"),
        (at("likelihood", "num_samples", to=3), "likelihood: num_samples: expected an even number"),
        (at("likelihood", "num_samples", to=-4), "likelihood.num_samples: expected <class 'int'>, got -4"),
        (at("likelihood", "num_times", to=99), "num_times: expected at most"),
        (at("likelihood", "chunk", to=0), "likelihood: chunk: expected a whole number of at least 1"),
        (at("sampler", "num_steps", to=1), "sampler: num_steps: expected a whole number of at least 2"),
        (at("sampler", to={"list": []}), "sampler: expected .*AbstractSampler"),
        (at("key_impl", to="no"), "key|impl"),
        (tensor("lift.weight", filled(np.nan)), "process.denoiser.fn.lift.weight: expected finite numbers, got NaN"),
        (tensor("lift.bias", filled(np.inf)), "lift.bias: expected finite numbers"),
        (tensor("lift.weight", np.transpose), "process: "),
        (tensor("lift.weight", np.ravel), "process: "),
        (tensor("_scale", filled(-1.0)), "process.diffusion: scale: expected positive numbers"),
        (tensor("log_snr_table", lambda table: table[::-1]), "schedule.table: expected log-SNR that decreases"),
        (tensor("log_snr_table", filled(np.nan)), "schedule.table: expected log-SNR that decreases"),
        (tensor("times", lambda times: times[:-1]), "schedule.times: expected 5 numbers that increase"),
        (tensor("key_data", lambda data: np.tile(data, 2)), "key"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change, message, saved, path):
    forge(path, saved, change)
    with pytest.raises(CheckpointError, match=message) as error:
        nd.load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_cards_that_are_none(saved, path, capsys):
    forge(path, saved, lambda description, _: description["metadata"].update(card=[1, 2]))
    with pytest.raises(CheckpointError, match=r"expected a card that is a dictionary, got \[1, 2\]"):
        nd.card(path)
    forge(path, saved, lambda description, _: description["metadata"].update(card={"dequantize": "wide"}))
    np.save(path.with_name("data.npy"), np.zeros((3, 2)))
    assert cli.main(["evaluate", str(path), str(path.with_name("data.npy")), "--quiet"]) == 2
    assert "expected a card whose dequantize is a number of at least 0, got 'wide'" in capsys.readouterr().err


def test_deep_json_in_a_folder_of_diffusers(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(CheckpointError, match="model_index.json: expected JSON, got otherwise"):
        nd.load_diffusers(tmp_path)


SCALARS = [None, True, -1, 0, 1, 3, 2**40, 0.5, -2.5, float("nan"), float("inf"), "", "noise", "é\x00", [], {}]
ARRAYS = [np.transpose, np.ravel, filled(np.nan), filled(-1), filled(0), lambda x: x[..., :-1], lambda x: x[None]]


def vary(rng, description, tensors):
    """Change one value anywhere in the content, or exchange two, or change an array and what is said of it."""
    places = []

    def collect(node):
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    collect(description["content"])
    node, key = places[rng.integers(len(places))]
    kind = rng.integers(4)
    if kind == 0:
        node[key] = SCALARS[rng.integers(len(SCALARS))]
    elif kind == 1:
        other, where = places[rng.integers(len(places))]
        node[key] = copy.deepcopy(other[where])
    elif kind == 2:
        del node[key]
    else:
        name = sorted(tensors)[rng.integers(len(tensors))]
        change = ARRAYS[rng.integers(len(ARRAYS))]
        if tensors[name].dtype.kind == "f" and tensors[name].ndim:
            tensor(name, change)(description, tensors)


def check_varied(saved, path, seed, count, look):
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(count):
        forge(path, saved, lambda description, tensors: vary(rng, description, tensors))
        try:
            prior = nd.load(path)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            continue
        if look:  # whatever is accepted is whole: it draws, and has a density
            draw = jax.eval_shape(prior.sample, KEY)
            assert jax.eval_shape(prior.log_prob, draw).shape == () and draw.shape == prior.event_shape
    assert refused > count / 2


def test_varied_files_are_refused_or_whole(saved, path):
    check_varied(saved, path, 0, 25, look=False)


@pytest.mark.slow
def test_many_varied_files(saved, path):
    check_varied(saved, path, 1, 250, look=True)
