"""Build the site into `.cache/docs`, check its links, and run the code blocks; `--no-blocks` leaves those out.

Warnings are errors. Links within the site must lead to a page and an anchor that exist. Others are checked for form
and, where they lead into the repository, for the file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / ".cache" / "docs"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
README_LINKS = re.compile(r"^\[[^\]]+\]: (\S+)$|\]\(([^)\s]+)\)", re.MULTILINE)
GENERATED = {"genindex.html", "py-modindex.html", "search.html"}


class Page(HTMLParser):
    """The links and anchors of a page.

    :param text: its HTML
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002  # the base class's
        """Collect what an element links to, and how it can be linked to."""
        for name, value in attrs:
            if name in {"href", "src"} and value:
                self.links.add(value)
            if name == "id" and value:
                self.anchors.add(value)


def dead_links() -> tuple[int, list[str]]:
    """Return how many links the site and the README have, and those that lead nowhere."""
    pages = {path: Page(path.read_text()) for path in SITE.rglob("*.html") if path.name not in GENERATED}
    links = [(path, link) for path, page in pages.items() for link in sorted(page.links)]
    dead = [f"{path.relative_to(SITE)}: {link}" for path, link in links if not leads_somewhere(pages, path, link)]
    outside = [link for found in README_LINKS.findall((ROOT / "README.md").read_text()) for link in found if link]
    dead += [f"README.md: {link}" for link in outside if not is_good_address(link)]
    return len(links) + len(outside), dead


def leads_somewhere(pages: dict[Path, Page], path: Path, link: str) -> bool:
    """Whether a link's target exists, as far as that can be seen from here."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme in {"data", "mailto"} or is_good_address(link)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if target not in pages:
        return target.exists()
    return unquote(parts.fragment) in pages[target].anchors


def is_good_address(link: str) -> bool:
    """Whether a link is an absolute https address and, in this repository, leads to a file."""
    parts = urlsplit(link)
    if parts.scheme != "https" or not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc):
        return False
    file = re.match(rf"{re.escape(REPOSITORY)}/(?:blob|raw|edit)/main/([^#?]+)", link)
    return file is None or (ROOT / file[1]).exists()


def steps(*, with_blocks: bool) -> Iterator[list[str | Path]]:
    """Yield the commands of a build."""
    python = Path(sys.executable)
    yield [python, ROOT / "docs" / "generate.py", "--check"]
    yield [python, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html", ROOT / "docs", SITE]
    if with_blocks:
        yield [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "documents"]


def main(*arguments: str) -> int:
    """Build and check everything, and print what was done."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        # Airflow writes its configuration when it is imported, and not into the user's home.
        environment = {**os.environ, "AIRFLOW_HOME": home, "PYTHONPATH": str(ROOT)}
        for command in steps(with_blocks="--no-blocks" not in arguments):
            done = subprocess.run(command, cwd=ROOT, env=environment, check=False)  # noqa: S603  # its own steps
            if done.returncode:
                return done.returncode
    count, dead = dead_links()
    for each in dead:
        sys.stderr.write(f"dead link: {each}\n")
    pages = len(list(SITE.rglob("*.html")))
    sys.stdout.write(
        f"· {pages} pages in {SITE.relative_to(ROOT)}, {count} links, {len(dead)} of them dead, "
        f"0 warnings, {time.monotonic() - began:.0f} s\n"
    )
    return int(bool(dead))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
