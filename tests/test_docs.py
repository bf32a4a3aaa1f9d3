"""The code in the README and in the guide runs, and both commands of the README can be found by CI."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/own_data.md"])
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(page)
    assert code
    namespace = {"__name__": "page"}
    for number, block in enumerate(code, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    assert not os.listdir(tmp_path)


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
