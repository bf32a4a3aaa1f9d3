"""Image data sets: generated ones against their laws, readers on files that the tests make."""

import gzip
import importlib.util
import pickle
import struct
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from refusals import refused
from scipy.integrate import quad

from numpyro_diffusion import datasets


def _overlap(r: float, h: float) -> float:
    """Area that two disks of radius r share whose centres are h apart."""
    if h >= 2 * r:
        return 0.0
    return 2 * r * r * np.arccos(h / (2 * r)) - h / 2 * np.sqrt(4 * r * r - h * h)


def _correlation(h: float, low: float, high: float) -> float:
    """Of two pixels h apart: the probability that the first disk that covers either of them covers both."""
    shared, one = (quad(lambda r, h=h: r**-3 * _overlap(r, h), max(low, h / 2), high)[0] for h in (h, 0.0))
    return shared / (2 * one - shared)


@pytest.mark.slow
def test_dead_leaves_have_the_law_of_the_infinite_process() -> None:
    """Grey levels are uniform, and neighbours share a disk as often as they must: in the middle and at the border."""
    size, low, high = 12, 1.0, 8.0
    x = np.asarray(datasets.dead_leaves(jax.random.key(0), 2000, size, min_radius=low, max_radius=high), np.float64)
    assert x.shape == (2000, size, size) and 0 <= x.min() and x.max() < 1
    z = (x - 0.5) * np.sqrt(12)
    moments = {"mean": (z, 0.0), "variance": (z**2, 1.0)}
    for h in (1, 3, 6):
        moments[f"across, {h}"] = (z[:, :, h:] * z[:, :, :-h], _correlation(h, low, high))
        moments[f"down, at the left border, {h}"] = (z[:, h:, 0] * z[:, :-h, 0], _correlation(h, low, high))
    moments["diagonal"] = (z[:, 3:, 3:] * z[:, :-3, :-3], _correlation(3 * np.sqrt(2), low, high))
    moments["diagonal at a corner"] = (z[:, 3, 3] * z[:, 0, 0], _correlation(3 * np.sqrt(2), low, high))
    for name, (values, expected) in moments.items():
        each = values.reshape(2000, -1).mean(axis=1)
        assert abs(each.mean() - expected) < 4 * each.std() / np.sqrt(2000), name


def test_dead_leaves_in_colour_and_bad_arguments() -> None:
    """Three levels for each disk, and errors that name the argument."""
    x = np.asarray(datasets.dead_leaves(jax.random.key(1), 2, 6, colours=True))
    assert x.shape == (2, 6, 6, 3) and np.ptp(x, axis=-1).min() > 0
    flat = x.reshape(2, -1, 3)
    assert all(len(np.unique(one, axis=0)) == len(np.unique(one[:, 0])) < 36 for one in flat)
    for arguments, message in (
        ({"num": 0}, "num: expected"),
        ({"size": 1.5}, "size: expected"),
        ({"min_radius": 0.0}, "min_radius, max_radius: expected 0 < min_radius"),
        ({"max_radius": 0.5}, r"min_radius, max_radius: .* got 1\.0 and 0\.5"),
    ):
        with refused(message):
            datasets.dead_leaves(jax.random.key(0), **({"num": 1, "size": 4} | arguments))


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    """Idx files like those of MNIST, of 5 and 3 images of 4 × 3 pixels; one of them gzipped."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (count, 4, 3), np.uint8), rng.integers(0, 10, count).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(_idx(labels))
    return tmp_path


def test_mnist_reads_idx_files(mnist_folder) -> None:
    """Shapes, types and values are those that were written."""
    found = datasets.mnist(mnist_folder)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(found.train_images, rng.integers(0, 256, (5, 4, 3), np.uint8))
    np.testing.assert_array_equal(found.train_labels, rng.integers(0, 10, 5))
    assert found.test_images.shape == (3, 4, 3) and found.test_images.dtype == np.uint8
    assert found.test_labels.shape == (3,) and found.test_labels.dtype == np.int32


def test_mnist_says_what_is_wrong_with_a_file(mnist_folder) -> None:
    """Missing, truncated and foreign files are named."""
    labels = mnist_folder / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for bad, message in (
        (whole[:-1], r"expected 13 bytes for shape \(5,\), got 12 \(truncated or damaged\)"),
        (whole + b"!", r"expected 13 bytes for shape \(5,\), got 14"),
        (whole[:6], "expected a header of 8 bytes, got a truncated file of 6"),
        (b"", "expected an idx file, which starts with two zero bytes"),
        (b"\x89PNG and so on", "expected an idx file, which starts with two zero bytes"),
        (b"\0\0\x0d" + whole[3:], "expected an idx file of unsigned bytes .* got type 0x0d"),
        (gzip.compress(whole)[:-9], "expected a whole gzip file, got a damaged or truncated one"),
        (_idx(np.zeros(4, np.uint8)), "expected train images .* and n labels, got"),
    ):
        labels.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            datasets.mnist(mnist_folder)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"folder: expected train-labels-idx1-ubyte or .*\.gz in"):
        datasets.mnist(mnist_folder)
    with pytest.raises(FileNotFoundError, match="folder: expected a folder, got"):
        datasets.mnist(mnist_folder / "nowhere")
    with pytest.raises(TypeError, match="folder: expected a path, got 3"):
        datasets.mnist(3)
    with pytest.raises(ValueError, match="folder, download: expected one of the two, got None and False"):
        datasets.mnist()


def test_mnist_comes_from_openml_only_when_asked(monkeypatch) -> None:
    """By scikit-learn's loader, split where MNIST is."""
    images = np.arange(60_002, dtype=np.float64)[:, None] % 251 * np.ones(784)
    bunch = SimpleNamespace(data=images, target=np.array(["7"] * 60_002, dtype=object))
    asked = []

    def fetch(name, **settings):
        asked.append((name, settings["version"], settings["as_frame"]))
        return bunch

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    found = datasets.mnist(download=True)
    assert asked == [("mnist_784", 1, False)]
    assert found.train_images.shape == (60_000, 28, 28) and found.test_images.shape == (2, 28, 28)
    assert found.test_images[1, 0, 0] == 60_001 % 251 and found.test_images.dtype == np.uint8
    assert found.test_labels.tolist() == [7, 7]


def test_cifar10_reads_the_binary_version_only(tmp_path) -> None:
    """Planes become colours; the pickled version, damaged and missing files are refused with the reason."""
    with pytest.raises(FileNotFoundError, match=r"folder: expected data_batch_1\.bin in"):
        datasets.cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="expected the binary version of CIFAR-10 .* pickles, which can execute code"):
        datasets.cifar10(tmp_path)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        records = rng.integers(0, 256, (2, 3073), np.uint8)
        records[:, 0] = [3, 9]
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    found = datasets.cifar10(tmp_path)
    assert found.train_images.shape == (10, 32, 32, 3) and found.test_images.shape == (2, 32, 32, 3)
    assert found.train_labels.tolist() == [3, 9] * 5 and found.train_images.dtype == np.uint8
    assert found.test_images[1, 4, 7].tolist() == [records[1, 1 + 1024 * c + 32 * 4 + 7] for c in range(3)]
    for data, message in (
        (records.tobytes()[:-1], r"test_batch\.bin: expected whole records of 3,073 bytes, got 6,145"),
        (b"", "expected whole records of 3,073 bytes, got 0"),
        (b"\x0a" + records.tobytes()[1:], "expected classes from 0 to 9, got 10"),
    ):
        (tmp_path / "test_batch.bin").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            datasets.cifar10(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image carries the pictures")
def test_textures_and_photographs_are_held_out_by_place() -> None:
    """Patches are pieces of the pictures, and those for testing come from elsewhere."""
    grass = datasets.textures("grass")
    assert grass.train.shape == (192, 32, 32) and grass.test.shape == (64, 32, 32) and grass.train.dtype == np.uint8
    assert grass.train.std() == pytest.approx(38.6, abs=2)
    dense = datasets.textures("grass", 32, 16).train
    assert dense.shape == (23 * 31, 32, 32)
    np.testing.assert_array_equal(dense[0], grass.train[0])
    np.testing.assert_array_equal(dense[1][:, :16], grass.train[0][:, 16:])
    np.testing.assert_array_equal(dense[2], grass.train[1])
    photographs = datasets.photographs()
    assert photographs.train.shape == (1247, 32, 32, 3) and photographs.test.shape == (476, 32, 32, 3)
    assert photographs.train.dtype == np.uint8 and photographs.train.std() > 40
    with pytest.raises(ValueError, match="name: expected one of 'brick', 'grass', 'gravel', got 'bark'"):
        datasets.textures("bark")
    with pytest.raises(ValueError, match="size: expected at most 128, got 200"):
        datasets.textures("brick", 200)
    with pytest.raises(ValueError, match="stride: expected a whole number"):
        datasets.photographs(stride=0)


def test_missing_pictures_are_said(monkeypatch, tmp_path) -> None:
    """Which package to install, or that this version of it lacks the picture."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"scikit-image: install it with .*numpyro-diffusion\[datasets\]"):
        datasets.textures("brick")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"scikit-image: expected data/astronaut\.png in it"):
        datasets.photographs()
