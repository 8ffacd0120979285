"""Faults as data: what goes wrong, for which requests, how often, and before or after TechFlow has acted.

A fault strikes requests that have passed authentication and the rate limit. The first fault that fits strikes.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, get_args

from techflow_provider.sandbox.messages import Answer, ApiError, Delivery, Json, Object
from techflow_provider.sandbox.record import matches
from techflow_provider.sandbox.settings import SettingError, check_choice, check_count, check_seconds

Kind = Literal[
    "status", "hang", "reset", "drop", "lost_answer", "truncated", "html", "garbage", "slow", "huge", "wrong_length"
]
When = Literal["before", "after"]

# What these do needs the real answer, so TechFlow has acted.
AFTER_ONLY = frozenset({"lost_answer", "truncated", "slow", "huge", "wrong_length"})
BROKEN = {"reset": "reset", "drop": "drop", "lost_answer": "drop", "garbage": "garbage"}
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in to continue</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    :param kind: `status` answers with `status`; `hang` waits `seconds` (by default for ever); `reset` resets the
        connection, `drop` closes it without an answer, `lost_answer` does so after acting; `truncated` cuts the JSON
        body in half, `wrong_length` also announces the other half; `html` is a page with status 200; `garbage` is
        bytes that are no HTTP; `slow` spreads the body over `seconds`; `huge` adds `size` bytes of white space to it
    :param status: the status code of kind `status`; a 429 has no Retry-After unless `retry_after` is given
    :param body: the body of kind `status`, in place of an error object
    :param retry_after: the Retry-After field of kind `status`, as it is sent
    :param method: strikes this HTTP method only
    :param path: strikes these paths below the base URL only; `*` stands for one part, `**` for any number of them
    :param times: how many requests it strikes; None means all
    :param probability: the chance that it strikes a request that fits
    :param when: whether TechFlow acts on the request first; None takes what is usual for the kind
    :param seconds: duration of kind `hang` or `slow`
    :param size: bytes of kind `huge`
    :raises SettingError: a value can't be used
    """

    kind: Kind = "status"
    _: KW_ONLY
    status: int = 500
    body: str | None = field(default=None, repr=False)
    retry_after: str | None = None
    method: str | None = None
    path: str | None = None
    times: int | None = None
    probability: float = 1.0
    when: When | None = None
    seconds: float | None = None
    size: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(Kind))
        check_choice("when", self.when, (None, *get_args(When)))
        if self.kind in AFTER_ONLY and self.when == "before":
            raise SettingError("when", self.when, f"'after' or nothing with kind {self.kind}")
        if self.kind == "slow" and self.seconds is None:
            raise SettingError("seconds", None, "a duration with kind slow")
        if self.seconds is not None:
            check_seconds("seconds", self.seconds, above=self.kind == "slow")
        if self.times is not None:
            check_count("times", self.times)
        check_count("size", self.size)
        self._check_numbers()
        self._check_texts()

    def _check_numbers(self) -> None:
        if isinstance(self.status, bool) or not isinstance(self.status, int) or not 200 <= self.status <= 599:  # noqa: PLR2004
            raise SettingError("status", self.status, "a status code from 200 to 599")
        if isinstance(self.probability, bool) or not isinstance(self.probability, int | float):
            raise SettingError("probability", self.probability, "a number from 0 to 1")
        if not 0 <= self.probability <= 1:
            raise SettingError("probability", self.probability, "a number from 0 to 1")

    def _check_texts(self) -> None:
        for name in ("body", "retry_after", "method", "path"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise SettingError(name, value, "text")
        if self.retry_after is not None and not (self.retry_after.isprintable() and self.retry_after.isascii()):
            raise SettingError("retry_after", self.retry_after, "printable ASCII text")

    @classmethod
    def read(cls, value: Mapping[str, Json]) -> Fault:
        """Read a fault from JSON.

        :raises SettingError: it has an unknown field, or a value can't be used
        """
        names = tuple(each.name for each in dataclasses.fields(cls))
        for name in value:
            check_choice("fault", name, names)
        return cls(**value)  # type: ignore[arg-type]  # the types are checked by the constructor

    def to_dict(self) -> Object:
        """Return the fault as JSON."""
        return dataclasses.asdict(self)

    @property
    def acts(self) -> bool:
        """Whether TechFlow acts on the request."""
        return self.kind in AFTER_ONLY or self.when == "after"

    @property
    def hang_seconds(self) -> float:
        """How long kind `hang` waits."""
        return math.inf if self.seconds is None else self.seconds

    def fits(self, method: str, path: str) -> bool:
        """Whether the fault is for a request."""
        return matches(self.method, self.path, method, path)

    def deliver(self, answer: Answer) -> Delivery:
        """Return what a struck request gets.

        :param answer: the real answer; without meaning when the fault doesn't act
        """
        if self.kind in BROKEN:
            return Delivery(broken=BROKEN[self.kind])
        match self.kind:
            case "status":
                return Delivery(self._status_answer())
            case "html":
                return Delivery(Answer(200, HTML, {"content-type": "text/html; charset=utf-8"}))
            case "slow":
                return Delivery(answer, drip_seconds=self.seconds or 0)
            case "huge":
                return Delivery(answer, padding_bytes=self.size)
        return self._cut(answer)

    def _status_answer(self) -> Answer:
        retry_after = {} if self.retry_after is None else {"retry-after": self.retry_after}
        if self.body is not None:
            return Answer(self.status, self.body.encode(), {"content-type": "application/json", **retry_after})
        return ApiError(self.status, "the sandbox was told to answer so", retry_after).answer()

    def _cut(self, answer: Answer) -> Delivery:
        half = Answer(answer.status, answer.body[: len(answer.body) // 2], answer.headers)
        missing = len(answer.body) - len(half.body) if self.kind == "wrong_length" else 0
        return Delivery(half, missing_bytes=missing)


class Faults:
    """The faults of one sandbox.

    :param seed: makes the chance of faults reproducible
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # chance, not secrecy
        self._active: list[tuple[Fault, list[int]]] = []

    def add(self, fault: Fault) -> Fault:
        """Let something go wrong from now on."""
        self._active.append((fault, [0]))
        return fault

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self._active = []

    def active(self) -> tuple[Fault, ...]:
        """Return the faults that may still strike."""
        return tuple(fault for fault, strikes in self._active if not _spent(fault, strikes))

    def draw(self, method: str, path: str) -> Fault | None:
        """Return the fault that strikes a request, or None."""
        for fault, strikes in self._active:
            if fault.fits(method, path) and not _spent(fault, strikes) and self._random.random() < fault.probability:
                strikes[0] += 1
                return fault
        return None


def _spent(fault: Fault, strikes: list[int]) -> bool:
    return fault.times is not None and strikes[0] >= fault.times
