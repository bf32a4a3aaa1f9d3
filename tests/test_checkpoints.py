"""Checkpoints: what is written comes back, and anything else is refused with a reason."""
# ruff: noqa: D102, D103 - the names of the tests say what they hold

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from jaxtyping import Array, Float, PyTree

from numpyro_diffusion import _packing
from numpyro_diffusion import checkpoints as ckpt
from numpyro_diffusion.checkpoints import CheckpointError

ARRAY = {"array": "field.w", "dtype": "float32", "shape": [4]}


class Block(eqx.Module):
    """A small network, said to live in the package so that its class is admitted."""

    __module__ = "numpyro_diffusion._test"

    linear: eqx.nn.Linear
    scale: Float[Array, ""]
    activation: str = eqx.field(static=True)
    options: dict[str, int | bool | str | tuple[float, ...] | None] = eqx.field(static=True)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.scale * getattr(jax.nn, self.activation)(self.linear(x))


class Holder(eqx.Module):
    """One field that may hold anything."""

    __module__ = "numpyro_diffusion._test"

    field: PyTree


def make_model() -> Holder:
    options = {"b": 1, "a": True, "c": "é", "d": None, "e": (float("-inf"), 0.1, float("inf"))}
    block = Block(eqx.nn.Linear(3, 3, key=jax.random.key(0)), jnp.array(0.1), "gelu", options)
    arrays = {"mask": jnp.array([True, False]), "half": jnp.array([1.5, -0.0078125], jnp.bfloat16)}
    arrays |= {"counts": np.array([1, -2], np.int32), "scalar": np.float32(0.1), "empty": jnp.zeros((0, 3))}
    arrays["keys"] = jax.random.split(jax.random.key(1, impl="rbg"), 3)
    arrays["strided"] = np.arange(6, dtype=">f8").reshape(2, 3).T
    return Holder((block, arrays, [None, 1, 0.1, float("nan"), {"deep": [(), jnp.arange(3)]}]))


def leaves(tree: PyTree) -> list[tuple[str, type, str, tuple[int, ...], bytes]]:
    """List all that must survive a round trip, bit for bit."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        kind, dtype = type(leaf), leaf.dtype.name if hasattr(leaf, "dtype") else ""
        array = np.asarray(jax.random.key_data(leaf) if dtype.startswith("key") else leaf)
        values = array.astype(array.dtype.newbyteorder("<")).tobytes()
        found.append((jax.tree_util.keystr(path), kind, dtype, array.shape, values))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    """Write a file with a small module."""
    ckpt.write_module(path, Holder({"w": jnp.arange(4.0), "b": jnp.ones(2)}), metadata={"epochs": 3})
    return path


def test_a_module_comes_back_bit_for_bit(path: Path) -> None:
    model, metadata = make_model(), {"loss": [1.0, float("inf"), 0.1], "name": "é", "deep": {"n": None}}
    ckpt.write_module(path, model, metadata=metadata)
    back, kept = ckpt.read_module(path)
    assert kept == metadata and leaves(back) == leaves(model)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    assert list(back.field[0].options.items()) == list(model.field[0].options.items())
    assert jax.random.key_impl(back.field[1]["keys"]) == "rbg"
    x = jnp.array([0.3, -0.2, 0.1])
    assert eqx.filter_jit(back.field[0])(x).tobytes() == eqx.filter_jit(model.field[0])(x).tobytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 0)])
def test_storage_dtypes(path: Path, dtype: str, tolerance: float) -> None:
    model = make_model()
    ckpt.write_module(path, model, dtype=dtype)
    back, _ = ckpt.read_module(path)
    weights = [tree.field[0].linear.weight for tree in (back, model)]
    np.testing.assert_allclose(*weights, rtol=tolerance, atol=tolerance)
    assert weights[0].dtype == back.field[1]["half"].dtype == back.field[1]["strided"].dtype == "float32"
    assert back.field[1]["counts"].dtype == "int32" and back.field[1]["mask"].dtype == bool
    with safetensors.safe_open(path, "np") as file:
        assert file.get_tensor("field.0.linear.weight").dtype == dtype


def test_numbers_and_dtypes_that_do_not_fit(path: Path) -> None:
    ckpt.write_module(path, Holder(jnp.array([[jnp.inf, 6e4]])), dtype="float16")
    with pytest.raises(ValueError, match="field: expected numbers in the range of float16"):
        ckpt.write_module(path, Holder(jnp.array([[1e5]])), dtype="float16")
    with pytest.raises(ValueError, match="dtype: expected None, 'float32' or 'float16', got 'int8'"):
        ckpt.write_module(path, Holder(None), dtype="int8")
    with jax.enable_x64(True):
        ckpt.write_module(path, Holder(value := jnp.array([0.1, 1e300])))
        assert leaves(ckpt.read_module(path)[0].field) == leaves(value)
    with pytest.raises(CheckpointError, match="field: expected jax_enable_x64 to be on .* float64"):
        ckpt.read_module(path)


def test_describe_reads_the_header_alone(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-1] + b"!")
    description = ckpt.describe(saved)
    assert description.items() >= {"format_version": 1, "kind": "module", "metadata": {"epochs": 3}}.items()
    assert description["content"]["module"] == "numpyro_diffusion._test:Holder"
    assert description["content"]["fields"]["field"]["dict"]["w"] == ARRAY


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [0, jax.nn.one_hot]}, "field.a.1: expected .* activation of jax.nn, .* got .*one_hot"),
        (lambda x: x, "field: expected .* got .*function"),
        (optax.EmptyState(), "field: expected .* got .*EmptyState"),
        ({1: 2}, "field: expected .* dict with string keys"),
        (eqx.filter_jit(abs), "field: expected .* or module, got .*Jit"),
        (eqx.nn.Lambda(lambda x: x), "field.fn: expected"),
        (np.array([1j]), "field: expected an array of .* got complex128"),
        (np.ma.masked_array([1.0], [True]), "field: expected .* got .*MaskedArray"),
    ],
)
def test_what_cannot_be_described_is_named(path: Path, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ckpt.write_module(path, Holder(value))
    assert not os.listdir(path.parent)


def test_other_refusals_to_write(path: Path) -> None:
    with pytest.raises(TypeError, match="module: expected an equinox.Module, got <class 'dict'>"):
        ckpt.write_module(path, {"a": 1})
    with pytest.raises(TypeError, match="metadata: expected what JSON can hold, .*ndarray"):
        ckpt.write_module(path, Holder(None), metadata={"loss": [np.zeros(1)]})
    with pytest.raises(ValueError, match="field.a.b: expected one array of this name, got two"):
        ckpt.write_module(path, Holder({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}))
    with pytest.raises(FileNotFoundError, match="expected a file in a folder that exists"):
        ckpt.write_module(path.parent / "nowhere" / "file", Holder(None))


def test_missing_and_foreign_files(path: Path) -> None:
    for read in (ckpt.read_module, ckpt.describe, lambda path: ckpt.read_training_state(path, {})):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file \(working folder"):
            read(path)
    for data in (b"", b"text", b"some longer text, no tensors\n" * 9, pickle.dumps({"a": 1})):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors file"):
            ckpt.read_module(path)
    for header in (None, {"format": "pt"}):
        safetensors.numpy.save_file({"w": np.ones(2)}, path, header)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: another program's file"):
            ckpt.read_module(path)


def test_cuts_and_flipped_bits_are_refused_wherever_they_are(saved: Path) -> None:
    data, expected, harmless = saved.read_bytes(), leaves(ckpt.read_module(saved)[0]), 0
    for length in [*range(0, len(data), 37), len(data) - 1]:
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="not a safetensors file, damaged or cut short"):
            ckpt.read_module(saved)
    tensors = len(data) - 24
    for position in [*range(0, tensors, 3), *range(tensors, len(data))]:
        saved.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
        try:
            back, _ = ckpt.read_module(saved)
        except CheckpointError as error:
            assert position < tensors or "tensors: expected the recorded sha256" in str(error)
        else:
            assert position < tensors and leaves(back) == expected
            harmless += 1
    assert harmless <= 8  # the blanks that pad the header


DEEP = json.loads('{"list": [' * 400 + "]}" * 400)
CLASSES = ["os:system", "numpy:ndarray", "builtins:eval", "equinox:Module", "equinox._jit:_JitWrapper"]
CLASSES += ["numpyro_diffusion._test:No", "numpyro_diffusion.checkpoints:CheckpointError"]
CONTENTS = [
    3,
    [],
    {},
    {"module": 3, "fields": {}},
    {"dict": {}},
    {"tuple": {}},
    {"pickle": "gASV"},
    DEEP,
]
CONTENTS += [
    ARRAY | {"dtype": "object"},
    ARRAY | {"array": 1},
    *(ARRAY | {"key": k} for k in ("no", "rbg", [])),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t, h: h.update(format_version="2"), r"at most 1 \(upgrade numpyro_diffusion\), got 2"),
        (lambda d, t, h: h.update(format_version="one"), "header: .*damaged or edited"),
        (lambda d, t, h: d.pop("kind"), "KeyError.'kind'"),
        (lambda d, t, h: d["content"]["fields"].pop("field"), r"unlike .*: missing \['field'\]"),
        (lambda d, t, h: d["content"]["fields"].update(__class__=1), r"left over \['__class__'\]"),
        (lambda d, t, h: t.pop("field.w"), "field.w: expected a tensor 'field.w', float32 .* got none"),
        (lambda d, t, h: t.update(extra=np.ones(1)), r"missing none, left over \['extra'\]"),
        (lambda d, t, h: t.update({"field.w": np.ones(3, "f4")}), r"shape \[4\], got .* shape \[3\]"),
        (lambda d, t, h: t.update({"field.w": np.ones(4)}), "float32 of shape .4., got float64 of shape .4."),
        *((lambda d, t, h, c=c: d["content"].update(module=c), f"a class of .* got '{c}'") for c in CLASSES),
        *((lambda d, t, h, c=c: d.update(content=c), r"^\S*model\.safetensors: ") for c in CONTENTS),
    ],
)
def test_forged_files_are_refused(saved: Path, change: Callable[..., object], message: str) -> None:
    with safetensors.safe_open(saved, "np") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    description = json.loads(header["description"])
    change(description, tensors, header)
    # All checksums are made right again, so that only the content is left to object to.
    text = json.dumps(description | {"sha256": ckpt._digest(tensors)})
    header |= {"description": text, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.numpy.save_file(tensors, saved, header)
    with pytest.raises(CheckpointError, match=message):
        ckpt.read_module(saved)


@pytest.mark.parametrize("target", ["os.replace", "os.fsync", "safetensors.numpy.save"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(saved: Path, target: str, error: type[BaseException]) -> None:
    before = saved.read_bytes()
    with mock.patch(target, side_effect=error), pytest.raises(error):
        ckpt.write_module(saved, Holder(1))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_writing_follows_links_and_keeps_default_permissions(saved: Path) -> None:
    link, plain = saved.with_name("latest"), saved.with_name("plain")
    link.symlink_to(saved.name)
    plain.touch()
    ckpt.write_module(link, Holder(1))
    assert link.is_symlink() and ckpt.read_module(saved)[0].field == 1
    assert saved.stat().st_mode == plain.stat().st_mode


def make_state(seed: int) -> PyTree:
    params = {"w": jnp.array([0.1, 0.2]) * seed, "low": [jnp.array(0.3, jnp.bfloat16) * seed]}
    _, adam = optax.adam(1e-3).update(params, optax.adam(1e-3).init(params))
    odd = jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]) * seed
    return [params, adam, odd, jax.random.key(seed), seed, 0.1 * seed, jax.nn.relu if seed else abs]


def test_a_training_state_comes_back_bit_for_bit(path: Path) -> None:
    state, metadata = make_state(3), {"step": 7, "losses": [1.0, float("inf"), 0.1]}
    ckpt.write_training_state(path, state, metadata=metadata)
    for like in (make_state(0), eqx.filter_eval_shape(make_state, 1)[:4] + make_state(0)[4:]):
        back, kept = ckpt.read_training_state(path, like)
        assert leaves(back[:-1]) == leaves(state[:-1]) and back[-1] is abs
        assert kept == metadata and jax.tree.structure(back) == jax.tree.structure(state)
    with pytest.raises(CheckpointError, match="kind: expected module, got training state"):
        ckpt.read_module(path)
    ckpt.write_training_state(path, jnp.arange(3))
    np.testing.assert_array_equal(ckpt.read_training_state(path, jnp.zeros(3, jnp.int32))[0], [0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": jnp.ones(3, jnp.int32)}, r"\['w'\]: int32\[3\].*left over .*float32\[2\]"),
        ({"k": jax.random.key(0, impl="rbg")}, r"key<rbg>\[\].*left over .*key<fry>"),
        ({"k": None}, r"missing none, left over .*\['k'\]"),
        ({"v": 1}, r"missing .*\['v'\]: int.*left over none"),
    ],
)
def test_a_template_of_another_structure(path: Path, change: PyTree, message: str) -> None:
    state = {"w": jnp.ones(2), "k": jax.random.key(0)}
    ckpt.write_training_state(path, state)
    with pytest.raises(CheckpointError, match=message):
        ckpt.read_training_state(path, state | change)


def test_a_training_state_loses_nothing_in_silence(path: Path) -> None:
    for leaf in (1j, b"bytes", np.array([1j]), np.ma.masked_array([1.0], [True])):
        with pytest.raises(TypeError, match=r"\['a'\]\[0\]: expected"):
            ckpt.write_training_state(path, {"a": [leaf]})


def test_classes_that_moved_are_found_under_their_old_names():
    known, moved = _packing._known_classes(), _packing._MOVED
    assert {old: known.get(old) for old in moved} == {old: known[new] for old, new in moved.items()}
