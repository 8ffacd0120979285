"""Frozen dataclasses as JSON objects and back, for changes that run where a store keeps its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_hints = cache(get_type_hints)


def build(kind: type[T], value: object) -> T:
    """Return a value of a type from JSON; numbers may be infinite, and fields with a default may be missing.

    :param kind: a dataclass, an enumeration, a scalar, `tuple[X, ...]`, or one of these or None
    :raises ValueError: the value has another form, or is NaN
    """
    result: T = _build(kind, value)
    return result


def _build(kind: Any, value: Any) -> Any:
    accepted = get_args(kind) or (kind,)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_build(accepted[0], each) for each in value)
    if value is None and type(None) in accepted:
        return None
    kind = accepted[0]
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _build_fields(kind, value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    number = float(value) if kind is float and type(value) is int else value
    if type(number) is kind and number == number:  # noqa: PLR0124 - NaN differs from itself
        return number
    raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")


def _build_fields(kind: Any, value: Mapping[str, Any]) -> Any:
    fields = {name: _build(hint, value[name]) for name, hint in _hints(kind).items() if name in value}
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
