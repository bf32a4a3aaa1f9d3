"""Array files on the command line: read, or called what they are, in one line; also when they are damaged at random."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from numpyro_diffusion import cli
from numpyro_diffusion.cli._arrays import read_array
from numpyro_diffusion.cli._tables import read_examples

NUMBERS = np.arange(12.0).reshape(4, 3)


def file(write, *arrays, **named):
    buffer = io.BytesIO()
    write(buffer, *arrays, **named)
    return buffer.getvalue()


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


FILES = {
    "npy": file(np.save, NUMBERS),
    "fortran": file(np.save, NUMBERS.astype(np.float16).T),
    "text array": file(np.save, np.array(["a", "b"])),
    "npz": file(np.savez, x=NUMBERS),
    "compressed": file(np.savez_compressed, x=NUMBERS),
    "two arrays": file(np.savez, x=NUMBERS, y=NUMBERS),
    "text in a zip": zipped(notes="hello"),
    "csv": b"x,y\n1,2\n3,4\n",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "pickle": pickle.dumps([1, 2]),
}


def damaged(rng, data):
    """Bits flipped, bytes written over, taken out or put in, or the end cut off, once or several times."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        data = data or bytearray(b"x")
        at, size = rng.integers(len(data)), int(rng.choice([1, 4, 50]))
        change = rng.integers(6)
        if change == 0:
            data[at] ^= 1 << rng.integers(8)
        elif change == 1:
            data[at] = rng.integers(256)
        elif change == 2:
            del data[at : at + size]
        elif change == 3:
            data[at:at] = rng.bytes(size)
        elif change == 4:
            data[at:at] = rng.choice([b"(", b"9" * 30, b"-1", b"'", b"{", b"[" * 300, b"L"])
        else:
            del data[at:]
    return bytes(data)


def check_damaged(path, seed, count):
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(count):
        path.write_bytes(damaged(rng, FILES[rng.choice(list(FILES))]))
        try:
            assert isinstance(read_array(str(path)), np.ndarray)
        except ValueError as error:
            refused += 1
            said = str(error)
            assert said.startswith(f"{path}: expected an .npy file, or an .npz file of one array (") and len(said) < 400
    assert refused > count / 2


def test_damaged_files_are_refused_and_nothing_else_happens(tmp_path):
    check_damaged(tmp_path / "file", 0, 200)


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    check_damaged(tmp_path / "file", 1, 3000)


@pytest.mark.parametrize("name", ["npy", "npz", "compressed"])
def test_whole_files_are_read(name, tmp_path):
    (tmp_path / "file").write_bytes(FILES[name])
    np.testing.assert_array_equal(read_array(str(tmp_path / "file")), NUMBERS)


HUGE = FILES["npy"].replace(b"(4, 3), }" + b" " * 20, b"(4" + b"0" * 15 + b", 3), }" + b" " * 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (FILES["csv"], "it is a table in text (CSV): numpy.save writes what numpy.loadtxt(…, delimiter=',') reads"),
        (FILES["png"], "it is a PNG picture"),
        (FILES["pickle"], "it is a pickle, which can run any code when it is read, and is not"),
        (FILES["text in a zip"], "it is a zip file that holds 'notes', which is a text file"),
        (FILES["npz"][:-30], "damaged or cut short: File is not a zip file"),
        (zipped(), "expected one array, got 0"),
        (b"", "it is an empty file"),
        (b"words\n", "it is a text file"),
        (b"\x1f\x8b\x08", "it is a gzip file"),
        (b"\x00\x01\x02\x03", "it is of no kind that is known here"),
        (HUGE, "it claims to hold more than fits the memory"),
        (FILES["text array"], "file: expected numbers, got dtype <U1"),
        (file(np.save, 1j * NUMBERS), "file: expected numbers, got dtype complex128"),
    ],
)
def test_other_files_are_called_what_they_are(data, message, tmp_path, capsys):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert cli.main(["fit", str(path), "-o", str(tmp_path / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("numpyro-diffusion: ") and message in said and len(said.splitlines()) == 1


def test_messages_cannot_command_a_terminal(capsys):
    assert cli.main(["fit", "no\x1b[31mfile", "-o", "out"]) == 2
    assert capsys.readouterr().err == "numpyro-diffusion: no\\x1b[31mfile: no such file\n"


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def run(_):
        raise MemoryError("for 1 TB")

    monkeypatch.setattr("numpyro_diffusion.cli.info.run", run)
    assert cli.main(["info", "digits"]) == 1
    assert capsys.readouterr().err == "numpyro-diffusion: not enough memory for 1 TB\n"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sample", "digits", "-o", "out", "-n", "9" * 30])
    assert "expected a whole number below 2**31" in capsys.readouterr().err


# ---- Tables in text


def written(tmp_path, text, name="data.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_in_text_is_read_with_its_names(tmp_path, separator):
    text = separator.join(["height", '"age, in years"']) + "\n1.5" + separator + "2\n\n-3e2" + separator + "NA\n"
    values, columns = read_examples(written(tmp_path, text))
    np.testing.assert_array_equal(values, [[1.5, 2.0], [-300.0, np.nan]])
    assert columns == ("height", "age, in years")
    values, columns = read_examples(written(tmp_path, "1,2\n3,4\r\n"))
    np.testing.assert_array_equal(values, [[1, 2], [3, 4]])
    assert columns is None


def test_columns_are_found_by_their_names(tmp_path):
    path = written(tmp_path, "b,more,a\n1,2,3\n")
    values, columns = read_examples(path, ("a", "b"))
    np.testing.assert_array_equal(values, [[3, 1]])
    assert columns == ("a", "b")
    with pytest.raises(ValueError, match=r"expected the prior's columns \['a', 'c'\], got none called \['c'\]"):
        read_examples(path, ("a", "c"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,red\n", r"expected a number in line 3, column 'b', got 'red'"),
        ("1,2\n3\n", r"expected 2 cells in line 2 as in the first, got 1"),
        ("a,a\n1,2\n", r"expected a name of its own for each column in line 1, got \['a', 'a'\]"),
        ("a,b\n", r"expected rows of numbers below the names, got none"),
        ("", r"got an empty file"),
        (b"a,b\n\xff,2\n", r"expected a table in text \(UTF-8\), got other bytes at 4"),
        ("a,b\n1,\0\n", r"got zero bytes"),
    ],
)
def test_a_table_that_will_not_do_is_refused_by_line_and_column(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_examples(written(tmp_path, text))


def test_a_damaged_table_is_one_clear_line(tmp_path):
    rng = np.random.default_rng(1)
    for number in range(300):
        path = written(tmp_path, damaged(rng, b"height,age\n" + b"1.25,-3e4\n" * 5))
        try:
            read_examples(path)
        except ValueError as error:
            assert path in str(error) and "\n" not in str(error), number


def test_from_a_table_to_draws_with_names_and_back(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(19, 2)) * [1, 10] + [3, 100]
    data = written(tmp_path, "height,age\n" + "\n".join(f"{a},{b}" for a, b in table))
    prior, draws = str(tmp_path / "prior.safetensors"), tmp_path / "draws.csv"
    assert cli.main(["fit", data, "-o", prior, "--quiet"]) == 0
    assert cli.main(["sample", prior, "-n", "50", "-o", str(draws), "--quiet"]) == 0
    values, columns = read_examples(str(draws))
    assert columns == ("height", "age") and values.shape == (50, 2)
    assert abs(values.mean(0)[1] - table.mean(0)[1]) < 6
    swapped = written(tmp_path, "age,height\n" + "\n".join(f"{b},{a}" for a, b in table), "other.csv")
    found = []
    for file in (data, swapped):
        capsys.readouterr()
        assert cli.main(["evaluate", prior, file, "--quiet"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
