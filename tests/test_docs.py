"""The code in the README and in the guide runs, and both commands of the README can be found by CI."""

import importlib.util
import inspect
import math
import os
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import checkpoints

ROOT = Path(__file__).parent.parent


DOCS_WITH_CODE = ("guide", "own_data", "arviz", "conditional", "several_priors", "extending")
PAGES_WITH_CODE = ["README.md", *(f"docs/{page}.md" for page in DOCS_WITH_CODE)]


CODE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def blocks(page):
    """Pairs of code and of what it prints, empty unless a block of text follows; one with an ellipsis is an extract."""
    return CODE.findall((ROOT / page).read_text(encoding="utf-8"))


def alike(printed, shown):
    """The same words, and numbers that differ by at most 0.2 or 10%, as runs of few particles do on other machines."""
    numbers = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=False)
    close = all(math.isclose(float(a), float(b), rel_tol=0.1, abs_tol=0.2) for a, b in numbers)
    return close and NUMBER.sub("0", printed).split() == NUMBER.sub("0", shown).split()


@pytest.fixture
def learned_briefly(shared_file, monkeypatch):
    """`fit_prior` with fewer steps: how good a prior gets is for other tests. What two pages learn is learned once."""
    whole = nd.fit_prior

    def fit_prior(key, data, **options):
        if options != {"progress_bar": False}:
            return whole(key, data, **({"max_steps": 200} | options))
        learn = lambda path: whole(key, data, max_steps=200, **options).save(path)
        name = f"{checkpoints.digest(key)}-{checkpoints.digest(jnp.asarray(data))}.safetensors"
        return nd.load(shared_file(name, learn))

    monkeypatch.setattr(nd, "fit_prior", fit_prior)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_code_runs(page, tmp_path, monkeypatch, learned_briefly, request, capsys):
    """All of it, but that what is learned is learned briefly; and prints what the page shows."""
    if page in ("README.md", "docs/own_data.md"):  # their chains compute for longer than they compile
        request.getfixturevalue("optimised")
    monkeypatch.chdir(tmp_path)
    code = blocks(page)
    assert code
    namespace = {"__name__": "page"}
    for number, (block, shown) in enumerate(code, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)
        printed = capsys.readouterr().out
        assert not shown or "…" in shown or alike(printed, shown), f"{page}, block {number} prints:\n{printed}"
    assert not os.listdir(tmp_path)


def test_what_pages_show_is_compared():
    said = "log evidence -1.234 ± 0.020 nats"
    assert alike(said, "log evidence -1.25 ± 0.02 nats") and any(shown for _, shown in blocks("docs/guide.md"))
    assert not alike(said, "log evidence -1.75 ± 0.02 nats") and not alike(said, "log evidence -1.25 ± 0.02")


@pytest.mark.parametrize("command", ["demo", "test"])
def test_readme_commands_are_one_line(command):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"<!-- ci:{command} -->\n```sh\n(.*?)```", readme, re.DOTALL)
    assert len(found) == 1
    assert found[0].count("\n") == 1


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
)
def test_local_links_lead_somewhere(page):
    file = ROOT / page
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)\)", file.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (file.parent / link).exists()]
    assert not missing


def _check_prose():
    spec = importlib.util.spec_from_file_location("check_prose", ROOT / "docs/check_prose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_users_have_three_times_the_words_of_history():
    """Tutorials, first steps and how-tos, as the front page lists them, beside the pages of development."""
    front = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    parts = re.findall(r"\{toctree\}\n:caption: (.*?)\n:hidden:\n\n(.*?)```", front, re.DOTALL)
    files = {part: [ROOT / f"docs/{name}.md" for name in names.split()] for part, names in parts}
    count = lambda pages: sum(len(re.findall(r"[^\W\d_][\w'’-]*", page.read_text(encoding="utf-8"))) for page in pages)
    users = {*files["Start"], *files["How to"], *ROOT.glob("docs/tutorials/*.md")}
    history = set(ROOT.glob("docs/development/*.md"))
    assert set(files["Development"]) == history
    assert count(users) >= 3 * count(history)


def test_tables_have_a_rule_for_every_column():
    """Else they are printed as they are written."""
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        lines = page.read_text(encoding="utf-8").splitlines()
        for header, rule in zip(lines, lines[1:], strict=False):
            if set(rule) <= set("|-: ") and rule.startswith("|--"):
                assert header.count("|") == rule.count("|"), f"{page.name}: {header}"


def test_prose_is_plain():
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    findings = _check_prose().findings
    assert not {page.name: found for page in pages if (found := findings(page.read_text(encoding="utf-8")))}


@pytest.mark.parametrize("text", ["It is is so.", "This is obviously right.", "word " * 51 + ".", "- " + "item " * 51])
def test_prose_that_is_not_plain_is_found(text):
    check = _check_prose()
    assert len(check.findings(text)) > 0
    assert not check.findings(f"Plain.\n\n```python\n{text}\n```\n\nAnd plain again.")


def test_the_bibtex_entry_says_what_the_citation_file_says():
    entry = re.search(r"```bibtex\n(.*?)```", (ROOT / "docs/citing.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    said = {
        name: re.search(rf"^(?:  - )?{name}: \"?(.*?)\"?$", cited, re.MULTILINE)[1]
        for name in ("title", "name", "version")
    }
    assert said["version"] == nd.__version__
    for name, value in said.items():
        assert re.search(rf"^  \w+ *= {{+{re.escape(value)}}}+,$", entry, re.MULTILINE), f"{name}: expected {value!r}"


MODULES = """training schedules denoisers networks likelihoods factors twists samplers datasets infer diagnostics
    plots incomplete transforms"""


def _public(module):
    """Classes and functions that a user may import from a module of ours."""
    for name in dir(module):
        found = getattr(module, name)
        ours = (getattr(found, "__module__", None) or "").startswith(nd.__name__)
        if ours and not name.startswith("_") and (inspect.isclass(found) or inspect.isfunction(found)):
            yield name, found


def test_every_public_name_has_a_page():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    listed = {}
    for module, names in re.findall(r"currentmodule:: (\S+)\n.*?:nosignatures:\n\n(.*?)```", text, re.DOTALL):
        listed.setdefault(module, set()).update(names.split())
    top = {id(found) for _, found in _public(nd)}
    missing = {name for name, _ in _public(nd)} - listed[nd.__name__]
    for part in MODULES.split():
        name = f"{nd.__name__}.{part}"
        module = importlib.import_module(name)
        missing |= {f"{part}.{n}" for n, x in _public(module) if id(x) not in top and n not in listed.get(name, set())}
    assert not missing, f"docs/api.md: expected these names too: {sorted(missing)}"
    for module, names in listed.items():
        found = importlib.import_module(module)
        gone = sorted(name for name in names if not hasattr(found, name))
        assert not gone, f"docs/api.md: {module} has no {gone}"
