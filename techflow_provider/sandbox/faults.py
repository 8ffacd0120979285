"""Faults as data: what goes wrong, for which requests, how often, and before or after TechFlow has acted.

Faults apply to requests that have passed authentication and the rate limit. The first fault that matches is used.
"""

from __future__ import annotations

import math
import random
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Annotated, Any, Literal, TypeAlias

from techflow_provider.sandbox.messages import ApiError, Response, matches
from techflow_provider.sandbox.settings import Count, Probability, Rule, Seconds, SettingError, between, check_fields


def _is_header(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and value.isascii()


Status: TypeAlias = Annotated[int, Rule("a status code from 200 to 599", between(200, 599, int))]
Header: TypeAlias = Annotated[str, Rule("printable ASCII characters", _is_header)]
Kind = Literal[
    "status", "hang", "reset", "drop", "lost_response", "truncated", "html", "garbage", "slow", "huge", "wrong_length"
]
# Names of version 0.1.0 that are still accepted.
OldKind = Literal["lost_answer"]
When = Literal["before", "after"]

# These need the real response, so TechFlow has acted.
AFTER_ONLY = frozenset({"lost_response", "truncated", "slow", "huge", "wrong_length"})
BROKEN = {"reset": "reset", "drop": "drop", "lost_response": "drop", "garbage": "garbage"}
HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in to continue</h1></body></html>"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    >>> sandbox.faults.add(Fault("lost_response", path="/workflows/*/execute"))

    :param kind: `status` responds with `status`; `hang` waits `seconds` (by default for ever); `reset` resets the
        connection, `drop` closes it without a response, `lost_response` does so after acting; `truncated` cuts the
        JSON body in half, `wrong_length` also announces the other half; `html` is a page with status 200; `garbage`
        sends bytes that aren't HTTP; `slow` spreads the body over `seconds`; `huge` appends `size` bytes of white space
    :param status: the status code of kind `status`; a 429 has no Retry-After unless `retry_after` is given
    :param body: the body of kind `status`, instead of an error object
    :param retry_after: the Retry-After header of kind `status`, as it is sent
    :param method: applies to this HTTP method only
    :param path: applies to these paths below the base URL only; `*` matches one part, `**` any number of parts
    :param times: the number of requests that it applies to; None means all
    :param probability: the probability that it applies to a matching request
    :param when: whether TechFlow acts on the request first; None uses the default of the kind
    :param seconds: duration of kind `hang` or `slow`
    :param size: bytes of kind `huge`
    :raises SettingError: a value is invalid
    """

    kind: Kind | OldKind = "status"
    _: KW_ONLY
    status: Status = 500
    body: str | None = field(default=None, repr=False)
    retry_after: Header | None = None
    method: str | None = None
    path: str | None = None
    times: Count | None = None
    probability: Probability = 1.0
    when: When | None = None
    seconds: Seconds | None = None
    size: Count = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.kind == "lost_answer":
            object.__setattr__(self, "kind", "lost_response")
        check_fields(self)
        if self.kind in AFTER_ONLY and self.when == "before":
            raise SettingError("when", self.when, f"'after' or nothing with kind {self.kind}")
        if self.kind == "slow" and not 0 < (self.seconds or 0) < math.inf:
            raise SettingError("seconds", self.seconds, "a duration above 0 with kind slow")

    @property
    def acts(self) -> bool:
        """Whether TechFlow acts on the request."""
        return self.kind in AFTER_ONLY or self.when == "after"

    @property
    def hang_seconds(self) -> float:
        """How long kind `hang` waits."""
        return math.inf if self.seconds is None else self.seconds

    def apply(self, response: Response) -> Response:
        """Return what the client gets.

        :param response: the real response; ignored if the fault doesn't act
        """
        match self.kind:
            case "status":
                return self._status_response()
            case "html":
                return Response(200, HTML, {"content-type": "text/html; charset=utf-8"})
            case "slow":
                return replace(response, drip_seconds=self.seconds or 0)
            case "huge":
                return replace(response, padding_bytes=self.size)
            case "truncated" | "wrong_length":
                half = response.body[: len(response.body) // 2]
                missing = len(response.body) - len(half) if self.kind == "wrong_length" else 0
                return replace(response, body=half, missing_bytes=missing)
        return Response(None, broken=BROKEN[self.kind])

    def _status_response(self) -> Response:
        retry_after = {} if self.retry_after is None else {"retry-after": self.retry_after}
        if self.body is not None:
            return Response(self.status, self.body.encode(), {"content-type": "application/json", **retry_after})
        return ApiError(self.status, "the sandbox has a fault that sends this status", retry_after).response()


class Faults:
    """The faults of one sandbox.

    :param seed: makes probabilities reproducible
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # not for secrets
        self._faults: list[tuple[Fault, list[int]]] = []

    def add(self, fault: Fault) -> Fault:
        """Apply a fault from now on."""
        self._faults.append((fault, [0]))
        return fault

    def clear(self) -> None:
        """Remove all faults."""
        self._faults = []

    def active(self) -> tuple[Fault, ...]:
        """Return the faults that may still apply."""
        return tuple(fault for fault, matched in self._faults if not _is_used_up(fault, matched))

    def draw(self, method: str, path: str) -> Fault | None:
        """Return the fault that applies to a request, or None, and count it."""
        for fault, matched in self._faults:
            usable = matches(fault.method, fault.path, method, path) and not _is_used_up(fault, matched)
            if usable and self._random.random() < fault.probability:
                matched[0] += 1
                return fault
        return None


def _is_used_up(fault: Fault, matched: list[int]) -> bool:
    return fault.times is not None and matched[0] >= fault.times
