"""Text that is safe to show and values that are safe to store, whatever a server or a person put into them."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast
from unicodedata import category

T = TypeVar("T")

# PostgreSQL stores neither, and UTF-8 has no code for the second kind.
NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""Return text with control, bidirectional and other invisible characters as JSON escapes, such as `\u001b`.

    :param keep: characters that stay as they are
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or category(c) == "Zs" else json.dumps(c)[1:-1] for c in text)


def storable(value: T) -> T:
    """Return a value from JSON as every database and XCom backend stores it.

    NaN and the infinities, which JSON lacks, become None; NUL and lone surrogates become U+FFFD.
    """
    stored: Any = value
    if isinstance(value, str):
        stored = NOT_STORABLE.sub("\ufffd", value)
    elif isinstance(value, float):
        stored = value if math.isfinite(value) else None
    elif isinstance(value, Mapping):
        stored = {NOT_STORABLE.sub("\ufffd", name): storable(each) for name, each in value.items()}
    elif isinstance(value, list):
        stored = [storable(each) for each in value]
    return cast("T", stored)


class _Printable(logging.Filter):
    """Escapes the messages of a logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        escaped = printable(message, keep="\n")
        if escaped != message:
            record.msg, record.args = escaped, None
        return True


_ESCAPES = _Printable()


def get_logger(name: str) -> logging.Logger:
    """Return a logger whose messages are printable."""
    logger = logging.getLogger(name)
    logger.addFilter(_ESCAPES)
    return logger
