"""Do the links between the pages of a built site lead to files, and to places in them, that are there?

python docs/check_links.py site
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the names of its places."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ids, references and sources."""
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.places.add(value)
            elif value and (tag, name) in (("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")):
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """Each dead link, as page and target."""
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    found = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            place = unquote(parts.fragment)
            missing = not target.exists() or (place and target in pages and place not in pages[target].places)
            if missing:
                found.append(f"{file.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    dead = broken(Path(sys.argv[1]))
    print("\n".join(dead) or "all links between pages lead somewhere")
    sys.exit(bool(dead))
