"""Is the prose of these pages plain? Sentences that are too long, words set twice, filler, and readers told it is easy.

python docs/check_prose.py README.md docs/*.md docs/tutorials/*.md
"""

import re
import sys
from pathlib import Path

LONGEST = 50  # words of a sentence; with more of them readers lose its beginning
NOT_PROSE = re.compile(
    r"\A---\n.*?\n---\n|^`{3}[^\n]*\n.*?^`{3}$|^\$\$.*?^\$\$|^(?:[|#<!]|:{3}|:\w).*?$",
    re.DOTALL | re.MULTILINE,
)
FILLER = re.compile(
    r"\b(?:obviously|clearly|of course|simply|trivially|needless to say|in order to|utilise|it should be noted|"
    r"as is well known|easy to see|and/or|etc\.)",
    re.IGNORECASE,
)
TWICE = re.compile(r"\b([a-z]+)\s+\1\b")


def prose(text: str) -> str:
    """The text without front matter, code, formulas, tables, headings; what stands in backticks is one word."""
    text = NOT_PROSE.sub("\n\n", text)
    text = re.sub(r"`[^`]*`|\$[^$]*\$", "X", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"^ *(?:[-*:]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)


def findings(text: str) -> list[str]:
    """What a reader would stumble over, a line for each."""
    text = prose(text)
    found = []
    for sentence in re.split(r"(?<=[.?!:;])\s+|\n\s*\n", text):
        words = re.findall(r"\w[\w'’-]*", sentence)
        if len(words) > LONGEST:
            found.append(f"{len(words)} words in a sentence: {' '.join(sentence.split())[:90]} …")
    found += [f"a word twice: {match[0]!r}" for match in TWICE.finditer(text)]
    found += [f"filler: {match[0]!r}" for match in FILLER.finditer(text)]
    return found


if __name__ == "__main__":
    said = [f"{page}: {line}" for page in sys.argv[1:] for line in findings(Path(page).read_text(encoding="utf-8"))]
    print("\n".join(said) or "plain enough")
    sys.exit(bool(said))
