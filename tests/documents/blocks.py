"""The code blocks of the documents, and what a comment above one says about running it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"(?:^ *<!-- block: (?P<note>.+?) -->\n(?:\n)?)?^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# What a program prints, a tree or an address: not code.
PLAIN = "text"


@dataclass(frozen=True)
class Block:
    """A code block.

    :param name: the document and the line
    :param language: what the fence says
    :param code: the code
    :param skip: why it isn't run; "" for one that is
    :param state: the state in which its DAG ends
    :param elsewhere: a workflow that somebody else starts while the block waits for its next execution
    """

    name: str
    language: str
    code: str
    skip: str = ""
    state: str = "success"
    elsewhere: str = ""


def documents() -> list[Path]:
    """Return the documents that have code."""
    return [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> Iterator[Block]:
    """Yield the code blocks of a document.

    `<!-- block: skip=REASON -->` above a block says why it can't be run. `state=failed` says how its DAG ends, and
    `elsewhere=wf_123` which workflow somebody else starts meanwhile.
    """
    text = path.read_text()
    for found in FENCE.finditer(text):
        if found["language"] == PLAIN:
            continue
        line = text.count("\n", 0, found.start("code"))
        name, _, value = (found["note"] or "").partition("=")
        assert name in ("", "skip", "state", "elsewhere"), f"{path.name}:{line}: {name}"
        note = {name: value} if name else {}
        yield Block(f"{path.relative_to(ROOT)}:{line}", found["language"], dedent(found["code"]), **note)


def all_blocks() -> list[Block]:
    """Return the code blocks of all documents."""
    return [block for path in documents() for block in blocks(path)]
