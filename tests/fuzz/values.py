"""Random values and bytes, most of them nearly valid: what breaks a reader differs in few places from that."""

from __future__ import annotations

import gzip
import json
import zlib
from random import Random
from typing import Any

TEXTS = (
    *(
        "",
        " ",
        "wf_1",
        "ex_1",
        "running",
        "completed",
        "execution.failed",
        "é",
        "\0",
        "\x1b[31m",
        "\x07",
        "\u202e",
        "\x9b2J",
    ),
    *(
        "\ud800",
        "\ufeff",
        "a" * 5000,
        "../..",
        "%2e%2e",
        "<b>",
        "=1+1",
        "{x}",
        "{execution_id}",
        "0",
        "-1",
        "1e999",
        "NaN",
    ),
    *("null", "true", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "12:.0", "P1D"),
    *("https://xn--/", "http://[", "?page=2", "//evil.test", "\r\nX: y", "日本語", "\U0001f600", "²", "٣٣٣٣٣٣٣٣٣"),
)
NUMBERS = (
    *(0, 1, -1, 5, 2**31, 2**63, 10**400, -(10**30), 0.5, 1e308, -0.0),
    *(float("inf"), float("-inf"), float("nan")),
)
CHARSETS = ("utf-8", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig")


def text(random: Random) -> str:
    """Return a text that is odd more often than not."""
    if random.random() < 0.7:
        return random.choice(TEXTS)
    return "".join(chr(random.choice((random.randrange(32, 127), random.randrange(0x11000)))) for _ in range(5))


def value(random: Random, depth: int = 3) -> Any:
    """Return a value from JSON."""
    kind = random.randrange(8 if depth else 5)
    if kind < 2:
        return text(random)
    if kind == 2:
        return random.choice(NUMBERS)
    if kind < 5:
        return random.choice((None, True, False, "", 0))
    if kind == 7:
        return _deep(random.choice((1, 30, 99, 101, 400)))
    inner = [value(random, depth - 1) for _ in range(random.randrange(4))]
    return inner if kind == 5 else {text(random): each for each in inner}


def _deep(levels: int) -> Any:
    nested: Any = 1
    for _ in range(levels):
        nested = [nested]
    return nested


def changed(random: Random, source: dict[str, Any], changes: int = 3) -> dict[str, Any]:
    """Return an object with some fields replaced, renamed, repeated or removed."""
    result = dict(source)
    for _ in range(random.randrange(changes + 1)):
        name = random.choice([*result, "extra"])
        action = random.randrange(4)
        if action < 2:
            result[name] = value(random)
        elif action == 2:
            result[text(random)] = result.pop(name, None)
        else:
            result.pop(name, None)
    return result


def encoded(random: Random, content: Any) -> bytes:
    """Return a value as JSON, in one of several forms and charsets."""
    form = random.choice(({}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}))
    return json.dumps(content, **form).encode(random.choice(CHARSETS), "ignore")


def damaged(random: Random, content: bytes) -> bytes:
    """Return bytes with a few of them cut, changed or inserted."""
    result = bytearray(content)
    for _ in range(random.randrange(4)):
        at = random.randrange(len(result) + 1)
        action = random.randrange(4)
        if action == 0:
            del result[at:]
        elif action == 1:
            result[at:at] = random.choice(
                (b"\0", b"\xff\xfe", b"[" * 2000, b'"', b"\\u", b"\\ud800", b",", b"{", b"\x80")
            )
        elif action == 2 and at < len(result):
            result[at] = random.randrange(256)
        else:
            del result[at : at + random.randrange(9)]
    return bytes(result)


def compressed(random: Random, content: bytes) -> tuple[str, bytes]:
    """Return a content coding and the bytes in it, or nearly so."""
    coding = random.choice(("gzip", "deflate", "gzip, gzip", "br", "identity", "\xe9", "x-gzip"))
    packed = zlib.compress(content) if coding == "deflate" else gzip.compress(content, mtime=0)
    return coding, packed if random.random() < 0.8 else damaged(random, packed)
