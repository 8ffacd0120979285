"""What a command has to say: a value for programs, text for people, and the exit code; and how a table is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from techflow_provider.client.parsing import Json, shorten

LONGEST_CELL = 60


@dataclass(frozen=True, slots=True)
class Report:
    """What a command has to say.

    :param value: for programs, as JSON
    :param text: for people
    :param code: the exit code
    """

    value: Json
    text: str
    code: int = 0

    def shown(self, output: str) -> str:
        """Return what is printed for an `--output`."""
        return json.dumps(self.value, indent=2, ensure_ascii=False) if output == "json" else self.text


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return rows as columns of text; what comes from a server can't move the cursor, and is cut where it is long."""
    if not rows:
        return "none"
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [[column.upper() for column in columns], *cells]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: object) -> str:
    words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "" if value is None else shorten(words, LONGEST_CELL)


def listing(rows: Sequence[dict[str, Json]], columns: Sequence[str]) -> Report:
    """Return a list: all fields for programs, some of them for people."""
    return Report(list(rows), table(rows, columns))


def facts(pairs: Mapping[str, object]) -> str:
    """Return names and values, one pair a line."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}".rstrip() for name, value in pairs.items())
