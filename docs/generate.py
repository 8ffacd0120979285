"""Fill in the parts of the documents that repeat what the package says: `generate.py`, or `generate.py --check`.

Such a part stands between `<!-- generated: settings -->` and `<!-- end -->`. `settings` and `fields` are tables from
the provider's metadata. The name of a file in `dags_examples` is that file without its docstring.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

from techflow_provider.get_provider_info import get_provider_info

ROOT = Path(__file__).resolve().parents[1]
PARTS = re.compile(
    r"^( *)<!-- generated: (\S+) -->\n\n?(<!-- block: .*? -->\n|).*?^ *<!-- end -->$", re.DOTALL | re.MULTILINE
)


def settings_table() -> str:
    """Return the section `[techflow]` of Airflow's configuration as a table."""
    rows = ["| setting | meaning | default | example |", "|---|---|---|---|"]
    for name, option in get_provider_info()["config"]["techflow"]["options"].items():
        shown = [f"`{option[each]}`" if option[each] else "" for each in ("default", "example")]
        rows.append(f"| `{name}` | {escaped(option['description'])} | {' | '.join(shown)} |")
    return "\n".join(rows)


def fields_table() -> str:
    """Return the fields of the connection's extra as a table."""
    (kind,) = get_provider_info()["connection-types"]
    rows = ["| extra | in the form | meaning | values |", "|---|---|---|---|"]
    for name, field in kind["conn-fields"].items():
        meaning = escaped(field["description"])
        rows.append(f"| `{name}` | {field['label']} | {meaning} | {values(field['schema'])} |")
    return "\n".join(rows)


def values(schema: dict[str, Any]) -> str:
    """Return what a field accepts."""
    if "minimum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    return "text, masked" if schema.get("format") == "password" else "text"


def escaped(text: str) -> str:
    """Return text for a cell of a table, with code for what isn't prose."""
    text = text.replace("|", "\\|")
    return re.sub(r"(?<![\w`])([^\s(]*(?:://|\{|_)[^\s,;]*[^\s,;:.)])", r"`\1`", text)


def example(name: str) -> str:
    """Return an example DAG without its docstring, which the page says in its own words."""
    text = (ROOT / "dags_examples" / name).read_text()
    first = ast.parse(text).body[0]
    code = "".join(text.splitlines(keepends=True)[first.end_lineno :]).strip()
    return f"```python\n{code}\n```"


TABLES = {"settings": settings_table, "fields": fields_table}


def filled(text: str) -> str:
    """Return a document with its generated parts as they have to be."""

    def part(found: re.Match[str]) -> str:
        margin, name, note = found.groups()
        content = TABLES[name]() if name in TABLES else example(name)
        return indent(f"<!-- generated: {name} -->\n\n{note}{content}\n\n<!-- end -->", margin)

    return PARTS.sub(part, text)


def main(*arguments: str) -> int:
    """Fill in all documents, or return 1 if one isn't as it has to be."""
    stale = 0
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = path.read_text()
        if (wanted := filled(text)) == text:
            continue
        stale += 1
        if arguments:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run `python docs/generate.py`\n")
        else:
            path.write_text(wanted)
    return int(bool(arguments and stale))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
